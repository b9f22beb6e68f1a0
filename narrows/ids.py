"""Item ids to rows and back: a hashed, sorted index that can lie in memory-mapped files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from narrows.errors import InvalidInput

LONGEST_ID_BYTES = 256
BLOCK = 65_536

Rows = NDArray[np.int32]
Hashes = NDArray[np.uint64]
Bytes = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class IdIndex:
    """The ids of the rows `first`, `first` + 1, ... as UTF-8 in one blob, and their hashes in order."""

    first: int
    blob: Bytes
    offsets: NDArray[np.int64]
    hashes: Hashes
    order: Rows

    @classmethod
    def build(cls, ids: Sequence[str | None], first: int = 0) -> IdIndex:
        """Index the ids; InvalidInput for an id that is empty, too long, twice, or holds a NUL.

        None stands for a row without an item: it is never found, and its id reads as "".
        """
        encoded = [b"" if one is None else encode(one) for one in ids]
        lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
        blob = np.frombuffer(b"".join(encoded), np.uint8)
        hashes = _hashes(encoded)
        order = np.argsort(hashes, kind="stable").astype(np.int32)
        index = cls(first, blob, offsets, hashes[order], order)
        _refuse_twins(index, ids)
        return index

    @classmethod
    def over(cls, arrays: Mapping[str, NDArray[np.generic]], first: int = 0) -> IdIndex:
        """The index that `arrays` described, without copying."""
        return cls(first, *(arrays[name] for name in ("blob", "offsets", "hashes", "order")))  # type: ignore[arg-type]

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """What to store so that `over` finds it again."""
        return {"blob": self.blob, "offsets": self.offsets, "hashes": self.hashes, "order": self.order}

    def __len__(self) -> int:
        return len(self.order)

    def find(self, ids: Sequence[str]) -> Rows:
        """The row of each id, -1 where it is unknown."""
        rows = np.full(len(ids), -1, np.int32)
        if not len(self) or not ids:
            return rows
        encoded = [_looked_up(one) for one in ids]
        hashes = _hashes(encoded)
        at = np.searchsorted(self.hashes, hashes)
        open_ = np.arange(len(ids))
        while len(open_):  # once, and again only for ids whose hashes collide
            inside = at[open_] < len(self)
            open_ = open_[inside & (self.hashes[np.minimum(at[open_], len(self) - 1)] == hashes[open_])]
            places = self.order[at[open_]]
            same = np.fromiter(
                (
                    bool(encoded[one]) and self._bytes(place) == encoded[one]
                    for place, one in zip(places, open_, strict=True)
                ),
                np.bool_,
                len(open_),
            )
            rows[open_[same]] = places[same] + self.first
            open_ = open_[~same]
            at[open_] += 1
        return rows

    def id_of(self, row: int) -> str:
        """The id of a row of this index, "" where the row has no item."""
        return self._bytes(row - self.first).decode()

    def _bytes(self, place: int) -> bytes:
        return self.blob[self.offsets[place] : self.offsets[place + 1]].tobytes()


def encode(item_id: str) -> bytes:
    """The id as UTF-8; InvalidInput when it is empty, too long or holds a NUL."""
    encoded = item_id.encode("utf-8", "replace")
    if not 1 <= len(encoded) <= LONGEST_ID_BYTES or b"\0" in encoded:
        raise InvalidInput("item_id", item_id, f"use 1 to {LONGEST_ID_BYTES} bytes of UTF-8 without a NUL")
    return encoded


def _looked_up(item_id: str) -> bytes:
    encoded = item_id.encode("utf-8", "replace")
    return encoded if len(encoded) <= LONGEST_ID_BYTES else b""


def _multipliers() -> Hashes:
    """One odd 64-bit number per byte position, by splitmix64 (Steele, Lea, Flood 2014)."""
    seeds = np.arange(1, LONGEST_ID_BYTES + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return _mixed(seeds) | np.uint64(1)


def _mixed(values: Hashes) -> Hashes:
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


_MULTIPLIERS = _multipliers()


def _hashes(encoded: Sequence[bytes]) -> Hashes:
    """A multilinear hash of each id: the sum of its bytes times the multiplier of their position, mixed."""
    blocks = [_block_hashes(encoded[start : start + BLOCK]) for start in range(0, len(encoded), BLOCK)]
    return np.concatenate(blocks) if blocks else np.empty(0, np.uint64)


def _block_hashes(encoded: Sequence[bytes]) -> Hashes:
    padded = np.array(encoded, dtype=np.bytes_)
    columns = padded.view(np.uint8).reshape(len(encoded), padded.dtype.itemsize)
    total = np.zeros(len(encoded), np.uint64)
    for position in range(columns.shape[1]):
        total += columns[:, position].astype(np.uint64) * _MULTIPLIERS[position]
    return _mixed(total)


def _refuse_twins(index: IdIndex, ids: Sequence[str | None]) -> None:
    repeated = np.flatnonzero(index.hashes[1:] == index.hashes[:-1])
    for place in repeated.tolist():
        left, right = int(index.order[place]), int(index.order[place + 1])
        if ids[left] is not None and ids[left] == ids[right]:
            raise InvalidInput("item_id", ids[left], "give every item once")
