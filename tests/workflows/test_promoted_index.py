"""A trained model on its way into service where vectors lie in OpenSearch, and served while they are away."""

from __future__ import annotations

import io
import itertools
import json
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from narrows.adapters.bundle import Serving, parts_of
from narrows.adapters.control import DynamoControlTable
from narrows.adapters.item_encoder import KeptEncoders, LiveEncoder
from narrows.adapters.memory import MemoryItemTable, MemoryPolicyLog
from narrows.adapters.opensearch import connect
from narrows.adapters.opensearch_versions import OpenSearchIndexVersions, index_versions
from narrows.adapters.publishing import write_snapshot
from narrows.adapters.refreshing import Cellar, Live
from narrows.adapters.s3 import S3Objects
from narrows.adapters.snapshots import SnapshotCopy
from narrows.adapters.tables import write_training_data
from narrows.control import Pointer, model_pointer, snapshot_pointer
from narrows.errors import StoreUnavailable
from narrows.freshening import ItemEntry, freshen
from narrows.indexing import Indexed, index_items
from narrows.settings import load_app
from narrows.sources.two_tower import TwoTowerSource
from narrows.vector_index import IndexGone
from sagemaker_jobs.from_files import train_from_files
from tests.contract.tables import create_bucket, create_table
from tests.functions.doorways import CONTEXT, call, cold_start, http_event
from tests.functions.test_recommend import Deployed
from tests.servers import REGION, Aws, OpenSearchNode, free_port
from tests.unit.test_jobs_learned import CATALOGUE, ring
from tests.unit.test_sources_learned import query

pytestmark = [pytest.mark.local, pytest.mark.timeout(900)]

APP = load_app(Path(__file__).parents[2] / "apps" / "shopnow")
NUMBERS = itertools.count()
GAIN = "normalized_discounted_cumulative_gain_at_10"
NEW = "new-part"
TOWERS = "retrieve.two_tower"
ANSWERED = ["answered"] * 20


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ShopNow's model of small data, with an item network that was really trained."""
    home = tmp_path_factory.mktemp("trained")
    write_training_data(home / "data", ring(120, 12), CATALOGUE)
    return train_from_files(
        home / "data", home / "bundle", app="shopnow", budget_s=6.0, learned=("two_tower",), version="run-1"
    )


