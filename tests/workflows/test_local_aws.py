"""The AWS of this machine: the CDK deploys to it, workflows run, and nothing outlives it."""

import io
import json
import os
import signal
import tarfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError
from local_aws import Started, processes_of, started, started_by_another, wait_for

from localcloud.aws import SWEEP_S, correct_kinesis
from localcloud.deploy import DeployError, deploy, destroy

STACK = Path(__file__).parent / "local_stack"
COUNT = """
import pathlib, sys
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if given["--fail"] == "yes":
    sys.exit("the landing zone is empty")
lines = sum(len(path.read_text().splitlines()) for path in pathlib.Path(given["--landing"]).rglob("*.json"))
output = pathlib.Path(given["--output"])
output.mkdir(parents=True)
(output / "count.txt").write_text(str(lines))
"""
TRAIN = """
import json, os, pathlib
count = int(pathlib.Path(os.environ["SM_CHANNEL_TRAINING"], "count.txt").read_text())
model = count * json.loads(os.environ["SM_HPS"])["factor"]
pathlib.Path(os.environ["SM_MODEL_DIR"], "model.txt").write_text(str(model))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the local AWS."""
    return tmp_path_factory.mktemp("aws")


@pytest.fixture(scope="module")
def aws(home: Path) -> Iterator[Started]:
    """A local AWS, nothing deployed."""
    with started(home) as running:
        yield running


