"""POST /api/recommendations/{surface}, GET /api/health and GET /openapi.json, with API Gateway's payloads."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lambdas.openapi import document, markdown
from narrows.adapters.dynamodb import DynamoPolicyLog, DynamoSlateStore, DynamoStateStore
from narrows.control import model_pointer, snapshot_pointer
from narrows.decision import DecisionRecord
from narrows.events import Event, pseudonym
from narrows.features.state import Arrival, VisitorState, fold
from narrows.policy import Change
from narrows.settings import App, load_app
from narrows.visitor import Remembered
from tests import servers
from tests.contract.tables import create_bucket, create_stream, create_table, read_stream
from tests.functions.doorways import call, cold_start, http_event

ROOT = Path(__file__).resolve().parents[2]
PATH = "/api/recommendations/feed"
SECRET = "a secret of the test"
NOWHERE = {
    **{f"{kind}_TABLE": "nowhere" for kind in ("STATE", "SLATES", "POLICY", "CONTROL")},
    "APP": "media",
    "BUCKET": "nowhere",
    "DECISIONS_STREAM": "nowhere",
    "PSEUDONYM_SECRET": "nowhere",
}
"""The variables of a function whose AWS does not answer."""
FIELDS = {
    *("recommendations", "model_version", "experiment_id", "recommendation_id"),
    *("fallback", "degraded", "policy_version", "missing_ids"),
}


class Deployed:
    """The function and what it is deployed with; the policy log has been written once."""

    def __init__(self, aws: servers.Aws, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
        self.dynamodb, self.kinesis, self.s3 = (aws.client(one) for one in ("dynamodb", "kinesis", "s3"))
        aws.client("secretsmanager").create_secret(Name="pseudonyms", SecretString=SECRET)
        self.tables = {
            kind: create_table(self.dynamodb, kind) for kind in ("state", "slates", "policy", "control")
        }
        self.decisions, self.bucket = create_stream(self.kinesis, "decisions"), create_bucket(self.s3)
        self.log = DynamoPolicyLog(self.dynamodb, self.tables["policy"], replica=0)
        self.variables = {
            "APP": "media",
            "BUCKET": self.bucket,
            **{f"{kind.upper()}_TABLE": table for kind, table in self.tables.items()},
            "DECISIONS_STREAM": self.decisions,
            "PSEUDONYM_SECRET": "pseudonyms",
            "NARROWS_CACHE": str(cache),
        }
        self.monkeypatch = monkeypatch
        self.module: ModuleType

    def start(self) -> Deployed:
        self.module = cold_start("recommend", self.monkeypatch, self.variables)
        return self

    def stop(self) -> None:
        stop(self.module)

    def ask(self, body: object = None, path: str = PATH, **how: Any) -> tuple[int, Any]:
        body = {"user_id": "alice"} if body is None else body
        return call(self.module, http_event("POST", path, body, **how))

    def records(self) -> list[DecisionRecord]:
        self.module.FRONT._records.flush()
        return [DecisionRecord.from_json(one["Data"]) for one in read_stream(self.kinesis, self.decisions)]


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> App:
    """The media app with a static list of thirty items."""
    folder = tmp_path / "apps" / "media"
    shutil.copytree(ROOT / "apps" / "media", folder)
    (folder / "static.json").write_text(json.dumps([f"static-{n}" for n in range(30)]))
    monkeypatch.setattr("lambdas.recommend.wiring.app_folder", lambda name: folder)
    return load_app(folder)


@pytest.fixture
def deployed(
    moto: servers.Aws, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, app: App
) -> Iterator[Deployed]:
    one = Deployed(moto, monkeypatch, tmp_path).start()
    yield one
    one.stop()


def test_before_any_model_the_static_list_answers(deployed: Deployed, app: App) -> None:
    """The first deploy serves: every field of the contract, positions from 1, a reason for each item."""
    status, answer = deployed.ask({"user_id": "alice", "limit": 3})
    assert status == 200
    assert set(answer) == FIELDS
    assert answer["fallback"] == "static"
    assert [one["item_id"] for one in answer["recommendations"]] == list(app.static_items[:3])
    assert [one["position"] for one in answer["recommendations"]] == [1, 2, 3]
    for one in answer["recommendations"]:
        assert set(one) == {"product_id", "item_id", "score", "reason", "position"}
        assert one["product_id"] == one["item_id"]
        assert one["reason"]
    assert (answer["model_version"], answer["experiment_id"]) == (None, None)


def test_the_surface_says_how_many_when_the_client_does_not(deployed: Deployed, app: App) -> None:
    """At most its own number."""
    _, answer = deployed.ask({"session_id": "s-1"})
    assert len(answer["recommendations"]) == min(app.surfaces["feed"].limit, len(app.static_items))


def body_of(**changes: Any) -> dict[str, Any]:
    return {"user_id": "alice", **changes}


WRONG = [
    ("{", 400, "body"),
    ("", 400, "body"),
    ("[]", 400, "body"),
    ("null", 400, "body"),
    ('{"user_id": "a", "limit": NaN}', 400, "body"),
    ('{"user_id": "a", "context": {"time": Infinity}}', 400, "body"),
    ('{"user_id": "a", "limit": 1e999}', 400, "body"),
    ("[" * 8_000, 400, "body"),
    (b'{"user_id": "\xff"}', 400, "body"),
    ({}, 400, "user_id"),
    ({"user_id": None, "limit": 5}, 400, "user_id"),
    (body_of(user_id=""), 400, "user_id"),
    (body_of(user_id=7), 400, "user_id"),
    (body_of(user_id="u" * 257), 400, "user_id"),
    (body_of(session_id=["s"]), 400, "session_id"),
    (body_of(limit=0), 400, "limit"),
    (body_of(limit=101), 400, "limit"),
    (body_of(limit="5"), 400, "limit"),
    (body_of(limit=2.5), 400, "limit"),
    (body_of(limit=True), 400, "limit"),
    (body_of(limt=5), 400, "limt"),
    (body_of(context="phone"), 400, "context"),
    (body_of(context={"devise": "phone"}), 400, "context.devise"),
    (body_of(context={"device": 7}), 400, "context.device"),
    (body_of(context={"location": "D" * 65}), 400, "context.location"),
    (body_of(context={"time": "soon"}), 400, "context.time"),
    (body_of(context={"time": "2026-11-21T05:00:00"}), 400, "context.time"),
    (body_of(context={"time": time.time() + 3_600}), 400, "context.time"),
    (body_of(item_id=7), 400, "item_id"),
    (body_of(item_ids="i1"), 400, "item_ids"),
    (body_of(item_ids=["i1", ""]), 400, "item_ids[1]"),
    (body_of(item_ids=["i"] * 101), 400, "item_ids"),
    (body_of(explain="yes"), 400, "explain"),
    (body_of(context={"device": "x" * 20_000}), 413, "body"),
]


def alone(monkeypatch: pytest.MonkeyPatch, cache: Path) -> ModuleType:
    """The function, started where nothing of AWS answers."""
    servers.credentials(monkeypatch, f"http://127.0.0.1:{servers.free_port()}")
    return cold_start("recommend", monkeypatch, {**NOWHERE, "NARROWS_CACHE": str(cache)})


def stop(module: ModuleType) -> None:
    """End the function's threads."""
    module.FRONT._refresher.stop()
    module.FRONT._records.close()


