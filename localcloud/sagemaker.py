"""SageMaker training jobs that do the work: the deployed program, under the container contract.

CreateTrainingJob, DescribeTrainingJob, StopTrainingJob and ListTrainingJobs are ours; the rest of SageMaker
is moto's. The program comes in script mode: hyperparameters `sagemaker_program` and
`sagemaker_submit_directory` (an `s3://` .tar.gz), as the SageMaker SDK writes them. The image is
not run; this machine's Python is.
"""

from __future__ import annotations

import json
import re
import shutil
import tarfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from localcloud.jobs import (
    HOST,
    Container,
    Ended,
    arguments_of,
    command_of,
    contract_environment,
    decoded,
    job_environment,
    reason_of,
    run_process,
)
from localcloud.services import Operation, Refused
from localcloud.staging import bucket_and_key, download, download_folder, upload_archive, upload_folder

NAME = re.compile(r"[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}")
REQUIRED = (
    "TrainingJobName",
    "AlgorithmSpecification",
    "RoleArn",
    "OutputDataConfig",
    "ResourceConfig",
    "StoppingCondition",
)
SECONDS_BY_DEFAULT = 86_400
OF_THE_TOOLKIT = "sagemaker_"


@dataclass
class Job:
    """One training job, as DescribeTrainingJob shows it."""

    request: dict[str, Any]
    arn: str
    status: str = "InProgress"
    secondary: str = "Starting"
    reason: str = ""
    created_at: float = field(default_factory=time.time)
    started_at: float | None = None
    ended_at: float | None = None
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def name(self) -> str:
        """The job's name, unique in its account."""
        return str(self.request["TrainingJobName"])

    @property
    def output(self) -> str:
        """The S3 location of this job's archives, without a slash at its end."""
        return f"{self.request['OutputDataConfig']['S3OutputPath'].rstrip('/')}/{self.name}/output"

    def end(self, status: str, secondary: str, reason: str = "") -> None:
        """Set the last status; `reason` only for a failure."""
        self.ended_at = time.time()
        self.reason = reason
        self.secondary = secondary
        self.status = status

    def shown(self) -> dict[str, Any]:
        """The answer of DescribeTrainingJob."""
        content = {
            **self.request,
            "TrainingJobArn": self.arn,
            "TrainingJobStatus": self.status,
            "SecondaryStatus": self.secondary,
            "CreationTime": self.created_at,
            "LastModifiedTime": self.ended_at or self.started_at or self.created_at,
            "TrainingStartTime": self.started_at,
            "TrainingEndTime": self.ended_at,
            "FailureReason": self.reason,
        }
        if self.status == "Completed":
            content["ModelArtifacts"] = {"S3ModelArtifacts": f"{self.output}/model.tar.gz"}
        if self.started_at and self.ended_at:
            content["TrainingTimeInSeconds"] = max(1, int(self.ended_at - self.started_at))
        return {name: value for name, value in content.items() if value not in (None, "")}


