"""Every key's values as of one moment, for all scopes from one scan of the lake, by the arrays of each kind.

Spark reads the few columns that features are made from and hands them to Python workers by Arrow. There every
row is dealt to the seat of its key, in blocks of thousands; sessions that logged in hand their rows on to
their users; and what sits together is added up by numpy. Nothing is done for one event alone, and no event is
a row of Spark's after the scan.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from zlib import crc32

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyspark.sql import DataFrame
from pyspark.sql import types as T

from glue_jobs.blocks import SCHEMA, Block, as_rows, dealt, from_rows, of_used_words, packed, seated, unpacked
from narrows.features.columns import Entries, EventColumns, Floats, TextColumn
from narrows.features.kinds import LastN, PerValue
from narrows.features.registry import VISITOR_SCOPES, FeatureSet
from narrows.features.scan import (
    ScopeFeatures,
    key_column,
    number_column,
    scan_sql,
    scopes_of,
    seat_column,
    text_column,
)

AT_A_SEAT = 250_000
"""How many events sit together: what a worker holds at once, some 200 MB."""
DEALT_AT_ONCE = 250_000
ANONYMOUS, LOGINS, VISITORS = "anonymous", "logins", "visitor"
_SESSION, _USER = "s#", "u#"


@dataclass(frozen=True)
class Plan:
    """What workers have to know."""

    scopes: Mapping[str, ScopeFeatures]
    as_of: float
    seats: int


class Night:
    """The values of every scope; each is a table with `key`, `as_of` and one column a feature."""

    def __init__(self, events: DataFrame, features: FeatureSet, as_of: float, count: int) -> None:
        """`count` is how many events there are, roughly: it says in how many parts they are added up."""
        self.scopes = scopes_of(features)
        self._results = self._made(events, Plan(self.scopes, as_of, max(1, math.ceil(count / AT_A_SEAT))))

    def values(self, scope: str) -> DataFrame:
        """One row for each key that has an event; null is missing."""
        mine = self._results.where(f"leg = '{scope}'")
        return mine.mapInArrow(_opened, schema_of(self.scopes[scope]))

    def forget(self) -> None:
        """Give back what is kept of them."""
        self._results.unpersist()

    def _made(self, events: DataFrame, plan: Plan) -> DataFrame:
        events.createOrReplaceTempView("narrows_lake")
        text = scan_sql(plan.scopes.values(), "narrows_lake", plan.as_of, plan.seats)
        dealt_out = events.sparkSession.sql(text).mapInArrow(_dealing(plan), SCHEMA)
        added = seated(dealt_out, plan.seats).mapInArrow(_adding(plan), SCHEMA)
        if VISITORS in plan.scopes:
            added = seated(added, plan.seats).mapInArrow(_adding_visitors(plan), SCHEMA)
        return added.persist()


def schema_of(scope: ScopeFeatures) -> T.StructType:
    """The columns of a scope's table."""
    features = [T.StructField(one.name, _type(one.kind)) for one in scope.features]
    return T.StructType(
        [T.StructField("key", T.StringType()), T.StructField("as_of", T.DoubleType()), *features]
    )


def _type(kind: object) -> T.DataType:
    if isinstance(kind, LastN):
        return T.ArrayType(T.StringType())
    return T.MapType(T.StringType(), T.DoubleType()) if isinstance(kind, PerValue) else T.DoubleType()


Batches = Iterable[pa.RecordBatch]
Stage = Callable[[Batches], Iterator[pa.RecordBatch]]


def _dealing(plan: Plan) -> Stage:
    """Rows of the scan -> blocks by scope and seat; a session's own rows go where its logins go."""

    def deal(batches: Batches) -> Iterator[pa.RecordBatch]:
        for table in _gathered(batches, DEALT_AT_ONCE):
            yield from as_rows(_dealt(table, plan))

    return deal


def _adding(plan: Plan) -> Stage:
    """Blocks of one seat -> the values of all scopes but visitor; its rows under the key they end up at."""

    def add(batches: Batches) -> Iterator[pa.RecordBatch]:
        held: dict[str, list[pa.Buffer]] = defaultdict(list)
        here = 0
        for batch in batches:
            of_users = pc.equal(batch.column(0), VISITORS)
            yield batch.filter(of_users)
            for leg, seat, block in from_rows([batch.filter(pc.invert(of_users))]):
                held[leg].append(block)
                here = seat
        anonymous, logins = held.pop(ANONYMOUS, []), held.pop(LOGINS, [])
        for leg in list(held):
            yield from as_rows([(leg, here, _values(plan.scopes[leg], unpacked(held.pop(leg)), plan.as_of))])
        if anonymous:
            yield from as_rows(_moved(unpacked(anonymous), unpacked(logins) if logins else None, here))

    return add


