"""From changed items to the snapshot that serving reads, over everything that lies between."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from narrows.adapters.memory import MemoryControlTable, MemoryObjects
from narrows.adapters.snapshots import LiveSnapshot, SnapshotCopy, SnapshotPublisher
from narrows.catalogue import item_columns
from narrows.control import Pointer, snapshot_pointer
from narrows.errors import Conflict, SnapshotError
from narrows.freshening import ItemEntry
from narrows.item_details import deleted, written
from narrows.settings import App, load_app
from narrows.snapshot import ItemSnapshot, write_base
from narrows.text_vectors import text_marks

APPS = Path(__file__).parents[2] / "apps"
NOW = 1_700_000_000.0
ROWS: list[dict[str, Any]] = [
    {"item_id": "a", "title": "A", "category": ["x"], "brand": "b1", "price": 1.0, "regions": ["DE"]},
    {"item_id": "b", "title": "B", "category": ["x", "y"], "brand": "b2", "price": 3.0, "regions": ["US"]},
]


class FolderObjects(MemoryObjects):
    """Objects that can be copied as folders."""

    def download(self, prefix: str, directory: Path) -> None:
        for key in self.keys(f"{prefix}/"):
            (directory / key.removeprefix(f"{prefix}/")).write_bytes(self.files[key])

    def upload(self, directory: Path, prefix: str) -> None:
        for path in directory.iterdir():
            self.put(f"{prefix}/{path.name}", path.read_bytes())


@dataclass
class Shop:
    """A store of snapshots with any number of publishers and readers."""

    app: App
    folder: Path
    objects: FolderObjects
    control: MemoryControlTable
    now: float = NOW
    made: int = 0

    def live(self) -> LiveSnapshot:
        self.made += 1
        copy = SnapshotCopy(self.folder / f"copy-{self.made}", self.objects.download, self.objects.get)
        return LiveSnapshot(self.app, self.control, copy)

    def publisher(self, most_deltas: int = 512) -> SnapshotPublisher:
        def clock() -> float:
            self.now += 0.001
            return self.now

        live = self.live()
        scratch = self.folder / f"scratch-{self.made}"
        return SnapshotPublisher(live, self.objects, scratch, clock=clock, most_deltas=most_deltas)

    def read(self) -> ItemSnapshot:
        snapshot = self.live().current()
        assert snapshot is not None
        return snapshot

    def put_base(self, rows: Sequence[dict[str, Any]] = ROWS, spare: int = 3) -> None:
        names = dict.fromkeys(name for row in rows for name in row) | {"created_at": None, "stock": None}
        items = item_columns({name: [row.get(name) for row in rows] for name in names}, self.app.catalogue)
        folder = self.folder / "base"
        write_base(
            folder, items.ids, items.columns, version="s1", spare=spare, vocabularies=items.vocabularies
        )
        self.objects.upload(folder, "snapshots/s1")
        shutil.rmtree(folder)
        self.control.move(snapshot_pointer(self.app.name), Pointer("s1", "snapshots/s1", NOW), expected=None)


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(load_app(APPS / "megashop"), tmp_path, FolderObjects(), MemoryControlTable())


def entry(item_id: str, row: int, version: int = 1, *, since: float | None = NOW, **values: Any) -> ItemEntry:
    return ItemEntry(item_id, row, version, values, first_at=since)


def test_a_new_item_and_a_changed_one_are_in_the_next_version(shop: Shop) -> None:
    """Values, words, a creation time where none was said, the place of the price among its category's."""
    shop.put_base()
    version = shop.publisher().publish(
        [
            entry("c", 2, title="C", category=["y", "new"], brand="b2", price=2.0, regions=["DE", "FR"]),
            entry("a", 0, title="A2", category=["x"], brand="b1", price=4.0, created_at=5.0),
        ]
    )
    after = shop.read()
    assert after.version == version
    assert after.version.startswith("s1+000001-")
    assert after.rows(["a", "b", "c"]).tolist() == [0, 1, 2]
    assert after.columns["price"].tolist() == [4.0, 3.0, 2.0]
    assert after.columns["title"].tolist() == [b"A2", b"B", b"C"]
    assert np.array_equal(after.columns["text_mark"], text_marks(written(after, [0, 1, 2])))
    assert len(set(after.columns["text_mark"].tolist())) == 3
    words = after.vocabulary("category")
    assert [words[code] for code in after.columns["category_all"][2][:2]] == ["y", "new"]
    np.testing.assert_array_equal(after.columns["created_at"], [5.0, np.nan, NOW])
    assert after.columns["price_position"].tolist() == [1.0, 1.0, 0.5]
    regions = after.vocabulary("regions")
    assert sorted(regions[code] for code in after.columns["regions"][2] if code >= 0) == ["DE", "FR"]


