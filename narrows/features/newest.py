"""Kinds that keep the newest: the last items, the last value. Ties in time go by event id."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from narrows.events import Event
from narrows.features.declarations import FeatureDeclaration
from narrows.features.folding import State, number
from narrows.features.parameters import ParameterRule, as_texts, texts, whole
from narrows.features.selection import Selection, selection_of


@dataclass(frozen=True)
class LastN:
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

    def add(self, state: State, event: Event) -> State:
        if event.item_id is None or not self.of.takes(event):
            return state
        entry = (event.time, event.event_id, event.item_id, event.event_type)
        if not state or entry > tuple(state[-1]):
            return (*state, entry)[-self.keep :]
        return self._newest((*state, entry))

    def merge(self, left: State, right: State) -> State:
        return self._newest((*left, *right))

    def read(self, state: State, now: float) -> list[str] | None:
        """Item ids from the oldest to the newest, as far as they had happened at `now`."""
        return [entry[2] for entry in state if entry[0] <= now] if state else None

    def _newest(self, entries: Iterable[Iterable[Any]]) -> State:
        return tuple(sorted({tuple(entry) for entry in entries}))[-self.keep :]


@dataclass(frozen=True)
class LastValue:
    """The value of the newest event that has one; state (time, event id, number), or () for none.

    A text becomes its place in the closed list `values`, from 0, and a text outside it the list's length.
    """

    name: ClassVar[str] = "last_value"
    PARAMETERS: ClassVar[Mapping[str, ParameterRule]] = {
        "values": texts("the known texts", "list the texts that matter, each once", required=False)
    }
    VALUE: ClassVar[str] = "any"
    IN_PAIRS: ClassVar[bool] = False
    of: Selection
    values: tuple[str, ...] = ()

    @classmethod
    def declared(cls, declaration: FeatureDeclaration) -> LastValue:
        return cls(selection_of(declaration), as_texts(declaration.parameters.get("values", ())))

    @property
    def types(self) -> frozenset[str]:
        return self.of.types

    def zero(self) -> State:
        return ()

    def add(self, state: State, event: Event) -> State:
        amount = self._number(event)
        return state if amount is None else max(state, (event.time, event.event_id, amount))

    def merge(self, left: State, right: State) -> State:
        return max(tuple(left), tuple(right))

    def read(self, state: State, now: float) -> float | None:  # noqa: ARG002  # a value does not age
        return float(state[2]) if state else None

    def _number(self, event: Event) -> float | None:
        if not self.values:
            return self.of.amount(event)
        text = self.of.text(event)
        if text is None:
            return None
        return float(self.values.index(text) if text in self.values else len(self.values))
