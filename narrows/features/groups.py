"""Who is in a group: what decides whether a group is large enough to be told of.

Only those count whose events gave the group the value that would be shown. Who bid without a price is no
cover for the one whose price it is, nor who bid last month for the one who bid within the hour.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Self

import numpy as np

from narrows.events import Event
from narrows.features.columns import EventColumns, Floats, Integers, TextColumn
from narrows.features.counts import RecentCount
from narrows.features.folding import Fold, State
from narrows.features.selection import Selection
from narrows.features.sql_rows import SqlRows
from narrows.features.tallies import Pairs


@dataclass(frozen=True)
class Members(Fold):
    """How many different texts under `distinct` gave a group its value; state {text: its newest time}.

    Exact up to `keep`, which is all that a minimum asks for: the texts that were seen last are kept. `gave`
    takes the events that give a value, a text where `of_text`; of a `window` only those inside it.
    """

    name: ClassVar[str] = "members"
    IN_PAIRS: ClassVar[bool] = False
    gave: Selection
    distinct: str
    keep: int
    of_text: bool = False
    window: RecentCount | None = None

    @property
    def types(self) -> frozenset[str]:
        return self.gave.types

    def zero(self) -> State:
        return {}

    @property
    def reading(self) -> Hashable:
        return ("member", self.gave.key, self.distinct, self.of_text)

    @cached_property
    def taken(self) -> Callable[[Event], str | None]:
        given = self.gave.text if self.of_text else self.gave.amount
        who = Selection(value=self.distinct).text
        return lambda event: None if given(event) is None else who(event)

    def narrowed(self, event_type: str) -> Self:
        return replace(self, gave=self.gave.narrowed(event_type))

    def put(self, state: State, taken: str, event: Event) -> State:
        return self.merge(state, {taken: event.time})

    def merge(self, left: State, right: State) -> State:
        times = {text: max(one.get(text, -np.inf) for one in (left, right)) for text in {**left, **right}}
        ordered = sorted(times.items(), key=lambda one: (-one[1], one[0]))
        return dict(ordered[: self.keep])

    def read(self, state: State, now: float) -> float | None:
        window = self.window
        counted = [time for time in state.values() if window is None or window.holds(time, now)]
        return float(len(counted)) or None

    def values(self, events: EventColumns, groups: Integers, size: int, as_of: Floats) -> Floats:
        given = events.words(self.gave).codes >= 0 if self.of_text else ~np.isnan(events.amounts(self.gave))
        if self.window is not None:
            given = given & self.window.holds(events.time, as_of[groups])
        who = events.text(self.distinct)
        pairs = Pairs.of(TextColumn(np.where(given, who.codes, -1), who.words), groups)
        number = np.bincount(pairs.group, minlength=size).astype(np.float64)
        return np.where(number > 0, np.minimum(number, self.keep), np.nan)

    def sql_word(self, rows: SqlRows) -> str:
        return rows.word(Selection(value=self.distinct))

    def sql_state(self, rows: SqlRows) -> dict[str, str]:
        given = rows.word(self.gave) if self.of_text else rows.amount(self.gave)
        inside = "" if self.window is None else f" AND {self.window.sql_holds(rows)}"
        return {"n": f"count(CASE WHEN {given} IS NOT NULL{inside} THEN 1 END)"}

    def sql_value(self, parts: Mapping[str, str], now: str) -> str:  # noqa: ARG002  # the rows have as_of
        return f"nullif({parts['n']}, 0)"

    def sql_read(self, state: str) -> str:
        return f"cast(size({state}) AS double)"
