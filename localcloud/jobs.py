"""Batch jobs as processes of this machine, and the container contract of SageMaker.

A training program finds everything where SageMaker would put it, relocated from /opt/ml to a folder of its
own: `input/data/<channel>`, `model`, `output/failure`, `output/data`, the `SM_*` variables, and its
hyperparameters as `--name value` arguments. `localcloud.sagemaker` feeds it from S3; `run_training_job` from
plain folders.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localcloud.processes import signal_group
from narrows.errors import NarrowsError

POLL_S = 0.2
GRACE_S = 5.0  # from SIGTERM to SIGKILL; SageMaker gives 120 s, Glue none
REASON_LENGTH = 1024  # of a FailureReason, as SageMaker cuts it
HOST = "algo-1"
# Ends the job when the process that started it is killed: the kernel's parent-death signal outlives the exec.
TIED = (
    "import ctypes, os, sys; sys.platform == 'linux' and ctypes.CDLL(None).prctl(1, 15);"
    " os.execv(sys.argv[1], sys.argv[1:])"
)


class JobFailed(NarrowsError):
    """A job ended with an error; the text is the reason that the job gave, or the end of what it printed."""


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code, and whether we ended it because of `stop` or the time limit."""

    code: int
    stopped: bool = False
    overran: bool = False


def run_process(
    command: Sequence[str],
    *,
    cwd: Path,
    environment: Mapping[str, str],
    log: Path,
    timeout_s: float | None = None,
    stop: threading.Event | None = None,
) -> Ended:
    """Run a job to its end, both its outputs in `log`; it and its children are gone when this returns."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", TIED, shutil.which(command[0]) or command[0], *command[1:]],
            cwd=cwd,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        return _watch(process, timeout_s, stop or threading.Event())
    finally:
        signal_group(process.pid, signal.SIGKILL)
        process.wait()


def _watch(process: subprocess.Popen[bytes], timeout_s: float | None, stop: threading.Event) -> Ended:
    ends_at = time.monotonic() + timeout_s if timeout_s else float("inf")
    while not stop.is_set() and time.monotonic() < ends_at:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return Ended(process.wait(POLL_S))
    signal_group(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_S)
    signal_group(process.pid, signal.SIGKILL)
    return Ended(process.wait(), stopped=stop.is_set(), overran=not stop.is_set())


def last_lines(log: Path, *, lines: int = 20, length: int = 2000) -> str:
    """The end of a log, for a message to a person; "" when nothing was printed."""
    if not log.exists():
        return ""
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])[-length:]


def job_environment(scratch: Path, extra: Mapping[str, str]) -> dict[str, str]:
    """What a job sees: this process's variables with temporary files in `scratch`, and `extra` over them."""
    scratch.mkdir(parents=True, exist_ok=True)
    return {**os.environ, "TMPDIR": str(scratch), "PYTHONUNBUFFERED": "1", **extra}


@dataclass(frozen=True)
class Container:
    """The folders of one training job, laid out as below /opt/ml."""

    root: Path

    @property
    def model(self) -> Path:
        """What ends up in model.tar.gz."""
        return self.root / "model"

    @property
    def output(self) -> Path:
        """Holds `failure`, the reason of a failed job."""
        return self.root / "output"

    @property
    def output_data(self) -> Path:
        """What ends up in output.tar.gz."""
        return self.output / "data"

    @property
    def checkpoints(self) -> Path:
        """What outlives the job, where it asked for that."""
        return self.root / "checkpoints"

    @property
    def code(self) -> Path:
        """The unpacked sources of script mode."""
        return self.root / "code"

    def channel(self, name: str) -> Path:
        """Where the input channel `name` lies."""
        return self.root / "input" / "data" / name

    def create(self) -> None:
        """Make every folder, and empty those of the results."""
        for results in (self.model, self.output):
            shutil.rmtree(results, ignore_errors=True)
        for folder in (self.model, self.output_data, self.code, self.root / "input" / "config"):
            folder.mkdir(parents=True, exist_ok=True)


