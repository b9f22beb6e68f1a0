"""A learned source before its schedule is due: carried over, whole, without a leak, and said so."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from narrows.adapters.tables import write_training_data
from narrows.sources import session
from sagemaker_jobs.carrying import ABOUT, FINISHED, Finished
from sagemaker_jobs.container import Container
from sagemaker_jobs.optimiser import Recipe
from sagemaker_jobs.train_session.__main__ import train
from sagemaker_jobs.training_set import read
from tests.unit.test_jobs_learned import CATALOGUE, PARTS, ring

RECIPE = replace(Recipe(), most_epochs=1)
DAY_S = 86_400.0


def container(home: Path, run: str, data: str = "data", **given: Any) -> Container:
    """A run of media's session model, which is to be trained daily; checkpoints lie beside the runs."""
    model = home / run
    model.mkdir(exist_ok=True)
    more = {"app": "media", "version": run, "seed": 1, "budget_s": 60, "most_epochs": 1, **given}
    channels = {"training": home / data}
    return Container(model, model, model, model, channels, more, checkpoints=home / "checkpoints")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that trained, with what it kept, and the data of the next one: more events and another item."""
    home = tmp_path_factory.mktemp("carried")
    events = ring(120, 8)
    write_training_data(home / "data", events, CATALOGUE)
    train(container(home, "run-1"))
    for name, value in (("user_id", "u0"), ("item_id", "new"), ("time", 1.7e9), ("segment", "")):
        events[name] += [value]
    write_training_data(home / "later", events, CATALOGUE)
    return home


def models(home: Path, run: str) -> list[bytes]:
    return [(home / run / part / session.FILE).read_bytes() for part in PARTS]


def told(home: Path, run: str) -> dict[str, Any]:
    return dict(json.loads((home / run / "session.json").read_text()))


def finished(given: Container) -> Finished:
    return Finished.of(given, "session", read(given), RECIPE)


def test_a_first_run_trains_and_keeps_what_it_made(home: Path) -> None:
    """The models of all three parts, the run and the moment; nothing claims to be carried."""
    kept = json.loads((home / "checkpoints" / FINISHED / ABOUT).read_text())
    assert (kept["version"], set(kept["models"])) == ("run-1", set(PARTS))
    assert time.time() - kept["at"] < 600
    assert "carried_from" not in told(home, "run-1")


def test_the_next_run_carries_it_over_and_says_so(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Byte for byte, though events and an item have come since; the log and the summary name the run."""
    train(container(home, "run-2", "later"))
    assert models(home, "run-2") == models(home, "run-1")
    assert told(home, "run-2")["carried_from"] == "run-1"
    assert told(home, "run-2")["epochs"] == told(home, "run-1")["epochs"]
    assert "not due: carried over from run-1" in capsys.readouterr().err
    train(
        container(home, "run-3", "later")
    )  # what is carried keeps its age: the run that trained it is named
    assert told(home, "run-3")["carried_from"] == "run-1"


@pytest.mark.parametrize(("days", "due"), [(0.85, False), (0.95, True), (3.0, True)])
def test_it_is_due_when_its_interval_has_nearly_passed(home: Path, days: float, due: bool) -> None:
    """A night begins a little before the last one ended: nine tenths of a day are a day."""
    at = json.loads((home / "checkpoints" / FINISHED / ABOUT).read_text())["at"]
    why = finished(container(home, "run-4", "later")).why_train(at + days * DAY_S)
    assert bool(why) is due
    assert why.startswith("due") is due


@pytest.mark.parametrize(
    ("given", "reason"),
    [({"labels_per_user": 7}, "events that are labels now"), ({"app": "shopnow"}, "other settings")],
)
def test_a_leak_or_other_settings_train_before_the_time(
    home: Path, given: dict[str, Any], reason: str
) -> None:
    """What the kept models saw must not be a label, and they must be what the settings ask for."""
    assert reason in finished(container(home, "run-5", **given)).why_train(time.time())


def test_what_was_kept_in_part_is_not_taken(home: Path, tmp_path: Path) -> None:
    """An interruption while checkpoints are copied leaves old and new files together."""
    given = container(home, "run-6")
    torn = replace(finished(given), folder=tmp_path / FINISHED)
    torn.keep(home / "run-1", "run-1", time.time())
    assert torn.why_train(time.time()) == ""
    (tmp_path / FINISHED / "replay" / session.FILE).write_bytes(b"half of it")
    assert "not kept whole: replay/" in torn.why_train(time.time())


def test_without_checkpoints_or_schedule_it_is_trained(home: Path) -> None:
    """As `narrows train` does, which is told by name what to train."""
    given = container(home, "run-7")
    assert finished(replace(given, checkpoints=None)).why_train(time.time())
    assert replace(finished(given), every_s=float("nan")).why_train(time.time())
