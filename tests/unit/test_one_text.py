"""What is written about an item is one text, whoever reads it: a vector of another text is another item's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from narrows.adapters.memory import MemoryItemTable, MemoryPolicyLog
from narrows.adapters.memory_vectors import MemoryIndexVersions
from narrows.adapters.placing import with_newest
from narrows.catalogue import item_columns
from narrows.freshening import freshen
from narrows.index_building import build_index
from narrows.interactions import Interactions, coded_interactions
from narrows.item_details import written
from narrows.retrieval import Floats, Rows
from narrows.settings import App, load_app
from narrows.snapshot import ItemSnapshot, open_base, open_snapshot, write_base
from narrows.snapshot_feed import change_of, empty_base
from narrows.sources.content import ContentSource, Params
from narrows.sources.rows import PlacedVectors
from narrows.text_vectors import TEXT_BYTES, documents
from sagemaker_jobs import training_set

CATEGORIES = ["bags", "leather", "gifts", "travel", "handmade", "für sie"]
ITEM = {
    "item_id": "late",
    "title": "Ledertasche im alten Stil mit Schließen aus Messing, " * 2,
    "about": "von zwei Schwestern genäht; größer als sie aussieht",
    "category": CATEGORIES,
    "brand": "Sorelle",
    "price": 10.0,
    "created_at": 1.0,
}
LONG = {**ITEM, "item_id": "long", "about": "ü" * 400}
PIPED = {**ITEM, "item_id": "piped", "category": "|".join(CATEGORIES)}
SAID = (
    "Ledertasche im alten Stil mit Schließen aus Messing, "
    "Ledertasche im alten Stil mit Schließen aus Messing,  "
    "von zwei Schwestern genäht; größer als sie aussieht bags leather gifts travel handmade für sie Sorelle"
)


class Reader:
    """An encoder, and the network over it, that remembers what it was given to read."""

    version, dimension, fingerprint = "v1", 2, "reader"

    def __init__(self) -> None:
        self.read: list[str] = []

    def encode(self, texts: Sequence[str]) -> Floats:
        self.read += texts
        return np.ones((len(texts), 2), np.float32)

    def embed(self, _: Sequence[str] | Rows, texts: Sequence[str]) -> Floats:
        return self.encode(texts)


@pytest.fixture(scope="module")
def app() -> App:
    """An app that has two columns of text."""
    app = load_app(Path(__file__).parents[2] / "apps" / "megashop")
    return replace(app, catalogue=replace(app.catalogue, text=("title", "about")))


def table(*rows: dict[str, Any]) -> dict[str, list[Any]]:
    return {name: [row[name] for row in rows] for name in ITEM}


def sent(app: App, *rows: dict[str, Any]) -> tuple[list[str], MemoryItemTable]:
    """What is read of items as they come, and the table that holds them."""
    reader, items = Reader(), MemoryItemTable(MemoryPolicyLog())
    verdicts = freshen(rows, app=app, table=items, published=lambda: None, encoder=reader, now=9.0)
    assert [one.status for one in verdicts] == ["accepted"] * len(rows)
    return reader.read, items


def published(app: App, folder: Path, *rows: dict[str, Any]) -> ItemSnapshot:
    """The items as a base."""
    items = item_columns(table(*rows), app.catalogue)
    write_base(folder, items.ids, items.columns, version="s1", spare=1, vocabularies=items.vocabularies)
    return open_base(folder)


def log_of(*ids: str) -> Interactions:
    nobody = np.zeros(len(ids), np.int64)
    weights = np.ones(len(ids), np.float32)
    return coded_interactions(
        nobody, np.arange(len(ids)), np.ones(len(ids)), weights, np.asarray(["u"]), np.asarray(ids)
    )


def test_everyone_reads_the_same_of_an_item(app: App, tmp_path: Path) -> None:
    """Training, an item that comes, its delta, a base, the process that places it, and the index's build."""
    *_, trained = training_set._columns(app, table(ITEM), log_of("late"))
    read, items = sent(app, ITEM)
    empty_base(tmp_path / "live", app.catalogue, version="s0")
    live = open_base(tmp_path / "live")
    change = change_of(list(items.read(["late"]).values()), live, app.catalogue)
    change.write(tmp_path / "live" / "delta-000001.npz", live, "s0+1")
    base = published(app, tmp_path / "base", ITEM)
    placing, building = Reader(), Reader()
    source = ContentSource(unplaced(1), placing, Params())
    with_newest({"content": source}, base)
    build_index(MemoryIndexVersions(), "m1", network(building), lambda: base, lambda: None)
    assert trained == read == placing.read == building.read == [SAID]
    assert written(open_snapshot(tmp_path / "live"), [0]) == written(base, [0]) == [SAID]


def network(reader: Reader) -> Any:
    """A network that knows no item, over rows."""
    params = SimpleNamespace(dimension=2)
    return SimpleNamespace(bind=lambda _, size: Bound(reader, size), params=params)


class Bound:
    """What the index's build asks of a network over a snapshot's rows."""

    def __init__(self, reader: Reader, size: int) -> None:
        self.reader, self.placed = reader, unplaced(size)
        self.vectors = self.placed.vectors

    def place(self, rows: Rows, texts: Sequence[str]) -> None:
        self.placed.write(rows, texts, self.reader.embed, None)


def unplaced(size: int) -> PlacedVectors:
    """Rows of which nothing has been read."""
    return PlacedVectors(np.full((size, 2), np.nan, np.float32), np.full(size, np.nan))


def test_a_long_text_is_cut_alike(app: App, tmp_path: Path) -> None:
    """At the same byte for all, and never within a character."""
    (read,), _ = sent(app, LONG)
    assert [read] == written(published(app, tmp_path, LONG), [0]) == documents(table(LONG), app.catalogue)
    assert TEXT_BYTES - 1 <= len(read.encode()) <= TEXT_BYTES
    assert read.endswith("ü")


def test_categories_in_one_word_are_read_as_several(app: App, tmp_path: Path) -> None:
    """A table of CSV has them between bars, an item that is sent as a list."""
    assert written(published(app, tmp_path, ITEM, PIPED), [0, 1]) == [SAID, SAID]
