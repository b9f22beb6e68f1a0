"""Every key's values as of one moment, for all scopes from one reading of the lake, by arrays.

Spark says who reads which part of the lake's files, and moves blocks of thousands of rows between its Python
workers. There every row is dealt to the seat of its key; sessions that logged in hand their rows on to their
users; and what sits together is added up by numpy and written. Nothing is done for one event alone, and no
event is ever a row of Spark's.
"""

from __future__ import annotations

import gc
import math
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any
from zipimport import zipimporter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyspark.sql import SparkSession

from glue_jobs.blocks import (
    SCHEMA,
    Block,
    as_rows,
    dealt,
    from_rows,
    of_used_words,
    seated,
    seats_of,
    unpacked,
)
from glue_jobs.event_files import (
    EventRows,
    Part,
    Words,
    among,
    codes_of,
    lake_columns,
    located,
    parts_of,
    read,
    truths,
    words,
)
from narrows.features.columns import Entries, EventColumns, Floats, TextColumn, least
from narrows.features.kinds import LastN, PerValue
from narrows.features.registry import VISITOR_SCOPES, FeatureSet
from narrows.features.scan import ScopeFeatures, number_column, scopes_of, text_column

AT_A_SEAT = 500_000
"""How many events sit together, or events of items: what a worker holds at once, some 400 MB."""
READ_BY_ONE = 250_000
DEALT_AT_ONCE = 250_000
SETTINGS: Mapping[str, str] = MappingProxyType({"spark.shuffle.compress": "false"})
"""What Spark should be started with: blocks are compressed already."""
BLOCKS_AT_ONCE = 16
"""How many blocks Spark hands to a worker at once; by its own 10,000 all of a seat, as one piece."""
WORKERS: Mapping[str, str] = MappingProxyType(
    {
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
        "MALLOC_TOP_PAD_": str(64 << 20),
        "ARROW_DEFAULT_MEMORY_POOL": "system",
    }
)
"""The environment of the Python workers: what an array gave back is kept for the next, not fetched from the
kernel page by page, which took a third of their time."""
READ, LATER = "read", "later"
ANONYMOUS, LOGINS, VISITORS = "anonymous", "logins", "visitor"
_SESSION, _USER = "s#", "u#"
_PREFIXES: Mapping[str, str] = {"session": _SESSION, "user": _USER}
"""What the keys of these scopes begin with; until they are written, the ids alone will do."""
_PREFIX_BYTES = 2


@dataclass(frozen=True)
class Plan:
    """What workers have to know."""

    scopes: Mapping[str, ScopeFeatures]
    parts: Sequence[Sequence[Part]]
    columns: Sequence[str]
    as_of: float
    seats: int
    output: str

    def folder(self, scope: str) -> tuple[pafs.FileSystem, str]:
        """Where the values of a scope are written."""
        return located(f"{self.output.rstrip('/')}/{scope.replace(':', '_')}")


def write_night(
    spark: SparkSession, files: Sequence[str], features: FeatureSet, as_of: float, output: str
) -> dict[str, int]:
    """Write a folder for each scope under `output`: `key`, `as_of` and one column a feature; null is missing.

    Returns how many events were read, how many of them are later than `as_of`, and how many keys each scope
    has.
    """
    scopes = scopes_of(features)
    spark.sparkContext.environment.update(WORKERS)
    spark.conf.set("spark.sql.execution.arrow.maxRecordsPerBatch", str(BLOCKS_AT_ONCE))
    parts = parts_of(spark, files)
    seats = math.ceil(max(sum(one.events for one in parts), sum(one.items for one in parts)) / AT_A_SEAT)
    plan = Plan(scopes, _shared(parts), lake_columns(scopes.values()), as_of, max(1, seats), output)
    for scope in scopes:
        _empty(plan, scope)
    numbers = spark.range(0, len(plan.parts), 1, max(1, len(plan.parts)))
    told = seated(numbers.mapInArrow(_dealing(plan), SCHEMA), plan.seats).mapInArrow(_adding(plan), SCHEMA)
    if VISITORS in scopes:
        told = seated(told, plan.seats).mapInArrow(_adding_visitors(plan), SCHEMA)
    counts = dict.fromkeys((READ, LATER, *scopes), 0)
    for row in told.collect():
        counts[row["leg"]] += int(row["block"])
    return counts


def schema_of(scope: ScopeFeatures) -> pa.Schema:
    """The columns of a scope's table."""
    features = [(one.name, _type(one.kind)) for one in scope.features]
    return pa.schema([("key", pa.string()), ("as_of", pa.float64()), *features])


