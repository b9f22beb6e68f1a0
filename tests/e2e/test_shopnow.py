"""ShopNow in the local cloud: its vectors in a real OpenSearch, its visitors those of a known market."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest

from localcloud import opensearch, supervisor
from localcloud.jars import JarMissing
from localcloud.opensearch import JdkMissing
from narrows.adapters.control import DynamoControlTable
from narrows.adapters.opensearch_versions import index_versions
from narrows.adapters.snapshots import LiveSnapshot, SnapshotCopy
from narrows.adapters.tables import write_training_data
from narrows.cli import main
from narrows.cli.api_client import Api
from narrows.cli.console import Progress
from narrows.cli.deployment import Deployment
from narrows.cli.tastes import Tastes
from narrows.control import model_pointer
from narrows.index_building import build_index
from narrows.market_tables import MarketPlan, tables_of
from narrows.settings import App, load_app
from narrows.simulator import Market
from narrows.sources import two_tower
from narrows.vector_index import IndexVersions
from sagemaker_jobs.from_files import train_from_files
from tests.e2e.conftest import FIRST, Cloud, items, started, until_served
from tests.servers import REGION, unavailable
from tests.unit.test_bundle import APPS

pytestmark = [pytest.mark.local, pytest.mark.slow, pytest.mark.timeout(1200)]

APP = "shopnow"
EVENTS = 20_000
WARM_USERS, THEIR_EVENTS, ITEMS = 60, 40, 12
BUDGET_S = 20.0
TOWERS = "retrieve.two_tower"


@dataclass(frozen=True)
class Shop:
    """The running cloud, the market whose visitors it has seen, and its index of vectors."""

    cloud: Cloud
    app: App
    market: Market
    versions: IndexVersions


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """Trained on what a market's visitors did; the histories of those who come most often were sent."""
    home = tmp_path_factory.mktemp("shop")
    try:
        opensearch.command(home, 0, os.environ)
    except (JarMissing, JdkMissing) as error:
        unavailable("OpenSearch", str(error))
    app, plan = load_app(APPS / APP), MarketPlan(events=EVENTS, as_of=float(int(time.time())))
    market = plan.market()
    tables = tables_of(plan, market, app)
    write_training_data(home / "data", tables.interactions, tables.items)
    learned = ("two_tower", "session")
    train_from_files(
        home / "data", home / "model", app=APP, budget_s=BUDGET_S, learned=learned, version=FIRST
    )
    found: list[IndexVersions] = []
    publish = partial(_publish, found, app, market, home)
    with started(home / "cloud", APP, publish) as cloud:
        until_served(cloud, FIRST, times=8)
        _send_histories(cloud, plan, market)
        yield Shop(cloud, app, market, found[0])


def _publish(found: list[IndexVersions], app: App, market: Market, home: Path, cloud: Cloud) -> None:
    """The catalogue, the index of its vectors and the model, in the order of a promotion."""
    rows = market.catalogue()
    Deployment(cloud.outputs).publish(app, rows, home / "snapshot", "s1", market.as_of)
    told = boto3.client("lambda", region_name=REGION).get_function_configuration(
        FunctionName=cloud.outputs["PromoteModelFunction"]
    )["Environment"]["Variables"]
    versions = index_versions(
        app.index,
        url=told["SEARCH_URL"],
        name=told["SEARCH_NAME"],
        engine=told["SEARCH_ENGINE"],
        search_s=20.0,
    )
    objects = cloud.objects()
    copy = SnapshotCopy(home / "copy", objects.download, objects.get)
    control = DynamoControlTable(
        cloud.outputs["ControlTableName"], region=REGION, connect_timeout_s=1, read_timeout_s=5
    )
    snapshot = LiveSnapshot(app, control, copy).current()
    assert snapshot is not None
    assert (
        build_index(
            versions, FIRST, two_tower.load(home / "model" / two_tower.FILE), lambda: snapshot, lambda: None
        )
        > 500
    )
    objects.upload(home / "model", f"models/{FIRST}")
    cloud.move(model_pointer(APP), f"models/{FIRST}", FIRST, None)
    found.append(versions)


def _send_histories(cloud: Cloud, plan: MarketPlan, market: Market) -> None:
    """The last events of the most active users, as they happened; then wait until the API knows them."""
    warm = {market.user_ids[one] for one in market.by_activity()[:WARM_USERS].tolist()}
    theirs: dict[str, list[dict[str, Any]]] = {user: [] for user in warm}
    for event in market.events(*plan.window):
        if event.get("user_id") in warm:
            theirs[str(event["user_id"])].append(event)
    with closing(Api(cloud.api)) as api:
        for events in theirs.values():
            verdicts = api.send_events(events[-THEIR_EVENTS:])["verdicts"] if events else []
            assert {one["status"] for one in verdicts} <= {"accepted"}, verdicts
    known = [user for user, events in theirs.items() if len(events) >= THEIR_EVENTS]
    assert known
    _eventually(120.0, lambda: all(_feed(cloud, user)["trace"]["history"] for user in known))


def _feed(cloud: Cloud, user: str) -> dict[str, Any]:
    return cloud.slate("feed", user_id=user, explain=True)


