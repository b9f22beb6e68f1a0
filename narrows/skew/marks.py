"""Which events a served vector stands on, as its decision record says it: key, shard and last sequence."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from narrows.events import Event
from narrows.features.state import ORIGINS, SHARDS
from narrows.skew.trials import NOWHERE, Placed

DIGITS = 128
"""Of the longest sequence number; padded to it, the numbers compare as text."""
USER, SESSION = "u#", "s#"
Applied = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Mark:
    """Events of `origin` in `shard` up to `last` count in these scopes; of `session` only, if given."""

    origin: str
    shard: str
    last: str
    scopes: frozenset[str]
    session: str | None = None

    def takes(self, event: Event) -> bool:
        """Whether events of this kind count, whenever they were applied."""
        return event.visitor_key == self.origin and self.session in (None, event.session_id)


def marks_of(applied: Applied) -> list[Mark]:
    """The marks of a record. A mark `shard|origin` is for events that came through another key.

    Under a user's key those are of a session that became the user's; under a session's key they count for the
    session itself, whoever they belong to.
    """
    return [_mark(key, name, last) for key, marks in applied.items() for name, last in marks.items()]


def _mark(key: str, name: str, last: str) -> Mark:
    shard, _, origin = name.partition("|")
    last = last.zfill(DIGITS)
    if origin and key.startswith(SESSION):
        return Mark(origin, shard, last, frozenset({"session"}), key.removeprefix(SESSION))
    if origin:
        return Mark(origin, shard, last, frozenset({"visitor"}))
    return Mark(key, shard, last, own_scopes(key))


def own_scopes(key: str) -> frozenset[str]:
    """The scopes in which events of a key count in the state of that key."""
    return frozenset({"visitor", "user" if key.startswith(USER) else "session"})


def forgotten(applied: Applied) -> bool:
    """Whether a state has so many marks that older ones may have been dropped."""
    return any(
        sum("|" in name for name in marks) >= ORIGINS or sum("|" not in name for name in marks) >= SHARDS
        for marks in applied.values()
    )


def keys_of(applied: Applied, *more: str | None) -> frozenset[str]:
    """Every key whose events may have to do with a record."""
    origins = {mark.origin for mark in marks_of(applied)}
    return frozenset({*applied, *origins, *(key for key in more if key)})


def reached(applied: Applied, through: Mapping[str, str]) -> bool:
    """Whether a lake that was read `through` these sequence numbers holds all that a record stands on."""
    return all(mark.last <= through.get(mark.shard, "").zfill(DIGITS) for mark in marks_of(applied))


def placed(event: Event, shard: str, sequence: str, marks: Sequence[Mark]) -> Placed:
    """An event of the lake beside the marks of a record."""
    found = [mark for mark in marks if mark.takes(event)]
    counted = [mark for mark in found if mark.shard == shard and sequence.zfill(DIGITS) <= mark.last]
    return Placed(event, _scopes(counted), _scopes(found), own_scopes(event.visitor_key))


def _scopes(marks: Iterable[Mark]) -> frozenset[str]:
    return NOWHERE.union(*(mark.scopes for mark in marks))
