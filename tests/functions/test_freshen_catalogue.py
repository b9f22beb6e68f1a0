"""POST /api/items and the stream of items, on moto: what is stored, what is refused, and in which words."""

from __future__ import annotations

import gzip
import json
import math
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from narrows.adapters.control import DynamoControlTable
from narrows.adapters.dynamodb import DynamoPolicyLog
from narrows.adapters.items import DynamoItemTable
from narrows.adapters.s3 import S3Objects
from narrows.control import Pointer, model_pointer, snapshot_pointer
from narrows.errors import StoreUnavailable
from narrows.freshening import SEND_AGAIN, ItemEntry
from narrows.item_stream import QUARANTINE
from narrows.ranking import ModelManifest, write_manifest
from narrows.snapshot import write_base
from tests.contract.tables import create_bucket, create_table
from tests.functions.doorways import CONTEXT, call, cold_start, http_event, kinesis_event
from tests.servers import REGION, Aws

PATH = "/api/items"
SHOE = {
    "item_id": "shoe", "title": "A shoe", "category": ["shoes"], "brand": "b", "price": 9.5, "stock": 3,
    "margin": 0.2, "regions": ["DE"], "created_at": "2026-11-21T09:00:00Z",
}  # fmt: skip


class Deployed:
    """The function and what it writes to."""

    def __init__(self, aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
        dynamodb = aws.client("dynamodb")
        tables = {kind: create_table(dynamodb, kind) for kind in ("items", "policy", "control")}
        self.objects = S3Objects(aws.client("s3"), create_bucket(aws.client("s3")))
        self.log = DynamoPolicyLog(dynamodb, tables["policy"], replica=5)
        self.table = DynamoItemTable(dynamodb, tables["items"], self.log)
        self.control = DynamoControlTable(
            tables["control"], region=REGION, connect_timeout_s=1, read_timeout_s=2
        )
        variables = {f"{kind.upper()}_TABLE": name for kind, name in tables.items()}
        variables |= {"APP": "megashop", "BUCKET": self.objects.bucket, "AWS_REGION": REGION}
        self.module: ModuleType = cold_start("freshen_catalogue", monkeypatch, variables)

    def send(self, *items: Any) -> list[dict[str, Any]]:
        status, content = call(self.module, http_event("POST", PATH, {"items": list(items)}))
        assert status == 200, content
        assert content["accepted"] + content["rejected"] == len(items)
        return list(content["verdicts"])

    def stored(self, *ids: str) -> dict[str, ItemEntry]:
        return dict(self.table.read(ids))

    def rules(self) -> list[tuple[str, str, Any]]:
        return [(one.kind, one.item_id, one.value) for one in self.log.read(0)]


@pytest.fixture
def deployed(moto: Aws, monkeypatch: pytest.MonkeyPatch) -> Deployed:
    return Deployed(moto, monkeypatch)


def test_an_item_is_stored_as_it_was_sent(deployed: Deployed) -> None:
    """Under the app's names, with a row of its own; the moment is read, the version is its arrival."""
    (verdict,) = deployed.send(SHOE)
    assert verdict == {"index": 0, "item_id": "shoe", "status": "accepted"}
    entry = deployed.stored("shoe")["shoe"]
    wanted = {name: value for name, value in SHOE.items() if name not in ("item_id", "created_at")}
    assert entry.values == {**wanted, "created_at": 1_795_251_600.0}
    assert (entry.row, entry.deleted, entry.vector) == (0, False, b"")
    assert entry.version == int((entry.first_at or 0.0) * 1000)
    assert deployed.rules() == []


@pytest.mark.parametrize("files", [(), ("manifest.json",), ("manifest.json", "two_tower.npz")])
def test_a_model_that_cannot_be_read_holds_up_no_item(
    deployed: Deployed, tmp_path: Path, files: tuple[str, ...]
) -> None:
    """What is sold out must go at once, whatever became of the bundle; the verdict says what is missing."""
    (tmp_path / "two_tower.npz").write_bytes(b"a network")
    write_manifest(tmp_path, ModelManifest("m1", "megashop", 1.8e9, ("a",), "fingerprint"))
    (tmp_path / "two_tower.npz").write_bytes(b"half of one")
    for name in files:
        deployed.objects.put(f"models/m1/{name}", (tmp_path / name).read_bytes())
    deployed.control.move(model_pointer("megashop"), Pointer("m1", "models/m1", 1.0), expected=None)
    stored, sold_out = deployed.send(SHOE, {"item_id": "boot", "title": "A boot", "stock": 0})
    assert stored == {"index": 0, "item_id": "shoe", "status": "accepted", "no_vector": "BundleError"}
    assert sold_out["status"] == "accepted"
    assert deployed.stored("shoe")["shoe"].vector == b""
    assert deployed.rules() == [("stock", "boot", False)]


def test_without_its_bucket_it_suppresses_all_the_same(
    deployed: Deployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3 is away when the function starts; items that are known need nothing of it."""
    deployed.send(SHOE)
    deployed.control.move(model_pointer("megashop"), Pointer("m1", "models/m1", 1.0), expected=None)

    def away(key: str) -> bytes:
        raise StoreUnavailable("S3 did not answer")

    monkeypatch.setattr(deployed.module.FRESHENER._encoder, "_get", away)
    (verdict,) = deployed.send({**SHOE, "stock": 0})
    assert (verdict["status"], verdict["no_vector"]) == ("accepted", "StoreUnavailable")
    assert deployed.send({"item_id": "shoe", "deleted": True})[0]["status"] == "accepted"
    assert deployed.rules() == [("stock", "shoe", False), ("deleted", "shoe", True), ("stock", "shoe", True)]


@pytest.mark.parametrize("snapshot", [None, b"{"])
def test_what_is_known_does_not_wait_for_a_snapshot_that_cannot_be_read(
    deployed: Deployed, monkeypatch: pytest.MonkeyPatch, snapshot: bytes | None
) -> None:
    """S3 is away, or holds a damaged one: only items that may have a row there are to be sent again."""
    deployed.send(SHOE)
    control = Pointer("s1", "snapshots/s1", 1.0)
    deployed.control.move(snapshot_pointer("megashop"), control, expected=None)

    def download(prefix: str, folder: Path) -> None:
        if snapshot is None:
            raise StoreUnavailable("S3 did not answer")
        (folder / "manifest.json").write_bytes(snapshot)

    monkeypatch.setattr(deployed.module.FRESHENER._live.copy, "_download", download)
    new, sold_out = deployed.send({"item_id": "boot", "stock": 0}, {**SHOE, "stock": 0})
    assert (new["status"], new["remedy"]) == ("rejected", SEND_AGAIN)
    assert sold_out["status"] == "accepted"
    assert deployed.rules() == [("stock", "shoe", False)]
    assert list(deployed.stored("shoe", "boot")) == ["shoe"]


def test_versions_decide_what_counts(deployed: Deployed) -> None:
    """An older one loses, the same again changes nothing, the same number with other content is told."""
    new = {**SHOE, "version": 7}
    assert deployed.send(new)[0]["status"] == "accepted"
    assert deployed.send(new)[0]["status"] == "unchanged"
    assert deployed.send({**new, "version": 6, "price": 1})[0]["status"] == "stale"
    (other,) = deployed.send({**new, "price": 1})
    assert (other["status"], other["field"]) == ("rejected", "version")
    assert "send a higher version" in other["remedy"]
    assert deployed.stored("shoe")["shoe"].values["price"] == 9.5
    assert deployed.send({**new, "version": 8, "price": 1})[0]["status"] == "accepted"
    after = deployed.stored("shoe")["shoe"]
    assert (after.row, after.version, after.values["price"]) == (0, 8, 1)


def test_rows_are_given_once_and_never_again(deployed: Deployed) -> None:
    """New items get the next rows, those that come again keep theirs, also after they were deleted."""
    deployed.send(*({"item_id": f"i{n}"} for n in range(3)))
    deployed.send({"item_id": "i1", "deleted": True}, {"item_id": "i3"})
    deployed.send({"item_id": "i1", "title": "back"}, {"item_id": "i4"})
    rows = {one: entry.row for one, entry in deployed.stored(*(f"i{n}" for n in range(5))).items()}
    assert rows == {f"i{n}": n for n in range(5)}


def test_published_items_keep_their_rows(deployed: Deployed, tmp_path: Path) -> None:
    """The table has never heard of them: the live snapshot tells their rows, and where new ones begin."""
    columns = {"price": [1.0, 2.0], "created_at": np.asarray([np.nan, 7.5])}
    write_base(tmp_path, ["a", "b"], columns, version="s1", spare=5)
    deployed.objects.upload(tmp_path, "snapshots/s1")
    pointer = Pointer("s1", "snapshots/s1", 1.0)
    deployed.control.move(snapshot_pointer("megashop"), pointer, expected=None)
    deployed.send({"item_id": "new"}, {"item_id": "b", "stock": 4})
    assert {one: entry.row for one, entry in deployed.stored("new", "b").items()} == {"new": 2, "b": 1}
    assert sorted(deployed.rules()) == [("deleted", "b", False), ("stock", "b", True)]
    deployed.send({"item_id": "a"}, {"item_id": "b", "deleted": True})
    deployed.send({"item_id": "b", "created_at": 900.0})
    entries = deployed.stored("a", "b", "new")
    assert (entries["a"].first_at, entries["b"].first_at) == (None, 7.5)
    assert entries["new"].first_at == pytest.approx(time.time(), abs=600.0)


def test_what_the_rules_must_know_is_stored_with_the_item(deployed: Deployed) -> None:
    """Sold out, back, gone, back again: each is one change of the log; a new price is none."""
    said = []
    for change in ({"stock": 0}, {"stock": 0, "price": 1}, {"stock": 2}, {"stock": 2, "price": 3}):
        deployed.send({"item_id": "shoe", "version": len(said) + 1, **change})
        said.append(deployed.rules()[len([one for part in said for one in part]) :])
    assert said[0] == said[1] == [("stock", "shoe", False)]
    assert said[2:] == [[("stock", "shoe", True)], []]
    deployed.send({"item_id": "shoe", "version": 9, "deleted": True})
    assert deployed.rules()[-1] == ("deleted", "shoe", True)
    deployed.send({"item_id": "shoe", "version": 10, "stock": 1})
    assert deployed.rules()[-2:] == [("deleted", "shoe", False), ("stock", "shoe", True)]


@pytest.mark.parametrize("between", [{"item_id": "shoe"}, {"item_id": "shoe", "deleted": True}])
def test_what_was_sold_out_comes_back_by_every_way(deployed: Deployed, between: dict[str, Any]) -> None:
    """Its stock may be left out, or the item deleted, before it is in stock again."""
    for item in ({"item_id": "shoe", "stock": 0}, between, {"item_id": "shoe", "stock": 5}):
        deployed.send(item)
    last = {(kind, item_id): value for kind, item_id, value in deployed.rules()}
    assert last[("stock", "shoe")] is True
    assert not last.get(("deleted", "shoe"), False)


def test_without_a_version_the_last_to_come_counts(deployed: Deployed) -> None:
    """Whatever version is stored: whoever sends none cannot send a higher one."""
    deployed.send({"item_id": "shoe", "version": 2**53 - 1, "price": 1})
    verdicts = [deployed.send({"item_id": "shoe", **said})[0] for said in ({"price": 2}, {"deleted": True})]
    assert [one["status"] for one in verdicts] == ["accepted", "accepted"]
    assert deployed.stored("shoe")["shoe"].deleted


@pytest.mark.parametrize(
    ("item", "field", "remedy"),
    [
        ({"category": [f"tag-{n}" for n in range(10_000)]}, "category", "at most 100"),
        ({"category": ["a", 7]}, "category[1]", "a string"),
        ({"category": 7}, "category", "a list of strings"),
        ({"price": math.nan}, "price", "finite"),
        ({"created_at": 1_795_251_600_000}, "created_at", "send epoch seconds, not milliseconds"),
        ({"created_at": 9e15}, "created_at", "after 2100"),
        ({"created_at": -1e11}, "created_at", "before 1800"),
        ({"created_at": "1066-10-14T09:00:00Z"}, "created_at", "before 1800"),
        ({"price": 1e39}, "price", "from 0 to 1e+15"),
        ({"price": 10**400}, "price", "from 0 to 1e+15"),
        ({"stock": 1e16}, "stock", "from 0 to 1e+15"),
        ({"margin": -1e16}, "margin", "from -1e+15 to 1e+15"),
        ({"price": -1}, "price", "from 0 to 1e+15"),
        ({"price": "9.50"}, "price", "finite number"),
        ({"price": True}, "price", "finite number"),
        ({"stock": math.inf}, "stock", "finite"),
        ({"title": 5}, "title", "a string"),
        ({"title": "x" * 20_001}, "title", "at most 20000"),
        ({"brand": ["b"]}, "brand", "a string"),
        ({"created_at": "yesterday"}, "created_at", "ISO 8601"),
        ({"created_at": "2026-11-21T09:00:00"}, "created_at", "time zone"),
        ({"version": 1.5}, "version", "whole number"),
        ({"version": -1}, "version", "whole number"),
        ({"deleted": "yes"}, "deleted", "send true"),
        ({"titel": "x"}, "titel", "did you mean 'title'"),
        ({"item_id": ""}, "item_id", "non-empty"),
        ({"item_id": 5}, "item_id", "a string"),
        ({"item_id": None}, "item_id", "a string"),
        ({"item_id": "é" * 200}, "item_id", "256 bytes"),
        ({"regions": [""]}, "regions[0]", "non-empty"),
    ],
)
def test_a_bad_item_is_told_what_is_wrong_and_the_others_go_on(
    deployed: Deployed, item: dict[str, Any], field: str, remedy: str
) -> None:
    """Field, value and remedy by index; what stands before and behind it in the batch is stored."""
    before, verdict, after = deployed.send({"item_id": "a"}, {"item_id": "bad", **item}, {"item_id": "c"})
    assert (verdict["index"], verdict["status"], verdict["field"]) == (1, "rejected", field)
    assert remedy in verdict["remedy"]
    assert len(json.dumps(verdict)) < 2_000
    assert (before["status"], after["status"]) == ("accepted", "accepted")
    assert set(deployed.stored("a", "bad", "c")) == {"a", "c"}


@pytest.mark.parametrize("raw", [7, "item", None, [], [{"item_id": "a"}]])
def test_what_is_no_item_is_told_so(deployed: Deployed, raw: Any) -> None:
    """Anything may stand in the list."""
    verdict, good = deployed.send(raw, {"item_id": "good"})
    assert (verdict["status"], verdict["field"]) == ("rejected", "item")
    assert good["status"] == "accepted"


def test_an_id_that_comes_twice_counts_once(deployed: Deployed) -> None:
    """The first is stored, the second is told why not."""
    first, second = deployed.send({"item_id": "a", "price": 1}, {"item_id": "a", "price": 2})
    assert (first["status"], second["status"], second["field"]) == ("accepted", "rejected", "item_id")
    assert "once in a batch" in second["remedy"]
    assert deployed.stored("a")["a"].values == {"price": 1}


@pytest.mark.parametrize(
    "item",
    [{}, {"title": ""}, {"title": None}, {"category": []}, {"category": None}, {"category": ["never seen"]}],
)
def test_what_may_be_missing_or_new_is_fine(deployed: Deployed, item: dict[str, Any]) -> None:
    """No text, no category, or one that the catalogue never had: the item is stored, without a vector."""
    (verdict,) = deployed.send({"item_id": "a", **item})
    assert verdict["status"] == "accepted"
    entry = deployed.stored("a")["a"]
    assert entry.vector == b""
    assert entry.values == {name: value for name, value in item.items() if value not in (None, [])}


@pytest.mark.parametrize(
    ("moment", "seconds"), [("1937-12-21T00:00:00Z", -1_010_793_600.0), (4_000_000_000, 4_000_000_000.0)]
)
def test_an_item_may_be_older_than_the_epoch_or_announced(
    deployed: Deployed, moment: Any, seconds: float
) -> None:
    """A film of 1937, and one of the year 2096."""
    assert deployed.send({"item_id": "a", "created_at": moment})[0]["status"] == "accepted"
    assert deployed.stored("a")["a"].values == {"created_at": seconds}


def test_categories_may_come_as_one_text(deployed: Deployed) -> None:
    """As imported catalogues write them, with bars between."""
    deployed.send({"item_id": "a", "category": "x|y"})
    assert deployed.stored("a")["a"].values == {"category": ["x", "y"]}


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({}, 400, "items"),
        ({"items": {}}, 400, "items"),
        ({"item": []}, 400, "item"),
        ({"items": [{}] * 251}, 413, "items"),
        ("no json", 400, "body"),
        ({"items": [{"title": "x" * 1_000_001}]}, 413, "body"),
    ],
)
def test_a_batch_that_cannot_be_read_is_refused(
    deployed: Deployed, body: Any, status: int, field: str
) -> None:
    """As a whole, naming what is wrong."""
    answered, content = call(deployed.module, http_event("POST", PATH, body))
    assert (answered, content["error"]["field"]) == (status, field)


@pytest.mark.parametrize(
    ("part", "field"),
    [
        ('"title": ' + '{"a":' * 40 + "1" + "}" * 40, "title"),
        ('"category": ' + "[" * 5_000 + "]" * 5_000, "category[0]"),
        ('"price": ' + "9" * 5_000, "price"),
        ('"version": ' + "9" * 5_000, "version"),
    ],
    ids=lambda value: value[:20],
)
def test_what_no_field_takes_harms_its_own_item_alone(deployed: Deployed, part: str, field: str) -> None:
    """However deep or long: over HTTP and through the stream the others are stored."""
    bad = f'{{"item_id": "b", {part}}}'
    body = f'{{"items": [{{"item_id": "a"}}, {bad}, {{"item_id": "c"}}]}}'
    status, content = call(deployed.module, http_event("POST", PATH, body))
    assert (status, [one["status"] for one in content["verdicts"]]) == (
        200,
        ["accepted", "rejected", "accepted"],
    )
    assert content["verdicts"][1]["field"] == field
    records = [("shard-0", str(n), data.encode()) for n, data in enumerate(('{"item_id": "d"}', bad))]
    assert deployed.module.handler(kinesis_event(records), CONTEXT) == {"batchItemFailures": []}
    assert set(deployed.stored("a", "b", "c", "d")) == {"a", "c", "d"}
    (key,) = deployed.objects.keys(QUARANTINE)
    (line,) = gzip.decompress(deployed.objects.get(key) or b"").splitlines()
    assert (json.loads(line)["item_id"], json.loads(line)["field"]) == ("b", field)


@pytest.mark.parametrize(
    "body",
    ['{"items": ' + "[" * 100_000, '{"items": [' + "[" * 100_000 + "]" * 100_000 + "}", "[" * 100_000 + "x"],
    ids=["never closed", "closed by another", "of no value"],
)
def test_what_is_no_json_far_down_is_told_so(deployed: Deployed, body: str) -> None:
    """Without a place in it: the reader comes only so far."""
    status, content = call(deployed.module, http_event("POST", PATH, body))
    error = content["error"]
    assert (status, error["field"]) == (400, "body")
    assert error["remedy"] == "send one JSON object (it is no JSON, and nested more than 32 deep)"
    status, content = call(deployed.module, http_event("POST", PATH, '{"items": ' + "[" * 40))
    assert "char 50" in content["error"]["remedy"]


def test_a_full_batch_is_stored(deployed: Deployed) -> None:
    """More items than one transaction holds, each sold out, so that the log grows as well."""
    verdicts = deployed.send(*({"item_id": f"i{n}", "stock": 0} for n in range(250)))
    assert {one["status"] for one in verdicts} == {"accepted"}
    rows = [entry.row for entry in deployed.stored(*(f"i{n}" for n in range(250))).values()]
    assert sorted(rows) == list(range(250))
    assert len(deployed.rules()) == 250


def test_items_come_through_the_stream_as_well(deployed: Deployed) -> None:
    """Versions of one item in their order, and what is refused is kept with its reason."""
    sent = [
        {"item_id": "a", "version": 1, "price": 1},
        {"item_id": "b", "price": math.nan},
        {"item_id": "a", "version": 3, "price": 3},
        {"item_id": "a", "version": 2, "price": 2},
    ]
    records = [("shard-0", str(n), json.dumps(one).encode()) for n, one in enumerate(sent)]
    records += [("shard-0", str(8 + n), data) for n, data in enumerate((b"\xff no json", b"3", b"null"))]
    assert deployed.module.handler(kinesis_event(records), CONTEXT) == {"batchItemFailures": []}
    assert deployed.stored("a", "b") == {"a": deployed.stored("a")["a"]}
    assert deployed.stored("a")["a"].values == {"price": 3}
    (key,) = deployed.objects.keys(QUARANTINE)
    lines = [json.loads(line) for line in gzip.decompress(deployed.objects.get(key) or b"").splitlines()]
    assert [(line["field"], line.get("item_id")) for line in lines] == [
        ("price", "b"),
        *[("item", None)] * 3,
    ]


def test_refused_items_of_the_stream_wait_for_their_quarantine(
    deployed: Deployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch fails, so that Lambda delivers it again; what is good of it is stored all the same."""
    from narrows.errors import StoreUnavailable

    def away(*_: Any) -> None:
        raise StoreUnavailable("the bucket does not answer")

    monkeypatch.setattr(S3Objects, "put", away)
    records = [("shard-0", str(n), json.dumps(one).encode()) for n, one in enumerate(({"item_id": "a"}, {}))]
    with pytest.raises(StoreUnavailable):
        deployed.module.handler(kinesis_event(records), CONTEXT)
    assert set(deployed.stored("a")) == {"a"}


def test_a_store_that_is_away_loses_nothing(deployed: Deployed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over HTTP each item is told to come again; of the stream, Lambda delivers from the first on."""
    from narrows.errors import StoreUnavailable

    def away(*_: Any, **__: Any) -> None:
        raise StoreUnavailable("the table does not answer")

    monkeypatch.setattr(DynamoItemTable, "write", away)
    (verdict,) = deployed.send(SHOE)
    assert (verdict["status"], verdict["remedy"]) == ("rejected", "the item was not stored; send it again")
    records = [("shard-0", str(n), json.dumps({"item_id": f"i{n}"}).encode()) for n in range(3)]
    answer = deployed.module.handler(kinesis_event(records), CONTEXT)
    assert answer == {"batchItemFailures": [{"itemIdentifier": "0"}]}
