"""The AWS of this machine, as one process: MiniStack, with moto for what it lacks and our runners for jobs.

    python -m localcloud.aws --port 4566 --home .narrows

Listens on 127.0.0.1 only. Everything is in memory but what lies below `home`: logs/jobs (kept), jobs, lake
and tmp (emptied at every start). Prints one JSON line when it answers; ends on SIGTERM, and with the process
that started it.

MiniStack keeps S3, DynamoDB, Kinesis, Lambda, CloudFormation and the rest; Step Functions, SageMaker and
application auto scaling are moto's; runs of Glue jobs and SageMaker training jobs are ours. Event source
mappings are kept and listed but not polled: `localcloud.streams` drives the handlers, as AWS does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from localcloud.processes import die_with_parent, report_ready

ACCOUNT = "000000000000"
REGION = "us-east-1"
HOST = "127.0.0.1"
OF_MOTO = {  # services, and how the names of their operations begin on the wire
    "states": "AWSStepFunctions.",
    "sagemaker": "SageMaker.",
    "application-autoscaling": "AnyScaleFrontendService.",
}
SWEEP_S = 10.0
INHERITED_ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_PROFILE", "AWS_SESSION_TOKEN")


def prepare(home: Path, port: int) -> None:
    """Set what the emulators read when they are imported, and start with empty folders for passing things."""
    for name in [name for name in os.environ if name.startswith(INHERITED_ENDPOINTS)]:
        del os.environ[name]
    for folder in ("tmp", "jobs", "lake"):
        shutil.rmtree(home / folder, ignore_errors=True)
        (home / folder).mkdir(parents=True)
    (home / "logs" / "jobs").mkdir(parents=True, exist_ok=True)
    os.environ.update(
        {
            "GATEWAY_PORT": str(port),
            "BIND_HOST": HOST,
            "MINISTACK_HOST": "localhost",
            "MINISTACK_ACCOUNT_ID": ACCOUNT,
            "MOTO_ACCOUNT_ID": ACCOUNT,
            "MINISTACK_REGION": REGION,
            "AWS_ACCESS_KEY_ID": "local",
            "AWS_SECRET_ACCESS_KEY": "local",
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_ENDPOINT_URL": f"http://{HOST}:{port}",
            "SFTP_ENABLED": "0",
            "IOT_MTLS_ENABLED": "0",
            "DOCKER_HOST": "unix:///nowhere",  # a container runtime is never asked, even where there is one
            "PERSIST_STATE": "0",
            "S3_PERSIST": "0",
            "TMPDIR": str(home / "tmp"),
            "STATE_DIR": str(home / "tmp" / "state"),
            "S3_DATA_DIR": str(home / "tmp" / "s3"),
            "LOG_LEVEL": os.environ.get("LOG_LEVEL", "WARNING"),
        }
    )


def assemble(home: Path, port: int, *, trains: bool = False) -> tuple[Any, Callable[[], None]]:
    """The ASGI application, and what ends everything that it started. `prepare` must have run.

    Where it soon `trains`, Spark is started now.
    """
    import boto3  # this and the emulators read the environment that `prepare` sets when they are imported
    from ministack import app as ministack
    from ministack.core import router
    from ministack.services import glue, kinesis, lambda_svc

    from localcloud import cloudformation, stepfunctions
    from localcloud.glue import JobRuns
    from localcloud.moto_app import Moto
    from localcloud.sagemaker import TrainingJobs
    from localcloud.services import routed

    endpoint = f"http://{HOST}:{port}"
    moto = Moto(region=REGION)
    s3 = boto3.client("s3", endpoint_url=endpoint, region_name=REGION)
    training = TrainingJobs(s3, home, account=ACCOUNT, region=REGION)
    runs = JobRuns(s3, _job_definition(glue), home)
    if trains:
        runs.get_ready()
    handlers = ministack.SERVICE_HANDLERS
    for service, prefix in OF_MOTO.items():
        handlers[service] = moto.handle
        # Else the first request for a service that it does not know waits 5 s for a list of all there are.
        router.SERVICE_PATTERNS.setdefault(service, {"target_prefixes": [prefix]})
    handlers["sagemaker"] = routed("SageMaker.", training.operations, moto.handle)
    handlers["glue"] = routed("AWSGlue.", runs.operations, handlers["glue"])
    stepfunctions.install(endpoint)
    cloudformation.install(moto)
    _correct_lambda(lambda_svc)
    correct_kinesis(kinesis)

    def end() -> None:
        training.stop_all()
        runs.stop_all()
        lambda_svc.reset()

    return ministack.app, end


def _job_definition(glue: Any) -> Callable[[str], dict[str, Any]]:
    from localcloud.services import Refused

    def find(name: str) -> dict[str, Any]:
        if name not in glue._jobs:
            raise Refused("EntityNotFoundException", f"Job {name} not found")
        return dict(glue._jobs[name])

    return find


def _correct_lambda(lambda_svc: Any) -> None:
    from ministack.core.lambda_runtime import Worker

    # Its own pollers ignore partial failures, retries and bisection, and would take records from our runner.
    lambda_svc._ensure_poller = lambda: None
    # It waits 50 ms for a log line after every invocation of a handler that writes none.
    first_line_wait, *rest = Worker._drain_stderr_bounded.__defaults__
    Worker._drain_stderr_bounded.__defaults__ = (min(first_line_wait, 0.003), *rest)


def correct_kinesis(kinesis: Any, clock: Callable[[], float] = time.monotonic) -> None:
    """Let Kinesis look for what has expired once in a while.

    It went through all iterators of the last five minutes at every request, and through all records of a
    stream at every read: consumers that poll would soon leave it no time for anybody else. An iterator that
    is used too late is refused in any case.
    """
    sweep_iterators, sweep_records = kinesis._expire_iterators, kinesis._expire_records
    due: dict[str, float] = {}

    def is_due(what: str) -> bool:
        if clock() < due.get(what, float("-inf")):
            return False
        due[what] = clock() + SWEEP_S
        return True

    def expire_iterators() -> None:
        if is_due("iterators"):
            sweep_iterators()

    def expire_records(stream: dict[str, Any]) -> None:
        if is_due(stream["StreamARN"]):
            sweep_records(stream)

    kinesis._expire_iterators, kinesis._expire_records = expire_iterators, expire_records


async def serve(application: Any, port: int) -> None:
    """Answer requests until SIGTERM or SIGINT."""
    from hypercorn.asyncio import serve as run
    from hypercorn.config import Config

    ending = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ending.set)
    config = Config()
    config.bind = [f"{HOST}:{port}"]
    config.keep_alive_timeout = 75
    config.graceful_timeout = 0.5
    config.loglevel = "WARNING"
    announced = asyncio.create_task(_announce(port, ending))
    await run(application, config, shutdown_trigger=ending.wait)
    await announced


async def _announce(port: int, ending: asyncio.Event) -> None:
    while not ending.is_set():
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection(HOST, port)
            writer.close()
            report_ready(port=port, endpoint=f"http://{HOST}:{port}")
            return
        await asyncio.sleep(0.05)


def _refuse_taken(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            sys.exit(f"port {port} of {HOST} cannot be used: {error.strerror}; choose another with --port")


def main() -> None:
    """Run until asked to end; nothing that was started is left behind."""
    parser = argparse.ArgumentParser(prog="localcloud.aws", description="The AWS of this machine.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--home", type=Path, required=True, help="the folder for logs and passing files")
    parser.add_argument("--trains", action="store_true", help="start Spark now: a training follows")
    arguments = parser.parse_args()
    die_with_parent()
    _refuse_taken(arguments.port)
    home = arguments.home.resolve()
    prepare(home, arguments.port)
    logging.basicConfig(level=os.environ["LOG_LEVEL"])
    application, end = assemble(home, arguments.port, trains=arguments.trains)
    try:
        asyncio.run(serve(application, arguments.port))
    finally:
        end()
        shutil.rmtree(home / "tmp", ignore_errors=True)
        os._exit(0)  # the emulators' own threads never end


if __name__ == "__main__":
    main()
