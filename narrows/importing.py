"""Judges the rows of imported files: which columns play which part, which rows are accepted, and why not."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np

from narrows.column_names import (
    CATALOGUE_NAMES,
    CATEGORY_LEVELS,
    EVENT_NAMES,
    INTERACTION_NAMES,
    REQUIRED,
    named,
    plain_name,
)
from narrows.errors import NarrowsError
from narrows.events import USUAL, is_usual
from narrows.ids import LONGEST_ID_BYTES
from narrows.settings import Catalogue

Doubles = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
Flags = np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
Column = Sequence[str] | Doubles
Values = Sequence[str] | Sequence[list[str]] | Doubles

EARLIEST = 315_532_800.0  # 1980-01-01: an older event is a mistake of units or of a clock
AHEAD_S = 86_400.0
NULLS = frozenset({"", "nan", "null", "none", "\\n", "<na>", "nat"})


class ImportRefused(NarrowsError):
    """The files cannot be imported; the message names the file, what is wrong with it, and the remedy."""


@dataclass(frozen=True)
class ColumnMap:
    """Which column of a file plays which part; `inferred` are the parts whose column has another name."""

    columns: Mapping[str, str]
    inferred: Mapping[str, str]
    others: tuple[str, ...]


@dataclass(frozen=True)
class Rows:
    """Rows of a file, by column; `lines` are their line numbers, in Parquet their row numbers, from 1."""

    lines: Sequence[int]
    columns: Mapping[str, Column]


@dataclass(frozen=True)
class Accepted:
    """Interactions that passed; times are epoch seconds, a value is nan where the row has none.

    `locations` are where the users were, None where a row does not tell.
    """

    user_ids: Sequence[str]
    item_ids: Sequence[str]
    times: Doubles
    event_types: Sequence[str]
    values: Doubles
    weights: Doubles
    locations: Sequence[str | None]


@dataclass
class Tally:
    """What was learned on the way: units of time, event types, and the hashes of the rows seen so far."""

    units: Counter[str] = field(default_factory=Counter)
    event_types: Counter[str] = field(default_factory=Counter)
    unknown_types: Counter[str] = field(default_factory=Counter)
    seen: set[bytes] = field(default_factory=set)


def map_columns(role: str, header: Sequence[str], file: str, given: Mapping[str, str]) -> ColumnMap:
    """Find the column of each part by its given name, its Personalize name, or a usual other name."""
    columns: dict[str, str] = {}
    for part in INTERACTION_NAMES if role == "interactions" else REQUIRED[role]:
        aliases = INTERACTION_NAMES[part]
        column = _given(role, part, header, file, given) or named(aliases, header, columns.values())
        if column is not None:
            columns[part] = column
    for part in REQUIRED[role]:
        if part not in columns:
            raise ImportRefused(
                f"{file}: no column {part.upper()}; it has {', '.join(header) or 'no columns'}. "
                f"Name the right one: --columns {part.upper()}=<column>"
            )
    inferred = {part: column for part, column in columns.items() if plain_name(column) != part}
    others = tuple(column for column in header if column not in columns.values())
    return ColumnMap(columns, inferred, others)


def _given(role: str, part: str, header: Sequence[str], file: str, given: Mapping[str, str]) -> str | None:
    wanted = given.get(part)
    if wanted is None:
        return None
    by_name = {column.lower(): column for column in reversed(header)}
    if wanted.lower() in by_name:
        return by_name[wanted.lower()]
    if role != "interactions":
        return None  # each file may have its own name for an id
    raise ImportRefused(
        f"{file}: --columns {part.upper()}={wanted} names no column; it has {', '.join(header)}"
    )


def judge_interactions(
    rows: Rows,
    columns: ColumnMap,
    labels: Mapping[str, float],
    default_type: str,
    *,
    now: float,
    tally: Tally,
) -> tuple[Accepted, dict[int, str]]:
    """Split rows into the accepted ones and the reasons, by index, why the others are not.

    A row with several faults counts once, under the first of: user, item, time, value, duplicate.
    """
    users = identifiers(rows.columns[columns.columns["user_id"]])
    items = identifiers(rows.columns[columns.columns["item_id"]])
    times, units = parse_times(rows.columns[columns.columns["timestamp"]])
    values, usable = _values(rows, columns)
    plausible = (times >= EARLIEST) & (times <= now + AHEAD_S)
    reasons = first_reasons(
        ("missing user id", [user is None for user in users]),
        ("missing item id", [item is None for item in items]),
        ("bad user id", map(_bad_id, users)),
        ("bad item id", map(_bad_id, items)),
        ("unparsable timestamp", np.isnan(times)),
        ("timestamp before 1980 or in the future", ~plausible),
        (f"value is not a finite number {USUAL}", ~usable),
        ("duplicate row", duplicates(rows, tally.seen)),
    )
    kept = [i for i in range(len(users)) if i not in reasons]
    types = _event_types(rows, columns, labels, default_type, kept)
    tally.units.update(units[i] for i in kept)
    counted = Counter(types)
    tally.event_types.update(counted)
    tally.unknown_types.update({name: count for name, count in counted.items() if name not in labels})
    weights = np.array([labels.get(name, 1.0) for name in types], dtype=np.float64)
    accepted_users, accepted_items = [users[i] or "" for i in kept], [items[i] or "" for i in kept]
    places = _locations(rows, columns, kept)
    return Accepted(
        accepted_users, accepted_items, times[kept], types, values[kept], weights, places
    ), reasons


def _locations(rows: Rows, columns: ColumnMap, kept: Sequence[int]) -> list[str | None]:
    name = columns.columns.get("location")
    found = identifiers(rows.columns[name]) if name else [None] * len(rows.lines)
    return [None if _bad_id(found[i]) else found[i] for i in kept]


def judge_entities(
    rows: Rows, key: str, seen_ids: set[str], seen: set[bytes], bad: Mapping[int, str]
) -> dict[int, str]:
    """The reasons, by index, why rows of items or users are refused: no id, a repeated row, a repeated id.

    `bad` rows are refused for what else they say; their ids are not taken by that.
    """
    ids = identifiers(rows.columns[key])
    by_id = first_reasons(
        ("missing id", [one is None for one in ids]),
        ("bad id", map(_bad_id, ids)),
        ("duplicate row", duplicates(rows, seen)),
    )
    reasons = {**bad, **by_id}
    for i, one in enumerate(ids):
        if one is None or i in reasons:
            continue
        if one in seen_ids:
            reasons[i] = "id seen before with other values"
        seen_ids.add(one)
    return dict(sorted(reasons.items()))


def first_reasons(*findings: tuple[str, Iterable[bool] | Flags]) -> dict[int, str]:
    """For each faulty row the first finding that holds, in the order of the rows."""
    reasons: dict[int, str] = {}
    for reason, faulty in reversed(findings):
        flags = np.fromiter(faulty, dtype=np.bool_)
        reasons.update(dict.fromkeys(np.flatnonzero(flags).tolist(), reason))
    return dict(sorted(reasons.items()))


def parse_times(column: Column) -> tuple[Doubles, list[str]]:
    """Epoch seconds (nan where unreadable) and each value's unit: s, ms, us, ns or iso (UTC without a zone).

    The magnitude tells the unit, value by value: no two units have a plausible year in common.
    """
    raw, iso = _numbers_or_iso(column)
    seconds, units = raw.copy(), np.full(len(raw), "s", dtype=object)
    for unit, least, scale in (("ms", 1e11, 1e3), ("us", 1e14, 1e6), ("ns", 1e17, 1e9)):
        large = (np.abs(raw) >= least) & ~iso
        seconds[large] = raw[large] / scale
        units[large] = unit
    units[iso] = "iso"
    return seconds, list(units)


def _numbers_or_iso(column: Column) -> tuple[Doubles, Flags]:
    numbers, iso = np.full(len(column), np.nan), np.zeros(len(column), dtype=np.bool_)
    for i, cell in enumerate(column.tolist() if isinstance(column, np.ndarray) else column):
        try:
            numbers[i] = float(cell)
        except ValueError:
            numbers[i] = _iso_seconds(cell)
            iso[i] = True
    numbers[np.isinf(numbers)] = np.nan
    return numbers, iso


def _iso_seconds(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text.strip().removesuffix(" UTC"))
        aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return aware.timestamp()
    except (OverflowError, ValueError):
        return math.nan


def identifiers(column: Column) -> list[str | None]:
    """Ids as texts without surrounding blanks, None where there is none; 12.0 is the id 12."""
    if not isinstance(column, np.ndarray):
        return [None if (text := cell.strip()).lower() in NULLS else text for cell in column]
    cells: list[float] = column.tolist()
    return [None if not math.isfinite(x) else str(int(x)) if x.is_integer() else repr(x) for x in cells]


def _bad_id(one: str | None) -> bool:
    """Too long, with a NUL, or with bytes that are not UTF-8: those arrive as lone surrogates."""
    if one is None:
        return False
    if "\0" in one or _has_surrogates(one):
        return True
    return len(one.encode()) > LONGEST_ID_BYTES


def _has_surrogates(text: str) -> bool:
    return not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)


def _values(rows: Rows, columns: ColumnMap) -> tuple[Doubles, Flags]:
    """The values, nan where a row has none, and whether each is usable: absent is, infinite is not.

    Nor is one that an event may not have: what a file says of a visitor is folded like an event.
    """
    name = columns.columns.get("event_value")
    values, usable = np.full(len(rows.lines), np.nan), np.ones(len(rows.lines), dtype=np.bool_)
    if name is None:
        return values, usable
    for i, text in enumerate(texts(rows.columns[name])):
        if not text or text.isspace():
            continue
        try:
            values[i] = float(text)
        except ValueError:
            usable[i] = False
        else:
            usable[i] = is_usual(values[i])
    return values, usable


def duplicates(rows: Rows, seen: set[bytes]) -> Flags:
    """Rows that repeat an earlier row in every column, recognised by a 96-bit hash; `seen` grows."""
    found = np.zeros(len(rows.lines), dtype=np.bool_)
    for i, row in enumerate(zip(*map(texts, rows.columns.values()), strict=True)):
        content = "\x1f".join(row).encode("utf-8", "surrogatepass")
        key = hashlib.blake2b(content, digest_size=12).digest()
        found[i] = key in seen
        seen.add(key)
    return found


def texts(column: Column) -> Sequence[str]:
    """The cells as they would stand in a CSV file."""
    return list(map(repr, column.tolist())) if isinstance(column, np.ndarray) else column


def _event_types(
    rows: Rows, columns: ColumnMap, labels: Mapping[str, float], default_type: str, kept: Sequence[int]
) -> list[str]:
    """The app's name of each kept row's event type; a type that the app does not know keeps its own name."""
    name = columns.columns.get("event_type")
    if name is None:
        return [default_type] * len(kept)
    known = _type_names(labels)
    cells = texts(rows.columns[name])
    return [_event_type(cells[i].strip(), known, default_type) for i in kept]


def _event_type(text: str, known: Mapping[str, str], default_type: str) -> str:
    folded = plain_name(text)
    return default_type if text.lower() in NULLS else known.get(folded, text)


def _type_names(labels: Collection[str]) -> dict[str, str]:
    names = {alias: name for name, aliases in EVENT_NAMES.items() if name in labels for alias in aliases}
    return names | {plain_name(name): name for name in labels}


def strongest_type(labels: Mapping[str, float]) -> str:
    """What an interaction without a type counts as: the type with the highest label, ties by name."""
    return max(sorted(labels), key=lambda name: labels[name], default="interaction")


def catalogue_columns(header: Sequence[str], catalogue: Catalogue) -> dict[str, list[str]]:
    """For each column that the app's catalogue names and the file lacks, the columns that fill it.

    A file without the app's category column may have three levels of it: they become one multi-valued column.
    """
    plain = {plain_name(column) for column in header}
    roles = {"categories": catalogue.categories, "brand": catalogue.brand, "seller": catalogue.seller}
    roles |= {"price": catalogue.price, "time": catalogue.time}
    roles["text"] = catalogue.text[0] if catalogue.text else ""
    filled: dict[str, list[str]] = {}
    for role, wanted in roles.items():
        if not wanted or wanted in plain:
            continue
        column = named(CATALOGUE_NAMES[role], header)
        if column is None:
            continue
        levels = [c for level in CATEGORY_LEVELS if (c := named((level,), header))]
        filled[wanted] = levels if role == "categories" and column in levels else [column]
    return filled


def numbers_of(column: Column) -> Doubles | None:
    """The column as numbers, nan where a cell is empty; None if some cell is a text, or all are empty.

    A leading zero marks a text: a postal code or an id is not a quantity.
    """
    numbers = np.full(len(column), np.nan)
    for i, cell in enumerate(texts(column)):
        text = cell.strip()
        if text.lower() in NULLS:
            continue
        if text[0] == "0" and text[1:2].isdigit():
            return None
        try:
            numbers[i] = float(text)
        except ValueError:
            return None
    return None if np.isnan(numbers).all() else numbers


def split_values(column: Column, separator: str = "|") -> list[list[str]]:
    """The values in each cell of a multi-valued column, without the empty and the repeated ones."""
    return [
        list(
            dict.fromkeys(one for part in cell.split(separator) if (one := part.strip()).lower() not in NULLS)
        )
        for cell in texts(column)
    ]


def joined_values(columns: Sequence[Column]) -> list[list[str]]:
    """What several multi-valued columns say together, each value once."""
    rows = zip(*map(split_values, columns), strict=True)
    return [list(dict.fromkeys(one for part in row for one in part)) for row in rows]


def clean_texts(cells: Sequence[str]) -> list[str | None]:
    """Texts that UTF-8 can write, None for the empty ones."""
    return [cell.encode("utf-8", "replace").decode() if cell else None for cell in cells]


def moments_of(column: Column) -> Doubles:
    """The column as epoch seconds, nan where unreadable; a bare year is its first second."""
    seconds, units = parse_times(column)
    for i, unit in enumerate(units):
        if unit == "s" and 1800 <= seconds[i] <= 2200 and seconds[i] == int(seconds[i]):
            seconds[i] = datetime(int(seconds[i]), 1, 1, tzinfo=UTC).timestamp()
    return seconds
