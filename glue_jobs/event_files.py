"""The lake's Parquet files -> the columns that features are made from, by Arrow in Spark's Python workers.

Spark's own reader makes rows, which would become Arrow once more to reach Python: over a lake with maps that
costs more than all that is done with them there.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pyspark.sql import SparkSession

from glue_jobs.lake import events_table, version_sql
from narrows.errors import InvalidInput
from narrows.events import EXCLUDING_TYPES
from narrows.features.columns import Floats, Truths
from narrows.features.scan import ScopeFeatures, number_column, text_column
from narrows.features.selection import FIELDS

Words = pa.DictionaryArray
"""Texts as places in a list of those that differ."""
_NUMBERS: Mapping[str, str] = MappingProxyType(
    {"event_value": "value", "position": "position", "impressions": "impression"}
)
"""The fields that are numbers, and the columns of the lake that hold them."""
_ALWAYS = ("consent", "marks", "event_type", "time", "visitor", "session_id")
_REPEATED = ("event_type", "item_id", "surface", "query", "texts.", "numbers.key_value.key", "impression.")
"""Columns that say the same texts again and again, by how their names begin."""
_TEXT = pa.string()
_TYPES: Mapping[str, pa.DataType] = MappingProxyType(
    {
        "consent": pa.bool_(),
        "marks": pa.list_(_TEXT),
        "time": pa.float64(),
        "value": pa.float64(),
        "position": pa.int32(),
        "impression": pa.list_(_TEXT),
        "texts": pa.map_(_TEXT, _TEXT),
        "numbers": pa.map_(_TEXT, pa.float64()),
    }
)
"""Of the columns that are no text."""


@dataclass(frozen=True)
class Part:
    """A row group of a file: how many events it has, and for how many items they count, shown ones too."""

    path: str
    group: int
    events: int
    items: int


def located(path: str) -> tuple[pafs.FileSystem, str]:
    """The file system of a path or an address, and the path there; Hadoop has names of its own for S3.

    Credentials of S3 are the environment's, and its address where AWS_ENDPOINT_URL says one.
    """
    scheme, separator, rest = path.partition("://")
    if not separator or scheme == "file":
        return pafs.LocalFileSystem(), os.path.abspath(rest or path.removeprefix("file:"))
    if scheme not in ("s3", "s3a", "s3n"):
        raise InvalidInput("path", path, "give a path of this machine or one that begins with s3://")
    endpoint = os.environ.get("AWS_ENDPOINT_URL")
    if endpoint:
        return pafs.S3FileSystem(endpoint_override=endpoint), rest
    system, found = pafs.FileSystem.from_uri(f"s3://{rest}")  # asks in which region the bucket is
    return system, found


def lake_files(spark: SparkSession, as_of: datetime | int | None = None) -> list[str]:
    """The files that hold the lake's events: as they are, as of a moment, or in one snapshot by its number.

    A file of deletions, which a reader of files would have to apply, is refused with a remedy; the lake's
    jobs write none.
    """
    table = events_table(spark)
    columns = "content, file_format, file_path"
    of_table = f"{table}.files {version_sql(as_of)}"
    rows = spark.sql(f"SELECT {columns} FROM {of_table} ORDER BY file_path").collect()  # noqa: S608  # a name
    for row in rows:
        if row["content"] or row["file_format"].upper() != "PARQUET":
            raise InvalidInput(
                f"{table}.files, {os.path.basename(row['file_path'])}",
                f"content {row['content']}, {row['file_format']}",
                "set write.delete.mode, write.update.mode and write.merge.mode of the table to copy-on-write "
                "and rewrite its files as Parquet with rewrite_data_files and delete-file-threshold 1",
            )
    return [row["file_path"] for row in rows]


def files_in(folder: str) -> list[str]:
    """The Parquet files that lie in a folder."""
    system, path = located(folder)
    paths = (one.path for one in system.get_file_info(pafs.FileSelector(path)))
    return sorted(one for one in paths if one.endswith(".parquet"))


def parts_of(spark: SparkSession, files: Sequence[str]) -> list[Part]:
    """The row groups of the files, by what their footers say; Spark reads those of many files at once."""
    if not files:
        return []

    def groups(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            rows = [one for number in batch.column(0).to_pylist() for one in _groups(files[number], number)]
            yield pa.RecordBatch.from_pylist(rows, _FOOTER)

    at_once = min(len(files), 4 * spark.sparkContext.defaultParallelism)
    found = spark.range(0, len(files), 1, at_once).mapInArrow(
        groups, "file int, place int, events long, items long"
    )
    return [Part(files[file], place, events, items) for file, place, events, items in sorted(found.collect())]


_FOOTER = pa.schema({"file": pa.int32(), "place": pa.int32(), "events": pa.int64(), "items": pa.int64()})


def _groups(path: str, number: int) -> Iterator[dict[str, int]]:
    system, path = located(path)
    metadata = pq.read_metadata(path, filesystem=system)
    shown = [place for place, leaf in enumerate(_leaves(metadata)) if leaf.startswith("impression.")]
    for place in range(metadata.num_row_groups):
        group = metadata.row_group(place)
        items = sum(group.column(one).num_values for one in shown) or group.num_rows  # an empty list has one
        yield {"file": number, "place": place, "events": group.num_rows, "items": items}


def _leaves(metadata: pq.FileMetaData) -> list[str]:
    return [metadata.schema.column(place).path for place in range(metadata.num_columns)]


def lake_columns(scopes: Iterable[ScopeFeatures]) -> list[str]:
    """The columns of the lake that these features read."""
    columns = dict.fromkeys(_ALWAYS)
    for one in scopes:
        texts, numbers = one.reads
        of_key = {"item": ["item_id"], "user": ["user_id"]}.get(one.name, [])
        of_key = [one.name[3:]] if one.name.startswith("by:") else of_key
        columns |= dict.fromkeys([_text_from(name) for name in (*of_key, *texts)])
        columns |= dict.fromkeys([_NUMBERS.get(name, "numbers") for name in numbers])
        columns |= dict.fromkeys(["event_id"] if one.in_order else [])
        columns |= dict.fromkeys(["impression"] if one.name == "item" else [])
    return list(columns)


def read(part: Part, columns: Sequence[str], at_once: int) -> Iterator[EventRows]:
    """The rows of a part, so many at a time; a column that the file is too old to have is null."""
    system, path = located(part.path)
    with system.open_input_file(path) as opened:
        metadata = pq.read_metadata(opened)
        there = {one.partition(".")[0] for one in _leaves(metadata)}
        chosen = [one for one in columns if one in there]
        table = _group(opened, metadata, part.group, chosen)
        for begin in range(0, len(table), at_once):
            some = table.slice(begin, at_once)
            arrays = {one: some.column(one).combine_chunks() for one in chosen}
            old = {one: pa.nulls(len(some), _TYPES.get(one, _TEXT)) for one in columns if one not in there}
            yield EventRows({**arrays, **old})


def _group(opened: Any, metadata: pq.FileMetaData, group: int, columns: Sequence[str]) -> pa.Table:
    """A row group, with the texts that repeat as places in the file's own lists of them."""
    repeated = [one for one in _leaves(metadata) if one.startswith(_REPEATED)]
    try:
        file = pq.ParquetFile(opened, metadata=metadata, read_dictionary=repeated)
        return file.read_row_group(group, columns=columns, use_threads=False)
    except OSError:  # Arrow makes no places of texts told by their differences; any other error comes again
        return pq.ParquetFile(opened, metadata=metadata).read_row_group(
            group, columns=columns, use_threads=False
        )


