"""One Spark for all tests of this process, with Iceberg; each test may have a lake of its own in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from glue_jobs.lake import settings
from localcloud.jars import ICEBERG, JarMissing, kept
from localcloud.spark import spark_environment
from tests import servers

PARTS = "4"
SMALL = {
    "spark.sql.shuffle.partitions": PARTS,
    "spark.sql.adaptive.enabled": "false",
    "spark.sql.codegen.wholeStage": "false",
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
}
"""For a handful of rows: to compile a plan, and to plan it again after each stage, takes longer than to
interpret it. The tests that start a job as its own process run under Spark's defaults."""
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def spark(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A Spark session on two cores; what it sees of a lake is for `lake_session` to say."""
    from pyspark.sql import SparkSession

    try:
        jar = kept(ICEBERG)
    except JarMissing as error:
        servers.unavailable("Iceberg", str(error))
    scratch = tmp_path_factory.mktemp("spark")
    before = dict(os.environ)
    os.environ.update(spark_environment([ROOT], scratch, [jar]))
    try:
        session = SparkSession.builder.master("local[2]").appName("tests")
        for name, value in (settings(str(scratch / "lake")) | SMALL).items():
            session = session.config(name, value)
        started = session.getOrCreate()
        yield started
        started.stop()
    finally:
        os.environ.clear()
        os.environ.update(before)


def lake_session(spark: Any, folder: Path) -> Any:
    """Another session of the same Spark whose lake lies in this folder."""
    session = spark.newSession()
    for name, value in settings(str(folder)).items():
        if name.startswith("spark.sql.catalog."):
            session.conf.set(name, value)
    session.conf.set("spark.sql.shuffle.partitions", PARTS)
    return session
