"""The deployed definition's training with both learned sources, and with none, run on the local cloud."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from local_aws import Started, started, wait_for

from cdk_app.bundling import source_archive
from narrows.adapters.tables import write_training_data
from narrows.ranking import read_manifest
from narrows.sources import als, session, two_tower
from tests.unit.test_jobs_learned import CATALOGUE, ring

pytestmark = [pytest.mark.local, pytest.mark.timeout(900)]

DEFINITION = Path(__file__).parents[2] / "stepfunctions" / "train_and_promote.asl.json"
RUN = "run-1"
GIVEN = {
    "App": "media",
    "BucketName": "training-data",
    "KeyArn": "arn:aws:kms:us-east-1:000000000000:key/any",
    "TrainingRoleArn": "arn:aws:iam::000000000000:role/any",
    "TrainingImage": "any",
    "TrainingInstance": "ml.m5.large",
    "SourceUri": "s3://training-data/code/source.tar.gz",
    "LearnedSources": "two_tower session",
    "LearnedBudgetS": "6",
    "TuningBudgetS": "2",
    "RankerRows": "20000",
}


def training_branch(learned: str) -> str:
    """The branch that trains, as CDK deploys it: the definition's own text, its names filled in."""
    given = {**GIVEN, "LearnedSources": learned}
    parallel = json.loads(DEFINITION.read_text())["States"]["Train, and build the features"]
    _, training, _ = parallel["Branches"]
    assert training["StartAt"] == "Train the candidate sources"
    return re.sub(r"\$\{(\w+)\}", lambda name: given[name[1]], json.dumps(training))


@dataclass(frozen=True)
class Trained:
    """What the execution came to: its output, the states that it entered, and its ranker's model."""

    aws: Started
    output: dict[str, Any]
    entered: list[str]
    model: Path


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    """One execution over small data."""
    home = tmp_path_factory.mktemp("learned")
    write_training_data(home / "data", ring(120, 12), CATALOGUE)
    with started(home / "aws") as aws:
        bucket = aws.bucket(GIVEN["BucketName"])
        aws.put(bucket, "code/source.tar.gz", source_archive().read_bytes())
        for path in sorted((home / "data").rglob("*")):
            if path.is_file():
                key = f"training/{RUN}/{path.relative_to(home / 'data').as_posix()}"
                aws.put(bucket, key, path.read_bytes())
        output, entered = executed(aws)
        yield Trained(aws, output, entered, unpacked(aws, output, home / "model"))


@pytest.fixture(scope="module")
def again(trained: Trained) -> dict[str, Any]:
    """What the bundle of a second execution on the same day says of its learned sources."""
    copy_data(trained.aws, "run-2")
    output, _ = executed(trained.aws, "run-2")
    model = unpacked(trained.aws, output, trained.aws.home.parent / "again")
    return {name: (model / name).read_bytes() for name in (two_tower.FILE, session.FILE)} | {
        name: json.loads((model / f"{name}.json").read_text()) for name in ("two_tower", "session")
    }


def copy_data(aws: Started, run: str) -> None:
    """Give another run the first one's training data."""
    for key in aws.keys(GIVEN["BucketName"], f"training/{RUN}/"):
        source = {"Bucket": GIVEN["BucketName"], "Key": key}
        aws.client("s3").copy_object(Bucket=source["Bucket"], Key=key.replace(RUN, run), CopySource=source)


def unpacked(aws: Started, output: dict[str, Any], folder: Path) -> Path:
    """The bundle that an execution made."""
    archive = output["candidate"]["model"].removeprefix(f"s3://{GIVEN['BucketName']}/")
    aws.client("s3").download_file(GIVEN["BucketName"], archive, f"{folder}.tar.gz")
    with tarfile.open(f"{folder}.tar.gz") as packed:
        packed.extractall(folder, filter="data")
    return folder


