"""Every error that Narrows raises on purpose, under one base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

FIELD_CHARACTERS = 300
"""What is shown of a field's name, which may be a client's own: a path and an id of 256 characters fit."""


class NarrowsError(Exception):
    """The base of every error that a caller of Narrows may want to catch."""


class InvalidInput(NarrowsError):
    """A value that came from outside cannot be used; says which, what it was, and what to send instead."""

    def __init__(self, field: str, value: object, remedy: str) -> None:
        self.field = _cut(field, FIELD_CHARACTERS)
        self.value = _shown(value)
        self.remedy = remedy
        super().__init__(f"field '{self.field}': {self.value} is not allowed; {remedy}")


class UnknownSurface(InvalidInput):
    """The app declares no such surface."""


class TooLarge(InvalidInput):
    """The input is over its size limit and was not read."""


@dataclass(frozen=True)
class Problem:
    """One mistake in a settings file: where it is, what stands there, and what to write instead."""

    file: str
    path: str
    value: object
    remedy: str

    def __str__(self) -> str:
        return f"{self.file}: {self.path} = {_shown(self.value)}: {self.remedy}"


class SettingsError(NarrowsError):
    """The settings cannot be used; `problems` lists every mistake found, not only the first."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        noun = "problem" if len(self.problems) == 1 else "problems"
        lines = "\n".join(f"  {problem}" for problem in self.problems)
        super().__init__(f"{len(self.problems)} {noun} in the settings:\n{lines}")


class FingerprintMismatch(NarrowsError):
    """A model was trained on other features than the ones that would be served to it."""


class SnapshotError(NarrowsError):
    """An item snapshot or one of its deltas is damaged, incomplete or out of order."""


class BundleError(NarrowsError):
    """A model bundle is damaged or incomplete."""


class StoreUnavailable(NarrowsError):
    """A store did not answer in time, or refused."""


class RequestRefused(StoreUnavailable):
    """A store answered that it does not take what it was sent: the same again would be refused again."""


class EncoderUnavailable(NarrowsError):
    """What makes vectors of texts did not answer in time, or not with vectors."""


class EncoderMismatch(EncoderUnavailable):
    """A model's vectors were made by another text encoder than the one at hand, and must not meet its own."""


class Conflict(NarrowsError):
    """Somebody else wrote first: the conditional write was refused and nothing was changed.

    Of several writes `places` are those that came too late, empty where the store does not tell.
    """

    def __init__(self, message: str = "", places: Sequence[int] = ()) -> None:
        self.places = tuple(places)
        super().__init__(message)


def _shown(value: object, limit: int = 80) -> str:
    return _cut(repr(value), limit)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
