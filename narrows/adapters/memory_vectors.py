"""Vectors in a dictionary, searched exactly: the oracle of the other indexes, and enough for small tests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from narrows.errors import InvalidInput
from narrows.retrieval import Floats, Rows
from narrows.vector_index import (
    EVERYTHING,
    FILTERS,
    HALF_BUILT,
    IS_LIVE,
    IS_WHOLE,
    LIVE,
    NO_ATTRIBUTES,
    WHOLE,
    Attributes,
    Neighbours,
    VectorIndex,
    Where,
    absent,
    asked,
    checked_vectors,
    refused,
)


@dataclass(frozen=True)
class _Entry:
    vector: Floats
    attributes: Mapping[str, frozenset[str]]


@dataclass
class MemoryVectorIndex:
    """Every vector is compared with every question; changes can be found at once."""

    version: str
    dimension: int
    filters: tuple[str, ...] = FILTERS
    _entries: dict[int, _Entry] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self._entries)

    def upsert(
        self, rows: Rows, vectors: Floats, attributes: Attributes = NO_ATTRIBUTES
    ) -> Mapping[int, InvalidInput]:
        checked_vectors(self, rows, vectors, attributes)
        bad = refused(rows, vectors)
        entries = {
            int(row): _Entry(
                np.array(vectors[at], np.float32),
                {name: frozenset(values[at]) for name, values in attributes.items()},
            )
            for at, row in enumerate(rows)
            if at not in bad
        }
        self._entries = {**self._entries, **entries}
        return bad

    def delete(self, rows: Rows) -> None:
        gone = set(rows.tolist())
        self._entries = {row: entry for row, entry in self._entries.items() if row not in gone}

    def refresh(self) -> None:
        """Nothing waits here."""

    def search(self, vectors: Floats, k: int, where: Where = EVERYTHING) -> Neighbours:
        wanted = asked(self, vectors, k, where)
        found = [(row, one.vector) for row, one in sorted(self._entries.items()) if _passes(one, where)]
        rows = np.full((len(wanted), k), -1, np.int32)
        scores = np.full((len(wanted), k), np.nan, np.float32)
        if found:
            products = wanted @ np.stack([vector for _, vector in found]).T
            order = np.argsort(-products, axis=1, kind="stable")[:, :k]
            width = order.shape[1]
            rows[:, :width] = np.asarray([row for row, _ in found], np.int32)[order]
            scores[:, :width] = np.take_along_axis(products, order, axis=1)
        return Neighbours(rows, scores)


def _passes(entry: _Entry, where: Where) -> bool:
    return all(
        values & held if (held := entry.attributes.get(name)) else name in where.or_none
        for name, values in where.any_of.items()
    )


class MemoryIndexVersions:
    """The versions of an index in this process, each made by `make(version, dimension)`."""

    def __init__(self, make: Callable[[str, int], VectorIndex] = MemoryVectorIndex) -> None:
        self._make = make
        self._building: dict[str, VectorIndex] = {}
        self._whole: dict[str, VectorIndex] = {}
        self._live: VectorIndex | None = None
        self._lock = threading.Lock()

    def create(self, version: str, dimension: int) -> VectorIndex:
        with self._lock:
            if version in self._whole:
                raise InvalidInput("version", version, IS_WHOLE)
            index = self._building[version] = self._make(version, dimension)
            return index

    def promote(self, version: str) -> None:
        with self._lock:
            index = self._building.pop(version, None)
            index = self._whole.get(version) if index is None else index  # an empty one is false
            if index is None:
                raise absent(version, self.states())
            self._whole[version] = self._live = index

    def open(self, version: str | None = None) -> VectorIndex:
        index = self._live if version is None else self._whole.get(version)
        if index is None:
            raise absent(version, self.states())
        return index

    def drop(self, version: str) -> None:
        with self._lock:
            if self._live is not None and self._live.version == version:
                raise InvalidInput("version", version, IS_LIVE)
            self._whole.pop(version, None)
            self._building.pop(version, None)

    def discard(self) -> None:
        with self._lock:
            self._building, self._whole, self._live = {}, {}, None

    def states(self) -> dict[str, str]:
        live = self._live.version if self._live is not None else None
        whole = {version: LIVE if version == live else WHOLE for version in self._whole}
        return {**whole, **dict.fromkeys(self._building, HALF_BUILT)}
