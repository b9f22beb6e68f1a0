"""The recommend function with a published catalogue and a promoted model, against moto."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from narrows.adapters import lightgbm
from narrows.adapters.control import DynamoControlTable
from narrows.adapters.dynamodb import DynamoStateStore
from narrows.adapters.s3 import S3Objects
from narrows.adapters.tables import write_training_data
from narrows.control import Pointer, model_pointer, snapshot_pointer
from narrows.events import Event, pseudonym
from narrows.features.state import Arrival, VisitorState, fold
from narrows.snapshot import write_base
from sagemaker_jobs.from_files import train_from_files
from tests import servers
from tests.functions.doorways import call, http_event
from tests.functions.test_recommend import PATH, SECRET, Deployed, stop
from tests.unit.test_bundle import ITEMS, write_bundle, write_snapshot
from tests.unit.test_jobs_learned import CATALOGUE, ring

HOMEPAGE = "/api/recommendations/homepage"


class Trained(Deployed):
    """A deployment whose pointers lead to a snapshot of sixty items and a whole bundle."""

    def publish(self, directory: Path, version: str = "v1") -> None:
        snapshot = write_snapshot(directory / f"snapshot-{version}", version)
        write_bundle(directory / f"model-{version}", snapshot, version)
        self.upload(directory, version)

    def upload(self, directory: Path, version: str = "v1") -> None:
        objects = S3Objects(self.s3, self.bucket)
        objects.upload(directory / f"snapshot-{version}", f"snapshots/{version}")
        objects.upload(directory / f"model-{version}", f"models/{version}")
        self.point(version)

    def point(self, version: str, previous: str | None = None) -> None:
        control = DynamoControlTable(
            self.tables["control"], region=servers.REGION, connect_timeout_s=1, read_timeout_s=5
        )
        app = self.variables["APP"]
        for name, folder in ((model_pointer(app), "models"), (snapshot_pointer(app), "snapshots")):
            control.move(name, Pointer(version, f"{folder}/{version}", time.time()), expected=previous)

    def viewed(self, user: str, items: list[str]) -> None:
        """Fold views of these items into the user's state."""
        features = self.module.FRONT._refresher.stages.features
        now = time.time()
        arrivals = [
            Arrival("s", n, Event(f"{user}-{n}", "view", now - 60 + n, now, user_id=user, item_id=item))
            for n, item in enumerate(items)
        ]
        states = DynamoStateStore(self.dynamodb, self.tables["state"], clock=time.time)
        states.put("u#" + pseudonym(user, SECRET.encode()), fold(VisitorState(), arrivals, features), 0)


@pytest.fixture
def trained(moto: servers.Aws, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Trained]:
    one = Trained(moto, monkeypatch, tmp_path / "cache")
    one.variables["APP"] = "megashop"
    one.publish(tmp_path)
    one.start()
    # On two busy cores moto alone may take longer than the surface's whole deadline.
    surface = one.module.APP.surfaces["homepage"]
    object.__setattr__(surface, "deadline_ms", 5_000.0)
    yield one
    stop(one.module)


