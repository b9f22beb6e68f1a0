"""Nearest vectors by inner product, filtered: what every index of item vectors can do."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol

import numpy as np

from narrows.errors import InvalidInput, NarrowsError
from narrows.index_settings import FILTERS as FILTERS
from narrows.retrieval import Floats, Rows

Attributes = Mapping[str, Sequence[Sequence[str]]]
"""Filter -> for each vector the values that it has: `{"region": [("DE", "AT"), ("US",)], ...}`."""
NO_ATTRIBUTES: Attributes = MappingProxyType({})
MOST_RESULTS = 10_000
LIVE, WHOLE, HALF_BUILT = "live", "whole", "half built"
IS_LIVE = "it is the live one; promote another before it is dropped"
IS_WHOLE = "it is finished; change it by upsert and delete, or drop it first"


class IndexGone(NarrowsError):
    """The index is absent, half built, or of another version of the vectors than the one asked for."""


@dataclass(frozen=True)
class Where:
    """Which vectors may be found: for each filter named, one of the values given; all filters hold.

    `{"region": {"DE"}, "category": {"shoes", "bags"}}` finds what is sold in DE and is a shoe or a bag. A
    filter that is `or_none` too lets pass what has no value of it, as what is sold everywhere has no region.
    """

    any_of: Mapping[str, frozenset[str]] = field(default_factory=lambda: MappingProxyType({}))
    or_none: frozenset[str] = frozenset()

    def key(self) -> tuple[tuple[str, bool, tuple[str, ...]], ...]:
        """The filter as something that can be hashed; equal filters have equal keys."""
        return tuple(
            (name, name in self.or_none, tuple(sorted(values)))
            for name, values in sorted(self.any_of.items())
        )


EVERYTHING = Where()


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Best first: rows int32[q, k] and scores float32[q, k]; -1 and nan where fewer were found."""

    rows: Rows
    scores: Floats


class VectorIndex(Protocol):
    """Vectors of items by row; safe to search from several threads while one changes it."""

    @property
    def version(self) -> str:
        """The version of the embedding that all its vectors come from."""

    @property
    def dimension(self) -> int:
        """The length of every vector."""

    @property
    def filters(self) -> tuple[str, ...]:
        """The names that attributes and filters may have."""

    def __len__(self) -> int:
        """How many rows can be found."""

    def upsert(
        self, rows: Rows, vectors: Floats, attributes: Attributes = NO_ATTRIBUTES
    ) -> Mapping[int, InvalidInput]:
        """Add or replace; the positions that were refused, and why: the others are in.

        A filter that is left out is empty for these rows. InvalidInput when the arguments do not fit
        together, and then nothing is in; StoreUnavailable where a server is asked that does not answer.
        """

    def delete(self, rows: Rows) -> None:
        """Remove; rows that are not there change nothing."""

    def refresh(self) -> None:
        """Make every change so far findable, at the latest now."""

    def search(self, vectors: Floats, k: int, where: Where = EVERYTHING) -> Neighbours:
        """The `k` rows with the highest inner products, of those that pass.

        InvalidInput for vectors of another size, `k` below 1 or above 10,000, a filter that is not one of
        `filters`; IndexGone and StoreUnavailable where a server is asked.
        """


class IndexVersions(Protocol):
    """An app's indexes by embedding version; one is live, and the next takes over without a gap.

    Vectors of two versions must never meet: whoever asks opens the index by the version of the network that
    made the question, and gets that one or an error.
    """

    def create(self, version: str, dimension: int) -> VectorIndex:
        """An empty index that cannot be opened yet; an unfinished build of that version is replaced.

        InvalidInput where that version is finished: a finished index changes by `upsert` and `delete`.
        """

    def promote(self, version: str) -> None:
        """It is whole from now on, and the live one, at once; IndexGone where there is none.

        What `create` gave was for building: `open` it for what changes later.
        """

    def open(self, version: str | None = None) -> VectorIndex:
        """The index of that version, live or kept from before; without a version the live one.

        IndexGone says what there is instead, where it is absent or half built.
        """

    def states(self) -> Mapping[str, str]:
        """By version `LIVE`, `WHOLE` (it can be opened) or `HALF_BUILT`."""

    def drop(self, version: str) -> None:
        """Delete one that is not live; InvalidInput for the live one; nothing happens where there is none."""

    def discard(self) -> None:
        """Delete all of them, the live one too: for whoever made them to measure, and has measured."""


