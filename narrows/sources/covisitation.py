"""Co-visitation: what others went on to after the visitor's last few items, counted over short gaps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from narrows.interactions import Interactions
from narrows.retrieval import Floats, Query, Retrieved, Rows, among
from narrows.sources.rows import NOTHING, RowsOf, best, load_arrays, save_arrays

FILE = "covisitation.npz"
WORTH_LEVELS = 8
SPARSE_ABOVE = 100_000
"""Rows of a catalogue from which on a request does not touch a number for each of them."""
SIGNALS = ("score", "last", "long", "best", "links")


@dataclass(frozen=True)
class Params:
    """How pairs are counted and weighted.

    A pair of events `g` apart in one history counts `gap_decay**(g-1)` from the earlier to the later item and
    `backward` times that the other way, up to `gap` events apart. A strength is the count over (popularity of
    the item found)**`popularity` and (that of the item looked up)**`activity`. A query sums over its last
    `history` items, the k-th last weighing `history_decay**k`.
    """

    gap: int = 5
    gap_decay: float = 0.7
    backward: float = 0.0
    popularity: float = 0.4
    activity: float = 0.5
    history: int = 5
    history_decay: float = 0.7
    neighbours: int = 500


@dataclass(frozen=True, eq=False)
class Pairs:
    """Every pair of events at most `gap` apart, sorted; counted once, then weighted as often as one likes.

    `codes` int64: ((from * items + to) * 2 * gap + kind) * levels + level; kind is the gap less one, plus
    `gap` for the backward direction; `worth` float32[levels] is what the later event of the pair is worth.
    """

    codes: NDArray[np.int64]
    gap: int
    worth: Floats
    popularity: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Covisitation:
    """The fitted strengths as rows of neighbours: item `i` owns `offsets[i]` up to `offsets[i + 1]`."""

    item_ids: NDArray[Any]
    offsets: NDArray[np.int64]
    neighbours: NDArray[np.int32]
    strengths: Floats
    params: Params

    def save(self, path: Path) -> None:
        """Write one `.npz`."""
        arrays = {
            "item_ids": self.item_ids,
            "offsets": self.offsets,
            "neighbours": self.neighbours,
            "strengths": self.strengths,
        }
        save_arrays(path, arrays, self.params)

    def bind(self, rows_of: RowsOf, size: int) -> CovisitationSource:
        """The source that serves it over a snapshot of `size` rows."""
        rows = rows_of(self.item_ids.tolist())
        return CovisitationSource(*_rebase(self, rows, size), size, self.params)


def load(path: Path) -> Covisitation:
    """Read what `save` wrote."""
    arrays, params = load_arrays(path, ("item_ids", "offsets", "neighbours", "strengths"))
    return Covisitation(
        arrays["item_ids"], arrays["offsets"], arrays["neighbours"], arrays["strengths"], Params(**params)
    )


def fit(interactions: Interactions, params: Params) -> Covisitation:
    """Count the pairs and weight them."""
    return weigh(interactions, count_pairs(interactions, params.gap), params)


def count_pairs(interactions: Interactions, gap: int) -> Pairs:
    """All pairs of different items at most `gap` events apart in one user's history, both ways."""
    levels, level = _levels(interactions.weights)
    found = [np.empty(0, np.int64)]
    for apart in range(1, min(gap, len(interactions) - 1) + 1):
        earlier, later = interactions.items[:-apart], interactions.items[apart:]
        valid = (interactions.users[:-apart] == interactions.users[apart:]) & (earlier != later)
        source, target = earlier[valid].astype(np.int64), later[valid].astype(np.int64)
        worth = level[apart:][valid]
        for kind, one, other in ((apart - 1, source, target), (gap + apart - 1, target, source)):
            keys = (one * interactions.item_count + other) * (2 * gap) + kind
            found.append(keys * len(levels) + worth)
    codes = np.concatenate(found)
    codes.sort()
    popularity = np.bincount(interactions.items, minlength=interactions.item_count).astype(np.float64) + 1.0
    return Pairs(codes, gap, levels, popularity)


