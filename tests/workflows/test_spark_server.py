"""The Spark that stays up between the jobs of the lake: shared, but each job in a session of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from localcloud.jars import ICEBERG, kept
from localcloud.jobs import JobFailed
from localcloud.spark import spark_environment
from localcloud.spark_server import SparkServer

ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys
from glue_jobs.lake import open_lake
spark = open_lake("job", sys.argv[1])
spark.sql("CREATE NAMESPACE IF NOT EXISTS lake.narrows")
spark.sql("CREATE TABLE lake.narrows.numbers (number INT) USING iceberg")
spark.sql("INSERT INTO lake.narrows.numbers VALUES (1), (2)")
print(spark.table("lake.narrows.numbers").cache().count(), spark.sparkContext.applicationId)
sys.exit(0 if sys.argv[2] == "ends" else "it was told to fail")
"""

WITH_WORKERS = """
import mine
from pyspark.sql import SparkSession
spark = SparkSession.builder.getOrCreate()
print(spark.range(1).mapInArrow(mine.said, "word string").first()[0])
"""
MINE = """
import pyarrow
def said(batches):
    for batch in batches:
        yield pyarrow.RecordBatch.from_pydict({{"word": ["{word}"] * batch.num_rows}})
"""


@pytest.fixture
def server(tmp_path: Path) -> Iterator[SparkServer]:
    """A server that nobody has asked for anything yet."""
    server = SparkServer(tmp_path / "home", [kept(ICEBERG)], idle_s=0.5)
    yield server
    server.end()


def run(
    folder: Path,
    found: Mapping[str, str],
    *words: str,
    text: str = SCRIPT,
    packages: Sequence[Path] = (ROOT,),
) -> subprocess.CompletedProcess[str]:
    """The script as a job: a process of its own that was told where Spark is."""
    script = folder / "job.py"
    script.write_text(text)
    scratch = folder / "tmp"
    scratch.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-m", "localcloud.spark_driver", str(script), *words],
        env={**os.environ, **spark_environment(packages, scratch), **found},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def running(address: Mapping[str, str]) -> str:
    """What tells one Spark from another."""
    return address["PYSPARK_GATEWAY_PORT"]


@pytest.mark.spark
def test_jobs_share_one_spark_and_nothing_else(server: SparkServer, tmp_path: Path) -> None:
    """The next job finds the same application, but a lake of its own; a failure is of one job only."""
    with server.lent() as found:
        first = run(tmp_path, found, str(tmp_path / "one"), "ends")
        failed = run(tmp_path, found, str(tmp_path / "two"), "fails")
        third = run(tmp_path, found, str(tmp_path / "three"), "ends")
    assert (first.returncode, failed.returncode, third.returncode) == (0, 1, 0), third.stderr
    assert failed.stderr.endswith("it was told to fail\n")
    assert first.stdout.split()[0] == third.stdout.split()[0] == "2"
    assert first.stdout == third.stdout


@pytest.mark.spark
def test_it_ends_when_nobody_needs_it_and_starts_again(server: SparkServer) -> None:
    """Idle for a while it ends; a job that was broken off takes it along; the next one gets a new Spark."""
    with server.lent() as found:
        before = running(found)
        with server.lent() as other:
            assert running(other) == before
    time.sleep(2.0)
    with server.lent() as found:
        after = running(found)
        server.wear()
    with server.lent() as found:
        last = running(found)
    assert len({before, after, last}) == 3


def test_a_spark_that_cannot_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of its log is in the error."""
    monkeypatch.setattr("localcloud.spark_server.MEMORY", "1k")
    server = SparkServer(tmp_path, [])
    with pytest.raises(JobFailed, match=r"(?s)Spark did not start; its log .*Too small"), server.lent():
        pass


@pytest.mark.spark
def test_the_workers_of_a_job_see_its_own_packages(server: SparkServer, tmp_path: Path) -> None:
    """What one job brought under a name is not what the next one gets under it."""
    with server.lent() as found:
        for word in ("one", "two"):
            (tmp_path / word).mkdir()
            (tmp_path / word / "mine.py").write_text(MINE.format(word=word))
            done = run(tmp_path, found, text=WITH_WORKERS, packages=[ROOT, tmp_path / word])
            assert done.stdout.split() == [word], done.stderr[-2000:]
