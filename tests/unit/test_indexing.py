"""From changed items to the vector index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from narrows import networks
from narrows.adapters.items import readable_entries_of
from narrows.adapters.memory_vectors import MemoryIndexVersions
from narrows.errors import BundleError, EncoderUnavailable, InvalidInput, RequestRefused, StoreUnavailable
from narrows.freshening import ItemEntry
from narrows.index_building import build_index, keep_indexes, undo_index
from narrows.indexing import ALIKE, OTHER_SIZE, index_items
from narrows.retrieval import Floats, Rows
from narrows.settings import load_app
from narrows.snapshot import ItemSnapshot, open_base, write_base, write_delta
from narrows.sources import two_tower
from narrows.sources.two_tower import TwoTower
from narrows.text_vectors import fit_hashed_words, text_marks
from narrows.vector_index import Attributes, VectorIndex, Where

CATALOGUE = load_app(Path(__file__).parents[2] / "apps" / "shopnow").catalogue


def entry(item_id: str, row: int, vector: list[float], version: str = "m1", **values: Any) -> ItemEntry:
    data = np.asarray(vector, np.float32).tobytes()
    return ItemEntry(item_id, row, 1, values, vector=data, vector_version=version if vector else "")


@pytest.fixture
def versions() -> MemoryIndexVersions:
    """One live index of two dimensions."""
    made = MemoryIndexVersions()
    made.create("m1", 2)
    made.promote("m1")
    return made


def no_network(version: str) -> None:
    """No model but the one that made the vectors."""


@dataclass(frozen=True)
class Reading:
    """A network to which a text is its length, and the version; it was trained on item "t"."""

    version: str

    def embed(self, item_ids: Sequence[str], texts: Sequence[str]) -> Floats:
        place = 0 if self.version == "m1" else 1
        found = [[len(text), place * bool(text)] for text in texts]
        return np.asarray(found, np.float32) + 9.0 * (np.asarray(item_ids) == "t")[:, None]


def found(index: VectorIndex, where: Where | None = None) -> list[int]:
    rows = index.search(np.ones(2, np.float32), 5, where or Where()).rows[0]
    return [row for row in rows.tolist() if row >= 0]


def test_items_are_found_with_what_they_are_filtered_by(versions: MemoryIndexVersions) -> None:
    """By row, with regions and categories of the item; nothing is asked of a part that it lacks."""
    batch = [
        entry("a", 3, [1, 1], regions=["DE", "AT"], category=["shoes"]),
        entry("b", 4, [2, 2], regions=["US"]),
    ]
    assert index_items(batch, versions, CATALOGUE, no_network).upserted == 2
    index = versions.open("m1")
    assert found(index) == [4, 3]
    assert found(index, Where({"region": frozenset({"AT"})})) == [3]
    assert found(index, Where({"category": frozenset({"shoes"})})) == [3]


def test_the_last_state_counts_and_the_same_again_changes_nothing(versions: MemoryIndexVersions) -> None:
    """Lambda may deliver a batch twice, and an item may change several times in one."""
    batch = [entry("a", 3, [1, 1]), entry("b", 4, [2, 2]), entry("a", 3, [5, 5])]
    for _ in range(2):
        assert index_items(batch, versions, CATALOGUE, no_network).upserted == 2
        assert found(versions.open()) == [3, 4]


def test_what_is_gone_is_found_no_more(versions: MemoryIndexVersions) -> None:
    """Deleted, or without a vector now because its text is gone; one that was trained on stays without."""
    batch = [entry("a", 3, [1, 1]), entry("b", 4, [2, 2]), entry("c", 5, [3, 3]), entry("t", 6, [4, 4])]
    index_items(batch, versions, CATALOGUE, Reading)
    gone = [ItemEntry("a", 3, 2, deleted=True), entry("b", 4, []), entry("t", 6, [])]
    assert index_items(gone, versions, CATALOGUE, Reading).deleted == 2
    assert found(versions.open()) == [6, 5]
    assert index_items([ItemEntry("t", 6, 3, deleted=True)], versions, CATALOGUE, Reading).deleted == 1
    assert found(versions.open()) == [5]


def test_what_cannot_be_read_now_is_not_taken_out(versions: MemoryIndexVersions) -> None:
    """An item without a vector stays where it was found until the network can say what has become of it."""
    index_items([entry("b", 4, [2, 2])], versions, CATALOGUE, Reading)
    indexed = index_items([entry("b", 4, [])], versions, CATALOGUE, no_network)
    assert (indexed.waiting, indexed.deleted) == (1, 0)
    assert found(versions.open()) == [4]


def test_vectors_of_other_versions_never_meet(versions: MemoryIndexVersions) -> None:
    """Without the other networks each vector is in the index of its own version, and the item waits."""
    versions.create("m2", 2)
    versions.promote("m2")
    indexed = index_items(
        [entry("a", 3, [1, 1], "m1"), entry("b", 4, [1, 1], "m2"), entry("c", 5, [1, 1], "m3")],
        versions,
        CATALOGUE,
        no_network,
    )
    assert (indexed.upserted, indexed.waiting) == (2, 3)
    assert (found(versions.open("m1")), found(versions.open("m2"))) == ([3], [4])


def test_every_whole_index_has_every_item(versions: MemoryIndexVersions) -> None:
    """The next model's, before the pointer moves to it, and the former one's, for the day it moves back."""
    versions.create("m2", 2)
    versions.promote("m2")
    versions.create("m3", 2)
    batch = [
        entry("a", 3, [1, 1], "m1", title="red shoes"),
        entry("b", 4, [1, 1], "m2", title="tea"),
        entry("c", 5, [], title="green tea"),
        entry("d", 6, []),
    ]
    indexed = index_items(batch, versions, CATALOGUE, Reading)
    assert (indexed.upserted, indexed.waiting, indexed.deleted) == (3, 0, 1)
    for version, one in (("m1", [5, 4, 3]), ("m2", [3, 5, 4])):
        assert found(versions.open(version)) == one
    gone = [ItemEntry("a", 3, 2, {"title": "red shoes"}, deleted=True)]
    assert index_items(gone, versions, CATALOGUE, Reading).deleted == 1
    for version in ("m1", "m2"):
        assert found(versions.open(version)) == [5, 4]


@pytest.mark.parametrize("error", [BundleError("damaged"), EncoderUnavailable("away")])
def test_a_network_that_cannot_be_had_holds_up_no_other(
    versions: MemoryIndexVersions, error: Exception
) -> None:
    """The item is in the index of its own vector, and told as waiting for the other one's."""
    versions.create("m2", 2)
    versions.promote("m2")

    def damaged(version: str) -> None:
        raise error

    indexed = index_items([entry("a", 3, [1, 1], "m1", title="tea")], versions, CATALOGUE, damaged)
    assert (indexed.upserted, indexed.waiting) == (1, 1)
    assert (found(versions.open("m1")), found(versions.open("m2"))) == ([3], [])


