"""Publishes a catalogue: the item snapshot that serving reads, and the items that training reads."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from narrows.adapters.s3 import S3Objects
from narrows.catalogue import item_columns
from narrows.control import ControlTable, Pointer, snapshot_pointer
from narrows.item_upsert import DELETED
from narrows.settings import App
from narrows.snapshot import write_base
from narrows.snapshot_feed import SPARE_ROWS

CATALOGUE = "catalogue/part-0.parquet"


def write_snapshot(directory: Path, app: App, table: Mapping[str, Sequence[Any]], *, version: str) -> None:
    """Write a catalogue's table (name -> values, None where missing) as an item snapshot."""
    items = item_columns(table, app.catalogue)
    write_base(
        directory,
        items.ids,
        {**items.columns, DELETED: np.zeros(len(items.ids), np.bool_)},
        version=version,
        spare=SPARE_ROWS,
        vocabularies=items.vocabularies,
    )


def publish_catalogue(
    app: App,
    rows: Sequence[Mapping[str, Any]],
    *,
    objects: S3Objects,
    control: ControlTable,
    directory: Path,
    version: str,
    now: float,
) -> Pointer:
    """Store the snapshot and the items, then move the app's snapshot pointer; `directory` is scratch."""
    table = {name: [row.get(name) for row in rows] for name in rows[0]}
    write_snapshot(directory, app, table, version=version)
    prefix = f"snapshots/{version}"
    objects.upload(directory, prefix)
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows]), buffer)
    objects.put(CATALOGUE, buffer.getvalue())
    current = control.read(snapshot_pointer(app.name))
    pointer = Pointer(version, prefix, now, current.version if current else "")
    control.move(snapshot_pointer(app.name), pointer, expected=current.version if current else None)
    return pointer
