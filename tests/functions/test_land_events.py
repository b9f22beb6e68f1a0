"""Kinesis batches into the landing zone, on moto."""

from __future__ import annotations

import gzip
import json
from types import ModuleType
from typing import Any

import pytest

from narrows.errors import StoreUnavailable
from tests.contract.tables import create_bucket
from tests.functions.doorways import CONTEXT, cold_start, kinesis_event
from tests.servers import Aws

SHARD = "shardId-000000000001"
NUMBERS = (11, 12, 19)


def record(number: int, **changes: Any) -> dict[str, Any]:
    """What the stream holds of one event."""
    content = {
        "event_id": f"e{number}",
        "event_type": "view",
        "sent_at": 1_795_237_000.5,
        "user_id": "5f",
        "properties": {"brand": "Alder", "price": 3, "is_gift": True},
        "schema_version": 2,
        "consent": True,
        "marks": ["bot:user_agent"],
    }
    return {**content, **changes}


BATCH = [(SHARD, str(n), json.dumps(record(n)).encode()) for n in NUMBERS]


class Deployed:
    """The function and its bucket."""

    def __init__(self, aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
        self.s3 = aws.client("s3")
        self.bucket = create_bucket(self.s3)
        self.module: ModuleType = cold_start("land_events", monkeypatch, {"BUCKET": self.bucket})

    def files(self) -> dict[str, list[dict[str, Any]]]:
        found = self.s3.list_objects_v2(Bucket=self.bucket).get("Contents", [])
        bodies = {
            one["Key"]: self.s3.get_object(Bucket=self.bucket, Key=one["Key"])["Body"].read() for one in found
        }
        return {
            key: [json.loads(line) for line in gzip.decompress(body).splitlines()]
            for key, body in bodies.items()
        }


@pytest.fixture
def deployed(moto: Aws, monkeypatch: pytest.MonkeyPatch) -> Deployed:
    return Deployed(moto, monkeypatch)


def test_a_batch_is_one_file_that_a_retry_replaces(deployed: Deployed) -> None:
    """Named by shard, first and last sequence number, below the day of its arrival."""
    for _ in range(2):
        deployed.module.handler(kinesis_event(BATCH), CONTEXT)
    key = f"landing/events/dt=2026-11-21/{SHARD}-11-19.jsonl.gz"
    lines = deployed.files().pop(key)
    assert [(one["event_id"], one["shard"], one["sequence"]) for one in lines] == [
        (f"e{n}", SHARD, str(n)) for n in NUMBERS
    ]
    assert list(deployed.files()) == [key]


def test_a_line_holds_its_record_and_properties_by_type(deployed: Deployed) -> None:
    """A column of the lake holds one type: texts apart from numbers, true as 1."""
    deployed.module.handler(kinesis_event(BATCH[:1]), CONTEXT)
    ((line,),) = deployed.files().values()
    expected = record(11, shard=SHARD, sequence="11")
    del expected["properties"]
    assert line == {**expected, "texts": {"brand": "Alder"}, "numbers": {"price": 3.0, "is_gift": 1.0}}


def test_decisions_land_beside_the_events(deployed: Deployed) -> None:
    """The stream's name tells which it is."""
    deployed.module.handler(kinesis_event(BATCH, stream="Narrows-Decisions9A"), CONTEXT)
    assert list(deployed.files()) == [f"landing/decisions/dt=2026-11-21/{SHARD}-11-19.jsonl.gz"]


@pytest.mark.parametrize(
    ("data", "field", "remedy"),
    [
        (b"\xff\x00", "record", "write JSON"),
        (b"[]", "record", "JSON object"),
        (b"[" * 100_000, "record", "write JSON"),
        (
            json.dumps(record(20, sent_at=1.8e12, received_at=1.8e12)).encode(),
            "sent_at",
            "from 0 to 4102444800",
        ),
        (json.dumps(record(20, item_id="\ud800")).encode(), "item_id", "valid Unicode"),
        (json.dumps(record(20, event_value=1e300)).encode(), "event_value", "from -1e+15"),
        (json.dumps(record(20, sent_at=None)).encode(), "sent_at", "epoch seconds"),
        (json.dumps(record(20, schema_version=9)).encode(), "schema_version", "versions up to 2"),
        (
            json.dumps(record(20, properties={"price": [1]})).encode(),
            "properties.price",
            "plain, finite value",
        ),
        (json.dumps(record(20, properties={"price": 10**400})).encode(), "properties.price", "finite"),
    ],
    ids=[
        "bytes",
        "list",
        "deep",
        "milliseconds",
        "surrogate",
        "huge",
        "no time",
        "version",
        "property",
        "huge number",
    ],
)
def test_what_is_no_event_goes_to_quarantine_with_the_reason(
    deployed: Deployed, data: bytes, field: str, remedy: str
) -> None:
    """The lake's files stay readable, nothing is thrown away, and it says what was wrong."""
    deployed.module.handler(kinesis_event([*BATCH, (SHARD, "20", data)]), CONTEXT)
    files = deployed.files()
    assert len(files[f"landing/events/dt=2026-11-21/{SHARD}-11-20.jsonl.gz"]) == 3
    (kept,) = files[f"quarantine/events/dt=2026-11-21/{SHARD}-11-20.jsonl.gz"]
    assert bytes.fromhex(kept["data"]) == data
    assert (kept["field"], kept["sequence"]) == (field, "20")
    assert kept["value"]
    assert remedy in kept["remedy"]


def test_a_dead_bucket_fails_the_batch(deployed: Deployed) -> None:
    """The error makes Lambda deliver the batch again."""
    deployed.s3.delete_bucket(Bucket=deployed.bucket)
    with pytest.raises(StoreUnavailable):
        deployed.module.handler(kinesis_event(BATCH), CONTEXT)
