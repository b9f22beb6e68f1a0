"""Event source mappings as Lambda's API tells them, and where the records go that a function gave up on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import boto3

from localcloud.functions import FunctionError, Outcome
from localcloud.sources import OLDEST, Position, Record, Source

NO_LIMIT = -1
STREAMS = ("kinesis", "dynamodb")
INACTIVE = ("Disabled", "Disabling", "Deleting")


@dataclass(frozen=True)
class EventSourceMapping:
    """One mapping of a stream to a function, in the terms of Lambda's API; NO_LIMIT where it has none."""

    uuid: str
    source_arn: str
    function_arn: str
    batch_size: int = 100
    window_s: float = 0.0
    bisect: bool = False
    retries: int = NO_LIMIT
    max_age_s: float = NO_LIMIT
    partial_failures: bool = False
    on_failure: str = ""
    start: Position = OLDEST

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> EventSourceMapping:
        """A mapping as the API describes it; what it does not say has AWS's default for streams."""
        for unknown in ("FilterCriteria", "TumblingWindowInSeconds"):
            if answer.get(unknown):
                message = f"mapping {answer['UUID']}: {unknown} is not driven on this machine; remove it"
                raise FunctionError(message)
        on_failure = answer.get("DestinationConfig", {}).get("OnFailure", {}).get("Destination", "")
        return cls(
            uuid=answer["UUID"],
            source_arn=answer["EventSourceArn"],
            function_arn=answer["FunctionArn"],
            batch_size=int(answer.get("BatchSize", 100)),
            window_s=float(answer.get("MaximumBatchingWindowInSeconds", 0)),
            bisect=str(answer.get("BisectBatchOnFunctionError", False)).lower() == "true",
            retries=int(answer.get("MaximumRetryAttempts", NO_LIMIT)),
            max_age_s=float(answer.get("MaximumRecordAgeInSeconds", NO_LIMIT)),
            partial_failures="ReportBatchItemFailures" in answer.get("FunctionResponseTypes", []),
            on_failure=on_failure,
            start=_start(answer),
        )


def stream_mappings(client: Any, function: str | None = None) -> Iterator[EventSourceMapping]:
    """The enabled mappings of streams, of one function or of all, from a boto3 Lambda client."""
    asked = {"FunctionName": function} if function else {}
    for page in client.get_paginator("list_event_source_mappings").paginate(**asked):
        for answer in page["EventSourceMappings"]:
            of_stream = answer.get("EventSourceArn", "::").split(":")[2] in STREAMS
            if of_stream and answer.get("State") not in INACTIVE:
                yield EventSourceMapping.of(answer)


def failure_report(
    mapping: EventSourceMapping,
    source: Source,
    shard_id: str,
    records: Sequence[Record],
    *,
    condition: str,
    attempts: int,
    outcome: Outcome | None,
    now: float,
) -> dict[str, Any]:
    """What Lambda sends to an on-failure queue: where the records stand in the stream, not the records."""
    report: dict[str, Any] = {
        "requestContext": {
            "requestId": outcome.request_id if outcome else str(uuid4()),
            "functionArn": mapping.function_arn,
            "condition": condition,
            "approximateInvokeCount": attempts,
        },
        "version": "1.0",
        "timestamp": _stamp(now),
        source.batch_info: {
            "shardId": shard_id,
            "startSequenceNumber": records[0].sequence,
            "endSequenceNumber": records[-1].sequence,
            "approximateArrivalOfFirstRecord": _stamp(records[0].arrived_at),
            "approximateArrivalOfLastRecord": _stamp(records[-1].arrived_at),
            "batchSize": len(records),
            "streamArn": mapping.source_arn,
        },
    }
    if outcome is not None:
        report["responseContext"] = {"statusCode": 200, "executedVersion": "$LATEST"}
        if outcome.error is not None:
            report["responseContext"]["functionError"] = "Unhandled"
    return report


class Destination:
    """An on-failure destination: an SQS queue or an SNS topic, named by its ARN."""

    def __init__(self, arn: str, *, endpoint: str, region: str) -> None:
        self._arn = arn
        service = arn.split(":")[2] if arn else ""
        if service not in ("sqs", "sns"):
            raise FunctionError(
                f"on-failure destination '{arn}' is not driven here; use an SQS queue or SNS topic"
            )
        self._client = boto3.client(service, endpoint_url=endpoint, region_name=region)
        self._queue = ""
        if service == "sqs":
            account, name = arn.split(":")[4:6]
            answer = self._client.get_queue_url(QueueName=name, QueueOwnerAWSAccountId=account)
            self._queue = answer["QueueUrl"]

    def send(self, report: Mapping[str, Any]) -> None:
        """Deliver one report; raises what the client raises when it cannot."""
        text = json.dumps(report)
        if self._queue:
            self._client.send_message(QueueUrl=self._queue, MessageBody=text)
        else:
            self._client.publish(TopicArn=self._arn, Message=text)


def _start(answer: Mapping[str, Any]) -> Position:
    kind = answer.get("StartingPosition", "TRIM_HORIZON")
    if kind != "AT_TIMESTAMP":
        return Position(kind)
    at = answer["StartingPositionTimestamp"]
    return Position(kind, timestamp=at.timestamp() if isinstance(at, datetime) else float(at))


def _stamp(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