@pytest.fixture(scope="module")
def outputs(aws: Started, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The outputs of the small stack, deployed by the CDK's own command line, with the inputs of its jobs."""
    with (tmp_path_factory.mktemp("log") / "cdk.log").open("w") as log:
        outdir = aws.home / "cdk"
        names = deploy(aws.endpoint, outdir, project=STACK, program="app.py", progress=log)["Small"]
    sources = io.BytesIO()
    with tarfile.open(fileobj=sources, mode="w:gz") as packed:
        entry = tarfile.TarInfo("train.py")
        entry.size = len(TRAIN)
        packed.addfile(entry, io.BytesIO(TRAIN.encode()))
    aws.put(names["BucketName"], "code/count.py", COUNT)
    aws.put(names["BucketName"], "code/sourcedir.tar.gz", sources.getvalue())
    aws.put(names["BucketName"], "landing/1.json", "{}\n{}\n")
    aws.put(names["BucketName"], "landing/deep/2.json", "{}\n")
    return names


def executed(aws: Started, machine: str, given: dict[str, Any]) -> dict[str, Any]:
    """The description of a new execution once it is over."""
    states = aws.client("stepfunctions")
    arn = states.start_execution(stateMachineArn=machine, input=json.dumps(given))["executionArn"]

    def described() -> Any:
        execution = states.describe_execution(executionArn=arn)
        return execution if execution["status"] != "RUNNING" else None

    return dict(wait_for(described, 60))


@pytest.mark.local
class TestDeployment:
    """`cdk deploy` of one stack with every type of resource that ours use."""

    def test_tables_streams_and_parameters_exist(self, aws: Started, outputs: dict[str, str]) -> None:
        """What the outputs name answers for itself, under the account and region of this machine."""
        table = aws.client("dynamodb").describe_table(TableName=outputs["TableName"])["Table"]
        stream = aws.client("kinesis").describe_stream_summary(StreamName=outputs["StreamName"])
        assert table["TableStatus"] == "ACTIVE"
        assert stream["StreamDescriptionSummary"]["OpenShardCount"] == 1
        assert outputs["MachineArn"].startswith("arn:aws:states:us-east-1:000000000000:stateMachine:Small-")

    def test_a_generated_secret_is_found_by_the_name_that_the_stack_gives(
        self, aws: Started, outputs: dict[str, str]
    ) -> None:
        """The CDK's name of a secret leads to its value, of the length that was asked for."""
        secret = aws.client("secretsmanager").get_secret_value(SecretId=outputs["SecretName"])
        assert len(secret["SecretString"]) == 64

    def test_event_source_mappings_are_listed_and_not_polled(
        self, aws: Started, outputs: dict[str, str]
    ) -> None:
        """A mapping shows its settings for our own runner, and no record reaches the handler by itself."""
        function = aws.client("lambda")
        mapping = function.list_event_source_mappings(FunctionName=outputs["FunctionName"])[
            "EventSourceMappings"
        ]
        assert len(mapping) == 1
        assert mapping[0]["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
        assert mapping[0]["MaximumRetryAttempts"] == 3
        aws.client("kinesis").put_record(StreamName=outputs["StreamName"], Data=b"{}", PartitionKey="1")
        time.sleep(2)
        logged = aws.client("logs").describe_log_groups()["logGroups"]
        streams = [
            stream
            for group in logged
            for stream in aws.client("logs").describe_log_streams(logGroupName=group["logGroupName"])[
                "logStreams"
            ]
        ]
        assert streams == []

    def test_an_unknown_type_is_refused_by_name(self, aws: Started) -> None:
        """A template with a type that nobody here knows creates nothing and says which type it was."""
        template = json.dumps({"Resources": {"Any": {"Type": "AWS::Personalize::Solution"}}})
        with pytest.raises(ClientError, match="AWS::Personalize::Solution"):
            aws.client("cloudformation").create_stack(StackName="unknown", TemplateBody=template)

    def test_a_failing_command_ends_with_what_it_printed(self, aws: Started, tmp_path: Path) -> None:
        """The error of a broken app carries the app's own last words."""
        (tmp_path / "cdk.json").write_text("{}")
        (tmp_path / "broken.py").write_text("raise SystemExit('no such product: nobody')")
        with pytest.raises(DeployError, match="no such product: nobody"), (tmp_path / "log").open("w") as log:
            deploy(aws.endpoint, tmp_path / "out", project=tmp_path, program="broken.py", progress=log)


@pytest.mark.local
class TestWorkflow:
    """Glue, SageMaker and Lambda under one state machine."""

    def test_a_better_model_is_promoted(self, aws: Started, outputs: dict[str, str]) -> None:
        """Each state works on what the one before it wrote; the handler writes into the deployed table."""
        execution = executed(aws, outputs["MachineArn"], {"fail": "no", "better": True})
        assert execution["status"] == "SUCCEEDED", execution.get("cause")
        result = json.loads(execution["output"])
        assert result["count"]["JobRunState"] == "SUCCEEDED"
        assert result["trained"][1] == {"model": "none"}
        uri = result["promotion"]["model"]
        item = aws.client("dynamodb").get_item(TableName=outputs["TableName"], Key={"pk": {"S": "model"}})
        assert item["Item"]["uri"]["S"] == uri
        key = uri.removeprefix(f"s3://{outputs['BucketName']}/")
        body = aws.client("s3").get_object(Bucket=outputs["BucketName"], Key=key)["Body"].read()
        with tarfile.open(fileobj=io.BytesIO(body)) as packed:
            content = packed.extractfile("model.txt")
            assert content is not None
            assert content.read() == b"6"

    def test_a_worse_one_is_kept_out(self, aws: Started, outputs: dict[str, str]) -> None:
        """The choice follows the handler's answer."""
        execution = executed(aws, outputs["MachineArn"], {"fail": "no", "better": False})
        assert execution["status"] == "SUCCEEDED", execution.get("cause")
        assert json.loads(execution["output"]) == {"kept": True}

    def test_a_failing_job_ends_the_execution_with_its_reason(
        self, aws: Started, outputs: dict[str, str]
    ) -> None:
        """States.TaskFailed is caught, and its cause is the run with the words of the script."""
        execution = executed(aws, outputs["MachineArn"], {"fail": "yes", "better": True})
        assert (execution["status"], execution["error"]) == ("FAILED", "CountFailed")
        run = json.loads(execution["cause"])
        assert (run["JobRunState"], run["ErrorMessage"]) == ("FAILED", "the landing zone is empty")

    def test_a_branch_that_fails_keeps_its_reason(self, aws: Started, outputs: dict[str, str]) -> None:
        """A job that fails beside another branch is caught as a failed task, with the words of its script."""
        output = f"s3://{outputs['BucketName']}/training/both/"
        job = {"JobName": outputs["JobName"], "Arguments": {"--fail": "yes", "--output": output}}
        task = {"Type": "Task", "Resource": "arn:aws:states:::glue:startJobRun.sync", "Parameters": job}
        branches = [
            {"StartAt": "Count", "States": {"Count": {**task, "End": True}}},
            {"StartAt": "Nothing", "States": {"Nothing": {"Type": "Pass", "End": True}}},
        ]
        caught = {"ErrorEquals": ["States.TaskFailed"], "ResultPath": "$.error", "Next": "Failed"}
        states = {
            "Both": {"Type": "Parallel", "Branches": branches, "Catch": [caught], "End": True},
            "Failed": {"Type": "Fail", "ErrorPath": "$.error.Error", "CausePath": "$.error.Cause"},
        }
        machine = aws.client("stepfunctions").create_state_machine(
            name="both",
            definition=json.dumps({"StartAt": "Both", "States": states}),
            roleArn="arn:aws:iam::000000000000:role/any",
        )["stateMachineArn"]
        execution = executed(aws, machine, {})
        aws.client("stepfunctions").delete_state_machine(stateMachineArn=machine)
        assert (execution["status"], execution["error"]) == ("FAILED", "States.TaskFailed")
        assert json.loads(execution["cause"])["ErrorMessage"] == "the landing zone is empty"

    def test_a_stack_goes_as_it_came(self, aws: Started, outputs: dict[str, str]) -> None:
        """`cdk destroy` removes the stack and its state machine; it is the last test of this stack."""
        with (aws.home / "destroy.log").open("w") as log:
            destroy(aws.endpoint, aws.home / "cdk", project=STACK, progress=log)
        assert aws.client("stepfunctions").list_state_machines()["stateMachines"] == []
        with pytest.raises(ClientError, match="does not exist"):
            aws.client("cloudformation").describe_stacks(StackName="Small")


SLEEPER = "import time\ndef handler(event, context): print('up'); return {}\n"


def keep_busy(aws: Started) -> None:
    """Leave a warm function and a job under way."""
    package = io.BytesIO()
    with zipfile.ZipFile(package, "w") as packed:
        packed.writestr("handler.py", SLEEPER)
    code = {"ZipFile": package.getvalue()}
    role = "arn:aws:iam::000000000000:role/any"
    function = aws.client("lambda")
    function.create_function(
        FunctionName="warm", Runtime="python3.12", Role=role, Handler="handler.handler", Code=code
    )
    assert function.invoke(FunctionName="warm")["StatusCode"] == 200
    aws.bucket("busy")
    aws.put("busy", "sleep.py", "import time; time.sleep(300)")
    glue = aws.client("glue")
    location = {"Name": "pythonshell", "ScriptLocation": "s3://busy/sleep.py"}
    glue.create_job(Name="sleep", Role="any", Command=location)
    number = glue.start_job_run(JobName="sleep")["JobRunId"]
    wait_for(
        lambda: glue.get_job_run(JobName="sleep", RunId=number)["JobRun"]["JobRunState"] == "RUNNING", 20
    )
    wait_for(lambda: len(processes_of(aws.home)) >= 3, 20)


@pytest.mark.local
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="it reads the kernel's list of processes")
class TestLifetime:
    """Nothing that was started outlives the process that asked for it."""

    def test_the_end_of_the_parent_ends_all_and_a_second_start_works(self, tmp_path: Path) -> None:
        """After kill -9 of the parent no process is left, and the same folder serves again until SIGTERM."""
        with started_by_another(tmp_path) as first:
            keep_busy(first)
            first.process.send_signal(signal.SIGKILL)
            first.process.wait()
            wait_for(lambda: not processes_of(tmp_path), 15)
        (tmp_path / "aws.log").unlink()
        with started(tmp_path) as second:
            assert second.client("s3").list_buckets()["Buckets"] == []
            keep_busy(second)
            os.kill(second.process.pid, signal.SIGTERM)
            second.process.wait(15)
            wait_for(lambda: not processes_of(tmp_path), 15)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["aws.log", "jobs", "lake", "logs"]

    def test_it_listens_on_this_machine_only(self, tmp_path: Path) -> None:
        """The kernel's list of listening sockets has the launcher's port under 127.0.0.1 alone."""
        with started(tmp_path) as running:
            port = int(running.endpoint.rpartition(":")[2])
            rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
            mine = {row[1] for row in rows if row[3] == "0A" and row[1].endswith(f":{port:04X}")}
            other = running.client("sts")
            assert mine == {f"0100007F:{port:04X}"}
            assert other.get_caller_identity()["Account"] == "000000000000"


def test_streams_that_are_polled_are_not_swept_at_every_request() -> None:
    """Iterators and each stream's records are looked through once in a while, however often they are read."""
    swept: list[str] = []
    now = [0.0]
    kinesis = SimpleNamespace(
        _expire_iterators=lambda: swept.append("iterators"),
        _expire_records=lambda stream: swept.append(stream["StreamARN"]),
    )
    correct_kinesis(kinesis, clock=lambda: now[0])
    for _ in range(1_000):
        kinesis._expire_iterators()
        kinesis._expire_records({"StreamARN": "events"})
        kinesis._expire_records({"StreamARN": "decisions"})
    assert sorted(swept) == ["decisions", "events", "iterators"]
    now[0] = SWEEP_S
    kinesis._expire_iterators()
    assert swept.count("iterators") == 2
