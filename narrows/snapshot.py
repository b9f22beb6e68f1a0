"""The catalogue as columns over rows: a memory-mapped base and the deltas that follow it.

A base is a folder: `manifest.json` with version, dtypes and checksums, one `.npy` per column with spare
lines at the end, and the index of ids. Delta N is one `.npz` next to it that names the version it follows.
A row, once given to an item, stays the item's. Rows are given out before they are published, so one may come
before those below it: until they follow, these have no item.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from narrows.encoding import Array, Values, encoded, missing, padded, recoded
from narrows.errors import InvalidInput, SnapshotError
from narrows.ids import IdIndex

FORMAT = 1
NO_WORDS: Mapping[str, tuple[str, ...]] = MappingProxyType({})
MANIFEST = "manifest.json"
DAMAGE = (  # what numpy and zipfile raise on files that are not what they should be
    OSError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    SyntaxError,
    zipfile.BadZipFile,
    zlib.error,
)

Rows = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class ItemSnapshot:
    """All items of one version; `columns` hold `size` lines each, `capacity` more fit before a new base.

    A category column holds int32 codes, -1 for none, of which `vocabulary` tells the words. A column of
    several categories holds the first code; its companion `<name>_all`, int32[size, 4], holds up to four,
    filled up with -1.
    """

    version: str
    size: int
    capacity: int
    columns: Mapping[str, Array]
    vocabularies: Mapping[str, tuple[str, ...]]
    full: Mapping[str, Array]
    base_ids: IdIndex
    later_ids: IdIndex

    def rows(self, ids: Sequence[str]) -> Rows:
        """int32[len(ids)], -1 where the id is unknown."""
        rows = self.base_ids.find(ids)
        unknown = np.flatnonzero(rows < 0)
        if len(unknown) and len(self.later_ids):
            rows[unknown] = self.later_ids.find([ids[one] for one in unknown.tolist()])
        return rows

    def ids(self, rows: Rows | Sequence[int]) -> list[str]:
        """The id of each row; SnapshotError for a row that no item has."""
        ids = [self._index_of(int(row)).id_of(int(row)) for row in rows]
        if "" in ids:
            raise SnapshotError(f"row {int(rows[ids.index('')])} has no item yet in version {self.version!r}")
        return ids

    def ids_by_row(self) -> list[str | None]:
        """The id of every row below `size`, None for a row without an item."""
        return [self._index_of(row).id_of(row) or None for row in range(self.size)]

    def holds(self, rows: Rows) -> NDArray[np.bool_]:
        """Whether each row has an item."""
        there = (rows >= 0) & (rows < self.size)
        return np.asarray(
            [
                ok and bool(self._index_of(int(row)).id_of(int(row)))
                for ok, row in zip(there, rows, strict=True)
            ],
            np.bool_,
        )

    def take(self, rows: Rows, names: Sequence[str]) -> dict[str, Array]:
        """These columns for these rows; a row of -1 reads as missing: nan, or the code -1."""
        unknown = rows < 0
        if not unknown.any():
            return {name: self.columns[name][rows] for name in names}
        taken = {name: self.columns[name][np.where(unknown, 0, rows)] for name in names}
        for column in taken.values():
            column[unknown] = missing(column.dtype)
        return taken

    def vocabulary(self, name: str) -> tuple[str, ...]:
        """The words of a category column, by code; () for a column of numbers."""
        return self.vocabularies.get(name) or self.vocabularies.get(name.removesuffix("_all"), ())

    def apply(self, delta_path: Path) -> ItemSnapshot:
        """The snapshot after the delta.

        The delta is checked whole before anything changes. Lines of items that were here already change
        under the old snapshot too, which a request in flight may see; its rows stay valid.
        """
        meta, arrays = _read_delta(delta_path)
        if meta["follows"] != self.version:
            raise SnapshotError(
                f"{delta_path}: follows version {meta['follows']!r}, but this snapshot is {self.version!r}; "
                "apply the deltas in order, or open the newest base"
            )
        _refuse_misfits(delta_path, meta, arrays, self)
        for name in meta["columns"]:
            self.full[name][arrays["rows"]] = arrays[f"column:{name}"]
        size = _size_after(self.size, arrays["rows"])
        vocabularies = {
            name: (*words, *meta["words"].get(name, ())) for name, words in self.vocabularies.items()
        }
        return replace(
            self,
            version=meta["version"],
            size=size,
            columns={name: column[:size] for name, column in self.full.items()},
            vocabularies=vocabularies,
            later_ids=self._with_ids(meta["new_ids"], arrays["rows"], size),
        )

    def _with_ids(self, new_ids: Sequence[str], rows: Rows, size: int) -> IdIndex:
        """The ids of the rows behind the base with these, which belong to the last of the rows."""
        if not new_ids:
            return self.later_ids
        first = self.later_ids.first
        ids: list[str | None] = [None] * (size - first)
        ids[: self.size - first] = [self.later_ids.id_of(row) or None for row in range(first, self.size)]
        for item_id, row in zip(new_ids, rows[len(rows) - len(new_ids) :].tolist(), strict=True):
            ids[row - first] = item_id
        return IdIndex.build(ids, first)

    def _index_of(self, row: int) -> IdIndex:
        if not 0 <= row < self.size:
            raise SnapshotError(f"row {row} has no item in version {self.version!r}, which holds {self.size}")
        return self.base_ids if row < self.later_ids.first else self.later_ids


def write_base(
    directory: Path,
    ids: Sequence[str | None],
    columns: Mapping[str, Values],
    *,
    version: str,
    spare: int,
    vocabularies: Mapping[str, tuple[str, ...]] = NO_WORDS,
) -> None:
    """Write a base of these items in this order, with room for `spare` more.

    An id of None is a row without an item. A column of strings becomes codes, one of lists of strings becomes
    codes and `<name>_all`; None is missing. A column of which `vocabularies` tells the words holds codes
    already. The manifest is written last, so an interrupted write leaves nothing that opens.
    """
    directory.mkdir(parents=True, exist_ok=True)
    index = IdIndex.build(ids)
    capacity = len(ids) + spare
    files: dict[str, dict[str, Any]] = {}
    words_of = dict(vocabularies)
    for name, values in columns.items():
        if len(values) != len(ids):
            raise InvalidInput(
                f"columns.{name}", len(values), f"give one value for each of the {len(ids)} ids"
            )
        coded = name in vocabularies
        stored, words = ({name: np.asarray(values)}, ()) if coded else encoded(name, values, ())
        if words:
            words_of[name] = words
        for part, array in stored.items():
            files[f"{part}.npy"] = _stored(directory, f"{part}.npy", padded(array, capacity))
    for part, array in index.arrays().items():
        files[f"ids-{part}.npy"] = _stored(directory, f"ids-{part}.npy", array)
    names = sorted(file[:-4] for file in files if not file.startswith("ids-"))
    manifest = {
        "format": FORMAT,
        "version": version,
        "size": len(ids),
        "capacity": capacity,
        "columns": names,
        "vocabularies": words_of,
        "files": files,
    }
    pending = directory / f"{MANIFEST}.pending"
    pending.write_text(json.dumps(manifest, ensure_ascii=False), "utf-8")
    os.replace(pending, directory / MANIFEST)


def open_base(directory: Path, *, verify: bool = True) -> ItemSnapshot:
    """Map a base into memory; SnapshotError when a file is missing, damaged or not of this format."""
    manifest = _read_manifest(directory)
    arrays = {file: _mapped(directory / file, facts, verify) for file, facts in manifest["files"].items()}
    size, capacity = int(manifest["size"]), int(manifest["capacity"])
    full = {name: arrays[f"{name}.npy"] for name in manifest["columns"]}
    ids = IdIndex.over({part: arrays[f"ids-{part}.npy"] for part in ("blob", "offsets", "hashes", "order")})
    return ItemSnapshot(
        version=manifest["version"],
        size=size,
        capacity=capacity,
        columns={name: column[:size] for name, column in full.items()},
        vocabularies={name: tuple(words) for name, words in manifest["vocabularies"].items()},
        full=full,
        base_ids=ids,
        later_ids=IdIndex.build([], first=size),
    )


def open_snapshot(directory: Path, *, verify: bool = True) -> ItemSnapshot:
    """The base with every delta that lies next to it, in order."""
    snapshot = open_base(directory, verify=verify)
    for path in delta_paths(directory):
        snapshot = snapshot.apply(path)
    return snapshot


def delta_paths(directory: Path) -> list[Path]:
    """The deltas of a base, in order of their numbers."""
    return sorted(directory.glob("delta-*.npz"))


def delta_path(directory: Path, number: int) -> Path:
    """Where delta `number`, counted from 1, of a base belongs."""
    return directory / f"delta-{number:06d}.npz"


def followed(path: Path) -> str:
    """The version that a delta follows; SnapshotError where it cannot be read."""
    meta, _ = _read_delta(path)
    return str(meta["follows"])


def write_delta(
    path: Path,
    snapshot: ItemSnapshot,
    ids: Sequence[str],
    columns: Mapping[str, Values],
    *,
    version: str,
    vocabularies: Mapping[str, tuple[str, ...]] = NO_WORDS,
    new_rows: Sequence[int] | None = None,
) -> None:
    """Write what changes `snapshot` into `version`: new items, and new values of items that it has.

    Columns are given as to `write_base`. Only they change; a new item reads as missing in the others. New
    items get the rows behind the last, or `new_rows`, in the order in which they stand among the ids.
    SnapshotError when they do not fit into the spare lines, or would take another item's row.
    """
    rows = snapshot.rows(ids)
    order = np.argsort(rows < 0, kind="stable")  # new items last
    rows, count = rows[order], int((rows < 0).sum())
    new_ids = [ids[one] for one in order[len(order) - count :].tolist()]
    given = np.arange(snapshot.size, snapshot.size + count) if new_rows is None else np.asarray(new_rows)
    rows[len(rows) - count :] = given
    _refuse_rows(snapshot, rows, count)
    IdIndex.build(ids)  # refuses an id that is malformed or given twice
    arrays: dict[str, Array] = {"rows": rows}
    words_added: dict[str, tuple[str, ...]] = {}
    for name, values in columns.items():
        known = snapshot.vocabulary(name)
        if name in vocabularies:
            codes, words = recoded(np.asarray(values), vocabularies[name], known)
            changed = {name: codes}
        else:
            changed, words = encoded(name, values, known)
        words_added[name] = words[len(known) :]
        for part, array in changed.items():
            arrays[f"column:{part}"] = _as_stored(snapshot, part, array)[order]
    names = sorted(name.removeprefix("column:") for name in arrays if name != "rows")
    meta = {
        "format": FORMAT,
        "follows": snapshot.version,
        "version": version,
        "new_ids": new_ids,
        "columns": names,
        "words": {name: words for name, words in words_added.items() if words},
    }
    _write_zip(path, meta, arrays)


def _size_after(size: int, rows: Rows) -> int:
    return max(size, int(rows.max(initial=-1)) + 1)


def _refuse_rows(snapshot: ItemSnapshot, rows: Rows, new: int) -> None:
    """SnapshotError unless the last `new` rows are free and there is a line for each."""
    given = rows[len(rows) - new :]
    if _size_after(snapshot.size, given) > snapshot.capacity:
        raise SnapshotError(
            f"version {snapshot.version!r} has room for {snapshot.capacity - snapshot.size} more items, "
            f"not {max(new, int(given.max()) + 1 - snapshot.size)}; write a new base"
        )
    if snapshot.holds(given).any() or len(np.unique(given)) < new or (given < 0).any():
        raise SnapshotError(f"rows {given.tolist()[:5]} belong to other items; rows are never given twice")


def _as_stored(snapshot: ItemSnapshot, name: str, array: Array) -> Array:
    if name not in snapshot.full:
        raise InvalidInput(f"columns.{name}", name, f"use a column of the base: {', '.join(snapshot.full)}")
    dtype = snapshot.full[name].dtype
    if dtype.kind == "i" and array.dtype.kind == "f":
        array = np.where(np.isnan(array), missing(dtype), array)
    return array.astype(dtype)


def _stored(directory: Path, file: str, array: Array) -> dict[str, Any]:
    contiguous = np.ascontiguousarray(array)
    np.save(directory / file, contiguous, allow_pickle=False)
    return {"dtype": contiguous.dtype.str, "shape": contiguous.shape, "sha256": _sha256(contiguous)}


def _sha256(array: Array) -> str:
    return hashlib.sha256(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data).hexdigest()


def _read_manifest(directory: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((directory / MANIFEST).read_text("utf-8"))
        if manifest["format"] == FORMAT:
            return manifest
        found = manifest["format"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SnapshotError(
            f"{directory / MANIFEST}: cannot be read ({error}); write the base again"
        ) from error
    raise SnapshotError(f"{directory / MANIFEST}: format {found!r}, this code reads {FORMAT}; write it again")


def _mapped(path: Path, facts: Mapping[str, Any], verify: bool) -> Array:
    """The array of a file, changed only in this process's memory."""
    try:
        array: Array = np.load(path, mmap_mode="c" if facts["shape"][0] else None, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise SnapshotError(f"{path}: cannot be read ({error}); fetch or write the base again") from error
    if array.dtype.str != facts["dtype"] or list(array.shape) != list(facts["shape"]):
        raise SnapshotError(f"{path}: is not the array that the manifest describes; fetch the base again")
    if verify and _sha256(array) != facts["sha256"]:
        raise SnapshotError(f"{path}: does not match its checksum; fetch the base again")
    return np.asarray(array)


def _write_zip(path: Path, meta: Mapping[str, Any], arrays: Mapping[str, Array]) -> None:
    """An .npz whose bytes depend on its content only, with `meta` and its checksums as JSON inside."""
    sums = {name: _sha256(array) for name, array in arrays.items()}
    text = json.dumps({**meta, "sha256": sums}, ensure_ascii=False).encode()
    pending = path.with_suffix(".pending")
    with zipfile.ZipFile(pending, "w") as archive:
        for name, array in {"meta": np.frombuffer(text, np.uint8), **arrays}.items():
            buffer = io.BytesIO()
            np.lib.format.write_array(buffer, np.ascontiguousarray(array), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), buffer.getvalue())
    os.replace(pending, path)


