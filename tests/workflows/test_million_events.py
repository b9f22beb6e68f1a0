"""The state that the stream leaves is the batch's answer, whatever happens to the stream on its way.

5% of the events are sent twice. Shards split while they are read. Handlers die before and after a write, live
on when they are believed dead, get their batches again, cut elsewhere each time. Two handlers share a shard.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from narrows.adapters.dynamodb import DynamoStateStore
from narrows.adapters.memory import MemoryStateStore
from narrows.events import Event, session_key
from narrows.features.login import StateFeatures
from narrows.features.registry import FeatureSet
from narrows.features.state import StateStore, VisitorState
from tests.contract.tables import create_table
from tests.servers import on
from tests.stream_model import T0, Poller, Shards, Tape, declared

SCOPES = ("visitor", "user", "session")
DAY = {"parameters": {"half_life_s": 86_400.0}}
FEATURES = FeatureSet(
    [
        *(declared(f"clicks_{scope}", "count", scope) for scope in SCOPES),
        *(declared(f"spend_{scope}", "decayed_sum", scope, value="price", **DAY) for scope in SCOPES),
        declared("last", "last_n", parameters={"keep": 20}),
        declared("interest", "count", "visitor x category", parameters={"keep": 8}),
        declared("interest_1d", "decayed_count", "session x category", **DAY),
    ]
)
PARTS = StateFeatures.of(FEATURES)
CATEGORIES = [f"category-{number}" for number in range(12)]


class Endless(Tape):
    """Choices without end, from a seed."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng

    def choose(self, among: int) -> int:
        return self.rng.randrange(among)


def events_of(count: int, visitors: int, rng: random.Random) -> list[Event]:
    """Visitors with sessions that begin anonymous; most log in midway, some keep sending without a user."""
    found = []
    for number in range(count):
        busy = min(int(rng.paretovariate(0.7)) - 1, visitors - 1)
        visitor = busy if rng.random() < 0.3 else rng.randrange(visitors)
        session = f"s{visitor}-{number * 3 // count}"
        logged_in = visitor % 4 and rng.random() < (number * 3 / count) % 1
        properties = {"category": rng.choice(CATEGORIES), "price": round(rng.lognormvariate(3, 1), 2)}
        found.append(
            Event(
                f"e{number}",
                "click",
                T0 + number / 50 - rng.choice((0, 0, 0, 5_000)),
                T0 + number / 50,
                user_id=f"u{visitor}" if logged_in else None,
                session_id=session if rng.random() < 0.95 or not logged_in else None,
                item_id=f"i{rng.randrange(5_000)}",
                properties=properties,
            )
        )
    return found


def stream_of(events: Sequence[Event], rng: random.Random) -> Shards:
    """Two shards, read by two handlers each, that split four times; every twentieth event comes again."""
    shards, again = Shards(2, 2), defaultdict(list)
    splits = {len(events) * part // 5 for part in range(1, 5)}
    for number, event in enumerate(events):
        if number in splits:
            shards.split(rng.randrange(9))
        shards.put(event)
        if rng.random() < 0.05:
            again[number + rng.randrange(60)].append(event)
        for one in again.pop(number, ()):
            shards.put(one)
    return shards


def batch_answer(events: Sequence[Event]) -> dict[str, Any]:
    """The features of each key, each scope's events folded in one go."""
    owner = {session_key(one.session_id): one.visitor_key for one in events if one.user_id and one.session_id}
    of: dict[str, dict[str, list[Event]]] = defaultdict(lambda: defaultdict(list))
    for one in events:
        of[owner.get(one.visitor_key, one.visitor_key)]["visitor"].append(one)
        if one.user_id:
            of[one.visitor_key]["user"].append(one)
        if one.session_id:
            of[session_key(one.session_id)]["session"].append(one)
    parts = {scope: FEATURES.scoped(scope) for scope in SCOPES}

    def folded(scopes: Mapping[str, list[Event]]) -> dict[str, Any]:
        return {
            name: one for scope in scopes for name, one in parts[scope].add_all({}, scopes[scope]).items()
        }

    return {key: values(folded(scopes)) for key, scopes in of.items()}


def values(state: Mapping[str, Any]) -> tuple[dict[str, float], Mapping[str, Any]]:
    return FEATURES.read(state, T0 + 1e5), FEATURES.lists(state, T0 + 1e5)


def assert_same(found: Mapping[str, VisitorState], expected: Mapping[str, Any]) -> None:
    """Lists and counts exactly, decayed sums to 1e-9."""
    for key, (numbers, lists) in expected.items():
        got_numbers, got_lists = values(found[key].features)
        assert got_lists == lists, key
        assert got_numbers == pytest.approx(numbers, rel=1e-9), key


def run(store: StateStore, events: Sequence[Event], *, batch: int, odds: int, rng: random.Random) -> Poller:
    """Everything through the stream; returns who drove it, once every handler is gone."""
    poller = Poller(stream_of(events, rng), store, PARTS, Endless(rng), batch=batch, odds=odds)
    poller.run()
    return poller


def check(count: int, visitors: int, batch: int) -> None:
    rng = random.Random(11)
    events = events_of(count, visitors, rng)
    store = MemoryStateStore(clock=lambda: T0)
    poller = run(store, events, batch=batch, odds=batch * 5, rng=rng)
    expected = batch_answer(events)
    assert poller.deaths > 5
    assert poller.repeated > 5
    assert_same(store.get_many(list(expected)), expected)


def test_fifty_thousand_events_leave_the_batch_answer() -> None:
    """Users, sessions and pairs, at the size of every test run."""
    check(50_000, visitors=400, batch=1_000)


@pytest.mark.slow
@pytest.mark.timeout(3_000)
def test_a_million_events_leave_the_batch_answer() -> None:
    """The same at full size."""
    check(1_000_000, visitors=1_500, batch=5_000)


@pytest.fixture(params=["moto", pytest.param("dynamodb_local", marks=pytest.mark.local)])
def table(request: pytest.FixtureRequest) -> DynamoStateStore:
    client = on(request).client("dynamodb")
    return DynamoStateStore(client, create_table(client, "state"), clock=lambda: T0, consistent=True)


def test_the_same_through_real_transactions(table: DynamoStateStore) -> None:
    """Two thousand events against DynamoDB's own conditions and transactions."""
    rng = random.Random(5)
    events = events_of(2_000, 40, rng)
    poller = run(table, events, batch=120, odds=150, rng=rng)
    expected = batch_answer(events)
    assert poller.deaths > 5
    assert_same(table.get_many(list(expected)), expected)