def test_a_vector_that_does_not_fit_is_told_and_the_others_go_on(versions: MemoryIndexVersions) -> None:
    """Of another size, or with a number that is none."""
    batch = [entry("long", 3, [1, 1, 1]), entry("nan", 4, [float("nan"), 1]), entry("good", 5, [1, 1])]
    indexed = index_items(batch, versions, CATALOGUE, no_network)
    assert indexed.upserted == 1
    assert indexed.refused["long"] == OTHER_SIZE
    assert "finite" in indexed.refused["nan"]
    assert found(versions.open()) == [5]


def test_one_item_that_nobody_foresaw_does_not_keep_the_others_out(versions: MemoryIndexVersions) -> None:
    """Only a server that is away may fail a batch: everything else would hold up the stream."""
    batch = [entry(name, row, [1, 1]) for row, name in enumerate("abcde", start=1)]
    batch[2] = entry("c", 3, [1, 1], regions=7)
    indexed = index_items(batch, versions, CATALOGUE, no_network)
    assert indexed.upserted == 4
    assert list(indexed.refused) == ["c"]
    assert indexed.refused["c"].startswith("TypeError: ")
    assert found(versions.open()) == [1, 2, 4, 5]


def test_a_deletion_that_cannot_be_made_does_not_keep_the_others_out(versions: MemoryIndexVersions) -> None:
    """A row that no index can have is refused as an upsert, and as a deletion too."""
    index_items([entry("a", 3, [1, 1]), entry("b", 4, [2, 2])], versions, CATALOGUE, no_network)
    gone = [ItemEntry("odd", 2**31, 1, deleted=True), ItemEntry("a", 3, 2, deleted=True)]
    indexed = index_items(gone, versions, CATALOGUE, no_network)
    assert (indexed.deleted, list(indexed.refused)) == (1, ["odd"])
    assert found(versions.open()) == [4]


