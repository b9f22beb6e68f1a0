"""What is popular lately, everywhere and in the visitor's segment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from narrows.interactions import Interactions
from narrows.retrieval import Floats, Query, Retrieved, Rows
from narrows.sources.rows import LOOKED_AT, NOTHING, RowsOf, first, load_arrays, look_up, save_arrays, scatter

FILE = "popular.npz"
SIGNALS = ("score",)
VALUES = 20_000_000
"""Of all segments' items; each is four bytes of every process that serves."""


@dataclass(frozen=True)
class Params:
    """An event `half_life_s` seconds before the newest weighs one half; 0 is no decay.

    A segment's popularity is shrunk towards everyone's as if `prior_events` more events had happened in it;
    only the `most_segments` busiest segments of at least `least_users` are kept, and no more than have
    `VALUES` shares in all.
    """

    half_life_s: float = 0.0
    prior_events: float = 100.0
    most_segments: int = 50
    least_users: int = 10


@dataclass(frozen=True, eq=False)
class Popular:
    """`shares` float32[segments, items]: of the segment's decayed events; segment 0 is "", everyone."""

    item_ids: NDArray[Any]
    segments: tuple[str, ...]
    shares: Floats
    params: Params

    def save(self, path: Path) -> None:
        """Write one `.npz`."""
        arrays = {"item_ids": self.item_ids, "segments": np.asarray(self.segments), "shares": self.shares}
        save_arrays(path, arrays, self.params)

    def bind(self, rows_of: RowsOf, size: int) -> PopularSource:
        """The source that serves it over a snapshot of `size` rows."""
        rows = rows_of(self.item_ids.tolist())
        table = np.stack([scatter(rows, shares, size, 0.0) for shares in self.shares])
        ordered = tuple(_ordered(shares) for shares in table)
        return PopularSource(self.segments, table, ordered)

    def slates(self, length: int) -> dict[str, list[str]]:
        """segment -> the item ids of its `length` most popular items, best first."""
        found = {}
        for name, shares in zip(self.segments, self.shares, strict=True):
            found[name] = self.item_ids[_ordered(shares)[:length]].tolist()
        return found


def load(path: Path) -> Popular:
    """Read what `save` wrote."""
    arrays, params = load_arrays(path, ("item_ids", "segments", "shares"))
    return Popular(arrays["item_ids"], tuple(arrays["segments"].tolist()), arrays["shares"], Params(**params))


def fit(interactions: Interactions, params: Params) -> Popular:
    """Count decayed events, everyone's and those of the users of each segment."""
    weights = decayed(interactions, params.half_life_s)
    counts = np.bincount(interactions.items, weights=weights, minlength=interactions.item_count)
    everyone = counts / max(float(counts.sum()), 1e-12)
    names, shares = [""], [everyone]
    for name, chosen in busiest(interactions, params.most_segments, params.least_users):
        held = np.bincount(
            interactions.items[chosen], weights=weights[chosen], minlength=interactions.item_count
        )
        names.append(name)
        shares.append((held + params.prior_events * everyone) / (held.sum() + params.prior_events))
    return Popular(interactions.item_ids, tuple(names), np.asarray(shares, np.float32), params)


def decayed(interactions: Interactions, half_life_s: float) -> NDArray[np.float64]:
    """float64[n]: the worth of each event as of the newest one."""
    weights = interactions.weights.astype(np.float64)
    if half_life_s <= 0 or not len(weights):
        return weights
    return np.asarray(weights * 0.5 ** ((interactions.times.max() - interactions.times) / half_life_s))


def busiest(interactions: Interactions, most: int, least_users: int) -> list[tuple[str, NDArray[np.bool_]]]:
    """(name, which events are of it) of the segments with the most events, at most `most`."""
    common = interactions.common_segments(least_users)
    if interactions.segments is None or not len(common):
        return []
    each = interactions.segments[interactions.users]
    names, counts = np.unique(each[np.isin(each, common)], return_counts=True)
    kept = min(most, VALUES // max(interactions.item_count, 1))
    return [(name, each == name) for name in names[np.argsort(-counts, kind="stable")][:kept].tolist()]


def _ordered(shares: Floats) -> Rows:
    """As far down as anybody looks."""
    order = np.argsort(-shares, kind="stable")[:LOOKED_AT]
    return order[shares[order] > 0].astype(np.int32)


@dataclass(frozen=True, eq=False)
class PopularSource:
    """Serves an order made when it was loaded."""

    segments: tuple[str, ...]
    shares: Floats
    ordered: tuple[Rows, ...]
    name: str = "popular"
    signal_names: tuple[str, ...] = SIGNALS

    def retrieve(self, query: Query, quota: int) -> Retrieved:
        """The most popular of the visitor's segment, or of everyone where the segment is not known."""
        segment = self._segment(query)
        rows = first(self.ordered[segment], quota, query)
        return Retrieved(rows, self.shares[segment][rows]) if len(rows) else NOTHING

    def score(self, query: Query, rows: Rows) -> Floats:
        """The share of events; nan for rows without any."""
        shares = look_up(self.shares[self._segment(query)], rows, np.nan)
        return np.where(shares > 0, shares, np.nan).astype(np.float32)

    def signals(self, query: Query, rows: Rows) -> Floats:
        """float32[n, 1]: the score."""
        return self.score(query, rows)[:, None]

    def _segment(self, query: Query) -> int:
        return self.segments.index(query.segment) if query.segment in self.segments else 0
