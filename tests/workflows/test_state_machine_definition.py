"""The training workflow's definition by itself: sound, bounded, in step with jobs and function."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from lambdas.promote_model.contract import asked
from narrows.settings import LEARNED_SOURCES

ROOT = Path(__file__).parents[2]
DEFINITION = json.loads((ROOT / "stepfunctions" / "train_and_promote.asl.json").read_text())
STATES: Mapping[str, Any] = DEFINITION["States"]


def tasks(states: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every task with its name, those inside Parallel's branches too."""
    for name, state in states.items():
        if state["Type"] == "Task":
            yield name, state
        for branch in state.get("Branches", ()):
            yield from tasks(branch["States"])


TASKS = dict(tasks(STATES))
TRAININGS = {name: task for name, task in TASKS.items() if "createTrainingJob" in task["Resource"]}


def follow(state: Mapping[str, Any]) -> set[str]:
    """The names of the states that this one can go to."""
    named = [one["Next"] for one in (*state.get("Choices", ()), *state.get("Catch", ()))]
    return {*named, *(state[key] for key in ("Next", "Default") if key in state)}


def test_every_state_is_reached_and_every_arrow_leads_somewhere() -> None:
    """Following the arrows from the start visits each state, and no name that is not there."""
    seen: set[str] = set()
    waiting = {DEFINITION["StartAt"]}
    while waiting:
        name = waiting.pop()
        seen.add(name)
        waiting |= follow(STATES[name]) - seen
    assert seen == set(STATES)


def test_it_ends_in_three_ways() -> None:
    """Promoted and Kept succeed, Failed fails with the reason that was caught."""
    assert {name for name, one in STATES.items() if one["Type"] == "Succeed"} == {"Promoted", "Kept"}
    assert STATES["Failed"] == {"Type": "Fail", "ErrorPath": "$.error.Error", "CausePath": "$.error.Cause"}


@pytest.mark.parametrize("name", sorted(TASKS))
def test_every_task_retries_a_bounded_number_of_times(name: str) -> None:
    """Only the services' own errors are tried again, and at most four times; a job that failed has failed."""
    for retrier in TASKS[name]["Retry"]:
        assert 1 <= retrier["MaxAttempts"] <= 4
        assert not {"States.ALL", "States.TaskFailed"} & set(retrier["ErrorEquals"])


@pytest.mark.parametrize(
    "name", sorted(name for name, one in STATES.items() if one["Type"] in ("Task", "Parallel"))
)
def test_every_failure_is_caught_with_its_reason(name: str) -> None:
    """Whatever goes wrong ends in Failed, error and cause kept."""
    assert STATES[name]["Catch"] == [
        {"ErrorEquals": ["States.ALL"], "ResultPath": "$.error", "Next": "Failed"}
    ]


@pytest.mark.parametrize("name", sorted(name for name, one in TASKS.items() if ".sync" in one["Resource"]))
def test_no_job_waits_for_ever(name: str) -> None:
    """Each job has a limit of its own, and the state a longer one."""
    task = TASKS[name]
    assert task["TimeoutSeconds"] <= 24 * 3600
    limit = task["Parameters"].get("StoppingCondition", {}).get("MaxRuntimeInSeconds", 0)
    assert limit < task["TimeoutSeconds"]


def test_job_names_fit_sagemaker() -> None:
    """Names stay within 63 characters for every run of at most 40, and no two jobs share one."""
    names = [
        re.findall(r"'(narrows-[a-z-]+-)\{\}'", one["Parameters"]["TrainingJobName.$"])
        for one in TRAININGS.values()
    ]
    assert all(len(found) == 1 and len(found[0]) + 40 <= 63 for (*found,) in names)
    assert len({found[0] for found in names}) == 6


def test_each_training_runs_a_program_that_exists() -> None:
    """The hyperparameter sagemaker_program names a file of the deployed source."""
    programs = {one["Parameters"]["HyperParameters"]["sagemaker_program"] for one in TRAININGS.values()}
    assert programs == {
        f"sagemaker_jobs/{name}/__main__.py"
        for name in (
            "train_als",
            "train_covisitation",
            "train_two_tower",
            "train_session",
            "train_ranker",
            "evaluate",
        )
    }
    absent = {program for program in programs if not (ROOT / program).exists()}
    assert not absent


