"""Reads files in the layout of Amazon Personalize: a folder with interactions, items and users.

Each is a CSV, a CSV.gz or a Parquet file, or a folder of them. Everything is read as a stream of row batches.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from narrows.column_names import INTERACTION_NAMES, named
from narrows.importing import Column, ImportRefused, Rows

BATCH = 100_000
ROLE_NAMES: dict[str, tuple[str, ...]] = {
    "interactions": (
        "interactions",
        "interaction",
        "events",
        "ratings",
        "sessions",
        "clicks",
        "transactions",
    ),
    "items": ("items", "item", "products", "movies", "catalog", "catalogue", "articles", "item_properties"),
    "users": ("users", "user", "customers", "visitors", "households"),
}
SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz", ".parquet")
_LARGEST_CELL = 4 * 1024 * 1024


@dataclass(frozen=True)
class FoundFiles:
    """The files of each role, and the ones that no role claims."""

    roles: dict[str, list[Path]]
    ignored: list[Path]


@dataclass
class Batch:
    """Rows with the right number of cells, and the lines that have another number or cannot be read."""

    rows: Rows
    broken: list[tuple[int, str]] = field(default_factory=list)
    read_bytes: int = 0

    @property
    def size(self) -> int:
        return len(self.rows.lines) + len(self.broken)


def find_files(path: Path) -> FoundFiles:
    """Which files hold what, by their names, and failing that the interactions by their columns."""
    if not path.exists():
        raise ImportRefused(f"{path}: no such file or folder; give the folder that holds interactions.csv")
    if path.is_file():
        _refuse_other_types([path], path)
        return FoundFiles({"interactions": [path]}, [])
    entries = sorted(one for one in path.iterdir() if not one.name.startswith((".", "_")))
    roles: dict[str, list[Path]] = {}
    ignored: list[Path] = []
    for entry in entries:
        role = _role_of(entry)
        inside = _data_files(entry)
        if role and inside and role not in roles:
            roles[role] = inside
        elif entry.suffix != ".json":  # Avro schemas beside the files
            ignored.append(entry)
    if "interactions" not in roles:
        _find_interactions_by_columns(path, roles, ignored)
    return FoundFiles(roles, ignored)


def _find_interactions_by_columns(path: Path, roles: dict[str, list[Path]], ignored: list[Path]) -> None:
    candidates = [one for one in ignored if one.is_file() and one.name.lower().endswith(SUFFIXES)]
    if not candidates and not roles:
        _refuse_other_types([one for one in ignored if one.is_file()], path)
        raise ImportRefused(
            f"{path}: the folder holds no data; put interactions.csv there (or .csv.gz, .parquet)"
        )
    for one in candidates:
        columns = header(one)
        if all(named(INTERACTION_NAMES[part], columns) for part in ("user_id", "item_id", "timestamp")):
            roles["interactions"] = [one]
            ignored.remove(one)
            return
    raise ImportRefused(
        f"{path}: no interactions among {', '.join(one.name for one in sorted(path.iterdir()))}; give the "
        "file with the columns USER_ID, ITEM_ID, TIMESTAMP the name interactions.csv (or .csv.gz, .parquet)"
    )


def _refuse_other_types(files: Sequence[Path], path: Path) -> None:
    if files and not any(one.name.lower().endswith(SUFFIXES) for one in files):
        names = ", ".join(one.name for one in files[:5])
        raise ImportRefused(f"{path}: cannot read {names}; convert to CSV (also gzipped) or Parquet")


def _role_of(entry: Path) -> str | None:
    stem = entry.name.lower().split(".")[0]
    return next((role for role, names in ROLE_NAMES.items() if stem in names), None)


def _data_files(entry: Path) -> list[Path]:
    files = sorted(entry.rglob("*")) if entry.is_dir() else [entry]
    return [one for one in files if one.is_file() and one.name.lower().endswith(SUFFIXES)]


def header(path: Path) -> list[str]:
    """The names of the file's columns."""
    if path.suffix == ".parquet":
        return list(_parquet(path).schema_arrow.names)
    with _whole(path), _text(path)[0] as text:
        columns = next(csv.reader(text, delimiter=_delimiter(path)), [])
    names = [column.strip() for column in columns]
    if not any(names):
        raise ImportRefused(f"{path}: the file is empty; its first line must name the columns")
    repeated = sorted({one for one in names if names.count(one) > 1})
    if repeated:
        raise ImportRefused(f"{path}: the column {repeated[0]} appears twice; rename one of them")
    return names


