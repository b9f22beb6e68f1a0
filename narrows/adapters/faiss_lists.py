"""The parts of the embedded index: one that is compared vector by vector, and an inverted file (IVF).

The lists find the nearest by codes of half a byte a number, which a processor looks up for 32 vectors at once
(product quantiser with fast scan: Andre, Kermarrec and Le Scouarnec, 2015), and compare the best of them at
16 bits a number. How many vectors' codes a search looks up, and how many vectors it compares, is measured at
the build, so that the recall wanted is met on the vectors at hand.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
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
SWEEPS = 7
BITS = 4
NEAREST_FIRST = 11
"""The way of faiss's fast scan that visits the nearest list first, so that few of the others are kept."""
PLACED_AT_ONCE = 512
ASKED_AT_ONCE = 16
LONG, SHARE = 3.0, 0.99
"""Vectors so many times as long as this share of all are compared one by one; lists would fit only them."""
OF_CODES = 0.2
"""The share of what a search may miss that it may miss because codes are coarse."""
MOST_COMPARED = 16
"""At 16 bits a number, for each vector wanted."""
FINEST = 32_767
"""The steps between zero and the longest vector, of 16 bits."""
SPARE = 2.0
"""So many times as many lists are ranked as would hold the vectors to be visited, if all were as long."""
FURTHER = 4
"""Times as many vectors are looked up where too few of those near a question pass its filter."""
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
class Scan:
    """The lists as they are searched; `packed`, faiss's codes as they are looked up, needs `coded` to live.

    `centres` float32[lists, d] and `sizes` int64[lists] say where lists lie and how many vectors they hold;
    `whole` int16[slots, d] are the vectors in steps of `step`.
    """

    coded: Any
    packed: Any
    centres: Floats
    sizes: NDArray[np.int64]
    whole: NDArray[np.int16]
    step: np.float32

    def search(
        self, wanted: Floats, compared: int, visited: float, selector: Any = None
    ) -> tuple[NDArray[np.int64], Floats]:
        """Slots int64[q, compared], -1 for none, and their products, -inf for none: the best by codes.

        The nearest lists are visited that together hold `visited` vectors.
        """
        at = np.empty((len(wanted), compared), np.int64)
        products = np.empty(at.shape, np.float32)
        for one, slots, scores in zip(wanted, at, products, strict=True):
            self._look_up(one, visited, selector, slots, scores)
            np.multiply(self.whole.take(slots, axis=0).astype(np.float32) @ one, self.step, out=scores)
        if (at[:, -1] < 0).any():  # those found stand first
            products[at < 0] = -np.inf
        return at, products

    def vectors(self, at: NDArray[np.intp]) -> Floats:
        """float32[n, d] of these slots."""
        return np.asarray(self.whole.take(at, axis=0).astype(np.float32) * self.step)

    def _look_up(
        self, wanted: Floats, visited: float, selector: Any, slots: NDArray[np.int64], scores: Floats
    ) -> None:
        """Writes the best by codes to `slots`."""
        near, pointer = self.centres @ wanted, faiss.swig_ptr
        lists = self._nearest(-near, visited)
        biases = near.take(lists)
        options = _visiting(len(lists)) if selector is None else _options(len(lists), sel=selector)
        # the wrapper of faiss for Python takes no parameters here
        self.packed.search_preassigned_c(
            1,
            pointer(wanted),
            len(slots),
            pointer(lists),
            pointer(biases),
            pointer(scores),
            pointer(slots),
            False,
            options,
        )

    def _nearest(self, away: Floats, visited: float) -> NDArray[np.int64]:
        """The lists to be visited, the nearest first; all where all hold fewer."""
        likely = int(SPARE * len(away) * visited / max(len(self.whole), 1)) + 1
        if likely < len(away):
            first = away.argpartition(likely)[:likely]
            lists = first.take(away.take(first).argsort())
            held = self.sizes.take(lists).cumsum()
            if held[-1] >= visited:
                return lists[: int(held.searchsorted(visited)) + 1]
        lists = away.argsort()
        held = self.sizes.take(lists).cumsum()
        return lists[: int(held.searchsorted(visited)) + 1]


