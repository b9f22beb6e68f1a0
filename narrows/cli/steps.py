"""Numbered steps of long work, each with its time, and a table of them at the end."""

from __future__ import annotations

import time

from narrows.cli.console import Console


class Steps:
    """The steps of one command, one after the other; `seconds` holds the finished ones by name."""

    def __init__(self, console: Console, total: int) -> None:
        self._console, self._total = console, total
        self.seconds: dict[str, float] = {}
        self._name = ""
        self._started = self._began = time.monotonic()

    def begin(self, name: str, what: str) -> None:
        """Announce a step; the one before it ends here."""
        self.end()
        self._name, self._began = name, time.monotonic()
        self._console.note(f"[{len(self.seconds) + 1}/{self._total}] {name}: {what}")

    def end(self) -> None:
        """Say how long the step took; between steps nothing happens."""
        if self._name:
            self.seconds[self._name] = time.monotonic() - self._began
            seconds = self.seconds[self._name]
            self._console.note(f"[{len(self.seconds)}/{self._total}] {self._name}: done in {seconds:.1f} s")
        self._name = ""

    def remark(self, text: str) -> None:
        """Something that happened within the step, and when."""
        self._console.note(f"      {time.monotonic() - self._began:5.1f} s  {text}")

    def table(self) -> None:
        """All steps with their seconds, and the whole."""
        self.end()
        rows = [(name, f"{seconds:8.1f}") for name, seconds in self.seconds.items()]
        rows.append(("all", f"{time.monotonic() - self._started:8.1f}"))
        self._console.table(("step", " seconds"), rows)
