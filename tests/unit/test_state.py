"""A visitor's state takes every event exactly once, however the stream delivers it."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrows.adapters.memory import MemoryDeadLetters, MemoryStateStore
from narrows.errors import Conflict, StoreUnavailable
from narrows.events import Event, to_record
from narrows.features.codec import UnreadableState, decode, encode
from narrows.features.login import StateFeatures
from narrows.features.registry import FeatureSet
from narrows.features.ring import RING, grown, knows, length
from narrows.features.state import (
    Arrival,
    VisitorState,
    Write,
    fold,
)
from narrows.features.stream import DeadLetter, DeadLetters, Outcome, StreamRecord, update_features
from narrows.visitor import Reading, Visitor, as_one
from tests.stream_model import T0, declared

FEATURES = FeatureSet(
    [
        declared("clicks_7d", "decayed_count", parameters={"half_life_s": 604_800.0}),
        declared("clicks", "count"),
        declared("last_items", "last_n", parameters={"keep": 3}),
    ]
)
BASE = 49_590_338_271_490_256_608_559_692_538_361_571_095_921_575_989_136_588_898


def arrived(number: int, *, name: str = "", shard: str = "shard-0", **changes: object) -> Arrival:
    event = Event(name or f"e{number}", "click", T0 + number, T0 + number, user_id="u", item_id=f"i{number}")
    return Arrival(shard, BASE + number, replace(event, **changes))  # type: ignore[arg-type]


def clicks(state: VisitorState) -> float:
    return FEATURES.read(state.features, T0)["clicks"]


@given(count=st.integers(1, 30), seed=st.integers(0, 1000))
def test_batch_boundaries_and_replays_change_nothing(count: int, seed: int) -> None:
    """Replayed, overlapping and moved batches end in the state of one pass over the events."""
    events, random_ = [arrived(n) for n in range(count)], random.Random(seed)
    once = fold(VisitorState(), events, FEATURES)
    state, done = VisitorState(), 0
    while done < count:
        start = random_.randint(0, done)
        done = min(count, done + random_.randint(0, 7))
        state = fold(state, events[start:done], FEATURES)
    assert clicks(state) == count
    assert FEATURES.history(state.features) == FEATURES.history(once.features)
    assert state.applied == once.applied == {"shard-0": BASE + count - 1}


def test_sequence_numbers_are_compared_as_numbers() -> None:
    """10 comes after 9, though "10" sorts before "9"."""
    nine, ten = arrived(9 - BASE), arrived(10 - BASE)
    assert (nine.sequence, ten.sequence) == (9, 10)
    assert clicks(fold(fold(VisitorState(), [nine], FEATURES), [ten], FEATURES)) == 2


def test_each_shard_has_its_own_mark() -> None:
    """After a split, the child's lower sequence numbers are not taken for old ones."""
    state = fold(VisitorState(), [arrived(100)], FEATURES)
    assert clicks(fold(state, [arrived(5, shard="shard-1")], FEATURES)) == 2


def test_a_producers_duplicate_is_dropped() -> None:
    """The same event id under another sequence number counts once while it is in the ring."""
    state = fold(VisitorState(), [arrived(1, name="same"), arrived(2, name="same")], FEATURES)
    assert clicks(state) == 1
    assert clicks(fold(state, [arrived(3, name="same")], FEATURES)) == 1


def test_the_ring_is_a_window() -> None:
    """It holds the newest ids only, so that the state stays small."""
    state = fold(VisitorState(), [arrived(n) for n in range(RING + 50)], FEATURES)
    assert length(state.ring) == RING
    assert len(encode(state)) < 6_000


def test_a_visitor_can_ask_not_to_see_an_item() -> None:
    """It goes on the list and into no feature."""
    events = [
        arrived(1, event_type="do_not_show", item_id="bad"),
        arrived(2, event_type="dislike", item_id="worse"),
    ]
    state = fold(VisitorState(), events, FEATURES)
    assert state.do_not_show == {"bad": T0 + 1, "worse": T0 + 2}
    assert FEATURES.history(state.features) == []


