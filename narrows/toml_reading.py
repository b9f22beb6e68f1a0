"""Reads settings so that every mistake in every file is reported together, each with its remedy."""

from __future__ import annotations

import difflib
import json
import math
import re
import sys
import tomllib
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from narrows.errors import Problem

SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_REQUIRED: Any = object()
LARGEST_FLOAT = sys.float_info.max


def duration_s(text: object) -> float | None:
    """Seconds of a duration such as "15m", None for anything else.

    >>> duration_s("7d")
    604800.0
    """
    match = _DURATION.fullmatch(text) if isinstance(text, str) else None
    return float(match[1]) * SECONDS[match[2]] if match else None


def choose(value: object, known: Collection[str]) -> str:
    """A remedy that names the nearest known word and all of them."""
    close = difflib.get_close_matches(str(value), known, n=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    return f"{hint}choose one of {', '.join(sorted(known))}" if known else "remove it"


def read_toml(path: Path, problems: list[Problem]) -> Table:
    """The file's top table, empty when the file is missing or is not TOML."""
    content: dict[str, Any] = {}
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        problems.append(Problem(path.name, "file", str(path), f"create it ({error.strerror})"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        problems.append(Problem(path.name, "file", path.name, f"write valid TOML: {error}"))
    return Table(content, path.name, "", problems)


def read_json_texts(path: Path, problems: list[Problem]) -> tuple[str, ...]:
    """A JSON list of different strings."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        problems.append(Problem(path.name, "file", path.name, f"write a JSON list of item ids ({error})"))
        return ()
    if not isinstance(content, list) or not all(isinstance(one, str) and one for one in content):
        problems.append(Problem(path.name, "file", content, "write a JSON list of item ids"))
        return ()
    twice = sorted(item for item, times in Counter(content).items() if times > 1)
    problems += [Problem(path.name, "file", item, "give every item once") for item in twice]
    return tuple(content)


def _range(low: float, high: float) -> str:
    if math.isinf(low):
        return ""
    return f" of {low:g} or more" if math.isinf(high) else f" of {low:g} to {high:g}"


class Table:
    """One table being read: each method gives a value of its type, and notes a problem where it cannot.

    After a problem the value is a harmless one of the same type, so that reading goes on. `finish` notes
    every key that nothing asked for.
    """

    def __init__(self, content: Mapping[str, Any], file: str, path: str, problems: list[Problem]) -> None:
        self.content = content
        self._file = file
        self._path = path
        self._problems = problems
        self._asked: set[str] = set()

    def problem(self, key: str, value: object, remedy: str) -> None:
        """Note a mistake at `key` of this table."""
        where = f"{self._path}.{key}" if self._path and key else self._path or key
        self._problems.append(Problem(self._file, where, value, remedy))

    def text(self, key: str, default: Any = _REQUIRED, *, known: Collection[str] = ()) -> str:
        """A string, one of `known` where these are given."""
        value = self._get(key, default, "")
        if not isinstance(value, str) or (value == "" and default is _REQUIRED and key in self.content):
            self.problem(key, value, "write a text in quotes")
            return ""
        if known and value not in known and key in self.content:
            self.problem(key, value, choose(value, known))
        return value

    def text_or_false(self, key: str) -> str:
        """A string; "" where the key is missing or false."""
        return "" if self._get(key, False, False) is False else self.text(key)

    def texts(self, key: str, default: Any = _REQUIRED, *, known: Collection[str] = ()) -> tuple[str, ...]:
        """Different strings, each one of `known` where these are given."""
        value = self._get(key, default, ())
        listed = (
            [value] if isinstance(value, str) else list(value) if isinstance(value, list | tuple) else [None]
        )
        if not all(isinstance(one, str) and one for one in listed):
            self.problem(key, value, "write a list of texts in quotes")
            return ()
        for number, one in enumerate(listed):
            if known and one not in known:
                self.problem(key, one, choose(one, known))
            if one in listed[:number]:
                self.problem(key, one, "give it once")
        return tuple(listed)

    def number(
        self,
        key: str,
        default: Any = _REQUIRED,
        *,
        low: float,
        high: float = float("inf"),
        whole: bool = False,
    ) -> float:
        """A finite number from `low` to `high`."""
        harmless = max(low, -LARGEST_FLOAT)
        value = self._get(key, default, harmless)
        right = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
        if right and harmless <= value <= min(high, LARGEST_FLOAT):
            return float(value)
        infinite = right and not -LARGEST_FLOAT <= value <= LARGEST_FLOAT
        kind = "a whole number" if whole else "a finite number" if infinite else "a number"
        self.problem(key, value, f"write {kind}{_range(low, high)}")
        return harmless

    def whole(self, key: str, default: Any = _REQUIRED, *, low: int, high: float = float("inf")) -> int:
        """A whole number from `low` to `high`."""
        return int(self.number(key, default, low=low, high=high, whole=True))

    def share(self, key: str) -> float:
        """A part of something: above 0, at most 1."""
        value = self._get(key, _REQUIRED, 1.0)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0.0 < value <= 1.0:
            return float(value)
        self.problem(key, value, "write a number above 0, and at most 1")
        return 1.0

    def flag(self, key: str, default: bool) -> bool:
        """true or false."""
        value = self._get(key, default, default)
        if not isinstance(value, bool):
            self.problem(key, value, "write true or false")
        return value is True

    def duration_s(self, key: str, default: Any = _REQUIRED) -> float:
        """A duration in seconds, written as "60s" or "7d"; the default is in seconds."""
        if key not in self.content and default is not _REQUIRED:
            self._asked.add(key)
            return float("nan") if default is None else float(default)
        value = self._get(key, default, "1s")
        seconds = duration_s(value)
        if seconds is None or seconds <= 0:
            self.problem(key, value, 'write a duration such as "15m": a number with ms, s, m, h or d')
            return 1.0
        return seconds

    def table(self, key: str, *, required: bool = True) -> Table:
        """The table under `key`, empty where there is none."""
        value = self._get(key, _REQUIRED if required else {}, {})
        return self._child(key, value)

    def tables(self, key: str, *, required: bool = True) -> list[Table]:
        """The list of tables under `key`."""
        value = self._get(key, _REQUIRED if required else [], [])
        if not isinstance(value, list):
            self.problem(key, value, "write a list of tables")
            return []
        return [self._child(f"{key}[{number}]", one) for number, one in enumerate(value)]

    def children(self) -> dict[str, Table]:
        """Every key of this table as a table of its own."""
        self._asked.update(self.content)
        return {key: self._child(key, value) for key, value in self.content.items()}

    def rest(self) -> dict[str, Any]:
        """What nothing asked for so far."""
        left = {key: value for key, value in self.content.items() if key not in self._asked}
        self._asked.update(left)
        return left

    def finish(self) -> None:
        """Note every key that nothing asked for, with the nearest that something did."""
        for key in self.content:
            if key not in self._asked:
                self.problem(key, self.content[key], f"unknown key; {choose(key, self._asked)}")

    def _child(self, key: str, value: object) -> Table:
        path = f"{self._path}.{key}" if self._path else key
        if not isinstance(value, Mapping):
            self.problem(key, value, "write a table")
            return Table({}, self._file, path, [])
        return Table(value, self._file, path, self._problems)

    def _get(self, key: str, default: Any, harmless: Any) -> Any:
        self._asked.add(key)
        if key in self.content:
            return self.content[key]
        if default is _REQUIRED:
            self.problem(key, None, "it is missing; write it")
            return harmless
        return default
