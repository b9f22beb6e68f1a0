"""Who is asking: the visitor's state and what was shown last, read in one parallel round."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from narrows.features.registry import FeatureSet
from narrows.features.state import VisitorState, latest, mark_of


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


@dataclass(frozen=True)
class Reading:
    """What is known of a visitor, and from where: state key -> mark -> the last sequence number in it.

    Under a session's key a mark `shard|key` stands for features of scope session alone. The own marks of a
    merged session are written so, for its visitor part is in its user's state.
    """

    state: VisitorState = field(default_factory=VisitorState)
    applied: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def as_one(
    visitor: Visitor, user_key: str | None, session_key: str | None, feature_set: FeatureSet
) -> Reading:
    """User and session as one; what a merged session held of its visitor counts once.

    The two were read one after the other, so a login may lie between: a session that the user's state has
    taken in already is read without its visitor part, whatever its own state says.
    """
    user, session = visitor.user, visitor.session
    applied = {}
    if user is not None and user_key is not None:
        applied[user_key] = _written(user.applied)
    if session is None or session_key is None:
        return Reading(user or VisitorState(), applied)
    merged = session.merged_into is not None
    if user is not None and session_key in user.merged and not merged:
        session, merged = _without_visitor(session, feature_set), True
    through = session_key if merged else ""
    marks = {one if "|" in one else mark_of(one, through): last for one, last in session.applied.items()}
    applied[session_key] = _written(marks)
    return Reading(session if user is None else _both(user, session, feature_set), applied)


def _both(user: VisitorState, session: VisitorState, feature_set: FeatureSet) -> VisitorState:
    return VisitorState(
        features=feature_set.merge(user.features, session.features),
        do_not_show=latest(user.do_not_show, session.do_not_show),
        updated_at=max(user.updated_at, session.updated_at),
    )


def _without_visitor(session: VisitorState, feature_set: FeatureSet) -> VisitorState:
    own = feature_set.scoped("session").only(session.features)
    return session._replace(features=own, do_not_show={})


def _written(applied: Mapping[str, int]) -> dict[str, str]:
    """JSON readers take a number of 56 digits for a float; a string stays what it is."""
    return {mark: str(last) for mark, last in applied.items()}
