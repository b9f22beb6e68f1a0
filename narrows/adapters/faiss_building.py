"""How the lists of the embedded index are made, and how deep they have to be searched."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from narrows.adapters.faiss_lists import DEPTHS, Exact, Lists
from narrows.adapters.faiss_scan import (
    Scan,
    centres_of,
    errors,
    fill,
    in_steps,
    lifted,
    placed_in,
    scanned,
    visiting,
)
from narrows.retrieval import Floats

ROWS_A_LIST = 500
TRAINED_ON = 128
FEWEST_QUESTIONS = 50
QUERIES = (400, 400, 100, 40)
"""By which it is measured how deep a search goes, for each of `DEPTHS`."""
STEP = 1.04
SEED = 0
SWEEPS = 7
BITS = 4
ASKED_AT_ONCE = 16
LONG, SHARE = 3.0, 0.99
"""Vectors so many times as long as this share of all are compared one by one; lists would fit only them."""
OF_CODES = 0.2
"""The share of what a search may miss that it may miss because codes are coarse."""
MOST_COMPARED = 16
"""At 16 bits a number, for each vector wanted."""


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
    centres = _centres(lifted(vectors[chosen], reach), lists)
    coded = _empty(centres[:, :-1])
    placed = placed_in(vectors, reach, centres)
    error = _learned(coded, vectors[chosen], placed[chosen])
    together = placed.argsort(kind="stable")  # what is compared at 16 bits a number is of a few lists
    slots, vectors, placed = part.slots.taken(together), vectors[together], placed[together]
    fill(coded, vectors, placed)
    asked = vectors if questions is None or len(questions) < FEWEST_QUESTIONS else questions
    queries = asked[rng.choice(len(asked), min(len(asked), QUERIES[0]), replace=False)]
    scan = scanned(coded, in_steps(vectors, reach), reach)
    visited, compared = _calibrated(scan, vectors, queries, recall)
    edges = centres[:, -1].copy()
    return whole.part(~inside), Lists(scan, slots, count, visited, compared, reach, error, edges)


def _centres(points: Floats, lists: int) -> Floats:
    """float32[lists, d + 1]: directions around which vectors lie (spherical k-means)."""
    found = faiss.Kmeans(
        points.shape[1],
        lists,
        niter=SWEEPS,
        seed=SEED,
        spherical=True,
        min_points_per_centroid=1,  # below it faiss prints a warning, and small lists are as exact
        max_points_per_centroid=TRAINED_ON,
    )
    found.train(points)
    return np.asarray(found.centroids, np.float32)


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
    lists.pq.train(vectors - centres_of(lists)[placed])
    lists.is_trained = True
    return float(errors(lists, vectors, placed).max())


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
        found = scan.packed.search(query[None], depth, params=visiting(len(scan.sizes)))[1][0]
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
