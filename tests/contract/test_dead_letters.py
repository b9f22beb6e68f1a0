"""What every place for records that were given up does."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from typing import Any

import pytest

from narrows.adapters.memory import MemoryDeadLetters
from narrows.adapters.sqs import DATA_BYTES, SqsDeadLetters
from narrows.errors import StoreUnavailable
from narrows.features.stream import DeadLetter, DeadLetters, StreamRecord
from tests.contract.tables import name_of
from tests.servers import AWS, on

Kept = Callable[[], list[tuple[str, str, str, bytes]]]


def letter(number: int, data: bytes = b"\xff\x00") -> DeadLetter:
    return DeadLetter(StreamRecord("shard-0", str(number), data), f"malformed: number {number}")


class DeadLettersContract:
    """Subscribed to by every adapter; the fixture gives what to put to and a reader of what was kept."""

    def test_each_record_is_kept_with_its_reason(self, place: tuple[DeadLetters, Kept]) -> None:
        """Two dozen at once, each with shard, sequence number, reason and bytes; none is put for none."""
        letters, kept = place
        letters.put([])
        letters.put([letter(number) for number in range(24)])
        expected = [("shard-0", str(n), f"malformed: number {n}", b"\xff\x00") for n in range(24)]
        assert sorted(kept()) == sorted(expected)


class TestMemoryDeadLetters(DeadLettersContract):
    @pytest.fixture
    def place(self) -> tuple[DeadLetters, Kept]:
        letters = MemoryDeadLetters()

        def kept() -> list[tuple[str, str, str, bytes]]:
            records = [(one.record, one.reason) for one in letters.letters]
            return [(record.shard, record.sequence, reason, record.data) for record, reason in records]

        return letters, kept


class TestSqsDeadLetters(DeadLettersContract):
    @pytest.fixture(params=AWS)
    def place(self, request: pytest.FixtureRequest) -> tuple[DeadLetters, Kept]:
        client = on(request).client("sqs")
        url = client.create_queue(QueueName=name_of("dead"))["QueueUrl"]
        return SqsDeadLetters(client, url), lambda: messages(client, url)


def messages(client: Any, url: str) -> list[tuple[str, str, str, bytes]]:
    """Everything that waits in the queue."""
    found = []
    while True:
        page = client.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get("Messages", [])
        if not page:
            return found
        for message in page:
            body = json.loads(message["Body"])
            found.append((body["shard"], body["sequence"], body["reason"], base64.b64decode(body["data"])))
            client.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])


def test_a_large_record_is_cut_and_its_size_told(moto: Any) -> None:
    """Ten records of a megabyte with long reasons fit the queue, each with its first bytes."""
    client = moto.client("sqs")
    url = client.create_queue(QueueName=name_of("dead"))["QueueUrl"]
    large = [DeadLetter(letter(n, b"x" * 1_000_000).record, "malformed: " + "é" * 9_000) for n in range(10)]
    SqsDeadLetters(client, url).put(large)
    [body, *_] = client.receive_message(QueueUrl=url, MaxNumberOfMessages=10)["Messages"]
    content = json.loads(body["Body"])
    assert content["bytes"] == 1_000_000
    assert len(base64.b64decode(content["data"])) == DATA_BYTES


def test_a_queue_that_is_not_there_is_unavailable(moto: Any) -> None:
    """AWS's own error names do not leave the adapter."""
    client = moto.client("sqs")
    with pytest.raises(StoreUnavailable):
        SqsDeadLetters(client, "https://sqs.us-east-1.amazonaws.com/123456789012/none").put([letter(1)])