@pytest.mark.parametrize("name", LEARNED_SOURCES)
def test_a_learned_source_is_trained_where_the_schedule_names_it(name: str) -> None:
    """Its branch asks first, and ends without a job where none was named; a job goes on from checkpoints."""
    beside = STATES["Train, and build the features"]["Branches"][1]["States"]
    sources = beside["Train the candidate sources"]
    assert sources["Parameters"]["learned"] == "${LearnedSources}"
    branches = {
        f"*{one}*": branch for one, branch in zip(LEARNED_SOURCES, sources["Branches"][2:], strict=True)
    }
    states = branches[f"*{name}*"]["States"]
    asks = states[branches[f"*{name}*"]["StartAt"]]
    (wanted,) = asks["Choices"]
    assert (wanted["Variable"], wanted["StringMatches"]) == ("$.learned", f"*{name}*")
    parameters = states[wanted["Next"]]["Parameters"]
    assert parameters["HyperParameters"]["sagemaker_program"] == f"sagemaker_jobs/train_{name}/__main__.py"
    kept = f"s3://${{BucketName}}/artifacts/checkpoints/{name.replace('_', '-')}"
    assert parameters["CheckpointConfig"] == {"S3Uri": kept}  # of the source, for the runs to come
    assert states[asks["Default"]]["Type"] == "Succeed"


def test_training_folders_hold_nothing_else() -> None:
    """A channel is a prefix: artifacts of a run lie elsewhere, or they would be training data."""
    for one in TRAININGS.values():
        assert "/artifacts/{}/" in one["Parameters"]["OutputDataConfig"]["S3OutputPath.$"]
    arguments = TASKS["Build the training set"]["Parameters"]["Arguments"]
    assert arguments["--output.$"] == "States.Format('s3://${BucketName}/training/{}', $.run)"


@pytest.mark.parametrize(
    ("name", "script"),
    [
        ("Compact the events", "compact_events"),
        ("Check the data", "check_data_quality"),
        ("Build the features", "build_features"),
        ("Build the training set", "build_training_set"),
        ("Measure the skew", "measure_skew"),
    ],
)
def test_every_spark_job_gets_the_arguments_it_asks_for(name: str, script: str) -> None:
    """Every required option of the script is given, none that it lacks; the stack says where the lake is."""
    text = (ROOT / "glue_jobs" / f"{script}.py").read_text()
    options = set(re.findall(r'add_argument\(\s*"(--[a-z-]+)", required=True', text))
    parameters = TASKS[name]["Parameters"]
    given = {one.removesuffix(".$") for one in parameters["Arguments"]}
    known = set(re.findall(r'add_argument\(\s*"(--[a-z-]+)"', text))
    assert options <= given <= known
    assert parameters["JobName"] == f"${{{script.title().replace('_', '')}Job}}"


def test_nothing_trains_before_the_data_are_judged() -> None:
    """The check stands beside the builds; when it fails, so does the run, with its reason."""
    assert STATES["Read the live model"]["Next"] == "Compact the events"
    assert STATES["Compact the events"]["Next"] == "Prepare the training"
    prepared = STATES["Prepare the training"]
    assert [branch["StartAt"] for branch in prepared["Branches"]] == [
        "Check the data",
        "Build the training set",
    ]
    beside = STATES[prepared["Next"]]["Branches"]
    assert [branch["StartAt"] for branch in beside] == [
        "Build the features",
        "Train the candidate sources",
        "Measure the skew",
    ]


def test_promotion_is_asked_in_the_functions_words() -> None:
    """The payload's names are those that promote_model reads, with the run as the model's version."""
    payload = STATES["Promote if the gate says so"]["Parameters"]["Payload"]
    ask = asked({name.removesuffix(".$"): "run-1" for name in payload})
    assert ask.version == "run-1"


def test_the_live_model_is_compared_where_there_is_one() -> None:
    """The first run has nothing to compare with; later ones bring the live model as the channel `current`."""

    def channels(name: str) -> list[str]:
        return [one["ChannelName"] for one in STATES[name]["Parameters"]["channels"]]

    assert channels("Nothing to compare with") == ["training", "candidate"]
    assert channels("Compare with the live model") == ["training", "candidate", "current"]
