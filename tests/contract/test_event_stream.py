"""What every event stream does, and how the Kinesis one retries."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from narrows.adapters.kinesis import KinesisEventStream, put_records
from narrows.adapters.memory import MemoryEventStream
from narrows.collecting import EventStream
from narrows.events import Event, from_record
from tests.contract.tables import create_stream, read_stream
from tests.servers import AWS, on

Read = Callable[[], list[Event]]


def happened(number: int, user: str) -> Event:
    time = 1_800_000_000.0 + number
    return Event(f"e{number}", "click", time, time + 1.0, user_id=user, item_id="i")


class EventStreamContract:
    """Subscribed to by every adapter."""

    def test_every_event_is_stored_in_its_visitors_order(self, stream: tuple[EventStream, Read]) -> None:
        """1,200 events, more than a call takes, keep each visitor's order."""
        put, read = stream
        events = [happened(number, f"u{number % 7}") for number in range(1_200)]
        assert put.put(events) == {}
        stored = read()
        assert len(stored) == 1_200
        for user in range(7):
            mine = [event for event in stored if event.user_id == f"u{user}"]
            assert mine == [event for event in events if event.user_id == f"u{user}"]

    def test_nothing_to_store_is_nothing(self, stream: tuple[EventStream, Read]) -> None:
        """An empty batch makes no call that could fail."""
        assert stream[0].put([]) == {}


class TestMemoryEventStream(EventStreamContract):
    @pytest.fixture
    def stream(self) -> tuple[EventStream, Read]:
        stream = MemoryEventStream()
        return stream, lambda: stream.events


class TestKinesisEventStream(EventStreamContract):
    @pytest.fixture(params=AWS)
    def stream(self, request: pytest.FixtureRequest) -> tuple[EventStream, Read]:
        client = on(request).client("kinesis")
        name = create_stream(client, "events")
        return (
            KinesisEventStream(client, name),
            lambda: [from_record(json.loads(record["Data"])) for record in read_stream(client, name)],
        )


class Refusing:
    """A Kinesis that refuses the records that `refuses` names, as often as it says."""

    def __init__(self, refuses: dict[bytes, int]) -> None:
        self.refuses = dict(refuses)
        self.calls: list[list[bytes]] = []

    def put_records(self, StreamName: str, Records: list[dict[str, Any]]) -> Any:  # noqa: N803
        data = [record["Data"] for record in Records]
        self.calls.append(data)
        return {"Records": [self._answer(one) for one in data]}

    def _answer(self, data: bytes) -> dict[str, str]:
        if self.refuses.get(data, 0) > 0:
            self.refuses[data] -= 1
            return {"ErrorCode": "ProvisionedThroughputExceededException"}
        return {"SequenceNumber": "1"}


def test_only_the_refused_records_are_sent_again() -> None:
    """What was stored is not stored twice."""
    client = Refusing({b"b": 1, b"d": 2})
    failed = put_records(client, "s", [(one, "k") for one in (b"a", b"b", b"c", b"d")], sleep=lambda _: None)
    assert failed == {}
    assert client.calls == [[b"a", b"b", b"c", b"d"], [b"b", b"d"], [b"d"]]


def test_what_is_refused_to_the_end_is_named_by_position() -> None:
    """The others of its call are stored."""
    client = Refusing({b"b": 99})
    entries = [(b"a", "k"), (b"b", "k"), (b"c", "k")]
    failed = put_records(client, "s", entries, sleep=lambda _: None)
    assert failed == {1: "ProvisionedThroughputExceededException"}


def test_calls_keep_to_the_limits_of_kinesis() -> None:
    """At most 500 records and 5 MB a call; a record that no call takes is named and not sent."""
    client = Refusing({})
    large = [(bytes(900_000), "k")] * 12
    failed = put_records(client, "s", [*large, (bytes(1_100_000), "k"), *[(b"s", "k")] * 501])
    assert failed == {12: "TooLarge"}
    assert all(len(call) <= 500 and sum(map(len, call)) <= 5_000_000 for call in client.calls)
    assert sum(map(len, client.calls)) == 12 + 501


def test_a_stream_that_does_not_answer_fails_every_event(moto: Any) -> None:
    """The caller learns which events to send again; nothing is raised."""
    stream = KinesisEventStream(moto.client("kinesis"), "no-such-stream", sleep=lambda _: None)
    failed = stream.put([happened(1, "u"), replace(happened(2, "u"), user_id="v")])
    assert set(failed) == {0, 1}
    assert "ResourceNotFoundException" in failed[0]
