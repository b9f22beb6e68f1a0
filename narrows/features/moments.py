"""Kinds that hold when something happened, or how values are spread."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np

from narrows.events import Event
from narrows.features.columns import EventColumns, Floats, Integers, greatest, least, totals
from narrows.features.declarations import FeatureDeclaration
from narrows.features.folding import NOTHING, Fold, State
from narrows.features.parameters import ParameterRule, one_of
from narrows.features.selection import Selection, selection_of
from narrows.features.sql_rows import SqlRows

STATISTICS = ("mean", "std", "min", "max", "count")
_AGGREGATES = {"mean": "avg", "std": "stddev_pop", "min": "min", "max": "max", "count": "count"}


@dataclass(frozen=True)
class FirstSeen(Fold):
    """When the first event happened, in epoch seconds; state (time or None,)."""

    name: ClassVar[str] = "first_seen"
    PARAMETERS: ClassVar[Mapping[str, ParameterRule]] = NOTHING
    VALUE: ClassVar[str] = "none"
    IN_PAIRS: ClassVar[bool] = True
    of: Selection

    @classmethod
    def declared(cls, declaration: FeatureDeclaration) -> FirstSeen:
        return cls(selection_of(declaration))

    @property
    def types(self) -> frozenset[str]:
        return self.of.types

    def zero(self) -> State:
        return (None,)

    @property
    def reading(self) -> Hashable:
        return ("amount", self.of.key)

    @property
    def taken(self) -> Callable[[Event], float | None]:
        return self.of.amount

    def narrowed(self, event_type: str) -> Self:
        return replace(self, of=self.of.narrowed(event_type))

    def put(self, state: State, taken: float, event: Event) -> State:  # noqa: ARG002  # only the time counts
        time = state[0]
        return (event.time,) if time is None or event.time < time else state

    def merge(self, left: State, right: State) -> State:
        if left[0] is None or right[0] is None:
            return right if left[0] is None else left
        return left if left[0] <= right[0] else right

    def read(self, state: State, now: float) -> float | None:  # noqa: ARG002  # a moment does not age
        return None if state[0] is None else float(state[0])

    def values(self, events: EventColumns, groups: Integers, size: int, as_of: Floats) -> Floats:  # noqa: ARG002
        return least(self._times(events), groups, size)

    def sql_state(self, rows: SqlRows) -> dict[str, str]:
        return {"time": f"min(CASE WHEN {rows.amount(self.of)} IS NOT NULL THEN time END)"}

    def sql_read(self, parts: Mapping[str, str], now: str) -> str:  # noqa: ARG002
        return parts["time"]

    def _times(self, events: EventColumns) -> Floats:
        return np.where(events.taken(self.of), events.time, np.nan)


@dataclass(frozen=True)
class LastSeen(FirstSeen):
    """When the newest event happened, in epoch seconds; state (time or None,)."""

    name: ClassVar[str] = "last_seen"

    def put(self, state: State, taken: float, event: Event) -> State:  # noqa: ARG002  # only the time counts
        time = state[0]
        return (event.time,) if time is None or event.time > time else state

    def merge(self, left: State, right: State) -> State:
        if left[0] is None or right[0] is None:
            return right if left[0] is None else left
        return left if left[0] >= right[0] else right

    def values(self, events: EventColumns, groups: Integers, size: int, as_of: Floats) -> Floats:  # noqa: ARG002
        return greatest(self._times(events), groups, size)

    def sql_state(self, rows: SqlRows) -> dict[str, str]:
        return {"time": f"max(CASE WHEN {rows.amount(self.of)} IS NOT NULL THEN time END)"}


@dataclass(frozen=True)
class ValueStatistics(Fold):
    """Mean, standard deviation, least, greatest or number of the values; state (number, mean, m2, min, max).

    `m2` is the sum of squared distances from the mean, merged by Chan's formula, so that nothing cancels; the
    deviation is that of the population: its square is m2 over the number.
    """

    name: ClassVar[str] = "value_statistics"
    PARAMETERS: ClassVar[Mapping[str, ParameterRule]] = {
        "statistic": replace(one_of("which of the statistics is read", STATISTICS), folds=False)
    }
    VALUE: ClassVar[str] = "number"
    IN_PAIRS: ClassVar[bool] = True
    of: Selection
    statistic: str

    @classmethod
    def declared(cls, declaration: FeatureDeclaration) -> ValueStatistics:
        return cls(selection_of(declaration), str(declaration.parameters["statistic"]))

    @property
    def types(self) -> frozenset[str]:
        return self.of.types

    def zero(self) -> State:
        return (0, 0.0, 0.0, None, None)

    @property
    def reading(self) -> Hashable:
        return ("amount", self.of.key)

    @property
    def taken(self) -> Callable[[Event], float | None]:
        return self.of.amount

    def narrowed(self, event_type: str) -> Self:
        return replace(self, of=self.of.narrowed(event_type))

    def put(self, state: State, taken: float, event: Event) -> State:  # noqa: ARG002  # only the amount counts
        before, mean, m2, low, high = state
        if not before:
            return (1, taken, 0.0, taken, taken)
        step = taken - mean
        share = step / (before + 1)
        low, high = (taken if taken < low else low), (taken if taken > high else high)
        return (before + 1, mean + share, m2 + step * share * before, low, high)

    def merge(self, left: State, right: State) -> State:
        if not left[0] or not right[0]:
            return left if left[0] else right
        number = left[0] + right[0]
        step = right[1] - left[1]
        share = right[0] / number
        m2 = left[2] + right[2] + step * step * left[0] * share
        return (number, left[1] + step * share, m2, min(left[3], right[3]), max(left[4], right[4]))

    def read(self, state: State, now: float) -> float | None:  # noqa: ARG002  # the values do not age
        number, mean, m2, low, high = state
        if not number:
            return None
        deviation = math.sqrt(m2 / number)
        values = {"mean": mean, "std": deviation, "min": low, "max": high, "count": number}
        return float(values[self.statistic])

    def values(self, events: EventColumns, groups: Integers, size: int, as_of: Floats) -> Floats:  # noqa: ARG002
        amounts = events.amounts(self.of)
        known = np.flatnonzero(~np.isnan(amounts))
        number, total = totals(amounts, groups, size)
        if self.statistic in ("min", "max"):
            return (greatest if self.statistic == "max" else least)(amounts, groups, size)
        with np.errstate(invalid="ignore"):
            mean = total / number
            squares = (amounts[known] - mean[groups[known]]) ** 2
            spread = np.bincount(groups[known], weights=squares, minlength=size)
            values = {"mean": mean, "std": np.sqrt(spread / number), "count": number}
        return np.where(number > 0, values[self.statistic], np.nan)

    def sql_state(self, rows: SqlRows) -> dict[str, str]:
        return {"value": f"{_AGGREGATES[self.statistic]}({rows.amount(self.of)})"}

    def sql_read(self, parts: Mapping[str, str], now: str) -> str:  # noqa: ARG002
        if self.statistic == "count":
            return f"cast(nullif({parts['value']}, 0) AS double)"
        return parts["value"]
