"""What every store of visitors' states does."""

from __future__ import annotations

from typing import Any

import pytest

from narrows.adapters.dynamodb import DynamoStateStore
from narrows.adapters.memory import MemoryStateStore
from narrows.errors import Conflict, StoreUnavailable
from narrows.features.state import StateStore, VisitorState
from tests.contract.tables import create_table
from tests.servers import DYNAMODB, on

RETENTION_S = 1_000.0


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def known(mark: str = "x") -> VisitorState:
    return VisitorState(
        features={"clicks:abc": (1, 2.5), "last:def": ((1.0, "e", "i", "click"),)},
        applied={"shard-0": 49590338271490256608559692538361571095921575989136588898},
        ring=(mark,),
        do_not_show={"bad": 5.0},
        updated_at=7.0,
    )


class StateStoreContract:
    """Subscribed to by every adapter."""

    def test_an_unknown_visitor_is_absent(self, store: StateStore) -> None:
        """Unknown is not an empty state: the key is not in the answer."""
        assert store.get_many(["u#nobody"]) == {}
        assert store.get_many([]) == {}

    def test_what_is_written_is_read_with_its_version(self, store: StateStore) -> None:
        """The first write makes version 1, the next version 2."""
        store.put("u#a", known(), 0)
        assert store.get_many(["u#a"])["u#a"] == VisitorState(**{**vars(known()), "version": 1})
        store.put("u#a", known("y"), 1)
        read = store.get_many(["u#a"])["u#a"]
        assert (read.version, read.ring) == (2, ("y",))

    def test_a_stale_write_is_a_conflict(self, store: StateStore) -> None:
        """Who read version 0 or 1 does not overwrite version 2."""
        store.put("u#a", known(), 0)
        store.put("u#a", known(), 1)
        for expected in (0, 1, 3):
            with pytest.raises(Conflict):
                store.put("u#a", known("late"), expected)
        assert store.get_many(["u#a"])["u#a"].ring == ("x",)

    def test_more_keys_than_one_call_takes(self, store: StateStore) -> None:
        """250 keys are read, doubled ones once, absent ones left out."""
        keys = [f"u#{number}" for number in range(250)]
        for key in keys[:230]:
            store.put(key, known(key), 0)
        states = store.get_many([*keys, keys[0]])
        assert set(states) == set(keys[:230])
        assert all(state.ring == (key,) for key, state in states.items())

    def test_an_expired_state_is_absent_and_may_be_replaced(self, store: StateStore, clock: Clock) -> None:
        """Whether the store has deleted it by then or not."""
        store.put("u#a", known(), 0)
        clock.now += RETENTION_S + 1
        assert store.get_many(["u#a"]) == {}
        store.put("u#a", known("new"), 0)
        assert store.get_many(["u#a"])["u#a"].ring == ("new",)


class TestMemoryStateStore(StateStoreContract):
    @pytest.fixture
    def store(self, clock: Clock) -> StateStore:
        return MemoryStateStore(clock=clock, retention_s=RETENTION_S)


class TestDynamoStateStore(StateStoreContract):
    @pytest.fixture(params=DYNAMODB)
    def store(self, request: pytest.FixtureRequest, clock: Clock) -> StateStore:
        client = on(request).client("dynamodb")
        table = create_table(client, "state")
        return DynamoStateStore(client, table, clock=clock, retention_s=RETENTION_S, consistent=True)


class Throttled:
    """Answers only the first key of every batch, as DynamoDB may."""

    def __init__(self, client: Any) -> None:
        self.client = client

    def batch_get_item(self, RequestItems: Any) -> Any:  # noqa: N803  # boto3's own name
        (table, request), *_ = RequestItems.items()
        answer = self.client.batch_get_item(RequestItems={table: {**request, "Keys": request["Keys"][:1]}})
        rest = request["Keys"][1:]
        return {**answer, "UnprocessedKeys": {table: {**request, "Keys": rest}} if rest else {}}


def test_keys_left_over_are_asked_for_again(moto: Any, clock: Clock) -> None:
    """A throttled batch read goes on with the rest, and gives up aloud after a few rounds."""
    client = moto.client("dynamodb")
    table = create_table(client, "state")
    whole = DynamoStateStore(client, table, clock=clock)
    for number in range(8):
        whole.put(f"u#{number}", known(), 0)
    throttled = DynamoStateStore(Throttled(client), table, clock=clock, sleep=lambda _: None)
    assert len(throttled.get_many([f"u#{number}" for number in range(4)])) == 4
    with pytest.raises(StoreUnavailable):
        throttled.get_many([f"u#{number}" for number in range(8)])


def test_a_missing_table_is_unavailable(moto: Any, clock: Clock) -> None:
    """AWS's own error names do not leave the adapter."""
    store = DynamoStateStore(moto.client("dynamodb"), "no-such-table", clock=clock)
    with pytest.raises(StoreUnavailable):
        store.get_many(["u#a"])
    with pytest.raises(StoreUnavailable):
        store.put("u#a", known(), 0)