def _adding_visitors(plan: Plan) -> Stage:
    """Blocks of one seat -> the values of the visitors; the other scopes' are there already."""

    def add(batches: Batches) -> Iterator[pa.RecordBatch]:
        held = []
        for batch in batches:
            of_visitors = pc.equal(batch.column(0), VISITORS)
            yield batch.filter(pc.invert(of_visitors))
            held += [block for _, _, block in from_rows([batch.filter(of_visitors)])]
        if held:
            yield from as_rows([(VISITORS, 0, _values(plan.scopes[VISITORS], unpacked(held), plan.as_of))])

    return add


def _opened(batches: Batches) -> Iterator[pa.RecordBatch]:
    for _, _, block in from_rows(batches):
        yield from pa.ipc.open_stream(block)


def _gathered(batches: Batches, rows: int) -> Iterator[pa.Table]:
    """The batches as tables of about so many rows; texts are held as places among those that differ."""
    held: list[pa.RecordBatch] = []
    for batch in batches:
        held.append(batch)
        if sum(one.num_rows for one in held) >= rows:
            yield _table(held)
            held = []
    if held:
        yield _table(held)


def _table(batches: list[pa.RecordBatch]) -> pa.Table:
    table = pa.Table.from_batches(batches).combine_chunks()
    for place, field in enumerate(table.schema):
        if field.name == "event_type" or field.name.startswith(text_column("")):
            table = table.set_column(place, field.name, pc.dictionary_encode(table.column(place)))
    return table


def _dealt(table: pa.Table, plan: Plan) -> Iterator[Block]:
    counts = _truths(table["counts"])
    for scope in plan.scopes.values():
        rows = np.flatnonzero(counts & _among(table["event_type"], scope.types))
        if scope.name == VISITORS:
            yield from _dealt_visitors(table, rows, scope)
        elif scope.name in VISITOR_SCOPES:
            rows = rows[_truths(pc.is_valid(table[scope.key]))[rows]]
            seats = table[seat_column(scope.name)].to_numpy()[rows]
            yield from dealt(scope.name, _keyed(table.select([scope.key, *scope.columns])), rows, seats)
        else:
            yield from _dealt_by_word(table, rows, scope, plan.seats)


def _keyed(table: pa.Table) -> pa.Table:
    return table.rename_columns(["key", *table.column_names[1:]])


def _dealt_visitors(table: pa.Table, rows: NDArray[Any], scope: ScopeFeatures) -> Iterator[Block]:
    """Each row to the seat of its key, and who logged in at a session to the seat of the session."""
    key, session = key_column(VISITORS), key_column("session")
    seats, sessions = (table[seat_column(name)].to_numpy() for name in (VISITORS, "session"))
    anonymous = _truths(pc.starts_with(table[key], _SESSION))
    users = rows[~anonymous[rows]]
    yield from dealt(VISITORS, _keyed(table.select([key, *scope.columns])), users, seats[users])
    theirs = rows[anonymous[rows]]
    yield from dealt(ANONYMOUS, _keyed(table.select([key, *scope.columns])), theirs, seats[theirs])
    logins = np.flatnonzero(_truths(pc.starts_with(table[key], _USER)) & _truths(pc.is_valid(table[session])))
    chosen = table.select([session, key, "time", seat_column(VISITORS)])
    yield from dealt(LOGINS, _keyed(chosen), logins, sessions[logins])


def _dealt_by_word(table: pa.Table, rows: NDArray[Any], scope: ScopeFeatures, seats: int) -> Iterator[Block]:
    """To the seat of the text that is their key; an impression once for each item that it showed."""
    keys = table[scope.key].combine_chunks()
    if scope.name == "item":
        keys, rows = _with_shown(keys, table["shown"].combine_chunks(), rows)
    else:
        keys = keys.take(pa.array(rows))
    known = np.flatnonzero(_truths(pc.is_valid(keys)))
    keys, rows = keys.take(pa.array(known)), rows[known]
    places = np.array([crc32(word.encode()) % seats for word in keys.dictionary.to_pylist()], np.int64)
    chosen = table.select(scope.columns).take(pa.array(rows)).add_column(0, "key", keys)
    yield from dealt(scope.name, chosen, np.arange(len(rows)), places[keys.indices.to_numpy()])


def _with_shown(
    own: pa.DictionaryArray, shown: pa.ListArray, rows: NDArray[Any]
) -> tuple[pa.DictionaryArray, NDArray[Any]]:
    """An item for each of the rows, and for each item that one of them showed; and whose row each is."""
    taken = np.zeros(len(own), np.bool_)
    taken[rows] = True
    parents = pc.list_parent_indices(shown).to_numpy()
    listed = np.flatnonzero(taken[parents])
    items = pc.list_flatten(shown).take(pa.array(listed)).dictionary_encode()
    both = pa.chunked_array([own.take(pa.array(rows)), items]).unify_dictionaries().combine_chunks()
    return both, np.concatenate([rows, parents[listed]])


