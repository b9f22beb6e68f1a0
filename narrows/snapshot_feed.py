"""Changed items -> what changes in the snapshot that serving reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from narrows.catalogue import ItemColumns, item_columns
from narrows.encoding import Array, missing, recoded
from narrows.freshening import ItemEntry
from narrows.item_details import written
from narrows.item_upsert import DELETED
from narrows.settings import Catalogue
from narrows.snapshot import ItemSnapshot, write_base, write_delta
from narrows.text_vectors import TEXT_BYTES, document_names, text_marks

SPARE_ROWS = 8192
"""Lines for new items behind a base: when they are used up, a new base is written."""


@dataclass(frozen=True, eq=False)
class SnapshotChange:
    """What the entries change of a snapshot: columns over `ids`, which stand in rows `rows` int32[n]."""

    ids: tuple[str, ...]
    rows: NDArray[np.int32]
    columns: Mapping[str, Array]
    vocabularies: Mapping[str, tuple[str, ...]]

    def __len__(self) -> int:
        return len(self.ids)

    def fits(self, snapshot: ItemSnapshot) -> bool:
        """Whether the snapshot has lines, and every column, wide enough, for all of it."""
        wide = all(
            name in snapshot.full and column.shape[1:] <= snapshot.full[name].shape[1:]
            for name, column in self.columns.items()
        )
        return wide and int(self.rows.max(initial=-1)) < snapshot.capacity

    def write(self, path: Path, snapshot: ItemSnapshot, version: str) -> None:
        """Write it as the delta that leads from the snapshot to `version`."""
        new = self.rows[snapshot.rows(self.ids) < 0]
        padded = {name: _widened(column, snapshot.full[name]) for name, column in self.columns.items()}
        write_delta(
            path,
            snapshot,
            self.ids,
            padded,
            version=version,
            vocabularies=self.vocabularies,
            new_rows=new.tolist(),
        )


def change_of(entries: Sequence[ItemEntry], snapshot: ItemSnapshot, catalogue: Catalogue) -> SnapshotChange:
    """What is different after these entries, of which the last of an item counts; nothing for what is there.

    A deleted item keeps its row, and that it is deleted. An item that says no time was created when it was
    stored first; of one that was published before that time counts, if it had one.
    """
    newest = list({entry.item_id: entry for entry in entries}.values())
    items = _columns(newest, catalogue)
    rows = np.asarray([entry.row for entry in newest], np.int32)
    columns = {
        name: column for name, column in items.columns.items() if name in snapshot.full or _says(column)
    }
    words = {name: words for name, words in items.vocabularies.items() if name in columns}
    known = snapshot.rows(items.ids)
    if "created_at" in columns:
        columns["created_at"] = _creation(newest, columns["created_at"])
    if "price_position" in columns and "price" in columns:
        columns["price_position"] = _positions(rows, columns, words, snapshot)
    kept = np.flatnonzero((known < 0) | ~_same(rows, columns, words, snapshot))
    return SnapshotChange(
        tuple(items.ids[place] for place in kept.tolist()),
        rows[kept],
        {name: column[kept] for name, column in columns.items()},
        words,
    )


def empty_base(directory: Path, catalogue: Catalogue, *, version: str) -> None:
    """Write a base without items, with every column that the app declares."""
    items = _columns([], catalogue)
    write_base(
        directory, (), items.columns, version=version, spare=SPARE_ROWS, vocabularies=items.vocabularies
    )


def new_base(directory: Path, snapshot: ItemSnapshot, change: SnapshotChange, *, version: str) -> None:
    """Write what the snapshot holds as a base of its own, with room for the change and many more.

    A column that only the change has is added: what is written about the items, and else missing values.
    """
    columns = {
        name: _widened(column, change.columns.get(name, column))
        for name, column in _completed(snapshot, change.columns).items()
    }
    words = {name: snapshot.vocabulary(name) for name in columns if snapshot.vocabulary(name)}
    coded = (*snapshot.vocabularies, *change.vocabularies)
    last = int(change.rows.max(initial=-1)) + 1
    write_base(
        directory,
        snapshot.ids_by_row(),
        columns,
        version=version,
        spare=max(last - snapshot.size, 0) + SPARE_ROWS,
        vocabularies=words | {name: () for name in coded if name not in words},
    )


def _completed(snapshot: ItemSnapshot, wanted: Mapping[str, Array]) -> dict[str, Array]:
    added: dict[str, Array] = {}
    for name in wanted.keys() - snapshot.columns.keys():
        like, size = wanted[name], snapshot.size
        added[name] = np.full((size, *like.shape[1:]), missing(like.dtype), like.dtype)
    if not added.keys().isdisjoint({"text", "text_mark"}):
        texts = written(snapshot, range(snapshot.size))
        added["text_mark"] = text_marks(texts)
        added |= {"text": np.asarray([one.encode() for one in texts], f"S{TEXT_BYTES}")}
    return {**added, **snapshot.columns}


def _columns(entries: Sequence[ItemEntry], catalogue: Catalogue) -> ItemColumns:
    names = (
        *document_names(catalogue), catalogue.seller, catalogue.price, catalogue.time, catalogue.regions,
        *catalogue.attributes,
    )  # fmt: skip
    table = {name: [entry.values.get(name) for entry in entries] for name in names if name}
    items = item_columns({**table, catalogue.id: [entry.item_id for entry in entries]}, catalogue)
    deleted = np.asarray([entry.deleted for entry in entries], np.bool_)
    return replace(items, columns={**items.columns, DELETED: deleted})


def _creation(entries: Sequence[ItemEntry], said: Array) -> Array:
    """When each was created; nan for what is deleted, so that nothing offers it as new."""
    first = [np.nan if entry.first_at is None else entry.first_at for entry in entries]
    created = np.where(np.isnan(said), np.asarray(first, np.float64), said)
    created[[entry.deleted for entry in entries]] = np.nan
    return np.asarray(created, np.float64)


def _positions(
    rows: NDArray[np.int32],
    columns: Mapping[str, Array],
    words: Mapping[str, tuple[str, ...]],
    snapshot: ItemSnapshot,
) -> Array:
    """Where each price stands among those of its category, as `catalogue.price_position` has it.

    The other items' positions are left as they are, until a new base is written from the whole catalogue.
    """
    everywhere = np.zeros(snapshot.size, np.int32)
    groups = snapshot.columns.get("category", everywhere)
    codes = np.zeros(len(rows), np.int32)
    if "category" in columns:
        codes, _ = recoded(columns["category"], words["category"], snapshot.vocabulary("category"))
    prices = snapshot.columns.get("price", np.full(snapshot.size, np.nan))
    found = np.full(len(rows), np.nan, np.float32)
    for place, (row, code, price) in enumerate(zip(rows, codes, columns["price"], strict=True)):
        others = (groups == code) & ~np.isnan(prices)
        others[row : row + 1] = False
        count = int(others.sum())
        if not np.isnan(price):
            below = (prices[others] < price).sum() + (prices[others] <= price).sum()
            found[place] = below / (2.0 * count) if count else 0.5
    return found


def _same(
    rows: NDArray[np.int32],
    columns: Mapping[str, Array],
    words: Mapping[str, tuple[str, ...]],
    snapshot: ItemSnapshot,
) -> NDArray[np.bool_]:
    """Whether the snapshot's lines hold these values already."""
    same = rows < snapshot.size
    inside = np.where(same, rows, 0)
    for name, values in columns.items():
        column = snapshot.full.get(name, np.full((1, *values.shape[1:]), missing(values.dtype), values.dtype))
        if name in words:
            values, _ = recoded(values, words[name], snapshot.vocabulary(name))
        if values.shape[1:] > column.shape[1:]:
            return np.zeros(len(rows), np.bool_)
        there = column[inside] if name in snapshot.full else column
        wanted = _widened(values, column)
        wanted = wanted.astype(column.dtype) if column.dtype.kind == "f" else wanted
        equal = (there == wanted) | ((there != there) & (wanted != wanted))  # nan is missing as well
        same &= equal.reshape(len(rows), -1).all(axis=1)
    return same


def _says(column: Array) -> bool:
    """Whether any value of a column is there."""
    return bool(((column == column) & (column != missing(column.dtype))).any())


def _widened(column: Array, like: Array) -> Array:
    """A column of lists with as many places as another, filled up with what is missing."""
    if column.ndim < 2 or column.shape[1] >= like.shape[1]:
        return column
    wide = np.full((len(column), like.shape[1]), missing(column.dtype), column.dtype)
    wide[:, : column.shape[1]] = column
    return wide