def batches(path: Path, columns: Sequence[str], size: int = BATCH) -> Iterator[Batch]:
    """The file's rows by column, in the order of the file."""
    return _parquet_batches(path, size) if path.suffix == ".parquet" else _csv_batches(path, columns, size)


def _csv_batches(path: Path, columns: Sequence[str], size: int) -> Iterator[Batch]:
    csv.field_size_limit(_LARGEST_CELL)
    text, position = _text(path)
    with _whole(path), text:
        reader = csv.reader(text, delimiter=_delimiter(path))
        next(reader, None)
        while batch := _csv_batch(reader, columns, size):
            batch.read_bytes = position()
            yield batch


def _csv_batch(reader: Any, columns: Sequence[str], size: int) -> Batch | None:
    width, lines = len(columns), []
    rows: list[list[str]] = []
    broken: list[tuple[int, str]] = []
    while len(rows) + len(broken) < size:
        before = reader.line_num
        try:
            row = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            broken.append((before + 1, f"unreadable line: {error}"))
            continue
        if len(row) == width:
            lines.append(before + 1)
            rows.append(row)
        elif row:
            broken.append((before + 1, f"{len(row)} cells where the header has {width}"))
    if not rows and not broken:
        return None
    cells = list(zip(*rows, strict=True)) if rows else [()] * width
    return Batch(Rows(lines, dict(zip(columns, cells, strict=True))), broken)


def _text(path: Path) -> tuple[IO[str], Callable[[], int]]:
    """The file's text, and how many of its bytes were read; bytes that are not UTF-8 become surrogates."""
    raw = path.open("rb")
    source: Any = raw
    if path.suffix == ".gz":
        source = gzip.GzipFile(fileobj=raw)
        source.myfileobj = raw  # closed together with it
    return io.TextIOWrapper(source, "utf-8-sig", "surrogateescape", newline=""), raw.tell


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ImportRefused(f"{path}: the compressed file is damaged ({error}); copy it again") from error


def _delimiter(path: Path) -> str:
    """The separator that the header uses: comma, tab or semicolon."""
    with _text(path)[0] as text:
        first = text.readline(65_536)
    return max((",", "\t", ";"), key=first.count)


def _parquet(path: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise ImportRefused(f"{path}: not a Parquet file ({error}); write it again or convert it") from error


def _parquet_batches(path: Path, size: int) -> Iterator[Batch]:
    file = _parquet(path)
    done, total, bytes_ = 0, max(file.metadata.num_rows, 1), path.stat().st_size
    for record_batch in file.iter_batches(batch_size=size):
        columns = {name: _column(record_batch.column(name)) for name in record_batch.schema.names}
        lines = range(done + 1, done + record_batch.num_rows + 1)
        done += record_batch.num_rows
        yield Batch(Rows(lines, columns), read_bytes=bytes_ * done // total)


def _column(array: pa.Array) -> Column:
    """Numbers with fractions as doubles, moments as epoch seconds, lists joined by `|`, all else as texts."""
    kind = array.type
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        micros = pc.cast(pc.cast(array, pa.timestamp("us"), safe=False), pa.int64())
        return np.asarray(pc.divide(pc.cast(micros, pa.float64()), 1e6).to_numpy(zero_copy_only=False))
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return np.asarray(pc.cast(array, pa.float64(), safe=False).to_numpy(zero_copy_only=False))
    if pa.types.is_nested(kind):
        return [_joined(value) for value in array.to_pylist()]
    if pa.types.is_dictionary(kind):
        return _column(array.dictionary_decode())
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return [(value or b"").decode("utf-8", "surrogateescape") for value in array.to_pylist()]
    return [value or "" for value in pc.cast(array, pa.large_string()).to_pylist()]


def _joined(value: object) -> str:
    if isinstance(value, list):
        return "|".join("" if one is None else str(one) for one in value)
    return "" if value is None else json.dumps(value, default=str)
