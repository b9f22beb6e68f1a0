"""The embedded tier of the vector index: faiss in this process.

Below `EXACT_BELOW` rows every vector is compared, above an inverted file answers. New and changed vectors lie
in a small exact part until they are added to the lists.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import faiss
import numpy as np
from numpy.typing import NDArray

from narrows.adapters.faiss_building import built
from narrows.adapters.faiss_lists import Exact, Lists, joined
from narrows.adapters.faiss_scan import scanned
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
RECALL = 0.98
MEASURED = ("built_with", "visited", "compared", "reach", "error")
INDEX_FILE, PARTS_FILE, ABOUT_FILE = "lists.faiss", "parts.npz", "about.json"
UNREADABLE = (OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, BadZipFile)


@dataclass(frozen=True, eq=False)
class _State:
    """`left`: so many of the fresh part's slots stayed there when the others went to the lists."""

    fresh: Exact
    lists: Lists | None = None
    left: int = 0


@dataclass(eq=False)
class FaissVectorIndex:
    """A search reads one state that nobody changes, and needs no lock; a change puts another there.

    Changes can be found at once. When the fresh part is full, the change that fills it moves it to the
    lists, which copies them; when they have doubled, or are not fit for most of it, they are made anew. What
    they are not fit for stays where all are compared. How deep a search goes is measured
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
            state = replace(state, fresh=Exact(slots, np.concatenate([state.fresh.vectors, added])))
            limit = self.fresh_at_most if state.lists else self.exact_below
            self._state = self._merged(state) if len(slots) - state.left >= limit else state
        return bad

    def delete(self, rows: Rows) -> None:
        with self._lock:
            self._state = self._without(np.asarray(rows, np.int32))

    def refresh(self) -> None:
        """Nothing waits here."""

    def search(self, vectors: Floats, k: int, where: Where = EVERYTHING) -> Neighbours:
        wanted = asked(self, vectors, k, where)
        state = self._state
        parts: list[Exact | Lists] = [state.lists] if state.lists else []
        if len(state.fresh.slots) or not parts:
            parts.append(state.fresh)
        found = [part.search(wanted, k, where) for part in parts]
        rows, scores = found[0] if len(found) == 1 else map(np.hstack, zip(*found, strict=True))
        return _ordered(rows, scores, k)

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

    def tagged(self, name: str, words: Sequence[str], codes: NDArray[np.int32]) -> FaissVectorIndex:
        """The same, filtered by an attribute: row `i` has the words of `codes[i]`, int32[k] with -1 for none.

        It takes the place of this one, which shares its lists.
        """
        filters = (*(one for one in self.filters if one != name), name)
        other = replace(self, filters=filters, _lock=threading.Lock())
        fresh, lists = self._state.fresh, self._state.lists
        other._state = _State(
            replace(fresh, slots=fresh.slots.tagged(name, words, codes)),
            replace(lists, slots=lists.slots.tagged(name, words, codes)) if lists else None,
            self._state.left,
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
            scan = state.lists.scan
            arrays |= {"edges": state.lists.edges, "whole": scan.whole, **state.lists.slots.arrays("lists_")}
            about |= {name: getattr(state.lists, name) for name in MEASURED}
            faiss.write_index(scan.coded, str(folder / f"{prefix}{INDEX_FILE}"))
        with (folder / f"{prefix}{PARTS_FILE}").open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        (folder / f"{prefix}{ABOUT_FILE}").write_text(json.dumps(about))

    def _without(self, rows: Rows) -> _State:
        fresh, lists = self._state.fresh, self._state.lists
        fresh = replace(fresh, slots=fresh.slots.without(rows))
        lists = replace(lists, slots=lists.slots.without(rows)) if lists else None
        return replace(self._state, fresh=fresh, lists=lists)

    def _merged(self, state: _State) -> _State:
        """The fresh part in the lists; lists made anew where they have outgrown what they were made with."""
        fresh, lists = state.fresh.compact(), state.lists
        if lists is None:
            if len(fresh.slots) < self.exact_below:
                return _State(fresh)
            return _remade(built(fresh, self.recall, self.questions))
        if not len(fresh.slots):
            return _State(fresh, lists)
        outgrown = len(lists.slots) + len(fresh.slots) >= REBUILT_AT * lists.built_with
        inside = lists.takes(fresh.vectors)
        if outgrown or 2 * np.count_nonzero(inside) < len(fresh.slots):
            return _remade(built(joined(lists, fresh), self.recall, self.questions))
        return _remade((fresh.part(~inside), lists.extended(fresh.part(inside))))

    def _nothing(self) -> Exact:
        return Exact(Slots.empty(), np.empty((0, self.dimension), np.float32))


def _remade(parts: tuple[Exact, Lists]) -> _State:
    return _State(*parts, left=len(parts[0].slots))


def load(folder: Path, prefix: str = "") -> FaissVectorIndex:
    """The index that `save` wrote; BundleError names what cannot be read."""
    try:
        about = json.loads((folder / f"{prefix}{ABOUT_FILE}").read_text())
        made = {name: about.pop(name) for name in MEASURED if name in about}
        about["filters"] = tuple(about["filters"])
        with (
            (folder / f"{prefix}{PARTS_FILE}").open("rb") as file,
            np.load(file, allow_pickle=False) as parts,
        ):
            arrays = {name: parts[name] for name in parts.files}
        index = FaissVectorIndex(**about)
        lists = None
        if made:
            coded = faiss.read_index(str(folder / f"{prefix}{INDEX_FILE}"))
            made |= {name: tuple(made[name]) for name in ("visited", "compared")}
            scan = scanned(coded, arrays["whole"], made["reach"])
            lists = Lists(scan, Slots.of(arrays, "lists_"), edges=arrays["edges"], **made)
        index._state = _State(Exact(Slots.of(arrays, "fresh_"), arrays["fresh_vectors"]), lists)
    except UNREADABLE as error:
        raise BundleError(f"{folder} cannot be read as a vector index ({error}); build it again") from error
    return index


def _ordered(rows: Rows, scores: Floats, k: int) -> Neighbours:
    """The best `k` of each line, filled up with -1 and nan; of equal scores the lower row comes first."""
    lines = [_line(*line, k) for line in zip(rows, scores, strict=True)]
    if len(lines) == 1:
        return Neighbours(lines[0].rows[None], lines[0].scores[None])
    return Neighbours(*(np.stack([getattr(one, name) for one in lines]) for name in ("rows", "scores")))


def _line(rows: Rows, scores: Floats, k: int) -> Neighbours:
    """int32[k] and float32[k] of one line."""
    away = -scores
    order = away.argsort()
    best = away.take(order)
    if (best[1:] == best[:-1]).any():  # seldom, and three times as slow
        order = np.lexsort((rows, away))
        best = away.take(order)
    order, best = order[:k], best[:k]
    if len(order) == k and best[-1] < np.inf:
        return Neighbours(rows.take(order), -best)
    found = Neighbours(np.full(k, -1, np.int32), np.full(k, np.nan, np.float32))
    count = int(best.searchsorted(np.inf))
    found.rows[:count], found.scores[:count] = rows.take(order[:count]), -best[:count]
    return found
