"""Kinesis and DynamoDB streams as one thing: shards with parents, and pages of records that Lambda knows."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from botocore.exceptions import BotoCoreError, ClientError
from botocore.session import Session

PAGE_RECORDS = 2_000
PAGE_RECORDS_DYNAMODB = 1_000
DYNAMODB_ENVELOPE = ("eventID", "eventName", "eventVersion", "eventSource", "awsRegion")
ENVELOPE_BYTES = 400  # what a Lambda event says around the data of one record


class ShardGone(Exception):
    """The shard is no longer there: it was split, merged, or its stream deleted."""


class Trimmed(Exception):
    """The stream no longer keeps what stands at this position; read on from its oldest record."""


class IteratorExpired(Exception):
    """The iterator is too old; ask for a new one at the same position."""


class SourceUnavailable(Exception):
    """The stream did not answer; nothing was lost and the call can be repeated."""


@dataclass(frozen=True)
class ShardInfo:
    """A shard and the ones that it was split or merged from."""

    id: str
    parents: tuple[str, ...] = ()


@dataclass(frozen=True)
class Position:
    """Where to read from: a StartingPosition of Lambda's, or AFTER_SEQUENCE_NUMBER with that number."""

    kind: str
    sequence: str = ""
    timestamp: float = 0.0


OLDEST = Position("TRIM_HORIZON")


@dataclass(frozen=True)
class Record:
    """One record as its client gave it; `arrived_at` in epoch seconds, `size` in bytes of a Lambda event."""

    sequence: str
    arrived_at: float
    size: int
    raw: Mapping[str, Any]


@dataclass(frozen=True)
class Page:
    """Records in order, and where to go on; None once a closed shard has been read to its end."""

    records: Sequence[Record]
    next_iterator: str | None


class Source(Protocol):
    """A stream of either kind."""

    arn: str
    batch_info: str
    time_resolution_s: float

    def shards(self) -> list[ShardInfo]: ...
    def iterator(self, shard_id: str, position: Position) -> str: ...
    def read(self, iterator: str) -> Page: ...
    def event(self, shard_id: str, record: Record) -> dict[str, Any]: ...


def open_source(arn: str, *, endpoint: str, region: str, identity: str) -> Source:
    """The stream with this ARN; `identity` is the role that the records say invoked the function."""
    session = Session()
    parsers = session.get_component("response_parser_factory")
    parsers.set_parser_defaults(timestamp_parser=float)  # a datetime each took a tenth of a batch's time
    options = {"endpoint_url": endpoint, "region_name": region}
    if arn.split(":")[2] == "kinesis":
        return KinesisSource(arn, session.create_client("kinesis", **options), identity)
    return DynamoSource(arn, session.create_client("dynamodbstreams", **options))


class KinesisSource:
    """A Kinesis data stream; its client gives times in epoch seconds."""

    batch_info = "KinesisBatchInfo"
    time_resolution_s = 0.0

    def __init__(self, arn: str, client: Any, identity: str) -> None:
        self.arn = arn
        self._client = client
        self._identity = identity
        self._region = arn.split(":")[3]

    def shards(self) -> list[ShardInfo]:
        """Every shard that the stream still lists, closed ones included."""
        shards: list[ShardInfo] = []
        asked: dict[str, str] = {"StreamARN": self.arn}
        while True:
            answer = _call(self._client.list_shards, **asked)
            shards += [ShardInfo(each["ShardId"], _parents(each)) for each in answer["Shards"]]
            if not answer.get("NextToken"):
                return shards
            asked = {"NextToken": answer["NextToken"]}

    def iterator(self, shard_id: str, position: Position) -> str:
        asked: dict[str, Any] = {"StreamARN": self.arn, "ShardId": shard_id}
        asked["ShardIteratorType"] = position.kind
        if position.sequence:
            asked["StartingSequenceNumber"] = position.sequence
        if position.kind == "AT_TIMESTAMP":
            asked["Timestamp"] = datetime.fromtimestamp(position.timestamp, UTC)
        return str(_call(self._client.get_shard_iterator, **asked)["ShardIterator"])

    def read(self, iterator: str) -> Page:
        answer = _call(self._client.get_records, ShardIterator=iterator, Limit=PAGE_RECORDS)
        records = [
            Record(
                sequence=raw["SequenceNumber"],
                arrived_at=raw["ApproximateArrivalTimestamp"],
                size=len(raw["Data"]) * 4 // 3 + ENVELOPE_BYTES,
                raw=raw,
            )
            for raw in answer["Records"]
        ]
        return Page(records, answer.get("NextShardIterator"))

    def event(self, shard_id: str, record: Record) -> dict[str, Any]:
        """The record as a handler receives it; a new object each time, because a handler may change it."""
        return {
            "kinesis": {
                "kinesisSchemaVersion": "1.0",
                "partitionKey": record.raw["PartitionKey"],
                "sequenceNumber": record.sequence,
                "data": base64.b64encode(record.raw["Data"]).decode("ascii"),
                "approximateArrivalTimestamp": round(record.arrived_at, 3),
            },
            "eventSource": "aws:kinesis",
            "eventVersion": "1.0",
            "eventID": f"{shard_id}:{record.sequence}",
            "eventName": "aws:kinesis:record",
            "invokeIdentityArn": self._identity,
            "awsRegion": self._region,
            "eventSourceARN": self.arn,
        }


