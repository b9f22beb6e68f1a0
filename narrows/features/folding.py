"""What every kind of feature is: a commutative fold over events."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, ClassVar, Protocol

from narrows.events import Event
from narrows.features.columns import EventColumns, Floats, Integers
from narrows.features.declarations import FeatureDeclaration
from narrows.features.parameters import ParameterRule
from narrows.features.sql_rows import SqlRows

State = Any
"""What a fold holds: a tuple, or a dict from a text to a tuple or number; JSON can write it."""

NOTHING: Mapping[str, ParameterRule] = {}


class Kind(Protocol):
    """One way of folding events into a state; every class of it is frozen and holds only parameters.

    `IN_PAIRS` tells whether a pair can hold it.
    """

    name: ClassVar[str]
    IN_PAIRS: ClassVar[bool]

    @property
    def types(self) -> frozenset[str]:
        """The event types that can change a state; empty for every type."""

    def zero(self) -> State:
        """The state before any event."""

    @property
    def reading(self) -> Hashable:
        """The same for kinds whose `taken` is the same of every event."""

    @property
    def taken(self) -> Callable[[Event], Any]:
        """What an event gives the state, None when the feature does not take it."""

    def narrowed(self, event_type: str) -> Kind:
        """The same for events of this type, without looking at their type again."""

    def put(self, state: State, taken: Any, event: Event) -> State:
        """The state with what was taken of this event in it; the one given is used up (a dict changed)."""

    def add(self, state: State, event: Event) -> State:
        """The state with this event in it, the one given where it takes nothing; that one is used up."""

    def merge(self, left: State, right: State) -> State:
        """One state for the events of both; they must not share events, except in lists and sketches."""

    def read(self, state: State, now: float) -> Any:
        """The value as of `now`, None when no event was ever taken."""

    def values(self, events: EventColumns, groups: Integers, size: int, as_of: Floats) -> Any:
        """The value of each group as of its moment, nan or None when it has no event that is taken.

        `groups` says which group each event is in, from 0 to `size` - 1.
        """


class Additive(Kind, Protocol):
    """A kind whose state Spark SQL aggregates from the rows alone."""

    def sql_state(self, rows: SqlRows) -> dict[str, str]:
        """The parts of the state, each the text of an aggregate over the rows."""

    def sql_read(self, parts: Mapping[str, str], now: str) -> str:
        """The text of the value as of `now`, NULL when no event was taken; `parts` holds the parts' texts."""


class Newest(Kind, Protocol):
    """A kind whose state are the newest `keep` rows that fit a condition."""

    @property
    def keep(self) -> int:
        """How many."""

    def sql_entry(self, rows: SqlRows) -> tuple[str, str]:
        """The text of the condition, and of what the state keeps of a row."""

    def sql_read(self, state: str, now: str) -> str:
        """The text of the value as of `now`; `state` is an array of entries, the oldest first."""


class Tally(Kind, Protocol):
    """A kind that holds something for each of the `keep` texts with the smallest hashes."""

    @property
    def keep(self) -> int:
        """How many."""

    def sql_word(self, rows: SqlRows) -> str:
        """The column of the text."""

    def sql_state(self, rows: SqlRows) -> dict[str, str]:
        """The parts kept for each text, each an aggregate over its rows; `n` counts the rows taken."""

    def sql_value(self, parts: Mapping[str, str], now: str) -> str:
        """The text of what is kept for a text as of `now`, NULL where the feature does not hold it."""

    def sql_read(self, state: str) -> str:
        """The text of the value; `state` is an array of structs: the word and what is kept for it."""


class Fold:
    """What adding an event is in every kind: take what it gives, if anything, and put it in."""

    def add(self: Kind, state: State, event: Event) -> State:
        taken = self.taken(event)
        return state if taken is None else self.put(state, taken, event)


class DeclaredKind(Kind, Protocol):
    """A kind that a declaration can name.

    `PARAMETERS` are those of a declaration. `VALUE` says what its `value` has to name: "none", "number" or
    "text", "any" of both, with "?" where it may be left out.
    """

    PARAMETERS: ClassVar[Mapping[str, ParameterRule]]
    VALUE: ClassVar[str]

    @classmethod
    def declared(cls, declaration: FeatureDeclaration) -> DeclaredKind:
        """The kind with the parameters of a declaration that passed the checks."""


def decay(age_s: float, half_life_s: float) -> float:
    """The weight of something `age_s` seconds old: one half per half-life, and 1 for what is yet to come."""
    return float(2.0 ** (-max(0.0, age_s) / half_life_s))


def number(declaration: FeatureDeclaration, name: str, otherwise: float | None = None) -> float:
    """A parameter as a number; the declaration must have passed the checks."""
    value = declaration.parameters.get(name, otherwise)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{declaration.name}.{name} is {value!r}, no number: the declaration was not checked")
    return float(value)
