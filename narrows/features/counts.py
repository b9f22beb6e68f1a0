"""Kinds that add up: counts and sums, plain, decayed or of a window, and rates."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np

from narrows.events import Event
from narrows.features.columns import EventColumns, Floats, Integers, greatest, totals
from narrows.features.declarations import FeatureDeclaration, Parameter
from narrows.features.folding import NOTHING, Fold, State, decay, number
from narrows.features.parameters import (
    LONGEST_S,
    ParameterRule,
    as_texts,
    half_life,
    is_number,
    texts,
    whole,
)
from narrows.features.parameters import number as between
from narrows.features.selection import Selection, selection_of
from narrows.features.sql_rows import SqlRows

AHEAD_S = 300.0


@dataclass(frozen=True)
class Count(Fold):
    """How many events, or the sum of their values; state (events taken, total)."""

    name: ClassVar[str] = "count"
    PARAMETERS: ClassVar[Mapping[str, ParameterRule]] = NOTHING
    VALUE: ClassVar[str] = "number?"
    IN_PAIRS: ClassVar[bool] = True
    of: Selection

    @classmethod
    def declared(cls, declaration: FeatureDeclaration) -> Count:
        return cls(selection_of(declaration))

    @property
    def types(self) -> frozenset[str]:
        return self.of.types

    def zero(self) -> State:
        return (0, 0.0)

    @property
    def reading(self) -> Hashable:
        return ("amount", self.of.key)

    @property
    def taken(self) -> Callable[[Event], float | None]:
        return self.of.amount

    def narrowed(self, event_type: str) -> Self:
        return replace(self, of=self.of.narrowed(event_type))

    def put(self, state: State, taken: float, event: Event) -> State:  # noqa: ARG002  # only the amount counts
        return (state[0] + 1, state[1] + taken)

    def merge(self, left: State, right: State) -> State:
        return (left[0] + right[0], left[1] + right[1])

    def read(self, state: State, now: float) -> float | None:  # noqa: ARG002  # a count does not age
        return float(state[1]) if state[0] else None

    def values(self, events: EventColumns, groups: Integers, size: int, as_of: Floats) -> Floats:  # noqa: ARG002
        number, total = totals(events.amounts(self.of), groups, size)
        return np.where(number > 0, total, np.nan)

    def sql_state(self, rows: SqlRows) -> dict[str, str]:
        amount = rows.amount(self.of)
        return {"n": f"count({amount})", "total": f"sum({amount})"}

    def sql_read(self, parts: Mapping[str, str], now: str) -> str:  # noqa: ARG002
        return parts["total"]


@dataclass(frozen=True)
class DecayedCount(Fold):
    """A count in which an event `half_life` ago weighs one half; state (value, reference time or None).

    The reference is the time of the newest event, so nothing overflows however short the half-life is.

    >>> clicks = DecayedCount(Selection(frozenset({"click"})), half_life_s=60)
    >>> clicks.read((1.0, 1000.0), now=1060.0)
    0.5
    """

    name: ClassVar[str] = "decayed_count"
    PARAMETERS: ClassVar[Mapping[str, ParameterRule]] = {"half_life_s": half_life()}
    VALUE: ClassVar[str] = "none"
    IN_PAIRS: ClassVar[bool] = True
    of: Selection
    half_life_s: float

    @classmethod
    def declared(cls, declaration: FeatureDeclaration) -> DecayedCount:
        return cls(selection_of(declaration), number(declaration, "half_life_s"))

    @property
    def types(self) -> frozenset[str]:
        return self.of.types

    def zero(self) -> State:
        return (0.0, None)

    @property
    def reading(self) -> Hashable:
        return ("amount", self.of.key)

    @property
    def taken(self) -> Callable[[Event], float | None]:
        return self.of.amount

    def narrowed(self, event_type: str) -> Self:
        return replace(self, of=self.of.narrowed(event_type))

    @cached_property
    def put(self) -> Callable[[State, float, Event], State]:
        half_life_s, merge = self.half_life_s, self.merge

        def put(state: State, taken: float, event: Event) -> State:
            value, time = state
            now = event.time
            if time is None:
                return (taken, now)
            if time > now:
                return merge(state, (taken, now))
            return (value * 2.0 ** ((time - now) / half_life_s) + taken, now)

        return put

    def merge(self, left: State, right: State) -> State:
        (value, time), (other, other_time) = left, right
        if time is None or other_time is None:
            return right if time is None else left
        if time >= other_time:
            return (value + other * 2.0 ** ((other_time - time) / self.half_life_s), time)
        return (value * 2.0 ** ((time - other_time) / self.half_life_s) + other, other_time)

    def read(self, state: State, now: float) -> float | None:
        return None if state[1] is None else float(state[0] * decay(now - state[1], self.half_life_s))

    def values(self, events: EventColumns, groups: Integers, size: int, as_of: Floats) -> Floats:
        amounts = events.amounts(self.of)
        weights = aged(amounts, events, groups, size, as_of, self.half_life_s)
        number, total = totals(amounts * weights, groups, size)
        return np.where(number > 0, total, np.nan)

    def sql_state(self, rows: SqlRows) -> dict[str, str]:
        amount, weight = rows.amount(self.of), rows.weight(self.half_life_s)
        return {"total": f"sum({amount} * {weight})", "newest": newest_of(f"{amount} IS NOT NULL")}

    def sql_read(self, parts: Mapping[str, str], now: str) -> str:
        return f"{parts['total']} * {ahead(parts['newest'], now, self.half_life_s)}"


@dataclass(frozen=True)
class DecayedSum(DecayedCount):
    """A sum in which a value `half_life` ago weighs one half; state (value, reference time or None)."""

    name: ClassVar[str] = "decayed_sum"
    VALUE: ClassVar[str] = "number"


@dataclass(frozen=True)
class SmoothedRate(Fold):
    """Successes over trials with a Beta prior; state (successes, trials, reference time), both decayed alike.

    A trial that lists what it showed counts once for each item listed. `prior_successes` and `prior_trials`
    are what is believed before any event: 1 and 50 for a rate near 2 %. Without `half_life` nothing decays.
    """

    name: ClassVar[str] = "smoothed_rate"
    PARAMETERS: ClassVar[Mapping[str, ParameterRule]] = {
        "per": texts("the event types that count as trials", "name the event types that count as trials"),
        "prior_successes": replace(between("successes believed before any event", 0.0), folds=False),
        "prior_trials": replace(between("trials believed before any event", 1e-9), folds=False),
        "half_life_s": half_life(required=False),
    }
    VALUE: ClassVar[str] = "number?"
    IN_PAIRS: ClassVar[bool] = True
    of: Selection
    per: Selection
    prior_successes: float
    prior_trials: float
    half_life_s: float | None = None

    @classmethod
    def declared(cls, declaration: FeatureDeclaration) -> SmoothedRate:
        per = frozenset(as_texts(declaration.parameters["per"]))
        aging = "half_life_s" in declaration.parameters
        return cls(
            selection_of(declaration),
            Selection(per, dict(declaration.where)),
            number(declaration, "prior_successes"),
            number(declaration, "prior_trials"),
            number(declaration, "half_life_s") if aging else None,
        )

    @classmethod
    def conflicts(cls, parameters: Mapping[str, Parameter]) -> list[tuple[str, str]]:
        """Parameters that do not go together, each with its remedy."""
        successes, trials = parameters.get("prior_successes"), parameters.get("prior_trials")
        if (
            not (isinstance(successes, int | float) and isinstance(trials, int | float))
            or successes <= trials
        ):
            return []
        return [("prior_successes", f"it is more than prior_trials ({trials}); a rate is at most 1")]

    @property
    def types(self) -> frozenset[str]:
        both = self.of.types | self.per.types
        return both if self.of.types and self.per.types else frozenset()

    def zero(self) -> State:
        return (0.0, 0.0, None)

    @property
    def reading(self) -> Hashable:
        return ("rate", self.of.key, self.per.key)

    @property
    def taken(self) -> Callable[[Event], tuple[float, float] | None]:
        success_of, trial_of = self.of.amount, self._shown.amount

        def rate(event: Event) -> tuple[float, float] | None:
            success, trial = success_of(event), trial_of(event)
            return None if success is None and trial is None else (success or 0.0, trial or 0.0)

        return rate

    def narrowed(self, event_type: str) -> Self:
        return replace(self, of=self.of.narrowed(event_type), per=self.per.narrowed(event_type))

    @cached_property
    def put(self) -> Callable[[State, tuple[float, float], Event], State]:
        half_life_s, merge = self.half_life_s or math.inf, self.merge

        def put(state: State, taken: tuple[float, float], event: Event) -> State:
            (won, tried, time), (success, trial) = state, taken
            now = event.time
            if time is None:
                return (success, trial, now)
            if time > now:
                return merge(state, (success, trial, now))
            weight = 2.0 ** ((time - now) / half_life_s)
            return (success + won * weight, trial + tried * weight, now)

        return put

    def merge(self, left: State, right: State) -> State:
        if left[2] is None or right[2] is None:
            return right if left[2] is None else left
        older, newer = (left, right) if left[2] <= right[2] else (right, left)
        weight = self._decay(newer[2] - older[2])
        return (newer[0] + older[0] * weight, newer[1] + older[1] * weight, newer[2])

    def read(self, state: State, now: float) -> float | None:
        if state[2] is None:
            return None
        weight = self._decay(now - state[2])
        trials = state[1] * weight + self.prior_trials
        return float((state[0] * weight + self.prior_successes) / trials)

    def values(self, events: EventColumns, groups: Integers, size: int, as_of: Floats) -> Floats:
        successes, trials = events.amounts(self.of), events.amounts(self._shown)
        either = np.where(np.isnan(successes), trials, successes)
        weights = np.ones(len(events))
        if self.half_life_s is not None:
            weights = aged(either, events, groups, size, as_of, self.half_life_s)
        number, _ = totals(either, groups, size)
        _, won = totals(successes * weights, groups, size)
        _, tried = totals(trials * weights, groups, size)
        rate = (won + self.prior_successes) / (tried + self.prior_trials)
        return np.where(number > 0, rate, np.nan)

    def sql_state(self, rows: SqlRows) -> dict[str, str]:
        success, trial = rows.amount(self.of), rows.amount(self._shown)
        newest = newest_of(f"{success} IS NOT NULL OR {trial} IS NOT NULL")
        weight = "" if self.half_life_s is None else f" * {rows.weight(self.half_life_s)}"
        return {
            "successes": f"sum({success}{weight})",
            "trials": f"sum({trial}{weight})",
            "newest": newest,
        }

    def sql_read(self, parts: Mapping[str, str], now: str) -> str:
        weight = "1D" if self.half_life_s is None else ahead(parts["newest"], now, self.half_life_s)
        won, tried = (f"coalesce({parts[name]}, 0D) * {weight}" for name in ("successes", "trials"))
        rate = f"({won} + {self.prior_successes!r}D) / ({tried} + {self.prior_trials!r}D)"
        return f"CASE WHEN {parts['newest']} IS NOT NULL THEN {rate} END"

    @cached_property
    def _shown(self) -> Selection:
        """The trials, each worth as many as it lists."""
        return replace(self.per, value="impressions")

    def _decay(self, age_s: float) -> float:
        return 1.0 if self.half_life_s is None else decay(age_s, self.half_life_s)


@dataclass(frozen=True)
class RecentCount(Fold):
    """How many events of the last `window`, or the sum of their values; state: (bucket, total), oldest first.

    The window is cut into `buckets` of equal length that start at the epoch; what it holds at `now` is the
    running bucket and those before it, so an event leaves at most one bucket's length early. The state keeps
    what a later `now` can ask for, and the buckets that a client's clock may be ahead.
    """

    name: ClassVar[str] = "recent_count"
    PARAMETERS: ClassVar[Mapping[str, ParameterRule]] = {
        "window_s": ParameterRule(
            "how long an event counts",
            'give a duration from "10s" to "36600d", as "1h"',
            lambda value: is_number(value, 10.0, LONGEST_S),
        ),
        "buckets": whole("how many parts the window is cut into", 1, 60, required=False),
    }
    VALUE: ClassVar[str] = "number?"
    IN_PAIRS: ClassVar[bool] = True
    of: Selection
    window_s: float
    buckets: int = 12

    @classmethod
    def declared(cls, declaration: FeatureDeclaration) -> RecentCount:
        buckets = int(number(declaration, "buckets", cls.buckets))
        return cls(selection_of(declaration), number(declaration, "window_s"), buckets)

    @property
    def types(self) -> frozenset[str]:
        return self.of.types

    @property
    def width_s(self) -> float:
        """The length of a bucket."""
        return self.window_s / self.buckets

    def zero(self) -> State:
        return ()

    @property
    def reading(self) -> Hashable:
        return ("amount", self.of.key)

    @property
    def taken(self) -> Callable[[Event], float | None]:
        return self.of.amount

    def narrowed(self, event_type: str) -> Self:
        return replace(self, of=self.of.narrowed(event_type))

    def put(self, state: State, taken: float, event: Event) -> State:
        return self.merge(state, ((self._bucket(event.time), taken),))

    def merge(self, left: State, right: State) -> State:
        totals = dict(left)
        for bucket, total in right:
            totals[bucket] = totals.get(bucket, 0.0) + total
        newest = max(totals, default=0)
        kept = self.buckets + 1 + int(AHEAD_S // self.width_s)
        return tuple(sorted(one for one in totals.items() if one[0] > newest - kept))

    def read(self, state: State, now: float) -> float | None:
        first = self._bucket(now) - self.buckets
        return float(sum(total for bucket, total in state if bucket > first)) if state else None

    def values(self, events: EventColumns, groups: Integers, size: int, as_of: Floats) -> Floats:
        amounts = events.amounts(self.of)
        recent = self.holds(events.time, as_of[groups])
        number, total = totals(np.where(recent, amounts, amounts * 0.0), groups, size)
        return np.where(number > 0, total, np.nan)

    def sql_state(self, rows: SqlRows) -> dict[str, str]:
        amount = rows.amount(self.of)
        return {"n": f"count({amount})", "total": f"sum(CASE WHEN {self.sql_holds(rows)} THEN {amount} END)"}

    def sql_read(self, parts: Mapping[str, str], now: str) -> str:  # noqa: ARG002  # as_of is in the rows
        return f"CASE WHEN {parts['n']} > 0 THEN coalesce({parts['total']}, 0D) END"

    def holds(self, time: Any, now: Any) -> Any:
        """Whether an event of this time counts as of `now`; numbers or arrays of them."""
        return np.floor(time / self.width_s) > np.floor(now / self.width_s) - self.buckets

    def sql_holds(self, rows: SqlRows) -> str:
        """A column: the same of a row as of its moment."""
        width = f"{self.width_s!r}D"
        return rows.column(f"floor(time / {width}) > floor(as_of / {width}) - {self.buckets}")

    def _bucket(self, time: float) -> int:
        return math.floor(time / self.width_s)


def aged(
    amounts: Floats, events: EventColumns, groups: Integers, size: int, as_of: Floats, half_life_s: float
) -> Floats:
    """The weight of each event at its group's moment, or at its newest event where a clock was ahead."""
    newest = greatest(np.where(np.isnan(amounts), np.nan, events.time), groups, size)
    moment = np.fmax(newest, as_of)
    return np.asarray(np.exp2((events.time - moment[groups]) / half_life_s), np.float64)


def newest_of(condition: str) -> str:
    """SQL: when the newest of the rows that fit happened."""
    return f"max(CASE WHEN {condition} THEN time END)"


def ahead(newest: str, now: str, half_life_s: float) -> str:
    """SQL: what brings weights back that were taken at `now` while the newest event was ahead of it."""
    return f"exp(-greatest({newest} - {now}, 0D) * {math.log(2.0) / half_life_s!r}D)"
