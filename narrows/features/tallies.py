"""Kinds that hold something for each value of a text: pairs, distinct counts, entropy.

Each keeps a bounded number of values: those with the smallest hashes. A value that left can never come back
among them, so every order and chunking of the events keeps the same values with the same content.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Self, cast

import numpy as np

from narrows.events import Event
from narrows.features.columns import (
    Entries,
    EventColumns,
    Floats,
    Integers,
    TextColumn,
    from_start,
    greatest,
)
from narrows.features.declarations import FeatureDeclaration
from narrows.features.folding import Additive, Fold, State, number
from narrows.features.parameters import ParameterRule, whole
from narrows.features.selection import HASH_RANGE, Selection, selection_of, text_hash, unit
from narrows.features.sql_rows import SqlRows, mark_of

KEEP = 100
_DENSE = 8
"""A table of all that numbers can be is quicker than sorting them, up to so many times their length."""


@dataclass(frozen=True)
class DistinctCount(Fold):
    """How many different texts, exact below `keep`, else to about 1/sqrt(keep); state: their least hashes.

    The k-minimum-values sketch of Bar-Yossef et al. (2002), with Beyer's unbiased estimate (k - 1) / x_k.
    """

    name: ClassVar[str] = "distinct_count"
    PARAMETERS: ClassVar[Mapping[str, ParameterRule]] = {
        "keep": whole("how many hashes the sketch keeps", 16, 4096, required=False)
    }
    VALUE: ClassVar[str] = "text"
    IN_PAIRS: ClassVar[bool] = False
    of: Selection
    keep: int = 128

    @classmethod
    def declared(cls, declaration: FeatureDeclaration) -> DistinctCount:
        return cls(selection_of(declaration), int(number(declaration, "keep", cls.keep)))

    @property
    def types(self) -> frozenset[str]:
        return self.of.types

    def zero(self) -> State:
        return ()

    @property
    def reading(self) -> Hashable:
        return ("text", self.of.key)

    @property
    def taken(self) -> Callable[[Event], str | None]:
        return self.of.text

    def narrowed(self, event_type: str) -> Self:
        return replace(self, of=self.of.narrowed(event_type))

    def put(self, state: State, taken: str, event: Event) -> State:  # noqa: ARG002  # only the text counts
        mark = text_hash(taken)
        place = bisect_left(state, mark)
        if place == self.keep or (place < len(state) and state[place] == mark):
            return state
        return state[:place] + (mark,) + state[place : self.keep - 1]  # noqa: RUF005  # unpacking copies twice

    def merge(self, left: State, right: State) -> State:
        return tuple(sorted({*left, *right})[: self.keep])

    def read(self, state: State, now: float) -> float | None:  # noqa: ARG002  # a sketch does not age
        if len(state) < self.keep:
            return float(len(state)) or None
        return float((self.keep - 1) * HASH_RANGE / state[-1])

    def values(self, events: EventColumns, groups: Integers, size: int, as_of: Floats) -> Floats:  # noqa: ARG002
        pairs = Pairs.of(events.words(self.of), groups)
        kept = pairs.least(self.keep)
        number = np.bincount(pairs.group[kept], minlength=size).astype(np.float64)
        if not np.any(number >= self.keep):
            return np.where(number == 0, np.nan, number)
        last = greatest(pairs.mark[kept].astype(np.float64), pairs.group[kept], size)
        with np.errstate(invalid="ignore", divide="ignore"):
            estimate = (self.keep - 1) * float(HASH_RANGE) / last
        return np.where(number == 0, np.nan, np.where(number < self.keep, number, estimate))

    def sql_word(self, rows: SqlRows) -> str:
        return rows.word(Selection(value=self.of.value))

    def sql_state(self, rows: SqlRows) -> dict[str, str]:
        return {"n": f"count({rows.word(self.of)})"}

    def sql_value(self, parts: Mapping[str, str], now: str) -> str:  # noqa: ARG002
        return f"nullif({parts['n']}, 0)"

    def sql_read(self, state: str) -> str:
        greatest = f"array_max(transform({state}, one -> {mark_of('one.word')}))"
        estimate = f"{float((self.keep - 1) * HASH_RANGE)!r}D / {greatest}"
        return f"CASE WHEN size({state}) < {self.keep} THEN cast(size({state}) AS double) ELSE {estimate} END"


@dataclass(frozen=True)
class PerValue(Fold):
    """A pair: another kind's state for each value of the property `by`; state {value: its state}.

    Of more than `keep` values those with the smallest hashes are kept.
    """

    name: ClassVar[str] = "per_value"
    PARAMETERS: ClassVar[Mapping[str, ParameterRule]] = {
        "keep": whole("how many values are kept", 1, 1000, required=False)
    }
    IN_PAIRS: ClassVar[bool] = False
    kind: Additive
    by: str
    keep: int = KEEP

    @classmethod
    def over(cls, kind: Additive, by: str, declaration: FeatureDeclaration) -> PerValue:
        """The pair of a declaration whose scope names `by`."""
        return cls(kind, by, int(number(declaration, "keep", cls.keep)))

    @property
    def types(self) -> frozenset[str]:
        return self.kind.types

    def zero(self) -> State:
        return {}

    @property
    def reading(self) -> Hashable:
        return ("text", self._texts.key) if self._counts_all else ("pair", self.by, self.kind.reading)

    @property
    def taken(self) -> Callable[[Event], Any]:
        """The text alone where the inner kind takes one of every event, else both."""
        text_of, inner_of = self._texts.text, self.kind.taken

        def pair(event: Event) -> tuple[str, Any] | None:
            inner = inner_of(event)
            text = None if inner is None else text_of(event)
            return None if text is None else (text, inner)

        return text_of if self._counts_all else pair

    def narrowed(self, event_type: str) -> Self:
        return replace(self, kind=cast(Additive, self.kind.narrowed(event_type)))

    @cached_property
    def put(self) -> Callable[[State, Any, Event], State]:
        inner_put, zero, keep = self.kind.put, self.kind.zero(), self.keep

        def put(state: State, taken: tuple[str, Any], event: Event) -> State:
            text, inner = taken
            state[text] = inner_put(state.get(text, zero), inner, event)
            return state if len(state) <= keep else least_hashes(state, keep)

        def put_one(state: State, text: str, event: Event) -> State:
            state[text] = inner_put(state.get(text, zero), 1.0, event)
            return state if len(state) <= keep else least_hashes(state, keep)

        return put_one if self._counts_all else put

    def merge(self, left: State, right: State) -> State:
        merged = {**left, **right}
        for text in left.keys() & right.keys():
            merged[text] = self.kind.merge(left[text], right[text])
        return least_hashes(merged, self.keep)

    def read(self, state: State, now: float) -> dict[str, float] | None:
        """The value of each text that the state holds."""
        return {text: self.kind.read(one, now) for text, one in sorted(state.items())} or None

    def values(self, events: EventColumns, groups: Integers, size: int, as_of: Floats) -> Entries:
        """For each group a map from text to value."""
        column = events.text(self.by)
        pairs = Pairs.of(column, groups)
        number = len(pairs)
        place = np.where(pairs.place < 0, number, pairs.place)  # what has no text is a pair that nobody reads
        moments = np.append(as_of[pairs.group], as_of[:1] if size else 0.0)
        inner = self.kind.values(events, place, number + 1, moments)[:number]
        taken = np.flatnonzero(~np.isnan(inner))
        kept = taken[pairs.only(taken).least(self.keep)]
        known = np.zeros(size, np.bool_)
        known[pairs.group[kept]] = True
        return Entries(pairs.group[kept], TextColumn(pairs.word[kept], column.words), known, inner[kept])

    def sql_word(self, rows: SqlRows) -> str:
        return rows.word(Selection(value=self.by))

    def sql_state(self, rows: SqlRows) -> dict[str, str]:
        return self.kind.sql_state(rows)

    def sql_value(self, parts: Mapping[str, str], now: str) -> str:
        return self.kind.sql_read(parts, now)

    def sql_read(self, state: str) -> str:
        return f"map_from_entries({state})"

    @property
    def _texts(self) -> Selection:
        return Selection(value=self.by)

    @cached_property
    def _counts_all(self) -> bool:
        """Whether the inner kind takes one of every event, so that the text is all there is to read."""
        return self.kind.taken is unit


@dataclass(frozen=True)
class Entropy(Fold):
    """How evenly the events spread over the values of a text, in bits; state {value: events}.

    Of more than `keep` values those with the smallest hashes are counted.
    """

    name: ClassVar[str] = "entropy"
    PARAMETERS: ClassVar[Mapping[str, ParameterRule]] = PerValue.PARAMETERS
    VALUE: ClassVar[str] = "text"
    IN_PAIRS: ClassVar[bool] = False
    of: Selection
    keep: int = KEEP

    @classmethod
    def declared(cls, declaration: FeatureDeclaration) -> Entropy:
        return cls(selection_of(declaration), int(number(declaration, "keep", cls.keep)))

    @property
    def types(self) -> frozenset[str]:
        return self.of.types

    def zero(self) -> State:
        return {}

    @property
    def reading(self) -> Hashable:
        return ("text", self.of.key)

    @property
    def taken(self) -> Callable[[Event], str | None]:
        return self.of.text

    def narrowed(self, event_type: str) -> Self:
        return replace(self, of=self.of.narrowed(event_type))

    def put(self, state: State, taken: str, event: Event) -> State:  # noqa: ARG002  # only the text counts
        state[taken] = state.get(taken, 0) + 1
        return state if len(state) <= self.keep else least_hashes(state, self.keep)

    def merge(self, left: State, right: State) -> State:
        counts = {text: left.get(text, 0) + right.get(text, 0) for text in {**left, **right}}
        return least_hashes(counts, self.keep)

    def read(self, state: State, now: float) -> float | None:  # noqa: ARG002  # counts do not age
        total = sum(state.values())
        if not total:
            return None
        shares = (count / total for count in state.values())
        return max(0.0, -float(sum(share * math.log2(share) for share in shares)))

    def values(self, events: EventColumns, groups: Integers, size: int, as_of: Floats) -> Floats:  # noqa: ARG002
        pairs = Pairs.of(events.words(self.of), groups)
        kept = pairs.least(self.keep)
        counts = np.bincount(pairs.place[pairs.place >= 0], minlength=len(pairs))[kept].astype(np.float64)
        total = np.bincount(pairs.group[kept], weights=counts, minlength=size)
        shares = counts / total[pairs.group[kept]]
        bits = -np.bincount(pairs.group[kept], weights=shares * np.log2(shares), minlength=size)
        return np.where(total > 0, np.maximum(bits, 0.0), np.nan)

    def sql_word(self, rows: SqlRows) -> str:
        return rows.word(Selection(value=self.of.value))

    def sql_state(self, rows: SqlRows) -> dict[str, str]:
        return {"n": f"count({rows.word(self.of)})"}

    def sql_value(self, parts: Mapping[str, str], now: str) -> str:  # noqa: ARG002
        return f"nullif({parts['n']}, 0)"

    def sql_read(self, state: str) -> str:
        total = f"aggregate({state}, 0L, (sum, one) -> sum + one.value)"
        bits = f"aggregate({state}, 0D, (sum, one) -> sum - one.value / {total} * log2(one.value / {total}))"
        return f"greatest({bits}, 0D)"


@dataclass(frozen=True, eq=False)
class Pairs:
    """The different (group, text) of some events, by group: `word` is the text's place in its column.

    `place` says of each event which pair it is in, -1 for none.
    """

    column: TextColumn
    group: Integers
    word: Integers
    place: Integers

    @staticmethod
    def of(column: TextColumn, groups: Integers) -> Pairs:
        """The pairs of events in these groups with this column."""
        width = max(1, len(column.words))
        known = column.codes >= 0
        each = groups * width + column.codes if known.all() else (groups * width + column.codes)[known]
        joined, at = _different(each)
        place = at
        if len(at) < len(groups):
            place = np.full(len(groups), -1, np.int64)
            place[known] = at
        group = joined // width
        return Pairs(column, group, joined - group * width, place)

    def __len__(self) -> int:
        return len(self.group)

    @property
    def mark(self) -> Integers:
        """The hash of each text."""
        return self.column.hashes[self.word]

    def only(self, chosen: Integers) -> Pairs:
        """Some of them; their events are left out."""
        return Pairs(self.column, self.group[chosen], self.word[chosen], np.empty(0, np.int64))

    def least(self, keep: int) -> Integers:
        """The places of the `keep` pairs with the smallest hashes in each group; by group."""
        overfull = np.zeros(int(self.group[-1]) + 1 if len(self) else 0, np.bool_)
        overfull[self.group[from_start(self.group) >= keep]] = True
        ranked = np.flatnonzero(overfull[self.group])  # nothing is hashed where all can be kept
        if not len(ranked):
            return np.arange(len(self))
        words, groups = self.word[ranked], self.group[ranked]
        ordered = np.lexsort((self.column.places[words], self.column.hashes[words], groups))
        kept = ~overfull[self.group]
        kept[ranked[ordered[from_start(groups) < keep]]] = True
        return np.flatnonzero(kept)


def _different(numbers: Integers) -> tuple[Integers, Integers]:
    """The different numbers in order, none of them negative, and the place of each number among them."""
    most = int(numbers.max(initial=-1)) + 1
    if most > _DENSE * len(numbers):
        return np.unique(numbers, return_inverse=True)
    there = np.zeros(most, np.bool_)
    there[numbers] = True
    places = np.cumsum(there) - 1
    return np.flatnonzero(there), places.take(numbers)


def least_hashes(state: dict[str, Any], keep: int) -> dict[str, Any]:
    """The entries of the `keep` texts with the smallest hashes; the state that is given is used up."""
    if len(state) == keep + 1:  # the usual case, for every new text of a full state
        del state[max(zip(map(text_hash, state), state, strict=True))[1]]
        return state
    ranked = sorted(zip(map(text_hash, state), state, strict=True))
    return {text: state[text] for _, text in ranked[:keep]} if len(state) > keep else state
