"""The parts of the embedded index: one that is compared vector by vector, and an inverted file (IVF).

The lists find the nearest by codes of half a byte a number, which a processor looks up for 32 vectors at once
(product quantiser with fast scan: Andre, Kermarrec and Le Scouarnec, 2015), and compare the best of them at
half precision. How many lists a search visits, and how many vectors it compares, is measured at the build, so
that the recall wanted is met on the vectors at hand.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from narrows.adapters.slots import Slots
from narrows.retrieval import Floats, Rows
from narrows.vector_index import Where

ROWS_A_LIST = 500
TRAINED_ON = 128
FEWEST_QUESTIONS = 50
DEPTHS = (10, 100, 1_000, 10_000)
QUERIES = (400, 400, 100, 40)
"""By which it is measured how deep a search goes, for each of `DEPTHS`."""
STEP = 1.04
SEED = 0
SWEEPS = 10
BITS = 4
NEAREST_FIRST = 11
"""The way of faiss's fast scan that visits the nearest list first, so that few of the others are kept."""
PLACED_AT_ONCE = 65_536
LONG, SHARE = 3.0, 0.99
"""Vectors so many times as long as this share of all are compared one by one; lists would fit only them."""
OF_CODES = 0.2
"""The share of what a search may miss that it may miss because codes are coarse."""
MOST_COMPARED = 16
"""At half precision, for each vector wanted."""
MOSTLY = 0.25
"""From this share of vectors on that pass, comparing all is faster than picking them out."""

Found = tuple[Rows, Floats]


@dataclass(frozen=True, eq=False)
class Exact:
    """A part that is compared vector by vector."""

    slots: Slots
    vectors: Floats

    def search(self, wanted: Floats, k: int, where: Where) -> Found:
        """The best, in no order; a score of -inf is none."""
        passing = self.slots.passing(where)
        count = int(np.count_nonzero(passing))
        rows = self.slots.rows
        if count >= MOSTLY * len(passing):
            products = wanted @ self.vectors.T
            if count < len(passing):
                products[:, ~passing] = -np.inf
        else:
            at = np.flatnonzero(passing)
            rows, products = rows[at], wanted @ self.vectors[at].T
        if len(rows) <= k:
            return np.broadcast_to(rows, products.shape), products
        best = np.argpartition(products, len(rows) - k, axis=1)[:, len(rows) - k :]
        return rows[best], np.take_along_axis(products, best, axis=1)

    def compact(self) -> Exact:
        """Without its dead slots."""
        return self if self.slots.alive.all() else self.part(self.slots.alive)

    def part(self, chosen: NDArray[np.bool_]) -> Exact:
        """Its chosen slots."""
        kept = np.flatnonzero(chosen)
        return Exact(self.slots.taken(kept), self.vectors[kept])


@dataclass(frozen=True, eq=False)
class Lists:
    """The inverted file. To find the `DEPTHS` best of all, so many lists as `probes` says are visited, and
    `compared` vectors for each one wanted are compared at half precision.

    `index` is faiss's refinement of the lists by the vectors at half precision, as it is stored and grows;
    `packed` the same over the codes in the order in which they are looked up. Which list a vector goes into
    is decided on the sphere of radius `reach`, on which each lies once it has one coordinate more (Bachrach
    et al., 2014): so long vectors, which are near to most questions, lie together. `edges` float32[lists]
    has that coordinate of the lists' centres; `error` is how far a code was at most from its vector.
    """

    index: Any
    packed: Any
    slots: Slots
    built_with: int
    probes: tuple[float, ...]
    compared: tuple[float, ...]
    reach: float
    error: float
    edges: Floats

    def search(self, wanted: Floats, k: int, where: Where) -> Found:
        """The best, in no order; a score of -inf is none."""
        bits, passing = self.slots.packed(where)
        depth = k * len(self.slots) / max(passing, 1)
        compared = int(np.ceil(_between(depth, self.compared) * max(k, DEPTHS[0])))
        if compared >= passing:
            return self._all(wanted, where)
        options: dict[str, Any] = {"nprobe": self._visited(depth)}
        if passing < len(self.slots):
            options["sel"] = faiss.IDSelectorBitmap(bits)
        scores, at = self.packed.search(wanted, k, params=_closely(compared / k, **options))
        return self.slots.rows[at], np.where(at >= 0, scores, np.float32(-np.inf))

    def _all(self, wanted: Floats, where: Where) -> Found:
        """All that pass: so few do, or so many are wanted, that lists would save nothing."""
        at = np.flatnonzero(self.slots.passing(where))
        products = wanted @ self.index.reconstruct_batch(at).T
        return np.broadcast_to(self.slots.rows[at], products.shape), products

    def _visited(self, depth: float) -> int:
        """Beyond the deepest depth measured, growing with the depth's square root."""
        beyond = max(1.0, depth / DEPTHS[-1]) ** 0.5
        return int(min(np.ceil(_between(depth, self.probes) * beyond), len(self.edges)))

    def takes(self, vectors: Floats) -> NDArray[np.bool_]:
        """bool[n]: as short, and as near to their codes, as the vectors that it began with."""
        near = _errors(_coded(self.index), vectors, self._placed(vectors)) <= self.error
        return np.asarray(near & (np.linalg.norm(vectors, axis=1) <= self.reach))

    def extended(self, part: Exact) -> Lists:
        """A copy with the slots and vectors of another part behind these."""
        index = faiss.clone_index(self.index)
        _filled(index, part.vectors, self._placed(part.vectors))
        return replace(self, index=index, packed=packed(index), slots=self.slots.joined(part.slots))

    def _placed(self, vectors: Floats) -> NDArray[np.int64]:
        return _placed(vectors, self.reach, np.column_stack([_centres_of(_coded(self.index)), self.edges]))


