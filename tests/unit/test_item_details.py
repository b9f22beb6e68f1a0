"""Item details: what the snapshot knows of an item, in words."""

from __future__ import annotations

from pathlib import Path

from narrows.catalogue import item_columns
from narrows.item_details import item_details
from narrows.settings import Catalogue
from narrows.snapshot import ItemSnapshot, open_base, snapshot_of, write_base

CATALOGUE = Catalogue("item_id", text=("title",), categories="kind", brand="maker", price="price")
TABLE = {
    "item_id": ["kettle", "mystery"],
    "title": ["Emaillekännchen", None],
    "kind": [["Kitchen", "Home"], []],
    "maker": ["Halden", None],
    "price": [39.0, None],
}


def written(directory: Path) -> ItemSnapshot:
    """The table as a snapshot."""
    items = item_columns(TABLE, CATALOGUE)
    write_base(directory, items.ids, items.columns, version="v1", spare=1, vocabularies=items.vocabularies)
    return open_base(directory)


def test_known_item_is_told_in_words(tmp_path: Path) -> None:
    """Codes become words, the title text, and the price has two decimals."""
    expected = {"title": "Emaillekännchen", "category": "Kitchen", "brand": "Halden", "price": 39.0}
    assert item_details(written(tmp_path), ["kettle"]) == {"kettle": expected}


def test_what_is_missing_is_left_out(tmp_path: Path) -> None:
    """An item without anything has no details, and an unknown item is not there at all."""
    assert item_details(written(tmp_path), ["mystery", "stranger"]) == {"mystery": {}}


def test_catalogue_without_columns_tells_nothing() -> None:
    """A snapshot that knows only ids has no details to tell."""
    assert item_details(snapshot_of(["kettle"], "v0"), ["kettle"]) == {"kettle": {}}
