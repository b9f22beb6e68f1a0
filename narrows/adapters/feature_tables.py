"""What the nightly jobs wrote of moments: features of visitors and of items, and what was passed over."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from narrows.errors import InvalidInput
from narrows.features.statistics import DeclaredItems
from narrows.retrieval import NO_ROWS, Floats, Rows

VISITOR_FEATURES = "visitor_features"
ITEM_FEATURES = "item_features"
NEGATIVES = "negatives"


@dataclass(frozen=True)
class Known:
    """A visitor's values at a moment, with flags; `request` is None where they are not those of a record."""

    visitor: Mapping[str, float]
    request: Mapping[str, float] | None
    context: Mapping[str, str]


@dataclass(frozen=True, eq=False)
class VisitorFeatures:
    """What was known of visitors at some moments, by (visitor key, epoch seconds)."""

    places: Mapping[tuple[str, float], int]
    served: NDArray[np.bool_]
    visitor: Maps
    request: Maps
    context: Maps

    def __len__(self) -> int:
        return len(self.places)

    def at(self, visitor: str, time: float) -> Known | None:
        """None for a moment that was not asked for."""
        place = self.places.get((visitor, time))
        if place is None:
            return None
        request = self.request.row(place) if self.served[place] else None
        return Known(self.visitor.row(place), request, self.context.row(place))


@dataclass(frozen=True, eq=False)
class Maps:
    """A column of maps, of which few are looked at."""

    offsets: NDArray[np.int64]
    names: Sequence[str]
    codes: NDArray[np.int64]
    values: Sequence[Any]

    def row(self, place: int) -> dict[str, Any]:
        """One of them."""
        inside = slice(int(self.offsets[place]), int(self.offsets[place + 1]))
        names = (self.names[code] for code in self.codes[inside].tolist())
        return dict(zip(names, self.values[inside], strict=True))


def read_visitor_features(directory: Path) -> VisitorFeatures | None:
    """The table `visitor_features/` of a training data directory; None where it has none."""
    table = _table(directory / VISITOR_FEATURES)
    if table is None:
        return None
    keys = zip(table.column("user_id").to_pylist(), table.column("time").to_pylist(), strict=True)
    return VisitorFeatures(
        {key: place for place, key in enumerate(keys)},
        np.asarray(table.column("served").to_pylist(), bool),
        _maps(table.column("visitor")),
        _maps(table.column("request")),
        _maps(table.column("context")),
    )


@dataclass(frozen=True, eq=False)
class PassedOver:
    """What a visitor was shown and did not choose; `weights`: the share of its window that has passed."""

    rows: Rows = field(default_factory=lambda: NO_ROWS)
    weights: Floats = field(default_factory=lambda: np.empty(0, np.float32))

    def shares(self, rows: Rows) -> Floats:
        """The weight of each of these rows, nan for those that were not passed over."""
        found = np.full(len(rows), np.nan, np.float32)
        for row, weight in zip(self.rows.tolist(), self.weights.tolist(), strict=True):
            found[rows == row] = weight
        return found


def read_negatives(
    directory: Path, rows_of: Callable[[Sequence[str]], Rows]
) -> dict[tuple[str, float], PassedOver]:
    """`negatives/` of a training data directory, by (visitor key, epoch seconds of a label); {} without."""
    table = _table(directory / NEGATIVES)
    if table is None:
        return {}
    rows = rows_of(table.column("negative_id").to_pylist())
    weights = table.column("weight").to_numpy().astype(np.float32)
    places: dict[tuple[str, float], list[int]] = {}
    labels = zip(table.column("user_id").to_pylist(), table.column("time").to_pylist(), strict=True)
    for place, label in enumerate(labels):
        places.setdefault(label, []).append(place)
    return {label: PassedOver(rows[found], weights[found]) for label, found in places.items()}


def read_item_features(directory: Path, defaults: Mapping[str, float]) -> DeclaredItems | None:
    """`item_features/` (item_id, as_of, one column a feature) of the features that have a default here.

    None where the table is not there; InvalidInput where it lacks one of them.
    """
    table = _table(directory / ITEM_FEATURES)
    if table is None:
        return None
    absent = sorted(defaults.keys() - set(table.column_names))
    if absent:
        remedy = "build the features again: the declarations have changed since"
        raise InvalidInput(f"{ITEM_FEATURES}.{absent[0]}", table.column_names, remedy)
    item_ids, items = np.unique(np.asarray(table.column("item_id").to_pylist(), str), return_inverse=True)
    moments, layers = np.unique(table.column("as_of").to_numpy(), return_inverse=True)
    values = np.full((len(moments), len(item_ids), len(defaults)), np.nan, np.float32)
    for place, name in enumerate(defaults):
        column = table.column(name).cast(pa.float64()).fill_null(float("nan"))
        values[layers, items, place] = column.to_numpy()
    filled = np.asarray(list(defaults.values()), np.float32)
    return DeclaredItems(tuple(defaults), filled, item_ids, moments, values)


def _table(folder: Path) -> Any:
    paths = sorted(folder.glob("**/*.parquet"))
    if not paths:
        return None
    return pa.concat_tables([pq.read_table(path) for path in paths], promote_options="permissive")


def _maps(column: Any) -> Maps:
    whole = pa.concat_arrays([*column.chunks, pa.array([], column.type)])
    filled = pc.fill_null(whole, pa.scalar([], whole.type)) if whole.null_count else whole
    keys = pc.dictionary_encode(filled.keys)
    offsets = filled.offsets.to_numpy().astype(np.int64)
    return Maps(
        offsets,
        keys.dictionary.to_pylist(),
        keys.indices.to_numpy().astype(np.int64),
        filled.items.to_pylist(),
    )