@dataclass(frozen=True, eq=False)
class EventRows:
    """Rows of the lake, by column; all have one length."""

    columns: Mapping[str, pa.Array]

    def __len__(self) -> int:
        return len(self.columns["time"])

    @property
    def counting(self) -> Truths:
        """Which may be folded: without consent, with a mark, or of a type that only hides items, none is."""
        hides = among(words(self.columns["event_type"]), EXCLUDING_TYPES, unknown=True)
        counts = truths(self.columns["consent"]) & ~hides
        counts[_entries(self.columns["marks"])[0]] = False
        return counts

    def read(self, scopes: Iterable[ScopeFeatures]) -> dict[str, Any]:
        """What the features of the scopes read, under the names that `ScopeFeatures.columns` has."""
        found: dict[str, Any] = {"event_type": words(self.columns["event_type"])}
        found |= {name: self.columns[name] for name in ("time", "event_id") if name in self.columns}
        for one in scopes:
            texts, numbers = one.reads
            found |= {text_column(name): self.text(name) for name in texts if text_column(name) not in found}
            missing = [name for name in numbers if number_column(name) not in found]
            found |= {number_column(name): pa.array(self.number(name)) for name in missing}
        return found

    def text(self, name: str) -> Words:
        """A field or property as text; null where it is empty, a number or not there."""
        if name in _NUMBERS:
            return words(pa.nulls(len(self), _TEXT))
        return words(self.columns[name] if name in FIELDS else self._texts.of(name))

    def number(self, name: str) -> Floats:
        """A field or property as number; nan where it is a text or not there."""
        if name == "impressions":
            return np.maximum(1, np.diff(self.columns["impression"].offsets.to_numpy())).astype(np.float64)
        if name in FIELDS and name not in _NUMBERS:
            return np.full(len(self), np.nan)
        found = self.columns[_NUMBERS[name]] if name in _NUMBERS else self._numbers.of(name)
        return np.asarray(found.to_numpy(zero_copy_only=False), np.float64)

    @property
    def shown(self) -> tuple[NDArray[np.int64], Words]:
        """The items that events without an item list, each once an event: (the row of each, the item)."""
        rows, values = _entries(self.columns["impression"])
        items = words(values)
        codes, width = codes_of(items), len(items.dictionary) + 1
        free = ~truths(pc.is_valid(self.columns["item_id"]))
        each = np.sort((rows * width + codes)[free[rows] & (codes >= 0)])
        each = each[np.flatnonzero(np.diff(each, prepend=-1))]
        of_each = pa.array((each % width).astype(np.int32))
        return each // width, pa.DictionaryArray.from_arrays(of_each, items.dictionary)

    @cached_property
    def _texts(self) -> _Properties:
        return _Properties.of_maps(self.columns["texts"])

    @cached_property
    def _numbers(self) -> _Properties:
        return _Properties.of_maps(self.columns["numbers"])


