"""The data-quality job on a real lake: its report, and the reason with which it stops a workflow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from localcloud.jars import ICEBERG, kept
from localcloud.spark import spark_environment
from narrows.events import Event, to_record
from narrows.features.stream import StreamRecord
from narrows.landing import landing_files
from narrows.quality import Quality, failed, judge
from narrows.settings import load_app
from tests.spark_session import spark

__all__ = ["spark"]

pytestmark = pytest.mark.spark

ROOT = Path(__file__).parents[2]
NOW = 1_790_000_000.0
TYPES = ("impression", "view", "click", "purchase")


def _job(name: str, scratch: Path, **given: object) -> subprocess.CompletedProcess[str]:
    """A job as Glue runs it: a script with arguments, of which it does not know all."""
    arguments = [str(part) for key, value in given.items() for part in (f"--{key.replace('_', '-')}", value)]
    return subprocess.run(
        [sys.executable, str(ROOT / "glue_jobs" / f"{name}.py"), *arguments, "--JOB_NAME", "added-by-glue"],
        env={**os.environ, **spark_environment([ROOT], scratch, [kept(ICEBERG)])},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lake of 400 events of four days, of which 40 are of a type that the app does not declare."""
    root = tmp_path_factory.mktemp("quality")
    records = []
    for number in range(400):
        kind = "veiw" if number % 10 == 0 else TYPES[number % len(TYPES)]
        time = NOW - number * 864.0
        event = Event(f"e{number:03d}", kind, time, time + 1.0, user_id=f"u{number % 7}", item_id="i1")
        records.append(StreamRecord("shard-0", str(1000 + number), json.dumps(to_record(event)).encode()))
    for file in landing_files(records, "events", NOW):
        path = root / file.key
        path.parent.mkdir(parents=True)
        path.write_bytes(file.data)
    ran = _job(
        *("compact_events", root / "tmp"),
        landing=root / "landing",
        lake=root / "lake",
        app_config=ROOT / "apps" / "megashop",
    )
    assert ran.returncode == 0, ran.stderr[-3000:]
    return root


def test_a_failed_check_stops_the_job_and_says_why(lake: Path) -> None:
    """One event in ten is misspelt: the report is written all the same, and the error names the check."""
    ran = _job(
        *("check_data_quality", lake / "tmp"),
        lake=lake / "lake",
        app_config=ROOT / "apps" / "megashop",
        output=lake / "report",
        as_of="2026-09-21T14:46:40Z",
    )
    assert ran.returncode == 1
    reason = ran.stderr.strip().splitlines()[-1]
    assert reason.startswith(
        "the data are not fit to train on: unknown_types is 0.1, the threshold is 0.01: "
    )
    (part,) = (lake / "report").glob("part-*")
    report = json.loads(part.read_text())
    verdicts = {one["name"]: one["verdict"] for one in report["checks"]}
    assert verdicts.pop("unknown_types") == "failed"
    assert "failed" not in verdicts.values()
    assert report["unknown_types"] == {"veiw": 40}
    assert sum(report["by_day"].values()) == 400
    assert report["as_of"] == NOW + 2_000.0


def test_a_bad_day_shows_through_a_year_of_good_ones(spark: Any) -> None:
    """One event in twenty of the newest day is misspelt, in the future and marked, of 400,000 in the lake."""
    from glue_jobs.check_data_quality import measure

    newest = datetime(2026, 11, 21, tzinfo=UTC)
    back, bad = "-cast(id / 1000 AS int)", "id < 1000 AND id % 20 = 0"
    ahead = f"CASE WHEN {bad} THEN 1 ELSE 0 END"
    events = spark.range(400_000).selectExpr(
        f"CASE WHEN {bad} THEN 'purchse' ELSE 'view' END AS event_type",
        f"{newest.timestamp()!r}D + 60 + {back} * 86400 AS received_at",
        f"{newest.timestamp()!r}D + 60 + ({back} + {ahead}) * 86400 AS time",
        f"date_add(DATE'2026-11-21', {back} + {ahead}) AS event_date",
        f"CASE WHEN {bad} THEN array('bot:rate') END AS marks",
        "'i1' AS item_id",
    )
    good, odd = ({"lines": 1000, "again": 500, "duplicates": one} for one in (10, 250))
    days = (newest.date() - timedelta(days=back) for back in range(31))
    totals = {day.isoformat(): good for day in days} | {"2026-11-22": odd}
    found = measure(events, load_app(ROOT / "apps" / "megashop"), totals)
    assert (found.events, sum(found.by_day.values())) == (400_000, 400_000)
    assert found.unknown_types == {"purchse": 50}
    assert len(found.arrived) == Quality().volume_days + 1
    day_before = found.arrived[date(2026, 11, 20)]
    assert +Counter(day_before) == {"events": 1000, "lines": 500, "duplicates": 10}
    wrong = failed(judge(found, Quality(most_marked=0.04), newest.timestamp() + 3600.0))
    assert [(one.name, one.value, one.day) for one in wrong] == [
        (name, 0.05, "2026-11-21") for name in ("unknown_types", "marked", "future")
    ]
