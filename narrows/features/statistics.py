"""What the log says of each item, as columns beside the snapshot; an item without events has none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from narrows.interactions import Interactions
from narrows.retrieval import Floats, Rows
from narrows.sources.popular import decayed
from narrows.sources.rows import RowsOf, load_arrays, look_up, save_arrays, scatter

FILE = "item_stats.npz"
NAMES = ("log_events", "log_recent", "repeats", "first_share", "days_known")
DEFAULTS = np.asarray([0.0, 0.0, 1.0, 0.0, 0.0], np.float32)
DAY_S = 86400.0


@dataclass(frozen=True)
class Params:
    """`half_life_s` of the recent count."""

    half_life_s: float = 7 * DAY_S


@dataclass(frozen=True, eq=False)
class ItemStatistics:
    """`values` float32[items, 5] in the order of `NAMES`, nan where the item has no events."""

    item_ids: NDArray[Any]
    values: Floats
    params: Params

    def save(self, path: Path) -> None:
        """Write one `.npz`."""
        save_arrays(path, {"item_ids": self.item_ids, "values": self.values}, self.params)

    def bind(self, rows_of: RowsOf, size: int) -> StatisticsTable:
        """The table over a snapshot of `size` rows."""
        return StatisticsTable(scatter(rows_of(self.item_ids.tolist()), self.values, size, np.nan))


@dataclass(frozen=True, eq=False)
class StatisticsTable:
    """Read by row; never refuses a row."""

    values: Floats

    def read(self, rows: Rows) -> Floats:
        """float32[n, 6]: the statistics, or their declared defaults; the last column is 1 where missing."""
        found = look_up(self.values, rows, np.nan)
        missing = np.isnan(found[:, :1])
        return np.hstack([np.where(missing, DEFAULTS, found), missing]).astype(np.float32)


def load(path: Path) -> ItemStatistics:
    """Read what `save` wrote."""
    arrays, params = load_arrays(path, ("item_ids", "values"))
    return ItemStatistics(arrays["item_ids"], arrays["values"], Params(**params))


def fit(interactions: Interactions, params: Params) -> ItemStatistics:
    """Counts as logarithms; events per user; share of events that open a history; days since first seen."""
    items, count = interactions.items, interactions.item_count
    events = np.bincount(items, minlength=count).astype(np.float64)
    recent = np.bincount(items, weights=decayed(interactions, params.half_life_s), minlength=count)
    pairs = np.unique(interactions.users.astype(np.int64) * count + items) % max(count, 1)
    users = np.bincount(pairs, minlength=count)
    opening = interactions.per_user()[interactions.users] == np.arange(len(interactions))
    openings = np.bincount(items[opening], minlength=count)
    first = np.full(count, np.inf)
    np.minimum.at(first, items, interactions.times)
    newest = interactions.times.max() if len(interactions) else 0.0
    with np.errstate(invalid="ignore", divide="ignore"):
        columns = [
            np.log1p(events),
            np.log1p(recent),
            events / users,
            openings / events,
            (newest - first) / DAY_S,
        ]
    values = np.where(events[:, None] > 0, np.stack(columns, axis=1), np.nan)
    return ItemStatistics(interactions.item_ids, values.astype(np.float32), params)
