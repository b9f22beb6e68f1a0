"""Glue job runs that do the work: the deployed script, run by the Spark of this machine.

The definition of a job (CreateJob, CloudFormation) stays with the emulator; a run of it is ours. The script
and `--extra-py-files` come from S3. Arguments are the job's defaults under the run's own; each `s3://`
location in them becomes a local folder around the run (`localcloud.staging`), since reading S3 from Spark
itself would take a download of 281 MB. Glue's own switches (`--enable-metrics` ...) are not passed on;
`--datalake-formats iceberg` gives the run the jar that `localcloud.jars` keeps, and the Spark that is up.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from localcloud.jars import ICEBERG, kept
from localcloud.jobs import Ended, job_environment, last_lines, run_process
from localcloud.services import Operation, Refused
from localcloud.spark import spark_environment
from localcloud.spark_server import SparkServer
from localcloud.staging import LAKE, Stage, bucket_and_key, download, localised
from narrows.errors import NarrowsError

LOG = logging.getLogger("localcloud.glue")
ACTIVE = frozenset({"STARTING", "RUNNING", "STOPPING"})
MINUTES_BY_DEFAULT = 2880
# https://docs.aws.amazon.com/glue/latest/dg/aws-glue-programming-etl-glue-arguments.html
OF_GLUE_ITSELF = frozenset(
    {
        "--TempDir",
        "--additional-python-modules",
        "--class",
        "--conf",
        "--continuous-log-conversionPattern",
        "--continuous-log-logGroup",
        "--continuous-log-logStreamPrefix",
        "--customer-driver-env-vars",
        "--customer-executor-env-vars",
        "--datalake-formats",
        "--disable-proxy-v2",
        "--enable-auto-scaling",
        "--enable-continuous-cloudwatch-log",
        "--enable-glue-datacatalog",
        "--enable-job-insights",
        "--enable-metrics",
        "--enable-observability-metrics",
        "--enable-rename-algorithm-v2",
        "--enable-s3-parquet-optimized-committer",
        "--enable-spark-ui",
        "--executor-cores",
        "--extra-files",
        "--extra-jars",
        "--extra-py-files",
        "--job-bookmark-option",
        "--job-language",
        "--python-modules-installer-option",
        "--scriptLocation",
        "--spark-event-logs-path",
        "--use-postgres-driver",
        "--user-jars-first",
    }
)


@dataclass
class Run:
    """One run of one job, as GetJobRun shows it."""

    job: str
    arguments: Mapping[str, str]
    timeout_min: float
    number: str = field(default_factory=lambda: f"jr_{uuid.uuid4().hex}")
    state: str = "STARTING"
    error: str = ""
    started_at: float = field(default_factory=time.time)
    ended_at: float | None = None
    stop: threading.Event = field(default_factory=threading.Event)

    def end(self, state: str, error: str = "") -> None:
        """Set the last state, with the reason where it is not a success."""
        self.ended_at = time.time()
        self.error = error
        self.state = state

    def shown(self) -> dict[str, Any]:
        """The JobRun structure of the API."""
        until = self.ended_at or time.time()
        content = {
            "Id": self.number,
            "Attempt": 0,
            "JobName": self.job,
            "JobRunState": self.state,
            "Arguments": dict(self.arguments),
            "StartedOn": self.started_at,
            "LastModifiedOn": until,
            "ExecutionTime": int(until - self.started_at),
            "Timeout": self.timeout_min,
        }
        if self.ended_at:
            content["CompletedOn"] = self.ended_at
        return {**content, "ErrorMessage": self.error} if self.error else content


class JobRuns:
    """Starts, shows and stops the runs of Glue jobs."""

    def __init__(self, s3: Any, definition: Callable[[str], dict[str, Any]], home: Path) -> None:
        self._s3 = s3
        self._definition = definition
        self._home = home
        self._runs: dict[str, list[Run]] = {}
        self._lock = threading.Lock()
        self._spark: SparkServer | None = None

    @property
    def operations(self) -> dict[str, Operation]:
        """What this class answers instead of the emulator."""
        return {
            "StartJobRun": self.start_job_run,
            "GetJobRun": self.get_job_run,
            "GetJobRuns": self.get_job_runs,
            "BatchStopJobRun": self.batch_stop_job_run,
        }

    def get_ready(self) -> None:
        """Start Spark now, beside whatever else is going on, since a run of the lake will follow."""
        threading.Thread(target=self._start_spark, daemon=True, name="spark").start()

    def start_job_run(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Start a run; refused when as many as the job allows are under way."""
        name = _required(request, "JobName")
        job = self._definition(name)
        allowed = int((job.get("ExecutionProperty") or {}).get("MaxConcurrentRuns") or 1)
        arguments = {**(job.get("DefaultArguments") or {}), **(request.get("Arguments") or {})}
        minutes = float(request.get("Timeout") or job.get("Timeout") or MINUTES_BY_DEFAULT)
        run = Run(name, arguments, minutes)
        with self._lock:
            runs = self._runs.setdefault(name, [])
            if sum(other.state in ACTIVE for other in runs) >= allowed:
                raise Refused("ConcurrentRunsExceededException", f"Concurrent runs exceeded for {name}")
            runs.append(run)
        threading.Thread(target=self._work, args=(run, job), daemon=True, name=run.number).start()
        return {"JobRunId": run.number}

    def get_job_run(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """One run with its state."""
        return {"JobRun": self._find(request).shown()}

    def get_job_runs(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Every run of a job, the latest first."""
        name = _required(request, "JobName")
        self._definition(name)
        return {"JobRuns": [run.shown() for run in reversed(self._runs.get(name, []))]}

    def batch_stop_job_run(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """End runs that are under way; STOPPED follows when their processes are gone."""
        runs = {run.number: run for run in self._runs.get(_required(request, "JobName"), [])}
        found = [runs[number] for number in request.get("JobRunIds", ()) if number in runs]
        for run in found:
            run.stop.set()
        return {
            "SuccessfulSubmissions": [{"JobName": run.job, "JobRunId": run.number} for run in found],
            "Errors": [],
        }

    def stop_all(self) -> None:
        """End every run, for the end of this process."""
        for run in (run for runs in self._runs.values() for run in runs):
            run.stop.set()
        if self._spark is not None:
            self._spark.end()

    def _find(self, request: Mapping[str, Any]) -> Run:
        name, number = _required(request, "JobName"), _required(request, "RunId")
        for run in self._runs.get(name, ()):
            if run.number == number:
                return run
        raise Refused("EntityNotFoundException", f"Job run {number} of job {name} not found")

    def _work(self, run: Run, job: Mapping[str, Any]) -> None:
        folder = self._home / "jobs" / run.number
        log = self._home / "logs" / "jobs" / f"{run.job}-{run.number}.log"
        stage = Stage(self._s3, folder / "s3", self._home / LAKE)
        try:
            ended = self._execute(run, job, folder, stage, log)
            if not (ended.code or ended.stopped or ended.overran):
                stage.bring_back()
            run.end(*_outcome(ended, run, log))
        except Exception as error:  # noqa: BLE001  # whatever it was, the run has failed and must say so
            run.end("FAILED", f"{type(error).__name__}: {error}")
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _execute(self, run: Run, job: Mapping[str, Any], folder: Path, stage: Stage, log: Path) -> Ended:
        script = self._fetch(job["Command"]["ScriptLocation"], folder)
        packages = [self._fetch(uri, folder) for uri in _listed(run.arguments.get("--extra-py-files"))]
        given = {name: text for name, text in run.arguments.items() if name not in OF_GLUE_ITSELF}
        local = localised(stage, {"--JOB_NAME": run.job, "--JOB_RUN_ID": run.number, **given})
        words = [str(script), *(text for pair in local.items() for text in pair)]
        sees = spark_environment(packages, folder / "tmp")
        run.state = "RUNNING"
        if "iceberg" not in _listed(run.arguments.get("--datalake-formats")):
            return self._process([sys.executable, *words], run, folder, log, sees)
        spark = self._shared_spark()
        with spark.lent() as found:
            driver = [sys.executable, "-m", "localcloud.spark_driver"]
            ended = self._process([*driver, *words], run, folder, log, {**sees, **found})
            if ended.stopped or ended.overran:
                spark.wear()
            return ended

    def _process(
        self, command: Sequence[str], run: Run, folder: Path, log: Path, sees: Mapping[str, str]
    ) -> Ended:
        return run_process(
            command,
            cwd=folder,
            environment=job_environment(folder / "tmp", sees),
            log=log,
            timeout_s=run.timeout_min * 60,
            stop=run.stop,
        )

    def _start_spark(self) -> None:
        scratch, log = self._home / "jobs" / "spark", self._home / "logs" / "jobs" / "spark.log"
        try:
            with self._shared_spark().lent() as found:
                sees = job_environment(scratch, {**spark_environment([], scratch), **found})
                driver = [sys.executable, "-m", "localcloud.spark_driver"]
                run_process(driver, cwd=scratch, environment=sees, log=log)
        except NarrowsError as error:  # the run that needs it will fail with the same words
            LOG.warning("Spark is not ready: %s", error)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _shared_spark(self) -> SparkServer:
        with self._lock:
            if self._spark is None:
                self._spark = SparkServer(self._home, [kept(ICEBERG)])
            return self._spark

    def _fetch(self, uri: str, folder: Path) -> Path:
        bucket, key = bucket_and_key(uri)
        target = folder / key.rpartition("/")[2]
        download(self._s3, bucket, key, target)
        return target


def _outcome(ended: Ended, run: Run, log: Path) -> tuple[str, str]:
    if ended.stopped:
        return "STOPPED", ""
    if ended.overran:
        return "TIMEOUT", f"Job run exceeded its time limit of {run.timeout_min:g} minutes"
    if ended.code:
        return "FAILED", last_lines(log) or f"Command failed with exit code {ended.code}"
    return "SUCCEEDED", ""


def _listed(text: str | None) -> list[str]:
    return [part.strip() for part in (text or "").split(",") if part.strip()]


def _required(request: Mapping[str, Any], name: str) -> str:
    if not request.get(name):
        raise Refused("InvalidInputException", f"{name} is missing in {json.dumps(request)[:200]}")
    return str(request[name])
