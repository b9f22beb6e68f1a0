"""The embedded tier of the vector index: faiss in this process.

Below `EXACT_BELOW` rows every vector is compared. Above, an inverted file over half-precision vectors (IVF)
answers; how many of its lists a search probes is measured at the build, so that the recall wanted is met on
the vectors at hand. New and changed vectors lie in a small exact part until they are added to the lists.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from narrows.adapters.slots import Slots
from narrows.errors import InvalidInput
from narrows.retrieval import Floats, Rows
from narrows.vector_index import (
    EVERYTHING,
    FILTERS,
    NO_ATTRIBUTES,
    Attributes,
    Neighbours,
    Where,
    asked,
    checked_vectors,
    refused,
)

EXACT_BELOW = 100_000
FRESH_AT_MOST = 20_000
REBUILT_AT = 2.0
ROWS_A_LIST = 1_000
TRAINED_ON = 64
QUERIES = 200
RECALL = 0.985
DEPTHS = (10, 100, 1_000)
SEED = 0

Found = tuple[Rows, Floats]


@dataclass(frozen=True, eq=False)
class _Exact:
    """A part that is compared vector by vector."""

    slots: Slots
    vectors: Floats

    def search(self, wanted: Floats, k: int, where: Where) -> Found:
        passing = np.flatnonzero(self.slots.passing(where))
        everything = len(passing) == len(self.vectors)
        products = wanted @ (self.vectors if everything else self.vectors[passing]).T
        rows = np.broadcast_to(self.slots.rows[passing], products.shape)
        if len(passing) <= k:
            return rows, products
        best = np.argpartition(-products, k - 1, axis=1)[:, :k]
        return np.take_along_axis(rows, best, axis=1), np.take_along_axis(products, best, axis=1)

    def compact(self) -> _Exact:
        """Without its dead slots."""
        kept = np.flatnonzero(self.slots.alive)
        return self if len(kept) == len(self.slots) else _Exact(self.slots.taken(kept), self.vectors[kept])


@dataclass(frozen=True, eq=False)
class _Lists:
    """The inverted file; to find the `DEPTHS` best of all, so many lists as `probes` says are visited."""

    index: Any
    slots: Slots
    built_with: int
    probes: tuple[float, ...]

    def search(self, wanted: Floats, k: int, where: Where) -> Found:
        bits, passing = self.slots.packed(where)
        if not passing:
            return np.empty((len(wanted), 0), np.int32), np.empty((len(wanted), 0), np.float32)
        parameters = faiss.SearchParametersIVF(
            sel=faiss.IDSelectorBitmap(bits), nprobe=self._probes(k * len(self.slots) / passing)
        )
        scores, at = self.index.search(wanted, k, params=parameters)
        return np.where(at >= 0, self.slots.rows[at], -1).astype(np.int32), np.where(at >= 0, scores, np.nan)

    def _probes(self, depth: float) -> int:
        """Between the measured depths by their logarithm; beyond, growing with the depth's square root."""
        if 2 * depth >= len(self.slots):
            return int(self.index.nlist)
        beyond = max(1.0, depth / DEPTHS[-1]) ** 0.5
        found = np.interp(np.log(min(depth, DEPTHS[-1])), np.log(DEPTHS), self.probes) * beyond
        return int(min(np.ceil(found), self.index.nlist))


@dataclass(frozen=True, eq=False)
class _State:
    fresh: _Exact
    lists: _Lists | None = None


