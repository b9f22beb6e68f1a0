"""An item's partials: every event on it once, although batches come again, from all shards and days."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from narrows.adapters.memory import MemoryDeadLetters, MemoryStateStore
from narrows.errors import Conflict
from narrows.events import Event, to_record
from narrows.features.items import days_between, item_events, item_states, streamed
from narrows.features.login import StateFeatures
from narrows.features.registry import FeatureSet
from narrows.features.ring import RING
from narrows.features.state import Write
from narrows.features.stream import Outcome, StreamRecord, update_features
from tests.stream_model import T0, Inline, declared

DAY_S = 86_400.0
RATE = {"per": ("impression",), "prior_successes": 0.0, "prior_trials": 1e-9}
FEATURES = FeatureSet(
    [
        declared("clicks", "count", "item", freshness_s=300.0),
        declared("click_rate", "smoothed_rate", "item", freshness_s=300.0, parameters=RATE),
        declared("clicks_nightly", "count", "item"),
    ]
)
PARTS = StateFeatures.of(FEATURES)


def event(number: int, kind: str = "click", at: float = T0, **more: Any) -> Event:
    given: dict[str, Any] = {"user_id": f"u{number % 7}", "item_id": "i1"} | more
    return Event(f"e{number}", kind, at, at, **given)


def shown(number: int, *items: str) -> Event:
    return event(number, "impression", item_id=None, impression=items)


def deliver(store: MemoryStateStore, *events: Event, shard: str = "a", start: int = 1) -> Outcome:
    records = [
        StreamRecord(shard, str(start + place), json.dumps(to_record(one)).encode())
        for place, one in enumerate(events)
    ]
    return update_features(records, store, PARTS, dead_letters=MemoryDeadLetters(), executor=Inline())


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"received_at": 1e300}, "received_at"),
        ({"received_at": -1e300}, "received_at"),
        ({"received_at": 3e11}, "received_at"),
        ({"sent_at": T0 * 1000, "received_at": T0 * 1000}, "sent_at"),
        ({"sent_at": 1e300}, "sent_at"),
        ({"sent_at": T0 + 301}, "sent_at"),
        ({"user_id": "\ud800"}, "user_id"),
        ({"item_id": "\udfff"}, "item_id"),
        ({"item_id": "i" * 257}, "item_id"),
        ({"impression": ["\ud800"], "item_id": None}, "impression"),
    ],
    ids=lambda value: str(value)[:30].encode("ascii", "backslashreplace").decode(),
)
def test_a_record_that_cannot_be_folded_harms_only_itself(changes: dict[str, Any], field: str) -> None:
    """It goes to the dead letters with its reason; what comes before and after it in the batch is folded."""
    sent = [to_record(event(1)), {**to_record(event(2)), **changes}, to_record(event(3))]
    records = [StreamRecord("a", str(place), json.dumps(one).encode()) for place, one in enumerate(sent)]
    store, letters = table(), MemoryDeadLetters()
    outcome = update_features(records, store, PARTS, dead_letters=letters, executor=Inline())
    assert (outcome.failures, outcome.given_up, values(store)["clicks"]) == ([], 1, 2.0)
    (letter,) = letters.letters
    assert letter.record == records[1]
    assert letter.reason.startswith(f"malformed: field '{field}'")


def values(
    store: MemoryStateStore, item: str = "i1", *, since: float = T0, now: float = T0
) -> dict[str, float]:
    states = item_states(store, [item], shards=["a", "b"], since=since, now=now, feature_set=PARTS.item)
    return PARTS.item.read(states[item], now)


def table() -> MemoryStateStore:
    return MemoryStateStore(clock=lambda: T0)


def test_only_what_promises_to_be_fresh_is_streamed() -> None:
    """The others wait for the night, and cost no write until then."""
    assert streamed(FEATURES).names == ("clicks", "click_rate")
    assert streamed(FeatureSet([declared("clicks_nightly", "count", "item")])).features == ()


def test_an_impression_is_one_of_every_item_that_it_showed() -> None:
    """Each once, whatever the list repeats; an event on an item is that item's, whatever it lists."""
    assert [(one.item_id, one.impression) for one in item_events(shown(1, "a", "b", "a"))] == [
        ("a", ()),
        ("b", ()),
    ]
    clicked = event(2, impression=("x", "y"))
    assert item_events(clicked) == [replace(clicked, impression=())]
    assert item_events(event(3, item_id=None)) == []


