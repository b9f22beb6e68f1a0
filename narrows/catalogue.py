"""A catalogue's table -> the columns that every stage reads, under the names of the parts they play.

An app names its own columns in `[catalogue]`; the engine only knows the parts: category, brand, seller,
price, created_at, regions, title, text; and the numbers among its `attributes`, by their own names. The
snapshot, the training jobs and the tests all take their columns from here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from narrows.errors import InvalidInput
from narrows.events import is_usual
from narrows.settings import Catalogue
from narrows.text_vectors import TEXT_BYTES, cut, document_names, documents, text_marks

CATEGORIES_KEPT = 4
"""Of an item, the first ones: the ranker, variety and the filter of a search know no others."""
TITLE_BYTES = 96
UNKNOWN_CODE = -1


@dataclass(frozen=True, eq=False)
class ItemColumns:
    """Columns over `ids`, in the same order; codes are int32 into `vocabularies`, -1 where there is none.

    category int32[n] (the first), category_all int32[n, 4] (the first four), brand int32[n],
    seller int32[n], price float32[n] (nan: none), created_at float64[n] (epoch seconds, nan: none),
    regions int32[n, r] (empty: everywhere), title bytes[n] (UTF-8, cut at 96 bytes), text bytes[n] (all
    that is written about it, cut as `text_vectors.documents` does), text_mark float64[n] (tells one text from
    another, nan: none), price_position float32[n] (the share of its category that is cheaper, from 0 for the
    cheapest to 1, nan: no price), attributes float32[n]. A part that the app does not declare has no column.
    """

    ids: tuple[str, ...]
    columns: Mapping[str, NDArray[Any]]
    vocabularies: Mapping[str, tuple[str, ...]]


def item_columns(table: Mapping[str, Sequence[Any]], catalogue: Catalogue) -> ItemColumns:
    """The columns of a table (name -> values, None where missing) as the app's `[catalogue]` reads it.

    A declared column that the table lacks is left out. InvalidInput when the id column is missing, holds an
    empty id or holds one twice.
    """
    ids = _ids(table, catalogue)
    columns, vocabularies = _word_columns(table, catalogue)
    for part, name, dtype in (
        ("price", catalogue.price, np.float32),
        ("created_at", catalogue.time, np.float64),
    ):
        if name in table:
            columns[part] = np.array([_number(value) for value in table[name]], dtype)
    columns |= {
        name: np.array([_number(value) for value in table[name]], np.float32)
        for name in catalogue.attributes
        if name in table
    }
    if "price" in columns:
        within = columns.get("category", np.zeros(len(ids), np.int32))
        columns["price_position"] = price_position(columns["price"], within)
    if catalogue.text and catalogue.text[0] in table:
        titles = ["" if value is None else str(value) for value in table[catalogue.text[0]]]
        columns["title"] = np.array([cut(one, TITLE_BYTES).encode() for one in titles], f"S{TITLE_BYTES}")
    if not table.keys().isdisjoint(document_names(catalogue)):
        texts = documents(table, catalogue)
        columns["text"] = np.array([one.encode() for one in texts], f"S{TEXT_BYTES}")
        columns["text_mark"] = text_marks(texts)
    return ItemColumns(ids, columns, vocabularies)


def _word_columns(
    table: Mapping[str, Sequence[Any]], catalogue: Catalogue
) -> tuple[dict[str, NDArray[Any]], dict[str, tuple[str, ...]]]:
    """The columns of codes, and the vocabularies that these are of."""
    columns: dict[str, NDArray[Any]] = {}
    vocabularies: dict[str, tuple[str, ...]] = {}
    if catalogue.categories in table:
        lists = [_as_list(value) for value in table[catalogue.categories]]
        codes, vocabularies["category"] = _coded_lists(lists)
        columns |= {"category": codes[:, 0], "category_all": codes}
        vocabularies["category_all"] = vocabularies["category"]
    if catalogue.regions in table:
        lists = [_as_list(value) for value in table[catalogue.regions]]
        kept = max([CATEGORIES_KEPT, *map(len, lists)])
        columns["regions"], vocabularies["regions"] = _coded_lists(lists, kept)
    for part, name, read in (("brand", catalogue.brand, _as_list), ("seller", catalogue.seller, _as_word)):
        if name in table:
            codes, vocabularies[part] = _coded_lists([read(value)[:1] for value in table[name]])
            columns[part] = codes[:, 0]
    return columns, vocabularies


def price_position(prices: NDArray[np.float32], groups: NDArray[np.int32]) -> NDArray[np.float32]:
    """Where each price stands among those of its group: 0 for the cheapest, 1 for the dearest.

    Equal prices share their middle; an item that is alone in its group stands at 0.5.
    """
    position = np.full(len(prices), np.nan, np.float32)
    known = np.flatnonzero(~np.isnan(prices))
    if not len(known):
        return position
    order = known[np.lexsort((prices[known], groups[known]))]
    starts = np.flatnonzero(np.diff(groups[order], prepend=groups[order[:1]] - 1))
    for start, end in zip(starts, [*starts[1:], len(order)], strict=True):
        among = prices[order[start:end]]
        below = np.searchsorted(among, among, "left") + np.searchsorted(among, among, "right") - 1
        position[order[start:end]] = below / (2.0 * (end - start - 1)) if end - start > 1 else 0.5
    return position


def _ids(table: Mapping[str, Sequence[Any]], catalogue: Catalogue) -> tuple[str, ...]:
    if catalogue.id not in table:
        raise InvalidInput(catalogue.id, sorted(table), "the catalogue needs its id column")
    ids = tuple("" if value is None else str(value) for value in table[catalogue.id])
    if "" in ids:
        raise InvalidInput(catalogue.id, f"row {ids.index('')}", "give every item an id")
    if len(set(ids)) < len(ids):
        seen: set[str] = set()
        twice = next(one for one in ids if one in seen or seen.add(one))  # type: ignore[func-returns-value]
        raise InvalidInput(catalogue.id, twice, "give every item once")
    return ids


def _as_list(value: Any) -> list[str]:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return []
    parts = value.split("|") if isinstance(value, str) else value
    return [str(part) for part in parts if part is not None and str(part)]


def _as_word(value: Any) -> list[str]:
    """A whole name, whatever stands in it, as a list of one, or of none."""
    return [] if value is None or value != value or value == "" else [str(value)]


def _coded_lists(
    lists: Sequence[Sequence[str]], kept: int = CATEGORIES_KEPT
) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    """Codes int32[n, kept] in order of the vocabulary, which is sorted, and the vocabulary."""
    vocabulary = tuple(sorted({name for names in lists for name in names[:kept]}))
    code_of = {name: code for code, name in enumerate(vocabulary)}
    codes = np.full((len(lists), kept), UNKNOWN_CODE, np.int32)
    for row, names in enumerate(lists):
        found = [code_of[name] for name in names[:kept]]
        codes[row, : len(found)] = found
    return codes, vocabulary


def _number(value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return float("nan")
    return number if is_usual(number) else float("nan")  # float32 would make infinities of the largest