@dataclass(eq=False)
class FaissVectorIndex:
    """A search reads one state that nobody changes, and needs no lock; a change puts another there."""

    version: str
    dimension: int
    filters: tuple[str, ...] = FILTERS
    exact_below: int = EXACT_BELOW
    fresh_at_most: int = FRESH_AT_MOST
    recall: float = RECALL
    _state: _State = field(init=False)
    _lock: Any = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._state = _State(_Exact(Slots.empty(), np.empty((0, self.dimension), np.float32)))

    def __len__(self) -> int:
        state = self._state
        return state.fresh.slots.living + (state.lists.slots.living if state.lists else 0)

    def upsert(
        self, rows: Rows, vectors: Floats, attributes: Attributes = NO_ATTRIBUTES
    ) -> Mapping[int, InvalidInput]:
        checked_vectors(self, rows, vectors, attributes)
        bad = refused(rows, vectors)
        good = np.asarray([at for at in range(len(rows)) if at not in bad], np.intp)
        chosen = {name: [values[at] for at in good] for name, values in attributes.items()}
        new_rows, added = np.asarray(rows, np.int32)[good], np.asarray(vectors, np.float32)[good]
        with self._lock:
            state = self._without(new_rows)
            slots = state.fresh.slots.extended(new_rows, chosen)
            state = replace(state, fresh=_Exact(slots, np.concatenate([state.fresh.vectors, added])))
            limit = self.fresh_at_most if state.lists else self.exact_below
            self._state = self._merged(state) if len(slots) >= limit else state
        return bad

    def delete(self, rows: Rows) -> None:
        with self._lock:
            self._state = self._without(np.asarray(rows, np.int32))

    def refresh(self) -> None:
        with self._lock:
            self._state = self._merged(self._state)

    def search(self, vectors: Floats, k: int, where: Where = EVERYTHING) -> Neighbours:
        wanted = asked(self, vectors, k, where)
        state = self._state
        found = state.fresh.search(wanted, k, where)
        if state.lists:
            of_lists = state.lists.search(wanted, k, where)
            found = np.hstack([found[0], of_lists[0]]), np.hstack([found[1], of_lists[1]])
        return _ordered(*found, k)

    def _without(self, rows: Rows) -> _State:
        fresh, lists = self._state.fresh, self._state.lists
        fresh = replace(fresh, slots=fresh.slots.without(rows))
        return _State(fresh, replace(lists, slots=lists.slots.without(rows)) if lists else None)

    def _merged(self, state: _State) -> _State:
        """The fresh part in the lists; lists made anew where they have outgrown what they were made with."""
        fresh, lists = state.fresh.compact(), state.lists
        if lists is None:
            if len(fresh.slots) < self.exact_below:
                return _State(fresh)
            return _State(self._nothing(), _built(fresh, self.recall))
        if not len(fresh.slots):
            return state
        if len(lists.slots) + len(fresh.slots) >= REBUILT_AT * lists.built_with:
            return _State(self._nothing(), _built(_joined(lists, fresh), self.recall))
        index = faiss.clone_index(lists.index)
        index.add(fresh.vectors)
        return _State(self._nothing(), replace(lists, index=index, slots=lists.slots.joined(fresh.slots)))

    def _nothing(self) -> _Exact:
        return _Exact(Slots.empty(), np.empty((0, self.dimension), np.float32))


def _ordered(rows: Rows, scores: Floats, k: int) -> Neighbours:
    """The best `k` of each line, filled up with -1 and nan; of equal scores the lower row comes first."""
    order = np.lexsort((rows, np.where(np.isnan(scores), np.inf, -scores)), axis=1)[:, :k]
    out = Neighbours(np.full((len(rows), k), -1, np.int32), np.full((len(rows), k), np.nan, np.float32))
    out.rows[:, : order.shape[1]] = np.take_along_axis(rows, order, axis=1)
    out.scores[:, : order.shape[1]] = np.take_along_axis(scores, order, axis=1)
    return out


def _joined(lists: _Lists, fresh: _Exact) -> _Exact:
    kept = np.flatnonzero(lists.slots.alive)
    vectors = lists.index.reconstruct_batch(kept.astype(np.int64))
    return _Exact(lists.slots.taken(kept).joined(fresh.slots), np.concatenate([vectors, fresh.vectors]))


def _built(part: _Exact, recall: float) -> _Lists:
    """The lists over a part without dead slots, and how many of them a search has to visit."""
    vectors, count = part.vectors, len(part.vectors)
    lists = int(2 ** np.round(np.log2(max(count / ROWS_A_LIST, 16))))
    rng = np.random.default_rng(SEED)
    index = faiss.IndexIVFScalarQuantizer(
        faiss.IndexFlatIP(vectors.shape[1]),
        vectors.shape[1],
        lists,
        faiss.ScalarQuantizer.QT_fp16,
        faiss.METRIC_INNER_PRODUCT,
    )
    index.cp.min_points_per_centroid = 1  # below it faiss prints a warning, and small lists are as exact
    index.train(vectors[rng.choice(count, min(count, TRAINED_ON * lists), replace=False)])
    index.add(vectors)
    index.make_direct_map()
    queries = vectors[rng.choice(count, min(count, QUERIES), replace=False)]
    return _Lists(index, part.slots, count, _calibrated(index, vectors, queries, recall))


def _calibrated(index: Any, vectors: Floats, queries: Floats, recall: float) -> tuple[float, ...]:
    """For each of `DEPTHS` the fewest lists, in steps of a quarter, that give the recall wanted."""
    exact = faiss.IndexFlatIP(vectors.shape[1])
    exact.add(vectors)
    deepest = min(DEPTHS[-1], len(vectors))
    _, truth = exact.search(queries, deepest)
    found: list[float] = []
    probes = 1
    for depth in DEPTHS:
        while probes < index.nlist and _recall(index, queries, truth[:, :depth], probes) < recall:
            probes = min(max(probes + 1, probes * 5 // 4), index.nlist)
        found.append(float(probes))
    return tuple(found)


def _recall(index: Any, queries: Floats, truth: NDArray[np.int64], probes: int) -> float:
    parameters = faiss.SearchParametersIVF(nprobe=probes)
    _, found = index.search(queries, truth.shape[1], params=parameters)
    hits = sum(len(np.intersect1d(ours, theirs)) for ours, theirs in zip(found, truth, strict=True))
    return hits / truth.size
