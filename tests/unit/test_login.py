"""A session becomes its user's exactly once, whoever handles its events, in any order, and dies at it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from narrows.adapters.memory import MemoryStateStore
from narrows.events import Event, session_key, user_key
from narrows.features.login import StateFeatures, advance
from narrows.features.registry import FeatureSet
from narrows.features.ring import RING, length
from narrows.features.rounds import LARGEST_GROUP
from narrows.features.state import Arrival, VisitorState, Write
from narrows.visitor import Visitor, as_one
from tests.stream_model import T0, Poller, Shards, Tape, declared

COUNTS = ("visitor", "user", "session")
FEATURES = FeatureSet(
    [
        *(declared(f"by_{scope}", "count", scope=scope) for scope in COUNTS),
        *(declared(f"last_of_{scope}", "last_n", scope=scope, parameters={"keep": 50}) for scope in COUNTS),
    ]
)
KEYS = ("u#a", "u#b", "s#s1", "s#s2", "s#s3", "s#s4")
WITHOUT_SESSION = FeatureSet([declared("by_visitor", "count", scope="visitor")])


def event(number: int, user: str | None = None, session: str | None = None, **more: Any) -> Event:
    return Event(f"e{number}", "click", T0 + number, T0, user, session, f"i{number}", **more)


def arrivals(*events: Event, shard: str = "shard-0", start: int = 1) -> list[Arrival]:
    return [Arrival(shard, start + place, one) for place, one in enumerate(events)]


def counted(state: VisitorState) -> dict[str, float]:
    return {name: FEATURES.read(state.features, T0)[f"by_{name}"] for name in COUNTS}


@dataclass
class Table:
    """Stored states, and a fold of a batch into them as one handler without rivals does it."""

    states: dict[str, VisitorState]
    features: FeatureSet = FEATURES
    groups: int = 0

    def take(self, batch: Sequence[Arrival]) -> list[set[str]]:
        groups = advance(batch, self.states, StateFeatures.of(self.features))
        for group in groups:
            for key, state in group.items():
                self.states[key] = state._replace(version=state.version + 1)
        return [set(group) for group in groups]


def test_what_was_anonymous_moves_into_the_user() -> None:
    """The visitor's part goes over with its do-not-show list; what is the session's own stays."""
    table = Table({})
    hidden = replace(event(9, session="s"), event_type="do_not_show", item_id="bad")
    table.take(arrivals(event(1, session="s"), event(2, session="s"), hidden))
    assert counted(table.states["s#s"]) == {"visitor": 2.0, "user": 0.0, "session": 2.0}
    assert table.take(arrivals(event(3, "u", "s"), start=4)) == [{"u#u", "s#s"}]
    user, session = table.states["u#u"], table.states["s#s"]
    assert counted(user) == {"visitor": 3.0, "user": 1.0, "session": 0.0}
    assert counted(session) == {"visitor": 0.0, "user": 0.0, "session": 3.0}
    assert [item for _, item, _ in FEATURES.history(user.features)] == ["i1", "i2", "i3"]
    assert (session.merged_into, user.merged) == ("u#u", ("s#s",))
    assert (dict(user.do_not_show), dict(session.do_not_show)) == ({"bad": T0 + 9}, {})
    assert user.applied == {"shard-0": 4, "shard-0|s#s": 3}
    assert session.applied == {"shard-0": 3, "shard-0|u#u": 4}


def test_a_second_login_changes_nothing() -> None:
    """Neither the same event again, nor another one of the same user and session."""
    table = Table({})
    table.take(arrivals(event(1, session="s"), event(2, "u", "s")))
    before = dict(table.states)
    assert table.take(arrivals(event(1, session="s"), event(2, "u", "s"))) == []
    assert table.states == before
    assert table.take(arrivals(event(3, "u", "s"), start=3)) == [{"u#u"}, {"s#s"}]
    assert counted(table.states["u#u"])["visitor"] == 3.0


def test_late_anonymous_events_are_redirected() -> None:
    """They count for the user, in one transaction with the session's mark, and once."""
    table = Table({})
    table.take(arrivals(event(1, "u", "s"), shard="shard-9"))
    late = arrivals(event(2, session="s"), event(3, session="s"))
    assert table.take(late) == [{"u#u", "s#s"}]
    assert table.take(late) == []
    assert counted(table.states["u#u"]) == {"visitor": 3.0, "user": 1.0, "session": 0.0}
    assert counted(table.states["s#s"]) == {"visitor": 0.0, "user": 0.0, "session": 3.0}


def test_the_second_user_of_a_session_gets_what_comes_later() -> None:
    """What was anonymous went to the first; nothing goes twice."""
    table = Table({})
    for number, one in enumerate((event(1, session="s"), event(2, "a", "s"), event(3, "b", "s"))):
        table.take(arrivals(one, start=number + 1))
    assert table.states["s#s"].merged_into == "u#b"
    table.take(arrivals(event(4, session="s"), start=4))
    visitors = {key: counted(state)["visitor"] for key, state in table.states.items()}
    assert visitors == {"u#a": 2.0, "u#b": 2.0, "s#s": 0.0}


