"""Trending: what is chosen more often lately than it used to be, everywhere and in the visitor's segment."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from narrows.interactions import Interactions
from narrows.retrieval import Floats
from narrows.sources import popular
from narrows.sources.popular import Popular, PopularSource
from narrows.sources.rows import RowsOf, load_arrays, save_arrays

FILE = "trending.npz"


@dataclass(frozen=True)
class Params:
    """An event `half_life_s` before the newest counts one half as lately; segments as for `popular`."""

    half_life_s: float = 86_400.0
    most_segments: int = 50
    least_users: int = 10


@dataclass(frozen=True, eq=False)
class Trending:
    """`rises` float32[segments, items]: how far above what was expected, in standard deviations; 0 below."""

    item_ids: NDArray[Any]
    segments: tuple[str, ...]
    rises: Floats
    params: Params

    def save(self, path: Path) -> None:
        """Write one `.npz`."""
        arrays = {"item_ids": self.item_ids, "segments": np.asarray(self.segments), "rises": self.rises}
        save_arrays(path, arrays, self.params)

    def bind(self, rows_of: RowsOf, size: int) -> PopularSource:
        """The source that serves it over a snapshot of `size` rows."""
        ordered = Popular(self.item_ids, self.segments, self.rises, popular.Params())
        return replace(ordered.bind(rows_of, size), name="trending")


def load(path: Path) -> Trending:
    """Read what `save` wrote."""
    arrays, params = load_arrays(path, ("item_ids", "segments", "rises"))
    return Trending(arrays["item_ids"], tuple(arrays["segments"].tolist()), arrays["rises"], Params(**params))


def fit(interactions: Interactions, params: Params) -> Trending:
    """Compare what was counted lately with what each item's share of all events lets expect, by segment."""
    lately = popular.decayed(interactions, params.half_life_s)
    everyone = np.ones(len(interactions), bool)
    segments = popular.busiest(interactions, params.most_segments, params.least_users)
    groups = [("", everyone), *segments]
    rises = [_rises(interactions, lately, chosen) for _, chosen in groups]
    names = tuple(name for name, _ in groups)
    return Trending(interactions.item_ids, names, np.asarray(rises, np.float32), params)


def _rises(
    interactions: Interactions, lately: NDArray[np.float64], chosen: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Of the chosen events; one expected event is added, or rare items would trend by chance."""
    items, count = interactions.items[chosen], interactions.item_count
    recent = np.bincount(items, lately[chosen], count)
    ever = np.bincount(items, interactions.weights[chosen], count)
    expected = ever * (recent.sum() / max(float(ever.sum()), 1e-12))
    return np.asarray(np.maximum((recent - expected) / np.sqrt(expected + 1.0), 0.0))
