"""A model's index of item vectors: whole before the model is live, and no longer there than it is needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from narrows.encoding import Array
from narrows.index_filters import Words, of_snapshot
from narrows.index_settings import FILLED_BY
from narrows.item_details import deleted, rewritten, written
from narrows.item_upsert import DELETED
from narrows.retrieval import Rows
from narrows.snapshot import ItemSnapshot
from narrows.sources.two_tower import TwoTower
from narrows.vector_index import LIVE, WHOLE, IndexVersions, VectorIndex, opened

ROWS_AT_ONCE = 2_000
MOST_ROUNDS = 5
"""A catalogue that never rests is looked at so often; the first time is the one that counts."""
SAID = (DELETED, "text", "title", "brand", *(one.column for one in FILLED_BY.values()))
"""The columns that an item's vector and its filters come from."""


def build_index(
    versions: IndexVersions,
    version: str,
    network: TwoTower,
    newest: Callable[[], ItemSnapshot],
    wait: Callable[[], object],
) -> int:
    """Make the index of a network's version, whole and live; how many items it has. Twice is once.

    Items that came or changed after the training are placed as serving places them: by what is written about
    them, and by their id, where the network knows that.
    `newest()` is the catalogue as it is published by now. Once the index is whole, items that change are
    put into it as they come (`indexing.index_items`); those that changed while it was built are in the
    catalogue after `wait()`, and what is different by then is placed too.
    """
    snapshot, said = newest(), Said()
    index = opened(versions, version)
    if index is None:
        index = versions.create(version, network.params.dimension)
        _place(index, network, snapshot, np.arange(snapshot.size, dtype=np.int32))
        said = Said.by(snapshot)
    versions.promote(version)
    index = versions.open(version)
    for _ in range(MOST_ROUNDS):
        wait()
        snapshot = newest()
        rows = said.changed(snapshot)
        if not len(rows):
            break
        index.delete(_place(index, network, snapshot, rows))
        index.refresh()
        said = Said.by(snapshot)
    return len(index)


def keep_indexes(versions: IndexVersions, live: str, previous: str) -> list[str]:
    """Let the live model's index be the live one, and drop all but it and its predecessor's; the dropped.

    Half-built ones go as well: whoever builds one now does it for a model that cannot be promoted any more.
    """
    _made_live(versions, live)
    states = versions.states()
    dropped = [one for one, state in states.items() if one not in (live, previous) and state != LIVE]
    for version in dropped:
        versions.drop(version)
    return dropped


def undo_index(versions: IndexVersions, version: str, live: str) -> None:
    """Drop the index of a model that is not promoted after all; the live model's is the live one again."""
    _made_live(versions, live)
    if versions.states().get(version) != LIVE:
        versions.drop(version)


def _made_live(versions: IndexVersions, version: str) -> None:
    if versions.states().get(version) == WHOLE:
        versions.promote(version)


@dataclass(frozen=True, eq=False)
class Said:
    """What a catalogue said of its items; by default nothing, of none."""

    size: int = 0
    columns: Mapping[str, Array] = field(default_factory=dict)
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @classmethod
    def by(cls, snapshot: ItemSnapshot) -> Said:
        """A copy, since the next version of a snapshot changes the lines of this one."""
        names = [name for name in SAID if name in snapshot.columns]
        columns = {name: np.array(snapshot.columns[name]) for name in names}
        return cls(snapshot.size, columns, {name: snapshot.vocabulary(name) for name in names})

    def changed(self, snapshot: ItemSnapshot) -> Rows:
        """The rows of which the snapshot says something else, or which are new in it."""
        differs = np.ones(snapshot.size, np.bool_)
        if self._comparable(snapshot):
            differs[: self.size] = False
            for name, before in self.columns.items():
                other = snapshot.columns[name][: self.size] != before
                differs[: self.size] |= other.reshape(self.size, -1).any(axis=1)
        return np.flatnonzero(differs).astype(np.int32)

    def _comparable(self, snapshot: ItemSnapshot) -> bool:
        """Whether a code means the same word in both, and all columns are there in the same shape."""
        return 0 < self.size <= snapshot.size and all(
            name in snapshot.columns
            and snapshot.columns[name].shape[1:] == before.shape[1:]
            and snapshot.vocabulary(name)[: len(self.words[name])] == self.words[name]
            for name, before in self.columns.items()
        )


def _place(index: VectorIndex, network: TwoTower, snapshot: ItemSnapshot, rows: Rows) -> Rows:
    """Put in what the network says of these rows; those of which it says nothing, or that are deleted."""
    source = network.bind(snapshot.rows, snapshot.size)
    later = np.intersect1d(rows, rewritten(snapshot, source.placed))
    source.place(later, written(snapshot, later.tolist()))
    there = ~np.isnan(source.vectors[rows, 0]) & ~deleted(snapshot)[rows]
    placed: Rows = rows[there]
    silent: Rows = rows[~there]
    for start in range(0, len(placed), ROWS_AT_ONCE):
        part = placed[start : start + ROWS_AT_ONCE]
        index.upsert(part, source.vectors[part], _words(index, snapshot, part))
    index.refresh()
    return silent


def _words(index: VectorIndex, snapshot: ItemSnapshot, rows: Rows) -> Words:
    """What searches filter by, from the snapshot's columns."""
    return of_snapshot(index.filters, snapshot, rows)