def executed(
    aws: Started, run: str = RUN, learned: str = GIVEN["LearnedSources"]
) -> tuple[dict[str, Any], list[str]]:
    """The output of the branch as a state machine of its own, and the states that were entered."""
    states = aws.client("stepfunctions")
    machine = states.create_state_machine(
        name=f"training-{run}", definition=training_branch(learned), roleArn=GIVEN["TrainingRoleArn"]
    )["stateMachineArn"]
    arn = states.start_execution(stateMachineArn=machine, input=json.dumps({"run": run}))["executionArn"]

    def ended() -> Any:
        now = states.describe_execution(executionArn=arn)
        return now if now["status"] != "RUNNING" else None

    execution = wait_for(ended, 800, aws.process)
    assert execution["status"] == "SUCCEEDED", (execution.get("error"), execution.get("cause"))
    pages = states.get_paginator("get_execution_history").paginate(executionArn=arn)
    entered = [
        event["stateEnteredEventDetails"]["name"]
        for page in pages
        for event in page["events"]
        if "stateEnteredEventDetails" in event
    ]
    return json.loads(execution["output"]), entered


def test_both_learned_sources_are_trained(trained: Trained) -> None:
    """Their choices lead to their jobs, beside the counted sources', and all of them before the ranker."""
    jobs = {"Train ALS", "Train co-visitation", "Train the two towers", "Train the session model"}
    assert jobs <= set(trained.entered)
    assert not {"No two towers", "No session model"} & set(trained.entered)
    assert max(map(trained.entered.index, jobs)) < trained.entered.index("Train the ranker")
    named = [trained.aws.client("sagemaker").describe_training_job(TrainingJobName=f"narrows-{job}-{RUN}")
             for job in ("als", "covisitation", "two-tower", "session", "ranker")]  # fmt: skip
    assert {one["TrainingJobStatus"] for one in named} == {"Completed"}


def test_the_ranker_learned_from_four_sources_channels(trained: Trained) -> None:
    """Its model is the whole bundle: the sources' files, and features of each of them."""
    manifest = read_manifest(trained.model)
    for file in (als.FILE, "covisitation.npz", two_tower.FILE, session.FILE, "ranker.txt"):
        assert file in manifest.files, file
    names = " ".join(manifest.feature_names)
    for source in ("als", "covisitation", "two_tower", "session"):
        assert f"{source}." in names, (source, names)


def test_the_learned_sources_learned(trained: Trained) -> None:
    """Both were trained for epochs, and offer the next item of the ring among the first ones."""
    for module, name in ((two_tower, "two_tower"), (session, "session")):
        told = json.loads((trained.model / f"{name}.json").read_text())
        assert told["steps"] > 0
        model: Any = module.load(trained.model / module.FILE)
        assert len(model.item_ids) >= 60


def test_a_source_that_is_not_due_is_carried_over(trained: Trained, again: dict[str, Any]) -> None:
    """Media trains both daily: the second run of the day has the first one's models, and says so."""
    for module, name in ((two_tower, "two_tower"), (session, "session")):
        assert again[name]["carried_from"] == RUN
        assert again[module.FILE] == (trained.model / module.FILE).read_bytes()


def test_checkpoints_and_artifacts_lie_outside_of_the_training_data(trained: Trained) -> None:
    """What a job leaves is under the run's artifacts, where no channel of training data reaches."""
    keys = trained.aws.keys(GIVEN["BucketName"], f"artifacts/{RUN}/")
    assert any("/sources/" in key and "two-tower" in key for key in keys)
    assert any("/sources/" in key and "session" in key for key in keys)
    assert any("/ranker/" in key for key in keys)
    kept = trained.aws.keys(GIVEN["BucketName"], "artifacts/checkpoints/")
    assert {
        f"artifacts/checkpoints/{name}/finished/finished.json" for name in ("two-tower", "session")
    } <= set(kept)


@pytest.mark.slow
def test_an_app_without_learned_sources_trains_its_counted_ones(trained: Trained) -> None:
    """CDK writes "none": both choices end without a job, and the bundle is whole without their files."""
    copy_data(trained.aws, "run-3")
    output, entered = executed(trained.aws, "run-3", learned="none")
    assert {"No two towers", "No session model"} <= set(entered)
    assert not {"Train the two towers", "Train the session model"} & set(entered)
    manifest = read_manifest(unpacked(trained.aws, output, trained.aws.home.parent / "counted"))
    assert {als.FILE, "covisitation.npz", "ranker.txt"} <= set(manifest.files)
    assert not {two_tower.FILE, session.FILE} & set(manifest.files)
    assert not [name for name in manifest.feature_names if name.startswith(("two_tower.", "session."))]
