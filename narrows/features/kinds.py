"""The closed set of feature kinds: commutative folds over events, each with zero, add, merge and read.

A state is a tuple that JSON can write. Adding events in any order and any chunking, and merging the chunks,
gives the same state: integers and lists exactly, floats to rounding.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

from narrows.events import Event, Scalar

State = tuple[Any, ...]
EVERYWHERE: Mapping[str, Scalar] = MappingProxyType({})


@dataclass(frozen=True)
class Selection:
    """The events that a feature counts, and how much each is worth.

    `types` empty takes every type. `where` asks for equal properties. `value` names the property that gives
    the amount; an event without that property, or with something else than a number in it, is not taken.
    """

    types: frozenset[str] = frozenset()
    where: Mapping[str, Scalar] = field(default_factory=lambda: EVERYWHERE)
    value: str | None = None

    def amount(self, event: Event) -> float | None:
        """What the event adds, None when the selection does not take it."""
        if self.types and event.event_type not in self.types:
            return None
        if any(event.property_named(name) != wanted for name, wanted in self.where.items()):
            return None
        if self.value is None:
            return 1.0
        amount = event.property_named(self.value)
        return float(amount) if isinstance(amount, bool | int | float) else None


class Kind(Protocol):
    """One way of folding events into a state; every class here is frozen and holds only parameters."""

    name: ClassVar[str]

    def zero(self) -> State:
        """The state before any event."""

    def add(self, state: State, event: Event) -> State:
        """The state with this event in it; unchanged when the feature does not take the event."""

    def merge(self, left: State, right: State) -> State:
        """One state for the events of both; they must not share events, except in `LastN`."""

    def read(self, state: State, now: float) -> float | list[str] | None:
        """The feature's value as of `now`, None when no event was ever taken."""


@dataclass(frozen=True)
class Count:
    """How many events, or the sum of their values; state (events taken, total)."""

    name: ClassVar[str] = "count"
    of: Selection

    def zero(self) -> State:
        return (0, 0.0)

    def add(self, state: State, event: Event) -> State:
        amount = self.of.amount(event)
        return state if amount is None else (state[0] + 1, state[1] + amount)

    def merge(self, left: State, right: State) -> State:
        return (left[0] + right[0], left[1] + right[1])

    def read(self, state: State, now: float) -> float | None:  # noqa: ARG002  # a count does not age
        return float(state[1]) if state[0] else None


@dataclass(frozen=True)
class DecayedCount:
    """A count in which an event `half_life_s` ago weighs one half; state (value, reference time or None).

    The reference is the time of the newest event, so nothing overflows however short the half-life is.

    >>> clicks = DecayedCount(Selection(frozenset({"click"})), half_life_s=60)
    >>> clicks.read((1.0, 1000.0), now=1060.0)
    0.5
    """

    name: ClassVar[str] = "decayed_count"
    of: Selection
    half_life_s: float

    def zero(self) -> State:
        return (0.0, None)

    def add(self, state: State, event: Event) -> State:
        amount = self.of.amount(event)
        return state if amount is None else self.merge(state, (amount, event.time))

    def merge(self, left: State, right: State) -> State:
        if left[1] is None or right[1] is None:
            return right if left[1] is None else left
        reference = max(left[1], right[1])
        total = sum(value * decay(reference - time, self.half_life_s) for value, time in (left, right))
        return (total, reference)

    def read(self, state: State, now: float) -> float | None:
        return None if state[1] is None else state[0] * decay(now - state[1], self.half_life_s)


@dataclass(frozen=True)
class SmoothedRate:
    """Successes over trials with a Beta prior; state (successes, trials, reference time), both decayed alike.

    A trial that lists what it showed counts once for each item listed. `prior_successes` and `prior_trials`
    are what is believed before any event: 1 and 50 for a rate near 2 %. Without `half_life_s` nothing decays.
    """

    name: ClassVar[str] = "smoothed_rate"
    of: Selection
    per: Selection
    prior_successes: float
    prior_trials: float
    half_life_s: float | None = None

    def zero(self) -> State:
        return (0.0, 0.0, None)

    def add(self, state: State, event: Event) -> State:
        success, trial = self.of.amount(event), self.per.amount(event)
        if success is None and trial is None:
            return state
        shown = max(1, len(event.impression))
        return self.merge(state, (success or 0.0, (trial or 0.0) * shown, event.time))

    def merge(self, left: State, right: State) -> State:
        if left[2] is None or right[2] is None:
            return right if left[2] is None else left
        reference = max(left[2], right[2])
        weights = [self._decay(reference - state[2]) for state in (left, right)]
        successes = left[0] * weights[0] + right[0] * weights[1]
        return (successes, left[1] * weights[0] + right[1] * weights[1], reference)

    def read(self, state: State, now: float) -> float | None:
        if state[2] is None:
            return None
        weight = self._decay(now - state[2])
        trials = state[1] * weight + self.prior_trials
        return (state[0] * weight + self.prior_successes) / trials if trials > 0 else None

    def _decay(self, age_s: float) -> float:
        return 1.0 if self.half_life_s is None else decay(age_s, self.half_life_s)


@dataclass(frozen=True)
class LastN:
    """The newest `keep` items; state: (time, event id, item id, event type) from the oldest to the newest.

    Ties in time go by event id, so every order of arrival keeps the same ones.
    """

    name: ClassVar[str] = "last_n"
    of: Selection
    keep: int

    def zero(self) -> State:
        return ()

    def add(self, state: State, event: Event) -> State:
        if event.item_id is None or self.of.amount(event) is None:
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


def decay(age_s: float, half_life_s: float) -> float:
    """The weight of something `age_s` seconds old: one half per half-life, and 1 for what is yet to come."""
    return float(2.0 ** (-max(0.0, age_s) / half_life_s))


KINDS: Mapping[str, type[Count] | type[DecayedCount] | type[SmoothedRate] | type[LastN]] = MappingProxyType(
    {kind.name: kind for kind in (Count, DecayedCount, SmoothedRate, LastN)}
)
