"""What people want to read of an item: its title, category, brand and price, from the snapshot's columns."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from narrows.item_upsert import DELETED
from narrows.retrieval import Rows
from narrows.snapshot import ItemSnapshot
from narrows.sources.rows import PlacedVectors

Details = dict[str, str | float]


def item_details(snapshot: ItemSnapshot, ids: Sequence[str]) -> dict[str, Details]:
    """The details of each known item by its id; a part that the catalogue or the item lacks is left out."""
    rows = snapshot.rows(ids)
    found = {item_id: int(row) for item_id, row in zip(ids, rows.tolist(), strict=True) if row >= 0}
    return {item_id: _details(snapshot, row) for item_id, row in found.items()}


def written(snapshot: ItemSnapshot, rows: Sequence[int]) -> list[str]:
    """What is written about the items of these rows, as training reads it.

    A snapshot of before it kept that has title, categories and brand.
    """
    if "text" in snapshot.columns:
        return [bytes(text).decode() for text in snapshot.columns["text"][list(rows)]]
    names = [name for name in ("title", "category_all", "brand") if name in snapshot.columns]
    taken = {name: snapshot.columns[name][list(rows)] for name in names}
    texts = []
    for place in range(len(rows)):
        parts = [bytes(taken["title"][place]).decode()] if "title" in taken else []
        for name in ("category_all", "brand"):
            words = snapshot.vocabulary(name)
            codes = np.ravel(taken[name][place]).tolist() if name in taken else []
            parts += [words[code] for code in codes if code >= 0]
        texts.append(" ".join(parts))
    return texts


def rewritten(snapshot: ItemSnapshot, placed: PlacedVectors) -> Rows:
    """The rows of items about which something else is written than what their vectors were made from.

    In a snapshot of before it kept marks those without a vector; no deleted item in any.
    """
    vectors = placed.vectors[: snapshot.size]
    if "text_mark" not in snapshot.columns:
        rows = np.flatnonzero(np.isnan(vectors[:, 0])).astype(np.int32)
        rows = rows[snapshot.holds(rows)]
        return rows[[bool(text.strip()) for text in written(snapshot, rows.tolist())]]
    said, read = snapshot.columns["text_mark"][: len(vectors)], placed.marks[: len(vectors)]
    differs = (said != read) & ~(np.isnan(said) & np.isnan(read))
    return np.flatnonzero(differs & ~deleted(snapshot)[: len(vectors)]).astype(np.int32)


def deleted(snapshot: ItemSnapshot) -> NDArray[np.bool_]:
    """bool[size]: whether an item is deleted; a snapshot of before it kept that knows of none."""
    return np.asarray(snapshot.columns.get(DELETED, np.zeros(snapshot.size, np.bool_)))


def _details(snapshot: ItemSnapshot, row: int) -> Details:
    details: Details = {}
    if "title" in snapshot.columns and (title := bytes(snapshot.columns["title"][row]).decode()):
        details["title"] = title
    for name in ("category", "brand"):
        if name in snapshot.columns and (code := int(snapshot.columns[name][row])) >= 0:
            details[name] = snapshot.vocabulary(name)[code]
    if "price" in snapshot.columns and not np.isnan(price := float(snapshot.columns["price"][row])):
        details["price"] = round(price, 2)
    return details
