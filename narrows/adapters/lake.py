"""Reports' reads of the lake: the rows of one snapshot as a data frame, without Spark.

    table = LakeTable.of("narrows_megashop_prod")           # by the Glue catalogue
    table = LakeTable.at(".narrows/lake/<bucket>/lake/narrows/events")      # by its place, plain or s3://
    table.read(["event_type", "event_date"], since=date(2026, 11, 1))

Iceberg's metadata say which files belong to a snapshot; awswrangler reads them from S3, pyarrow from a
folder. A table that was copied elsewhere is read where it lies now.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from narrows.errors import NarrowsError

DELETED = 2  # the status of a manifest's entry whose file is no part of the snapshot any more
_VERSION = re.compile(r"(?:^|/)v?0*(\d+)[^/]*\.metadata\.json$")


class LakeUnreadable(NarrowsError):
    """There is no such table or snapshot, or one of its files cannot be read; says which."""


@dataclass(frozen=True)
class LakeTable:
    """One Iceberg table as its newest metadata describe it; `location` is where it lies now."""

    location: str
    metadata: dict[str, Any]

    @classmethod
    def at(cls, location: str) -> LakeTable:
        """The table in this folder, plain or `s3://`, by the highest version of its metadata."""
        place = location.rstrip("/")
        versions = [
            (int(found[1]), name) for name in _names(f"{place}/metadata/") if (found := _VERSION.search(name))
        ]
        if not versions:
            raise LakeUnreadable(f"{location} holds no Iceberg table; run compact_events, or check the path")
        return cls(place, json.loads(_content(max(versions)[1])))

    @classmethod
    def of(cls, database: str, table: str = "events") -> LakeTable:
        """The table as the Glue catalogue has it: its metadata are the ones that were last committed."""
        import awswrangler as wr

        found = wr.catalog.get_table_parameters(database=database, table=table)
        metadata = json.loads(_content(found["metadata_location"]))
        return cls(metadata["location"].rstrip("/"), metadata)

    def snapshots(self) -> list[int]:
        """The numbers of the snapshots that one can read, oldest first."""
        found = sorted(self.metadata.get("snapshots", ()), key=lambda one: int(one["sequence-number"]))
        return [int(one["snapshot-id"]) for one in found]

    def files(self, *, since: date | None = None, snapshot: int | None = None) -> list[str]:
        """The Parquet files of a snapshot, the newest unless one is named; `since`: of these days alone."""
        wanted = snapshot or self.metadata.get("current-snapshot-id")
        known = {one["snapshot-id"]: one["manifest-list"] for one in self.metadata.get("snapshots", ())}
        if wanted not in known:
            if snapshot is None:
                return []
            raise LakeUnreadable(f"{self.location} has no snapshot {snapshot}; it has {self.snapshots()}")
        manifests = [self._here(one["manifest_path"]) for one in _records(self._here(known[wanted]))]
        entries = [entry for manifest in manifests for entry in _records(manifest)]
        files = [entry["data_file"] for entry in entries if entry["status"] != DELETED]
        return [self._here(file["file_path"]) for file in files if _is_since(file["partition"], since)]

    def read(self, columns: Sequence[str], *, since: date | None = None, snapshot: int | None = None) -> Any:
        """The rows as a pandas frame of these columns; a frame without rows where there are none."""
        import pandas as pd

        frames = [_frame(file, columns) for file in self.files(since=since, snapshot=snapshot)]
        return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(columns))

    def _here(self, written: str) -> str:
        """A path of the metadata where the table lies now."""
        path, home = (re.sub(r"^file:/*", "/", one) for one in (written, str(self.metadata["location"])))
        return self.location + path.removeprefix(home.rstrip("/")) if path.startswith(home) else path


def _frame(file: str, columns: Sequence[str]) -> Any:
    """The rows of one file; one from before a column was added has it without values."""
    if file.startswith("s3://"):
        import awswrangler as wr

        frame = wr.s3.read_parquet(file, columns=list(columns))
    else:
        from pyarrow import parquet

        frame = parquet.ParquetFile(file).read(columns=list(columns)).to_pandas()
    return frame.reindex(columns=list(columns))


def _records(path: str) -> list[Any]:
    import fastavro

    return list(fastavro.reader(io.BytesIO(_content(path))))


def _is_since(partition: dict[str, Any], since: date | None) -> bool:
    day = partition.get("event_date")
    return since is None or day is None or day >= since


def _names(folder: str) -> Iterator[str]:
    if folder.startswith("s3://"):
        import awswrangler as wr

        yield from wr.s3.list_objects(folder)
    else:
        yield from (str(path) for path in Path(folder).glob("*.metadata.json"))


def _content(path: str) -> bytes:
    if not path.startswith("s3://"):
        try:
            return Path(path).read_bytes()
        except OSError as error:
            raise LakeUnreadable(f"{path}: {error.strerror}; the snapshot may be forgotten by now") from error
    import awswrangler as wr

    target = io.BytesIO()
    wr.s3.download(path, target)
    return target.getvalue()