@dataclass(frozen=True, eq=False)
class _Properties:
    """All that the maps of a column hold: whose each is, under which name, and what it is."""

    size: int
    rows: NDArray[np.int64]
    names: NDArray[np.int64]
    known: Sequence[str]
    values: pa.Array

    @staticmethod
    def of_maps(column: pa.MapArray) -> _Properties:
        rows, keys = _entries(column, "keys")
        named = words(keys)
        values = _entries(column, "items")[1]
        return _Properties(len(column), rows, codes_of(named), named.dictionary.to_pylist(), values)

    def of(self, name: str) -> pa.Array:
        """What each row has under this name."""
        places = np.full(self.size, -1)
        if name in self.known:
            at = np.flatnonzero(self.names == self.known.index(name))
            places[self.rows[at]] = at
        return self.values.take(pa.array(places, mask=places < 0))


def words(column: pa.Array) -> Words:
    """Texts as places in a list of those that differ; an empty one is null."""
    array = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    empty = pc.index(array.dictionary, "").as_py()
    if empty < 0:
        return array
    codes = codes_of(array)
    places = pa.array(codes.astype(np.int32), mask=(codes < 0) | (codes == empty))
    return pa.DictionaryArray.from_arrays(places, array.dictionary)


def codes_of(column: Words) -> NDArray[np.int64]:
    """The place of each text in the list of those that differ, -1 for null."""
    codes = pc.fill_null(column.indices, -1) if column.null_count else column.indices
    return np.asarray(codes.to_numpy(zero_copy_only=False)).astype(np.int64)


def among(column: Words, texts: Iterable[str], *, unknown: bool = False) -> Truths:
    """Whether each text is one of these; of null that is `unknown`."""
    wanted = set(texts)
    marks = np.array([*(word in wanted for word in column.dictionary.to_pylist()), unknown], np.bool_)
    return np.asarray(marks[codes_of(column)], np.bool_)


def truths(column: pa.Array) -> Truths:
    """A column of truths; null is none."""
    filled = pc.fill_null(column, False) if column.null_count else column
    return np.asarray(filled.to_numpy(zero_copy_only=False), np.bool_)


def _entries(column: pa.ListArray | pa.MapArray, of: str = "values") -> tuple[NDArray[np.int64], pa.Array]:
    """All that the lists hold, and the row of each."""
    ends = column.offsets.to_numpy()
    children = getattr(column, of).slice(ends[0], ends[-1] - ends[0])
    return np.repeat(np.arange(len(column)), np.diff(ends)), children


def _text_from(name: str) -> str:
    """The column of the lake in which a text lies."""
    return name if name in FIELDS and name not in _NUMBERS else "texts"
