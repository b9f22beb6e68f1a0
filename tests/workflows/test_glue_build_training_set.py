"""The Glue job on a real local Spark: landed lines in, the training data directory out."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

pytestmark = pytest.mark.spark

SMALL = "--conf spark.sql.shuffle.partitions=4 --conf spark.ui.enabled=false"
JOB = Path(__file__).parents[2] / "glue_jobs" / "build_training_set.py"
APP = """
name = "small"
[events]
impression = {}
click = { label = 1.0 }
purchase = { label = 3.0 }
"""


def _event(event_id: str, event_type: str, time: float, **fields: object) -> dict[str, object]:
    event = {"event_id": event_id, "event_type": event_type, "sent_at": time, "received_at": time + 1.0}
    return {**event, "consent": True, **fields}


LANDED = {
    "dt=2026-01-01/shard-0-1-4.jsonl.gz": [
        _event("a", "impression", 10.0, user_id="ann", recommendation_id="r1", impression=["i1", "i2", "i3"]),
        _event("b", "click", 11.0, user_id="ann", item_id="i2", recommendation_id="r1"),
        _event("c", "click", 12.0, session_id="guest", item_id="i1"),
        _event("d", "click", 13.0, user_id="bob", item_id="i3", consent=False),
    ],
    "dt=2026-01-02/shard-0-5-8.jsonl.gz": [
        # b again, resent by its producer; then a purchase that arrives a day late
        {
            **_event("b", "click", 11.0, user_id="ann", item_id="i2", recommendation_id="r1"),
            "received_at": 99.0,
        },
        {
            **_event("e", "purchase", 11.5, user_id="ann", item_id="i2", recommendation_id="r1"),
            "received_at": 90000.0,
        },
        "not json {",
        {"event_id": "f", "event_type": "click", "sent_at": 14.0},
    ],
}


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    """The job run once as Glue runs it: a script, plain arguments, a process of its own."""
    root = tmp_path_factory.mktemp("glue")
    for name, lines in LANDED.items():
        path = root / "landing" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with gzip.open(path, "wt") as file:
            file.writelines(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines)
    (root / "catalogue").mkdir()
    pq.write_table(
        pa.table({"item_id": ["i1", "i2", "i3"], "price": [1.0, 2.0, 3.0]}), root / "catalogue/0.parquet"
    )
    (root / "app.toml").write_text(APP)
    ran = _run(root, root / "landing")
    assert ran.returncode == 0, ran.stderr[-3000:]
    return root / "out", json.loads(ran.stdout.strip().splitlines()[-1])


def _run(root: Path, landing: Path) -> subprocess.CompletedProcess[str]:
    inputs = ["--landing", landing, "--catalogue", root / "catalogue", "--app-config", root / "app.toml"]
    command = [sys.executable, JOB, *inputs, "--output", root / "out", "--JOB_NAME", "added-by-glue"]
    environment = {**os.environ, "PYSPARK_PYTHON": sys.executable, "SPARK_LOCAL_IP": "127.0.0.1"}
    environment.update(PYSPARK_SUBMIT_ARGS=f"--master local[2] --driver-memory 1g {SMALL} pyspark-shell")
    return subprocess.run(
        [str(part) for part in command],
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def _rows(directory: Path, *columns: str) -> list[tuple[object, ...]]:
    table = pq.read_table(directory, columns=list(columns))
    return sorted(zip(*(table[column].to_pylist() for column in columns), strict=True), key=repr)


def test_each_visitor_keeps_what_they_did_once_in_order_of_time(job: tuple[Path, dict[str, int]]) -> None:
    """A resent event counts once, a late purchase takes its true time, no consent trains nothing."""
    out, _ = job
    assert _rows(out / "interactions", "user_id", "time", "item_id", "event_type", "weight") == [
        ("s#guest", 12.0, "i1", "click", 1.0),
        ("u#ann", 11.0, "i2", "click", 1.0),
        ("u#ann", 11.5, "i2", "purchase", 3.0),
    ]


def test_each_shown_item_has_the_best_of_its_outcomes(job: tuple[Path, dict[str, int]]) -> None:
    """The purchase outranks the click under the same recommendation; what was only shown has label 0."""
    out, _ = job
    assert _rows(out / "impressions", "position", "item_id", "recommendation_id", "user_id", "label") == [
        (1, "i1", "r1", "u#ann", 0.0),
        (2, "i2", "r1", "u#ann", 3.0),
        (3, "i3", "r1", "u#ann", 0.0),
    ]


def test_every_line_is_accounted_for(job: tuple[Path, dict[str, int]]) -> None:
    """Eight lines: two malformed and kept, one duplicate, one without consent, four usable."""
    out, counts = job
    expected = {"read": 8, "malformed": 2, "usable": 4, "duplicates_or_without_consent": 2}
    assert expected.items() <= counts.items()
    assert len(_rows(out / "quarantine", "_malformed")) == 2
    assert ("not json {",) in _rows(out / "quarantine", "_malformed")
    assert _rows(out / "items", "item_id", "price") == [("i1", 1.0), ("i2", 2.0), ("i3", 3.0)]


def test_a_landing_folder_without_labelled_events_fails_the_job(
    job: tuple[Path, dict[str, int]], tmp_path: Path
) -> None:
    """A workflow must stop here with the reason, not train on nothing."""
    landing = tmp_path / "landing"
    landing.mkdir()
    with gzip.open(landing / "x.jsonl.gz", "wt") as file:
        file.write(json.dumps(_event("z", "view", 1.0, user_id="ann", item_id="i1")) + "\n")
    ran = _run(job[0].parent, landing)
    assert ran.returncode != 0
    assert "no interactions among 1 events" in ran.stderr
