"""Events as arrays: what the numpy rendering of every kind reads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from narrows.events import Event, Scalar
from narrows.features.selection import FIELDS, HOUR_S, HOURS, NUMBER_FIELDS, Selection, text_hash

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Truths = NDArray[np.bool_]
Objects = NDArray[np.object_]
Column = TypeVar("Column")


@dataclass(frozen=True, eq=False)
class TextColumn:
    """Texts as places in `words`, -1 for none."""

    codes: Integers
    words: tuple[str, ...]

    @staticmethod
    def of(texts: Iterable[str | None]) -> TextColumn:
        """An empty text is none."""
        known: dict[str, int] = {}
        codes = [known.setdefault(text, len(known)) if text else -1 for text in texts]
        return TextColumn(np.array(codes, np.int64), tuple(known))

    @staticmethod
    def hours(time: Floats) -> TextColumn:
        """The hour of the day of each moment, in UTC: what `hour` names."""
        whole_s = np.floor(time).astype(np.int64)  # whole numbers divide several times as fast
        return TextColumn(whole_s // int(HOUR_S) % len(HOURS), HOURS)

    def take(self, rows: Integers) -> TextColumn:
        """These rows."""
        return TextColumn(self.codes.take(rows), self.words)

    def among(self, texts: Iterable[str]) -> Truths:
        """Whether each text is one of these."""
        wanted = set(texts)
        marks = np.array([*(word in wanted for word in self.words), False])
        return np.asarray(marks[self.codes], np.bool_)

    @property
    def hashes(self) -> Integers:
        """The hash of every word."""
        return np.array([text_hash(word) for word in self.words], np.int64)

    @property
    def places(self) -> Integers:
        """For every word its place in the order of code points."""
        order = sorted(range(len(self.words)), key=self.words.__getitem__)
        places = np.empty(len(order), np.int64)
        places[order] = np.arange(len(order))
        return places


@dataclass(frozen=True, eq=False)
class EventColumns:
    """Events, one a row. `key` says whose they are; `order` is the place of the event's id among all ids.

    `texts` and `numbers` hold fields and properties by name, as `Selection` names them; nan is no number.
    """

    key: TextColumn
    time: Floats
    order: Integers
    texts: Mapping[str, TextColumn]
    numbers: Mapping[str, Floats]
    _by_types: dict[frozenset[str], tuple[Integers, EventColumns]] = field(
        default_factory=dict, init=False, repr=False
    )

    @staticmethod
    def of(events: Sequence[Event]) -> EventColumns:
        """The columns of these events, each belonging to its visitor."""
        names = sorted({name for event in events for name in event.properties})
        texts = {name: [_text(one.properties.get(name)) for one in events] for name in names}
        numbers = {name: [_number(one.properties.get(name)) for one in events] for name in names}
        for name, read in FIELDS.items():
            if name in NUMBER_FIELDS:
                numbers[name] = [_number(read(one)) for one in events]
                texts.pop(name, None)
            else:
                texts[name] = [_text(read(one)) for one in events]
                numbers.pop(name, None)
        ids = TextColumn.of(one.event_id for one in events)
        return EventColumns(
            key=TextColumn.of(one.visitor_key for one in events),
            time=np.array([one.time for one in events], np.float64),
            order=ids.places[ids.codes] if events else ids.codes,
            texts={name: TextColumn.of(column) for name, column in texts.items()},
            numbers={name: np.array(column, np.float64) for name, column in numbers.items()},
        )

    def __len__(self) -> int:
        return len(self.time)

    def take(self, rows: Integers) -> EventColumns:
        """These rows; a column that nobody asks for is never taken."""
        texts: _Later[TextColumn] = _Later(self.texts, lambda column: column.take(rows))
        numbers: _Later[Floats] = _Later(self.numbers, lambda column: column.take(rows))
        return EventColumns(self.key.take(rows), self.time.take(rows), self.order.take(rows), texts, numbers)

    def of_types(self, types: frozenset[str]) -> tuple[Integers, EventColumns]:
        """The rows of the events of these types, and their columns; chosen once for all who ask alike."""
        if types not in self._by_types:
            rows = np.flatnonzero(self.text("event_type").among(types))
            self._by_types[types] = rows, self.take(rows)
        return self._by_types[types]

    def keyed(self, keys: Iterable[str | None]) -> EventColumns:
        """The same events under other keys, such as their items; an event under none belongs to nobody."""
        return replace(self, key=TextColumn.of(keys))

    def number(self, name: str) -> Floats:
        """A field or property, nan where it is no finite number."""
        found = self.numbers.get(name)
        if found is None:
            return np.full(len(self), np.nan)
        finite = np.isfinite(found)
        return found if finite.all() else np.where(finite, found, np.nan)

    def text(self, name: str) -> TextColumn:
        """A field or property as text."""
        found = self.texts.get(name)
        return TextColumn(np.full(len(self), -1, np.int64), ()) if found is None else found

    def taken(self, by: Selection) -> Truths:
        """Whether type and `where` of the selection fit."""
        taken = self.text("event_type").among(by.types) if by.types else np.ones(len(self), np.bool_)
        for name, wanted in by.where.items():
            fits = self.text(name).among([wanted]) if isinstance(wanted, str) else self.number(name) == wanted
            taken = taken & fits
        return taken

    def amounts(self, of: Selection) -> Floats:
        """What each event adds, nan where the selection does not take it."""
        amounts = np.ones(len(self)) if of.value is None else self.number(of.value)
        taken = self.taken(of)
        return amounts if taken.all() else np.where(taken, amounts, np.nan)

    def words(self, of: Selection) -> TextColumn:
        """The text that each event gives, none where the selection does not take it."""
        column = self.text(of.value or "")
        return TextColumn(np.where(self.taken(of), column.codes, -1), column.words)


@dataclass(frozen=True, eq=False)
class Entries:
    """What each group holds several of: texts in their order, each with its number where a group holds a map.

    `group` says whose each entry is, ascending; `known` of every group whether it holds anything, be it an
    empty list.
    """

    group: Integers
    words: TextColumn
    known: Truths
    numbers: Floats | None = None

    def __len__(self) -> int:
        return len(self.known)

    def objects(self) -> Objects:
        """A list for each group, or a dict; an empty one for nothing."""
        texts = np.array([*self.words.words, ""], np.object_)[self.words.codes].tolist()
        numbers = None if self.numbers is None else self.numbers.tolist()
        found = np.empty(len(self), np.object_)
        for group, (start, end) in enumerate(pairwise(self.ends.tolist())):
            part = texts[start:end]
            found[group] = part if numbers is None else dict(zip(part, numbers[start:end], strict=True))
        return found

    @property
    def ends(self) -> Integers:
        """The place of the first entry of each group, and at last how many there are."""
        return np.searchsorted(self.group, np.arange(len(self) + 1))

    def only(self, groups: Truths) -> Entries:
        """These groups as they are; the others hold nothing."""
        kept = np.flatnonzero(groups[self.group])
        numbers = None if self.numbers is None else self.numbers[kept]
        return Entries(self.group[kept], self.words.take(kept), self.known & groups, numbers)


def names_read(by: Callable[[EventColumns], Any]) -> tuple[list[str], list[str]]:
    """The fields and properties that this reads of events: as text and as number, in order."""
    texts, numbers = _Asked(), _Asked()
    nothing = np.empty(0)
    by(EventColumns(TextColumn.of(()), nothing, nothing.astype(np.int64), texts, numbers))
    return sorted(texts.names), sorted(numbers.names)


class _Later(Mapping[str, Column]):
    """Some rows of columns, each taken when it is asked for first."""

    def __init__(self, columns: Mapping[str, Column], take: Callable[[Column], Column]) -> None:
        self._columns, self._take = columns, take
        self._taken: dict[str, Column] = {}

    def __getitem__(self, name: str) -> Column:
        if name not in self._taken:
            column = self._columns.get(name)
            if column is None:
                raise KeyError(name)
            self._taken[name] = self._take(column)
        return self._taken[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)


class _Asked(dict[str, Any]):
    """Columns that are not there, and remember who asked for them."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        self.names.add(name)
        return default


