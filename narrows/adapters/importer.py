"""Imports a folder of interactions, items and users into an app's training data directory."""

from __future__ import annotations

import csv
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from narrows.adapters.personalize_files import Batch, batches, find_files, header
from narrows.column_names import plain_name, sensitive_columns
from narrows.importing import (
    Accepted,
    Column,
    ColumnMap,
    Doubles,
    ImportRefused,
    Tally,
    catalogue_columns,
    clean_texts,
    identifiers,
    joined_values,
    judge_entities,
    judge_interactions,
    map_columns,
    moments_of,
    numbers_of,
    strongest_type,
    texts,
)
from narrows.item_rows import item_sources, judge_items
from narrows.settings import App, Catalogue

Progress = Callable[[Path, int, int], None]
"""Called with a file, how many of its bytes were read, and how many rows so far."""

INTERACTIONS = pa.schema(
    [
        ("user_id", pa.string()),
        ("item_id", pa.string()),
        ("time", pa.float64()),
        ("event_type", pa.string()),
        ("value", pa.float64()),
        ("weight", pa.float64()),
        ("segment", pa.string()),
    ]
)


@dataclass(frozen=True)
class ImportOptions:
    """What the importer was told: columns by part, sensitive columns that may be used, and the present."""

    columns: Mapping[str, str]
    allowed: Collection[str]
    now: float


@dataclass
class _Role:
    """What was found out about the files of one role; this becomes its part of the report."""

    files: list[str] = field(default_factory=list)
    columns: dict[str, str] = field(default_factory=dict)
    inferred: dict[str, str] = field(default_factory=dict)
    read: int = 0
    accepted: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    more: dict[str, Any] = field(default_factory=dict)

    def report(self) -> dict[str, Any]:
        """The part of the report; what was accepted and what was quarantined add up to what was read."""
        quarantined = sum(self.reasons.values())
        counts = {"read": self.read, "accepted": self.accepted, "quarantined": quarantined}
        found = {"files": self.files, "columns": self.columns, "inferred": self.inferred}
        return {**counts, "reasons": dict(self.reasons), **found, **self.more}

    def mapped(self, path: Path, columns: ColumnMap) -> None:
        self.files.append(path.name)
        self.columns.update(columns.columns)
        self.inferred.update(columns.inferred)


def import_files(
    source: Path, app: App, data: Path, options: ImportOptions, progress: Progress
) -> dict[str, Any]:
    """Write `data` anew from the files at `source`; returns the report.

    Refused rows go to `quarantine/` beside `data`. Both folders are replaced together at the end: an import
    that fails leaves the earlier one as it was.
    """
    found = find_files(source)
    fresh = data.with_name(f"{data.name}.new")
    aside = data.with_name("quarantine.new")
    for folder in (fresh, aside):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    run = _Import(app, options, progress, fresh, aside)
    report: dict[str, Any] = {"app": app.name, "source": str(source), "data": str(data)}
    report["interactions"] = run.interactions(found.roles["interactions"])
    for role in ("items", "users"):
        if role in found.roles:
            report[role] = run.entities(role, found.roles[role])
    report["ignored_files"] = [one.name for one in found.ignored]
    report["quarantine"] = str(data.with_name("quarantine"))
    report["items_missing_from_catalogue"] = run.missing_items()
    _replace(fresh, data)
    _replace(aside, data.with_name("quarantine"))
    return report