def _moved(anonymous: pa.Table, logins: pa.Table | None, seat: int) -> Iterator[Block]:
    """What sessions of a seat did without an account, under the user that each first logged in as, if any."""
    sessions = anonymous["key"].combine_chunks().dictionary_encode()
    place, keys = sessions.indices.to_numpy(), sessions.dictionary
    seats = np.full(len(keys), seat)
    if logins is not None:
        known, first = _first_logins(keys, logins)
        seats[known] = logins[seat_column(VISITORS)].to_numpy()[first]
        where = np.arange(len(keys))
        where[known] = len(keys) + np.arange(len(known))
        users = logins[key_column(VISITORS)].combine_chunks().take(pa.array(first))
        keys = pa.concat_arrays([keys, users]).take(pa.array(where))
    chosen = anonymous.set_column(0, "key", keys.take(pa.array(place)))
    yield from dealt(VISITORS, chosen, np.arange(len(chosen)), seats[place])


def _first_logins(sessions: pa.Array, logins: pa.Table) -> tuple[NDArray[Any], NDArray[Any]]:
    """The places of the sessions that logged in, and of each one's first row; users at once go by name."""
    at = pc.index_in(logins["key"].combine_chunks(), value_set=sessions)
    rows = np.flatnonzero(_truths(pc.is_valid(at)))
    session = at.take(pa.array(rows)).to_numpy()
    user = logins[key_column(VISITORS)].combine_chunks().take(pa.array(rows)).dictionary_encode()
    name = pc.rank(user.dictionary).to_numpy()[user.indices.to_numpy()] if len(rows) else rows
    order = np.lexsort((name, logins["time"].to_numpy()[rows], session))
    ordered = session[order]
    first = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])[: len(ordered)])
    return ordered[first], rows[order][first]


def _values(scope: ScopeFeatures, table: pa.Table, as_of: float) -> pa.Buffer:
    """The values of the keys of these rows, as a block."""
    keys = of_used_words(_encoded(table["key"]))
    events = _columns(scope, table, keys)
    found = scope.values(events, len(keys.dictionary), as_of)
    columns = [keys.dictionary, pa.array(np.full(len(keys.dictionary), as_of))]
    columns += [_as_arrow(one) for one in found.values()]
    return packed(pa.table(columns, names=["key", "as_of", *found]))


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
    order = np.lexsort((events.time, events.key.codes))
    key, time = events.key.codes[order], events.time[order]
    same = np.concatenate([[False], (key[1:] == key[:-1]) & (time[1:] == time[:-1])])[: len(order)]
    tied = order[same | np.append(same[1:], False)[: len(order)]]
    if len(tied):
        names = TextColumn.of(ids.take(pa.array(tied)).to_pylist())
        events.order[tied] = names.places[names.codes]
        order = np.lexsort((events.order, events.time, events.key.codes))
    return events.take(order)


def _text(column: pa.ChunkedArray | pa.Array) -> TextColumn:
    encoded = _encoded(column)
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return TextColumn(codes, tuple(encoded.dictionary.to_pylist()))


def _encoded(column: pa.ChunkedArray | pa.Array) -> pa.DictionaryArray:
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return array if pa.types.is_dictionary(array.type) else array.dictionary_encode()


def _numbers(column: pa.ChunkedArray) -> Floats:
    return np.asarray(column.to_numpy(), np.float64)  # what is null comes as nan


def _truths(column: pa.ChunkedArray | pa.Array) -> NDArray[np.bool_]:
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return np.asarray(pc.fill_null(array, False).to_numpy(zero_copy_only=False), np.bool_)


def _among(column: pa.ChunkedArray, texts: frozenset[str]) -> NDArray[np.bool_]:
    """Whether each is one of these; nothing named is all."""
    return _text(column).among(texts) if texts else np.ones(len(column), np.bool_)


def _as_arrow(values: Floats | Entries) -> pa.Array:
    """Numbers, lists or maps of a feature; nan and unknown are null."""
    if not isinstance(values, Entries):
        return pa.array(values, from_pandas=True)
    offsets = pa.array(values.ends.astype(np.int32), mask=np.append(~values.known, False))
    texts = pa.array(values.words.words, pa.string()).take(pa.array(values.words.codes))
    if values.numbers is None:
        return pa.ListArray.from_arrays(offsets, texts)
    return pa.MapArray.from_arrays(offsets, texts, pa.array(values.numbers))