def test_an_event_without_consent_is_stepped_over() -> None:
    """It moves the shard's mark and nothing else."""
    state = fold(VisitorState(), [arrived(1, consent=False)], FEATURES)
    assert (state.features, state.ring) == ({}, b"")
    assert state.applied == {"shard-0": BASE + 1}


@given(st.integers(0, 40))
def test_what_is_stored_is_read_back(count: int) -> None:
    """A state survives its own bytes, big sequence numbers included."""
    state = fold(VisitorState(version=3), [arrived(n) for n in range(count)], FEATURES)
    assert decode(encode(state)) == state


@pytest.mark.parametrize(
    "data", [b"", b"NV9abc", b"NV1abc", encode(VisitorState())[:-3], b"\x00" * 40], ids=range(5)
)
def test_foreign_bytes_are_refused(data: bytes) -> None:
    """A newer format or damage is an error of its own class, never an empty visitor."""
    with pytest.raises(UnreadableState):
        decode(data)


def test_user_and_session_are_read_as_one() -> None:
    """What was done before the login counts together with what was done after."""
    user = fold(VisitorState(), [arrived(1), arrived(2)], FEATURES)
    hidden = arrived(3, event_type="do_not_show", item_id="bad")
    session = fold(VisitorState(), [arrived(9), hidden], FEATURES)
    both = as_one(Visitor(user, session), "u#u", "s#s", FEATURES)
    assert clicks(both.state) == 3
    assert set(both.state.do_not_show) == {"bad"}
    assert both.applied == {"u#u": {"shard-0": str(BASE + 2)}, "s#s": {"shard-0": str(BASE + 9)}}
    assert as_one(Visitor(), "u#u", None, FEATURES) == Reading()


class FlakyStore(MemoryStateStore):
    """Refuses writes of some keys, by the errors given for them, one error a write."""

    def __init__(self, refusals: Mapping[str, Sequence[Exception]]) -> None:
        super().__init__(clock=lambda: T0)
        self.refusals = {key: list(errors) for key, errors in refusals.items()}

    def put(self, key: str, state: VisitorState, expected_version: int) -> None:
        if self.refusals.get(key):
            raise self.refusals[key].pop(0)
        super().put(key, state, expected_version)


def in_stream(number: int, user: str = "a") -> StreamRecord:
    event = Event(f"e{number}", "click", T0 + number, T0, user_id=user, item_id="i")
    return StreamRecord("shard-0", str(BASE + number), json.dumps(to_record(event)).encode())


def deliver(
    store: MemoryStateStore, records: Sequence[StreamRecord], letters: DeadLetters | None = None
) -> Outcome:
    with ThreadPoolExecutor(4) as executor:
        return update_features(
            records,
            store,
            StateFeatures.of(FEATURES),
            dead_letters=letters or MemoryDeadLetters(),
            executor=executor,
        )


def update(store: MemoryStateStore, records: Sequence[StreamRecord]) -> list[int]:
    return [int(failure.sequence) - BASE for failure in deliver(store, records).failures]


def test_a_lost_race_is_read_and_folded_again() -> None:
    """A conflict costs one more round for that key, and no event is lost or doubled."""
    store = FlakyStore({"u#a": [Conflict(), Conflict()]})
    assert update(store, [in_stream(1), in_stream(2), in_stream(3, "b")]) == []
    assert clicks(store.get_many(["u#a"])["u#a"]) == 2


def test_a_failing_key_withholds_its_events_and_no_others() -> None:
    """All records of that key are reported; a second delivery of the batch completes exactly."""
    batch = [in_stream(1), in_stream(2, "b"), in_stream(3), in_stream(4, "b")]
    store = FlakyStore({"u#b": [StoreUnavailable("down")]})
    assert update(store, batch) == [2, 4]
    assert update(store, batch) == []
    states = store.get_many(["u#a", "u#b"])
    assert [clicks(states[key]) for key in ("u#a", "u#b")] == [2, 2]


