"""Changed items -> the vector index: what has a vector is found, what is gone is not."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from narrows.errors import BundleError, EncoderUnavailable, RequestRefused, StoreUnavailable
from narrows.freshening import ItemEncoder, ItemEntry, item_texts
from narrows.index_filters import of_items
from narrows.settings import Catalogue
from narrows.vector_index import HALF_BUILT, IndexGone, IndexVersions, VectorIndex, opened

OTHER_SIZE = "its vector has another size than the index"
ALIKE = 10
"""From so many items on, a batch of which not one can be put in says more about us than about them."""

Act = Callable[[Sequence[ItemEntry]], dict[str, str]]
"""Changes an index; item id -> why the index refused it."""
NetworkOf = Callable[[str], ItemEncoder | None]
"""The item network of a version, None for none; BundleError where it cannot be read."""


@dataclass(frozen=True)
class Indexed:
    """What became of a batch; `refused`: item id -> why it is not in an index.

    `waiting` items are not in all indexes: there is none yet, and whoever builds one puts them in, or the
    network of one is not to be had, and they come into it when they change.
    """

    upserted: int = 0
    deleted: int = 0
    waiting: int = 0
    refused: Mapping[str, str] = field(default_factory=dict)


def index_items(
    entries: Sequence[ItemEntry],
    versions: IndexVersions,
    catalogue: Catalogue,
    network_of: NetworkOf,
) -> Indexed:
    """Put the last state of each item into every whole index; the same again changes nothing.

    So the model that is about to be live, and the one to go back to, have what comes meanwhile. An item has
    a vector of one version; of the others `network_of(version)` makes one from its id and its text. A deleted
    item, and one of which a network knows nothing, is taken out.

    StoreUnavailable or IndexGone is raised where the index does not answer or goes meanwhile, and where many
    items fail alike, which is no fault of theirs, their error: then the batch is to be given again.
    """
    newest = list({entry.item_id: entry for entry in entries}.values())
    states = versions.states() if newest else {}
    whole = [opened(versions, version) for version, state in states.items() if state != HALF_BUILT]
    parts = [_indexed(index, newest, catalogue, network_of) for index in whole if index is not None]
    if not parts:
        return Indexed(waiting=sum(bool(entry.vector) and not entry.deleted for entry in newest))
    refused = {item_id: why for part in parts for item_id, why in part.refused.items()}
    upserted = {item_id for part in parts for item_id in part.upserted}
    waiting = {item_id for part in parts for item_id in part.waiting}
    deleted = {item_id for part in parts for item_id in part.deleted} - upserted - waiting - set(refused)
    return Indexed(len(upserted - set(refused)), len(deleted), len(waiting), refused)


@dataclass(frozen=True)
class _Part:
    """What became of a batch in one index, by item id."""

    upserted: Sequence[str]
    deleted: Sequence[str]
    waiting: Collection[str]
    refused: Mapping[str, str]


def _indexed(
    index: VectorIndex, entries: Sequence[ItemEntry], catalogue: Catalogue, network_of: NetworkOf
) -> _Part:
    vectors, waiting = _vectors(entries, index.version, catalogue, network_of)
    placed = [replace(entry, vector=vectors[entry.item_id]) for entry in entries if entry.item_id in vectors]
    gone = [entry for entry in entries if entry.item_id not in vectors and entry.item_id not in waiting]
    refused = _isolated(placed, partial(_upserted, index, catalogue))
    if gone:
        refused |= _isolated(gone, partial(_taken_out, index))
        index.refresh()
    kept = [[one.item_id for one in part if one.item_id not in refused] for part in (placed, gone)]
    return _Part(kept[0], kept[1], waiting, refused)


def _vectors(
    entries: Sequence[ItemEntry], version: str, catalogue: Catalogue, network_of: NetworkOf
) -> tuple[dict[str, bytes], Collection[str]]:
    """(item id -> its vector of this version, the items whose vector is not to be had now)."""
    there = [entry for entry in entries if not entry.deleted]
    vectors = {one.item_id: one.vector for one in there if one.vector and one.vector_version == version}
    others = [one.item_id for one in there if one.item_id not in vectors]
    if not others:
        return vectors, ()
    texts = item_texts([one.values for one in there if one.item_id not in vectors], catalogue)
    try:
        network = network_of(version)
        if network is None:
            return vectors, others
        found = np.asarray(network.embed(others, texts), np.float32)
    except (BundleError, EncoderUnavailable):  # for as long as it takes no other index may be held up
        return vectors, others
    made = {item_id: one.tobytes() for item_id, one in zip(others, found, strict=True) if one.any()}
    return vectors | made, ()


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
        problems = index.upsert(rows, vectors, of_items(index.filters, right, catalogue))
        refused |= {right[place].item_id: str(error) for place, error in problems.items()}
        index.refresh()
    return refused