def test_without_features_of_sessions_a_known_session_costs_no_write() -> None:
    """Only the login writes it."""
    table = Table({}, WITHOUT_SESSION)
    assert table.take(arrivals(event(1, "u", "s"))) == [{"u#u", "s#s"}]
    assert table.take(arrivals(event(2, "u", "s"), start=2)) == [{"u#u"}]


def test_a_robots_or_unconsented_event_logs_nobody_in() -> None:
    """It moves a mark that stands, and writes nothing where there is none."""
    table = Table({})
    assert table.take(arrivals(event(1, "u", "s", marks=("bot:user_agent",)))) == []
    table.take(arrivals(event(2, "u"), start=2))
    table.take(arrivals(event(3, "u", "s", marks=("bot:user_agent",)), start=3))
    assert set(table.states) == {"u#u"}
    assert (table.states["u#u"].applied, counted(table.states["u#u"])["visitor"]) == ({"shard-0": 3}, 1.0)


def test_a_session_that_expired_logs_in_again() -> None:
    """Its late events came as a new session's; the next login brings them over."""
    table = Table({})
    table.take(arrivals(event(1, "u", "s")))
    del table.states["s#s"]
    table.take(arrivals(event(2, session="s"), start=2))
    table.take(arrivals(event(3, "u", "s"), start=3))
    assert counted(table.states["u#u"])["visitor"] == 3.0
    assert table.states["u#u"].merged == ("s#s",)


def test_a_duplicate_is_known_however_many_events_of_other_keys_lie_between() -> None:
    """Each key's ring holds its own newest ids: the user's, the session's, and the user's in the session."""
    table = Table({})
    table.take(arrivals(event(1, session="s"), shard="a"))
    table.take(arrivals(*(event(number, "u", "s") for number in range(100, 100 + 3 * RING)), shard="b"))
    table.take(arrivals(event(2, session="s"), shard="a", start=2))
    table.take(
        arrivals(*(event(number, "u", "s") for number in range(1000, 1000 + RING)), shard="b", start=900)
    )
    before = {key: counted(state) for key, state in table.states.items()}
    table.take(arrivals(event(1, session="s"), event(2, session="s"), shard="a", start=3))
    table.take(arrivals(event(1000, "u", "s"), event(999 + RING, "u", "s"), shard="b", start=2000))
    assert {key: counted(state) for key, state in table.states.items()} == before
    assert before["u#u"]["visitor"] == before["s#s"]["session"] == 4 * RING + 2
    assert length(table.states["u#u"].ring) == length(table.states["s#s"].ring_through) == RING
    assert table.states["u#u"].ring_through == b""


def test_a_login_between_two_reads_counts_once() -> None:
    """The user's state is read after it and the session's before: the session's visitor part is left out."""
    table = Table({})
    table.take(arrivals(event(1, session="s"), event(2, session="s")))
    torn = table.states["s#s"]
    table.take(arrivals(event(3, "u", "s"), start=3))
    for session in (torn, table.states["s#s"]):
        reading = as_one(Visitor(table.states["u#u"], session), "u#u", "s#s", FEATURES)
        assert counted(reading.state)["visitor"] == 3.0
        assert set(reading.applied["s#s"]) <= {"shard-0|s#s", "shard-0|u#u"}
    assert as_one(Visitor(None, torn), None, "s#s", FEATURES).applied == {"s#s": {"shard-0": "2"}}


def test_a_batch_that_links_more_than_a_transaction_takes_is_cut() -> None:
    """A user with 250 new sessions in one batch: every one of them merged, no transaction too large."""
    sizes: list[int] = []

    class Counting(MemoryStateStore):
        def put_all(self, writes: Sequence[Write]) -> None:
            sizes.append(len(writes))
            super().put_all(writes)

    shards, store = Shards(1, 1), Counting(clock=lambda: T0)
    for number in range(250):
        shards.put(event(number, "u", f"s{number}"))
    Poller(shards, store, StateFeatures.of(FEATURES), Tape([]), batch=1000).run()
    state = store.get_many(["u#u"])["u#u"]
    assert counted(state)["visitor"] == 250.0
    assert max(sizes) <= LARGEST_GROUP
    assert store.get_many(["s#s7"])["s#s7"].merged_into == "u#u"


class MarkedStore(MemoryStateStore):
    """Checks at every write that a state holds exactly the events that its marks tell."""

    def __init__(self, shards: Shards) -> None:
        super().__init__(clock=lambda: T0)
        self.shards = shards

    def put_all(self, writes: Sequence[Write]) -> None:
        super().put_all(writes)
        for write in writes:
            assert told(write.key, write.state, self.shards) == held(write.state)


