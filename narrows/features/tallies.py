"""Kinds that hold something for each value of a text: pairs, distinct counts, entropy.

Each keeps a bounded number of values: those with the smallest hashes. A value that left can never come back
among them, so every order and chunking of the events keeps the same values with the same content.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from narrows.events import Event
from narrows.features.declarations import FeatureDeclaration
from narrows.features.folding import Kind, State, number
from narrows.features.parameters import ParameterRule, whole
from narrows.features.selection import HASH_RANGE, Selection, selection_of, text_hash

KEEP = 100


@dataclass(frozen=True)
class DistinctCount:
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

    def add(self, state: State, event: Event) -> State:
        text = self.of.text(event)
        if text is None:
            return state
        mark = text_hash(text)
        if mark in state or (len(state) >= self.keep and mark > state[-1]):
            return state
        return tuple(sorted((*state, mark))[: self.keep])

    def merge(self, left: State, right: State) -> State:
        return tuple(sorted({*left, *right})[: self.keep])

    def read(self, state: State, now: float) -> float | None:  # noqa: ARG002  # a sketch does not age
        if len(state) < self.keep:
            return float(len(state)) or None
        return float((self.keep - 1) * HASH_RANGE / state[-1])


@dataclass(frozen=True)
class PerValue:
    """A pair: another kind's state for each value of the property `by`; state {value: its state}.

    Of more than `keep` values those with the smallest hashes are kept.
    """

    name: ClassVar[str] = "per_value"
    PARAMETERS: ClassVar[Mapping[str, ParameterRule]] = {
        "keep": whole("how many values are kept", 1, 1000, required=False)
    }
    VALUE: ClassVar[str] = "number?"
    IN_PAIRS: ClassVar[bool] = False
    kind: Kind
    by: str
    keep: int = KEEP

    @classmethod
    def over(cls, kind: Kind, by: str, declaration: FeatureDeclaration) -> PerValue:
        """The pair of a declaration whose scope names `by`."""
        return cls(kind, by, int(number(declaration, "keep", cls.keep)))

    @property
    def types(self) -> frozenset[str]:
        return self.kind.types

    def zero(self) -> State:
        return {}

    def add(self, state: State, event: Event) -> State:
        text = Selection(value=self.by).text(event)
        if text is None:
            return state
        before = state.get(text)
        if before is None:
            before = self.kind.zero()
        after = self.kind.add(before, event)
        return state if after is before else self._kept({**state, text: after})

    def merge(self, left: State, right: State) -> State:
        merged = {**left, **right}
        for text in left.keys() & right.keys():
            merged[text] = self.kind.merge(left[text], right[text])
        return self._kept(merged)

    def read(self, state: State, now: float) -> dict[str, float] | None:
        """The value of each text that the state holds."""
        return {text: self.kind.read(one, now) for text, one in sorted(state.items())} or None

    def _kept(self, state: dict[str, Any]) -> State:
        return least_hashes(state, self.keep)


@dataclass(frozen=True)
class Entropy:
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

    def add(self, state: State, event: Event) -> State:
        text = self.of.text(event)
        return state if text is None else least_hashes({**state, text: state.get(text, 0) + 1}, self.keep)

    def merge(self, left: State, right: State) -> State:
        counts = {text: left.get(text, 0) + right.get(text, 0) for text in {**left, **right}}
        return least_hashes(counts, self.keep)

    def read(self, state: State, now: float) -> float | None:  # noqa: ARG002  # counts do not age
        total = sum(state.values())
        if not total:
            return None
        shares = (count / total for count in state.values())
        return max(0.0, -float(sum(share * math.log2(share) for share in shares)))


def least_hashes(state: dict[str, Any], keep: int) -> dict[str, Any]:
    """The entries of the `keep` texts with the smallest hashes."""
    if len(state) <= keep:
        return state
    return {text: state[text] for text in sorted(state, key=lambda one: (text_hash(one), one))[:keep]}
