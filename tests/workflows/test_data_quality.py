"""The data-quality job on a real lake: its report, and the reason with which it stops a workflow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from localcloud.jars import ICEBERG, kept
from localcloud.spark import spark_environment
from narrows.events import Event, to_record
from narrows.features.stream import StreamRecord
from narrows.landing import landing_files

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