def told(key: str, state: VisitorState, shards: Shards) -> dict[str, set[str]]:
    """The items of each scope's events, from the marks and the stream's own record alone."""
    found: dict[str, set[str]] = {scope: set() for scope in COUNTS}
    for shard, sequence, one in shards.events:
        origin = one.visitor_key
        own = origin == key and sequence <= state.applied.get(shard, 0)
        through = sequence <= state.applied.get(f"{shard}|{origin}", 0)
        item = str(one.item_id)
        if key.startswith("u#"):
            if own or (through and origin.startswith("s#")):
                found["visitor"].add(item)
            if own:
                found["user"].add(item)
        elif session_key(one.session_id or "") == key and (own or through):
            found["session"].add(item)
            if own and state.merged_into is None:
                found["visitor"].add(item)
    return found


def held(state: VisitorState) -> dict[str, set[str]]:
    """The items of each scope's events as the state holds them; every event has an item of its own."""
    lists = FEATURES.lists(state.features, T0 + 1e6)
    found = {scope: set(lists[f"last_of_{scope}"]) for scope in COUNTS}
    assert {scope: float(len(items)) for scope, items in found.items()} == counted(state)
    return found


Who = tuple[str | None, str | None]


def traffic(
    whos: Sequence[Who], doubles: Sequence[int], splits: Sequence[int], shards: Shards
) -> list[Event]:
    """One event of each, some sent twice within three events, with shards split on the way."""
    events = [event(number, user, session) for number, (user, session) in enumerate(whos)]
    for number, one in enumerate(events):
        if number in splits and len(shards.open) < 5:
            shards.split(number)
        shards.put(one)
        if number - 2 in doubles and number >= 2:
            shards.put(events[number - 2])
    return events


def run(shards: Shards, tape: Sequence[int], lanes_batch: int) -> tuple[MarkedStore, Poller]:
    store = MarkedStore(shards)
    poller = Poller(shards, store, StateFeatures.of(FEATURES), Tape(tape), batch=lanes_batch)
    poller.run()
    return store, poller


def answers(store: MemoryStateStore, keys: Sequence[str]) -> dict[str, dict[str, float]]:
    states = store.get_many(keys)
    return {key: counted(states.get(key, VisitorState())) for key in keys}


sessions_of_one = st.sampled_from(
    [(None, "s1"), ("a", "s1"), (None, "s2"), ("b", "s2"), ("a", None), (None, "s3"), ("b", "s4")]
)
sessions_of_two = st.sampled_from([(None, "s1"), ("a", "s1"), ("b", "s1"), (None, "s2"), ("b", "s2")])
tapes = st.lists(st.integers(0, 11), max_size=250)
numbers = st.lists(st.integers(0, 30), max_size=6)


@settings(max_examples=150)
@given(st.lists(sessions_of_one, max_size=25), tapes, numbers, numbers, st.integers(1, 3), st.integers(1, 5))
def test_any_interleaving_ends_in_the_batch_answer(
    whos: list[Who], tape: list[int], doubles: list[int], splits: list[int], lanes: int, batch: int
) -> None:
    """Handlers of one shard's lanes take turns, die, live on when they are given up, and get batches again.

    At every write the state holds what its marks tell; in the end each event counts once where it belongs.
    """
    shards = Shards(2, lanes)
    events = traffic(whos, doubles, splits, shards)
    store, _ = run(shards, tape, batch)
    expected: dict[str, Counter[str]] = {key: Counter() for key in KEYS}
    owner = {session_key(one.session_id): one.visitor_key for one in events if one.user_id and one.session_id}
    for one in events:
        expected[owner.get(one.visitor_key, one.visitor_key)]["visitor"] += 1
        expected[one.visitor_key]["user"] += 1 if one.user_id else 0
        if one.session_id:
            expected[session_key(one.session_id)]["session"] += 1
    assert answers(store, KEYS) == {
        key: {scope: float(counts[scope]) for scope in COUNTS} for key, counts in expected.items()
    }


@settings(max_examples=60)
@given(st.lists(sessions_of_two, max_size=20), tapes, numbers, st.integers(1, 3))
def test_with_two_users_in_a_session_every_event_is_somewhere_once(
    whos: list[Who], tape: list[int], doubles: list[int], lanes: int
) -> None:
    """Who gets an anonymous event depends on whose login came first; that one gets it does not."""
    shards = Shards(1, lanes)
    events = traffic(whos, doubles, (), shards)
    store = MemoryStateStore(clock=lambda: T0)
    Poller(shards, store, StateFeatures.of(FEATURES), Tape(tape), batch=4).run()
    found = answers(store, KEYS)
    assert sum(one["visitor"] for one in found.values()) == len(events)
    for user in ("a", "b"):
        assert found[user_key(user)]["user"] == sum(one.user_id == user for one in events)
    for session in ("s1", "s2"):
        assert found[session_key(session)]["session"] == sum(one.session_id == session for one in events)


def test_the_interleavings_do_kill() -> None:
    """A tape of all choices kills handlers at their operations; else the properties would prove little."""
    shards = Shards(2, 2)
    traffic([("a", "s1"), (None, "s1"), ("b", "s2"), (None, "s2")] * 10, [3, 8], [7], shards)
    _, poller = run(shards, [number * 7 % 12 for number in range(400)], 3)
    assert poller.deaths > 10
