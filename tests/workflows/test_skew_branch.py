"""The skew branch of the deployed definition, run on the local cloud: what it counts, what it never stops."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_aws import Started, started, wait_for

pytestmark = [pytest.mark.local, pytest.mark.timeout(300)]

DEFINITION = Path(__file__).parents[2] / "stepfunctions" / "train_and_promote.asl.json"
GIVEN = {"BucketName": "skew-data", "AppConfigUri": "s3://skew-data/code/app.zip", "SkewRate": "1.0"}
DIFFERS = "raise SystemExit('served features differ')"


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    with started(tmp_path_factory.mktemp("skew")) as one:
        one.bucket(GIVEN["BucketName"])
        one.put(GIVEN["BucketName"], "code/app.zip", "an app")
        yield one


def executed(aws: Started, job: str, script: str) -> list[str]:
    """Run the branch over a Glue job with this script; it must succeed. The states that were entered."""
    aws.put(GIVEN["BucketName"], f"code/{job}.py", script)
    location = {"Name": "glueetl", "ScriptLocation": f"s3://{GIVEN['BucketName']}/code/{job}.py"}
    aws.client("glue").create_job(Name=job, Role="any", Command=location)
    branch = json.loads(DEFINITION.read_text())["States"]["Train, and build the features"]["Branches"][2]
    text = re.sub(r"\$\{(\w+)\}", lambda name: {**GIVEN, "MeasureSkewJob": job}[name[1]], json.dumps(branch))
    states = aws.client("stepfunctions")
    machine = states.create_state_machine(
        name=job, definition=text, roleArn="arn:aws:iam::000000000000:role/a"
    )
    arn = states.start_execution(
        stateMachineArn=machine["stateMachineArn"], input=json.dumps({"run": "run-1"})
    )["executionArn"]

    def ended() -> object:
        now = states.describe_execution(executionArn=arn)
        return now if now["status"] != "RUNNING" else None

    execution = wait_for(ended, 120, aws.process)
    assert execution["status"] == "SUCCEEDED", (execution.get("error"), execution.get("cause"))
    events = states.get_execution_history(executionArn=arn)["events"]
    return [one["stateEnteredEventDetails"]["name"] for one in events if "stateEnteredEventDetails" in one]


def counted(aws: Started) -> float:
    """The sum of the metric that the stack's alarm watches, over the last hour."""
    now = time.time()
    points = aws.client("cloudwatch").get_metric_statistics(
        Namespace="Narrows",
        MetricName="SkewFailed",
        Dimensions=[{"Name": "Bucket", "Value": GIVEN["BucketName"]}],
        StartTime=now - 3600,
        EndTime=now + 60,
        Period=60,
        Statistics=["Sum"],
    )["Datapoints"]
    return sum(point["Sum"] for point in points)


def test_an_exact_night_counts_nothing(aws: Started) -> None:
    """The job gets its arguments, ends well, and no metric is written."""
    before = counted(aws)
    asked = "import sys; assert {'--rate', '--within', '--least-exact', '--output'} <= set(sys.argv)"
    assert executed(aws, "exact", asked) == ["Measure the skew"]
    assert counted(aws) == before


def test_a_skewed_night_is_counted_and_stops_nothing(aws: Started) -> None:
    """The job fails, the branch does not: one is added to the metric, and the training goes on."""
    before = counted(aws)
    assert executed(aws, "skewed", DIFFERS) == ["Measure the skew", "Tell the skew"]
    assert counted(aws) == before + 1.0
