"""A visitor is read in one round within its time, and a dead store soon costs nothing."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from narrows.adapters.memory import MemorySlateStore, MemoryStateStore
from narrows.adapters.visitors import Breaker, StoredVisitors
from narrows.errors import StoreUnavailable
from narrows.features.state import VisitorState
from narrows.visitor import Remembered, Visitor

NOW = 1_800_000_000.0


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class States(MemoryStateStore):
    """Answers, refuses or hangs, as told; counts how often it is asked."""

    def __init__(self) -> None:
        super().__init__(clock=lambda: NOW)
        self.asked = 0
        self.refuses = False
        self.hold: threading.Event | None = None

    def get_many(self, keys: Sequence[str]) -> Mapping[str, VisitorState]:
        self.asked += 1
        if self.refuses:
            raise StoreUnavailable("refused")
        if self.hold:
            self.hold.wait(5)
        return super().get_many(keys)


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as one:
        yield one


@pytest.fixture
def states() -> States:
    store = States()
    store.put("u#a", VisitorState(updated_at=1.0), 0)
    store.put("s#1", VisitorState(updated_at=2.0), 0)
    return store


def read(visitors: StoredVisitors, timeout_s: float = 2.0) -> Visitor:
    return visitors.read("u#a", "s#1", "feed", now=NOW, timeout_s=timeout_s)


def test_user_session_and_slate_are_read_together(executor: ThreadPoolExecutor, states: States) -> None:
    """Three reads at most; the slate is the user's."""
    slates = MemorySlateStore()
    remembered = Remembered(("i1",), ("i1", "i2"), NOW)
    slates.write("u#a", "feed", remembered, expires_at=NOW + 9)
    visitors = StoredVisitors(states, slates, executor=executor, clock=Clock())
    visitor = read(visitors)
    assert visitor.user is not None
    assert visitor.session is not None
    assert (visitor.user.updated_at, visitor.session.updated_at) == (1.0, 2.0)
    assert visitor.remembered == remembered
    assert visitor.failures == {}
    assert states.asked == 2


def test_a_stranger_is_no_failure(executor: ThreadPoolExecutor, states: States) -> None:
    """Nothing is known of an unknown user, and all of it could be read."""
    visitors = StoredVisitors(states, MemorySlateStore(), executor=executor, clock=Clock())
    assert visitors.read("u#new", None, "feed", now=NOW, timeout_s=2) == Visitor()
    assert visitors.read(None, None, "feed", now=NOW, timeout_s=2) == Visitor()
    assert states.asked == 1


def test_a_late_store_is_named_and_not_waited_for(executor: ThreadPoolExecutor, states: States) -> None:
    """The others' answers are used."""
    states.hold = threading.Event()
    slates = MemorySlateStore()
    slates.write("u#a", "feed", Remembered(("i1",), (), NOW), expires_at=NOW + 9)
    visitors = StoredVisitors(states, slates, executor=executor, clock=Clock())
    started = time.perf_counter()
    visitor = read(visitors, timeout_s=0.05)
    assert time.perf_counter() - started < 1.0
    states.hold.set()
    assert visitor.failures == {"user": "timeout", "session": "timeout"}
    assert visitor.remembered is not None


def test_a_dead_store_is_asked_no_more_and_found_again(executor: ThreadPoolExecutor, states: States) -> None:
    """After five failures nobody asks; after three seconds one request probes, and then all do again."""
    clock = Clock()
    visitors = StoredVisitors(states, MemorySlateStore(), executor=executor, clock=clock)
    states.refuses = True
    for _ in range(5):
        assert read(visitors).failures == {"user": "StoreUnavailable", "session": "StoreUnavailable"}
    asked = states.asked
    assert read(visitors).failures == {"user": "circuit_open", "session": "circuit_open"}
    assert states.asked == asked
    states.refuses = False
    clock.now = 3.1
    assert read(visitors).failures == {}
    assert read(visitors).failures == {}


def test_one_visitors_damaged_bytes_do_not_close_the_store(
    executor: ThreadPoolExecutor, states: States
) -> None:
    """The failure is that visitor's alone, however often it comes."""
    states._rows["u#a"] = (1, b"damaged", NOW + 1e9)
    visitors = StoredVisitors(states, MemorySlateStore(), executor=executor, clock=Clock())
    for _ in range(7):
        assert read(visitors).failures == {"user": "UnreadableState"}
    assert visitors.read("s#1", None, "feed", now=NOW, timeout_s=2).failures == {}


def test_a_row_of_another_shape_is_a_failure_and_no_crash(
    executor: ThreadPoolExecutor, states: States
) -> None:
    """Whatever a store raises, the request goes on without that part."""

    class Slates(MemorySlateStore):
        def read(self, key: str, surface: str, *, now: float) -> Remembered | None:
            raise KeyError("slate")

    visitor = read(StoredVisitors(states, Slates(), executor=executor, clock=Clock()))
    assert visitor.failures == {"slates": "KeyError"}
    assert visitor.user is not None


def test_only_one_request_probes_in_a_pause() -> None:
    """A store that comes back is not met by everybody at once."""
    clock = Clock()
    breaker = Breaker(clock=clock, failures=2, pause_s=5)
    breaker.failed()
    assert breaker.allows()
    breaker.failed()
    assert not breaker.allows()
    clock.now = 5.0
    assert [breaker.allows() for _ in range(3)] == [True, False, False]
    breaker.failed()
    clock.now = 10.0
    assert breaker.allows()
    breaker.succeeded()
    assert all(breaker.allows() for _ in range(3))
