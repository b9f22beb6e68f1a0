"""The parts of the embedded index: one that is compared vector by vector, and an inverted file (IVF).

The lists find the nearest by vectors of a byte a number, since a search is as fast as memory is read, and put
them in order by the same at half precision. How many lists a search visits is measured at the build, so that
the recall wanted is met on the vectors at hand.
"""

from __future__ import annotations

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
TRAINED_ON = 64
QUERIES = 400
FEWEST_QUESTIONS = 50
DEEP_QUERIES = 40
DEPTHS = (10, 100, 1_000, 10_000)
STEP = 1.08
SEED = 0
SWEEPS = 10
PLACED_AT_ONCE = 65_536
CLOSER, FEWEST_CLOSER = 0.25, 8
"""So many more than are wanted, of those wanted and at least, are compared at half precision."""
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
    """The inverted file; to find the `DEPTHS` best of all, so many lists as `probes` says are visited.

    `index` is faiss's refinement of the lists by the vectors at half precision. Which list a vector goes into
    is decided on the sphere of radius `reach`, on which each lies once it has one coordinate more (Bachrach
    et al., 2014): so long vectors, which are near to most questions, lie together. `edges` float32[lists]
    has that coordinate of the lists' centres.
    """

    index: Any
    slots: Slots
    built_with: int
    probes: tuple[float, ...]
    reach: float
    edges: Floats

    def search(self, wanted: Floats, k: int, where: Where) -> Found:
        """The best, in order; a score of -inf is none."""
        bits, passing = self.slots.packed(where)
        if not passing:
            return np.empty((len(wanted), 0), np.int32), np.empty((len(wanted), 0), np.float32)
        options: dict[str, Any] = {"nprobe": self.probed(k * len(self.slots) / passing)}
        if passing < len(self.slots):  # to ask for each vector whether it passes costs a sixth of the time
            options["sel"] = faiss.IDSelectorBitmap(bits)
        scores, at = self.index.search(wanted, k, params=_closely(k, **options))
        return self.slots.rows[at], np.where(at >= 0, scores, np.float32(-np.inf))

    def probed(self, depth: float) -> int:
        """Between the measured depths by their logarithm; beyond, growing with the depth's square root."""
        if 2 * depth >= len(self.slots):
            return len(self.edges)
        beyond = max(1.0, depth / DEPTHS[-1]) ** 0.5
        found = np.interp(np.log(min(depth, DEPTHS[-1])), np.log(DEPTHS), self.probes) * beyond
        return int(min(np.ceil(found), len(self.edges)))

    def takes(self, vectors: Floats) -> NDArray[np.bool_]:
        """bool[n]: whose numbers a byte can tell, since they lie between those that it began with."""
        low, width = faiss.vector_to_array(_inner(self.index).sq.trained).reshape(2, -1)
        return np.asarray(((vectors >= low) & (vectors <= low + width)).all(axis=1))

    def extended(self, part: Exact) -> Lists:
        """A copy with the slots and vectors of another part behind these."""
        index = faiss.clone_index(self.index)
        lists = _inner(index)
        centres = np.column_stack([lists.quantizer.reconstruct_n(0, lists.nlist), self.edges])
        _filled(index, part.vectors, _placed(part.vectors, self.reach, centres))
        return replace(self, index=index, slots=self.slots.joined(part.slots))


def joined(lists: Lists, fresh: Exact) -> Exact:
    """What lives in both, at half precision where it comes from the lists."""
    kept = np.flatnonzero(lists.slots.alive)
    vectors = lists.index.reconstruct_batch(kept.astype(np.int64))
    return Exact(lists.slots.taken(kept).joined(fresh.slots), np.concatenate([vectors, fresh.vectors]))


