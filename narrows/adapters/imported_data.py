"""Reads an imported data directory for serving from files: its items, and one visitor's history."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from narrows.events import Event
from narrows.importing import ImportRefused


def item_table(data: Path, id_column: str) -> dict[str, list[Any]]:
    """The catalogue by column; items that have interactions but no row in it are added with nothing known."""
    items = _table(data / "items")
    columns: dict[str, list[Any]] = {}
    if items is not None:
        columns = {name: items.column(name).to_pylist() for name in items.column_names}
    ids = columns.pop("item_id", [])
    touched = pc.unique(_interactions(data, ["item_id"]).column("item_id")).to_pylist()
    known = set(ids)
    missing = sorted(one for one in touched if one not in known)
    return {
        id_column: [*ids, *missing],
        **{name: [*v, *[None] * len(missing)] for name, v in columns.items()},
    }


def history_of(data: Path, user_id: str) -> list[Event]:
    """What the user did, oldest first; none for a stranger."""
    table = _interactions(data, None, [("user_id", "==", user_id)])
    rows = sorted(table.to_pylist(), key=lambda row: float(row["time"]))
    return [
        Event(
            event_id=f"{user_id}-{number}",
            event_type=row["event_type"],
            time=row["time"],
            received_at=row["time"],
            user_id=user_id,
            item_id=row["item_id"],
            value=row["value"],
        )
        for number, row in enumerate(rows)
    ]


def last_time(data: Path) -> float:
    """When the newest interaction happened, in epoch seconds: the present of the data."""
    return float(pc.max(_interactions(data, ["time"]).column("time")).as_py())


def _interactions(
    data: Path, columns: list[str] | None, filters: Iterable[tuple[str, str, Any]] | None = None
) -> Any:
    paths = sorted((data / "interactions").glob("**/*.parquet"))
    rule = list(filters) if filters else None
    return pa.concat_tables([_read(path, columns=columns, filters=rule) for path in paths])


def _table(folder: Path) -> Any:
    paths = sorted(folder.glob("**/*.parquet"))
    return pa.concat_tables([_read(path) for path in paths]) if paths else None


def _read(path: Path, **options: Any) -> Any:
    try:
        return pq.read_table(path, **options)
    except (pa.ArrowInvalid, OSError) as error:
        raise ImportRefused(f"{path} cannot be read ({error}); run narrows import again") from error
