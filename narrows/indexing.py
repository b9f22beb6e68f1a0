"""Changed items -> the vector index: what has a vector is found, what is gone is not."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from narrows.errors import RequestRefused, StoreUnavailable
from narrows.freshening import ItemEntry
from narrows.item_details import written
from narrows.retrieval import Rows
from narrows.settings import Catalogue
from narrows.snapshot import ItemSnapshot
from narrows.sources.two_tower import TwoTower
from narrows.vector_index import IndexGone, IndexVersions, VectorIndex

ROWS_AT_ONCE = 2_000
OTHER_SIZE = "its vector has another size than the index"
ALIKE = 10
"""From so many items on, a batch of which not one can be put in says more about us than about them."""

Act = Callable[[Sequence[ItemEntry]], dict[str, str]]
"""Changes an index; item id -> why the index refused it."""


@dataclass(frozen=True)
class Indexed:
    """What became of a batch; `refused`: item id -> why it is not in the index.

    `waiting` items have a vector of a version that has no index: whoever builds one puts them in.
    """

    upserted: int = 0
    deleted: int = 0
    waiting: int = 0
    refused: Mapping[str, str] = field(default_factory=dict)


def index_items(entries: Sequence[ItemEntry], versions: IndexVersions, catalogue: Catalogue) -> Indexed:
    """Put the last state of each item into the index of its vector's version; the same again changes nothing.

    A deleted item, and one without a vector, is taken out of the live index. StoreUnavailable or IndexGone is
    raised where the index does not answer or goes meanwhile, and where many items fail alike, which is no
    fault of theirs, their error: then the batch is to be given again.
    """
    newest = list({entry.item_id: entry for entry in entries}.values())
    gone = [entry for entry in newest if entry.deleted or not entry.vector]
    placed: dict[str, list[ItemEntry]] = defaultdict(list)
    for entry in newest:
        if entry.vector and not entry.deleted:
            placed[entry.vector_version].append(entry)
    refused: dict[str, str] = {}
    upserted = waiting = 0
    for version, items in placed.items():
        index = _opened(versions, version)
        if index is None:
            waiting += len(items)
            continue
        found = _isolated(items, partial(_upserted, index, catalogue))
        refused |= found
        upserted += len(items) - len(found)
    deleted, undeleted = _deleted(versions, gone)
    return Indexed(upserted, deleted, waiting, refused | undeleted)


def build_index(versions: IndexVersions, version: str, network: TwoTower, snapshot: ItemSnapshot) -> int:
    """Make the index of a network's version, whole and live; how many items it has. Twice is once.

    Items that came after the training are placed by what is written about them, as serving places them.
    """
    index = _opened(versions, version)
    if index is not None:
        versions.promote(version)
        return len(index)
    source = network.bind(snapshot.rows, snapshot.size)
    later = np.flatnonzero(np.isnan(source.vectors[:, 0])).astype(np.int32)
    later = later[snapshot.holds(later)]
    source.place(later, written(snapshot, later.tolist()))
    rows = np.flatnonzero(~np.isnan(source.vectors[:, 0])).astype(np.int32)
    index = versions.create(version, network.params.dimension)
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = rows[start : start + ROWS_AT_ONCE]
        index.upsert(part, source.vectors[part], _words(index, snapshot, part))
    index.refresh()
    versions.promote(version)
    return len(rows)


def _words(index: VectorIndex, snapshot: ItemSnapshot, rows: Rows) -> dict[str, list[tuple[str, ...]]]:
    """What searches filter by, from the snapshot's columns."""
    columns = {"region": "regions", "category": "category_all"}
    found: dict[str, list[tuple[str, ...]]] = {}
    for name, column in columns.items():
        if name in index.filters and column in snapshot.columns:
            words = snapshot.vocabulary(column)
            codes = snapshot.columns[column][rows].reshape(len(rows), -1)
            found[name] = [tuple(words[code] for code in line if code >= 0) for line in codes.tolist()]
    return found


def _opened(versions: IndexVersions, version: str | None) -> VectorIndex | None:
    try:
        return versions.open(version)
    except IndexGone:
        return None


def _deleted(versions: IndexVersions, entries: Sequence[ItemEntry]) -> tuple[int, dict[str, str]]:
    """(how many are out of the live index, item id -> why it is not)."""
    live = _opened(versions, None) if entries else None
    if live is None:
        return 0, {}
    refused = _isolated(entries, partial(_taken_out, live))
    live.refresh()
    return len(entries) - len(refused), refused


def _isolated(entries: Sequence[ItemEntry], act: Act) -> dict[str, str]:
    """Item id -> why it was refused; one that raises anything but its server's absence is found by halves."""
    unforeseen: list[Exception] = []
    refused = _halved(entries, act, unforeseen)
    if len(unforeseen) == len(entries) >= ALIKE:
        raise unforeseen[0]
    return refused


def _halved(entries: Sequence[ItemEntry], act: Act, unforeseen: list[Exception]) -> dict[str, str]:
    try:
        return act(entries)
    except Exception as error:
        if isinstance(error, IndexGone | StoreUnavailable) and not isinstance(error, RequestRefused):
            raise
        if len(entries) == 1:
            unforeseen.append(error)
            return {entries[0].item_id: f"{type(error).__name__}: {error}"}
    half = len(entries) // 2
    return _halved(entries[:half], act, unforeseen) | _halved(entries[half:], act, unforeseen)


def _taken_out(index: VectorIndex, entries: Sequence[ItemEntry]) -> dict[str, str]:
    index.delete(np.asarray([entry.row for entry in entries], np.int32))
    return {}


def _upserted(index: VectorIndex, catalogue: Catalogue, entries: Sequence[ItemEntry]) -> dict[str, str]:
    """Item id -> why the index refused it; the others are in."""
    right = [entry for entry in entries if len(entry.vector) == 4 * index.dimension]
    refused = {entry.item_id: OTHER_SIZE for entry in entries if entry not in right}
    if right:
        rows = np.asarray([entry.row for entry in right], np.int32)
        vectors = np.stack([np.frombuffer(entry.vector, np.float32) for entry in right])
        problems = index.upsert(rows, vectors, _attributes(index, right, catalogue))
        refused |= {right[place].item_id: str(error) for place, error in problems.items()}
        index.refresh()
    return refused


def _attributes(
    index: VectorIndex, entries: Sequence[ItemEntry], catalogue: Catalogue
) -> dict[str, list[tuple[str, ...]]]:
    """The values that searches filter by, as the catalogue says them."""
    columns = {"region": catalogue.regions, "category": catalogue.categories}
    return {
        name: [tuple(entry.values.get(column) or ()) for entry in entries]
        for name, column in columns.items()
        if column and name in index.filters
    }
