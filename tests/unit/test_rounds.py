"""Unrelated changes share calls of the store, and none is kept back by another."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from narrows.adapters.memory import MemoryDeadLetters, MemoryStateStore
from narrows.errors import Conflict, StoreUnavailable
from narrows.events import Event, to_record
from narrows.features.login import StateFeatures
from narrows.features.registry import FeatureSet
from narrows.features.rounds import TOGETHER
from narrows.features.state import VisitorState, Write
from narrows.features.stream import Outcome, StreamRecord, update_features
from tests.stream_model import T0, declared

FEATURES = FeatureSet([declared("clicks", "count")])
USERS = 30


class Store(MemoryStateStore):
    """Keeps the sizes of what is written together; `refused` cannot be written, `silent` names no place."""

    def __init__(self, *, refused: str = "", silent: bool = False) -> None:
        super().__init__(clock=lambda: T0)
        self.together: list[int] = []
        self.refused, self.silent = refused, silent

    def put_all(self, writes: Sequence[Write]) -> None:
        self.together.append(len(writes))
        if any(one.key == self.refused for one in writes):
            raise StoreUnavailable("too large")
        try:
            super().put_all(writes)
        except Conflict as conflict:
            raise Conflict(str(conflict), () if self.silent else conflict.places) from conflict


class Overtaken(Store):
    """Somebody else writes these states after they were read for the first time."""

    def __init__(self, *keys: str, silent: bool = False) -> None:
        super().__init__(silent=silent)
        self.rivals = list(keys)
        self.lock = threading.Lock()

    def put_all(self, writes: Sequence[Write]) -> None:
        with self.lock:  # no other call comes before all rivals have written
            while self.rivals:
                MemoryStateStore.put_all(self, [Write(self.rivals.pop(), VisitorState(updated_at=1.0), 0)])
        super().put_all(writes)


def logins(store: MemoryStateStore, users: int = USERS) -> Outcome:
    """One event of each user and the user's session, which move together."""
    events = [
        Event(f"e{who}", "click", T0, T0, user_id=str(who), session_id=str(who), item_id="i")
        for who in range(users)
    ]
    records = [
        StreamRecord("shard", str(place), json.dumps(to_record(one)).encode())
        for place, one in enumerate(events)
    ]
    features = StateFeatures.of(FEATURES)
    with ThreadPoolExecutor(2) as executor:
        return update_features(records, store, features, dead_letters=MemoryDeadLetters(), executor=executor)


def counted(store: MemoryStateStore, users: int = USERS) -> list[float]:
    states = store.get_many([f"u#{who}" for who in range(users)])
    return [
        FEATURES.read(states[f"u#{who}"].features, T0)["clicks"]
        for who in range(users)
        if f"u#{who}" in states
    ]


def test_unrelated_logins_share_transactions() -> None:
    """Sixty states, two of each login, in three calls instead of thirty."""
    store = Store()
    outcome = logins(store)
    assert sorted(store.together) == [60 - 2 * TOGETHER, TOGETHER, TOGETHER]
    assert (outcome.failures, outcome.writes, outcome.together) == ([], 60, 60)
    assert counted(store) == [1.0] * USERS


def test_who_lost_a_race_is_folded_again_and_the_others_are_written() -> None:
    """Two of thirty lose: theirs are read again, and what shared their calls goes in without them."""
    store = Overtaken("s#3", "u#20")
    outcome = logins(store)
    assert (outcome.failures, outcome.writes) == ([], 60)
    assert counted(store) == [1.0] * USERS
    states = store.get_many(["u#3", "u#4", "s#3", "u#20"])
    assert [states[key].version for key in ("u#3", "u#4", "s#3", "u#20")] == [1, 1, 2, 2]


def test_a_store_that_does_not_say_who_lost_makes_all_of_the_call_go_again() -> None:
    """Nothing is lost or doubled by it."""
    store = Overtaken("s#3", silent=True)
    assert logins(store).failures == []
    assert counted(store) == [1.0] * USERS


def test_one_that_cannot_be_written_keeps_nobody_back() -> None:
    """Only its own record is reported, although eleven others shared its transaction."""
    store = Store(refused="u#5")
    outcome = logins(store)
    assert [(one.sequence, one.reason) for one in outcome.failures] == [("5", "unavailable: too large")]
    assert counted(store) == [1.0] * (USERS - 1)
    assert outcome.writes == 58
