"""The tables, streams and buckets that the stacks deploy, made anew for each test."""

from __future__ import annotations

import itertools
import time
from typing import Any

_numbers = itertools.count()
KEYS = {
    "state": [("pk", "S")],
    "slates": [("pk", "S"), ("sk", "S")],
    "policy": [("pk", "S"), ("sk", "N")],
    "control": [("pk", "S")],
    "items": [("pk", "S")],
}


def name_of(kind: str) -> str:
    """A name that no other test of this session uses."""
    return f"narrows-{kind}-{next(_numbers)}"


def create_table(client: Any, kind: str) -> str:
    """An empty table with the keys of this kind."""
    name = name_of(kind)
    client.create_table(
        TableName=name,
        BillingMode="PAY_PER_REQUEST",
        AttributeDefinitions=[{"AttributeName": key, "AttributeType": type_} for key, type_ in KEYS[kind]],
        KeySchema=[
            {"AttributeName": key, "KeyType": role}
            for (key, _), role in zip(KEYS[kind], ("HASH", "RANGE"), strict=False)
        ],
    )
    return name


def create_stream(client: Any, kind: str, shards: int = 2) -> str:
    """An empty stream that is ready for records."""
    name = name_of(kind)
    client.create_stream(StreamName=name, ShardCount=shards)
    for _ in range(100):
        summary = client.describe_stream_summary(StreamName=name)
        if summary["StreamDescriptionSummary"]["StreamStatus"] == "ACTIVE":
            break
        time.sleep(0.05)
    return name


def read_stream(client: Any, name: str) -> list[dict[str, Any]]:
    """Every record of the stream, shard by shard, in the shard's order."""
    records: list[dict[str, Any]] = []
    for shard in client.list_shards(StreamName=name)["Shards"]:
        iterator = client.get_shard_iterator(
            StreamName=name, ShardId=shard["ShardId"], ShardIteratorType="TRIM_HORIZON"
        )["ShardIterator"]
        while True:
            page = client.get_records(ShardIterator=iterator, Limit=10_000)
            records += page["Records"]
            if not page["Records"]:
                break
            iterator = page["NextShardIterator"]
    return records


def create_bucket(client: Any) -> str:
    """An empty bucket."""
    name = name_of("bucket")
    client.create_bucket(Bucket=name)
    return name
