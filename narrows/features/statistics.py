"""What is known of each item besides the catalogue, as columns beside the snapshot.

That is what the log says of it, and the declared item features that the nightly job has computed. Those are
kept as of one moment or of several: a model that is trained on an old request must read what was known then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from narrows.features.registry import MISSING_SUFFIX
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
class DeclaredItems:
    """Declared item features by name, as of ascending `moments` in epoch seconds.

    `values` float32[moments, items, names], nan where a feature has no value for an item.
    """

    names: tuple[str, ...]
    defaults: Floats
    item_ids: NDArray[Any]
    moments: NDArray[np.float64]
    values: Floats

    def newest(self) -> DeclaredItems:
        """What is served: the values as of the last moment only."""
        return replace(self, moments=self.moments[-1:], values=self.values[-1:])

    def arrays(self) -> dict[str, NDArray[Any]]:
        """How a file keeps it."""
        named = {field: getattr(self, field) for field in ("defaults", "item_ids", "moments", "values")}
        return {_PREFIX + name: value for name, value in named.items()} | {
            f"{_PREFIX}names": np.asarray(self.names, str)
        }

    @staticmethod
    def of(arrays: Mapping[str, NDArray[Any]]) -> DeclaredItems:
        """What `arrays` gave; nothing is declared in a file of a model that knew no such features."""
        kept = {name.removeprefix(_PREFIX): one for name, one in arrays.items() if name.startswith(_PREFIX)}
        names = tuple(kept.pop("names").tolist()) if kept else ()
        return DeclaredItems(names, **kept) if names else NONE_DECLARED


_PREFIX = "declared_"
NONE_DECLARED = DeclaredItems(
    (), np.empty(0, np.float32), np.empty(0, str), np.empty(0), np.empty((0, 0, 0), np.float32)
)


@dataclass(frozen=True, eq=False)
class ItemStatistics:
    """`values` float32[items, 5] in the order of `NAMES`, nan where the item has no events."""

    item_ids: NDArray[Any]
    values: Floats
    params: Params
    declared: DeclaredItems = NONE_DECLARED

    def save(self, path: Path) -> None:
        """Write one `.npz`."""
        arrays = {"item_ids": self.item_ids, "values": self.values, **self.declared.arrays()}
        save_arrays(path, arrays, self.params)

    def bind(self, rows_of: RowsOf, size: int) -> StatisticsTable:
        """The table over a snapshot of `size` rows."""
        values = scatter(rows_of(self.item_ids.tolist()), self.values, size, np.nan)
        rows = rows_of(self.declared.item_ids.tolist())
        layers = tuple(scatter(rows, one, size, np.nan) for one in self.declared.values)
        return StatisticsTable(values, self.declared, layers)


@dataclass(frozen=True, eq=False)
class StatisticsTable:
    """Read by row; never refuses a row. `layers`: the declared values by row, as of each declared moment."""

    values: Floats
    items: DeclaredItems = NONE_DECLARED
    layers: tuple[Floats, ...] = ()

    @property
    def declared(self) -> tuple[str, ...]:
        """The columns of `read_declared`: each declared item feature and its flag."""
        return tuple(both for name in self.items.names for both in (name, f"{name}{MISSING_SUFFIX}"))

    def read(self, rows: Rows) -> Floats:
        """float32[n, 6]: the statistics, or their declared defaults; the last column is 1 where missing."""
        found = look_up(self.values, rows, np.nan)
        missing = np.isnan(found[:, :1])
        return np.hstack([np.where(missing, DEFAULTS, found), missing]).astype(np.float32)

    def read_declared(self, rows: Rows, now: float) -> Floats:
        """float32[n, len(declared)] as of the newest moment at or before `now`; defaults where none is."""
        layer = int(np.searchsorted(self.items.moments, now, "right")) - 1
        found = np.full((len(rows), len(self.items.names)), np.nan, np.float32)
        if layer >= 0:
            found = look_up(self.layers[layer], rows, np.nan)
        missing = np.isnan(found)
        both = np.stack([np.where(missing, self.items.defaults, found), missing], axis=2)
        return both.reshape(len(rows), -1).astype(np.float32)


def load(path: Path) -> ItemStatistics:
    """Read what `save` wrote, now or before item features could be declared."""
    arrays, params = load_arrays(path, ("item_ids", "values"))
    return ItemStatistics(arrays["item_ids"], arrays["values"], Params(**params), DeclaredItems.of(arrays))


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
