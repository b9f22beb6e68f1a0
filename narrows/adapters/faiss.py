"""The embedded tier of the vector index: faiss in this process.

Below `EXACT_BELOW` rows every vector is compared. Above, an inverted file over half-precision vectors (IVF)
answers; how many of its lists a search visits is measured at the build, so that the recall wanted is met on
the vectors at hand. New and changed vectors lie in a small exact part until they are added to the lists.
"""

from __future__ import annotations

import json
import threading
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import faiss
import numpy as np
from numpy.typing import NDArray

from narrows.adapters.slots import Slots
from narrows.errors import BundleError, InvalidInput
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
ROWS_A_LIST = 500
TRAINED_ON = 64
QUERIES = 400
FEWEST_QUESTIONS = 50
DEEP_QUERIES = 40
RECALL = 0.98
DEPTHS = (10, 100, 1_000, 10_000)
STEP = 1.08
SEED = 0
MOSTLY = 0.25
"""From this share of vectors on that pass, comparing all is faster than picking them out."""
INDEX_FILE, PARTS_FILE, ABOUT_FILE = "lists.faiss", "parts.npz", "about.json"
UNREADABLE = (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, BadZipFile)

Found = tuple[Rows, Floats]


@dataclass(frozen=True, eq=False)
class _Exact:
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
        """The best, in order; a score of -inf is none."""
        bits, passing = self.slots.packed(where)
        if not passing:
            return np.empty((len(wanted), 0), np.int32), np.empty((len(wanted), 0), np.float32)
        options: dict[str, Any] = {"nprobe": self._probes(k * len(self.slots) / passing)}
        if passing < len(self.slots):  # to ask for each vector whether it passes costs a sixth of the time
            options["sel"] = faiss.IDSelectorBitmap(bits)
        scores, at = self.index.search(wanted, k, params=faiss.SearchParametersIVF(**options))
        return self.slots.rows[at], np.where(at >= 0, scores, np.float32(-np.inf))

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
    """A search reads one state that nobody changes, and needs no lock; a change puts another there.

    Changes can be found at once. When the fresh part is full, the change that fills it moves it to the
    lists, which copies them; when they have doubled, they are made anew. How deep a search goes is measured
    by `questions` float32[n, d] like those to come, where there are enough, else by vectors of its own.
    """

    version: str
    dimension: int
    filters: tuple[str, ...] = FILTERS
    exact_below: int = EXACT_BELOW
    fresh_at_most: int = FRESH_AT_MOST
    recall: float = RECALL
    questions: Floats | None = field(default=None, repr=False)
    _state: _State = field(init=False)
    _lock: Any = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._state = _State(self._nothing())

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
        """Nothing waits here."""

    def search(self, vectors: Floats, k: int, where: Where = EVERYTHING) -> Neighbours:
        wanted = asked(self, vectors, k, where)
        state = self._state
        parts: list[_Exact | _Lists] = [state.lists] if state.lists else []
        if len(state.fresh.slots) or not parts:
            parts.append(state.fresh)
        found = [part.search(wanted, k, where) for part in parts]
        return _ordered(np.hstack([rows for rows, _ in found]), np.hstack([scores for _, scores in found]), k)

    def renumbered(self, rows: Rows) -> FaissVectorIndex:
        """The same vectors under other rows: what lies at row `i` comes to lie at `rows[i]`, -1 for nowhere.

        It takes the place of this one, which shares its lists.
        """
        other = replace(self, _lock=threading.Lock())
        fresh, lists = self._state.fresh, self._state.lists
        other._state = _State(
            replace(fresh, slots=fresh.slots.renumbered(rows)),
            replace(lists, slots=lists.slots.renumbered(rows)) if lists else None,
        )
        return other

    def save(self, folder: Path, prefix: str = "") -> None:
        """Write what a later process can `load` instead of building; the folder is made.

        The names of all files begin with the prefix.
        """
        folder.mkdir(parents=True, exist_ok=True)
        state = self._state
        arrays = {"fresh_vectors": state.fresh.vectors, **state.fresh.slots.arrays("fresh_")}
        about: dict[str, Any] = {
            name: getattr(self, name)
            for name in ("version", "dimension", "filters", "exact_below", "fresh_at_most", "recall")
        }
        if state.lists:
            arrays |= state.lists.slots.arrays("lists_")
            about |= {"built_with": state.lists.built_with, "probes": state.lists.probes}
            faiss.write_index(state.lists.index, str(folder / f"{prefix}{INDEX_FILE}"))
        with (folder / f"{prefix}{PARTS_FILE}").open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        (folder / f"{prefix}{ABOUT_FILE}").write_text(json.dumps(about))

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
            return _State(self._nothing(), _built(fresh, self.recall, self.questions))
        if not len(fresh.slots):
            return _State(fresh, lists)
        if len(lists.slots) + len(fresh.slots) >= REBUILT_AT * lists.built_with:
            return _State(self._nothing(), _built(_joined(lists, fresh), self.recall, self.questions))
        index = faiss.clone_index(lists.index)
        index.add(fresh.vectors)
        return _State(self._nothing(), replace(lists, index=index, slots=lists.slots.joined(fresh.slots)))

    def _nothing(self) -> _Exact:
        return _Exact(Slots.empty(), np.empty((0, self.dimension), np.float32))


