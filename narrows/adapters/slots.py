"""The slots of an index's vectors: which row each holds, which are alive, and which pass a filter."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from narrows.retrieval import Rows
from narrows.vector_index import Where

FILTERS_KEPT = 256
Bits = NDArray[np.uint8]
Flags = NDArray[np.bool_]
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Tags:
    """The values of one attribute: value `codes[i]` is one of those of slot `slots[i]`."""

    vocabulary: Mapping[str, int]
    slots: NDArray[np.int32]
    codes: NDArray[np.int32]

    @staticmethod
    def empty() -> Tags:
        """Of no slot."""
        return Tags({}, np.empty(0, np.int32), np.empty(0, np.int32))

    def holding(self, values: frozenset[str], size: int) -> Flags:
        """bool[size]: the slots that have one of these values."""
        found = np.zeros(size, np.bool_)
        codes = [self.vocabulary[value] for value in values if value in self.vocabulary]
        if codes:
            found[self.slots[np.isin(self.codes, codes)]] = True
        return found

    def extended(self, values: Sequence[Sequence[str]], first: int) -> Tags:
        """With these values of the slots from `first` on."""
        vocabulary = dict(self.vocabulary)
        codes = [vocabulary.setdefault(value, len(vocabulary)) for one in values for value in one]
        slots = np.repeat(np.arange(first, first + len(values), dtype=np.int32), [len(one) for one in values])
        return Tags(
            vocabulary,
            np.concatenate([self.slots, slots]),
            np.concatenate([self.codes, np.asarray(codes, np.int32)]),
        )

    def joined(self, other: Tags, first: int) -> Tags:
        """With those of another, whose slots come to lie from `first` on."""
        vocabulary = dict(self.vocabulary)
        recode = [vocabulary.setdefault(value, len(vocabulary)) for value in other.vocabulary]
        codes = np.asarray(recode, np.int32)[other.codes] if recode else other.codes
        return Tags(
            vocabulary,
            np.concatenate([self.slots, other.slots + np.int32(first)]),
            np.concatenate([self.codes, codes]),
        )

    def taken(self, kept: NDArray[np.intp], size: int) -> Tags:
        """Those of the slots kept, renumbered in order."""
        place = np.full(size, -1, np.int32)
        place[kept] = np.arange(len(kept), dtype=np.int32)
        stays = place[self.slots] >= 0
        return Tags(self.vocabulary, place[self.slots[stays]], self.codes[stays])


@dataclass(frozen=True, eq=False)
class Slots:
    """`rows` int32[slots]; a slot is dead once its row was deleted or came again. Never changed in place."""

    rows: Rows
    alive: Flags
    tags: Mapping[str, Tags]
    _filters: OrderedDict[Any, Flags] = field(default_factory=OrderedDict)
    _packed: OrderedDict[Any, tuple[Bits, int]] = field(default_factory=OrderedDict)

    @staticmethod
    def empty() -> Slots:
        """No slots yet."""
        return Slots(np.empty(0, np.int32), np.empty(0, np.bool_), {})

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def living(self) -> int:
        """How many slots are alive."""
        return int(np.count_nonzero(self.alive))

    def passing(self, where: Where) -> Flags:
        """bool[slots]: alive, and holding what the filter asks for."""
        return self.alive & self._holding(where) if where.any_of else self.alive

    def packed(self, where: Where) -> tuple[Bits, int]:
        """The passing slots as a bitmap, lowest bit first, and how many they are."""

        def made() -> tuple[Bits, int]:
            passing = self.passing(where)
            return np.packbits(passing, bitorder="little"), int(np.count_nonzero(passing))

        return _kept(self._packed, where.key(), made)

    def extended(self, rows: Rows, attributes: Mapping[str, Sequence[Sequence[str]]]) -> Slots:
        """With one more living slot for each row."""
        added = Slots(
            rows,
            np.ones(len(rows), np.bool_),
            {name: Tags.empty().extended(values, 0) for name, values in attributes.items()},
        )
        return self.joined(added)

    def joined(self, other: Slots) -> Slots:
        """With the slots of another behind these."""
        names = {*self.tags, *other.tags}

        def of(slots: Slots, name: str) -> Tags:
            return slots.tags.get(name, Tags.empty())

        names = {*self.tags, *other.tags}
        tags = {name: of(self, name).joined(of(other, name), len(self)) for name in names}
        return Slots(np.concatenate([self.rows, other.rows]), np.concatenate([self.alive, other.alive]), tags)

    def without(self, rows: Rows) -> Slots:
        """With the slots of these rows dead; filters stay known, since only the living changed."""
        hit = np.isin(self.rows, rows)
        return replace(self, alive=self.alive & ~hit, _packed=OrderedDict()) if hit.any() else self

    def taken(self, kept: NDArray[np.intp]) -> Slots:
        """The slots kept, in order, renumbered."""
        tags = {name: one.taken(kept, len(self)) for name, one in self.tags.items()}
        return Slots(self.rows[kept], self.alive[kept], tags)

    def _holding(self, where: Where) -> Flags:
        def made() -> Flags:
            found = np.ones(len(self), np.bool_)
            for name, values in where.any_of.items():
                found &= self.tags.get(name, Tags.empty()).holding(values, len(self))
            return found

        return _kept(self._filters, where.key(), made)


def _kept(known: OrderedDict[Any, T], key: object, made: Callable[[], T]) -> T:
    """What is known under the key, made first where it is not; the oldest goes when there are too many."""
    found = known.get(key)
    if found is None:
        found = known[key] = made()
        while len(known) > FILTERS_KEPT:
            known.popitem(last=False)
    return found