def test_the_library_is_where_the_deployment_says(
    moto: servers.Aws, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A function's bundle has LightGBM's library without its package: LIGHTGBM_LIBRARY leads to it."""
    library = lightgbm.find_library()

    def not_installed() -> Path:
        raise lightgbm.LibraryUnavailable("there is no package in a function's bundle")

    monkeypatch.setattr(lightgbm, "find_library", not_installed)
    one = Trained(moto, monkeypatch, tmp_path / "cache")
    one.variables |= {"APP": "megashop", "LIGHTGBM_LIBRARY": str(library)}
    one.publish(tmp_path)
    one.start()
    stages = one.module.FRONT.stages
    stop(one.module)
    assert stages.problems == {}
    assert stages.ranker is not None


def test_a_full_answer(trained: Trained) -> None:
    """Retrieved, ranked by the model, under its version, with sources and details for people."""
    trained.viewed("alice", ITEMS[3:6])
    status, answer = trained.ask({"user_id": "alice", "limit": 10, "explain": True}, HOMEPAGE)
    assert status == 200
    assert (answer["fallback"], answer["model_version"], answer["degraded"]) == ("full", "v1", {})
    assert len(answer["recommendations"]) == 10
    scores = [one["score"] for one in answer["recommendations"]]
    assert all(isinstance(score, float) for score in scores)
    trace = answer["trace"]
    assert [one["item_id"] for one in trace["history"]] == ITEMS[3:6]
    first = answer["recommendations"][0]["item_id"]
    assert trace["items"][first]["price"] >= 1.0
    assert trace["sources"][first]["ranks"]
    assert {"visitor", "retrieve", "rank", "gate", "total"} <= set(trace["stages_ms"])


@pytest.mark.parametrize("app", ["shopnow", "media"])
def test_a_bundle_without_any_learned_model_serves(
    moto: servers.Aws, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, app: str
) -> None:
    """Trained with no learned source, and ALS lost: what was counted is ranked, and the missing are named."""
    write_training_data(tmp_path / "data", ring(120, 12), CATALOGUE)
    train_from_files(tmp_path / "data", tmp_path / "model-v1", app=app, budget_s=0, version="v1")
    (tmp_path / "model-v1" / "als.npz").unlink()
    ids = CATALOGUE["item_id"]
    columns = {"title": [one.encode() for one in CATALOGUE["title"]], "created_at": [1.6e9] * len(ids)}
    write_base(tmp_path / "snapshot-v1", ids, columns, version="v1", spare=3)
    one = Trained(moto, monkeypatch, tmp_path / "cache")
    one.variables["APP"] = app
    one.upload(tmp_path)
    one.start()
    object.__setattr__(one.module.APP.surfaces["feed"], "deadline_ms", 5_000.0)
    one.viewed("alice", ["i7", "i8"])
    status, answer = one.ask({"user_id": "alice", "limit": 10}, PATH)
    problems = call(one.module, http_event("GET", "/api/health"))[1]["problems"]
    stop(one.module)
    missing = ("two_tower", "session", "als")
    assert (status, answer["fallback"], answer["model_version"]) == (200, "full", "v1")
    assert len(answer["recommendations"]) == 10
    assert problems == {f"{source}.npz": "absent" for source in missing}
    assert answer["degraded"] == {
        **{f"load.{file}": why for file, why in problems.items()},
        **{f"retrieve.{source}": "absent" for source in missing},
    }


def test_an_unknown_visitor_is_served(trained: Trained) -> None:
    """Strangers get a full answer, from what everybody likes."""
    status, answer = trained.ask({"session_id": "never seen"}, HOMEPAGE)
    assert status == 200
    assert answer["recommendations"]
    assert "visitor" not in answer["degraded"]


def test_a_moved_pointer_is_followed(trained: Trained, tmp_path: Path) -> None:
    """A promotion is served within seconds, without a new deployment, and so is its rollback."""
    objects = S3Objects(trained.s3, trained.bucket)
    snapshot = write_snapshot(tmp_path / "snapshot-v2", "v2")
    write_bundle(tmp_path / "model-v2", snapshot, "v2")
    objects.upload(tmp_path / "snapshot-v2", "snapshots/v2")
    objects.upload(tmp_path / "model-v2", "models/v2")
    trained.point("v2", previous="v1")
    assert served(trained, "v2")
    trained.point("v1", previous="v2")
    assert served(trained, "v1")


def served(trained: Trained, version: str) -> bool:
    """Whether this version answers within ten seconds."""
    until = time.monotonic() + 10
    while time.monotonic() < until:
        _, answer = trained.ask({"user_id": "alice"}, HOMEPAGE)
        if answer["model_version"] == version:
            return answer["fallback"] == "full"
        time.sleep(0.2)
    return False


def test_a_damaged_model_does_not_replace_a_good_one(trained: Trained) -> None:
    """The pointer moved to it; the process says so and serves on with what it has."""
    objects = S3Objects(trained.s3, trained.bucket)
    for key in objects.keys("models/v1/"):
        objects.put(key.replace("/v1/", "/v2/"), objects.get(key) or b"")
    objects.put("models/v2/ranker.txt", b"damaged")
    for key in objects.keys("snapshots/v1/"):
        objects.put(key.replace("/v1/", "/v2/"), objects.get(key) or b"")
    trained.point("v2", previous="v1")
    until = time.monotonic() + 10
    problems = ""
    while time.monotonic() < until and "v2" not in problems:
        time.sleep(0.2)
        health = call(trained.module, http_event("GET", "/api/health"))[1]
        problems = json.dumps(health["problems"])
    assert "v2" in problems
    assert health["model_version"] == "v1"
    assert trained.ask({"user_id": "alice"}, HOMEPAGE)[1]["fallback"] == "full"


def test_a_store_that_dies_under_way_costs_a_rung_and_no_time(trained: Trained) -> None:
    """The visitor's state is gone, the segment's slate answers, and after five failures nobody asks."""
    assert trained.ask({"user_id": "alice"}, HOMEPAGE)[1]["fallback"] == "full"
    for kind in ("state", "slates"):
        trained.dynamodb.delete_table(TableName=trained.tables[kind])
    reasons = []
    for _ in range(7):
        started = time.perf_counter()
        status, answer = trained.ask({"user_id": "alice"}, HOMEPAGE)
        took_s = time.perf_counter() - started
        reasons.append(answer["degraded"]["visitor"])
        assert (status, answer["fallback"]) == (200, "segment")
        assert answer["recommendations"]
    assert reasons[0] == "StoreUnavailable"
    assert reasons[-1] == "circuit_open"
    assert took_s < 0.1


def test_a_dead_stream_loses_records_and_says_how_many(trained: Trained) -> None:
    """The request is answered as ever."""
    trained.kinesis.delete_stream(StreamName=trained.decisions)
    assert trained.ask({"user_id": "alice"}, HOMEPAGE)[0] == 200
    trained.module.FRONT._records.flush()
    health = call(trained.module, http_event("GET", "/api/health"))[1]
    assert sum(health["decisions"]["lost"].values()) == 1