def _levels(weights: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """(worth of each level, level of each event): distinct weights over their mean, or eight quantiles."""
    if not len(weights):
        return np.ones(1, np.float32), np.zeros(0, np.int64)
    distinct = np.unique(weights)
    if len(distinct) > WORTH_LEVELS:
        distinct = np.unique(np.quantile(weights, np.linspace(0, 1, WORTH_LEVELS)).astype(np.float32))
    level = np.minimum(np.searchsorted(distinct, weights), len(distinct) - 1)
    return (distinct / weights.mean()).astype(np.float32), level.astype(np.int64)


def weigh(interactions: Interactions, pairs: Pairs, params: Params) -> Covisitation:
    """The strengths under these parameters; `params.gap` may be smaller than the gap counted."""
    keys, counts = _weighted_counts(pairs, params)
    source, target = keys // interactions.item_count, keys % interactions.item_count
    strengths = counts / pairs.popularity[target] ** params.popularity
    strengths /= pairs.popularity[source] ** params.activity
    source, target, strengths = strongest(source, target, strengths, params.neighbours)
    offsets = np.searchsorted(source, np.arange(interactions.item_count + 1)).astype(np.int64)
    return Covisitation(
        interactions.item_ids, offsets, target.astype(np.int32), strengths.astype(np.float32), params
    )


def _weighted_counts(pairs: Pairs, params: Params) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    levels = len(pairs.worth)
    apart = np.arange(pairs.gap)
    forward = np.where(apart < params.gap, params.gap_decay**apart, 0.0)
    kinds = np.concatenate([forward, params.backward * forward])
    weights = np.outer(kinds, pairs.worth).ravel()
    each = weights[pairs.codes % len(weights)]
    counted = each > 0
    keys, each = pairs.codes[counted] // (2 * pairs.gap * levels), each[counted]
    if not len(keys):
        return keys, each
    first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]]))
    return keys[first], np.add.reduceat(each, first)


