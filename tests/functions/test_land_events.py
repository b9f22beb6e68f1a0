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
BATCH = [(SHARD, str(n), json.dumps({"event_id": f"e{n}"}).encode()) for n in (11, 12, 19)]


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
    assert deployed.files() == {
        key: [{"event_id": f"e{n}", "shard": SHARD, "sequence": str(n)} for n in (11, 12, 19)]
    }


def test_decisions_land_beside_the_events(deployed: Deployed) -> None:
    """The stream's name tells which it is."""
    deployed.module.handler(kinesis_event(BATCH, stream="Narrows-Decisions9A"), CONTEXT)
    assert list(deployed.files()) == [f"landing/decisions/dt=2026-11-21/{SHARD}-11-19.jsonl.gz"]


def test_what_is_not_json_goes_to_quarantine(deployed: Deployed) -> None:
    """The lake's files stay readable, and nothing is thrown away."""
    deployed.module.handler(kinesis_event([*BATCH, (SHARD, "20", b"\xff\x00")]), CONTEXT)
    files = deployed.files()
    assert len(files[f"landing/events/dt=2026-11-21/{SHARD}-11-20.jsonl.gz"]) == 3
    assert files[f"quarantine/events/dt=2026-11-21/{SHARD}-11-20.jsonl.gz"][0]["data"] == "ff00"


def test_a_dead_bucket_fails_the_batch(deployed: Deployed) -> None:
    """The error makes Lambda deliver the batch again."""
    deployed.s3.delete_bucket(Bucket=deployed.bucket)
    with pytest.raises(StoreUnavailable):
        deployed.module.handler(kinesis_event(BATCH), CONTEXT)
