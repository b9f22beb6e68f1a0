"""The lake as in an account: Iceberg's Glue catalogue and its own S3 client, against the local cloud's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from test_lake import JOB, ROOT, event, land

from glue_jobs.event_files import located
from localcloud.jars import ICEBERG, ICEBERG_S3, JarMissing, kept
from localcloud.spark import spark_environment
from narrows.adapters.lake import LakeTable
from tests import servers
from tests.servers import Aws, credentials

pytestmark = [pytest.mark.spark, pytest.mark.local, pytest.mark.slow]

LOCATION, DATABASE = "s3://bucket/lake/", "narrows_megashop_local"


def to_the_local_cloud(endpoint: str, scratch: Path) -> dict[str, str]:
    """The environment of a job whose catalogue and files are behind this endpoint."""
    try:
        jars = [kept(ICEBERG), kept(ICEBERG_S3)]
    except JarMissing as error:
        servers.unavailable("Iceberg on S3", f"{error}; python -m localcloud.jars --s3 fetches it")
    told = spark_environment([], scratch, jars)
    places = {"s3.endpoint": endpoint, "glue.endpoint": endpoint, "s3.path-style-access": "true"}
    options = " ".join(f"--conf spark.sql.catalog.lake.{name}={value}" for name, value in places.items())
    told["PYSPARK_SUBMIT_ARGS"] = f"{options} {told['PYSPARK_SUBMIT_ARGS']}"
    return {**os.environ, **told, "PYTHONPATH": str(ROOT)}


def test_the_same_script_keeps_its_lake_in_glue_and_s3(
    ministack: Aws, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Create, MERGE twice, read as a report and as a night do: each event once, by the Glue catalogue."""
    credentials(monkeypatch, ministack.endpoint)
    ministack.client("s3").create_bucket(Bucket="bucket")
    ministack.client("glue").create_database(
        DatabaseInput={"Name": DATABASE, "LocationUri": LOCATION.rstrip("/")}
    )
    command = [sys.executable, str(JOB), "--landing", str(tmp_path / "landing"), "--lake", LOCATION]
    command += ["--database", DATABASE, "--app-config", str(ROOT / "apps" / "megashop")]
    environment = to_the_local_cloud(str(ministack.endpoint), tmp_path / "scratch")
    counts = []
    for first, ids in ((1, "ab"), (3, "bc")):
        land(tmp_path / "landing", first, [event(one) for one in ids])
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=280, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        counts.append(json.loads(done.stdout.splitlines()[-1]))
    assert [(one["new"], one["duplicates"]) for one in counts] == [(2, 0), (1, 1)]
    night = [
        sys.executable,
        str(JOB.parent / "build_features.py"),
        *command[4:],
        "--output",
        "s3://bucket/features/run",
    ]
    done = subprocess.run(night, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "read": 3,
        "later": 0,
        "visitor": 1,
        "item": 1,
        "session": 0,
        "by:category": 0,
    }
    system, path = located("s3://bucket/features/run/visitor")
    assert pq.read_table(path, filesystem=system)["key"].to_pylist() == ["u#ann"]
    table = LakeTable.of(DATABASE)
    assert table.location == "s3://bucket/lake/events"
    assert sorted(table.read(["event_id"])["event_id"]) == ["a", "b", "c"]
