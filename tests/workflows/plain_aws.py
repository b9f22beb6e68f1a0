"""A MiniStack of its own for a test module, with its stream pollers off, and functions deployed into it."""

import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3

from localcloud.functions import CREDENTIALS, REGION
from localcloud.processes import end, ready_line, report_ready, spawn

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Aws:
    """An AWS on this machine and the clients that talk to it."""

    endpoint: str
    account: str = "000000000000"

    def client(self, service: str) -> Any:
        names = {"aws_access_key_id": "local", "aws_secret_access_key": "local", "region_name": REGION}
        return boto3.client(service, endpoint_url=self.endpoint, **names)

    def stream(self, name: str, shards: int = 1) -> str:
        """Create a Kinesis stream; returns its ARN."""
        kinesis = self.client("kinesis")
        kinesis.create_stream(StreamName=name, ShardCount=shards)
        kinesis.get_waiter("stream_exists").wait(StreamName=name, WaiterConfig={"Delay": 1})
        return str(kinesis.describe_stream(StreamName=name)["StreamDescription"]["StreamARN"])

    def function(self, name: str, handler: str, variables: Mapping[str, str], *, timeout: int = 30) -> None:
        """Deploy a function whose code is on this machine's path."""
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as package:
            package.writestr("empty.py", "")
        self.client("lambda").create_function(
            FunctionName=name,
            Runtime="python3.11",
            Role=f"arn:aws:iam::{self.account}:role/any",
            Handler=handler,
            Code={"ZipFile": archive.getvalue()},
            Timeout=timeout,
            Environment={"Variables": dict(variables)},
        )

    def mapping(self, function: str, source_arn: str, **more: Any) -> str:
        """Map a stream to a function; returns the mapping's UUID."""
        asked = {"BatchSize": 100, "StartingPosition": "TRIM_HORIZON"} | more
        answer = self.client("lambda").create_event_source_mapping(
            FunctionName=function, EventSourceArn=source_arn, **asked
        )
        return str(answer["UUID"])

    def queue(self, name: str) -> tuple[str, str]:
        """Create a queue; returns its URL and ARN."""
        url = self.client("sqs").create_queue(QueueName=name)["QueueUrl"]
        return url, f"arn:aws:sqs:{REGION}:{self.account}:{name}"


@contextmanager
def plain_aws(directory: Path) -> Iterator[Aws]:
    """MiniStack on a free port of 127.0.0.1, gone afterwards with everything in it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "aws.log").open("wb") as log:
        server = subprocess.Popen(
            [sys.executable, __file__, "--port", str(port), "--home", str(directory)],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdout=log,
            stderr=log,
            stdin=subprocess.DEVNULL,
        )
    try:
        wait_for(lambda: _answers(port), 30, "MiniStack to answer")
        yield Aws(f"http://127.0.0.1:{port}")
    finally:
        server.kill()
        server.wait()


class StreamProcess:
    """`python -m localcloud.streams` of one function, as the supervisor starts it."""

    def __init__(self, aws: Aws, function: str, home: Path, path: Path = ROOT) -> None:
        self.log = home / "logs" / f"{function}.log"
        offset = self.log.stat().st_size if self.log.exists() else 0
        arguments = ["--function", function, "--endpoint", aws.endpoint, "--home", str(home)]
        environment = (
            os.environ | CREDENTIALS | {"PYTHONPATH": f"{ROOT}{os.pathsep}{path}", "TMPDIR": str(home)}
        )
        self.process = spawn("localcloud.streams", arguments, log=self.log, environment=environment, cwd=ROOT)
        wait_for(
            lambda: self.process.poll() is not None or ready_line(self.log, offset), 30, "the stream process"
        )
        assert self.process.poll() is None, self.log.read_text()

    def kill(self) -> None:
        """End it without a word, as `kill -9` does."""
        os.kill(self.process.pid, signal.SIGKILL)
        end(self.process)

    def stop(self) -> None:
        end(self.process)


def wait_for(condition: Any, seconds: float, what: str) -> Any:
    """The first true answer of `condition`; fails when there is none in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        answer = condition()
        if answer:
            return answer
        time.sleep(0.02)
    raise AssertionError(f"waited {seconds} s in vain for {what}")


def _answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def main() -> None:
    """Be a MiniStack on --port with its files in --home, ready when it answers."""
    port, home = sys.argv[sys.argv.index("--port") + 1], sys.argv[sys.argv.index("--home") + 1]
    settings = {"GATEWAY_PORT": port, "BIND_HOST": "127.0.0.1", "SFTP_ENABLED": "0", "LOG_LEVEL": "WARNING"}
    settings |= {"TMPDIR": f"{home}/tmp", "STATE_DIR": f"{home}/tmp/state"} | CREDENTIALS
    Path(home, "tmp").mkdir(parents=True, exist_ok=True)
    os.environ.update(settings)
    sys.argv[1:] = []

    from ministack.app import main as ministack
    from ministack.services import lambda_svc

    lambda_svc._ensure_poller = lambda: None  # a poller of its own would take the records first

    def announce() -> None:
        wait_for(lambda: _answers(int(port)), 30, "MiniStack")
        report_ready(port=int(port))

    threading.Thread(target=announce, daemon=True).start()
    ministack()


if __name__ == "__main__":
    main()