class Region:
    """Bucket, tables, the function that promotes, and an OpenSearch."""

    def __init__(self, aws: Aws, monkeypatch: pytest.MonkeyPatch, node: OpenSearchNode, folder: Path) -> None:
        client = aws.client("s3")
        self.objects, self.folder = S3Objects(client, create_bucket(client)), folder
        self.table = create_table(aws.client("dynamodb"), "control")
        self.control = DynamoControlTable(self.table, region=REGION, connect_timeout_s=1, read_timeout_s=5)
        self.name, self.url = f"promoted-{next(NUMBERS)}", node.url
        self.monkeypatch = monkeypatch
        self.versions: OpenSearchIndexVersions = index_versions(
            APP.index, url=node.url, name=self.name, engine="lucene", search_s=20.0
        )
        self.variables = {
            "APP": "shopnow", "BUCKET": self.objects.bucket, "CONTROL_TABLE": self.table,
            "AWS_REGION": REGION, "SEARCH_URL": self.url, "SEARCH_NAME": self.name, "SEARCH_ENGINE": "lucene",
        }  # fmt: skip

    def publish(self, version: str = "s1", later: Sequence[str] = (NEW,), former: str | None = None) -> None:
        """The catalogue of the training, and items that came after it."""
        ids = [*CATALOGUE["item_id"], *later]
        titles = [*CATALOGUE["title"], *CATALOGUE["title"][: len(later)]]
        write_snapshot(self.folder / version, APP, {"item_id": ids, "title": titles}, version=version)
        self.objects.upload(self.folder / version, f"snapshots/{version}")
        pointer = Pointer(version, f"snapshots/{version}", 1.0)
        self.control.move(snapshot_pointer("shopnow"), pointer, expected=former)

    def promote(
        self,
        bundle: Path,
        version: str,
        score: float,
        url: str = "",
        meanwhile: Callable[[ModuleType], object] = lambda function: None,
    ) -> dict[str, Any]:
        """What the workflow's last step answers; `meanwhile` something comes in between."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w:gz") as archive:
            archive.add(bundle, ".")
        self.objects.put("jobs/model.tar.gz", packed.getvalue())
        reports = {"two_stage": {GAIN: score}, "popular": {GAIN: 0.01}}
        report = {"users": 100, "reports": reports, "segments": {}}
        self.objects.put("jobs/metrics.json", json.dumps({"candidate": report, "current": None}).encode())
        variables = self.variables | ({"SEARCH_URL": url} if url else {})
        self.monkeypatch.setattr("lambdas.promote_model.index.PUBLISHING_S", 0.0)
        function = cold_start("promote_model", self.monkeypatch, variables)
        meanwhile(function)
        address = f"s3://{self.objects.bucket}/jobs"
        event = {"candidate": f"{address}/model.tar.gz", "metrics": f"{address}/metrics.json"}
        return dict(function.handler({**event, "version": version}, CONTEXT))

    def items(self, *entries: ItemEntry) -> Indexed:
        """What `index_items` does with a batch."""
        return index_items(entries, self.versions, APP.catalogue, KeptEncoders(self.objects.get).of)

    def finds(self, version: str, row: int) -> bool:
        """Whether an index has the row."""
        index = self.versions.open(version)
        index.refresh()
        return row in index.search(np.ones((1, index.dimension), np.float32), len(index)).rows[0].tolist()

    def live(self) -> Live:
        """What the pointers say."""
        return Live(
            self.control.read(model_pointer("shopnow")), self.control.read(snapshot_pointer("shopnow"))
        )

    def served(self) -> Serving:
        """What a process of the API loads."""
        copy = SnapshotCopy(self.folder / "cache", self.objects.download, self.objects.get)
        return Cellar(APP, copy, versions=self.versions).load(self.live())


@pytest.fixture
def region(
    moto: Aws, monkeypatch: pytest.MonkeyPatch, opensearch: OpenSearchNode, tmp_path: Path
) -> Iterator[Region]:
    one = Region(moto, monkeypatch, opensearch, tmp_path)
    one.publish()
    yield one
    connect(one.url, timeout_s=20.0).indices.delete(index=f"{one.name}-*", ignore_unavailable=True)


def test_what_is_promoted_is_searched(region: Region, bundle: Path) -> None:
    """The index holds every item that the network places, a new one too, and finds what is nearest."""
    assert region.promote(bundle, "run-1", 0.3)["promoted"] is True
    serving = region.served()
    assert (serving.model_version, "index" in serving.problems) == ("run-1", False)
    source = parts_of(serving)["sources"]["two_tower"]
    compared = serving.sources["two_tower"]
    assert isinstance(source, TwoTowerSource)
    assert isinstance(compared, TwoTowerSource)
    assert compared.index is None
    (new,) = serving.snapshot.rows([NEW]).tolist()
    vectors = np.flatnonzero(~np.isnan(compared.vectors[:, 0]))
    assert new in vectors
    assert len(region.versions.open("run-1")) == len(vectors) >= 61
    found = 0
    for item in range(20):
        rows = serving.snapshot.rows([f"i{item}", f"i{item + 1}"])
        asked = query(rows.tolist(), exclude=tuple(rows.tolist()))
        ours, wanted = source.retrieve(asked, 10), compared.retrieve(asked, 10)
        assert len(ours.rows) == 10
        assert ours.scores == pytest.approx(source.score(asked, ours.rows), rel=2e-2, abs=2e-2)
        found += len(np.intersect1d(ours.rows, wanted.rows))
    assert found >= 0.97 * 200


def test_an_item_whose_price_changes_is_found_as_before(region: Region, bundle: Path) -> None:
    """Its vector has what training learned of its id, whoever makes it anew; without a word it stays too."""
    region.promote(bundle, "run-1", 0.3)
    serving = region.served()
    source = parts_of(serving)["sources"]["two_tower"]
    asked = [query(serving.snapshot.rows([f"i{item}", f"i{item + 1}"]).tolist()) for item in range(20)]
    before = [source.retrieve(one, 10) for one in asked]
    table, live = (
        MemoryItemTable(MemoryPolicyLog()),
        LiveEncoder("shopnow", region.control, region.objects.get),
    )
    ids, titles = CATALOGUE["item_id"][:40], CATALOGUE["title"][:40]
    items = [{"item_id": one, "title": title, "price": 9.5} for one, title in zip(ids, titles, strict=True)]
    verdicts = freshen(
        items, app=APP, table=table, published=lambda: serving.snapshot, encoder=live.current(), now=1.0
    )
    assert {one.status for one in verdicts} == {"accepted"}
    sent = table.read(ids)
    unread = [replace(sent[one], vector=b"", vector_version="") for one in ids[20:]]
    assert region.items(*(sent[one] for one in ids[:20]), *unread).upserted == 40
    for one, found in zip(asked, before, strict=True):
        again = source.retrieve(one, 10)
        assert again.rows.tolist() == found.rows.tolist()
        assert again.scores == pytest.approx(found.scores, abs=1e-4)
    silent = replace(unread[0], values={})
    assert (region.items(silent).upserted, region.finds("run-1", silent.row)) == (1, True)


def test_the_next_model_takes_over_with_an_index_of_its_own(region: Region, bundle: Path) -> None:
    """Whoever still serves the former one opens the former index; the two never meet."""
    region.promote(bundle, "run-1", 0.3)
    before = region.served()
    assert region.promote(bundle, "run-2", 0.4)["promoted"] is True
    after = region.live()
    assert after.model is not None
    assert (after.model.version, after.model.previous) == ("run-2", "run-1")
    assert region.versions.open().version == "run-2"
    assert before.index is not None
    assert before.index.version == "run-1"
    assert len(region.versions.open("run-1")) == len(region.versions.open("run-2"))


def test_what_comes_while_a_model_is_promoted_is_in_both_indexes(region: Region, bundle: Path) -> None:
    """Before the new index is whole, by the catalogue; from then on, and after a rollback, by its changes."""
    region.promote(bundle, "run-1", 0.3)
    network = KeptEncoders(region.objects.get).of("run-1")
    assert network is not None
    title = CATALOGUE["title"][2]
    first = len(CATALOGUE["item_id"])
    by_then, between, after = first + 1, first + 2, first + 3

    def entry(row: int, version: str) -> ItemEntry:
        vector = network.embed([f"at-{row}"], [title])[0].tobytes()
        return ItemEntry(f"at-{row}", row, 1, {"title": title}, vector=vector, vector_version=version)

    def meanwhile(function: ModuleType) -> None:
        build = function.INDEX.build

        def published() -> None:
            if region.control.read(snapshot_pointer("shopnow")).version == "s1":  # type: ignore[union-attr]
                region.publish("s2", (NEW, "by-then"), "s1")

        def built(directory: Path, version: str) -> None:
            region.monkeypatch.setattr(function.INDEX, "_wait", published)
            build(directory, version)
            region.items(entry(between, "run-1"))

        region.monkeypatch.setattr(function.INDEX, "build", built)

    assert region.promote(bundle, "run-2", 0.4, meanwhile=meanwhile)["promoted"] is True
    assert region.items(entry(after, "run-2")).upserted == 1
    assert [region.finds("run-2", row) for row in (by_then, between, after)] == [True, True, True]
    assert [region.finds("run-1", row) for row in (between, after)] == [True, True]
    deleted = [ItemEntry(f"at-{row}", row, 2, deleted=True) for row in (between, after)]
    assert region.items(*deleted).deleted == 2
    for version in ("run-1", "run-2"):
        assert [region.finds(version, row) for row in (between, after)] == [False, False]


def test_only_the_live_index_and_its_predecessors_are_kept(region: Region, bundle: Path) -> None:
    """Each takes memory in every node; half of one that a failed step left is dropped too."""
    for number, version in enumerate(("run-1", "run-2"), start=3):
        region.promote(bundle, version, number / 10)
    region.versions.create("broken", 3)
    assert region.promote(bundle, "run-3", 0.5)["promoted"] is True
    assert region.versions.states() == {"run-2": "whole", "run-3": "live"}
    assert region.promote(bundle, "run-3", 0.5)["promoted"] is True
    assert region.versions.states() == {"run-2": "whole", "run-3": "live"}


def test_a_promotion_that_loses_its_race_leaves_nothing(region: Region, bundle: Path) -> None:
    """Somebody else moved the pointer while the index was built: the index of theirs stays the live one."""
    region.promote(bundle, "run-1", 0.3)

    def meanwhile(function: ModuleType) -> None:
        build = function.INDEX.build

        def built(directory: Path, version: str) -> None:
            build(directory, version)
            live = region.live().model
            assert live is not None
            theirs = replace(live, version="theirs", previous=live.version)
            region.control.move(model_pointer("shopnow"), theirs, expected=live.version)
            region.versions.create("theirs", 3)
            region.versions.promote("theirs")
            region.versions.promote(version)

        region.monkeypatch.setattr(function.INDEX, "build", built)

    assert region.promote(bundle, "run-2", 0.4, meanwhile=meanwhile)["promoted"] is False
    assert region.versions.states() == {"run-1": "whole", "theirs": "live"}


def test_an_index_that_went_is_built_again_by_promoting_again(region: Region, bundle: Path) -> None:
    """The model is live already: the pointer stays, its index is made anew, and only then."""
    region.promote(bundle, "run-1", 0.3)
    there = len(region.versions.open("run-1"))
    pointer = region.live().model
    connect(region.url, timeout_s=20.0).indices.delete(index=f"{region.name}-vectors-*")
    with pytest.raises(IndexGone):
        region.versions.open("run-1")
    assert region.promote(bundle, "run-1", 0.3)["promoted"] is True
    assert len(region.versions.open("run-1")) == there
    assert region.live().model == pointer
    assert region.versions.states() == {"run-1": "live"}


def test_without_an_index_nothing_is_promoted(region: Region, bundle: Path) -> None:
    """OpenSearch is away: the step fails, to be tried again, and the live model stays."""
    away = f"http://127.0.0.1:{free_port()}"
    with pytest.raises(StoreUnavailable):
        region.promote(bundle, "run-1", 0.3, url=away)
    assert region.live().model is None
    with pytest.raises(IndexGone):
        region.versions.open("run-1")
    assert region.promote(bundle, "run-1", 0.3)["promoted"] is True
    assert region.versions.open().version == "run-1"


def test_a_worse_model_leaves_the_index_alone(region: Region, bundle: Path) -> None:
    """What the gate refuses is not built."""
    assert region.promote(bundle, "run-1", 0.001)["promoted"] is False
    with pytest.raises(IndexGone):
        region.versions.open("run-1")


class Shop(Deployed):
    """The recommend function over the region's model and index, and a visitor who asks again and again."""

    def __init__(self, aws: Aws, region: Region) -> None:
        super().__init__(aws, region.monkeypatch, region.folder / "function")
        self.variables |= region.variables
        self.answers: list[tuple[int, Any]] = []
        self.index_problem: str | None = None
        self._client = connect(region.url, timeout_s=20.0)
        self._stopped = threading.Event()
        self._visitor = threading.Thread(target=self._visit)

    def start(self) -> Shop:
        super().start()
        app = self.module.APP
        object.__setattr__(app.surfaces["product"], "deadline_ms", 5_000.0)  # moto shares two busy cores
        object.__setattr__(app.freshness, "snapshot_delta_s", 1.0)  # as often a lost index is looked for
        self._visitor.start()
        return self

    def stop(self) -> None:
        self._stopped.set()
        self._visitor.join()
        self._client.close()
        super().stop()

    def towers(self, since: int) -> list[str]:
        """What the answers from that one on say of the two towers: "answered" where they did."""
        return [answer["degraded"].get(TOWERS, "answered") for _, answer in self.answers[since:]]

    def until(self, holds: Callable[[], bool]) -> int:
        """Wait for it while answers come; how many there are by then."""
        ends_at = time.monotonic() + 60.0
        while not holds():
            assert self._visitor.is_alive()
            assert time.monotonic() < ends_at, (self.answers[-1:], self.index_problem)
            time.sleep(0.02)
        return len(self.answers)

    def until_searched(self) -> None:
        """Wait until the last twenty answers have asked the index, as it counts itself."""
        before, since = self._searches(), len(self.answers)
        self.until(lambda: self.towers(since)[-20:] == ANSWERED and self._searches() >= before + 20)

    def _searches(self) -> int:
        name = self.variables["SEARCH_NAME"]
        told = self._client.indices.stats(index=f"{name}-vectors-*", metric="search")
        return int(told["_all"]["total"]["search"]["query_total"])

    def _visit(self) -> None:
        for number in itertools.count():
            if self._stopped.wait(0.01):
                return
            asked = {"session_id": f"s{number}", "item_id": f"i{number % 60}", "limit": 10}
            self.answers.append(self.ask(asked, "/api/recommendations/product"))
            problems = call(self.module, http_event("GET", "/api/health"))[1]["problems"]
            self.index_problem = problems.get("index")


