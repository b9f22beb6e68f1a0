"""What searches filter by is the same by both ways into an index: its build, and items as they change."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from narrows.adapters.memory_vectors import MemoryVectorIndex
from narrows.catalogue import item_columns
from narrows.freshening import ItemEntry
from narrows.index_filters import of_items, of_snapshot
from narrows.item_upsert import parse_item
from narrows.settings import Catalogue
from narrows.snapshot import ItemSnapshot, open_base, write_base
from narrows.vector_index import FILTERS, Where

CATALOGUE = Catalogue("sku", ("name",), "kinds", "maker", regions="sold_in", seller="shop")
SENT: list[dict[str, Any]] = [
    {"sku": "a", "name": "Lamp", "kinds": ["f", "e", "d", "c", "b", "a"], "shop": "s1", "sold_in": ["DE"]},
    {"sku": "b", "kinds": "tools|home", "shop": "Smith | Co", "sold_in": list("UVWXYZ")},
    {"sku": "c", "kinds": ["home"], "shop": "s1"},
    {"sku": "d", "name": "Nothing but a name"},
]
EXPECTED = {
    "region": [("DE",), tuple("UVWXYZ"), (), ()],
    "category": [("f", "e", "d", "c"), ("tools", "home"), ("home",), ()],
    "seller": [("s1",), ("Smith | Co",), ("s1",), ()],
}


def entries() -> list[ItemEntry]:
    """The items as the API stores them."""
    read = [parse_item(one, CATALOGUE) for one in SENT]
    return [ItemEntry(one.item_id, row, 1, one.values) for row, one in enumerate(read)]


@pytest.fixture
def snapshot(tmp_path: Path) -> ItemSnapshot:
    """The same items, published."""
    names = {name for one in SENT for name in one}
    items = item_columns({name: [one.get(name) for one in SENT] for name in names}, CATALOGUE)
    write_base(tmp_path, items.ids, items.columns, version="s1", spare=0, vocabularies=items.vocabularies)
    return open_base(tmp_path)


def test_both_ways_say_the_same(snapshot: ItemSnapshot) -> None:
    """The first four categories, every region, and a seller's name whole, whatever stands in it."""
    everything = np.arange(4, dtype=np.int32)
    assert of_snapshot(FILTERS, snapshot, everything) == EXPECTED
    assert of_items(FILTERS, entries(), CATALOGUE) == EXPECTED


def test_a_few_rows_say_what_they_say_among_all(snapshot: ItemSnapshot) -> None:
    """In the order asked for; words do not depend on which items come together."""
    rows = np.asarray([2, 0], np.int32)
    picked = {name: [values[2], values[0]] for name, values in EXPECTED.items()}
    assert of_snapshot(FILTERS, snapshot, rows) == picked
    assert of_items(FILTERS, [entries()[2], entries()[0]], CATALOGUE) == picked


def test_an_index_gets_the_filters_that_it_has(snapshot: ItemSnapshot) -> None:
    """One that was made before the app had sellers goes on without them."""
    rows = np.arange(4, dtype=np.int32)
    for words in (of_snapshot(("region",), snapshot, rows), of_items(("region",), entries(), CATALOGUE)):
        assert words == {"region": EXPECTED["region"]}
    bare = Catalogue("sku", categories="kinds")
    assert of_items(FILTERS, entries(), bare) == {"category": EXPECTED["category"]}


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({"category": {"c"}}, {0}),
        ({"category": {"b"}}, set()),
        ({"category": {"home"}}, {1, 2}),
        ({"seller": {"s1"}}, {0, 2}),
        ({"seller": {"Smith | Co"}}, {1}),
        ({"seller": {"s1"}, "region": {"DE"}}, {0}),
    ],
)
def test_searches_find_the_same_after_both(
    snapshot: ItemSnapshot, asked: Mapping[str, set[str]], found: set[int]
) -> None:
    """By category, by seller, and by several at once."""
    rows = np.arange(4, dtype=np.int32)
    vectors = np.ones((4, 2), np.float32)
    where = Where({name: frozenset(values) for name, values in asked.items()})
    for words in (of_snapshot(FILTERS, snapshot, rows), of_items(FILTERS, entries(), CATALOGUE)):
        index = MemoryVectorIndex("m1", 2)
        index.upsert(rows, vectors, words)
        assert set(index.search(vectors[0], 4, where).rows[0].tolist()) - {-1} == found
