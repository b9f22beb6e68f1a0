"""Who is asking: the visitor's state and what was shown last, read in one parallel round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from narrows.features.state import VisitorState


@dataclass(frozen=True)
class Remembered:
    """What a visitor was shown last on a surface, best first, and the candidates it was chosen from."""

    slate: tuple[str, ...]
    candidates: tuple[str, ...]
    at: float


class SlateStore(Protocol):
    """The last slate and its candidates of each (visitor key, surface), for a while."""

    def read(self, key: str, surface: str, *, now: float) -> Remembered | None:
        """What is remembered; None when nothing is, or when it has expired, deleted by then or not."""

    def write(self, key: str, surface: str, remembered: Remembered, *, expires_at: float) -> None:
        """Replace what is remembered, unless what is there is newer (`at`)."""


@dataclass(frozen=True)
class Visitor:
    """What could be read; a state is None where the visitor has none yet.

    `failures` says what could not be read: "user", "session" or "slates" -> "timeout" or the error's class.
    """

    user: VisitorState | None = None
    session: VisitorState | None = None
    remembered: Remembered | None = None
    failures: Mapping[str, str] = field(default_factory=dict)


class VisitorReader(Protocol):
    """Reads a visitor within a time; never raises for a store's sake."""

    def read(
        self, user_key: str | None, session_key: str | None, surface: str, *, now: float, timeout_s: float
    ) -> Visitor:
        """One parallel round; what is late or refused is named in `failures`."""
