"""Items that came through the API reach the next training's catalogue, on a real local Spark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from narrows.freshening import ItemEntry
from narrows.landing import items_file
from narrows.settings import App, load_app
from tests.spark_session import lake_session
from tests.spark_session import spark as spark

pytestmark = pytest.mark.spark

NOW, DAY = 1_700_000_000.0, 86_400.0
APPS = Path(__file__).parents[2] / "apps"
PUBLISHED = [
    {"item_id": "old", "title": "Old", "category": ["a", "b"], "brand": "x", "price": 5.0, "stock": 3,
     "created_at": 10.0, "regions": None, "margin": 0.5, "colour": "red"},
    {"item_id": "sold", "title": "Sold", "category": ["a"], "brand": "x", "price": 6.0, "stock": 1,
     "created_at": 20.0, "regions": ["DE"], "margin": 0.1, "colour": None},
]  # fmt: skip


def shop() -> App:
    return load_app(APPS / "megashop")


def entry(
    item_id: str, version: int, *, deleted: bool = False, since: float | None = NOW - 60.0, **values: Any
) -> ItemEntry:
    """An item as the table's stream tells of it."""
    return ItemEntry(item_id, 0, version, values, deleted, first_at=since)


class Place:
    """A landing zone, a lake and a published catalogue in one folder."""

    def __init__(self, spark: Any, folder: Path) -> None:
        self.folder, self.session = folder, lake_session(spark, folder / "lake")

    def land(self, *entries: ItemEntry, at: float = NOW) -> Path:
        """What publish_snapshot writes for a batch."""
        file = items_file(entries, at)
        assert file is not None
        path = self.folder / file.key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.data)
        return path

    def publish(self, rows: Sequence[Mapping[str, Any]]) -> None:
        (self.folder / "catalogue").mkdir()
        pq.write_table(pa.Table.from_pylist(list(map(dict, rows))), self.folder / "catalogue/part-0.parquet")

    def keep(self) -> dict[str, int]:
        from glue_jobs.changed_items import keep_items

        return keep_items(self.session, str(self.folder / "landing" / "items"))

    def catalogue(self, app: App | None = None) -> dict[str, dict[str, Any]]:
        """What the next training reads, by id."""
        from glue_jobs.changed_items import read_catalogue

        found = read_catalogue(self.session, str(self.folder / "catalogue"), app or shop()).collect()
        rows = {row["item_id"]: row.asDict(recursive=True) for row in found}
        assert len(rows) == len(found)
        return rows


@pytest.fixture
def place(spark: Any, tmp_path: Path) -> Place:
    return Place(spark, tmp_path)


def test_new_changed_and_deleted_items_are_as_they_are_now(place: Place) -> None:
    """A new one is there, a changed one replaces its published row whole, a deleted one is gone."""
    place.publish(PUBLISHED)
    place.land(entry("new", 1, title="New", category=["c"], price=1.0, created_at=77.0))
    place.land(entry("old", 5, title="Old 5", price=4, since=10.0), entry("sold", 2, deleted=True))
    assert place.keep() == {"item_lines": 3, "items_changed": 3}
    found = place.catalogue()
    assert found.keys() == {"new", "old"}
    bare = dict.fromkeys(PUBLISHED[0])
    new = {"item_id": "new", "title": "New", "category": ["c"], "price": 1.0, "created_at": 77.0}
    assert found["new"] == {**bare, **new}
    changed = {"item_id": "old", "title": "Old 5", "price": 4.0, "created_at": 10.0}
    assert found["old"] == {**bare, **changed}