class DynamoSource:
    """The change stream of a DynamoDB table; its client gives times in epoch seconds."""

    batch_info = "DDBStreamBatchInfo"
    time_resolution_s = 1.0

    def __init__(self, arn: str, client: Any) -> None:
        self.arn = arn
        self._client = client

    def shards(self) -> list[ShardInfo]:
        """Every shard that the stream still lists, closed ones included."""
        shards: list[ShardInfo] = []
        asked: dict[str, str] = {"StreamArn": self.arn}
        while True:
            description = _call(self._client.describe_stream, **asked)["StreamDescription"]
            shards += [ShardInfo(each["ShardId"], _parents(each)) for each in description["Shards"]]
            if not description.get("LastEvaluatedShardId"):
                return shards
            asked["ExclusiveStartShardId"] = description["LastEvaluatedShardId"]

    def iterator(self, shard_id: str, position: Position) -> str:
        """As Kinesis, but a time means TRIM_HORIZON: these streams know none, so the reader skips."""
        kind = "TRIM_HORIZON" if position.kind == "AT_TIMESTAMP" else position.kind
        asked = {"StreamArn": self.arn, "ShardId": shard_id, "ShardIteratorType": kind}
        if position.sequence:
            asked["SequenceNumber"] = position.sequence
        return str(_call(self._client.get_shard_iterator, **asked)["ShardIterator"])

    def read(self, iterator: str) -> Page:
        answer = _call(self._client.get_records, ShardIterator=iterator, Limit=PAGE_RECORDS_DYNAMODB)
        records = [
            Record(
                sequence=raw["dynamodb"]["SequenceNumber"],
                arrived_at=raw["dynamodb"]["ApproximateCreationDateTime"],
                size=int(raw["dynamodb"].get("SizeBytes", 0)) + ENVELOPE_BYTES,
                raw=raw,
            )
            for raw in answer["Records"]
        ]
        return Page(records, answer.get("NextShardIterator"))

    def event(self, shard_id: str, record: Record) -> dict[str, Any]:  # noqa: ARG002  # one protocol for both
        """The record as a handler receives it; a new object each time, because a handler may change it."""
        raw = record.raw
        change = {**raw["dynamodb"], "ApproximateCreationDateTime": int(record.arrived_at)}
        for image in ("Keys", "NewImage", "OldImage"):
            if image in change:
                change[image] = _as_json(change[image])
        event = {name: raw[name] for name in DYNAMODB_ENVELOPE}
        event |= {"dynamodb": change, "eventSourceARN": self.arn}
        if "userIdentity" in raw:
            identity = raw["userIdentity"]
            event["userIdentity"] = {"type": identity["Type"], "principalId": identity["PrincipalId"]}
        return event


def in_order_of_parents(shards: Sequence[ShardInfo]) -> Iterator[ShardInfo]:
    """The shards with every parent before its children, so that a key's records keep their order."""
    waiting = {shard.id: shard for shard in shards}
    while waiting:
        ready = [shard for shard in waiting.values() if waiting.keys().isdisjoint(shard.parents)]
        for shard in ready or list(waiting.values()):
            yield waiting.pop(shard.id)


def _parents(raw: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(raw[name] for name in ("ParentShardId", "AdjacentParentShardId") if raw.get(name))


def _as_json(value: Any) -> Any:
    """An attribute value as it stands in a Lambda event: binary as base64 text."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    if isinstance(value, Mapping):
        return {key: _as_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set):
        return [_as_json(inner) for inner in value]
    return value


def _call(method: Any, **asked: Any) -> Any:
    try:
        return method(**asked)
    except ClientError as error:
        code = error.response["Error"].get("Code", "")
        if code == "ResourceNotFoundException":
            raise ShardGone(str(error)) from error
        if code == "TrimmedDataAccessException":
            raise Trimmed(str(error)) from error
        if code == "ExpiredIteratorException":
            raise IteratorExpired(str(error)) from error
        raise SourceUnavailable(str(error)) from error
    except BotoCoreError as error:
        raise SourceUnavailable(str(error)) from error
