"""What the parameters of a kind may be: each kind names its own, and checks and documents read them there."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

LONGEST_S = 100 * 366 * 86_400.0


@dataclass(frozen=True)
class ParameterRule:
    """One parameter of a kind: `accepts` judges a value, `remedy` says what to write instead of a wrong one.

    A duration is judged in seconds, under its name in the declaration with `_s`. What does not fold decides
    only how a state is read: it may change, and the state stays.
    """

    meaning: str
    remedy: str
    accepts: Callable[[object], bool]
    required: bool = True
    folds: bool = True


def half_life(*, required: bool = True) -> ParameterRule:
    """How long until an event weighs one half."""
    return ParameterRule(
        "the age at which an event weighs one half",
        'give a duration from "1s" to "36600d", as "7d"',
        lambda value: is_number(value, 1.0, LONGEST_S),
        required,
    )


def whole(meaning: str, low: int, high: int, *, required: bool = True) -> ParameterRule:
    """A whole number between two others."""
    return ParameterRule(
        meaning,
        f"give a whole number from {low} to {high}",
        lambda value: isinstance(value, int) and is_number(value, low, high),
        required,
    )


def number(meaning: str, low: float, high: float = 1e12, *, required: bool = True) -> ParameterRule:
    """A number between two others."""
    return ParameterRule(
        meaning,
        f"give a number from {low:g} to {high:g}",
        lambda value: is_number(value, low, high),
        required,
    )


def texts(meaning: str, remedy: str, *, most: int = 200, required: bool = True) -> ParameterRule:
    """A list of different texts."""
    return ParameterRule(
        meaning,
        remedy,
        lambda value: 1 <= len(set(as_texts(value))) == len(as_texts(value)) <= most,
        required,
    )


def text(meaning: str, remedy: str, *, required: bool = True) -> ParameterRule:
    """One text."""
    return ParameterRule(meaning, remedy, lambda value: isinstance(value, str) and value != "", required)


def one_of(meaning: str, known: Collection[str], *, required: bool = True) -> ParameterRule:
    """One word of a closed list."""
    return ParameterRule(meaning, f"choose one of {', '.join(known)}", lambda value: value in known, required)


def is_number(value: object, low: float = 0.0, high: float = 1e12) -> bool:
    """Whether it is a number, and no truth value, between the two."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def as_texts(value: object) -> tuple[str, ...]:
    """A text or a list of texts as a tuple; () for anything else."""
    listed = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, tuple | list) else ()
    return listed if all(isinstance(one, str) and one for one in listed) else ()