@pytest.mark.parametrize("turned", [False, True])
def test_the_newest_version_wins_in_whatever_order_they_come(place: Place, turned: bool) -> None:
    """In one batch, in batches of other days, twice: an older version changes nothing."""
    place.publish(PUBLISHED)
    batches = [
        ([entry("a", 1, title="A1"), entry("b", 1, title="B1")], NOW),
        ([entry("a", 3, title="A3"), entry("b", 2, deleted=True)], NOW + DAY),
        ([entry("a", 2, title="A2"), entry("b", 3, title="B3")], NOW + DAY),
    ]
    for entries, at in reversed(batches) if turned else batches:
        place.land(*entries, at=at)
        place.keep()
        place.land(*entries, at=at)
        assert place.keep()["items_changed"] == 0
    found = place.catalogue()
    assert (found["a"]["title"], found["b"]["title"]) == ("A3", "B3")


def test_an_item_that_comes_back_is_there_again(place: Place) -> None:
    """A deletion holds until a higher version comes."""
    place.publish(PUBLISHED)
    place.land(entry("old", 1, deleted=True))
    place.keep()
    assert "old" not in place.catalogue()
    place.land(entry("old", 2, title="Back"), at=NOW + DAY)
    place.keep()
    assert place.catalogue()["old"]["title"] == "Back"


def test_days_that_were_read_are_not_read_for_ever(place: Place) -> None:
    """Of the past only the last days are looked at again, in which a late batch may lie."""
    place.land(entry("a", 1), at=NOW)
    place.land(entry("b", 1), at=NOW + 10 * DAY)
    assert place.keep()["item_lines"] == 2
    place.land(entry("c", 1), at=NOW + 9 * DAY)
    assert place.keep() == {"item_lines": 2, "items_changed": 1}
    assert datetime.fromtimestamp(NOW, UTC).date().isoformat() in str(place.land(entry("a", 1)))


def test_what_is_published_decides_the_types(place: Place) -> None:
    """Words between bars, texts for numbers, moments: what came by the API has the same columns."""
    place.publish(
        [{"item_id": 7, "category": "a|b", "price": "5", "created_at": datetime(2020, 1, 1, tzinfo=UTC)}]
    )
    place.land(entry("8", 1, category=["c", "d"], price=2.5, created_at=NOW, title="left out"))
    place.land(entry("7", 1, category=["e"], since=None), entry("9", 1))
    place.keep()
    found = place.catalogue()
    assert found["8"] == {
        "item_id": "8", "category": "c|d", "price": "2.5",
        "created_at": datetime.fromtimestamp(NOW, UTC).replace(tzinfo=None),
    }  # fmt: skip
    assert found["7"]["created_at"] == datetime(2020, 1, 1, tzinfo=UTC).replace(tzinfo=None)
    assert found["9"]["created_at"] == datetime.fromtimestamp(NOW - 60, UTC).replace(tzinfo=None)


def test_a_catalogue_of_upserts_alone_is_one(place: Place) -> None:
    """Nothing was published: the columns are those that the app declares."""
    said = {"title": "A", "category": ["c"], "price": 2.0, "regions": ["DE"], "seller": "s1"}
    place.land(entry("a", 1, stock=4, **said))
    place.keep()
    row = place.catalogue(load_app(APPS / "shopnow"))["a"]
    wanted = {**said, "stock": 4.0}
    assert {name: row[name] for name in wanted} == wanted
    assert row["created_at"] == NOW - 60.0


def test_without_changes_the_catalogue_is_as_published(place: Place) -> None:
    """No item has come, and so the lake has no table of items."""
    place.publish(PUBLISHED)
    assert place.keep() == {"item_lines": 0, "items_changed": 0}
    assert place.catalogue() == {row["item_id"]: row for row in PUBLISHED}
    assert not (place.folder / "lake").exists()


def test_an_app_without_such_columns_has_none(place: Place) -> None:
    """A catalogue that says neither time nor stock."""
    app = shop()
    bare = replace(app.catalogue, time="", stock="", regions="", attributes=())
    place.land(entry("a", 1, title="A"))
    place.keep()
    row = place.catalogue(replace(app, catalogue=bare))["a"]
    assert row.keys() == {"item_id", "title", "category", "brand", "price"}
