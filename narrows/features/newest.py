"""Kinds that keep the newest: the last items, the last value. Ties in time go by event id."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np

from narrows.events import Event
from narrows.features.columns import Entries, EventColumns, Floats, Integers, newest
from narrows.features.declarations import FeatureDeclaration
from narrows.features.folding import Fold, State, number
from narrows.features.parameters import ParameterRule, as_texts, whole
from narrows.features.parameters import texts as closed_list
from narrows.features.selection import Selection, selection_of
from narrows.features.sql_rows import SqlRows, literal


@dataclass(frozen=True)
class LastN(Fold):
    """The newest `keep` items; state: (time, event id, item id, event type) from the oldest to the newest.

    Ties in time go by event id, so every order of arrival keeps the same ones.
    """

    name: ClassVar[str] = "last_n"
    PARAMETERS: ClassVar[Mapping[str, ParameterRule]] = {"keep": whole("how many items", 1, 500)}
    VALUE: ClassVar[str] = "none"
    IN_PAIRS: ClassVar[bool] = False
    of: Selection
    keep: int

    @classmethod
    def declared(cls, declaration: FeatureDeclaration) -> LastN:
        return cls(selection_of(declaration), int(number(declaration, "keep")))

    @property
    def types(self) -> frozenset[str]:
        return self.of.types

    def zero(self) -> State:
        return ()

    @property
    def reading(self) -> Hashable:
        return ("entry", self.of.key)

    @property
    def taken(self) -> Callable[[Event], tuple[float, str, str, str] | None]:
        takes = self.of.takes

        def entry(event: Event) -> tuple[float, str, str, str] | None:
            if not event.item_id or not takes(event):
                return None
            return (event.time, event.event_id, event.item_id, event.event_type)

        return entry

    def narrowed(self, event_type: str) -> Self:
        return replace(self, of=self.of.narrowed(event_type))

    def put(self, state: State, taken: tuple[float, str, str, str], event: Event) -> State:  # noqa: ARG002
        if not state or taken[0] > state[-1][0]:
            newest: State = state if len(state) < self.keep else state[1:]
            return newest + (taken,)  # noqa: RUF005  # it copies once, and unpacking twice
        place = bisect_left(state, taken)
        if place < len(state) and state[place] == taken:
            return state
        return (*state[:place], taken, *state[place:])[-self.keep :]

    def merge(self, left: State, right: State) -> State:
        return self._newest((*left, *right))

    def read(self, state: State, now: float) -> list[str] | None:
        """Item ids from the oldest to the newest, as far as they had happened at `now`."""
        return [entry[2] for entry in state if entry[0] <= now] if state else None

    def values(self, events: EventColumns, groups: Integers, size: int, as_of: Floats) -> Entries:
        """For each group its list of item ids."""
        items = events.text("item_id")
        rows = newest(events, events.taken(self.of) & (items.codes >= 0), groups, self.keep)
        known = np.zeros(size, np.bool_)
        known[groups[rows]] = True
        happened = rows[events.time[rows] <= as_of[groups[rows]]]
        return Entries(groups[happened], items.take(happened), known)

    def sql_entry(self, rows: SqlRows) -> tuple[str, str]:
        item_id = rows.column(rows.text("item_id"))
        condition = rows.column(f"{rows.taken(self.of)} AND {rows.text('item_id')} IS NOT NULL")
        return condition, f"struct(time, event_id, {item_id} AS item_id)"

    def sql_read(self, state: str, now: str) -> str:
        return f"transform(filter({state}, one -> one.time <= {now}), one -> one.item_id)"

    def _newest(self, entries: Iterable[Iterable[Any]]) -> State:
        return tuple(sorted({tuple(entry) for entry in entries}))[-self.keep :]


@dataclass(frozen=True)
class LastValue(Fold):
    """The value of the newest event that has one; state (time, event id, number), or () for none.

    A text becomes its place in the closed list `values`, from 0, and a text outside it the list's length.
    """

    name: ClassVar[str] = "last_value"
    PARAMETERS: ClassVar[Mapping[str, ParameterRule]] = {
        "values": closed_list("the known texts", "list the texts that matter, each once", required=False)
    }
    VALUE: ClassVar[str] = "any"
    IN_PAIRS: ClassVar[bool] = False
    keep: ClassVar[int] = 1
    of: Selection
    texts: tuple[str, ...] = ()

    @classmethod
    def declared(cls, declaration: FeatureDeclaration) -> LastValue:
        return cls(selection_of(declaration), as_texts(declaration.parameters.get("values", ())))

    @property
    def types(self) -> frozenset[str]:
        return self.of.types

    def zero(self) -> State:
        return ()

    @property
    def reading(self) -> Hashable:
        return ("code" if self.texts else "amount", self.of.key, self.texts)

    @property
    def taken(self) -> Callable[[Event], float | None]:
        if not self.texts:
            return self.of.amount
        text_of, codes, other = self.of.text, self._codes.get, float(len(self.texts))

        def place(event: Event) -> float | None:
            text = text_of(event)
            return None if text is None else codes(text, other)

        return place

    def narrowed(self, event_type: str) -> Self:
        return replace(self, of=self.of.narrowed(event_type))

    def put(self, state: State, taken: float, event: Event) -> State:
        entry = (event.time, event.event_id, taken)
        return entry if not state or entry[0] > state[0] or entry > tuple(state) else state

    def merge(self, left: State, right: State) -> State:
        return max(tuple(left), tuple(right))

    def read(self, state: State, now: float) -> float | None:  # noqa: ARG002  # a value does not age
        return float(state[2]) if state else None

    def values(self, events: EventColumns, groups: Integers, size: int, as_of: Floats) -> Floats:  # noqa: ARG002
        amounts = self._amounts(events)
        rows = newest(events, ~np.isnan(amounts), groups, keep=1)
        values = np.full(size, np.nan)
        values[groups[rows]] = amounts[rows]
        return values

    def sql_entry(self, rows: SqlRows) -> tuple[str, str]:
        if not self.texts:
            amount = rows.amount(self.of)
        else:
            word = rows.word(self.of)
            place = f"array_position(array({', '.join(map(literal, self.texts))}), {word})"
            amount = f"coalesce(nullif({place}, 0) - 1, {len(self.texts)})"
            amount = f"CASE WHEN {word} IS NOT NULL THEN cast({amount} AS double) END"
        return f"{amount} IS NOT NULL", f"struct(time, event_id, {amount} AS value)"

    def sql_read(self, state: str, now: str) -> str:  # noqa: ARG002  # a value does not age
        return f"element_at({state}, -1).value"

    def _amounts(self, events: EventColumns) -> Floats:
        if not self.texts:
            return events.amounts(self.of)
        column = events.words(self.of)
        return np.array([*(self._code(word) for word in column.words), np.nan])[column.codes]

    def _code(self, text: str) -> float:
        return self._codes.get(text, float(len(self.texts)))

    @cached_property
    def _codes(self) -> Mapping[str, float]:
        return {text: float(place) for place, text in enumerate(self.texts)}