def _text(value: Scalar | None) -> str | None:
    return value if isinstance(value, str) else None


def _number(value: Scalar | None) -> float:
    return float("nan") if value is None or isinstance(value, str) else float(value)


def totals(amounts: Floats, groups: Integers, size: int) -> tuple[Floats, Floats]:
    """Of each group how many amounts are known, and their sum."""
    amounts, groups = _known(amounts, groups)
    number = np.bincount(groups, minlength=size).astype(np.float64)
    total: Floats = np.bincount(groups, weights=amounts, minlength=size).astype(np.float64)
    return number, total


def least(values: Floats, groups: Integers, size: int) -> Floats:
    """The least known value of each group, nan where none is known."""
    return _extreme(np.minimum, np.inf, values, groups, size)


def greatest(values: Floats, groups: Integers, size: int) -> Floats:
    """The greatest known value of each group, nan where none is known."""
    return _extreme(np.maximum, -np.inf, values, groups, size)


def _extreme(of: np.ufunc, nothing: float, values: Floats, groups: Integers, size: int) -> Floats:
    values, groups = _known(values, groups)
    found = np.full(size, nothing)
    of.at(found, groups, values)
    return np.where(found == nothing, np.nan, found)


def _known(values: Floats, groups: Integers) -> tuple[Floats, Integers]:
    """The values that are numbers, and their groups."""
    known = ~np.isnan(values)
    return (values, groups) if known.all() else (values[known], groups[known])