def _replace(fresh: Path, target: Path) -> None:
    old = target.with_name(f"{target.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if target.exists():
        target.rename(old)
    fresh.rename(target)
    shutil.rmtree(old, ignore_errors=True)


class _Import:
    """One import on its way."""

    def __init__(self, app: App, options: ImportOptions, progress: Progress, data: Path, aside: Path) -> None:
        self._app, self._options, self._progress = app, options, progress
        self._data, self._aside = data, aside
        self._touched: set[str] = set()
        self._catalogue: set[str] | None = None

    def interactions(self, files: Sequence[Path]) -> dict[str, Any]:
        """Judge and write the interactions; refuses files without a single acceptable row."""
        labels = {name: kind.label for name, kind in self._app.events.items()}
        default = strongest_type(labels)
        role, tally, facts = _Role(), Tally(), _Facts()
        with ExitStack() as stack:
            writer = stack.enter_context(pq.ParquetWriter(self._part("interactions"), INTERACTIONS))
            quarantine = stack.enter_context(_Quarantine(self._aside / "interactions.csv"))
            for path in files:
                columns = map_columns("interactions", header(path), path.name, self._options.columns)
                role.mapped(path, columns)
                for batch in self._batches(path, role):
                    accepted, reasons = judge_interactions(
                        batch.rows, columns, labels, default, now=self._options.now, tally=tally
                    )
                    role.reasons.update(quarantine.put(path, batch, reasons))
                    role.accepted += len(accepted.user_ids)
                    facts.add(accepted)
                    writer.write_table(_interactions_table(accepted))
                role.more["ignored_columns"] = list(columns.others)
        if not role.accepted:
            self._refuse_empty(files, role)
        self._touched = facts.items
        typed = "event_type" in role.columns
        role.more |= {
            "event_types": dict(tally.event_types),
            "unknown_event_types": dict(tally.unknown_types),
        }
        role.more |= {"default_event_type": None if typed else default, "time_units": dict(tally.units)}
        role.more |= facts.report()
        return role.report()

    def entities(self, name: str, files: Sequence[Path]) -> dict[str, Any]:
        """Judge and write items or users; sensitive columns go to a file of their own."""
        role = _Role()
        key, kept = self._kept_rows(name, files, role)
        sensitive = sensitive_columns(name, [one for one in kept if one != key], self._options.allowed)
        if sensitive:
            _write_sensitive(
                self._aside / f"sensitive_{name}.csv", {one: kept[one] for one in (key, *sensitive)}
            )
        role.more["sensitive"] = sensitive
        ids = [one or "" for one in identifiers(kept.pop(key))]
        columns: dict[str, Column] = {c: v for c, v in kept.items() if c not in sensitive}
        id_name = "item_id" if name == "items" else "user_id"
        table = {id_name: pa.array(ids, pa.string())}
        if name == "items":
            self._catalogue = set(ids)
            filled = catalogue_columns(list(columns), self._app.catalogue)
            role.more["filled"] = filled
            table |= _catalogue_arrays(columns, filled, self._app.catalogue)
        else:
            table |= {plain_name(column): _array(cells) for column, cells in columns.items()}
        pq.write_table(pa.table(table), self._part(name))
        return role.report()

    def missing_items(self) -> int | None:
        """How many items have interactions but no row in the catalogue; None without a catalogue."""
        return None if self._catalogue is None else len(self._touched - self._catalogue)

    def _kept_rows(self, name: str, files: Sequence[Path], role: _Role) -> tuple[str, dict[str, Column]]:
        seen_ids: set[str] = set()
        seen: set[bytes] = set()
        parts: dict[str, list[Column]] = {}
        key, total = "", 0
        catalogue = self._app.catalogue
        together = [column for path in files for column in header(path)] if name == "items" else []
        sources = item_sources(together, catalogue)
        with _Quarantine(self._aside / f"{name}.csv") as quarantine:
            for path in files:
                columns = map_columns(name, header(path), path.name, self._options.columns)
                role.mapped(path, columns)
                own = next(iter(columns.columns.values()))
                key = key or own
                for batch in self._batches(path, role):
                    bad = judge_items(batch.rows, sources, catalogue)
                    reasons = judge_entities(batch.rows, own, seen_ids, seen, bad)
                    role.reasons.update(quarantine.put(path, batch, reasons))
                    kept = [i for i in range(len(batch.rows.lines)) if i not in reasons]
                    for column, cells in batch.rows.columns.items():
                        place = parts.setdefault(key if column == own else column, [])
                        place.extend([_filler(cells, total - sum(map(len, place)))])
                        place.append(_take(cells, kept))
                    total += len(kept)
        role.accepted = total
        joined = {
            column: _join([*cells, _filler(cells[-1], total - sum(map(len, cells)))])
            for column, cells in parts.items()
        }
        return key, joined or {key: []}

    def _batches(self, path: Path, role: _Role) -> Iterable[Batch]:
        for batch in batches(path, header(path)):
            role.read += batch.size
            yield batch
            self._progress(path, batch.read_bytes, role.read)

    def _part(self, name: str) -> Path:
        folder = self._data / name
        folder.mkdir()
        return folder / "part-0.parquet"

    def _refuse_empty(self, files: Sequence[Path], role: _Role) -> None:
        names = ", ".join(path.name for path in files)
        if not role.read:
            raise ImportRefused(f"{names}: no rows below the header; export the interactions again")
        reasons = ", ".join(f"{reason}: {count}" for reason, count in role.reasons.most_common())
        raise ImportRefused(
            f"{names}: none of the {role.read} rows is usable ({reasons}); check the columns "
            f"{role.columns} or name the right ones with --columns; the rows are in {self._aside}"
        )


@dataclass
class _Facts:
    users: set[str] = field(default_factory=set)
    items: set[str] = field(default_factory=set)
    first: float = np.inf
    last: float = -np.inf

    def add(self, accepted: Accepted) -> None:
        self.users.update(accepted.user_ids)
        self.items.update(accepted.item_ids)
        if len(accepted.times):
            self.first = min(self.first, float(accepted.times.min()))
            self.last = max(self.last, float(accepted.times.max()))

    def report(self) -> dict[str, Any]:
        span = [datetime.fromtimestamp(moment, UTC).isoformat() for moment in (self.first, self.last)]
        return {"users": len(self.users), "items": len(self.items), "first": span[0], "last": span[1]}


class _Quarantine:
    """A CSV file of refused rows: file, line, reason, and the row as it was."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8", errors="backslashreplace", newline="")
        self._rows = csv.writer(self._file)
        self._rows.writerow(["file", "line", "reason", "row"])
        path.chmod(0o600)

    def __enter__(self) -> _Quarantine:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def put(self, path: Path, batch: Batch, reasons: Mapping[int, str]) -> Counter[str]:
        """Write the refused rows of a batch; returns the number for each reason, up to its colon."""
        cells = [texts(column) for column in batch.rows.columns.values()] if reasons else []
        for i, reason in reasons.items():
            row = "|".join(column[i] for column in cells)
            self._rows.writerow([path.name, batch.rows.lines[i], reason, row])
        for line, problem in batch.broken:
            self._rows.writerow([path.name, line, problem, ""])
        counts = Counter(reason.partition(":")[0] for reason in reasons.values())
        if batch.broken:
            counts["wrong number of cells"] = len(batch.broken)
        return counts


def _write_sensitive(path: Path, columns: Mapping[str, Column]) -> None:
    path.touch(mode=0o600)
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(columns)
        rows.writerows(zip(*map(texts, columns.values()), strict=True))


def _interactions_table(accepted: Accepted) -> pa.Table:
    values = pa.array(accepted.values, mask=np.isnan(accepted.values))
    columns = [accepted.user_ids, accepted.item_ids, accepted.times, accepted.event_types]
    last = [values, pa.array(accepted.weights), pa.array(accepted.locations, pa.string())]
    return pa.table([*map(pa.array, columns), *last], schema=INTERACTIONS)


def _catalogue_arrays(
    columns: Mapping[str, Column], filled: Mapping[str, list[str]], catalogue: Catalogue
) -> dict[str, pa.Array]:
    """The catalogue's columns under the names that the app's settings use, then all the others."""
    arrays = {plain_name(column): _array(cells) for column, cells in columns.items()}
    plain = {plain_name(column): column for column in columns}
    parts = (catalogue.categories, catalogue.brand, catalogue.seller, catalogue.price, catalogue.time)
    for wanted in filter(None, parts):
        sources = filled.get(wanted) or ([plain[wanted]] if wanted in plain else [])
        if sources:
            arrays[wanted] = _part_array(wanted, [columns[one] for one in sources], catalogue)
    for wanted in catalogue.text[:1]:
        if wanted in filled:
            arrays[wanted] = pa.array(texts(columns[filled[wanted][0]]), pa.string())
    for wanted in catalogue.text:
        if wanted in plain:
            arrays[wanted] = pa.array(clean_texts(texts(columns[plain[wanted]])), pa.string())
    return arrays


def _part_array(wanted: str, sources: Sequence[Column], catalogue: Catalogue) -> pa.Array:
    if wanted == catalogue.categories:
        return pa.array(joined_values(sources), pa.list_(pa.string()))
    if wanted == catalogue.time:
        return _doubles(moments_of(sources[0]))
    if wanted == catalogue.price:
        numbers = numbers_of(sources[0])
        return _doubles(np.full(len(sources[0]), np.nan) if numbers is None else numbers)
    if wanted == catalogue.seller:  # often a number, which a file's empty cells make 7.0
        return pa.array(clean_texts([one or "" for one in identifiers(sources[0])]), pa.string())
    return pa.array(clean_texts(texts(sources[0])), pa.string())


def _array(cells: Column) -> pa.Array:
    """Whole numbers, numbers or texts, whichever all cells are; empty cells are null."""
    numbers = numbers_of(cells)
    if numbers is None:
        return pa.array(clean_texts(texts(cells)), pa.string())
    present = numbers[~np.isnan(numbers)]
    if np.isinf(present).any() or (np.abs(present) > 2**53).any():
        return pa.array(clean_texts(texts(cells)), pa.string())
    if (present == np.floor(present)).all():
        return pa.array(np.nan_to_num(numbers).astype(np.int64), mask=np.isnan(numbers))
    return _doubles(numbers)


def _doubles(numbers: Doubles) -> pa.Array:
    finite = np.isfinite(numbers)
    return pa.array(np.where(finite, numbers, 0.0), mask=~finite)


def _take(cells: Column, kept: Sequence[int]) -> Column:
    return cells[list(kept)] if isinstance(cells, np.ndarray) else [cells[i] for i in kept]


def _filler(like: Column, n: int) -> Column:
    """Empty cells, for the rows of files that lack the column."""
    return np.full(n, np.nan) if isinstance(like, np.ndarray) else [""] * n


def _join(parts: Sequence[Column]) -> Column:
    if all(isinstance(part, np.ndarray) for part in parts):
        return np.concatenate(parts)
    return [cell for part in parts for cell in texts(part)]
