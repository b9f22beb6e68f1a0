"""collect_events as it is deployed, on moto: a stream, a bucket and the key of the pseudonyms."""

from __future__ import annotations

import gzip
import json
import time
from types import ModuleType
from typing import Any

import pytest

from tests.contract.tables import create_bucket, create_stream, read_stream
from tests.functions.doorways import call, cold_start, http_event
from tests.servers import Aws

PATH = "/api/events"


class Deployed:
    """The function and what it is deployed with."""

    def __init__(self, aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kinesis, self.s3 = aws.client("kinesis"), aws.client("s3")
        self.stream, self.bucket = create_stream(self.kinesis, "events"), create_bucket(self.s3)
        aws.client("secretsmanager").create_secret(Name="pseudonyms", SecretString="a secret of the test")
        self.module: ModuleType = cold_start(
            "collect_events",
            monkeypatch,
            {
                "APP": "media",
                "EVENTS_STREAM": self.stream,
                "BUCKET": self.bucket,
                "PSEUDONYM_SECRET": "pseudonyms",
            },
        )

    def send(self, body: object, *, agent: str = "test", path: str = PATH, **how: Any) -> tuple[int, Any]:
        event = http_event("POST", path, body, **how)
        event["requestContext"]["http"]["userAgent"] = agent
        return call(self.module, event)

    def stored(self) -> list[dict[str, Any]]:
        return [json.loads(record["Data"]) for record in read_stream(self.kinesis, self.stream)]

    def quarantined(self) -> list[dict[str, Any]]:
        listing = self.s3.list_objects_v2(Bucket=self.bucket, Prefix="quarantine/events/dt=")
        files = [
            gzip.decompress(self.s3.get_object(Bucket=self.bucket, Key=one["Key"])["Body"].read())
            for one in listing.get("Contents", [])
        ]
        return [json.loads(line) for file in files for line in file.splitlines()]


def click(**changes: Any) -> dict[str, Any]:
    event = {"event_type": "click", "user_id": "alice", "session_id": "s-1", "item_id": "i1"}
    return {**event, "sent_at": time.time() - 1, **changes}