def test_a_race_that_never_ends_is_given_up() -> None:
    """After a bounded number of rounds the key's records are reported for a retry."""
    store = FlakyStore({"u#a": [Conflict()] * 99})
    assert update(store, [in_stream(1)]) == [1]


class FullLetters:
    """Takes nothing."""

    def put(self, letters: Sequence[DeadLetter]) -> None:
        raise StoreUnavailable(f"no room for {len(letters)}")


def test_poison_is_given_up_with_its_reason_and_harms_nothing_else() -> None:
    """Bytes that are no event go to the dead letters; where these are full, the stream keeps them."""
    poison = [
        StreamRecord("shard-0", str(BASE + 2), b"\xff\x00"),
        StreamRecord("shard-0", str(BASE + 3), b'{"event_id": 1}'),
    ]
    batch, store, letters = [in_stream(1), *poison, in_stream(4)], FlakyStore({}), MemoryDeadLetters()
    outcome = deliver(store, batch, letters)
    assert (outcome.failures, outcome.given_up) == ([], 2)
    assert [one.record for one in letters.letters] == poison
    assert letters.letters[0].reason.startswith("malformed: ")
    assert "event_id" in letters.letters[1].reason
    assert clicks(store.get_many(["u#a"])["u#a"]) == 2
    kept = deliver(store, batch, FullLetters()).failures
    assert [int(one.sequence) - BASE for one in kept] == [2, 3]
    assert kept[0].reason == letters.letters[0].reason


class CountingStore(MemoryStateStore):
    """Counts the writes of each key, and the reads."""

    def __init__(self) -> None:
        super().__init__(clock=lambda: T0)
        self.writes: Counter[str] = Counter()
        self.reads = 0

    def get_many(self, keys: Sequence[str]) -> Mapping[str, VisitorState]:
        self.reads += 1
        return super().get_many(keys)

    def put_all(self, writes: Sequence[Write]) -> None:
        super().put_all(writes)
        self.writes.update(one.key for one in writes)


def test_a_batch_writes_each_key_once_and_reads_them_together() -> None:
    """300 events of 20 users and their sessions, anonymous and logged in, in any order: one write each."""
    random_, batch = random.Random(1), []
    for number in range(300):
        who, anonymous = number % 20, random_.random() < 0.5
        user = None if anonymous else f"u{who}"
        event = Event(f"e{number}", "click", T0 + number, T0, user_id=user, session_id=f"s{who}", item_id="i")
        batch.append(StreamRecord("shard-0", str(BASE + number), json.dumps(to_record(event)).encode()))
    store = CountingStore()
    outcome = deliver(store, batch)
    assert set(store.writes.values()) == {1}
    assert (outcome.events, outcome.keys, outcome.writes, outcome.together) == (300, 40, 40, 40)
    assert store.reads == 1
    again = deliver(store, batch)
    assert (again.writes, again.failures) == (0, [])
    states = store.get_many([f"u#u{number}" for number in range(20)])
    assert sum(map(clicks, states.values())) == 300


@given(st.lists(st.sampled_from([b"aaaaaaaa", b"aaaabbbb", b"bbbbaaaa"]) | st.binary(min_size=8, max_size=8)))
def test_a_ring_knows_the_newest_and_nothing_across_two_of_them(digests: list[bytes]) -> None:
    """Bytes that end one digest and begin the next are nobody's."""
    ring = grown(b"", digests)
    held = digests[-RING:]
    asked = [*digests, b"aaaaaaaa", b"aaaabbbb", b"bbbbaaaa", b"aabbbbaa"]
    assert [knows(ring, one) for one in asked] == [one in held for one in asked]