@pytest.fixture(scope="module")
def lonely(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """One start for all wrong requests: a request is judged before anything is read for it."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        module = alone(monkeypatch, tmp_path_factory.mktemp("cache"))
        yield module
        stop(module)


@pytest.mark.parametrize(("body", "status", "field"), WRONG, ids=lambda value: str(value)[:40])
def test_a_wrong_request_names_field_value_and_remedy(
    lonely: ModuleType, body: object, status: int, field: str
) -> None:
    """In the one error object of the API."""
    answered, content = call(lonely, http_event("POST", PATH, body))
    assert answered == status
    assert set(content) == {"error"}
    assert set(content["error"]) == {"type", "message", "field", "value", "remedy"}
    assert content["error"]["field"] == field
    assert content["error"]["remedy"]


def test_the_nearest_name_is_offered(deployed: Deployed) -> None:
    """For a field and for a surface alike."""
    assert "'limit'" in deployed.ask(body_of(limt=5))[1]["error"]["remedy"]
    status, content = deployed.ask(path="/api/recommendations/fed")
    assert (status, content["error"]["type"]) == (404, "UnknownSurface")
    assert "'feed'" in content["error"]["remedy"]
    assert call(deployed.module, http_event("GET", "/api/nothing"))[0] == 404


def test_unknown_items_are_named_and_never_an_error(deployed: Deployed) -> None:
    """The list is legal, and the response says what it did not know."""
    status, answer = deployed.ask(body_of(item_id="no-such-item", item_ids=["neither"]))
    assert status == 200
    assert answer["recommendations"]
    assert answer["missing_ids"] == ["no-such-item", "neither"]


def test_bodies_in_base64_and_any_time_format_are_read(deployed: Deployed) -> None:
    """Epoch seconds and ISO 8601 with a zone, in UTF-8 however it came."""
    for moment in (time.time(), "2026-01-01T00:00:00Z", "2026-01-01T02:00:00+02:00"):
        body = body_of(user_id="älice", context={"device": "mobile", "location": "DE", "time": moment})
        assert deployed.ask(body, encoded=True)[0] == 200


def test_explain_tells_how_the_answer_came_about(deployed: Deployed) -> None:
    """Times, rung, history and each item's source."""
    _, answer = deployed.ask(body_of(explain=True, limit=2))
    trace = answer["trace"]
    assert set(answer) == {*FIELDS, "trace"}
    assert trace["rung"] == answer["fallback"]
    assert trace["stages_ms"]["total"] >= 0
    assert trace["history"] == []
    assert set(trace["sources"]) == {one["item_id"] for one in answer["recommendations"]}


def test_each_answer_leaves_one_record_under_pseudonyms(deployed: Deployed) -> None:
    """It holds what was shown, and no identifier of the visitor."""
    _, answer = deployed.ask(body_of(user_id="alice", session_id="cookie-1"))
    record = deployed.records()[-1]
    assert record.recommendation_id == answer["recommendation_id"]
    assert [one.item_id for one in record.slate] == [one["item_id"] for one in answer["recommendations"]]
    assert record.user_key == "u#" + pseudonym("alice", SECRET.encode())
    assert "alice" not in record.to_json()
    assert "cookie-1" not in record.to_json()


def test_what_a_visitor_did_and_saw_is_read(deployed: Deployed, app: App) -> None:
    """State and last slate under the same pseudonym that collecting used."""
    key = "u#" + pseudonym("alice", SECRET.encode())
    states = DynamoStateStore(deployed.dynamodb, deployed.tables["state"], clock=time.time)
    features, shown = deployed.module.FRONT._refresher.stages.features, app.static_items
    watched = Event("e1", "watch", time.time() - 60, time.time(), user_id="x", item_id=shown[0])
    hidden = Event("e2", "do_not_show", time.time(), time.time(), user_id="x", item_id=shown[1])
    arrivals = [Arrival("s", 1, watched), Arrival("s", 2, hidden)]
    states.put(key, fold(VisitorState(), arrivals, features), 0)
    slates = DynamoSlateStore(deployed.dynamodb, deployed.tables["slates"])
    slates.write(key, "feed", Remembered((shown[4],), (), time.time()), expires_at=time.time() + 60)
    deployed.module.FRONT._refresher.stages.visitors._state_breaker.succeeded()
    _, answer = deployed.ask(body_of(explain=True, limit=100))
    ids = [one["item_id"] for one in answer["recommendations"]]
    assert [one["item_id"] for one in answer["trace"]["history"]] == [shown[0]]
    assert answer["fallback"] == "last_slate"
    assert ids[0] == shown[4]
    assert shown[1] not in ids


def test_a_blocked_item_is_gone_at_its_version(deployed: Deployed, app: App) -> None:
    """Also from the static list, as soon as the process has polled."""
    version = deployed.log.append([Change("block", app.static_items[0], True)], now=time.time())
    until = time.monotonic() + 10
    while time.monotonic() < until:
        _, answer = deployed.ask()
        if answer["policy_version"] >= version:
            break
        time.sleep(0.1)
    assert answer["policy_version"] >= version
    assert app.static_items[0] not in [one["item_id"] for one in answer["recommendations"]]


def test_health_tells_what_is_served(deployed: Deployed) -> None:
    """Versions, the policy's age, and the rungs that answered."""
    deployed.ask()
    status, health = call(deployed.module, http_event("GET", "/api/health"))
    assert status == 200
    assert health["app"] == "media"
    assert health["model_version"] is None
    assert 0 <= health["policy_age_s"] < 60
    assert health["rungs"] == {"static": 1}
    assert health["decisions"]["lost"] == {}


def test_the_api_describes_itself(deployed: Deployed, app: App) -> None:
    """The routes that answer are the routes described, and docs/api.md says the same."""
    status, api = call(deployed.module, http_event("GET", "/openapi.json"))
    assert status == 200
    assert api["openapi"].startswith("3.")
    operation = api["paths"]["/api/recommendations/{surface}"]["post"]
    assert operation["parameters"][0]["schema"]["enum"] == list(app.surfaces)
    answer = deployed.ask()[1]
    schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
    assert set(answer) == set(schema["required"])
    page = markdown(document(["feed"], ["impression", "click", "watch"]))
    assert (ROOT / "docs" / "api.md").read_text() == page


def test_with_all_of_aws_dead_at_the_cold_start_it_answers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, app: App
) -> None:
    """200, soon, saying what is away, from the list that was judged when it was built."""
    started = time.perf_counter()
    module = alone(monkeypatch, tmp_path)
    assert time.perf_counter() - started < 8
    statuses, took = [], []
    for _ in range(5):
        begun = time.perf_counter()
        status, answer = call(module, http_event("POST", PATH, body_of()))
        took.append(time.perf_counter() - begun)
        statuses.append(status)
    stop(module)
    assert statuses == [200] * 5
    assert answer["fallback"] == "static"
    assert answer["degraded"]["visitor"] == "StoreUnavailable"
    assert math.fsum(took[1:]) / 4 < 0.1
    health = call(module, http_event("GET", "/api/health"))[1]
    assert health["policy_age_s"] is None
    assert health["problems"]
    assert sum(health["decisions"]["lost"].values()) == 5


def test_the_request_path_imports_nothing_heavy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A budget in modules, not in seconds: what a cold start must not load is not loaded."""
    heavy = ("jax", "torch", "lightgbm", "scipy", "pandas", "sagemaker", "pyspark", "pyarrow", "sklearn")
    code = (
        "import json, sys\n"
        "import lambdas.recommend.handler\n"
        "print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))\n"
    )
    servers.credentials(monkeypatch, f"http://127.0.0.1:{servers.free_port()}")
    environment = {**os.environ, **NOWHERE, "NARROWS_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert loaded & set(heavy) == set()
    assert not loaded & {"pydantic", "moto", "ministack", "localcloud", "aws_cdk"}


def test_the_pointers_names_are_the_apps() -> None:
    """What promotion moves is what serving follows."""
    assert (model_pointer("media"), snapshot_pointer("media")) == ("model#media", "snapshot#media")