def joined(lists: Lists, fresh: Exact) -> Exact:
    """What lives in both, at half precision where it comes from the lists."""
    kept = np.flatnonzero(lists.slots.alive)
    vectors = lists.index.reconstruct_batch(kept.astype(np.int64))
    return Exact(lists.slots.taken(kept).joined(fresh.slots), np.concatenate([vectors, fresh.vectors]))


def built(whole: Exact, recall: float, questions: Floats | None) -> tuple[Exact, Lists]:
    """What is left of a part without dead slots, vectors far longer than others, and the lists of these."""
    lengths = np.linalg.norm(whole.vectors, axis=1)
    inside = lengths <= LONG * np.quantile(lengths, SHARE)
    part = whole if inside.all() else whole.part(inside)
    vectors, count = part.vectors, len(part.vectors)
    lists = int(2 ** np.round(np.log2(max(count / ROWS_A_LIST, 16))))
    rng = np.random.default_rng(SEED)
    chosen = rng.choice(count, min(count, TRAINED_ON * lists), replace=False)
    reach = float(lengths[inside].max())
    centres = _centres(_lifted(vectors[chosen], reach), lists)
    index = _empty(centres[:, :-1])
    placed = _placed(vectors, reach, centres)
    error = _learned(_coded(index), vectors[chosen], placed[chosen])
    _filled(index, vectors, placed)
    asked = vectors if questions is None or len(questions) < FEWEST_QUESTIONS else questions
    queries = asked[rng.choice(len(asked), min(len(asked), QUERIES[0]), replace=False)]
    scan = packed(index)
    probes, compared = _calibrated(scan, vectors, queries, recall)
    edges = centres[:, -1].copy()
    return whole.part(~inside), Lists(index, scan, part.slots, count, probes, compared, reach, error, edges)


def packed(index: Any) -> Any:
    """The same refinement over lists whose codes lie as they are looked up; it needs `index` to live."""
    lists = faiss.IndexIVFPQFastScan(_coded(index))
    lists.implem = NEAREST_FIRST
    return faiss.IndexRefine(lists, index.refine_index)


def _lifted(vectors: Floats, reach: float) -> Floats:
    """float32[n, d + 1]: with the coordinate that puts each on the sphere of that radius."""
    squared = np.einsum("nd,nd->n", vectors, vectors)
    edge = np.sqrt(np.maximum(np.float32(reach) ** 2 - squared, 0.0))
    return np.column_stack([vectors, edge]).astype(np.float32)


def _centres(lifted: Floats, lists: int) -> Floats:
    """float32[lists, d + 1]: directions around which vectors lie (spherical k-means)."""
    found = faiss.Kmeans(
        lifted.shape[1],
        lists,
        niter=SWEEPS,
        seed=SEED,
        spherical=True,
        min_points_per_centroid=1,  # below it faiss prints a warning, and small lists are as exact
        max_points_per_centroid=TRAINED_ON,
    )
    found.train(lifted)
    return np.asarray(found.centroids, np.float32)


def _placed(vectors: Floats, reach: float, centres: Floats) -> NDArray[np.int64]:
    """int64[n]: the list of each vector."""
    nearest = faiss.IndexFlatIP(centres.shape[1])
    nearest.add(np.ascontiguousarray(centres))
    found = [np.empty(0, np.int64)]
    for start in range(0, len(vectors), PLACED_AT_ONCE):
        part = _lifted(vectors[start : start + PLACED_AT_ONCE], reach)
        found += [nearest.search(part, 1)[1][:, 0]]
    return np.concatenate(found)


def _empty(centres: Floats) -> Any:
    """The lists around these centres, empty, whose codes are not learned yet."""
    dimension = centres.shape[1]
    quantizer = faiss.IndexFlatIP(dimension)
    quantizer.add(np.ascontiguousarray(centres))
    inner = faiss.METRIC_INNER_PRODUCT
    lists = faiss.IndexIVFPQ(quantizer, dimension, len(centres), dimension, BITS, inner)
    whole = faiss.IndexScalarQuantizer(dimension, faiss.ScalarQuantizer.QT_fp16, inner)
    index = faiss.IndexRefine(lists, whole)
    for part in (quantizer, lists, whole):  # the index frees them
        part.this.disown()
    lists.own_fields = index.own_fields = index.own_refine_index = True
    return index


