"""Jobs do real work: training programs under SageMaker's contract, Glue scripts under Spark."""

import io
import json
import shlex
import tarfile
import textwrap
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from local_aws import Started, started, wait_for

from localcloud.jobs import JobFailed, run_training_job
from localcloud.spark import spark_environment

TRAIN = textwrap.dedent("""
    import json, os, pathlib, sys, time
    hyperparameters = json.loads(os.environ["SM_HPS"])
    if hyperparameters.get("fail"):
        pathlib.Path(os.environ["SM_OUTPUT_DIR"], "failure").write_text("no interactions at all")
        sys.exit(3)
    time.sleep(hyperparameters.get("seconds", 0))
    channel = pathlib.Path(os.environ["SM_CHANNEL_TRAINING"])
    numbers = [int(path.read_text()) for path in channel.rglob("*.txt")]
    model = {"sum": sum(numbers) * hyperparameters.get("factor", 1), "arguments": sys.argv[1:],
             "name": os.environ["TRAINING_JOB_NAME"], "host": os.environ["SM_CURRENT_HOST"]}
    pathlib.Path(os.environ["SM_MODEL_DIR"], "model.json").write_text(json.dumps(model))
    metrics = pathlib.Path(os.environ["SM_OUTPUT_DATA_DIR"], "metrics.json")
    metrics.write_text(json.dumps({"count": len(numbers)}))
    print("trained on", len(numbers))
""")
SPARK = textwrap.dedent("""
    import argparse
    from pyspark.sql import SparkSession
    from small_package import label
    parser = argparse.ArgumentParser()
    for name in ("--landing", "--output", "--config"):
        parser.add_argument(name)
    known, rest = parser.parse_known_args()
    spark = SparkSession.builder.appName("count").getOrCreate()
    rows = spark.read.json(known.landing).groupBy("item").count()
    assert open(known.config).read() == "name = 'small'"
    assert "--JOB_NAME" in rest and "--enable-metrics" not in rest
    labelled = rows.selectExpr("item", "count", f"'{label()}' as label").coalesce(1)
    labelled.write.mode("overwrite").json(known.output)
    spark.stop()
""")


