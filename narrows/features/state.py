"""What is known of one visitor, and the fold that brings it up to date exactly once per event."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from narrows.events import EXCLUDING_TYPES, Event
from narrows.features.registry import Features, FeatureSet
from narrows.features.ring import digest_of, grown, knows

DO_NOT_SHOW = 500
SHARDS = 16
ORIGINS = 64
SESSIONS = 64
ITEM_PREFIX = "i#"
ITEM_RETENTION_S = 3 * 86_400.0
"""A partial of an item counts one day's events; the night after puts the exact counts in its place."""
_NONE: Mapping[str, Any] = MappingProxyType({})


class VisitorState(NamedTuple):
    """A visitor's features and what makes their fold exact.

    `applied`: mark -> the highest sequence number folded in; the mark is `shard` for events of this state's
    own key and `shard|key` for events that came through another key. `ring`: the newest event ids of its own
    key, as `ring.py` keeps them, which stop a producer's duplicate; `ring_through`: of those that came
    through another.
    `do_not_show`: item id -> when the visitor said so. `merged_into`: the
    user whose state a session's visitor part has gone to; `merged`: the newest sessions that came into a
    user's. `updated_at` is in epoch seconds; `version` counts the stored writes, 0 for a state that was never
    stored. A named tuple: one is made for every event, and a frozen dataclass takes several times as long.
    """

    features: Features = _NONE
    applied: Mapping[str, int] = _NONE
    ring: bytes = b""
    do_not_show: Mapping[str, float] = _NONE
    updated_at: float = 0.0
    version: int = 0
    merged_into: str | None = None
    merged: tuple[str, ...] = ()
    ring_through: bytes = b""


@dataclass(frozen=True, slots=True)
class Arrival:
    """An event as the stream delivered it; `sequence` is the shard's own, as an integer."""

    shard: str
    sequence: int
    event: Event


@dataclass(frozen=True)
class Write:
    """A state to store as version `expected_version` + 1, if that version stands there; 0 for none."""

    key: str
    state: VisitorState
    expected_version: int


_sequence = attrgetter("sequence")


class StateStore(Protocol):
    """Where visitors' states are kept, by visitor key."""

    def get_many(self, keys: Sequence[str]) -> Mapping[str, VisitorState]:
        """The states that exist and have not expired; any number of keys; StoreUnavailable when it cannot.

        Each is the caller's own: a fold uses it up, and what is stored stays.
        """

    def put(self, key: str, state: VisitorState, expected_version: int) -> None:
        """Store as version `expected_version` + 1; Conflict when another version stands there, 0 for none."""

    def put_all(self, writes: Sequence[Write]) -> None:
        """Store all or none, at most 100 of distinct keys; Conflict names those that met another version."""


def fold(
    state: VisitorState, records: Sequence[Arrival], feature_set: FeatureSet, *, through: str = ""
) -> VisitorState:
    """The state after these records, in the order of their shard; what is in it already changes nothing.

    Records at or below their mark were folded before. An event whose id is in the ring is a duplicate; one
    without consent, or marked as a bot's, is stepped over. So retries, other batch boundaries and bisected
    ones end alike. A key's events come in their order, so what its ring knows depends on nobody else's.
    `through` names the key that the records came through where it is another's: the features outside
    `feature_set` then stay, and else they are dropped, because they are no longer declared. The state that
    is given is used up: its features are changed in place.
    """
    features, applied, ring, hidden, updated_at, version, merged_into, merged, ring_through = state
    marks = dict(applied)
    fresh = _fresh(records, marks, ring_through if through else ring, through)
    behaviour: list[Event] = []
    said: list[Event] = []
    for event in fresh.values():
        (said if event.event_type in EXCLUDING_TYPES else behaviour).append(event)
        if event.received_at > updated_at:
            updated_at = event.received_at
    folded = feature_set.add_all(features, behaviour)
    if said:
        hidden = _hide(hidden, said)
    if through:
        folded, ring_through = {**features, **folded}, grown(ring_through, fresh)
    else:
        ring = grown(ring, fresh)
    kept = bounded(marks)
    return VisitorState(folded, kept, ring, hidden, updated_at, version, merged_into, merged, ring_through)


def _fresh(
    records: Sequence[Arrival], applied: dict[str, int], ring: bytes, through: str
) -> dict[bytes, Event]:
    """What counts and is neither folded nor known, by digest; the marks in `applied` go on with it."""
    fresh: dict[bytes, Event] = {}
    for record in sorted(records, key=_sequence) if len(records) > 1 else records:
        mark, event = mark_of(record.shard, through) if through else record.shard, record.event
        if record.sequence > applied.get(mark, -1):
            applied[mark] = record.sequence
            if counts(event):
                digest = digest_of(event.event_id)
                if digest not in fresh and not knows(ring, digest):
                    fresh[digest] = event
    return fresh


def is_new(state: VisitorState, record: Arrival, through: str = "") -> bool:
    """Whether the record is beyond its mark, so that folding it changes the state."""
    return record.sequence > state.applied.get(mark_of(record.shard, through), -1)


def counts(event: Event) -> bool:
    """Whether the event may be folded at all."""
    return event.consent and not event.marks


def mark_of(shard: str, through: str = "") -> str:
    """The name under which `applied` keeps how far a shard has been folded, for one origin."""
    return f"{shard}|{through}" if through else shard


def bounded(applied: Mapping[str, int]) -> Mapping[str, int]:
    """The marks that may still matter: a key lives in one shard at a time, so a few parents; few origins."""
    if len(applied) <= SHARDS:
        return applied
    newest = sorted(applied.items(), key=lambda one: one[1])
    own = [one for one in newest if "|" not in one[0]][-SHARDS:]
    foreign = [one for one in newest if "|" in one[0]][-ORIGINS:]
    return dict(own + foreign)


def latest(hidden: Mapping[str, float], said: Mapping[str, float]) -> Mapping[str, float]:
    """Both do-not-show lists as one, the later moment of an item on both; bounded to the newest."""
    if not said:
        return hidden
    merged = dict(hidden)
    for item_id, time in said.items():
        merged[item_id] = max(time, merged.get(item_id, time))
    newest = sorted(merged.items(), key=lambda one: (one[1], one[0]))[-DO_NOT_SHOW:]
    return dict(newest)


def _hide(hidden: Mapping[str, float], events: Sequence[Event]) -> Mapping[str, float]:
    said: dict[str, float] = {}
    for one in events:
        if one.item_id:
            said[one.item_id] = max(one.time, said.get(one.item_id, one.time))
    return latest(hidden, said)