def _type(kind: object) -> pa.DataType:
    if isinstance(kind, LastN):
        return pa.list_(pa.string())
    return pa.map_(pa.string(), pa.float64()) if isinstance(kind, PerValue) else pa.float64()


def _texts_in(schema: pa.Schema) -> list[str]:
    """The columns of a file that hold texts: numbers differ too much for a dictionary to pay."""
    inner = {pa.types.is_list: ".list.element", pa.types.is_map: ".key_value.key", pa.types.is_string: ""}
    return [one.name + end for one in schema for is_such, end in inner.items() if is_such(one.type)]


def _empty(plan: Plan, scope: str) -> None:
    """Make the folder of a scope, without what an earlier run left there; its columns show without a key."""
    system, folder = plan.folder(scope)
    system.create_dir(folder, recursive=True)
    system.delete_dir_contents(folder)
    pq.write_table(schema_of(plan.scopes[scope]).empty_table(), f"{folder}/none.parquet", filesystem=system)


def _shared(parts: Sequence[Part]) -> list[list[Part]]:
    """The parts in heaps that one task reads."""
    heaps: dict[int, list[Part]] = defaultdict(list)
    events = 0
    for one in parts:
        heaps[events // READ_BY_ONE].append(one)
        events += one.events
    return list(heaps.values())


Batches = Iterable[pa.RecordBatch]
Stage = Callable[[Batches], Iterator[pa.RecordBatch]]


def _dealing(plan: Plan) -> Stage:
    """Numbers of parts -> blocks by scope and seat; a session's own rows go where its logins go."""

    def deal(batches: Batches) -> Iterator[pa.RecordBatch]:
        _settled()
        for batch in batches:
            for number in batch.column(0).to_pylist():
                for part in plan.parts[number]:
                    for rows in read(part, plan.columns, DEALT_AT_ONCE):
                        yield from as_rows(_dealt(rows, plan))

    return deal


def _adding(plan: Plan) -> Stage:
    """Blocks of one seat -> all scopes but visitor are written; its rows under the key they end up at."""

    def add(batches: Batches) -> Iterator[pa.RecordBatch]:
        _settled()
        held: dict[str, list[pa.Buffer]] = defaultdict(list)
        here = 0
        for batch in batches:
            passing = pc.is_in(batch.column(0), pa.array([VISITORS, READ, LATER]))
            yield batch.filter(passing)
            for leg, seat, block in from_rows([batch.filter(pc.invert(passing))]):
                held[leg].append(block)
                here = seat
        anonymous, logins = held.pop(ANONYMOUS, []), held.pop(LOGINS, [])
        for leg in list(held):
            yield from as_rows([_written(plan, leg, here, unpacked(held.pop(leg)))])
        if anonymous:
            moved = _moved(unpacked(anonymous), unpacked(logins) if logins else None, here, plan.seats)
            yield from as_rows(moved)

    return add


def _adding_visitors(plan: Plan) -> Stage:
    """Blocks of one seat -> the visitors' values are written; how many keys others have is there already."""

    def add(batches: Batches) -> Iterator[pa.RecordBatch]:
        _settled()
        held, here = [], 0
        for batch in batches:
            of_visitors = pc.equal(batch.column(0), VISITORS)
            yield batch.filter(pc.invert(of_visitors))
            for _, here, block in from_rows([batch.filter(of_visitors)]):  # noqa: B007  # the seat of all
                held.append(block)
        if held:
            yield from as_rows([_written(plan, VISITORS, here, unpacked(held))])

    return add


def _settled() -> None:
    """Spare this worker what PySpark does around every task: it reads the lists of its zipped packages anew,
    once for each package that was imported from them, and has all that they made searched for garbage.
    """
    finders = sys.path_importer_cache
    zipped = [path for path, finder in finders.items() if isinstance(finder, zipimporter)]
    for path in zipped:
        del finders[path]  # comes back when something is imported from there
    if zipped:
        gc.freeze()


def _told(leg: str, seat: int, number: int) -> Block:
    """A number for the driver, as a block."""
    return leg, seat, pa.py_buffer(str(number).encode())


def _dealt(rows: EventRows, plan: Plan) -> Iterator[Block]:
    table = pa.table(rows.read(plan.scopes.values()))
    past = table["time"].to_numpy() <= plan.as_of
    yield _told(READ, 0, len(rows))
    yield _told(LATER, 0, int(np.count_nonzero(table["time"].to_numpy() > plan.as_of)))
    counts = past & rows.counting
    sessions = seats_of(rows.columns["session_id"], plan.seats)
    for scope in plan.scopes.values():
        chosen = np.flatnonzero(counts & _of_types(table["event_type"].chunk(0), scope))
        mine = table.select(scope.columns)
        if scope.name == VISITORS:
            yield from _dealt_visitors(rows, mine, chosen, np.flatnonzero(past), sessions, plan.seats)
        elif scope.name in VISITOR_SCOPES:
            key = rows.columns[f"{scope.name}_id"]
            chosen = chosen[truths(pc.is_valid(key))[chosen]]
            places = sessions if scope.name == "session" else seats_of(key, plan.seats)
            yield from dealt(scope.name, _keyed(mine, key), chosen, places[chosen])
        else:
            yield from _dealt_by_word(rows, scope, mine, chosen, plan.seats)


def _of_types(types: Words, scope: ScopeFeatures) -> NDArray[np.bool_]:
    return among(types, scope.types) if scope.types else np.ones(len(types), np.bool_)


def _keyed(table: pa.Table, key: pa.Array) -> pa.Table:
    return table.add_column(0, "key", key)


def _dealt_visitors(
    rows: EventRows,
    table: pa.Table,
    chosen: NDArray[Any],
    past: NDArray[Any],
    sessions: NDArray[np.int64],
    seats: int,
) -> Iterator[Block]:
    """Each row to the seat of its key, and who logged in at a session to the seat of the session.

    An event that may not be folded still tells who logged in.
    """
    key, session = rows.columns["visitor"], rows.columns["session_id"]
    places = seats_of(key, seats, without=_PREFIX_BYTES)
    anonymous = truths(pc.starts_with(key, _SESSION))
    keyed = _keyed(table, key)
    for leg, mine in ((VISITORS, chosen[~anonymous[chosen]]), (ANONYMOUS, chosen[anonymous[chosen]])):
        yield from dealt(leg, keyed, mine, places[mine])
    known = truths(pc.starts_with(key, _USER)) & truths(pc.is_valid(session))
    logins = past[known[past]]
    told = pa.table({"key": session, "user": key, "time": rows.columns["time"]})
    yield from dealt(LOGINS, told, logins, sessions[logins])


def _dealt_by_word(
    rows: EventRows, scope: ScopeFeatures, table: pa.Table, chosen: NDArray[Any], seats: int
) -> Iterator[Block]:
    """To the seat of the text that is their key; an impression once for each item that it showed."""
    if scope.name == "item":
        keys, chosen = _with_shown(rows, chosen)
    else:
        keys = rows.text(scope.name.removeprefix("by:")).take(pa.array(chosen))
    known = np.flatnonzero(codes_of(keys) >= 0)
    keys, chosen = keys.take(pa.array(known)), chosen[known]
    places = seats_of(keys.dictionary, seats)[codes_of(keys)]
    yield from dealt(scope.name, _keyed(table.take(pa.array(chosen)), keys), np.arange(len(chosen)), places)


def _with_shown(rows: EventRows, chosen: NDArray[Any]) -> tuple[Words, NDArray[Any]]:
    """An item for each of the chosen rows, and for each item that one of them showed; whose row each is."""
    taken = np.zeros(len(rows), np.bool_)
    taken[chosen] = True
    parents, items = rows.shown
    listed = np.flatnonzero(taken[parents])
    own = rows.text("item_id").take(pa.array(chosen))
    both = pa.chunked_array([own, items.take(pa.array(listed))]).unify_dictionaries().combine_chunks()
    return both, np.concatenate([chosen, parents[listed]])


def _moved(anonymous: pa.Table, logins: pa.Table | None, here: int, seats: int) -> Iterator[Block]:
    """What sessions of a seat did without an account, under the user that each first logged in as, if any."""
    sessions = anonymous["key"].combine_chunks().dictionary_encode()
    place, keys = codes_of(sessions), sessions.dictionary
    places = np.full(len(keys), here)
    if logins is not None:
        known, users = _first_logins(keys, logins)
        places[known] = seats_of(users, seats, without=_PREFIX_BYTES)
        where = np.arange(len(keys))
        where[known] = len(keys) + np.arange(len(known))
        keys = pa.concat_arrays([keys, users]).take(pa.array(where))
    chosen = anonymous.set_column(0, "key", keys.take(pa.array(place)))
    yield from dealt(VISITORS, chosen, np.arange(len(chosen)), places[place])


def _first_logins(sessions: pa.Array, logins: pa.Table) -> tuple[NDArray[Any], pa.Array]:
    """The places of the sessions that logged in, and each one's first user; users at once go by name."""
    ids = pc.utf8_slice_codeunits(sessions, len(_SESSION))
    at = pc.index_in(logins["key"].combine_chunks(), value_set=ids)
    rows = np.flatnonzero(truths(pc.is_valid(at)))
    session, time = at.take(pa.array(rows)).to_numpy(), logins["time"].to_numpy()[rows]
    earliest = np.flatnonzero(time == least(time, session, len(sessions))[session])
    users = logins["user"].combine_chunks().take(pa.array(rows[earliest]))
    each = pa.table({"session": session[earliest], "user": users})
    each = each.take(pc.sort_indices(each, [("session", "ascending"), ("user", "ascending")]))
    known = each["session"].to_numpy()
    first = np.flatnonzero(np.diff(known, prepend=-1))
    return known[first], each["user"].combine_chunks().take(pa.array(first))


def _written(plan: Plan, leg: str, seat: int, table: pa.Table) -> Block:
    """Write the values of the keys of a seat, whose rows these are; tried again it writes the same file."""
    scope = plan.scopes[leg]
    values = _values(scope, table, plan.as_of)
    system, folder = plan.folder(leg)
    with system.open_output_stream(f"{folder}/part-{seat:05d}.parquet") as stream:
        pq.write_table(values, stream, store_schema=False, use_dictionary=_texts_in(values.schema))
    return _told(leg, seat, len(values))


def _values(scope: ScopeFeatures, table: pa.Table, as_of: float) -> pa.Table:
    keys = of_used_words(words(table["key"].combine_chunks()))
    events = _columns(scope, table, keys)
    found = scope.values(events, len(keys.dictionary), as_of)
    names = keys.dictionary
    if scope.name in _PREFIXES:
        names = pc.binary_join_element_wise(_PREFIXES[scope.name], names, "")
    columns = [names, pa.array(np.full(len(names), as_of)), *map(_as_arrow, found.values())]
    return pa.table(columns, names=["key", "as_of", *found])


def _columns(scope: ScopeFeatures, table: pa.Table, keys: pa.DictionaryArray) -> EventColumns:
    """The rows as arrays; those of one key in order of time, where the order matters."""
    text_names, number_names = scope.reads
    time = _numbers(table["time"])
    texts = {name: _text(table[text_column(name)]) for name in text_names}
    texts |= {"event_type": _text(table["event_type"]), "hour": TextColumn.hours(time)}
    numbers = {name: _numbers(table[number_column(name)]) for name in number_names}
    if scope.name == "item":
        texts["item_id"], numbers["impressions"] = _text(keys), np.ones(len(table))
    key = TextColumn(keys.indices.to_numpy().astype(np.int64), ())
    events = EventColumns(key, time, np.zeros(len(table), np.int64), texts, numbers)
    return _in_order(events, table["event_id"]) if scope.in_order else events


def _in_order(events: EventColumns, ids: pa.ChunkedArray) -> EventColumns:
    """The rows by key and time; where two of a key have one time, their ids say which came last."""
    order = _by_group(np.argsort(events.time), events.key.codes)
    key, time = events.key.codes[order], events.time[order]
    same = np.concatenate([[False], (key[1:] == key[:-1]) & (time[1:] == time[:-1])])[: len(order)]
    tied = order[same | np.append(same[1:], False)[: len(order)]]
    if len(tied):
        names = TextColumn.of(ids.take(pa.array(tied)).to_pylist())
        events.order[tied] = names.places[names.codes]
        order = np.lexsort((events.order, events.time, events.key.codes))
    return events.take(order)


def _by_group(rows: NDArray[Any], groups: NDArray[np.int64]) -> NDArray[Any]:
    """The rows by their groups; those of one group stay in their order."""
    mine = groups[rows]
    small = mine.max(initial=0) < 1 << 16  # numbers of 16 bits are sorted by radix
    return rows[np.argsort(mine.astype(np.uint16) if small else mine, kind="stable")]


def _text(column: pa.Array | pa.ChunkedArray) -> TextColumn:
    array = words(column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column)
    return TextColumn(codes_of(array), tuple(array.dictionary.to_pylist()))


def _numbers(column: pa.ChunkedArray) -> Floats:
    return np.asarray(column.to_numpy(), np.float64)  # what is null comes as nan


def _as_arrow(values: Floats | Entries) -> pa.Array:
    """Numbers, lists or maps of a feature; nan and unknown are null."""
    if not isinstance(values, Entries):
        return pa.array(values, from_pandas=True)
    offsets = pa.array(values.ends.astype(np.int32), mask=np.append(~values.known, False))
    texts = pa.array(values.words.words, pa.string()).take(pa.array(values.words.codes))
    if values.numbers is None:
        return pa.ListArray.from_arrays(offsets, texts)
    return pa.MapArray.from_arrays(offsets, texts, pa.array(values.numbers))
