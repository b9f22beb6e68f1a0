"""What a command says: one JSON object or plain lines on standard output, all else on standard error."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, NoReturn

from narrows.errors import NarrowsError
from narrows.evaluation.metrics import finite

_PLAIN_LINE_EVERY_S = 5.0


class CommandFailed(NarrowsError):
    """A command could not do its work; the message says what to do next."""


class UsageError(NarrowsError):
    """The command line cannot be understood."""

    def __init__(self, message: str, usage: str) -> None:
        super().__init__(message)
        self.usage = usage


class CommandParser(argparse.ArgumentParser):
    """An argument parser that raises instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see {self.prog} --help", self.format_usage().rstrip())


def between(least: int, most: int) -> Callable[[str], int]:
    """The type of an argument that is a whole number from `least` to `most`."""

    def parsed(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"'{text}': give a whole number from {least} to {most}")
        return int(text)

    return parsed


class Console:
    """With `json`, standard output is kept for the one object of the result."""

    def __init__(self, *, json: bool) -> None:
        self.json = json
        self._published = False

    def say(self, text: str = "") -> None:
        """A line for people: the result's text, or with `--json` a remark on standard error."""
        print(text, file=sys.stderr if self.json else sys.stdout, flush=True)

    def note(self, text: str) -> None:
        """A line about the work in progress, on standard error."""
        print(text, file=sys.stderr, flush=True)

    def table(self, heads: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Rows under their heads, in aligned columns."""
        cells = [list(heads), *[[_cell(value) for value in row] for row in rows]]
        widths = [max(len(row[i]) for row in cells) for i in range(len(heads))]
        for row in cells:
            self.say("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())

    def progress(self, title: str, total: int, unit: str) -> Progress:
        """A bar on a terminal; elsewhere a plain line now and then."""
        return Progress(title, total, unit)

    def fail(self, error: Exception, code: int) -> int:
        """Say what went wrong, also as the JSON object; returns the exit code."""
        self.note(f"narrows: {error}")
        if self.json and not self._published:
            print(json.dumps({"error": str(error), "type": type(error).__name__}))
        return code

    def publish(self, result: Mapping[str, Any]) -> None:
        """Print the result's object where it was asked for; only the first one is printed."""
        if self.json and not self._published:
            print(json.dumps(finite(result), allow_nan=False), flush=True)
        self._published = True

    def finish(self, result: Mapping[str, Any]) -> int:
        """Publish the result; `"ok": false` in it makes the exit code 1."""
        self.publish(result)
        return 0 if result.get("ok", True) else 1


class Progress:
    """How far long work has come."""

    def __init__(self, title: str, total: int, unit: str) -> None:
        self._title, self._total, self._unit = title, total, unit
        self._done, self._bar = 0, _bar(title, total, unit)
        self._started = self._spoke = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def to(self, done: int, remark: str = "") -> None:
        """So much of the total is done."""
        step, self._done = done - self._done, done
        if self._bar is not None:
            self._bar.set_postfix_str(remark, refresh=False)
            self._bar.update(step)
        elif time.monotonic() - self._spoke >= _PLAIN_LINE_EVERY_S:
            self._spoke = time.monotonic()
            elapsed = self._spoke - self._started
            text = f"{self._title}: {done:,} of {self._total:,} {self._unit} after {elapsed:.0f} s {remark}"
            print(text.rstrip(), file=sys.stderr, flush=True)


def _bar(title: str, total: int, unit: str) -> Any:
    if not sys.stderr.isatty():
        return None
    try:
        from tqdm import tqdm  # only on a terminal: it belongs to the extra "local"
    except ImportError:
        return None
    scaled = unit == "B"
    return tqdm(total=total, desc=title, unit=unit, unit_scale=scaled, file=sys.stderr, leave=False)


def _cell(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
