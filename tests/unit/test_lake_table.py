"""What reports read of an Iceberg table: the files of one snapshot, wherever the table lies now."""

from __future__ import annotations

import io
import json
from datetime import date
from pathlib import Path
from typing import Any

import fastavro
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from narrows.adapters.lake import LakeTable, LakeUnreadable
from tests.servers import Aws

WRITTEN = "file:/somewhere/else/events"  # where the metadata say that the table is
LIST = {"type": "record", "name": "list", "fields": [{"name": "manifest_path", "type": "string"}]}
DAY = {
    "type": "record",
    "name": "p",
    "fields": [{"name": "event_date", "type": {"type": "int", "logicalType": "date"}}],
}
FILE = {"type": "record", "name": "f",
        "fields": [{"name": "file_path", "type": "string"}, {"name": "partition", "type": DAY}]}  # fmt: skip
ENTRY = {"type": "record", "name": "entry",
         "fields": [{"name": "status", "type": "int"}, {"name": "data_file", "type": FILE}]}  # fmt: skip


def avro(schema: dict[str, Any], records: list[dict[str, Any]]) -> bytes:
    """Records as an Avro file."""
    out = io.BytesIO()
    fastavro.writer(out, schema, records)
    return out.getvalue()


def table() -> dict[str, bytes]:
    """A table of two snapshots: 1 has a.parquet; 2 has b.parquet, with a column more, in its place."""
    a = {"event_id": ["e1"], "time": [1.0]}
    b = {"event_id": ["e1", "e2"], "time": [1.0, 2.0], "surface": [None, "home"]}
    files = {
        "data/a.parquet": a,
        "data/b.parquet": b,
        "data/c.parquet": {"event_id": ["late"], "time": [0.5]},
    }
    content = {name: _parquet(rows) for name, rows in files.items()}

    def entry(status: int, name: str, day: date) -> dict[str, Any]:
        return {
            "status": status,
            "data_file": {"file_path": f"{WRITTEN}/{name}", "partition": {"event_date": day}},
        }

    new, old = date(2026, 1, 2), date(2026, 1, 1)
    manifests = {
        "m1": [entry(1, "data/a.parquet", new)],
        "m2": [
            entry(2, "data/a.parquet", new),
            entry(1, "data/b.parquet", new),
            entry(0, "data/c.parquet", old),
        ],
    }
    snapshots = []
    for number, name in enumerate(manifests, start=1):
        content[f"metadata/{name}.avro"] = avro(ENTRY, manifests[name])
        content[f"metadata/l{number}.avro"] = avro(
            LIST, [{"manifest_path": f"{WRITTEN}/metadata/{name}.avro"}]
        )
        listed = f"{WRITTEN}/metadata/l{number}.avro"
        snapshots.append({"snapshot-id": number, "sequence-number": number, "manifest-list": listed})
        metadata = {"location": WRITTEN, "current-snapshot-id": number, "snapshots": list(snapshots)}
        content[f"metadata/v{number + 8}.metadata.json"] = json.dumps(metadata).encode()
    return content


def _parquet(rows: dict[str, list[Any]]) -> bytes:
    out = io.BytesIO()
    pq.write_table(pa.table(rows), out)
    return out.getvalue()


@pytest.fixture(params=["folder", "s3"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The table, elsewhere than its metadata say: in a folder, and in a bucket."""
    if request.param == "folder":
        for name, content in table().items():
            path = tmp_path / "events" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return str(tmp_path / "events")
    aws: Aws = request.getfixturevalue("moto")
    aws.client("s3").create_bucket(Bucket="bucket")
    for name, content in table().items():
        aws.client("s3").put_object(Bucket="bucket", Key=f"lake/events/{name}", Body=content)
    return "s3://bucket/lake/events/"


def test_the_newest_snapshot_is_read_without_what_it_replaced(location: str) -> None:
    """Version 10 comes after version 9; the file that snapshot 2 deleted is not in it."""
    frame = LakeTable.at(location).read(["event_id", "surface"])
    assert sorted(frame["event_id"]) == ["e1", "e2", "late"]
    assert frame.set_index("event_id")["surface"].dropna().to_dict() == {"e2": "home"}


def test_an_older_snapshot_is_read_as_it_was(location: str) -> None:
    """Its own files, and nothing in a column that it did not have."""
    found = LakeTable.at(location)
    assert found.snapshots() == [1, 2]
    frame = found.read(["event_id", "surface"], snapshot=1)
    assert list(frame["event_id"]) == ["e1"]
    assert frame["surface"].isna().all()


def test_only_the_days_that_are_asked_for_are_opened(location: str) -> None:
    """A file of an earlier day is not even listed."""
    files = LakeTable.at(location).files(since=date(2026, 1, 2))
    assert [file.rpartition("/")[2] for file in files] == ["b.parquet"]


def test_what_is_not_there_is_named(location: str) -> None:
    """No table at the place; no such snapshot in the table."""
    with pytest.raises(LakeUnreadable, match="holds no Iceberg table"):
        LakeTable.at(f"{location.rstrip('/')}-of-nobody")
    with pytest.raises(LakeUnreadable, match=r"no snapshot 7; it has \[1, 2\]"):
        LakeTable.at(location).files(snapshot=7)


def test_the_glue_catalogue_says_which_metadata_count(moto: Aws) -> None:
    """A commit that lost its race leaves metadata behind that nobody may read."""
    s3, glue = moto.client("s3"), moto.client("glue")
    s3.create_bucket(Bucket="bucket")
    home = "s3://bucket/lake/events"
    for name, content in table().items():
        s3.put_object(
            Bucket="bucket", Key=f"lake/events/{name}", Body=content.replace(WRITTEN.encode(), home.encode())
        )
    glue.create_database(DatabaseInput={"Name": "narrows_small_dev"})
    committed = {"metadata_location": f"{home}/metadata/v9.metadata.json", "table_type": "ICEBERG"}
    glue.create_table(
        DatabaseName="narrows_small_dev", TableInput={"Name": "events", "Parameters": committed}
    )
    assert LakeTable.of("narrows_small_dev").snapshots() == [1]
