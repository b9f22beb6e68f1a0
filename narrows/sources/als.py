"""Matrix factorisation for implicit feedback by alternating least squares, served by folding the history in.

Objective and scaling of the regulariser: Rendle, Krichene, Zhang and Koren, "Revisiting the Performance of
iALS on Item Recommendation Benchmarks" (2022), with nu = 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from narrows.interactions import Interactions
from narrows.retrieval import Floats, Query, Retrieved, Rows
from narrows.sources.rows import NOTHING, RowsOf, load_arrays, look_up, nearest, save_arrays, scatter
from narrows.vector_index import VectorIndex

FILE = "als.npz"
SIGNALS = ("score", "last", "recent")
CELLS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Params:
    """`unobserved` weighs every pair that was not seen against one event; `sweeps` over users and items.

    A query uses its last `history` items, the k-th last weighing `history_decay**k`.
    """

    dimension: int = 64
    unobserved: float = 0.1
    regularisation: float = 0.003
    sweeps: int = 8
    history: int = 100
    history_decay: float = 0.95


@dataclass(frozen=True, eq=False)
class Als:
    """The item vectors, float32[items, dimension]; users are folded in when they ask, so none are kept."""

    item_ids: NDArray[Any]
    vectors: Floats
    params: Params

    def save(self, path: Path) -> None:
        """Write one `.npz`."""
        save_arrays(path, {"item_ids": self.item_ids, "vectors": self.vectors}, self.params)

    def bind(self, rows_of: RowsOf, size: int) -> AlsSource:
        """The source that serves it over a snapshot of `size` rows."""
        rows = rows_of(self.item_ids.tolist())
        learned = np.abs(self.vectors).sum(axis=1) > 0
        table = scatter(np.where(learned, rows, -1), self.vectors, size, np.nan)
        return AlsSource(table, gram(self.vectors), len(self.vectors), self.params)


def load(path: Path) -> Als:
    """Read what `save` wrote."""
    arrays, params = load_arrays(path, ("item_ids", "vectors"))
    return Als(arrays["item_ids"], arrays["vectors"], Params(**params))


def fit(interactions: Interactions, params: Params, generator: np.random.Generator) -> Als:
    """Alternate exact solutions for users and items; an item without events keeps a zero vector."""
    users, items, weights = _cells(interactions)
    by_user = _Table(users, items, weights, interactions.user_count)
    by_item = _Table(items, users, weights, interactions.item_count)
    scale = 1.0 / np.sqrt(params.dimension)
    vectors = generator.normal(0.0, scale, (interactions.item_count, params.dimension)).astype(np.float32)
    vectors[by_item.counts == 0] = 0.0
    for _ in range(params.sweeps):
        people = _half_sweep(by_user, vectors, params)
        vectors = _half_sweep(by_item, people, params)
    return Als(interactions.item_ids, vectors, params)


def gram(vectors: Floats) -> Floats:
    """The sum of the outer products of the vectors, float32[d, d]."""
    return np.asarray(vectors.T @ vectors, np.float32)


def solve(
    grams: Floats, targets: Floats, weight: Floats, shared: Floats, others: int, params: Params
) -> Floats:
    """float32[b, d]: the least-squares vectors given each one's weighted outer products and targets.

    `weight` float32[b] is the total weight of its events; `others` counts the vectors of the other side.
    """
    diagonal = params.regularisation * (weight + params.unobserved * others) + 1e-6
    left = grams + params.unobserved * shared
    np.einsum("bii->bi", left)[...] += diagonal[:, None]
    return np.asarray(np.linalg.solve(left, targets[..., None])[..., 0], np.float32)


def _cells(interactions: Interactions) -> tuple[NDArray[np.int64], NDArray[np.int64], Floats]:
    """One cell per user and item: repeats add up, damped by a logarithm; the mean event weighs one."""
    keys = interactions.users.astype(np.int64) * interactions.item_count + interactions.items
    cells, where = np.unique(keys, return_inverse=True)
    worth = (
        interactions.weights / max(float(interactions.weights.mean()), 1e-12) if len(keys) else np.zeros(0)
    )
    total = np.bincount(where, weights=worth, minlength=len(cells))
    weights = np.where(total > 1, 1.0 + np.log(np.maximum(total, 1.0)), total).astype(np.float32)
    return cells // interactions.item_count, cells % interactions.item_count, weights


class _Table:
    """The cells of one side, grouped by owner, handed out in padded blocks of owners with similar counts."""

    def __init__(
        self, owners: NDArray[np.int64], others: NDArray[np.int64], weights: Floats, size: int
    ) -> None:
        order = np.argsort(owners, kind="stable")
        self.others, self.weights = others[order], weights[order]
        self.counts = np.bincount(owners, minlength=size)
        self.begins = np.cumsum(self.counts) - self.counts
        self.size = size

    def blocks(self, dimension: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], Floats]]:
        """(owners[b], others[b, m], weights[b, m] with 0 as padding)."""
        owners = np.argsort(self.counts, kind="stable")
        owners = owners[np.searchsorted(self.counts[owners], 1) :]
        while len(owners):
            widest = int(self.counts[owners[-1]])
            rows = max(1, CELLS_AT_ONCE // (max(widest, dimension) * dimension))
            chosen, owners = owners[-rows:], owners[:-rows]
            places = np.arange(widest)
            valid = places < self.counts[chosen][:, None]
            at = np.where(valid, self.begins[chosen][:, None] + places, 0)
            yield chosen, self.others[at], np.where(valid, self.weights[at], 0.0).astype(np.float32)


def _half_sweep(table: _Table, vectors: Floats, params: Params) -> Floats:
    solved = np.zeros((table.size, params.dimension), np.float32)
    shared, others = gram(vectors), len(vectors)
    for owners, others_of, weights in table.blocks(params.dimension):
        seen = vectors[others_of]
        weighted = seen * weights[..., None]
        grams = np.matmul(weighted.transpose(0, 2, 1), seen)
        solved[owners] = solve(grams, weighted.sum(axis=1), weights.sum(axis=1), shared, others, params)
    return solved


@dataclass(frozen=True, eq=False)
class AlsSource:
    """Serves any visitor with a history: the vector is solved for on the spot, recent items weighing more.

    `vectors` float32[size, d], nan where the model does not know the row; `others` items were learned from.
    """

    vectors: Floats
    shared: Floats
    others: int
    params: Params
    index: VectorIndex | None = None
    name: str = "als"
    signal_names: tuple[str, ...] = SIGNALS

    def searching(self, index: VectorIndex) -> AlsSource:
        """The same over an index that holds its vectors."""
        return replace(self, index=index)

    def retrieve(self, query: Query, quota: int) -> Retrieved:
        """The rows with the highest inner products with the visitor's vector."""
        visitor = self.visitor(query)
        if visitor is None:
            return NOTHING
        return nearest(self.vectors, visitor, quota, query, self.index)

    def score(self, query: Query, rows: Rows) -> Floats:
        """The inner products for given rows; nan for unknown rows and for a visitor without history."""
        return np.ascontiguousarray(self.signals(query, rows)[:, 0])

    def signals(self, query: Query, rows: Rows) -> Floats:
        """float32[n, 3]: the score, the cosine to the last item, the cosine to the mean of the last five."""
        out = np.full((len(rows), len(SIGNALS)), np.nan, np.float32)
        visitor = self.visitor(query)
        if visitor is None:
            return out
        vectors = look_up(self.vectors, rows, np.nan)
        out[:, 0] = vectors @ visitor
        history = self._known(np.concatenate([query.history, query.seeds]))
        unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
        recent = self.vectors[history[-5:]]
        recent = recent / np.maximum(np.linalg.norm(recent, axis=1, keepdims=True), 1e-9)
        out[:, 1] = unit @ recent[-1]
        out[:, 2] = unit @ recent.mean(axis=0)
        return out

    def visitor(self, query: Query) -> Floats | None:
        """The visitor's vector float32[d]; None where the model knows no item of the history."""
        items = np.concatenate([query.history, query.seeds])[-self.params.history :]
        seen: Floats = look_up(self.vectors, items, np.nan)
        weights = (self.params.history_decay ** np.arange(len(items))[::-1]).astype(np.float32)
        inside = ~np.isnan(seen[:, 0])
        if not inside.all():
            seen, weights = seen[inside], weights[inside]
        if not len(seen):
            return None
        weighted = seen.T * weights
        total = weights.sum(keepdims=True)
        found = solve(
            np.asarray(weighted @ seen, np.float32)[None],
            weighted.sum(axis=1)[None],
            total,
            self.shared,
            self.others,
            self.params,
        )
        return np.asarray(found[0], np.float32)

    def _is_known(self, items: Rows) -> NDArray[np.bool_]:
        inside = (items >= 0) & (items < len(self.vectors))
        inside[inside] = ~np.isnan(self.vectors[items[inside], 0])
        return inside

    def _known(self, items: Rows) -> Rows:
        return items[self._is_known(items)]
