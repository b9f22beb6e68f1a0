"""Blocks: tables of Arrow that Spark moves whole. Thousands of events are one row, and shuffled as one.

A block has a leg, which says what it is for, and a seat: what has to meet sits in the same seat. In a Python
worker a table's rows are dealt to their seats by numpy; nothing is done for one event alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # the name that Spark's own documentation uses

SCHEMA = "leg string, seat int, block binary"
Block = tuple[str, int, pa.Buffer]
_ODD = np.uint64(0x9E3779B97F4A7C15)
_FIRST_BYTES = np.array([(1 << 8 * number) - 1 for number in range(9)], np.uint64)
_SIZE = 8  # bytes that say how long the block is when it is unpacked
CODEC = "zstd"
"""Blocks are moved five times and more, between processes and through files: that costs more than this."""
_TOGETHER = 1 << 20
"""Bytes of blocks that are handed to Spark at once: a batch for each would cost more than it holds."""


def dealt(leg: str, table: pa.Table, rows: NDArray[Any], seats: NDArray[Any]) -> Iterator[Block]:
    """The chosen rows as a block for each seat; `seats` has that of each chosen row."""
    if not len(rows):
        return
    order = np.argsort(seats.astype(np.uint16), kind="stable")  # of 16 bits: sorted by radix
    ordered = seats[order]
    chosen = table.take(pa.array(rows[order]))
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    for start, end in zip(starts, [*starts[1:], len(ordered)], strict=True):
        yield leg, int(ordered[start]), packed(_trimmed(chosen.slice(start, end - start)))


def packed(table: pa.Table) -> pa.Buffer:
    """A table as bytes, packed as a whole: beginning anew with each column costs more than packing it."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    plain = sink.getvalue()
    sized = np.int64(plain.size).tobytes() + pa.compress(plain, CODEC, asbytes=True)
    return pa.py_buffer(sized)


def unpacked(blocks: Sequence[pa.Buffer]) -> pa.Table:
    """The rows of several blocks as one table, each column in one piece."""
    tables = [pa.ipc.open_stream(_plain(one)).read_all() for one in blocks]
    return pa.concat_tables(tables).unify_dictionaries().combine_chunks()


def _plain(block: pa.Buffer) -> pa.Buffer:
    size = int(np.frombuffer(block[:_SIZE], np.int64)[0])
    return pa.decompress(block[_SIZE:], size, CODEC)


def as_rows(blocks: Iterable[Block]) -> Iterator[pa.RecordBatch]:
    """Blocks as rows for Spark."""
    held: list[Block] = []
    size = 0
    for block in blocks:
        held.append(block)
        size += len(block[2])
        if size >= _TOGETHER:
            yield _rows(held)
            held, size = [], 0
    if held:
        yield _rows(held)


def from_rows(batches: Iterable[pa.RecordBatch]) -> Iterator[Block]:
    """Spark's rows as blocks."""
    for batch in batches:
        legs, seats, blocks = (batch.column(place) for place in range(3))
        for leg, seat, block in zip(legs, seats, blocks, strict=True):
            yield leg.as_py(), seat.as_py(), block.as_buffer()


def seats_of(texts: pa.Array, seats: int, *, without: int = 0) -> NDArray[np.int64]:
    """A seat for each text, the same wherever it is met; nothing is hashed of its first `without` bytes."""
    if not len(texts):
        return np.empty(0, np.int64)
    _, offsets, data = texts.buffers()
    bounds = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1].astype(np.int64)
    padded = np.concatenate([np.frombuffer(data or b"", np.uint8), np.zeros(8, np.uint8)])
    lengths = np.diff(bounds)
    hashed = _hashes_of_one_length if np.all(lengths == lengths[0]) else _hashes
    return np.asarray(hashed(padded, bounds, without) % np.uint64(seats), np.int64)


def _hashes(padded: NDArray[np.uint8], bounds: NDArray[np.int64], without: int) -> NDArray[np.uint64]:
    """Of each text between the bounds, by eight bytes at a time."""
    starts = np.minimum(bounds[:-1] + without, bounds[1:])
    left = bounds[1:] - starts
    eights = np.ndarray(len(padded) - 7, "<u8", padded, strides=(1,))  # the eight bytes from each place on
    found = left.astype(np.uint64)
    while np.any(left > 0):
        rows = np.flatnonzero(left > 0)  # whose text goes on
        found[rows] = _mixed(found[rows], eights[starts[rows]] & _FIRST_BYTES[np.minimum(left[rows], 8)])
        starts, left = starts + 8, left - 8
    return found


def _hashes_of_one_length(
    padded: NDArray[np.uint8], bounds: NDArray[np.int64], without: int
) -> NDArray[np.uint64]:
    """The same in a third of the time: what stands at one place of all texts is looked at as it lies."""
    number, length, begin = len(bounds) - 1, int(bounds[1] - bounds[0]), int(bounds[0])
    found = np.full(number, max(0, length - without), np.uint64)
    for place in range(without, length, 8):
        word = np.ndarray(number, "<u8", padded, offset=begin + place, strides=(length,))
        found = _mixed(found, word & _FIRST_BYTES[min(length - place, 8)])
    return found


def _mixed(found: NDArray[np.uint64], word: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mixed = (found ^ word) * _ODD
    return mixed ^ (mixed >> np.uint64(32))


def seated(blocks: DataFrame, seats: int) -> DataFrame:
    """The blocks with those of each seat in one part of their own."""
    numbers = F.array(*map(F.lit, _numbers(blocks.sparkSession, seats)))
    return blocks.repartition(seats, numbers[F.col("seat")])


def _rows(blocks: Sequence[Block]) -> pa.RecordBatch:
    legs, seats, contents = zip(*blocks, strict=True)
    ends = np.cumsum([0, *map(len, contents)]).astype(np.int32)
    buffers = [None, pa.py_buffer(ends), pa.py_buffer(b"".join(contents))]
    columns = [
        pa.array(legs),
        pa.array(seats, pa.int32()),
        pa.Array.from_buffers(pa.binary(), len(legs), buffers),
    ]
    return pa.RecordBatch.from_arrays(columns, names=["leg", "seat", "block"])


def _trimmed(table: pa.Table) -> pa.Table:
    """The same without the words of its dictionaries that no row of it has."""
    for place, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            column = table.column(place).combine_chunks()
            if len(column.dictionary) > len(column) // 4:
                table = table.set_column(place, field.name, of_used_words(column))
    return table


def of_used_words(column: pa.DictionaryArray) -> pa.DictionaryArray:
    """The same texts, with a dictionary of those that are there."""
    codes = pc.fill_null(column.indices, -1).to_numpy(zero_copy_only=False)
    used = np.zeros(len(column.dictionary) + 1, np.bool_)
    used[codes] = True
    used[-1] = False
    places = (np.cumsum(used) - 1).astype(np.int32)
    codes = pa.array(places[codes], mask=codes < 0)
    return pa.DictionaryArray.from_arrays(codes, column.dictionary.take(pa.array(np.flatnonzero(used))))


def _numbers(spark: SparkSession, seats: int) -> list[int]:
    """For each seat a number that Spark's own hash puts there: no two share a part, and none is empty."""
    tried = f"sequence(0, {32 * seats + 64})"
    row = spark.sql(f"SELECT transform({tried}, n -> pmod(hash(n), {seats})) AS seats").first()
    found = {seat: number for number, seat in reversed(list(enumerate(row["seats"] if row else [])))}
    return [found[seat] for seat in range(seats)]
