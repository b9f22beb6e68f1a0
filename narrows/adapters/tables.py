"""The training data directory: Parquet tables of interactions and items, read into arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from narrows.errors import InvalidInput
from narrows.interactions import Interactions, coded_interactions


@dataclass(frozen=True, eq=False)
class TrainingData:
    """`items`: the item table by column, [] where there is none; `left_out`: why events were not counted."""

    interactions: Interactions
    items: Mapping[str, Sequence[Any]]
    left_out: Mapping[str, int]


def read_training_data(directory: Path) -> TrainingData:
    """Read `interactions/` and, where it is there, `items/`.

    Events without a user, an item, a time or a positive weight are left out and counted. A `segment` column
    of the interactions gives each user the segment of the last event that tells one.
    """
    table = _table(directory / "interactions", ("user_id", "item_id", "time"))
    if table is None:
        raise InvalidInput(
            "training",
            str(directory),
            "give a directory with interactions/*.parquet (user_id, item_id, time)",
        )
    items = _table(directory / "items", ("item_id",))
    columns = {} if items is None else {name: items.column(name).to_pylist() for name in items.column_names}
    return _training_data(table, columns)


def write_training_data(
    directory: Path, interactions: Mapping[str, Sequence[Any]], items: Mapping[str, Sequence[Any]]
) -> None:
    """Write the two tables, one file each."""
    for name, columns in (("interactions", interactions), ("items", items)):
        if columns:
            (directory / name).mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.table(dict(columns)), directory / name / "part-0.parquet")


def _table(folder: Path, needed: Sequence[str]) -> Any:
    paths = sorted(folder.glob("**/*.parquet"))
    if not paths:
        return None
    table = pa.concat_tables([pq.read_table(path) for path in paths], promote_options="permissive")
    for name in needed:
        if name not in table.column_names:
            raise InvalidInput(f"{folder.name}.{name}", table.column_names, f"add the column '{name}'")
    return table


def _training_data(table: Any, items: Mapping[str, Sequence[Any]]) -> TrainingData:
    times = table.column("time").cast(pa.float64())
    worth = table.column("weight") if "weight" in table.column_names else None
    weights = np.ones(len(table), np.float32) if worth is None else _numbers(worth).astype(np.float32)
    users, user_ids = _coded(table.column("user_id"), ())
    rows, item_ids = _coded(table.column("item_id"), items.get("item_id", ()))
    when = _numbers(times)
    nameless = (users < 0) | (rows < 0)
    left_out = {
        "without_user_or_item": int(nameless.sum()),
        "without_time": int(np.isnan(when).sum()),
        "worth_nothing": int((~(weights > 0)).sum()),
    }
    weights[nameless] = 0.0
    interactions = coded_interactions(users, rows, when, weights, user_ids, item_ids)
    segments = _segments(table, users, when, len(user_ids))
    return TrainingData(replace(interactions, segments=segments), items, left_out)


def _segments(
    table: Any, users: NDArray[np.int64], times: NDArray[np.float64], count: int
) -> NDArray[np.str_] | None:
    if "segment" not in table.column_names:
        return None
    names = np.asarray(pc.fill_null(table.column("segment").cast(pa.string()), "").to_pylist(), str)
    segments = np.zeros(count, names.dtype)
    order = np.argsort(times, kind="stable")
    order = order[(users[order] >= 0) & (names[order] != "")]
    segments[users[order]] = names[order]
    return segments if len(order) else None


def _numbers(column: Any) -> NDArray[np.float64]:
    values: NDArray[np.float64] = column.cast(pa.float64()).fill_null(float("nan")).to_numpy()
    return np.asarray(values, np.float64)


def _coded(column: Any, more: Sequence[Any]) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """(code of each row, -1 for none; the sorted ids with `more` added)."""
    encoded = pc.dictionary_encode(column.cast(pa.string()).combine_chunks())
    words = np.asarray(encoded.dictionary.to_pylist() or [], str)
    extra = np.asarray([str(one) for one in more if one is not None], str)
    ids = np.unique(np.concatenate([words, extra])) if len(words) + len(extra) else words
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    place = np.append(np.searchsorted(ids, words), -1)
    return place[codes], ids
