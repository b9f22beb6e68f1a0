"""Numbered steps of long work, each with its time, and a table of them at the end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from narrows.cli.console import Console


class Steps:
    """The steps of one command; `seconds` holds the finished ones by name."""

    def __init__(self, console: Console, total: int) -> None:
        self._console, self._total = console, total
        self.seconds: dict[str, float] = {}
        self._started = time.monotonic()

    @contextmanager
    def step(self, name: str, what: str) -> Iterator[None]:
        """Announce a step, and say how long it took."""
        number = len(self.seconds) + 1
        self._console.note(f"[{number}/{self._total}] {name}: {what}")
        started = time.monotonic()
        yield
        self.seconds[name] = time.monotonic() - started
        self._console.note(f"[{number}/{self._total}] {name}: done in {self.seconds[name]:.1f} s")

    def remark(self, text: str) -> None:
        """Something that happened within the step."""
        self._console.note(f"      {text}")

    def table(self) -> None:
        """All steps with their seconds, and the whole."""
        rows = [(name, f"{seconds:8.1f}") for name, seconds in self.seconds.items()]
        rows.append(("all", f"{time.monotonic() - self._started:8.1f}"))
        self._console.table(("step", " seconds"), rows)
