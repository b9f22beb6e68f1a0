"""Decision records into remembered slates, on moto."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from narrows.adapters.dynamodb import DynamoSlateStore
from narrows.decision import DecisionRecord, ShownItem
from narrows.visitor import Remembered
from tests.contract.tables import create_table
from tests.functions.doorways import CONTEXT, cold_start, kinesis_event
from tests.servers import Aws

NOW = 1_795_237_200.0


class Deployed:
    """The function and its table."""

    def __init__(self, aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
        client = aws.client("dynamodb")
        table = create_table(client, "slates")
        self.module: ModuleType = cold_start("remember_slates", monkeypatch, {"SLATES_TABLE": table})
        self.store = DynamoSlateStore(client, table)

    def deliver(self, *records: bytes) -> list[str]:
        batch = [("shard-0", str(number), data) for number, data in enumerate(records)]
        answer = self.module.handler(kinesis_event(batch, stream="decisions"), CONTEXT)
        return [one["itemIdentifier"] for one in answer["batchItemFailures"]]


@pytest.fixture
def deployed(moto: Aws, monkeypatch: pytest.MonkeyPatch) -> Deployed:
    return Deployed(moto, monkeypatch)


def decided(items: str, *, at: float = NOW, **changes: Any) -> bytes:
    slate = tuple(ShownItem(item, 0, place, 1.0, "als", "") for place, item in enumerate(items, start=1))
    values = {
        "recommendation_id": "r", "app": "media", "surface": "feed", "at": at, "limit": 3,
        "user_key": "u#a", "session_key": None, "rung": "full", "snapshot_version": "1",
        "model_version": None, "policy_version": 0, "slate": slate,
        "remembered": tuple(f"c{n}" for n in range(150)),
    }  # fmt: skip
    return DecisionRecord(**{**values, **changes}).to_json().encode()


def test_the_newest_slate_of_each_visitor_is_remembered(deployed: Deployed) -> None:
    """In the batch and across batches, with the first 100 candidates, for a week."""
    assert deployed.deliver(decided("ab"), decided("cd", at=NOW + 9), decided("ef", user_key="u#b")) == []
    assert deployed.deliver(decided("xy", at=NOW + 1)) == []
    candidates = tuple(f"c{n}" for n in range(100))
    assert deployed.store.read("u#a", "feed", now=NOW) == Remembered(("c", "d"), candidates, NOW + 9)
    assert deployed.store.read("u#b", "feed", now=NOW) == Remembered(("e", "f"), candidates, NOW)
    assert deployed.store.read("u#a", "feed", now=NOW + 8 * 86_400) is None


def test_a_fallback_does_not_replace_a_personal_slate(deployed: Deployed) -> None:
    """The static list of a bad minute is not what the visitor is remembered by."""
    deployed.deliver(decided("ab"), decided("st", at=NOW + 5, rung="static"))
    remembered = deployed.store.read("u#a", "feed", now=NOW)
    assert remembered is not None
    assert remembered.slate == ("a", "b")


def test_an_anonymous_visitor_is_remembered_by_session(deployed: Deployed) -> None:
    """The same key by which the request path looks."""
    deployed.deliver(decided("ab", user_key=None, session_key="s#1"))
    assert deployed.store.read("s#1", "feed", now=NOW) is not None


def test_poison_is_reported_alone(deployed: Deployed) -> None:
    """The records around it are remembered."""
    assert deployed.deliver(b"{}", decided("ab")) == ["0"]
    assert deployed.store.read("u#a", "feed", now=NOW) is not None
