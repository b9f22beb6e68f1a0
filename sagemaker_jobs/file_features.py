"""The declared features of plain interactions: the same declarations over their events, by numpy.

A directory that no nightly job made has no `visitor_features/`. Its events know who, what, when, their type
and value; what a declaration reads besides is missing there, and the feature's flag says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from narrows.adapters.feature_tables import Known
from narrows.evaluation.leave_one_out import ANONYMOUS_PREFIX
from narrows.features.columns import EventColumns, TextColumn
from narrows.features.kinds import LastN, PerValue
from narrows.features.registry import FeatureSet
from narrows.features.statistics import NONE_DECLARED, DeclaredItems
from narrows.interactions import Interactions

JUST_BEFORE_S = 0.001
ITEM_MOMENTS = 4


@dataclass(frozen=True, eq=False)
class FileFeatures:
    """What was known of visitors before each of their last events, by (visitor, epoch seconds)."""

    places: Mapping[tuple[str, float], int]
    names: tuple[str, ...]
    values: NDArray[np.float64]
    pairs: Mapping[str, NDArray[Any]]

    def __len__(self) -> int:
        return len(self.places)

    def at(self, visitor: str, time: float) -> Known | None:
        """None for a moment that is not one of the last events."""
        place = self.places.get((visitor, time))
        if place is None:
            return None
        found = dict(zip(self.names, self.values[place].tolist(), strict=True))
        for name, column in self.pairs.items():
            found |= {f"{name}[{text}]": value for text, value in column[place].items()}
        return Known(found, None, {})


def file_features(
    folder: Path, features: FeatureSet, log: Interactions, last: int
) -> tuple[FileFeatures, DeclaredItems] | None:
    """Of the last events of every visitor, and of the items as of some of those moments and the newest.

    None where the events do not say their type: no declaration could tell which of them it takes.
    """
    events = _events(folder / "interactions")
    if events is None:
        return None
    held = np.flatnonzero(log.places_from_end() < last)
    visitors, times = log.user_ids[log.users[held]].astype(str), log.times[held]
    return _visitors(events, features, visitors, times), _items(events, features, log, times)


def _visitors(
    events: EventColumns, features: FeatureSet, visitors: NDArray[Any], times: NDArray[np.float64]
) -> FileFeatures:
    asked = list(dict.fromkeys(zip(visitors.tolist(), times.tolist(), strict=True)))
    keys = [visitor for visitor, _ in asked]
    as_of = np.array([time for _, time in asked]) - JUST_BEFORE_S
    chosen = features.scoped("visitor", "user")
    found = chosen.values(events, keys, as_of)
    unlisted = [one for one in chosen.features if not isinstance(one.kind, LastN)]
    pairs = {one.name: found[one.name] for one in unlisted if isinstance(one.kind, PerValue)}
    nothing = features.read(features.zero(), 0.0)
    names = tuple(nothing)
    columns = [found.get(name, np.full(len(asked), nothing[name])) for name in names]
    values = np.stack(columns, axis=1) if columns else np.empty((len(asked), 0))
    return FileFeatures({key: place for place, key in enumerate(asked)}, names, values, pairs)


def _items(
    events: EventColumns, features: FeatureSet, log: Interactions, times: NDArray[np.float64]
) -> DeclaredItems:
    chosen = features.scoped("item")
    if not chosen.names or not len(times):
        return NONE_DECLARED
    shares = np.arange(ITEM_MOMENTS) / ITEM_MOMENTS
    moments = np.unique([*(np.quantile(times, shares) - JUST_BEFORE_S), log.times.max()])
    item_ids = log.item_ids.astype(str)
    by_item = EventColumns(events.text("item_id"), events.time, events.order, events.texts, events.numbers)
    keys = np.tile(item_ids, len(moments)).tolist()
    found = chosen.values(by_item, keys, np.repeat(moments, len(item_ids)))
    layers = []
    for name in chosen.names:
        known = np.where(found[f"{name}_missing"] > 0, np.nan, found[name])
        layers.append(known.reshape(len(moments), len(item_ids)))
    defaults = [one.declaration.default for one in chosen.features if one.name in chosen.names]
    values = np.stack(layers, axis=2).astype(np.float32)
    return DeclaredItems(chosen.names, np.array(defaults, np.float32), item_ids, moments, values)


def _events(folder: Path) -> EventColumns | None:
    tables = [pq.read_table(path) for path in sorted(folder.glob("**/*.parquet"))]
    table = pa.concat_tables(tables, promote_options="permissive")
    if "event_type" not in table.column_names:
        return None
    time = table.column("time").cast(pa.float64()).to_numpy()
    table, time = table.filter(pa.array(np.isfinite(time))), time[np.isfinite(time)]
    users = _text(table.column("user_id"))
    anonymous = np.array([word.startswith(ANONYMOUS_PREFIX) for word in users.words] + [True])
    texts = {
        "event_type": _text(table.column("event_type")),
        "item_id": _text(table.column("item_id")),
        "user_id": TextColumn(np.where(anonymous[users.codes], -1, users.codes), users.words),
        "hour": TextColumn.hours(time),
    }
    numbers = {}
    if "value" in table.column_names:
        amounts = table.column("value").cast(pa.float64()).fill_null(float("nan"))
        numbers["event_value"] = np.asarray(amounts.to_numpy(), np.float64)
    return EventColumns(users, time, np.arange(len(time)), texts, numbers)


def _text(column: Any) -> TextColumn:
    encoded = pc.dictionary_encode(column.cast(pa.string()).combine_chunks())
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return TextColumn(codes, tuple(encoded.dictionary.to_pylist()))