def test_clicks_and_impressions_meet_at_the_item() -> None:
    """Two of four impressions of i1 were clicked, one of two of i2."""
    store = table()
    deliver(
        store, shown(1, "i1", "i2"), shown(2, "i1"), shown(3, "i1", "i2"), shown(4, "i1"), event(5), event(6)
    )
    deliver(store, event(7, item_id="i2"), start=10)
    assert round(values(store)["click_rate"], 6) == 0.5
    assert round(values(store, "i2")["click_rate"], 6) == 0.5


def test_one_write_for_an_item_in_a_batch_and_none_for_what_no_feature_takes() -> None:
    """Six events of two visitors on one item: two visitors' states and one partial."""
    clicks = [event(number * 7 + number % 2) for number in range(6)]
    outcome = deliver(table(), *clicks)
    assert (outcome.events, outcome.keys, outcome.writes) == (6, 3, 3)
    store = table()
    deliver(store, event(1, "view"))
    assert not [key for key in store._rows if key.startswith("i#")]


def test_a_batch_that_comes_again_changes_nothing() -> None:
    """Neither whole, nor cut elsewhere, nor mixed with new events; a producer's duplicate neither."""
    store = table()
    batch = [event(number) for number in range(RING)]
    deliver(store, *batch)
    deliver(store, *batch)
    deliver(store, *batch[50:], event(1_000), start=51)
    deliver(store, event(1_000), start=900)
    assert values(store)["clicks"] == RING + 1.0


def test_shards_and_days_are_merged_when_read() -> None:
    """From the day of `since` on, by the day on which an event arrived."""
    store = table()
    deliver(store, event(1), event(2), shard="a")
    deliver(store, event(3), shard="b")
    deliver(store, event(4, at=T0 + DAY_S), shard="b", start=9)
    assert values(store)["clicks"] == 3.0
    assert values(store, now=T0 + DAY_S)["clicks"] == 4.0
    assert values(store, since=T0 + DAY_S, now=T0 + DAY_S)["clicks"] == 1.0
    assert values(store, "unknown")["clicks_missing"] == 1.0


def test_days_are_those_of_utc() -> None:
    """Both ends count."""
    assert days_between(1_700_000_000.0, 1_700_000_000.0 + DAY_S) == ["2023-11-14", "2023-11-15"]


class Contested(MemoryStateStore):
    """Somebody else is always quicker at partials, so many times."""

    def __init__(self, times: int) -> None:
        super().__init__(clock=lambda: T0)
        self.times = times

    def put_all(self, writes: Sequence[Write]) -> None:
        if self.times and writes[0].key.startswith("i#"):
            self.times -= 1
            raise Conflict("somebody else wrote first")
        super().put_all(writes)


def test_a_lost_race_is_run_again_and_an_endless_one_is_reported() -> None:
    """The visitor's state is in either way; a second delivery brings the partial up and nothing twice."""
    store = Contested(2)
    assert deliver(store, event(1)).failures == []
    assert values(store)["clicks"] == 1.0
    store = Contested(99)
    [failure] = deliver(store, event(1)).failures
    assert (failure.sequence, failure.reason) == ("1", "conflict")
    store.times = 0
    assert deliver(store, event(1)).failures == []
    assert values(store)["clicks"] == 1.0


def test_robots_and_dislikes_count_for_no_item() -> None:
    """As for no visitor."""
    store = table()
    deliver(store, event(1, marks=("bot:user_agent",)), event(2, "dislike"), event(3, consent=False))
    assert values(store)["clicks_missing"] == 1.0