def strongest(
    source: NDArray[np.int64], target: NDArray[np.int64], strengths: NDArray[np.float64], most: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
    """At most `most` neighbours of each item, the strongest; the order of the input is kept."""
    if not len(source) or np.bincount(source).max() <= most:
        return source, target, strengths
    order = np.lexsort((-strengths, source))
    begins = np.searchsorted(source, source)
    kept = np.sort(order[np.arange(len(source)) - begins < most])
    return source[kept], target[kept], strengths[kept]


def _rebase(
    model: Covisitation, rows: Rows, size: int
) -> tuple[NDArray[np.int64], NDArray[np.int32], Floats]:
    """(offsets, neighbours, strengths) over snapshot rows; pairs with an item that has no row are dropped."""
    source = rows[np.repeat(np.arange(len(model.item_ids)), np.diff(model.offsets))]
    target = rows[model.neighbours]
    held = (source >= 0) & (target >= 0)
    order = np.argsort(source[held], kind="stable")
    source, target = source[held][order], target[held][order]
    offsets = np.searchsorted(source, np.arange(size + 1)).astype(np.int64)
    return offsets, target, model.strengths[held][order]


@dataclass(frozen=True, eq=False)
class CovisitationSource:
    """Serves from memory; nothing is allocated per request beyond one score a row of the snapshot."""

    offsets: NDArray[np.int64]
    neighbours: NDArray[np.int32]
    strengths: Floats
    size: int
    params: Params
    name: str = "covisitation"
    signal_names: tuple[str, ...] = SIGNALS
    long_history: int = 30

    def retrieve(self, query: Query, quota: int) -> Retrieved:
        """The items that most often follow the last items of the history (or the seeds)."""
        items, weights = self._recent(query, self.params.history)
        entries, which = self._entries(items)
        if not len(entries):
            return NOTHING
        rows, worth = self.neighbours[entries], self.strengths[entries] * weights[which]
        if self.size > SPARSE_ABOVE:
            return _best_of(rows, worth, quota, query.exclude)
        totals = np.bincount(rows, weights=worth, minlength=self.size)
        scores = np.where(totals > 0, totals, -np.inf).astype(np.float32)
        return best(scores, quota, query.exclude)

    def score(self, query: Query, rows: Rows) -> Floats:
        """The same score for given rows; nan where no recent item leads there."""
        return np.ascontiguousarray(self.signals(query, rows)[:, 0])

    def signals(self, query: Query, rows: Rows) -> Floats:
        """float32[n, 5]: the score, the last item's link, the sum of a long history's, the best, how many."""
        items, weights = self._recent(query, self.long_history)
        short = min(self.params.history, len(items))
        links = self._links(items, rows)
        present = links > 0
        scores = (links[:short].T @ weights[:short]).astype(np.float32)
        out = np.zeros((len(rows), len(SIGNALS)), np.float32)
        out[:, 0] = np.where(scores > 0, scores, np.nan)
        if len(items):
            out[:, 1] = links[0]
            out[:, 2] = links.sum(axis=0)
            out[:, 3] = links.max(axis=0)
            out[:, 4] = present.sum(axis=0)
        return out

    def _recent(self, query: Query, most: int) -> tuple[Rows, Floats]:
        """(items, weights), newest first; the seeds, where there are any, stand before the history."""
        items = np.concatenate([query.history[-most:], query.seeds[-most:]])[::-1][:most]
        weights = self.params.history_decay ** np.arange(len(items))
        if len(query.seeds):
            weights[: len(query.seeds)] = 1.0
        inside = (items >= 0) & (items < self.size)
        return items[inside], weights[inside].astype(np.float32)

    def _entries(self, items: Rows) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(positions in `neighbours`, index of the item each belongs to) of the items' neighbours."""
        begins, lengths = self.offsets[items], self.offsets[items + 1] - self.offsets[items]
        which = np.repeat(np.arange(len(items)), lengths)
        within = np.arange(len(which)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return begins[which] + within, which

    def _links(self, items: Rows, rows: Rows) -> Floats:
        """float32[len(items), len(rows)]: the strength from each item to each row."""
        links = np.zeros((len(items), len(rows)), np.float32)
        entries, which = self._entries(items)
        at = self._places(rows, self.neighbours[entries])
        found = at >= 0
        links[which[found], at[found]] = self.strengths[entries[found]]
        return links

    def _places(self, rows: Rows, wanted: Rows) -> NDArray[np.int64]:
        """Where each of the wanted rows stands in `rows`, -1 for nowhere."""
        if self.size > SPARSE_ABOVE:
            if not len(rows):
                return np.full(len(wanted), -1)
            order = np.argsort(rows, kind="stable")
            at = order[np.searchsorted(rows, wanted, side="right", sorter=order) - 1]
            return np.where(rows[at] == wanted, at, -1)
        place = np.full(self.size + 1, -1, np.int64)
        place[np.where((rows >= 0) & (rows < self.size), rows, self.size)] = np.arange(len(rows))
        place[self.size] = -1
        return place[wanted]


def _best_of(rows: Rows, worth: NDArray[Any], quota: int, exclude: Rows) -> Retrieved:
    """The highest sums by row, as `best` orders them, of those rows alone that occur."""
    held, where = np.unique(rows, return_inverse=True)
    totals = np.bincount(where, weights=worth, minlength=len(held)).astype(np.float32)
    shown = (totals > 0) & ~among(held, exclude)
    held, scores = held[shown], totals[shown]
    if len(scores) > 2 * quota > 0:
        near = scores >= np.partition(scores, len(scores) - quota)[len(scores) - quota]
        held, scores = held[near], scores[near]
    order = np.argsort(-scores, kind="stable")[:quota]
    return Retrieved(held[order], scores[order])
