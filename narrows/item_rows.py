"""What imported files say of items, judged as POST /api/items judges what it is sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from narrows.column_names import plain_name
from narrows.errors import InvalidInput
from narrows.importing import (
    NULLS,
    Column,
    Rows,
    catalogue_columns,
    clean_texts,
    identifiers,
    joined_values,
    moments_of,
    texts,
)
from narrows.item_upsert import checked_values
from narrows.settings import Catalogue


def item_sources(header: Sequence[str], catalogue: Catalogue) -> dict[str, list[str]]:
    """For each column of the app that the API judges, the columns of a file that fill it."""
    plain = {plain_name(column): column for column in header}
    parts = (catalogue.categories, catalogue.brand, catalogue.seller, catalogue.price, catalogue.time)
    names = (*parts, catalogue.regions, catalogue.stock, *catalogue.text, *catalogue.attributes)
    return catalogue_columns(header, catalogue) | {name: [plain[name]] for name in names if name in plain}


def judge_items(rows: Rows, sources: Mapping[str, Sequence[str]], catalogue: Catalogue) -> dict[int, str]:
    """The reasons, by index, why the API would refuse what is kept of these rows: "bad <field>: <why>".

    What cannot be read as a number or a moment is not kept, and reads as missing.
    """
    columns: dict[str, Sequence[Any]] = {}
    for name, wanted in sources.items():
        if there := [rows.columns[one] for one in wanted if one in rows.columns]:
            columns[name] = _kept(name, there, catalogue)
    reasons: dict[int, str] = {}
    for index in range(len(rows.lines) if columns else 0):
        said = {name: column[index] for name, column in columns.items() if column[index] is not None}
        try:
            checked_values(said, catalogue)
        except InvalidInput as error:
            reasons[index] = f"bad {error.field.partition('[')[0]}: {error}"
    return reasons


def _kept(name: str, sources: Sequence[Column], catalogue: Catalogue) -> Sequence[Any]:
    """What the import keeps of a column, as an item would be sent with it; None where it is missing."""
    if name in (catalogue.categories, catalogue.regions):
        return joined_values(sources)
    if name == catalogue.time:
        return [None if np.isnan(one) else one for one in moments_of(sources[0]).tolist()]
    if name in (catalogue.price, catalogue.stock, *catalogue.attributes):
        return [_number(cell) for cell in texts(sources[0])]
    if name == catalogue.seller:
        return identifiers(sources[0])
    return [cell if cell and cell.strip() else None for cell in clean_texts(texts(sources[0]))]


def _number(cell: str) -> float | None:
    text = cell.strip()
    if text.lower() in NULLS:
        return None
    try:
        return float(text)
    except ValueError:
        return None