def test_where_all_of_many_fail_alike_the_batch_is_to_come_again(versions: MemoryIndexVersions) -> None:
    """Then the fault is ours, and the items must not be given up for it."""
    batch = [entry(f"i{row}", row, [1, 1], regions=7) for row in range(1, ALIKE + 1)]
    with pytest.raises(TypeError):
        index_items(batch, versions, CATALOGUE, no_network)
    assert len(index_items(batch[1:], versions, CATALOGUE, no_network).refused) == ALIKE - 1


def test_a_request_that_the_server_refuses_is_not_a_server_that_is_away() -> None:
    """Tried again whole it would be refused for ever; in halves, what fails alone is found and told."""

    class Particular(MemoryIndexVersions):
        def open(self, version: str | None = None) -> VectorIndex:
            index = super().open(version)
            put = index.upsert

            def upsert(rows: Rows, vectors: Floats, attributes: Attributes) -> Mapping[int, InvalidInput]:
                if 4 in rows:
                    raise RequestRefused("status 413")
                return put(rows, vectors, attributes)

            index.upsert = upsert  # type: ignore[method-assign]
            return index

    versions = Particular()
    versions.create("m1", 2)
    versions.promote("m1")
    batch = [entry(f"i{row}", row, [1, 1]) for row in range(1, 8)]
    indexed = index_items(batch, versions, CATALOGUE, no_network)
    assert (indexed.upserted, list(indexed.refused)) == (6, ["i4"])


def test_a_row_that_cannot_be_read_is_told_with_its_key() -> None:
    """The rest of the stream's batch is read; other things in the table are not items."""
    good = {"pk": {"S": "item#a"}, "row": {"N": "3"}, "v": {"N": "1"}, "c": {"S": "{}"}}
    good |= {"d": {"BOOL": False}, "t": {"N": "1.5"}}
    torn = {**good, "pk": {"S": "item#b"}, "c": {"S": "{"}}
    records = [{"dynamodb": {"NewImage": one}} for one in (good, torn, {"pk": {"S": "rows"}})]
    entries, unreadable = readable_entries_of({"Records": records})
    assert [one.item_id for one in entries] == ["a"]
    assert list(unreadable) == ["item#b"]
    assert "JSONDecodeError" in unreadable["item#b"]


def test_before_the_first_index_nothing_is_lost() -> None:
    """Without any index items wait, deletions have nothing to do, and an empty batch neither."""
    none = MemoryIndexVersions()
    assert (
        index_items(
            [entry("a", 3, [1, 1]), ItemEntry("b", 4, 1, deleted=True)], none, CATALOGUE, no_network
        ).waiting
        == 1
    )
    assert index_items([], none, CATALOGUE, no_network).upserted == 0


@pytest.fixture
def snapshot(tmp_path: Path) -> ItemSnapshot:
    """Four items, of which the networks know two; the last has no text."""
    columns = {
        "title": np.asarray([b"red shoes", b"green tea", b"red tea", b""]),
        "regions": np.asarray([[0, 1], [1, -1], [-1, -1], [0, -1]], np.int32),
    }
    words = {"regions": ("AT", "DE")}
    write_base(tmp_path, ["a", "b", "new", "mute"], columns, version="s1", spare=2, vocabularies=words)
    return open_base(tmp_path)


def nothing() -> None:
    """Waits for nothing."""


