"""One local cloud for the whole folder: the stacks deployed, sixty items and a small model published."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import boto3
import pytest

from localcloud import supervisor
from narrows.adapters.control import DynamoControlTable
from narrows.adapters.s3 import S3Objects
from narrows.control import Pointer, model_pointer, snapshot_pointer
from tests import servers
from tests.unit.test_bundle import write_bundle, write_snapshot

APP = "megashop"
FIRST = "v1"


@dataclass(frozen=True)
class Cloud:
    """A running local cloud, as those who call it see it."""

    home: Path
    api: str
    page: str
    endpoint: str
    outputs: Mapping[str, str]
    app: str = APP

    def call(self, path: str, body: object | None = None) -> tuple[int, Any]:
        """The status and the JSON of an answer; a body makes it a POST."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.api + path, data, {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as refusal:
            return refusal.code, json.load(refusal)

    def slate(self, surface: str = "homepage", **body: Any) -> dict[str, Any]:
        """The answer to a request that must succeed."""
        status, answer = self.call(f"/api/recommendations/{surface}", body)
        assert status == 200, answer
        return dict(answer)

    def put_model(self, folder: Path, version: str, previous: str) -> None:
        """Upload a bundle as it is and move the app's pointer to it."""
        self.objects().upload(folder, f"models/{version}")
        self.move(model_pointer(self.app), f"models/{version}", version, previous)

    def move(self, pointer: str, prefix: str, version: str, previous: str | None) -> None:
        """Move a pointer of the control table."""
        control = DynamoControlTable(
            self.outputs["ControlTableName"],
            region=servers.REGION,
            connect_timeout_s=1,
            read_timeout_s=5,
        )
        control.move(pointer, Pointer(version, prefix, time.time()), expected=previous)

    def objects(self) -> S3Objects:
        """The app's bucket."""
        return S3Objects(boto3.client("s3"), self.outputs["BucketName"])


def items(answer: Mapping[str, Any]) -> list[str]:
    """The items of a slate, first position first."""
    return [one["item_id"] for one in answer["recommendations"]]


@pytest.fixture(scope="session")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """Start it once; the catalogue and the model are published before the functions start."""
    with started(tmp_path_factory.mktemp("home"), APP, _publish) as running:
        until_served(running, FIRST)
        yield running


@contextmanager
def started(home: Path, app: str, publish: Callable[[Cloud], None]) -> Iterator[Cloud]:
    """A local cloud of an app; `publish` is given it when its stacks are deployed and nothing runs yet."""
    deployed = Cloud(home, "", "", "", {}, app)
    with pytest.MonkeyPatch.context() as environment:

        def prepare(endpoint: str, outputs: Mapping[str, Mapping[str, str]]) -> None:
            nonlocal deployed
            for name, value in _speaking_to(endpoint).items():
                environment.setenv(name, value)
            flat = {name: value for stack in outputs.values() for name, value in stack.items()}
            deployed = replace(deployed, endpoint=endpoint, outputs=flat)
            publish(deployed)

        addresses = supervisor.up(home, app, workers=2, prepare=prepare)
        try:
            yield replace(deployed, api=addresses["api"], page=addresses["page"])
        finally:
            supervisor.down(home)


def _speaking_to(endpoint: str) -> dict[str, str]:
    keys = {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local"}
    return {"AWS_ENDPOINT_URL": endpoint, "AWS_DEFAULT_REGION": servers.REGION, **keys}


def _publish(cloud: Cloud) -> None:
    snapshot = write_snapshot(cloud.home / "snapshot", FIRST)
    write_bundle(cloud.home / "model", snapshot, FIRST, likes=("covisitation.scaled", 1.0))
    cloud.objects().upload(cloud.home / "snapshot", f"snapshots/{FIRST}")
    cloud.objects().upload(cloud.home / "model", f"models/{FIRST}")
    cloud.move(snapshot_pointer(APP), f"snapshots/{FIRST}", FIRST, None)
    cloud.move(model_pointer(APP), f"models/{FIRST}", FIRST, None)


def until_served(cloud: Cloud, version: str, times: int = 1) -> None:
    """Wait until the API has said so many times in a row that it serves this model."""
    deadline = time.monotonic() + 90
    health: Any = None
    same = 0
    while same < times:
        assert time.monotonic() < deadline, f"{version} is not served: {health}"
        try:
            _, health = cloud.call("/api/health")
        except OSError as gone:  # a worker that is just being started again
            health = {"model_version": repr(gone)}
        same = same + 1 if health["model_version"] == version else 0
        time.sleep(0.1)