def _read_delta(path: Path) -> tuple[dict[str, Any], dict[str, Array]]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        meta: dict[str, Any] = json.loads(arrays.pop("meta").tobytes())
        damaged = [name for name, array in arrays.items() if meta["sha256"][name] != _sha256(array)]
    except DAMAGE as error:
        raise SnapshotError(f"{path}: cannot be read ({error}); fetch the delta again") from error
    if damaged or meta.get("format") != FORMAT:
        raise SnapshotError(
            f"{path}: damaged or of another format; fetch the delta again, or open the newest base"
        )
    return meta, arrays


def _refuse_misfits(
    path: Path, meta: Mapping[str, Any], arrays: Mapping[str, Array], snapshot: ItemSnapshot
) -> None:
    rows, new = arrays["rows"], len(meta["new_ids"])
    fits = _size_after(snapshot.size, rows) <= snapshot.capacity and (not len(rows) or rows.min() >= 0)
    fits = fits and new <= len(rows) and not snapshot.holds(rows[len(rows) - new :]).any()
    known = set(meta["columns"]) <= set(snapshot.full)
    if not fits or not known or any(len(array) != len(rows) for array in arrays.values()):
        raise SnapshotError(f"{path}: does not fit version {snapshot.version!r}; open the newest base")


def snapshot_of(ids: Sequence[str], version: str) -> ItemSnapshot:
    """A snapshot in memory that knows nothing of its items but their ids."""
    return ItemSnapshot(
        version, len(ids), len(ids), {}, {}, {}, IdIndex.build(ids), IdIndex.build([], first=len(ids))
    )