def newest(events: EventColumns, chosen: Truths, groups: Integers, keep: int) -> Integers:
    """The rows of the newest `keep` chosen events of each group, by group and from oldest to newest."""
    rows = np.flatnonzero(chosen)
    if not _in_order(groups[rows], events.time[rows], events.order[rows]):
        rows = rows[np.lexsort((events.order[rows], events.time[rows], groups[rows]))]
    return rows[from_start(groups[rows][::-1])[::-1] < keep]


def _in_order(*keys: NDArray[Any]) -> bool:
    """Whether rows are sorted by these keys, the first first: then nothing has to be."""
    tied = np.ones(max(0, len(keys[0]) - 1), np.bool_)
    for key in keys:
        if np.any(tied & (key[1:] < key[:-1])):
            return False
        tied &= key[1:] == key[:-1]
    return True


def from_start(ordered: Integers) -> Integers:
    """The number of earlier rows of the same group, in rows of which those of a group are neighbours."""
    places = np.arange(len(ordered))
    first = np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(ordered)]
    return np.asarray(places - np.maximum.accumulate(np.where(first, places, 0)), np.int64)


def prefixes(events: EventColumns, keys: Sequence[str], as_of: Floats) -> tuple[Integers, Integers]:
    """For every request the rows of its key's events up to its moment: (rows, the request of each)."""
    place = {word: code for code, word in enumerate(events.key.words)}
    wanted = np.array([place.get(key, -1) for key in keys], np.int64)
    order = np.lexsort((events.time, events.key.codes))
    codes, times = events.key.codes[order], events.time[order]
    starts = np.searchsorted(codes, np.where(wanted < 0, len(place), wanted))
    ends = _ends(codes, times, wanted, as_of)
    lengths = np.maximum(0, np.where(wanted < 0, 0, ends - starts))
    requests = np.repeat(np.arange(len(wanted)), lengths)
    within = np.arange(len(requests)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return order[starts[requests] + within], requests


def _ends(codes: Integers, times: Floats, wanted: Integers, as_of: Floats) -> Integers:
    """Of (code, time) pairs in order, how many are at or before each wanted pair."""
    joined = np.concatenate([codes, wanted])
    moments = np.concatenate([times, as_of])
    late = np.concatenate([np.zeros(len(codes), np.int64), np.ones(len(wanted), np.int64)])
    order = np.lexsort((late, moments, joined))
    before = np.cumsum(late[order] == 0)
    ends = np.empty(len(joined), np.int64)
    ends[order] = before
    return ends[len(codes) :]
