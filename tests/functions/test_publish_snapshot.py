"""The items table's stream to the snapshot, on moto: from an upsert to the version that serves it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from narrows.adapters.control import DynamoControlTable
from narrows.adapters.s3 import S3Objects
from narrows.adapters.snapshots import LiveSnapshot, SnapshotCopy
from narrows.settings import load_app
from narrows.snapshot import ItemSnapshot
from tests.contract.tables import create_bucket, create_table
from tests.functions.doorways import CONTEXT, call, cold_start, http_event
from tests.servers import REGION, Aws

APP = load_app(Path(__file__).parents[2] / "apps" / "megashop")


class Deployed:
    """Both functions, the table's stream between them, and the snapshot behind."""

    def __init__(self, aws: Aws, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.client, self.streams = aws.client("dynamodb"), aws.client("dynamodbstreams")
        tables = {kind: create_table(self.client, kind) for kind in ("items", "policy", "control")}
        stream = {"StreamEnabled": True, "StreamViewType": "NEW_IMAGE"}
        self.client.update_table(TableName=tables["items"], StreamSpecification=stream)
        self.stream = self.client.describe_table(TableName=tables["items"])["Table"]["LatestStreamArn"]
        objects = S3Objects(aws.client("s3"), create_bucket(aws.client("s3")))
        variables = {f"{kind.upper()}_TABLE": name for kind, name in tables.items()}
        variables |= {"APP": "megashop", "BUCKET": objects.bucket, "AWS_REGION": REGION}
        self.freshen = cold_start("freshen_catalogue", monkeypatch, variables)
        self.publish = cold_start("publish_snapshot", monkeypatch, variables)
        control = DynamoControlTable(tables["control"], region=REGION, connect_timeout_s=1, read_timeout_s=2)
        self.objects = objects
        self.live = LiveSnapshot(APP, control, SnapshotCopy(folder, objects.download, objects.get))

    def send(self, *items: dict[str, Any]) -> None:
        status, content = call(self.freshen, http_event("POST", "/api/items", {"items": list(items)}))
        assert (status, content["rejected"]) == (200, 0), content

    def records(self) -> Iterator[dict[str, Any]]:
        """All that has gone through the stream, as a handler receives it."""
        for shard in self.streams.describe_stream(StreamArn=self.stream)["StreamDescription"]["Shards"]:
            iterator = self.streams.get_shard_iterator(
                StreamArn=self.stream, ShardId=shard["ShardId"], ShardIteratorType="TRIM_HORIZON"
            )["ShardIterator"]
            for record in self.streams.get_records(ShardIterator=iterator)["Records"]:
                yield {
                    "eventName": record["eventName"],
                    "dynamodb": json.loads(json.dumps(record["dynamodb"], default=str)),
                }

    def deliver(self, records: list[dict[str, Any]]) -> ItemSnapshot:
        self.publish.handler({"Records": records}, CONTEXT)
        snapshot = self.live.current()
        assert snapshot is not None
        return snapshot


@pytest.fixture
def deployed(moto: Aws, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Deployed:
    return Deployed(moto, monkeypatch, tmp_path)


def test_an_item_goes_from_its_upsert_to_the_snapshot(deployed: Deployed) -> None:
    """What came over HTTP is in the next version; delivered in pieces, twice or at once, it is the same."""
    deployed.send({"item_id": "a", "title": "A", "price": 2.0, "category": ["x"], "stock": 3})
    deployed.send({"item_id": "b", "title": "B"}, {"item_id": "a", "title": "A2", "price": 3.0})
    records = list(deployed.records())
    assert len(records) >= 3
    first = deployed.deliver(records[:2])
    assert first.rows(["a"]).tolist() == [0]
    second = deployed.deliver(records)
    again = deployed.deliver(records)
    assert again.version == second.version
    assert second.ids([0, 1]) == ["a", "b"]
    assert [bytes(title) for title in second.columns["title"]] == [b"A2", b"B"]
    assert second.columns["price"][0] == 3.0


def test_training_gets_the_items_as_well(deployed: Deployed) -> None:
    """One file for a batch, by its content: the same batch again is the same file; nothing sent is lost."""
    deployed.send({"item_id": "a", "title": "A", "price": 2.0, "category": ["x"], "stock": 3, "version": 7})
    deployed.send({"item_id": "a", "deleted": True, "version": 8})
    records = list(deployed.records())
    deployed.deliver(records)
    deployed.deliver(records)
    (key,) = deployed.objects.keys("landing/items/")
    data = deployed.objects.get(key)
    assert data is not None
    first, second = map(json.loads, gzip.decompress(data).splitlines())
    assert (first["item_id"], first["version"], first["deleted"]) == ("a", 7, False)
    assert json.loads(first["content"]) == {"title": "A", "price": 2.0, "category": ["x"], "stock": 3}
    assert (second["version"], second["deleted"], second["content"]) == (8, True, "{}")


def test_a_batch_without_items_is_fine(deployed: Deployed) -> None:
    """The counter of rows is in the same table, and its changes in the same stream."""
    deployed.send({"item_id": "a"})
    counter = [one for one in deployed.records() if "next" in one["dynamodb"]["NewImage"]]
    assert counter
    deployed.publish.handler({"Records": counter}, CONTEXT)
    assert deployed.live.current() is None