def load(folder: Path, prefix: str = "") -> FaissVectorIndex:
    """The index that `save` wrote; BundleError names what cannot be read."""
    try:
        about = json.loads((folder / f"{prefix}{ABOUT_FILE}").read_text())
        probes, built_with = about.pop("probes", None), about.pop("built_with", 0)
        about["filters"] = tuple(about["filters"])
        with (
            (folder / f"{prefix}{PARTS_FILE}").open("rb") as file,
            np.load(file, allow_pickle=False) as parts,
        ):
            arrays = {name: parts[name] for name in parts.files}
        index = FaissVectorIndex(**about)
        lists = None
        if probes is not None:
            read = faiss.read_index(str(folder / f"{prefix}{INDEX_FILE}"))
            lists = _Lists(read, Slots.of(arrays, "lists_"), built_with, tuple(probes))
        index._state = _State(_Exact(Slots.of(arrays, "fresh_"), arrays["fresh_vectors"]), lists)
    except UNREADABLE as error:
        raise BundleError(f"{folder} cannot be read as a vector index ({error}); build it again") from error
    return index


def _ordered(rows: Rows, scores: Floats, k: int) -> Neighbours:
    """The best `k` of each line, filled up with -1 and nan; of equal scores the lower row comes first."""
    order = np.lexsort((rows, -scores), axis=1)[:, :k]
    width = order.shape[1]
    out = Neighbours(np.full((len(rows), k), -1, np.int32), np.full((len(rows), k), np.nan, np.float32))
    best = np.take_along_axis(scores, order, axis=1)
    there = best > -np.inf
    out.rows[:, :width][there] = np.take_along_axis(rows, order, axis=1)[there]
    out.scores[:, :width][there] = best[there]
    return out


def _joined(lists: _Lists, fresh: _Exact) -> _Exact:
    kept = np.flatnonzero(lists.slots.alive)
    vectors = lists.index.reconstruct_batch(kept.astype(np.int64))
    return _Exact(lists.slots.taken(kept).joined(fresh.slots), np.concatenate([vectors, fresh.vectors]))


def _built(part: _Exact, recall: float, questions: Floats | None) -> _Lists:
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
    asked = vectors if questions is None or len(questions) < FEWEST_QUESTIONS else questions
    queries = asked[rng.choice(len(asked), min(len(asked), QUERIES), replace=False)]
    return _Lists(index, part.slots, count, _calibrated(index, vectors, queries, recall))


def _calibrated(index: Any, vectors: Floats, queries: Floats, recall: float) -> tuple[float, ...]:
    """For each of `DEPTHS` the fewest lists, in small steps, that give the recall wanted of so many."""
    exact = faiss.IndexFlatIP(vectors.shape[1])
    exact.add(vectors)
    steps = np.arange(np.ceil(np.log(index.nlist) / np.log(STEP)))
    counts: list[int] = np.unique(np.append(STEP**steps, index.nlist).astype(int)).tolist()

    chosen = {depth: queries if depth <= DEPTHS[-2] else queries[:DEEP_QUERIES] for depth in DEPTHS}
    nearest = {len(one): exact.search(one, min(depth, len(vectors)))[1] for depth, one in chosen.items()}

    def fewest(depth: int) -> float:
        truth = nearest[len(chosen[depth])][:, :depth]

        def reached(probes: int) -> bool:
            return _recall(index, chosen[depth], truth, probes) >= recall

        return float(counts[min(bisect_left(counts, True, key=reached), len(counts) - 1)])

    return tuple(map(fewest, DEPTHS))


def _recall(index: Any, queries: Floats, truth: NDArray[np.int64], probes: int) -> float:
    parameters = faiss.SearchParametersIVF(nprobe=probes)
    _, found = index.search(queries, truth.shape[1], params=parameters)
    hits = sum(len(np.intersect1d(ours, theirs)) for ours, theirs in zip(found, truth, strict=True))
    return hits / truth.size