def decoded(hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """Hyperparameters as values: the strings of the SageMaker API that are JSON are read as such."""
    return {name: _decoded(value) for name, value in hyperparameters.items()}


def _decoded(value: Any) -> Any:
    if isinstance(value, str):
        with contextlib.suppress(json.JSONDecodeError):
            return json.loads(value)
    return value


def contract_environment(
    container: Container,
    channels: Mapping[str, Path],
    hyperparameters: Mapping[str, Any],
    *,
    name: str,
    program: str,
) -> dict[str, str]:
    """The variables that SageMaker's training toolkit sets for a program."""
    parameters = {f"SM_HP_{key.upper()}": _text(value) for key, value in hyperparameters.items()}
    inputs = {f"SM_CHANNEL_{channel.upper()}": str(path) for channel, path in channels.items()}
    return {
        **parameters,
        **inputs,
        "SM_CHANNELS": json.dumps(sorted(channels)),
        "SM_HPS": json.dumps(dict(hyperparameters)),
        "SM_USER_ARGS": json.dumps(arguments_of(hyperparameters)),
        "SM_MODEL_DIR": str(container.model),
        "SM_OUTPUT_DIR": str(container.output),
        "SM_OUTPUT_DATA_DIR": str(container.output_data),
        "SM_INPUT_DIR": str(container.root / "input"),
        "SM_INPUT_CONFIG_DIR": str(container.root / "input" / "config"),
        "SM_MODULE_DIR": str(container.code),
        "SM_MODULE_NAME": program.removesuffix(".py"),
        "SM_CURRENT_HOST": HOST,
        "SM_HOSTS": json.dumps([HOST]),
        "SM_NUM_CPUS": str(os.cpu_count() or 1),
        "SM_NUM_GPUS": "0",
        "TRAINING_JOB_NAME": name,
    }


def arguments_of(hyperparameters: Mapping[str, Any]) -> list[str]:
    """Hyperparameters as the toolkit passes them to a program: `--name value`, in alphabetical order."""
    return [text for key in sorted(hyperparameters) for text in (f"--{key}", _text(hyperparameters[key]))]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def command_of(program: str, code: Path) -> list[str]:
    """How a training program is started: a file of the sources, or the dotted name of a module."""
    if program.endswith(".sh"):
        return ["/bin/sh", str(code / program)]
    if program.endswith(".py"):
        return [sys.executable, str(code / program)]
    return [sys.executable, "-m", program]


def reason_of(container: Container, log: Path, code: int) -> str:
    """Why a training job failed: its own words in `output/failure`, else the end of what it printed."""
    written = container.output / "failure"
    words = written.read_text(errors="replace").strip() if written.exists() else ""
    return f"AlgorithmError: {words or last_lines(log)}, exit code: {code}"[:REASON_LENGTH]


def run_training_job(
    program: str,
    channels: Mapping[str, Path],
    model_dir: Path,
    output_dir: Path,
    hyperparameters: Mapping[str, Any],
    log: Path,
    *,
    timeout_s: float | None = None,
) -> None:
    """Run a training program on folders of this machine, under the same contract as in SageMaker.

    `program` is a module (`sagemaker_jobs.train_als`) or the path of a .py file. What it saves as its model
    is in `model_dir` afterwards, its other output in `output_dir`. Raises JobFailed with the reason that the
    job gave.
    """
    missing = [f"{name}: {path}" for name, path in channels.items() if not path.exists()]
    if missing:
        raise JobFailed(f"{program} cannot start: no such input: {', '.join(missing)}")
    with tempfile.TemporaryDirectory(prefix="training-") as root:
        container = Container(Path(root))
        container.create()
        inputs = {name: path.resolve() for name, path in channels.items()}
        environment = contract_environment(
            container, inputs, decoded(hyperparameters), name=program.rpartition(".")[2], program=program
        )
        command = [*command_of(program, Path.cwd()), *arguments_of(hyperparameters)]
        ended = run_process(
            command,
            cwd=Path.cwd(),
            environment=job_environment(container.root / "tmp", environment),
            log=log,
            timeout_s=timeout_s,
        )
        if ended.overran:
            raise JobFailed(f"{program} was ended after {timeout_s:g} s; its log: {log}")
        if ended.code:
            raise JobFailed(f"{program}: {reason_of(container, log, ended.code)}; its log: {log}")
        shutil.copytree(container.model, model_dir, dirs_exist_ok=True)
        shutil.copytree(container.output_data, output_dir, dirs_exist_ok=True)
