"""Settings from the variables of a process: typed, frozen, and every mistake reported together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from narrows.errors import Problem, SettingsError

Settings = TypeVar("Settings")


def environment(cls: type[Settings], environ: Mapping[str, str]) -> Settings:
    """The frozen dataclass `cls` from variables named as its fields in capitals.

    Fields are str, int, float, bool or Path; one without a default must be set, and not to nothing.
    SettingsError lists every variable that is missing or malformed.
    """
    problems: list[Problem] = []
    values: dict[str, Any] = {}
    hints = get_type_hints(cls)
    for one in dataclasses.fields(cls):  # type: ignore[arg-type]  # a frozen dataclass, as every caller passes
        variable, wanted = one.name.upper(), hints[one.name]
        text = environ.get(variable, "").strip()
        if text:
            values[one.name] = _converted(variable, text, wanted, problems)
        elif one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING:
            problems.append(Problem("environment", variable, None, f"set it to {_WANTED[wanted][1]}"))
    if problems:
        raise SettingsError(problems)
    return cls(**values)


def _boolean(text: str) -> bool:
    return {"true": True, "1": True, "false": False, "0": False}[text.lower()]


_WANTED: Mapping[Any, tuple[Callable[[str], Any], str]] = {
    str: (str, "a text"),
    int: (int, "a whole number"),
    float: (float, "a number"),
    bool: (_boolean, "true or false"),
    Path: (Path, "a path"),
}


def _converted(variable: str, text: str, wanted: Any, problems: list[Problem]) -> Any:
    convert, words = _WANTED[wanted]
    try:
        return convert(text)
    except (ValueError, KeyError):
        problems.append(Problem("environment", variable, text, f"set it to {words}"))
        return None