def test_the_same_batch_again_publishes_nothing(shop: Shop) -> None:
    """Lambda delivers a batch again after a crash: the version stays, and no file is added."""
    shop.put_base()
    batch = [entry("c", 2, title="C", price=2.0, category=["x"]), entry("c", 2, 2, title="C2", price=2.5)]
    first = shop.publisher().publish(batch)
    files = set(shop.objects.files)
    assert shop.publisher().publish(batch) == first
    assert set(shop.objects.files) == files
    assert shop.read().columns["title"].tolist() == [b"A", b"B", b"C2"]


def test_a_deleted_item_keeps_its_row_and_that_it_is_deleted(shop: Shop) -> None:
    """Nothing offers it as new, its row stays its own, and a return finds it again."""
    shop.put_base()
    publisher = shop.publisher()
    publisher.publish([entry("c", 2, title="C", price=2.0)])
    publisher.publish([replace(entry("c", 2, 2), deleted=True)])
    gone = shop.read()
    assert gone.rows(["c"]).tolist() == [2]
    assert np.isnan(gone.columns["created_at"][2])
    assert np.isnan(gone.columns["price"][2])
    assert np.flatnonzero(deleted(gone)).tolist() == [2]
    publisher.publish([entry("c", 2, 3, title="C", created_at=5.0)])
    assert shop.read().columns["created_at"][2] == 5.0
    assert not deleted(shop.read()).any()


def test_who_says_no_time_was_there_since_it_was_stored(shop: Shop) -> None:
    """Also after it was gone, or said a wrong one; a published one without a time is never taken as new."""
    shop.put_base()
    publisher = shop.publisher()
    for before in (replace(entry("c", 2), deleted=True), entry("c", 2, title="C", created_at=5.0)):
        publisher.publish([before])
        publisher.publish([entry("c", 2, title="C"), entry("b", 1, since=None, title="B", price=9.0)])
        found = shop.read()
        np.testing.assert_array_equal(found.columns["created_at"][1:], [np.nan, NOW])
        assert found.columns["price"][1] == 9.0


def test_rows_of_another_shard_may_come_first(shop: Shop) -> None:
    """Row 3 is published before row 2 exists; then both have their item."""
    shop.put_base()
    shop.publisher().publish([entry("d", 3, title="D")])
    assert shop.read().rows(["d", "c"]).tolist() == [3, -1]
    shop.publisher().publish([entry("c", 2, title="C")])
    assert shop.read().ids([2, 3]) == ["c", "d"]


def test_a_new_base_is_written_when_the_spare_lines_run_out(shop: Shop) -> None:
    """Rows, words and values stay what they were, and what comes next is a delta of the new base."""
    shop.put_base()
    publisher = shop.publisher()
    publisher.publish([entry("c", 2, title="C", category=["z"], price=2.0)])
    before = shop.read()
    publisher.publish([entry("e", 9, title="E", category=["z"])])
    after = shop.read()
    assert after.version.partition("+")[0] != before.version.partition("+")[0]
    assert after.rows(["a", "b", "c", "e"]).tolist() == [0, 1, 2, 9]
    assert after.capacity > 1000
    for name in ("price", "title"):
        np.testing.assert_array_equal(after.columns[name][:3], before.columns[name])
    word = after.vocabulary("category")[after.columns["category"][2]]
    assert word == after.vocabulary("category")[after.columns["category"][9]] == "z"


def test_a_new_base_is_written_after_many_deltas(shop: Shop) -> None:
    """A process that starts never has to read more of them than that."""
    shop.put_base()
    publisher = shop.publisher(most_deltas=3)
    versions = [publisher.publish([entry("a", 0, n, title=f"A{n}")]) or "" for n in range(9)]
    assert len({one.partition("+")[0] for one in versions}) == 3
    assert shop.read().columns["title"][0] == b"A8"


def test_more_regions_than_the_base_has_places_for(shop: Shop) -> None:
    """The item is not cut to fit: a base with wider lines takes over."""
    shop.put_base()
    shop.publisher().publish([entry("c", 2, title="C", regions=[f"r{n}" for n in range(9)])])
    after = shop.read()
    assert (after.columns["regions"][2] >= 0).sum() == 9
    assert (after.columns["regions"][0] >= 0).sum() == 1


def test_who_sells_an_item_is_in_the_next_version(tmp_path: Path) -> None:
    """A new seller, another one, and none any more."""
    shop = Shop(load_app(APPS / "shopnow"), tmp_path, FolderObjects(), MemoryControlTable())
    shop.put_base([{**row, "seller": "s1"} for row in ROWS])
    shop.publisher().publish([entry("a", 0, seller="s0"), entry("b", 1), entry("c", 2, seller="s1")])
    after = shop.read()
    words = after.vocabulary("seller")
    assert [words[code] if code >= 0 else "" for code in after.columns["seller"]] == ["s0", "", "s1"]


def test_a_catalogue_may_begin_with_an_upsert(shop: Shop) -> None:
    """Where nothing was ever published, the first batch makes the base that it needs."""
    shop.publisher().publish([entry("a", 0, title="A", category=["x"], price=2.0, stock=3, margin=0.5)])
    first = shop.read()
    assert first.ids([0]) == ["a"]
    assert first.columns["margin"].tolist() == [0.5]
    assert first.vocabulary("category_all")[first.columns["category_all"][0, 0]] == "x"


