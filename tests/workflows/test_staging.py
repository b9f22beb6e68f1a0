"""S3 locations as folders for programs that know only paths, and the one place in which the lake lies."""

from __future__ import annotations

from pathlib import Path

import pytest

from localcloud.staging import Stage
from tests.servers import Aws


@pytest.fixture
def bucket(moto: Aws) -> Aws:
    """A bucket with one landed file and a lake of one file."""
    s3 = moto.client("s3")
    s3.create_bucket(Bucket="bucket")
    for key in ("landing/1.gz", "lake/events/data.parquet"):
        s3.put_object(Bucket="bucket", Key=key, Body=b"old")
    return moto


def keys(aws: Aws) -> set[str]:
    """All keys of the bucket."""
    return {entry["Key"] for entry in aws.client("s3").list_objects_v2(Bucket="bucket").get("Contents", ())}


def test_every_job_finds_the_lake_under_the_same_path(bucket: Aws, tmp_path: Path) -> None:
    """Another folder for each run, one for the lake: the absolute paths in its metadata stay true."""
    s3 = bucket.client("s3")
    first = Stage(s3, tmp_path / "run-1", tmp_path / "lake")
    second = Stage(s3, tmp_path / "run-2", tmp_path / "lake")
    assert first.localise("s3://bucket/landing/") != second.localise("s3://bucket/landing/")
    place = first.localise("s3://bucket/lake/")
    assert place == second.localise("s3://bucket/lake/") == str(tmp_path / "lake" / "bucket" / "lake")
    assert (Path(place) / "events" / "data.parquet").read_bytes() == b"old"


def test_what_a_job_changes_in_the_lake_reaches_the_bucket(bucket: Aws, tmp_path: Path) -> None:
    """New, changed and removed files; what was only read is not uploaded, nor is Hadoop's bookkeeping."""
    stage = Stage(bucket.client("s3"), tmp_path / "run", tmp_path / "lake")
    lake = Path(stage.localise("s3://bucket/lake/")) / "events"
    stage.localise("s3://bucket/landing/")
    (lake / "new.parquet").write_bytes(b"new")
    (lake / ".new.parquet.crc").write_bytes(b"check")
    (lake / "data.parquet").unlink()
    assert stage.bring_back() == ["lake/events/new.parquet"]
    assert keys(bucket) == {"landing/1.gz", "lake/events/new.parquet"}


def test_a_job_that_names_no_lake_leaves_it_alone(bucket: Aws, tmp_path: Path) -> None:
    """What another job is writing there at the moment is not taken for this one's work."""
    stage = Stage(bucket.client("s3"), tmp_path / "run", tmp_path / "lake")
    stage.localise("s3://bucket/landing/")
    unfinished = tmp_path / "lake" / "bucket" / "lake" / "half.parquet"
    unfinished.parent.mkdir(parents=True)
    unfinished.write_bytes(b"half")
    assert stage.bring_back() == []
    assert "lake/half.parquet" not in keys(bucket)


def test_what_the_last_job_left_in_the_lake_is_not_fetched_again(bucket: Aws, tmp_path: Path) -> None:
    """The folder is never behind the bucket: jobs are its only writers."""
    kept = tmp_path / "lake" / "bucket" / "lake" / "events" / "data.parquet"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"newer")
    Stage(bucket.client("s3"), tmp_path / "run", tmp_path / "lake").localise("s3://bucket/lake/")
    assert kept.read_bytes() == b"newer"