@dataclass(frozen=True, eq=False)
class Lists:
    """The inverted file. To find the `DEPTHS` best of all, lists that hold the share `visited` of all vectors
    are visited, and `compared` vectors for each one wanted are compared at 16 bits a number.

    Which list a vector goes into is decided on the sphere of radius `reach`, on which each lies once it has
    one coordinate more (Bachrach et al., 2014): so long vectors, which are near to most questions, lie
    together. `edges` float32[lists] has that coordinate of the lists' centres; `error` is how far a code was
    at most from its vector.
    """

    scan: Scan
    slots: Slots
    built_with: int
    visited: tuple[float, ...]
    compared: tuple[float, ...]
    reach: float
    error: float
    edges: Floats

    def search(self, wanted: Floats, k: int, where: Where) -> Found:
        """The best, in no order; a score of -inf is none."""
        bits, passing = self.slots.packed(where)
        depth = k * len(self.slots) / max(passing, 1)
        compared = math.ceil(_between(depth, self.compared) * max(k, DEPTHS[0]))
        if compared >= passing:
            return self._all(wanted, where)
        visited = self._visited(depth)
        if passing == len(self.slots):
            at, scores = self.scan.search(wanted, compared, visited)
            return self.slots.rows.take(at), scores
        at, scores = self.scan.search(wanted, compared, visited, faiss.IDSelectorBitmap(bits))
        while visited < len(self.slots) and (at[:, min(k, passing) - 1] < 0).any():  # what passes lies afar
            visited *= FURTHER
            at, scores = self.scan.search(wanted, compared, visited, faiss.IDSelectorBitmap(bits))
        return self.slots.rows.take(at), scores

    def _all(self, wanted: Floats, where: Where) -> Found:
        """All that pass: so few do, or so many are wanted, that lists would save nothing."""
        at = np.flatnonzero(self.slots.passing(where))
        products = wanted @ self.scan.vectors(at).T
        return np.broadcast_to(self.slots.rows[at], products.shape), products

    def _visited(self, depth: float) -> float:
        """How many vectors; beyond the deepest depth measured, growing with the depth's square root."""
        beyond = max(1.0, depth / DEPTHS[-1]) ** 0.5
        share: float = min(_between(depth, self.visited) * beyond, 1.0)
        return share * len(self.slots)

    def takes(self, vectors: Floats) -> NDArray[np.bool_]:
        """bool[n]: as short, and as near to their codes, as the vectors that it began with."""
        near = _errors(self.scan.coded, vectors, self._placed(vectors)) <= self.error
        return np.asarray(near & (np.linalg.norm(vectors, axis=1) <= self.reach))

    def extended(self, part: Exact) -> Lists:
        """A copy with the slots and vectors of another part behind these."""
        coded = faiss.clone_index(self.scan.coded)
        _filled(coded, part.vectors, self._placed(part.vectors))
        whole = np.concatenate([self.scan.whole, in_steps(part.vectors, self.reach)])
        return replace(self, scan=scanned(coded, whole, self.reach), slots=self.slots.joined(part.slots))

    def _placed(self, vectors: Floats) -> NDArray[np.int64]:
        return _placed(vectors, self.reach, np.column_stack([self.scan.centres, self.edges]))


def joined(lists: Lists, fresh: Exact) -> Exact:
    """What lives in both, at 16 bits a number where it comes from the lists."""
    kept = np.flatnonzero(lists.slots.alive)
    vectors = lists.scan.vectors(kept)
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
    coded = _empty(centres[:, :-1])
    placed = _placed(vectors, reach, centres)
    error = _learned(coded, vectors[chosen], placed[chosen])
    _filled(coded, vectors, placed)
    asked = vectors if questions is None or len(questions) < FEWEST_QUESTIONS else questions
    queries = asked[rng.choice(len(asked), min(len(asked), QUERIES[0]), replace=False)]
    scan = scanned(coded, in_steps(vectors, reach), reach)
    visited, compared = _calibrated(scan, vectors, queries, recall)
    edges = centres[:, -1].copy()
    return whole.part(~inside), Lists(scan, part.slots, count, visited, compared, reach, error, edges)


def scanned(coded: Any, whole: NDArray[np.int16], reach: float) -> Scan:
    """The lists `coded` and their vectors in steps, made ready to be searched."""
    packed = faiss.IndexIVFPQFastScan(coded)
    packed.implem = NEAREST_FIRST
    sizes = [coded.invlists.list_size(one) for one in range(coded.nlist)]
    return Scan(coded, packed, _centres_of(coded), np.asarray(sizes, np.int64), whole, _step(reach))


def in_steps(vectors: Floats, reach: float) -> NDArray[np.int16]:
    """Vectors no longer than `reach` at 16 bits a number; numpy makes floats of halves far more slowly."""
    steps = vectors / _step(reach)
    return np.clip(np.rint(steps, out=steps), -FINEST, FINEST, out=steps).astype(np.int16)


def _step(reach: float) -> np.float32:
    return np.float32(max(reach, 1e-30) / FINEST)


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
    placed = np.empty(len(vectors), np.int64)
    for start in range(0, len(vectors), PLACED_AT_ONCE):
        part = _lifted(vectors[start : start + PLACED_AT_ONCE], reach)
        placed[start : start + PLACED_AT_ONCE] = (part @ centres.T).argmax(axis=1)
    return placed


