"""The benchmark that chooses the ranker's settings sees no test event, and skips where it has no data."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from narrows.adapters.tables import write_training_data

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "ranker_settings.py"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The script, started as a person would."""
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, cwd=SCRIPT.parents[1], capture_output=True, text=True, check=False)


def test_without_data_it_says_so() -> None:
    """No path, or one that is not there: a message and success."""
    for arguments in ((), ("nowhere",)):
        done = run(*arguments)
        assert (done.returncode, "skipped" in done.stdout) == (0, True)


def test_the_last_event_is_dropped_first(tmp_path: Path) -> None:
    """Everybody goes round a ring, and ends somewhere new: were that asked for, nobody could know it."""
    generator = np.random.default_rng(0)
    rows: dict[str, list[object]] = {"user_id": [], "item_id": [], "time": [], "weight": []}
    for user in range(80):
        begin = int(generator.integers(20))
        items = [f"i{(begin + step) % 20}" for step in range(9)] + [f"surprise{user}"]
        for step, item in enumerate(items):
            for name, value in zip(rows, (f"u{user}", item, 1.6e9 + step * 60.0, 1.0), strict=True):
                rows[name].append(value)
    write_training_data(tmp_path / "data", rows, {})
    done = run(str(tmp_path / "data"), "--labels", "2", "--budget", "0", "--json", str(tmp_path / "out.json"))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["data"] == "data"
    assert {line["labels"] for line in found["settings"]} == {2, found["automatic_labels"]}
    assert min(line["hit_at_10"] for line in found["settings"]) > 0.9