class TrainingJobs:
    """Starts, shows and stops training jobs."""

    def __init__(self, s3: Any, home: Path, *, account: str, region: str) -> None:
        self._s3 = s3
        self._home = home
        self._arn = f"arn:aws:sagemaker:{region}:{account}:training-job"
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()

    @property
    def operations(self) -> dict[str, Operation]:
        """What this class answers instead of moto."""
        return {
            "CreateTrainingJob": self.create_training_job,
            "DescribeTrainingJob": self.describe_training_job,
            "StopTrainingJob": self.stop_training_job,
            "ListTrainingJobs": self.list_training_jobs,
        }

    def create_training_job(self, request: dict[str, Any]) -> dict[str, Any]:
        """Start a job; refused when its name is taken or not one, or something required is missing."""
        missing = [name for name in REQUIRED if not request.get(name)]
        if missing:
            raise Refused("ValidationException", f"missing in the request: {', '.join(missing)}")
        name = request["TrainingJobName"]
        if not NAME.fullmatch(name):
            raise Refused("ValidationException", f"'{name}' at 'trainingJobName' must match {NAME.pattern}")
        job = Job(request, f"{self._arn}/{name.lower()}")
        with self._lock:
            if name in self._jobs:
                message = "Job name must be unique within an AWS account and region"
                raise Refused("ResourceInUse", f"{message}, and {name} exists: {self._jobs[name].arn}")
            self._jobs[name] = job
        threading.Thread(target=self._work, args=(job,), daemon=True, name=name).start()
        return {"TrainingJobArn": job.arn}

    def describe_training_job(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """One job with its status."""
        return self._find(request).shown()

    def stop_training_job(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """End a job that is under way; Stopped follows when its process is gone."""
        job = self._find(request)
        if job.status != "InProgress":
            raise Refused("ValidationException", f"The request was rejected: {job.name} is {job.status}")
        job.stop.set()
        return {}

    def list_training_jobs(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Every job, the latest first; `NameContains` and `StatusEquals` narrow it."""
        text, status = request.get("NameContains", ""), request.get("StatusEquals")
        shown = [job.shown() for job in reversed(self._jobs.values()) if text in job.name]
        fields = ("TrainingJobName", "TrainingJobArn", "CreationTime", "TrainingEndTime", "TrainingJobStatus")
        chosen = [job for job in shown if status in (None, job["TrainingJobStatus"])]
        return {
            "TrainingJobSummaries": [{name: job[name] for name in fields if name in job} for job in chosen]
        }

    def stop_all(self) -> None:
        """End every job, for the end of this process."""
        for job in self._jobs.values():
            job.stop.set()

    def _find(self, request: Mapping[str, Any]) -> Job:
        name = request.get("TrainingJobName", "")
        if name not in self._jobs:
            raise Refused("ValidationException", f"Requested resource not found: training job '{name}'")
        return self._jobs[name]

    def _work(self, job: Job) -> None:
        container = Container(self._home / "jobs" / job.name)
        log = self._home / "logs" / "jobs" / f"{job.name}.log"
        try:
            container.create()
            ended = self._execute(job, container, log)
            self._finish(job, ended, container, log)
        except Exception as error:  # noqa: BLE001  # whatever it was, the job has failed and must say so
            job.end("Failed", "Failed", f"ClientError: {error}")
        finally:
            shutil.rmtree(container.root, ignore_errors=True)

    def _execute(self, job: Job, container: Container, log: Path) -> Ended:
        job.secondary = "Downloading"
        hyperparameters = decoded(job.request.get("HyperParameters") or {})
        program = self._fetch_program(hyperparameters, container)
        channels = [
            self._fetch_channel(channel, container) for channel in job.request.get("InputDataConfig", ())
        ]
        kept = self._fetch_checkpoints(job, container)
        own = {name: value for name, value in hyperparameters.items() if not name.startswith(OF_THE_TOOLKIT)}
        self._write_config(job, container, hyperparameters)
        inputs = {name: container.channel(name) for name in channels}
        environment = {
            **contract_environment(container, inputs, own, name=job.name, program=program),
            "TRAINING_JOB_ARN": job.arn,
            "PYTHONPATH": str(container.code),
            **({"SM_CHECKPOINT_DIR": str(kept)} if kept else {}),
            **(job.request.get("Environment") or {}),
        }
        job.started_at, job.secondary = time.time(), "Training"
        return run_process(
            [*command_of(program, container.code), *arguments_of(own)],
            cwd=container.code,
            environment=job_environment(container.root / "tmp", environment),
            log=log,
            timeout_s=job.request["StoppingCondition"].get("MaxRuntimeInSeconds", SECONDS_BY_DEFAULT),
            stop=job.stop,
        )

    def _fetch_program(self, hyperparameters: Mapping[str, Any], container: Container) -> str:
        program = hyperparameters.get("sagemaker_program")
        sources = hyperparameters.get("sagemaker_submit_directory")
        if not program or not sources:
            remedy = "set the hyperparameters sagemaker_program and sagemaker_submit_directory"
            raise ValueError(f"only script mode runs on this machine; {remedy}")
        archive = container.root / "sourcedir.tar.gz"
        download(self._s3, *bucket_and_key(sources), archive)
        with tarfile.open(archive) as packed:
            packed.extractall(container.code, filter="data")
        return str(program)

    def _fetch_channel(self, channel: Mapping[str, Any], container: Container) -> str:
        name, uri = channel["ChannelName"], channel["DataSource"]["S3DataSource"]["S3Uri"]
        if not download_folder(self._s3, uri, container.channel(name)):
            raise ValueError(f"No S3 objects found under S3 URL '{uri}' given in input data source '{name}'")
        return str(name)

    def _fetch_checkpoints(self, job: Job, container: Container) -> Path | None:
        """The folder that outlives the job, with what lies under its address; None where it asks for none."""
        uri = (job.request.get("CheckpointConfig") or {}).get("S3Uri")
        if not uri:
            return None
        container.checkpoints.mkdir(parents=True, exist_ok=True)
        download_folder(self._s3, uri, container.checkpoints)
        return container.checkpoints

    def _write_config(self, job: Job, container: Container, hyperparameters: Mapping[str, Any]) -> None:
        config = container.root / "input" / "config"
        resources = {"current_host": HOST, "hosts": [HOST], "network_interface_name": "lo"}
        channels = {channel["ChannelName"]: channel for channel in job.request.get("InputDataConfig", ())}
        texts = {name: json.dumps(value) for name, value in hyperparameters.items()}
        (config / "hyperparameters.json").write_text(json.dumps(texts))
        (config / "resourceconfig.json").write_text(json.dumps(resources))
        (config / "inputdataconfig.json").write_text(json.dumps(channels))

    def _finish(self, job: Job, ended: Ended, container: Container, log: Path) -> None:
        if container.checkpoints.is_dir():
            upload_folder(self._s3, container.checkpoints, job.request["CheckpointConfig"]["S3Uri"])
        failed = ended.code and not (ended.stopped or ended.overran)
        job.secondary = "Failed" if failed else "Uploading"
        if any(container.output_data.iterdir()):
            upload_archive(self._s3, container.output_data, f"{job.output}/output.tar.gz")
        if failed:
            job.end("Failed", "Failed", reason_of(container, log, ended.code))
            return
        upload_archive(self._s3, container.model, f"{job.output}/model.tar.gz")
        if ended.stopped:
            job.end("Stopped", "Stopped")
        elif ended.overran:
            job.end("Stopped", "MaxRuntimeExceeded")
        else:
            job.end("Completed", "Completed")
