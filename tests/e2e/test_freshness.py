"""An item, by POST /api/items or by the stream, into slates and out of them, in the local cloud."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import boto3
import pytest

from tests.e2e.conftest import Cloud, items

pytestmark = pytest.mark.local


def eventually(seconds: float, holds: Callable[[], bool]) -> float:
    """How long it took until it held in several answers in a row, which different workers give."""
    started = time.monotonic()
    row, since = 0, started
    while row < 5:
        if holds():
            since = since if row else time.monotonic()
            row += 1
        else:
            row = 0
            assert time.monotonic() < started + seconds, "it took too long"
            time.sleep(0.1)
    return since - started


def upsert(cloud: Cloud, **item: Any) -> dict[str, Any]:
    status, answer = cloud.call("/api/items", {"items": [item]})
    assert status == 200, answer
    return dict(answer["verdicts"][0])


def stream(cloud: Cloud, **item: Any) -> None:
    record = {"Data": json.dumps(item).encode(), "PartitionKey": item["item_id"]}
    boto3.client("kinesis").put_record(StreamName=cloud.outputs["ItemUpsertsStreamName"], **record)


def shown(cloud: Cloud, item_id: str) -> bool:
    """Whether somebody who was never here gets the item on the homepage."""
    session = f"never-{time.monotonic_ns()}"
    return item_id in items(cloud.slate(session_id=session, limit=60))


def test_an_item_appears_without_a_new_model_and_disappears_at_once(cloud: Cloud) -> None:
    """Upserted, offered as new and ranked; sold out and gone within 5 s; back; deleted and gone for good."""
    model = cloud.call("/api/health")[1]["model_version"]
    name = f"new-{time.time_ns()}"
    offer = {"title": "A new one", "category": ["a"], "brand": "x", "price": 5.0, "stock": 3}
    assert upsert(cloud, item_id=name, version=1, **offer)["status"] == "accepted"
    assert upsert(cloud, item_id=name, version=1, **offer)["status"] == "unchanged"
    assert eventually(60.0, lambda: shown(cloud, name)) < 60.0
    traces: list[dict[str, Any]] = []

    def eligible() -> bool:  # each worker learns of it at its own moment
        traces.append(cloud.slate(session_id="somebody", limit=60, explain=True)["trace"])
        return name in traces[-1]["eligible"]

    assert eventually(60.0, eligible) < 60.0
    assert traces[-1]["items"][name]["price"] == 5.0
    for version, change, there in (
        (2, {"stock": 0}, False),
        (3, {"stock": 2}, True),
        (4, {"deleted": True}, False),
    ):
        sent = {"item_id": name, "version": version, **({} if "deleted" in change else offer), **change}
        assert upsert(cloud, **sent)["status"] == "accepted"
        assert eventually(6.0, lambda there=there: shown(cloud, name) is there) < 5.0  # type: ignore[misc]
    assert upsert(cloud, item_id=name, version=3, **offer)["status"] == "stale"
    assert cloud.call("/api/health")[1]["model_version"] == model


def test_an_item_of_the_stream_is_served_and_suppressed_without_the_api(cloud: Cloud) -> None:
    """Put into Kinesis behind one that is refused: offered as it was sent, and gone once it is sold out."""
    name = f"streamed-{time.time_ns()}"
    offer = {"item_id": name, "title": "Streamed", "category": ["a"], "brand": "x", "price": 7.0}
    answers: list[dict[str, Any]] = []

    def eligible() -> bool:
        answers.append(cloud.slate(session_id=f"never-{time.monotonic_ns()}", limit=60, explain=True))
        return name in answers[-1]["trace"]["eligible"]

    stream(cloud, item_id=name, price="no number")
    stream(cloud, **offer, version=1, stock=3)
    eventually(60.0, eligible)
    assert answers[-1]["trace"]["items"][name]["price"] == 7.0
    before = answers[-1]["policy_version"]

    def suppressed() -> bool:
        gone = not eligible() and answers[-1]["fallback"] == "full"
        return gone and answers[-1]["policy_version"] > before

    stream(cloud, **offer, version=2, stock=0)
    eventually(60.0, suppressed)
    assert upsert(cloud, **offer, version=1, stock=3)["status"] == "stale"


def test_an_items_category_brings_it_to_those_who_like_it(cloud: Cloud) -> None:
    """The ranker reads it as any other: its price and its category are those that were sent."""
    name = f"cheap-{time.time_ns()}"
    upsert(cloud, item_id=name, title="Cheap", category=["b"], brand="y", price=0.5, stock=1)
    traces: list[dict[str, Any]] = []

    def explained() -> bool:
        traces.append(cloud.slate(session_id="somebody else", limit=60, explain=True)["trace"])
        return name in traces[-1]["items"]

    eventually(60.0, explained)
    trace = traces[-1]
    assert trace["items"][name] == {"title": "Cheap", "category": "b", "brand": "y", "price": 0.5}
    assert "fresh" in trace["sources"][name]["ranks"]
    upsert(cloud, item_id=name, deleted=True)


def test_a_bad_item_changes_nothing_for_the_others(cloud: Cloud) -> None:
    """The verdict names field and remedy, the rest of the batch is stored, and the API goes on answering."""
    good = f"good-{time.time_ns()}"
    batch = [{"item_id": "bad", "category": ["tag"] * 10_000}, {"item_id": good, "stock": 1}, "nonsense"]
    status, answer = cloud.call("/api/items", {"items": batch})
    assert status == 200
    assert [one["status"] for one in answer["verdicts"]] == ["rejected", "accepted", "rejected"]
    assert answer["verdicts"][0]["field"] == "category"
    assert cloud.slate(session_id="anybody")["recommendations"]
    upsert(cloud, item_id=good, deleted=True)