def archive(files: dict[str, str]) -> bytes:
    """The files as a .tar.gz."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    return packed.getvalue()


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    """A channel with two numbers, 2 and 3."""
    folder = tmp_path / "inputs" / "deep"
    folder.mkdir(parents=True)
    for number in (2, 3):
        (folder / f"{number}.txt").write_text(str(number))
    return folder.parent


class TestTrainingOnFiles:
    """`run_training_job`: the contract without any cloud."""

    def test_model_and_output_are_where_the_caller_wants_them(self, tmp_path: Path, inputs: Path) -> None:
        """A program finds its channel and hyperparameters, and its results arrive."""
        program = tmp_path / "train.py"
        program.write_text(TRAIN)
        model, output, log = tmp_path / "model", tmp_path / "output", tmp_path / "train.log"
        run_training_job(str(program), {"training": inputs}, model, output, {"factor": "10"}, log)
        written = json.loads((model / "model.json").read_text())
        assert (written["sum"], written["arguments"]) == (50, ["--factor", "10"])
        assert json.loads((output / "metrics.json").read_text()) == {"count": 2}
        assert log.read_text() == "trained on 2\n"

    def test_a_failure_carries_the_programs_own_reason(self, tmp_path: Path, inputs: Path) -> None:
        """What the program wrote to `failure` is in the error, and nothing is left in place of a model."""
        program = tmp_path / "train.py"
        program.write_text(TRAIN)
        with pytest.raises(JobFailed, match="no interactions at all, exit code: 3"):
            run_training_job(
                str(program),
                {"training": inputs},
                tmp_path / "m",
                tmp_path / "o",
                {"fail": 1},
                tmp_path / "log",
            )
        assert not (tmp_path / "m").exists()

    def test_a_missing_input_is_named_before_anything_runs(self, tmp_path: Path) -> None:
        """A channel that is not there is an error that says which."""
        with pytest.raises(JobFailed, match=r"training: .*nowhere"):
            run_training_job(
                "any", {"training": tmp_path / "nowhere"}, tmp_path, tmp_path, {}, tmp_path / "log"
            )

    def test_a_program_that_overruns_is_ended(self, tmp_path: Path, inputs: Path) -> None:
        """The time limit ends the process, not only the wait for it."""
        program = tmp_path / "train.py"
        program.write_text(TRAIN)
        begin = time.monotonic()
        with pytest.raises(JobFailed, match=r"ended after 0\.5 s"):
            run_training_job(
                str(program), {"training": inputs}, tmp_path, tmp_path, {"seconds": 60}, tmp_path / "log",
                timeout_s=0.5,
            )  # fmt: skip
        assert time.monotonic() - begin < 8


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    """A local AWS with one bucket, `jobs`, that holds the sources and the inputs."""
    with started(tmp_path_factory.mktemp("aws")) as running:
        running.bucket("jobs")
        running.put("jobs", "code/sourcedir.tar.gz", archive({"train.py": TRAIN}))
        running.put("jobs", "numbers/2.txt", "2")
        running.put("jobs", "numbers/deep/3.txt", "3")
        running.put("jobs", "numbers-of-others/9.txt", "9")
        yield running


def training_job(name: str, **changes: Any) -> dict[str, Any]:
    """A request of CreateTrainingJob as the SageMaker SDK writes it: hyperparameters are JSON."""
    hyperparameters = {
        "sagemaker_program": '"train.py"',
        "sagemaker_submit_directory": '"s3://jobs/code/sourcedir.tar.gz"',
        **changes.pop("hyperparameters", {}),
    }
    source = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://jobs/numbers"}}
    return {
        "TrainingJobName": name,
        "AlgorithmSpecification": {"TrainingImage": "any", "TrainingInputMode": "File"},
        "RoleArn": "arn:aws:iam::000000000000:role/any",
        "HyperParameters": hyperparameters,
        "InputDataConfig": [{"ChannelName": "training", "DataSource": source}],
        "OutputDataConfig": {"S3OutputPath": "s3://jobs/models/"},
        "ResourceConfig": {"InstanceCount": 1, "InstanceType": "ml.m5.large", "VolumeSizeInGB": 5},
        "StoppingCondition": {"MaxRuntimeInSeconds": 60},
        **changes,
    }


def ended(aws: Started, name: str) -> dict[str, Any]:
    """The description of a training job once it is over."""
    sagemaker = aws.client("sagemaker")

    def described() -> Any:
        job = sagemaker.describe_training_job(TrainingJobName=name)
        return job if job["TrainingJobStatus"] != "InProgress" else None

    return dict(wait_for(described, 30))


@pytest.mark.local
class TestTrainingJobs:
    """SageMaker's API in front of the same contract."""

    def test_the_model_arrives_as_an_archive(self, aws: Started) -> None:
        """A job is under way, then completed, and its archives hold what the program wrote."""
        sagemaker = aws.client("sagemaker")
        sagemaker.create_training_job(**training_job("sum", hyperparameters={"factor": "10"}))
        assert sagemaker.describe_training_job(TrainingJobName="sum")["TrainingJobStatus"] == "InProgress"
        job = ended(aws, "sum")
        assert (job["TrainingJobStatus"], job["SecondaryStatus"]) == ("Completed", "Completed")
        assert job["ModelArtifacts"]["S3ModelArtifacts"] == "s3://jobs/models/sum/output/model.tar.gz"
        body = aws.client("s3").get_object(Bucket="jobs", Key="models/sum/output/model.tar.gz")["Body"].read()
        with tarfile.open(fileobj=io.BytesIO(body)) as packed:
            written = json.load(packed.extractfile("model.json") or io.BytesIO())
        assert written == {"sum": 50, "arguments": ["--factor", "10"], "name": "sum", "host": "algo-1"}
        assert "models/sum/output/output.tar.gz" in aws.keys("jobs", "models/")
        assert (aws.home / "logs" / "jobs" / "sum.log").read_text() == "trained on 2\n"
        assert list((aws.home / "jobs").iterdir()) == []

    def test_a_failed_job_says_why(self, aws: Started) -> None:
        """FailureReason is what the program wrote, with its exit code, and there is no model."""
        aws.client("sagemaker").create_training_job(**training_job("none", hyperparameters={"fail": "1"}))
        job = ended(aws, "none")
        assert job["TrainingJobStatus"] == "Failed"
        assert job["FailureReason"] == "AlgorithmError: no interactions at all, exit code: 3"
        assert "ModelArtifacts" not in job
        assert aws.keys("jobs", "models/none") == []

    def test_an_empty_channel_fails_the_job(self, aws: Started) -> None:
        """A prefix without objects is named in the reason."""
        source = {"S3DataSource": {"S3DataType": "S3Prefix", "S3Uri": "s3://jobs/nothing/"}}
        channels = [{"ChannelName": "training", "DataSource": source}]
        aws.client("sagemaker").create_training_job(**training_job("empty", InputDataConfig=channels))
        assert "No S3 objects found under S3 URL 's3://jobs/nothing/'" in ended(aws, "empty")["FailureReason"]

    def test_jobs_end_at_their_limit_and_when_asked(self, aws: Started) -> None:
        """MaxRuntimeInSeconds and StopTrainingJob both end in Stopped, told apart by the secondary status."""
        sagemaker = aws.client("sagemaker")
        long = {"hyperparameters": {"seconds": "60"}}
        sagemaker.create_training_job(
            **training_job("over", StoppingCondition={"MaxRuntimeInSeconds": 1}, **long)
        )
        sagemaker.create_training_job(**training_job("stopped", **long))
        sagemaker.stop_training_job(TrainingJobName="stopped")
        over, stopped = ended(aws, "over"), ended(aws, "stopped")
        assert (over["TrainingJobStatus"], over["SecondaryStatus"]) == ("Stopped", "MaxRuntimeExceeded")
        assert (stopped["TrainingJobStatus"], stopped["SecondaryStatus"]) == ("Stopped", "Stopped")

    @pytest.mark.parametrize(
        ("name", "code"), [("sum", "ResourceInUse"), ("not_a_name", "ValidationException")]
    )
    def test_bad_names_are_refused(self, aws: Started, name: str, code: str) -> None:
        """A name that is taken, or that AWS would not take, is refused under AWS's error names."""
        with pytest.raises(ClientError) as refused:
            aws.client("sagemaker").create_training_job(**training_job(name))
        assert refused.value.response["Error"]["Code"] == code


