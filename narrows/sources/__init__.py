"""The candidate sources of a bundle, loaded and bound to the rows of a snapshot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from narrows.retrieval import CandidateSource, Floats, Query, Rows
from narrows.sources import als, bought_together, content, covisitation, popular, session, trending, two_tower
from narrows.sources.fresh import fresh
from narrows.sources.rows import RowsOf

SOURCES = {
    "als": als,
    "covisitation": covisitation,
    "popular": popular,
    "two_tower": two_tower,
    "session": session,
    "bought_together": bought_together,
    "content": content,
    "trending": trending,
}


class SignallingSource(CandidateSource, Protocol):
    """A source that can say more of a row than one score; the first signal is the score."""

    @property
    def signal_names(self) -> tuple[str, ...]:
        """What the columns of `signals` mean."""

    def signals(self, query: Query, rows: Rows) -> Floats:
        """float32[len(rows), len(signal_names)], nan where the source knows nothing."""


def load_sources(
    directory: Path, rows_of: RowsOf, size: int, *, created: NDArray[Any] | None = None
) -> Mapping[str, SignallingSource]:
    """The sources whose files are in a bundle; `fresh` needs no file, only the column of creation times."""
    sources: dict[str, SignallingSource] = {}
    for name, module in SOURCES.items():
        path = directory / module.FILE
        if path.exists():
            sources[name] = module.load(path).bind(rows_of, size)
    if created is not None and np.isfinite(created).any():
        sources["fresh"] = fresh(created)
    return sources