def test_two_publishers_lose_nothing_of_each_other(shop: Shop) -> None:
    """Each extends what the other published, also where it held an older version."""
    shop.put_base(spare=100)
    one, two = shop.publisher(), shop.publisher()
    for number in range(6):
        (one, two)[number % 2].publish([entry(f"n{number}", 2 + number, title=f"N{number}")])
    after = shop.read()
    assert after.ids(range(2, 8)) == [f"n{number}" for number in range(6)]  # type: ignore[arg-type]
    assert after.version.startswith("s1+000006-")


def test_whoever_loses_the_race_starts_again(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pointer moves between reading and writing: the loser's delta counts for nothing, its items do."""
    shop.put_base(spare=100)
    slow, fast = shop.publisher(), shop.publisher()
    move, raced = shop.control.move, []

    def meanwhile(name: str, pointer: Pointer, *, expected: str | None) -> None:
        if not raced:
            raced.append(name)
            fast.publish([entry("f", 2, title="F")])
        move(name, pointer, expected=expected)

    monkeypatch.setattr(shop.control, "move", meanwhile)
    slow.publish([entry("s", 3, title="S")])
    after = shop.read()
    assert after.ids([2, 3]) == ["f", "s"]
    assert len([key for key in shop.objects.files if "delta-" in key]) == 3
    assert after.version.startswith("s1+000002-")


def test_losing_for_too_long_is_a_conflict(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the stream delivers the batch again; nothing was half done."""
    shop.put_base()
    publisher = shop.publisher()

    def lost(name: str, pointer: Pointer, *, expected: str | None) -> None:
        raise Conflict("somebody else")

    monkeypatch.setattr(shop.control, "move", lost)
    with pytest.raises(Conflict, match="8 times"):
        publisher.publish([entry("c", 2, title="C")])
    assert shop.read().version == "s1"


def test_a_reader_follows_by_deltas_alone(shop: Shop) -> None:
    """The base is copied once; after that only the deltas in between are fetched, in order."""
    shop.put_base(spare=100)
    reader, publisher = shop.live(), shop.publisher()
    assert reader.current() is not None
    for number in range(4):
        publisher.publish([entry(f"n{number}", 2 + number, title=f"N{number}")])
    fetched: list[str] = []
    get = shop.objects.get
    reader.copy._get = lambda key: fetched.append(key) or get(key)  # type: ignore[func-returns-value]
    after = reader.current()
    assert after is not None
    assert after.size == 6
    assert len(fetched) == 4
    assert all("delta-" in key for key in fetched)


def test_a_damaged_delta_is_copied_again(shop: Shop) -> None:
    """What cannot be read is refused, and the next attempt fetches all of it anew."""
    shop.put_base()
    shop.publisher().publish([entry("c", 2, title="C")])
    (key,) = [key for key in shop.objects.files if "delta-" in key]
    whole, reader = shop.objects.files[key], shop.live()
    shop.objects.files[key] = whole[:-40]
    with pytest.raises(SnapshotError):
        reader.current()
    shop.objects.files[key] = whole
    assert reader.current().rows(["c"]).tolist() == [2]  # type: ignore[union-attr]


def test_what_the_base_has_no_column_for_comes_with_a_new_base(shop: Shop) -> None:
    """As soon as an item says something of it; rows stay, and of the others it is missing."""
    shop.put_base()
    assert "margin" not in shop.read().columns
    publisher = shop.publisher()
    publisher.publish([entry("c", 2, title="C")])
    assert shop.read().version.startswith("s1+")
    publisher.publish([entry("d", 3, title="D", margin=0.5)])
    after = shop.read()
    assert not after.version.startswith("s1+")
    assert after.rows(["a", "b", "c", "d"]).tolist() == [0, 1, 2, 3]
    np.testing.assert_array_equal(after.columns["margin"], np.float32([np.nan, np.nan, np.nan, 0.5]))
    assert [bytes(one) for one in after.columns["title"]] == [b"A", b"B", b"C", b"D"]


def test_a_base_of_before_texts_were_marked_gets_marks(shop: Shop) -> None:
    """Of what can be read of its items; so a later change of a text is seen."""
    titles = {"title": np.asarray([b"A", b"B"], "S96")}
    write_base(shop.folder / "base", ["a", "b"], titles, version="s1", spare=3)
    shop.objects.upload(shop.folder / "base", "snapshots/s1")
    shop.control.move(snapshot_pointer(shop.app.name), Pointer("s1", "snapshots/s1", NOW), expected=None)
    shop.publisher().publish([entry("b", 1, title="B2", regions=["DE"])])
    after = shop.read()
    assert [text.strip() for text in written(after, [0, 1])] == ["A", "B2"]
    assert np.array_equal(after.columns["text_mark"], text_marks(written(after, [0, 1])))
    assert after.columns["regions"][0].tolist() == [-1] * after.columns["regions"].shape[1]
    assert after.vocabulary("regions")[after.columns["regions"][1, 0]] == "DE"
