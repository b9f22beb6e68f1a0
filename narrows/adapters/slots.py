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

    def any(self, size: int) -> Flags:
        """bool[size]: the slots that have a value."""
        found = np.zeros(size, np.bool_)
        found[self.slots] = True
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
    _filters: OrderedDict[Any, Bits] = field(default_factory=OrderedDict)
    _packed: OrderedDict[Any, tuple[Bits, int]] = field(default_factory=OrderedDict)
    _place: list[NDArray[np.int32]] = field(default_factory=list)

    @staticmethod
    def empty() -> Slots:
        """No slots yet."""
        return Slots(np.empty(0, np.int32), np.empty(0, np.bool_), {})

    def __len__(self) -> int:
        return len(self.rows)

    @staticmethod
    def of(arrays: Mapping[str, NDArray[Any]], prefix: str) -> Slots:
        """What `arrays` gave."""
        names = [str(name) for name in arrays[f"{prefix}names"]]
        tags = {
            name: Tags(
                {str(value): code for code, value in enumerate(arrays[f"{prefix}values_{name}"])},
                arrays[f"{prefix}slots_{name}"],
                arrays[f"{prefix}codes_{name}"],
            )
            for name in names
        }
        return Slots(arrays[f"{prefix}rows"], arrays[f"{prefix}alive"], tags)

    def arrays(self, prefix: str) -> dict[str, NDArray[Any]]:
        """All of it as arrays to be stored, their names beginning with `prefix`."""
        found: dict[str, NDArray[Any]] = {
            f"{prefix}rows": self.rows,
            f"{prefix}alive": self.alive,
            f"{prefix}names": np.asarray(list(self.tags), np.str_),
        }
        for name, one in self.tags.items():
            found[f"{prefix}values_{name}"] = np.asarray(list(one.vocabulary), np.str_)
            found[f"{prefix}slots_{name}"], found[f"{prefix}codes_{name}"] = one.slots, one.codes
        return found

    @property
    def living(self) -> int:
        """How many slots are alive."""
        return int(np.count_nonzero(self.alive))

    def passing(self, where: Where) -> Flags:
        """bool[slots]: alive, and holding what the filter asks for."""
        if not where.any_of:
            return self.alive
        return np.unpackbits(self.packed(where)[0], count=len(self), bitorder="little").view(np.bool_)

    def packed(self, where: Where) -> tuple[Bits, int]:
        """The passing slots as a bitmap, lowest bit first, and how many they are."""

        def made() -> tuple[Bits, int]:
            bits = np.packbits(self.alive, bitorder="little")
            if where.any_of:
                bits &= self._holding(where)
            return bits, int(np.bitwise_count(bits).sum())

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

        def of(slots: Slots, name: str) -> Tags:
            return slots.tags.get(name, Tags.empty())

        names = {*self.tags, *other.tags}
        tags = {name: of(self, name).joined(of(other, name), len(self)) for name in names}
        return Slots(np.concatenate([self.rows, other.rows]), np.concatenate([self.alive, other.alive]), tags)

    def renumbered(self, rows: Rows) -> Slots:
        """The slots under other rows: those of row `i` hold `rows[i]`, and are dead where that is -1."""
        held = (self.rows >= 0) & (self.rows < len(rows))
        later = np.where(held, rows[np.where(held, self.rows, 0)] if len(rows) else -1, -1).astype(np.int32)
        return Slots(later, self.alive & (later >= 0), self.tags)

    def tagged(self, name: str, words: Sequence[str], codes: NDArray[np.int32]) -> Slots:
        """With the values of an attribute: row `i` has the words of `codes[i]`, int32[k] with -1 for none."""
        held = np.flatnonzero((self.rows >= 0) & (self.rows < len(codes)))
        theirs = codes[self.rows[held]]
        at, place = np.nonzero(theirs >= 0)
        vocabulary = {word: code for code, word in enumerate(words)}
        tags = Tags(vocabulary, held[at].astype(np.int32), theirs[at, place].astype(np.int32))
        return Slots(self.rows, self.alive, {**self.tags, name: tags}, _place=self._place)

    def without(self, rows: Rows) -> Slots:
        """With the slots of these rows dead; filters stay known, since only the living changed."""
        place = self._places()
        at = place[rows[(rows >= 0) & (rows < len(place))]]
        at = at[at >= 0]
        at = at[self.alive[at]]
        if not len(at):
            return self
        alive = self.alive.copy()
        alive[at] = False
        return replace(self, alive=alive, _packed=OrderedDict())

    def _places(self) -> NDArray[np.int32]:
        """int32[highest row + 1]: the last slot of each row, -1 for none; found once, since rows stay."""
        if not self._place:
            place = np.full(int(self.rows.max(initial=-1)) + 1, -1, np.int32)
            there = np.flatnonzero(self.rows >= 0)
            place[self.rows[there]] = there
            self._place.append(place)
        return self._place[0]

    def taken(self, kept: NDArray[np.intp]) -> Slots:
        """The slots kept, in order, renumbered."""
        tags = {name: one.taken(kept, len(self)) for name, one in self.tags.items()}
        return Slots(self.rows[kept], self.alive[kept], tags)

    def _holding(self, where: Where) -> Bits:
        """A bitmap as `packed` gives it, of the dead as well."""

        def made() -> Bits:
            found = np.ones(len(self), np.bool_)
            for name, values in where.any_of.items():
                tags = self.tags.get(name, Tags.empty())
                holding = tags.holding(values, len(self))
                found &= holding | ~tags.any(len(self)) if name in where.or_none else holding
            return np.packbits(found, bitorder="little")

        return _kept(self._filters, where.key(), made)


def _kept(known: OrderedDict[Any, T], key: object, made: Callable[[], T]) -> T:
    """What is known under the key, made first where it is not; the oldest goes when there are too many."""
    found = known.get(key)
    if found is None:
        found = known[key] = made()
        while len(known) > FILTERS_KEPT:
            known.popitem(last=False)
    return found