def glue_job(aws: Started, name: str, script: str, **changes: Any) -> None:
    """Define a Glue job with its script on S3."""
    aws.put("jobs", f"code/{name}.py", script)
    location = {"Name": "glueetl", "ScriptLocation": f"s3://jobs/code/{name}.py"}
    aws.client("glue").create_job(Name=name, Role="any", Command=location, **changes)


def run_of(aws: Started, name: str, number: str) -> dict[str, Any]:
    """A run of a Glue job once it is over."""
    glue = aws.client("glue")

    def shown() -> Any:
        run = glue.get_job_run(JobName=name, RunId=number)["JobRun"]
        return run if run["JobRunState"] not in ("STARTING", "RUNNING", "STOPPING") else None

    return dict(wait_for(shown, 90))


@pytest.mark.local
class TestGlueJobRuns:
    """Glue's API in front of Spark and plain scripts."""

    @pytest.mark.spark
    def test_spark_reads_and_writes_s3_by_the_jobs_own_arguments(self, aws: Started) -> None:
        """Defaults and the run's arguments reach the script; its output replaces what lay there before."""
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as package:
            package.writestr("small_package.py", "def label(): return 'seen'")
        aws.put("jobs", "code/packages.zip", packed.getvalue())
        aws.put("jobs", "config/app.toml", "name = 'small'")
        aws.put("jobs", "landing/a/1.json", '{"item": "i1"}\n{"item": "i2"}\n')
        aws.put("jobs", "landing/b/2.json", '{"item": "i1"}\n')
        aws.put("jobs", "out/old.json", "{}")
        defaults = {
            "--landing": "s3://jobs/landing/a/",
            "--config": "s3://jobs/config/app.toml",
            "--extra-py-files": "s3://jobs/code/packages.zip",
            "--enable-metrics": "true",
        }
        glue_job(aws, "count", SPARK, DefaultArguments=defaults)
        given = {"--output": "s3://jobs/out/"}
        number = aws.client("glue").start_job_run(JobName="count", Arguments=given)["JobRunId"]
        run = run_of(aws, "count", number)
        assert run["JobRunState"] == "SUCCEEDED", run.get("ErrorMessage")
        assert run["Arguments"]["--output"] == "s3://jobs/out/"
        written = [key for key in aws.keys("jobs", "out/") if key.endswith(".json")]
        assert len(written) == 1
        assert written != ["out/old.json"]
        lines = (
            aws.client("s3").get_object(Bucket="jobs", Key=written[0])["Body"].read().decode().splitlines()
        )
        assert sorted(json.loads(line)["item"] for line in lines) == ["i1", "i2"]
        assert {json.loads(line)["label"] for line in lines} == {"seen"}

    def test_a_failed_run_ends_with_the_last_words_of_its_script(self, aws: Started) -> None:
        """FAILED carries the end of the traceback, and what the script had written is not brought back."""
        script = "import sys, pathlib; pathlib.Path(sys.argv[-1]).mkdir(parents=True); 1 / 0"
        glue_job(aws, "broken", script, DefaultArguments={"--output": "s3://jobs/broken/"})
        number = aws.client("glue").start_job_run(JobName="broken")["JobRunId"]
        run = run_of(aws, "broken", number)
        assert run["JobRunState"] == "FAILED"
        assert run["ErrorMessage"].endswith("ZeroDivisionError: division by zero")
        assert aws.keys("jobs", "broken/") == []

    def test_runs_are_bounded_and_can_be_stopped(self, aws: Started) -> None:
        """A second run at once is refused by default; a stopped one ends as STOPPED and makes room."""
        glue_job(aws, "slow", "import time; time.sleep(60)")
        glue = aws.client("glue")
        number = glue.start_job_run(JobName="slow")["JobRunId"]
        with pytest.raises(ClientError, match="ConcurrentRunsExceeded"):
            glue.start_job_run(JobName="slow")
        glue.batch_stop_job_run(JobName="slow", JobRunIds=[number])
        assert run_of(aws, "slow", number)["JobRunState"] == "STOPPED"
        assert [run["Id"] for run in glue.get_job_runs(JobName="slow")["JobRuns"]] == [number]

    def test_an_unknown_job_is_refused(self, aws: Started) -> None:
        """A run of a job that nobody defined is Glue's own error."""
        with pytest.raises(ClientError, match="EntityNotFound"):
            aws.client("glue").start_job_run(JobName="nobody")


def test_spark_keeps_its_temporary_files_where_the_job_does(tmp_path: Path) -> None:
    """Java heeds no TMPDIR: it is told by an option, which holds in a folder with a space as well."""
    scratch = tmp_path / "a home"
    sees = spark_environment([], scratch)
    assert sees["SPARK_LOCAL_DIRS"] == str(scratch)
    words = shlex.split(sees["PYSPARK_SUBMIT_ARGS"])
    assert words[words.index("--driver-java-options") + 1].endswith(f'"-Djava.io.tmpdir={scratch}"')
    assert words[-1] == "pyspark-shell"