def _eventually(seconds: float, holds: Callable[[], bool]) -> float:
    """How long it took until it held; fails when it takes longer."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() < began + seconds, f"not within {seconds} s"
        time.sleep(0.1)
    return time.monotonic() - began


def test_a_new_item_comes_to_warm_users_whose_taste_it_fits_within_a_minute(shop: Shop) -> None:
    """Without a training it can be shown to all whose taste it fits; to most it is, and an answer
    shows it to others far less often.

    Twelve come at once, so they keep each other out: of ten that fit two or three wait longer than a minute.
    """
    api = Api(shop.cloud.api)
    rng, run = np.random.default_rng(0), f"{int(time.time())}"
    tastes = Tastes(shop.app, shop.market, api, time.monotonic, time.sleep, run=run, rng=rng)
    with closing(api), Progress("new items", ITEMS, "items") as progress:
        try:
            tastes.measure(ITEMS, progress)
        finally:
            tastes.remove()
    report = tastes.report()
    print(report)  # noqa: T201  # what `pytest -s` is asked for
    assert report["fits"]["pairs"] >= ITEMS
    assert report["fits"]["eligible"] == 1.0, report
    assert report["fits"]["eligible_p50_s"] < 30.0
    assert report["fits"]["shown"] >= 0.5, report
    assert report["fits"]["an_answer"] > 1.5 * report["others"]["an_answer"], report
    assert report["items_reached"] >= 0.75 * ITEMS, report
    assert shop.cloud.call("/api/health")[1]["model_version"] == FIRST


def test_freshness_looks_into_the_index_of_a_model_that_is_live(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model reads what is written about the probes, so that they are found there too."""
    monkeypatch.setenv("NARROWS_HOME", str(shop.cloud.home))
    assert main(["freshness", "--app", APP, "--probes", "10", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    print(report)  # noqa: T201  # what `pytest -s` is asked for
    assert report["ok"]
    assert report["unmeasured"] == {}
    assert report["created_to_indexed"]["p99"] < 60.0


@dataclass
class Load:
    """Clients that ask one slate after the other; what was wrong with answers, and how they came about."""

    cloud: Cloud
    market: Market
    withdrawn: str
    known: frozenset[str]
    wrong: list[str] = field(default_factory=list)
    rungs: Counter[str] = field(default_factory=Counter)
    answers: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def visit(self, client: int) -> None:
        """Users and strangers by turns, until told to stop."""
        users = [self.market.user_ids[one] for one in self.market.by_activity()[:WARM_USERS].tolist()]
        number = client
        while not self.stop.is_set():
            number += 4
            who = {"user_id": users[number % len(users)]} if number % 3 else {"session_id": f"s{number}"}
            self._judge(*self.cloud.call("/api/recommendations/feed", who))

    def _judge(self, status: int, answer: Any) -> None:
        shown = set(items(answer)) if status == 200 else set()
        legal = status == 200 and shown and shown <= self.known - {self.withdrawn}
        if not legal or (answer["fallback"] != "full" and not answer["degraded"]):
            self.wrong.append(f"{status}: {answer}")
            return
        self.rungs[answer["fallback"]] += 1
        whole = "answered" if answer["fallback"] == "full" else answer["fallback"]
        self.answers.append(answer["degraded"].get(TOWERS, whole))

    def since(self, number: int) -> Counter[str]:
        """What the two towers said in the answers from that one on."""
        return Counter(self.answers[number:])


def test_opensearch_killed_under_load_is_named_and_comes_back_by_itself(shop: Shop) -> None:
    """kill -9: each answer is 200 and legal and says what is missing; then it is whole again, and current."""
    cloud, market = shop.cloud, shop.market
    withdrawn = items(cloud.slate("feed", session_id="nobody"))[0]
    changes = [{"kind": "stock", "item_id": withdrawn, "value": False}]
    assert cloud.call("/api/policy/changes", {"changes": changes})[0] == 200
    time.sleep(5)
    known = frozenset(market.item_ids) | frozenset(shop.app.static_items)
    load = Load(cloud, market, withdrawn, known)
    clients = [threading.Thread(target=load.visit, args=(number,)) for number in range(4)]
    for client in clients:
        client.start()
    try:
        _eventually(30.0, lambda: load.since(0)["answered"] > 20)
        before = len(load.answers)
        os.kill(_node(cloud)["pid"], signal.SIGKILL)
        _eventually(20.0, lambda: load.since(before)["StoreUnavailable"] > 20)
        _eventually(90.0, lambda: _node(cloud)["restarts"] > 0)
        _eventually(90.0, lambda: load.answers[-20:].count("answered") >= 15)
    finally:
        load.stop.set()
        for client in clients:
            client.join()
    print(len(load.answers), load.rungs, load.since(0))  # noqa: T201  # what `pytest -s` is asked for
    assert load.wrong[:3] == []
    indexed = _rows(shop)
    late = {name: market.twin(3, "late")[name] for name in ("item_id", "title", "category", "brand")}
    assert cloud.call("/api/items", {"items": [late]})[1]["verdicts"][0]["status"] == "accepted"
    _eventually(60.0, lambda: bool(_rows(shop) - indexed))


def _node(cloud: Cloud) -> dict[str, Any]:
    parts: list[dict[str, Any]] = supervisor.status(cloud.home)["parts"]
    return next(part for part in parts if part["name"] == "opensearch")


def _rows(shop: Shop) -> set[int]:
    """All rows that the index holds now."""
    index = shop.versions.open(FIRST)
    found = index.search(np.ones(index.dimension, np.float32), 2 * shop.market.items)
    return {row for row in found.rows[0].tolist() if row >= 0}
