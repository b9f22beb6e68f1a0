"""The local AWS as tests start it: the launcher's own process, over HTTP, in a folder of its own."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3

from localcloud.processes import end, ready_line, spawn
from tests.servers import free_port

ROOT = Path(__file__).parents[2]
PARENT = """
import sys, time
from pathlib import Path
from localcloud.processes import spawn
import os
spawn("localcloud.aws", sys.argv[2:], log=Path(sys.argv[1]), environment=os.environ, cwd=Path.cwd())
time.sleep(600)
"""


@dataclass(frozen=True)
class Started:
    """One running local AWS."""

    endpoint: str
    home: Path
    process: subprocess.Popen[bytes]

    def client(self, service: str) -> Any:
        names = {"aws_access_key_id": "local", "aws_secret_access_key": "local", "region_name": "us-east-1"}
        return boto3.client(service, endpoint_url=self.endpoint, **names)

    def put(self, bucket: str, key: str, content: str | bytes) -> None:
        """Store one object."""
        self.client("s3").put_object(Bucket=bucket, Key=key, Body=content)

    def bucket(self, name: str) -> str:
        """Create a bucket; returns its name."""
        self.client("s3").create_bucket(Bucket=name)
        return name

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        """The keys below a prefix, in order."""
        listed = self.client("s3").list_objects_v2(Bucket=bucket, Prefix=prefix)
        return sorted(entry["Key"] for entry in listed.get("Contents", ()))


@contextmanager
def started(home: Path) -> Iterator[Started]:
    """Start the local AWS in `home`, and end it with SIGTERM."""
    port, log = free_port(), home / "aws.log"
    process = spawn("localcloud.aws", arguments(home, port), log=log, environment=os.environ, cwd=ROOT)
    try:
        wait_for(lambda: ready_line(log), 60, process)
        yield Started(f"http://127.0.0.1:{port}", home, process)
    finally:
        end(process)


@contextmanager
def started_by_another(home: Path) -> Iterator[Started]:
    """The same with a process between, which a test may kill; it is `process` of what this gives."""
    port, log = free_port(), home / "aws.log"
    command = [sys.executable, "-c", PARENT, str(log), *arguments(home, port)]
    parent = subprocess.Popen(command, cwd=ROOT)
    try:
        wait_for(lambda: log.exists() and ready_line(log), 60, parent)
        yield Started(f"http://127.0.0.1:{port}", home, parent)
    finally:
        parent.kill()
        parent.wait()


def arguments(home: Path, port: int) -> list[str]:
    """The launcher's command line."""
    return ["--port", str(port), "--home", str(home)]


def wait_for(fact: Callable[[], Any], seconds: float, process: subprocess.Popen[bytes] | None = None) -> Any:
    """The first value of `fact` that is true; fails when there is none in time or the process is gone."""
    ends_at = time.monotonic() + seconds
    while time.monotonic() < ends_at:
        value = fact()
        if value:
            return value
        assert process is None or process.poll() is None, "the process ended"
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s")


def processes_of(home: Path) -> list[str]:
    """The command lines of all processes that were started for `home`, from the kernel's list."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            facts = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
            zombie = (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            continue
        if (
            not zombie
            and entry.name != str(os.getpid())
            and any(str(home).encode() in fact for fact in facts)
        ):
            found.append(f"{entry.name}: {facts[0].replace(bytes(1), b' ').decode()[:200]}")
    return found
