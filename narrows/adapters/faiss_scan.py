"""The inverted file (IVF) as it is searched, and where a vector lies in it.

Codes of half a byte a number, which a processor looks up for 32 vectors at once (product quantiser with fast
scan: Andre, Kermarrec and Le Scouarnec, 2015), find the best of the nearest lists; these are compared at
16 bits a number.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from narrows.retrieval import Floats

NEAREST_FIRST = 11
"""The way of faiss's fast scan that visits the nearest list first, so that few of the others are kept."""
FINEST = 32_767
"""The steps between zero and the longest vector, of 16 bits."""
SPARE = 2.0
"""So many times as many lists are ranked as would hold the vectors to be visited, if all were as long."""
PLACED_AT_ONCE = 512


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
        lists, biases = self.nearest(wanted, visited)
        pointer = faiss.swig_ptr
        options = visiting(len(lists)) if selector is None else _options(len(lists), sel=selector)
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

    def nearest(self, wanted: Floats, visited: float) -> tuple[NDArray[np.int64], Floats]:
        """The lists to be visited, the nearest first, and their centres' products.

        Together they hold so many vectors; all lists where all hold fewer.
        """
        near = self.centres @ wanted
        away = -near
        likely = int(SPARE * len(near) * visited / max(len(self.whole), 1)) + 1
        for some in (min(likely, len(near)), len(near)):
            first = away.argpartition(some - 1)[:some]
            lists = first.take(away.take(first).argsort())
            held = self.sizes.take(lists).cumsum()
            if held[-1] >= visited:
                break
        lists = lists[: int(held.searchsorted(visited)) + 1]
        return lists, near.take(lists)


def scanned(coded: Any, whole: NDArray[np.int16], reach: float) -> Scan:
    """The lists `coded` and their vectors in steps, made ready to be searched."""
    packed = faiss.IndexIVFPQFastScan(coded)
    packed.implem = NEAREST_FIRST
    sizes = [coded.invlists.list_size(one) for one in range(coded.nlist)]
    return Scan(coded, packed, centres_of(coded), np.asarray(sizes, np.int64), whole, _step(reach))


def in_steps(vectors: Floats, reach: float) -> NDArray[np.int16]:
    """Vectors no longer than `reach` at 16 bits a number; numpy makes floats of halves far more slowly."""
    steps = vectors / _step(reach)
    return np.clip(np.rint(steps, out=steps), -FINEST, FINEST, out=steps).astype(np.int16)


def _step(reach: float) -> np.float32:
    return np.float32(max(reach, 1e-30) / FINEST)


def lifted(vectors: Floats, reach: float) -> Floats:
    """float32[n, d + 1]: with the coordinate that puts each on the sphere of that radius."""
    squared = np.einsum("nd,nd->n", vectors, vectors)
    edge = np.sqrt(np.maximum(np.float32(reach) ** 2 - squared, 0.0))
    return np.column_stack([vectors, edge]).astype(np.float32)


def placed_in(vectors: Floats, reach: float, centres: Floats) -> NDArray[np.int64]:
    """int64[n]: the list of each vector."""
    placed = np.empty(len(vectors), np.int64)
    for start in range(0, len(vectors), PLACED_AT_ONCE):
        part = lifted(vectors[start : start + PLACED_AT_ONCE], reach)
        placed[start : start + PLACED_AT_ONCE] = (part @ centres.T).argmax(axis=1)
    return placed


def errors(lists: Any, vectors: Floats, placed: NDArray[np.int64]) -> Floats:
    """float32[n]: the distance between each vector and what its code says."""
    beside = vectors - centres_of(lists)[placed]
    return np.asarray(np.linalg.norm(beside - lists.pq.decode(lists.pq.compute_codes(beside)), axis=1))


def centres_of(lists: Any) -> Floats:
    return np.asarray(lists.quantizer.reconstruct_n(0, lists.nlist))


def fill(lists: Any, vectors: Floats, placed: NDArray[np.int64]) -> None:
    """Add the vectors to the lists that they were placed in."""
    added = np.ascontiguousarray(vectors, np.float32)
    lists.add_core(len(added), faiss.swig_ptr(added), None, faiss.swig_ptr(placed))


@cache
def visiting(lists: int) -> Any:
    """To make them takes longer than to rank the lists."""
    return _options(lists)


def _options(lists: int, **others: Any) -> Any:
    return faiss.SearchParametersIVF(nprobe=lists, **others)
