"""What every store of visitors' states does."""

from __future__ import annotations

from typing import Any

import pytest

from narrows.adapters.dynamodb import DynamoStateStore
from narrows.adapters.memory import MemoryStateStore
from narrows.errors import Conflict, StoreUnavailable
from narrows.features.rounds import LARGEST_GROUP
from narrows.features.state import ITEM_RETENTION_S, StateStore, VisitorState, Write
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


def known(mark: int = 1) -> VisitorState:
    return VisitorState(
        features={"clicks:abc": (1, 2.5), "last:def": ((1.0, "e", "i", "click"),)},
        applied={"shard-0": 49590338271490256608559692538361571095921575989136588898},
        ring=bytes([mark]) * 8,
        do_not_show={"bad": 5.0},
        updated_at=7.0,
        merged=("s#1",),
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
        assert store.get_many(["u#a"])["u#a"] == known()._replace(version=1)
        store.put("u#a", known(2), 1)
        read = store.get_many(["u#a"])["u#a"]
        assert (read.version, read.ring) == (2, b"\2" * 8)

    def test_a_state_that_was_read_belongs_to_its_reader(self, store: StateStore) -> None:
        """A fold changes it in place; who lost against another write must not have changed what is stored."""
        store.put("u#a", known()._replace(features={"pairs:abc": {"shoes": 1.0}}), 0)
        for _ in range(2):
            pairs = store.get_many(["u#a"])["u#a"].features["pairs:abc"]
            assert pairs == {"shoes": 1.0}
            pairs["hats"] = 2.0

    def test_a_stale_write_is_a_conflict(self, store: StateStore) -> None:
        """Who read version 0 or 1 does not overwrite version 2."""
        store.put("u#a", known(), 0)
        store.put("u#a", known(), 1)
        for expected in (0, 1, 3):
            with pytest.raises(Conflict):
                store.put("u#a", known(3), expected)
        assert store.get_many(["u#a"])["u#a"].ring == b"\1" * 8

    def test_more_keys_than_one_call_takes(self, store: StateStore) -> None:
        """250 keys are read, doubled ones once, absent ones left out."""
        keys = [f"u#{number}" for number in range(250)]
        for key in keys[:230]:
            store.put(key, known(int(key[2:])), 0)
        states = store.get_many([*keys, keys[0]])
        assert set(states) == set(keys[:230])
        assert all(state.ring == bytes([int(key[2:])]) * 8 for key, state in states.items())

    def test_an_expired_state_is_absent_and_may_be_replaced(self, store: StateStore, clock: Clock) -> None:
        """Whether the store has deleted it by then or not."""
        store.put("u#a", known(), 0)
        clock.now += RETENTION_S + 1
        assert store.get_many(["u#a"]) == {}
        store.put("u#a", known(4), 0)
        assert store.get_many(["u#a"])["u#a"].ring == b"\4" * 8

    def test_several_states_are_written_together(self, store: StateStore) -> None:
        """New ones and known ones, each as its next version."""
        store.put("u#a", known(), 0)
        store.put_all([Write("u#a", known(2), 1), Write("s#1", VisitorState(merged_into="u#a"), 0)])
        states = store.get_many(["u#a", "s#1"])
        assert {key: state.version for key, state in states.items()} == {"u#a": 2, "s#1": 1}
        assert (states["u#a"].ring, states["s#1"].merged_into) == (b"\2" * 8, "u#a")

    @pytest.mark.parametrize("stale", [0, 2])
    def test_one_stale_write_refuses_them_all(self, store: StateStore, stale: int) -> None:
        """Whether it comes first or last, nothing of the others is seen afterwards."""
        store.put("u#a", known(), 0)
        store.put("u#b", known(), 0)
        writes = [Write("u#a", known(9), stale), Write("u#b", known(9), 1), Write("u#c", known(9), 0)]
        for order, place in ((writes, 0), (writes[::-1], 2)):
            with pytest.raises(Conflict) as refused:
                store.put_all(order)
            assert refused.value.places == (place,)
        states = store.get_many(["u#a", "u#b", "u#c"])
        assert {key: state.ring for key, state in states.items()} == {"u#a": b"\1" * 8, "u#b": b"\1" * 8}

    def test_as_many_as_a_login_may_link(self, store: StateStore) -> None:
        """Ninety states in one go."""
        keys = [f"s#{number}" for number in range(LARGEST_GROUP)]
        store.put_all([Write(key, known(), 0) for key in keys])
        assert set(store.get_many(keys)) == set(keys)

    def test_all_stale_writes_of_a_transaction_are_named(self, store: StateStore) -> None:
        """By their places, so that only what lost is read and folded again."""
        for key in ("u#a", "u#c"):
            store.put(key, known(), 0)
        writes = [Write(key, known(2), expected) for key, expected in (("u#a", 0), ("u#b", 0), ("u#c", 7))]
        with pytest.raises(Conflict) as refused:
            store.put_all(writes)
        assert refused.value.places == (0, 2)

    def test_an_expired_state_is_absent_in_a_transaction_too(self, store: StateStore, clock: Clock) -> None:
        """It may be replaced as one that never was; who still counts on it is refused."""
        store.put("u#a", known(), 0)
        clock.now += RETENTION_S + 1
        with pytest.raises(Conflict):
            store.put_all([Write("u#b", known(), 0), Write("u#c", known(), 1)])
        store.put_all([Write("u#a", known(5), 0), Write("u#b", known(), 0)])
        assert store.get_many(["u#a"])["u#a"].ring == b"\5" * 8

    def test_an_items_partial_is_gone_after_days(self, store: StateStore, clock: Clock) -> None:
        """It outlives the night that counts its day, and no more."""
        store.put("i#item#shard#2027-01-15", known(), 0)
        clock.now += ITEM_RETENTION_S - 10
        assert len(store.get_many(["i#item#shard#2027-01-15"])) == 1
        clock.now += 11
        assert store.get_many(["i#item#shard#2027-01-15"]) == {}


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
    with pytest.raises(StoreUnavailable):
        store.put_all([Write("u#a", known(), 0), Write("u#b", known(), 0)])