def _empty(centres: Floats) -> Any:
    """The lists around these centres, empty, whose codes are not learned yet."""
    dimension = centres.shape[1]
    quantizer = faiss.IndexFlatIP(dimension)
    quantizer.add(np.ascontiguousarray(centres))
    inner = faiss.METRIC_INNER_PRODUCT
    lists = faiss.IndexIVFPQ(quantizer, dimension, len(centres), dimension, BITS, inner)
    quantizer.this.disown()  # the lists free it
    lists.own_fields = True
    return lists


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


def _filled(lists: Any, vectors: Floats, placed: NDArray[np.int64]) -> None:
    """Add the vectors to the lists that they were placed in."""
    added = np.ascontiguousarray(vectors, np.float32)
    lists.add_core(len(added), faiss.swig_ptr(added), None, faiss.swig_ptr(placed))


@cache
def _visiting(lists: int) -> Any:
    """To make them takes longer than to rank the lists."""
    return _options(lists)


def _options(lists: int, **others: Any) -> Any:
    return faiss.SearchParametersIVF(nprobe=lists, **others)


def _between(depth: float, measured: tuple[float, ...]) -> float:
    """What was measured at `DEPTHS`, between them by a power of the depth."""
    at = min(max(bisect_left(DEPTHS, depth), 1), len(DEPTHS) - 1)
    share = math.log(depth / DEPTHS[at - 1]) / math.log(DEPTHS[at] / DEPTHS[at - 1])
    return float(measured[at - 1] * (measured[at] / measured[at - 1]) ** min(max(share, 0.0), 1.0))


def _calibrated(
    scan: Scan, vectors: Floats, queries: Floats, recall: float
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """For each of `DEPTHS` the smallest share of all vectors, in small steps, whose codes give the recall
    wanted of so many, and how many vectors are compared for each one wanted."""
    steps = np.arange(np.ceil(np.log(len(vectors)) / np.log(STEP)))
    counts: list[int] = np.unique(np.append(STEP**steps, len(vectors)).astype(int)).tolist()

    chosen = {depth: queries[:count] for depth, count in zip(DEPTHS, QUERIES, strict=True)}
    truths = _truths(vectors, chosen)
    compared = {depth: _compared(scan, chosen[depth], truths[depth], recall) for depth in DEPTHS}

    def fewest(depth: int) -> float:
        def reached(visited: int) -> bool:
            return _recall(scan, chosen[depth], truths[depth], visited, compared[depth]) >= recall

        return counts[min(bisect_left(counts, True, key=reached), len(counts) - 1)] / len(vectors)

    return tuple(map(fewest, DEPTHS)), tuple(compared.values())


def _truths(vectors: Floats, chosen: Mapping[int, Floats]) -> dict[int, NDArray[np.int64]]:
    """For each depth and its queries, which are the first of the longest list, the true best, in order."""
    found: dict[int, list[NDArray[np.int64]]] = {depth: [] for depth in chosen}
    asked = max(chosen.values(), key=len)
    for start in range(0, len(asked), ASKED_AT_ONCE):
        products = asked[start : start + ASKED_AT_ONCE] @ vectors.T
        for at, away in enumerate(np.negative(products, out=products), start):
            depths = [depth for depth, queries in chosen.items() if at < len(queries)]
            deepest = min(max(depths), len(vectors))
            best = away.argpartition(deepest - 1)[:deepest]
            ordered = best[away[best].argsort()]
            for depth in depths:
                found[depth].append(ordered[:depth])
    return {depth: np.array(rows) for depth, rows in found.items()}


def _compared(scan: Scan, queries: Floats, truth: NDArray[np.int64], recall: float) -> float:
    """How many of the best by codes, for each one wanted, hold what is wanted but for `OF_CODES`."""
    k: int = truth.shape[1]
    depth = min(MOST_COMPARED * k, len(scan.whole))
    ranks = np.full(truth.shape, depth)
    for at, query in enumerate(queries):
        found = scan.packed.search(query[None], depth, params=_visiting(len(scan.sizes)))[1][0]
        _, places, held = np.intersect1d(found, truth[at], return_indices=True)
        ranks[at, held] = places + 1
    held_by = int(np.ceil((1 - OF_CODES * (1 - min(recall, 1))) * ranks.size))
    return max(1.0, float(np.sort(ranks, axis=None)[held_by - 1]) / k)


def _recall(scan: Scan, queries: Floats, truth: NDArray[np.int64], visited: int, compared: float) -> float:
    """What other questions than these find as well, but for one standard error."""
    k = truth.shape[1]
    shares = []
    for query, theirs in zip(queries, truth, strict=True):
        at, products = scan.search(query[None], int(np.ceil(compared * k)), visited)
        ours = at[0, np.argsort(-products[0])[:k]]
        shares.append(len(np.intersect1d(ours, theirs)) / k)
    return float(np.mean(shares) - np.std(shares) / len(shares) ** 0.5)
