"""The words that searches of vectors filter by: the same of the snapshot and of an item that is sent."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from narrows.catalogue import item_columns
from narrows.encoding import Array
from narrows.freshening import ItemEntry
from narrows.index_settings import FILLED_BY
from narrows.retrieval import Rows
from narrows.settings import Catalogue
from narrows.snapshot import ItemSnapshot

Words = dict[str, list[tuple[str, ...]]]
"""Filter -> for each item the values that it has."""


def of_snapshot(filters: Collection[str], snapshot: ItemSnapshot, rows: Rows) -> Words:
    """By these filters, what the snapshot's columns say of the rows."""
    names = [one.column for one in FILLED_BY.values() if one.column in snapshot.columns]
    columns = {name: snapshot.columns[name][rows] for name in names}
    return _words(filters, columns, {name: snapshot.vocabulary(name) for name in names})


def of_items(filters: Collection[str], entries: Sequence[ItemEntry], catalogue: Catalogue) -> Words:
    """By these filters, what the snapshot is going to say of these items: it is made of the same columns."""
    parts = {name for one in FILLED_BY.values() if (name := getattr(catalogue, one.part))}
    table = {name: [entry.values.get(name) for entry in entries] for name in parts}
    items = item_columns({**table, catalogue.id: [entry.item_id for entry in entries]}, catalogue)
    return _words(filters, items.columns, items.vocabularies)


def _words(
    filters: Collection[str], columns: Mapping[str, Array], vocabularies: Mapping[str, Sequence[str]]
) -> Words:
    found: Words = {}
    for name, filled in FILLED_BY.items():
        if name in filters and filled.column in columns:
            codes, words = columns[filled.column], vocabularies[filled.column]
            lines = codes.reshape(len(codes), -1).tolist()
            found[name] = [tuple(words[code] for code in line if code >= 0) for line in lines]
    return found