def built(part: Exact, recall: float, questions: Floats | None) -> Lists:
    """The lists over a part without dead slots, and how many of them a search has to visit."""
    vectors, count = part.vectors, len(part.vectors)
    lists = int(2 ** np.round(np.log2(max(count / ROWS_A_LIST, 16))))
    rng = np.random.default_rng(SEED)
    chosen = rng.choice(count, min(count, TRAINED_ON * lists), replace=False)
    reach = float(np.sqrt(np.einsum("nd,nd->n", vectors, vectors).max()))
    centres = _centres(_lifted(vectors[chosen], reach), lists)
    index = _empty(centres[:, :-1], vectors)
    _filled(index, vectors, _placed(vectors, reach, centres))
    asked = vectors if questions is None or len(questions) < FEWEST_QUESTIONS else questions
    queries = asked[rng.choice(len(asked), min(len(asked), QUERIES), replace=False)]
    probes = _calibrated(index, vectors, queries, recall)
    return Lists(index, part.slots, count, probes, reach, centres[:, -1].copy())


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


def _empty(centres: Floats, vectors: Floats) -> Any:
    """The lists around these centres, empty, for numbers in the ranges of these vectors."""
    dimension = vectors.shape[1]
    quantizer = faiss.IndexFlatIP(dimension)
    quantizer.add(np.ascontiguousarray(centres))
    bytes_, halves = faiss.ScalarQuantizer.QT_8bit, faiss.ScalarQuantizer.QT_fp16
    inner = faiss.METRIC_INNER_PRODUCT
    lists = faiss.IndexIVFScalarQuantizer(quantizer, dimension, len(centres), bytes_, inner, False)
    lists.train(np.stack([vectors.min(axis=0), vectors.max(axis=0)]))
    whole = faiss.IndexScalarQuantizer(dimension, halves, inner)
    index = faiss.IndexRefine(lists, whole)
    for part in (quantizer, lists, whole):  # the index frees them
        part.this.disown()
    lists.own_fields = index.own_fields = index.own_refine_index = True
    return index


def _filled(index: Any, vectors: Floats, placed: NDArray[np.int64]) -> None:
    """Add the vectors to the lists that they were placed in."""
    added = np.ascontiguousarray(vectors, np.float32)
    _inner(index).add_core(len(added), faiss.swig_ptr(added), None, faiss.swig_ptr(placed))
    index.refine_index.add(added)
    index.ntotal = index.refine_index.ntotal


def _inner(index: Any) -> Any:
    """The lists of a refinement."""
    return faiss.downcast_index(index.base_index)


def _closely(k: int, **options: Any) -> Any:
    """The parameters of a search for the k best, of which some more are compared at half precision."""
    more = max(CLOSER * k, FEWEST_CLOSER)
    lists = faiss.SearchParametersIVF(**options)
    return faiss.IndexRefineSearchParameters(k_factor=1.0 + more / k, base_index_params=lists)


def _calibrated(index: Any, vectors: Floats, queries: Floats, recall: float) -> tuple[float, ...]:
    """For each of `DEPTHS` the fewest lists, in small steps, that give the recall wanted of so many."""
    exact = faiss.IndexFlatIP(vectors.shape[1])
    exact.add(vectors)
    lists = _inner(index).nlist
    steps = np.arange(np.ceil(np.log(lists) / np.log(STEP)))
    counts: list[int] = np.unique(np.append(STEP**steps, lists).astype(int)).tolist()

    chosen = {depth: queries if depth <= DEPTHS[-2] else queries[:DEEP_QUERIES] for depth in DEPTHS}
    nearest = {len(one): exact.search(one, min(depth, len(vectors)))[1] for depth, one in chosen.items()}

    def fewest(depth: int) -> float:
        truth = nearest[len(chosen[depth])][:, :depth]

        def reached(probes: int) -> bool:
            return _recall(index, chosen[depth], truth, probes) >= recall

        return float(counts[min(bisect_left(counts, True, key=reached), len(counts) - 1)])

    return tuple(map(fewest, DEPTHS))


def _recall(index: Any, queries: Floats, truth: NDArray[np.int64], probes: int) -> float:
    k = truth.shape[1]
    _, found = index.search(queries, k, params=_closely(k, nprobe=probes))
    hits = sum(len(np.intersect1d(ours, theirs)) for ours, theirs in zip(found, truth, strict=True))
    return hits / truth.size