@pytest.fixture
def shop(region: Region, bundle: Path, moto: Aws) -> Iterator[Shop]:
    """It serves a model by its index."""
    region.promote(bundle, "run-1", 0.3)
    one = Shop(moto, region).start()
    try:
        one.until_searched()
        yield one
    finally:
        one.stop()


def test_opensearch_killed_under_load_is_named_and_comes_back_by_itself(
    shop: Shop, opensearch: OpenSearchNode
) -> None:
    """kill -9: each answer is 200 and whole but for the towers; the node is back, and is searched again."""
    opensearch.kill()
    try:
        killed = len(shop.answers)
        shop.until(lambda: shop.towers(killed).count("StoreUnavailable") > 20)
    finally:
        opensearch.start()
    back = len(shop.answers)
    shop.until(lambda: shop.towers(back)[-20:] == ANSWERED)
    shop.until_searched()
    assert {(status, answer["fallback"]) for status, answer in shop.answers} == {(200, "full")}
    assert {len(answer["recommendations"]) for _, answer in shop.answers} == {10}
    assert set(shop.towers(0)) == {"answered", "StoreUnavailable"}
    assert shop.index_problem is None


def test_an_index_of_which_a_part_is_gone_is_named_and_done_without(
    shop: Shop, region: Region, bundle: Path
) -> None:
    """Deleted while it serves: half of an index is none, and all is compared until it is built anew."""
    asked = len(shop.answers)
    with closing(connect(region.url, timeout_s=20.0)) as client:
        client.indices.delete(index=f"{region.name}-vectors-*-fresh")
    gone = shop.until(lambda: shop.index_problem == "IndexGone")
    assert "IndexGone" in shop.towers(asked)
    shop.until(lambda: shop.towers(gone + 1)[-20:] == ANSWERED)
    assert shop.answers[-1][1]["degraded"]["load.index"] == "IndexGone"
    assert region.promote(bundle, "run-1", 0.3)["promoted"] is True
    shop.until(lambda: shop.index_problem is None)
    shop.until_searched()
    assert {(status, answer["fallback"]) for status, answer in shop.answers} == {(200, "full")}
    assert {len(answer["recommendations"]) for _, answer in shop.answers} == {10}