def network() -> TwoTower:
    """Two towers that were trained on two items."""
    generator = np.random.default_rng(1)
    encoder = fit_hashed_words(["red shoes", "green tea"] * 9, generator, dimension=4, buckets=64)
    shape = two_tower.Params(dimension=3, history=2, hidden=5)
    weights = {
        name: np.asarray(values, np.float32) + 0.1
        for name, values in networks.two_tower_weights(
            generator, dimension=3, content=encoder.dimension, history=2, hidden=5
        ).items()
    }
    vectors = np.asarray([[1, 0, 0], [0, 1, 0]], np.float32)
    nobody = np.empty((0, 3), np.float32)
    ids, unread = vectors.astype(np.float16), np.full(2, np.nan)
    return TwoTower(
        np.asarray(["a", "b"]), vectors, ids, unread, np.empty(0, str), nobody, weights, encoder, shape
    )


def test_a_networks_index_is_whole_before_it_is_live(snapshot: ItemSnapshot) -> None:
    """What it was trained on, and what came since by its text; an item without either is not in it."""
    versions = MemoryIndexVersions()
    assert build_index(versions, "m1", network(), lambda: snapshot, nothing) == 3
    index = versions.open("m1")
    first = index.search(np.asarray([1, 0, 0], np.float32), 4)
    assert set(first.rows[0].tolist()) == {0, 1, 2, -1}
    assert versions.open() is index
    sold = index.search(np.asarray([1, 0, 0], np.float32), 4, Where({"region": frozenset({"AT"})}))
    assert [row for row in sold.rows[0].tolist() if row >= 0] == [0]
    assert build_index(versions, "m1", network(), lambda: snapshot, nothing) == 3


def test_a_trained_item_is_placed_by_what_is_written_now(tmp_path: Path) -> None:
    """Where it is something else than training read: by its id and the new text."""
    towers = replace(network(), marks=text_marks(["red shoes", "green tea"]))
    texts = ["red shoes", "red tea"]
    columns = {"text": np.asarray([one.encode() for one in texts]), "text_mark": text_marks(texts)}
    write_base(tmp_path, ["a", "b"], columns, version="s1", spare=0)
    versions = MemoryIndexVersions()
    assert build_index(versions, "m1", towers, lambda: open_base(tmp_path), nothing) == 2
    index = versions.open("m1")
    found = index.search(np.asarray([1, 0, 0], np.float32), 1).scores[0]
    assert found == pytest.approx(towers.vectors[0, :1])
    (moved,) = towers.network.embed(np.asarray([1], np.int32), ["red tea"])
    assert np.abs(moved - towers.vectors[1]).max() > 0.01
    for axis in np.eye(3, dtype=np.float32):
        place = index.search(axis, 2).rows[0].tolist().index(1)
        assert index.search(axis, 2).scores[0][place] == pytest.approx(moved @ axis, abs=1e-5)


def test_a_deleted_item_that_the_model_knows_is_in_no_new_index(tmp_path: Path) -> None:
    """Neither where it was gone before, nor where it goes while the index is built."""
    texts = ["red shoes", ""]
    columns = {
        "text": np.asarray([one.encode() for one in texts], "S16"),
        "text_mark": text_marks(texts),
        "deleted": np.asarray([False, True]),
    }
    write_base(tmp_path / "s1", ["a", "b"], columns, version="s1", spare=0)
    gone = open_base(tmp_path / "s1")
    versions = MemoryIndexVersions()
    assert build_index(versions, "m1", network(), lambda: gone, nothing) == 1
    assert versions.open("m1").search(np.asarray([0, 1, 0], np.float32), 2).rows[0].tolist() == [0, -1]

    columns = {**columns, "deleted": np.asarray([False, False])}
    write_base(tmp_path / "s2", ["a", "b"], columns, version="s2", spare=0)
    there = open_base(tmp_path / "s2")
    assert build_index(versions, "m2", network(), lambda: there, nothing) == 2
    states = iter([there])
    assert build_index(versions, "m3", network(), lambda: next(states, gone), nothing) == 1


