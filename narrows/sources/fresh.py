"""The newest items of the catalogue, so that what nobody has seen yet can be seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from narrows.retrieval import Floats, Query, Retrieved, Rows
from narrows.sources.rows import NOTHING, first, look_up

DAY_S = 86400.0
SIGNALS = ("score",)


@dataclass(frozen=True, eq=False)
class FreshSource:
    """`created` float64[size], epoch seconds, nan unknown; `newest` its rows, newest first.

    `before` float64[len(newest)]: minus their times, ascending, so that a request only has to search it.
    """

    created: NDArray[np.float64]
    newest: Rows
    before: NDArray[np.float64]
    name: str = "fresh"
    signal_names: tuple[str, ...] = SIGNALS

    def retrieve(self, query: Query, quota: int) -> Retrieved:
        """The newest items that exist already at the time of the query."""
        begin = int(np.searchsorted(self.before, -query.now))
        rows = first(self.newest[begin:], quota, query)
        return Retrieved(rows, self.score(query, rows)) if len(rows) else NOTHING

    def score(self, query: Query, rows: Rows) -> Floats:
        """Minus the age in days; nan where the time of creation is not known."""
        return np.asarray((look_up(self.created, rows, np.nan) - query.now) / DAY_S, np.float32)

    def signals(self, query: Query, rows: Rows) -> Floats:
        """float32[n, 1]: the score."""
        return self.score(query, rows)[:, None]


def fresh(created: NDArray[np.float64]) -> FreshSource:
    """The source over the snapshot's column of creation times (epoch seconds, nan unknown)."""
    order = np.argsort(-created, kind="stable")
    times = created.astype(np.float64)
    newest = order[~np.isnan(times[order])].astype(np.int32)
    return FreshSource(times, newest, -times[newest])
