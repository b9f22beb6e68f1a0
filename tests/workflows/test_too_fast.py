"""The rule for what is too fast for a person says the same in Python and in Spark."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from localcloud.spark import spark_environment
from narrows.events import Event
from narrows.marking import fast_visitors, fast_visitors_sql

pytestmark = pytest.mark.spark

ROOT = Path(__file__).parents[2]
MIDNIGHT = 1_795_219_200.0
LIMIT = 6
PROGRAM = """
import sys
from pyspark.sql import SparkSession
spark = SparkSession.builder.getOrCreate()
spark.read.json(sys.argv[1]).selectExpr(
    "visitor", "event_id", "time", "to_date(timestamp_seconds(time)) AS event_date"
).createOrReplaceTempView("arrived")
rows = spark.sql(sys.argv[2]).collect()
print(sorted([row.visitor, str(row.event_date)] for row in rows))
"""


def test_spark_finds_the_visitors_that_python_finds(tmp_path: Path) -> None:
    """Over bursts on both sides of a minute and of midnight, with repeated deliveries, from one seed."""
    rng = np.random.default_rng(5)
    events = []
    for number in range(3_000):
        burst = MIDNIGHT + 15.0 * rng.integers(-40, 40)
        time = float(burst + rng.random() * 10.0)
        event = Event(f"e{number}", "view", time, time, user_id=f"u{rng.integers(40)}")
        events += [event] * int(rng.integers(1, 3))
    lines = [{"visitor": one.visitor_key, "event_id": one.event_id, "time": one.time} for one in events]
    (tmp_path / "events.json").write_text("\n".join(map(json.dumps, lines)))
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "events.json"), fast_visitors_sql("arrived", LIMIT)],
        env={**os.environ, **spark_environment([ROOT], tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=200,
    )
    expected = sorted([visitor, str(day)] for visitor, day in fast_visitors(events, LIMIT))
    assert {day for _, day in expected} == {"2026-11-20", "2026-11-21"}
    assert 5 < len(expected) < 75
    assert found.stdout.strip().splitlines()[-1] == str(expected)
