"""Reads a visitor in one parallel round, and stops asking a store that does not answer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, wait
from typing import Any

from narrows.features.codec import UnreadableState
from narrows.features.state import StateStore, VisitorState
from narrows.visitor import SlateStore, Visitor

UNREADABLE = UnreadableState.__name__
"""A failure of one visitor's bytes, not of the store that gave them."""


class Breaker:
    """Open after `failures` in a row; then one probe in `pause_s` seconds is let through until one succeeds.

    `clock` is in seconds.
    """

    def __init__(self, *, clock: Callable[[], float], failures: int = 5, pause_s: float = 3.0) -> None:
        self._clock = clock
        self._limit = failures
        self._pause_s = pause_s
        self._failures = 0
        self._probe_at = float("-inf")
        self._lock = threading.Lock()

    def allows(self) -> bool:
        """Whether to ask now; True for a probe is given once in a pause."""
        with self._lock:
            if self._failures < self._limit:
                return True
            if self._clock() < self._probe_at:
                return False
            self._probe_at = self._clock() + self._pause_s
            return True

    def succeeded(self) -> None:
        """The dependency answered: close."""
        with self._lock:
            self._failures = 0

    def failed(self) -> None:
        """The dependency was late or refused."""
        with self._lock:
            self._failures += 1
            if self._failures == self._limit:
                self._probe_at = self._clock() + self._pause_s


class StoredVisitors:
    """The visitor reader over a state store and a slate store; `clock` is monotonic, in seconds.

    User and session state share one breaker, for they share one table.
    """

    def __init__(
        self, states: StateStore, slates: SlateStore, *, executor: Executor, clock: Callable[[], float]
    ) -> None:
        self._states = states
        self._slates = slates
        self._executor = executor
        self._state_breaker = Breaker(clock=clock)
        self._slate_breaker = Breaker(clock=clock)

    def read(
        self, user_key: str | None, session_key: str | None, surface: str, *, now: float, timeout_s: float
    ) -> Visitor:
        failures: dict[str, str] = {}
        futures: dict[str, Future[Any]] = {}
        if (user_key or session_key) and self._allowed(self._state_breaker, ("user", "session"), failures):
            for name, key in (("user", user_key), ("session", session_key)):
                if key:
                    futures[name] = self._executor.submit(self._state, key)
        slate_key = user_key or session_key
        if slate_key and self._allowed(self._slate_breaker, ("slates",), failures):
            futures["slates"] = self._executor.submit(self._slates.read, slate_key, surface, now=now)
        wait(futures.values(), timeout=max(0.0, timeout_s))
        found = {name: self._outcome(name, future, failures) for name, future in futures.items()}
        self._judge(futures, failures)
        asked = {"user": user_key, "session": session_key, "slates": slate_key}
        failures = {name: reason for name, reason in failures.items() if asked[name]}
        return Visitor(found.get("user"), found.get("session"), found.get("slates"), failures)

    def _state(self, key: str) -> VisitorState | None:
        return self._states.get_many([key]).get(key)

    @staticmethod
    def _allowed(breaker: Breaker, names: tuple[str, ...], failures: dict[str, str]) -> bool:
        allowed = breaker.allows()
        if not allowed:
            failures.update(dict.fromkeys(names, "circuit_open"))
        return allowed

    @staticmethod
    def _outcome(name: str, future: Future[Any], failures: dict[str, str]) -> Any:
        if not future.done():
            future.cancel()
            failures[name] = "timeout"
            return None
        try:
            return future.result()
        except Exception as error:  # noqa: BLE001  # whatever a store raises, the visitor is only unknown
            failures[name] = type(error).__name__
            return None

    def _judge(self, futures: dict[str, Future[Any]], failures: dict[str, str]) -> None:
        for breaker, names in (
            (self._state_breaker, ("user", "session")),
            (self._slate_breaker, ("slates",)),
        ):
            asked = [name for name in names if name in futures]
            if any(failures.get(name, UNREADABLE) != UNREADABLE for name in asked):
                breaker.failed()
            elif asked:
                breaker.succeeded()
