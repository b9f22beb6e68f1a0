"""Bought together: what stands in the same baskets more often than chance would put it there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from narrows.interactions import Interactions
from narrows.retrieval import Floats
from narrows.sources import covisitation
from narrows.sources.covisitation import Covisitation, CovisitationSource
from narrows.sources.rows import RowsOf, load_arrays, save_arrays

FILE = "bought_together.npz"
HISTORY_DECAY = 0.8


@dataclass(frozen=True)
class Params:
    """What a basket is, and how often a pair must be seen.

    A basket is a visitor's events of the highest worth, none more than `sitting_s` after the one before; its
    pairs are at most `apart` events apart. Pairs seen fewer than `support` times do not count. A query asks
    for the seeds, or else for the last `history` items.
    """

    sitting_s: float = 3600.0
    apart: int = 20
    support: int = 3
    history: int = 3
    neighbours: int = 200


@dataclass(frozen=True, eq=False)
class Pairs:
    """How often items stood in one basket, both ways: `keys` int64 is one * items + other."""

    keys: NDArray[np.int64]
    counts: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class BoughtTogether:
    """The logarithms of lifts above one, as rows of neighbours like those of co-visitation."""

    item_ids: NDArray[Any]
    offsets: NDArray[np.int64]
    neighbours: NDArray[np.int32]
    lifts: Floats
    params: Params

    def save(self, path: Path) -> None:
        """Write one `.npz`."""
        names = ("item_ids", "offsets", "neighbours", "lifts")
        save_arrays(path, {name: getattr(self, name) for name in names}, self.params)

    def bind(self, rows_of: RowsOf, size: int) -> CovisitationSource:
        """The source that serves it over a snapshot of `size` rows."""
        how = covisitation.Params(history=self.params.history, history_decay=HISTORY_DECAY)
        links = Covisitation(self.item_ids, self.offsets, self.neighbours, self.lifts, how)
        return replace(links.bind(rows_of, size), name="bought_together")


def load(path: Path) -> BoughtTogether:
    """Read what `save` wrote."""
    arrays, params = load_arrays(path, ("item_ids", "offsets", "neighbours", "lifts"))
    return BoughtTogether(
        arrays["item_ids"], arrays["offsets"], arrays["neighbours"], arrays["lifts"], Params(**params)
    )


def fit(interactions: Interactions, params: Params) -> BoughtTogether:
    """Count the pairs of every basket and keep those that chance does not explain."""
    return weigh(interactions, count_pairs(interactions, params), params)


def count_pairs(interactions: Interactions, params: Params) -> Pairs:
    """Every pair of different items of a basket."""
    worth = interactions.weights
    chosen = interactions.keep(worth >= 0.999 * worth.max(initial=0.0))
    baskets = _baskets(chosen, params.sitting_s)
    found = [np.empty(0, np.int64)]
    for apart in range(1, min(params.apart, len(chosen) - 1) + 1):
        one, other = chosen.items[:-apart].astype(np.int64), chosen.items[apart:].astype(np.int64)
        together = (baskets[:-apart] == baskets[apart:]) & (one != other)
        found.append((one * interactions.item_count + other)[together])
        found.append((other * interactions.item_count + one)[together])
    keys, counts = np.unique(np.concatenate(found), return_counts=True)
    return Pairs(keys, counts)


def weigh(interactions: Interactions, pairs: Pairs, params: Params) -> BoughtTogether:
    """The lifts: how many times as often a pair was seen as if items met by chance."""
    count = interactions.item_count
    one, other = pairs.keys // max(count, 1), pairs.keys % max(count, 1)
    alone = np.bincount(one, pairs.counts, count)
    lifts = pairs.counts * pairs.counts.sum() / np.maximum(alone[one] * alone[other], 1.0)
    kept = (pairs.counts >= params.support) & (lifts > 1.0)
    one, other, lifts = one[kept], other[kept], np.log(lifts[kept])
    one, other, lifts = covisitation.strongest(one, other, lifts, params.neighbours)
    offsets = np.searchsorted(one, np.arange(count + 1)).astype(np.int64)
    return BoughtTogether(
        interactions.item_ids, offsets, other.astype(np.int32), lifts.astype(np.float32), params
    )


def _baskets(chosen: Interactions, sitting_s: float) -> NDArray[np.int64]:
    """The number of each event's basket."""
    another = np.diff(chosen.users, prepend=-1) != 0
    another[1:] |= np.diff(chosen.times) > sitting_s
    return np.cumsum(another)
