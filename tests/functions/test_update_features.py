"""Kinesis batches into visitors' states, on moto and on MiniStack."""

from __future__ import annotations

import json
import time
from types import ModuleType

import pytest

from narrows.adapters.dynamodb import DynamoStateStore
from narrows.events import Event, to_record
from tests import servers
from tests.contract.tables import create_table, name_of
from tests.functions.doorways import CONTEXT, cold_start, kinesis_event

SHARD = "shardId-000000000000"
BASE = 49_590_338_271_490_256_608_559_692_538_361_571_095_921_575_989_136_588_898
Batch = list[tuple[str, str, bytes]]


class Deployed:
    """The function and its table."""

    def __init__(self, aws: servers.Aws, monkeypatch: pytest.MonkeyPatch) -> None:
        servers.credentials(monkeypatch, aws.endpoint)
        client = aws.client("dynamodb")
        table = create_table(client, "state")
        self.queue = aws.client("sqs").create_queue(QueueName=name_of("dead"))["QueueUrl"]
        variables = {"APP": "media", "STATE_TABLE": table, "DEAD_LETTERS": self.queue}
        self.module: ModuleType = cold_start("update_features", monkeypatch, variables)
        self.store = DynamoStateStore(client, table, clock=time.time, consistent=True)

    def deliver(self, batch: Batch) -> list[int]:
        answer = self.module.handler(kinesis_event(batch), CONTEXT)
        return [int(one["itemIdentifier"]) - BASE for one in answer["batchItemFailures"]]

    def watches(self, user: str) -> float:
        state = self.store.get_many([f"u#{user}"])[f"u#{user}"]
        return float(self.module.FEATURES.every.read(state.features, time.time())["watches"])


@pytest.fixture
def deployed(moto: servers.Aws, monkeypatch: pytest.MonkeyPatch) -> Deployed:
    return Deployed(moto, monkeypatch)


def watched(number: int, user: str = "a") -> tuple[str, str, bytes]:
    event = Event(f"e{number}", "watch", time.time(), time.time(), user_id=user, item_id=f"i{number}")
    return SHARD, str(BASE + number), json.dumps(to_record(event)).encode()


def test_a_batch_is_folded_and_a_replay_changes_nothing(deployed: Deployed) -> None:
    """Delivered twice, and once more with other boundaries, each event counts once."""
    batch = [watched(1), watched(2, "b"), watched(3)]
    assert deployed.deliver(batch) == []
    assert deployed.deliver(batch) == []
    assert deployed.deliver([*batch[2:], watched(4)]) == []
    assert (deployed.watches("a"), deployed.watches("b")) == (3.0, 1.0)


def test_poison_goes_to_the_queue_with_its_reason(deployed: Deployed, moto: servers.Aws) -> None:
    """It holds nothing up, everything around it is folded; without the queue Lambda bisects down to it."""
    poison = (SHARD, str(BASE + 2), b"not an event")
    assert deployed.deliver([watched(1), poison, watched(3)]) == []
    assert deployed.watches("a") == 2.0
    [message] = moto.client("sqs").receive_message(QueueUrl=deployed.queue)["Messages"]
    letter = json.loads(message["Body"])
    assert (letter["shard"], letter["sequence"]) == (SHARD, str(BASE + 2))
    assert letter["reason"].startswith("malformed: ")
    moto.client("sqs").delete_queue(QueueUrl=deployed.queue)
    assert deployed.deliver([watched(1), poison, watched(3)]) == [2]


def test_a_dead_table_fails_the_batch(deployed: Deployed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every record is reported, so that Lambda delivers them again."""
    monkeypatch.setattr(deployed.store, "_table", "gone")
    monkeypatch.setattr(deployed.module.STORE, "_table", "gone")
    assert deployed.deliver([watched(1), watched(2, "b")]) == [1, 2]


@pytest.mark.local
def test_a_large_batch_takes_less_than_two_seconds(
    ministack: servers.Aws, monkeypatch: pytest.MonkeyPatch
) -> None:
    """2,000 events of 150 visitors; the second batch reads what the first wrote."""
    deployed = Deployed(ministack, monkeypatch)
    batches = [[watched(2_000 * batch + n, f"u{n % 150}") for n in range(1, 2_001)] for batch in range(2)]
    assert deployed.deliver(batches[0]) == []
    started = time.perf_counter()
    assert deployed.deliver(batches[1]) == []
    took = time.perf_counter() - started
    assert took < 2.0
    assert deployed.watches("u7") == 28.0