class Changing:
    """A catalogue of which a change is published while one waits for it, and another one after."""

    def __init__(self, snapshot: ItemSnapshot, folder: Path) -> None:
        self.snapshot, self.folder = snapshot, folder
        self.changes: list[tuple[list[str], list[bytes], list[list[int]]]] = [
            (["new", "late", "a"], [b"", b"red tea", b"red shoes"], [[0, -1], [0, -1], [1, -1]]),
            (["later"], [b"shoes"], [[-1, -1]]),
        ]

    def newest(self) -> ItemSnapshot:
        return self.snapshot

    def wait(self) -> None:
        if self.changes:
            ids, titles, regions = self.changes.pop(0)
            path = self.folder / f"delta-{len(self.changes)}.npz"
            columns = {"title": np.asarray(titles), "regions": np.asarray(regions, np.int32)}
            words = {"regions": ("AT", "DE")}
            write_delta(path, self.snapshot, ids, columns, version=path.stem, vocabularies=words)
            self.snapshot = self.snapshot.apply(path)


def test_what_changes_while_an_index_is_built_is_in_it(snapshot: ItemSnapshot, tmp_path: Path) -> None:
    """New items, other regions, and a text that is gone; until nothing is different any more."""
    versions = MemoryIndexVersions()
    catalogue = Changing(snapshot, tmp_path)
    assert build_index(versions, "m1", network(), catalogue.newest, catalogue.wait) == 4
    index = versions.open("m1")
    assert set(index.search(np.ones(3, np.float32), 4).rows[0].tolist()) == {0, 1, 4, 5}
    sold = index.search(np.ones(3, np.float32), 4, Where({"region": frozenset({"AT"})}))
    assert [row for row in sold.rows[0].tolist() if row >= 0] == [4]


def test_an_index_that_was_left_behind_is_filled_again(snapshot: ItemSnapshot, tmp_path: Path) -> None:
    """It was whole before, and nobody knows what it missed."""
    versions = MemoryIndexVersions()
    build_index(versions, "m1", network(), lambda: snapshot, nothing)
    catalogue = Changing(snapshot, tmp_path)
    catalogue.wait()
    assert build_index(versions, "m1", network(), catalogue.newest, nothing) == 3
    rows = versions.open("m1").search(np.ones(3, np.float32), 4).rows[0].tolist()
    assert set(rows) == {0, 1, 4, -1}


def several(*names: str) -> MemoryIndexVersions:
    """Whole indexes, the last of them live, and a half-built one."""
    versions = MemoryIndexVersions()
    for name in names:
        versions.create(name, 2)
        versions.promote(name)
    versions.create("broken", 2)
    return versions


def test_two_indexes_are_kept() -> None:
    """The live model's and its predecessor's; after a rollback the pointer says which one is live."""
    versions = several("m1", "m2", "m3")
    assert sorted(keep_indexes(versions, "m3", "m2")) == ["broken", "m1"]
    assert versions.states() == {"m2": "whole", "m3": "live"}
    assert keep_indexes(versions, "m2", "m1") == ["m3"]
    assert versions.states() == {"m2": "live"}


def test_where_the_live_model_has_no_index_the_last_one_stays() -> None:
    """A live index is never dropped."""
    versions = several("m1", "m2")
    assert sorted(keep_indexes(versions, "m3", "")) == ["broken", "m1"]
    assert versions.states() == {"m2": "live"}


def test_an_index_for_nothing_is_dropped_and_the_others_stay() -> None:
    """Another model won: its index is the live one again."""
    versions = several("m1", "m2", "lost")
    undo_index(versions, "lost", "m2")
    assert versions.states() == {"m1": "whole", "m2": "live", "broken": "half built"}


def test_an_index_that_is_away_fails_the_batch(
    versions: MemoryIndexVersions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the stream delivers it again."""

    def away(version: str | None = None) -> VectorIndex:
        raise StoreUnavailable("no answer")

    monkeypatch.setattr(versions, "open", away)
    with pytest.raises(StoreUnavailable):
        index_items([entry("a", 3, [1, 1])], versions, CATALOGUE, no_network)