@dataclass(eq=False)
class WatchedIndex:
    """An index of which one remembers that it has gone: whoever serves from it then does without."""

    index: VectorIndex
    gone: bool = False

    @property
    def version(self) -> str:
        return self.index.version

    @property
    def dimension(self) -> int:
        return self.index.dimension

    @property
    def filters(self) -> tuple[str, ...]:
        return self.index.filters

    def __len__(self) -> int:
        return len(self.index)

    def upsert(
        self, rows: Rows, vectors: Floats, attributes: Attributes = NO_ATTRIBUTES
    ) -> Mapping[int, InvalidInput]:
        return self.index.upsert(rows, vectors, attributes)

    def delete(self, rows: Rows) -> None:
        self.index.delete(rows)

    def refresh(self) -> None:
        self.index.refresh()

    def search(self, vectors: Floats, k: int, where: Where = EVERYTHING) -> Neighbours:
        try:
            return self.index.search(vectors, k, where)
        except IndexGone:
            self.gone = True
            raise


def opened(versions: IndexVersions, version: str) -> VectorIndex | None:
    """The index of that version; None where it is absent or half built."""
    try:
        return versions.open(version)
    except IndexGone:
        return None


def absent(version: str | None, there: Mapping[str, str]) -> IndexGone:
    """The error for a version that cannot be opened, given the states of those that are there."""
    wanted = "a live index of vectors" if version is None else f"an index of vectors of version '{version}'"
    found = ", ".join(f"'{name}' ({state})" for name, state in sorted(there.items())) or "none"
    return IndexGone(f"{wanted} is needed; there is {found}: build it, then promote it")


def checked_vectors(index: VectorIndex, rows: Rows, vectors: Floats, attributes: Attributes) -> None:
    """InvalidInput unless there is one vector of the right size, and one list of values, for each row."""
    dimension = index.dimension
    if vectors.ndim != 2 or vectors.shape[1] != dimension:
        remedy = f"give float32[n, {dimension}], as the network of version {index.version} makes them"
        raise InvalidInput("vectors", f"shape {vectors.shape}", remedy)
    if len(rows) != len(vectors):
        raise InvalidInput("rows", f"{len(rows)} for {len(vectors)} vectors", "give one row for each vector")
    _checked_filters(index, attributes)
    for name, values in attributes.items():
        if len(values) != len(rows):
            raise InvalidInput(name, f"{len(values)} for {len(rows)} rows", "give one list for each row")


def refused(rows: Rows, vectors: Floats) -> dict[int, InvalidInput]:
    """The positions that no index takes: a row below 0, a vector with nan or infinity, a row given twice.

    Of a row given twice the last one counts.
    """
    numbers: list[int] = rows.tolist()
    found = {
        at: InvalidInput("row", row, "give a row of the snapshot, 0 or higher")
        for at, row in enumerate(numbers)
        if row < 0
    }
    for at in np.flatnonzero(~np.isfinite(vectors).all(axis=1)).tolist():
        found.setdefault(at, InvalidInput("vector", "nan or infinity", "give finite numbers only"))
    last = {row: at for at, row in enumerate(numbers)}
    for at, row in enumerate(numbers):
        if last[row] != at:
            found.setdefault(at, InvalidInput("row", row, "it comes again in the batch; the last one counts"))
    return found


def asked(index: VectorIndex, vectors: Floats, k: int, where: Where) -> Floats:
    """float32[q, d] of a search; one vector may come as float32[d]."""
    wanted = np.atleast_2d(np.asarray(vectors, np.float32))
    if wanted.ndim != 2 or wanted.shape[1] != index.dimension:
        remedy = f"give float32[q, {index.dimension}], as the network of version {index.version} makes them"
        raise InvalidInput("vectors", f"shape {np.shape(vectors)}", remedy)
    if not np.isfinite(wanted).all():
        raise InvalidInput("vectors", "nan or infinity", "give finite numbers only")
    if not 1 <= k <= MOST_RESULTS:
        raise InvalidInput("k", k, f"give a whole number from 1 to {MOST_RESULTS}")
    _checked_filters(index, where.any_of)
    return np.ascontiguousarray(wanted)


def _checked_filters(index: VectorIndex, names: Collection[str]) -> None:
    for name in names:
        if name not in index.filters:
            known = ", ".join(index.filters) or "none"
            raise InvalidInput("filter", name, f"the index of {index.version} has these filters: {known}")
