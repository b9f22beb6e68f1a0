"""The parts of the embedded index: one that is compared vector by vector, and lists.

How many vectors' codes a search of the lists looks up, and how many vectors it compares, was measured when
they were built, so that the recall wanted is met on the vectors at hand.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, replace
from functools import lru_cache

import faiss
import numpy as np
from numpy.typing import NDArray

from narrows.adapters.faiss_scan import Scan, errors, fill, in_steps, placed_in, scanned
from narrows.adapters.slots import Slots
from narrows.retrieval import Floats, Rows
from narrows.vector_index import Where

DEPTHS = (10, 100, 1_000, 10_000)
"""So many of all vectors for which it was measured how deep a search goes."""
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
        near = errors(self.scan.coded, vectors, self._placed(vectors)) <= self.error
        return np.asarray(near & (np.linalg.norm(vectors, axis=1) <= self.reach))

    def extended(self, part: Exact) -> Lists:
        """A copy with the slots and vectors of another part behind these."""
        coded = faiss.clone_index(self.scan.coded)
        fill(coded, part.vectors, self._placed(part.vectors))
        whole = np.concatenate([self.scan.whole, in_steps(part.vectors, self.reach)])
        return replace(self, scan=scanned(coded, whole, self.reach), slots=self.slots.joined(part.slots))

    def _placed(self, vectors: Floats) -> NDArray[np.int64]:
        return placed_in(vectors, self.reach, np.column_stack([self.scan.centres, self.edges]))


def joined(lists: Lists, fresh: Exact) -> Exact:
    """What lives in both, at 16 bits a number where it comes from the lists."""
    kept = np.flatnonzero(lists.slots.alive)
    vectors = lists.scan.vectors(kept)
    return Exact(lists.slots.taken(kept).joined(fresh.slots), np.concatenate([vectors, fresh.vectors]))


@lru_cache(1024)
def _between(depth: float, measured: tuple[float, ...]) -> float:
    """What was measured at `DEPTHS`, between them by a power of the depth."""
    at = min(max(bisect_left(DEPTHS, depth), 1), len(DEPTHS) - 1)
    share = math.log(depth / DEPTHS[at - 1]) / math.log(DEPTHS[at] / DEPTHS[at - 1])
    return float(measured[at - 1] * (measured[at] / measured[at - 1]) ** min(max(share, 0.0), 1.0))