def _learned(lists: Any, vectors: Floats, placed: NDArray[np.int64]) -> float:
    """Learn the codes of what vectors differ by from their lists' centres; how far they are off at most."""
    lists.pq.cp.min_points_per_centroid = 1  # below it faiss prints a warning
    lists.pq.cp.seed = SEED
    lists.pq.train(vectors - _centres_of(lists)[placed])
    lists.is_trained = True
    return float(_errors(lists, vectors, placed).max())


def _errors(lists: Any, vectors: Floats, placed: NDArray[np.int64]) -> Floats:
    """float32[n]: the distance between each vector and what its code says."""
    beside = vectors - _centres_of(lists)[placed]
    return np.asarray(np.linalg.norm(beside - lists.pq.decode(lists.pq.compute_codes(beside)), axis=1))


def _centres_of(lists: Any) -> Floats:
    return np.asarray(lists.quantizer.reconstruct_n(0, lists.nlist))


def _filled(index: Any, vectors: Floats, placed: NDArray[np.int64]) -> None:
    """Add the vectors to the lists that they were placed in."""
    added = np.ascontiguousarray(vectors, np.float32)
    _coded(index).add_core(len(added), faiss.swig_ptr(added), None, faiss.swig_ptr(placed))
    index.refine_index.add(added)
    index.ntotal = index.refine_index.ntotal


def _coded(index: Any) -> Any:
    """The lists of a refinement."""
    return faiss.downcast_index(index.base_index)


def _closely(compared: float, **options: Any) -> Any:
    """The parameters of a search that compares so many at half precision for each one wanted."""
    lists = faiss.SearchParametersIVF(**options)
    return faiss.IndexRefineSearchParameters(k_factor=max(compared, 1.0), base_index_params=lists)


def _between(depth: float, measured: tuple[float, ...]) -> float:
    """What was measured at `DEPTHS`, between them by a power of the depth."""
    at = min(max(bisect_left(DEPTHS, depth), 1), len(DEPTHS) - 1)
    share = math.log(depth / DEPTHS[at - 1]) / math.log(DEPTHS[at] / DEPTHS[at - 1])
    return float(measured[at - 1] * (measured[at] / measured[at - 1]) ** min(max(share, 0.0), 1.0))


def _calibrated(
    scan: Any, vectors: Floats, queries: Floats, recall: float
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """For each of `DEPTHS` the fewest lists, in small steps, that give the recall wanted of so many, and how
    many vectors are compared for each one wanted."""
    exact = faiss.IndexFlatIP(vectors.shape[1])
    exact.add(vectors)
    lists = _coded(scan).nlist
    steps = np.arange(np.ceil(np.log(lists) / np.log(STEP)))
    counts: list[int] = np.unique(np.append(STEP**steps, lists).astype(int)).tolist()

    chosen = {depth: queries[:count] for depth, count in zip(DEPTHS, QUERIES, strict=True)}
    truths = {depth: exact.search(one, min(depth, len(vectors)))[1] for depth, one in chosen.items()}
    compared = {depth: _compared(scan, chosen[depth], truths[depth], recall) for depth in DEPTHS}

    def fewest(depth: int) -> float:
        def reached(probes: int) -> bool:
            return _recall(scan, chosen[depth], truths[depth], probes, compared[depth]) >= recall

        return float(counts[min(bisect_left(counts, True, key=reached), len(counts) - 1)])

    return tuple(map(fewest, DEPTHS)), tuple(compared.values())


def _compared(scan: Any, queries: Floats, truth: NDArray[np.int64], recall: float) -> float:
    """How many of the best by codes, for each one wanted, hold what is wanted but for `OF_CODES`."""
    k: int = truth.shape[1]
    depth = min(MOST_COMPARED * k, scan.ntotal)
    visited = faiss.SearchParametersIVF(nprobe=_coded(scan).nlist)
    ranks = np.full(truth.shape, depth)
    for at, query in enumerate(queries):
        found = _coded(scan).search(query[None], depth, params=visited)[1][0]
        _, places, held = np.intersect1d(found, truth[at], return_indices=True)
        ranks[at, held] = places + 1
    held_by = int(np.ceil((1 - OF_CODES * (1 - min(recall, 1))) * ranks.size))
    return max(1.0, float(np.sort(ranks, axis=None)[held_by - 1]) / k)


def _recall(scan: Any, queries: Floats, truth: NDArray[np.int64], probes: int, compared: float) -> float:
    k = truth.shape[1]
    _, found = scan.search(queries, k, params=_closely(compared, nprobe=probes))
    hits = sum(len(np.intersect1d(ours, theirs)) for ours, theirs in zip(found, truth, strict=True))
    return hits / truth.size
