"""What is known of one visitor, and the fold that brings it up to date exactly once per event."""

from __future__ import annotations

import hashlib
import json
import zlib
from base64 import b85encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Protocol

from narrows.errors import NarrowsError
from narrows.events import EXCLUDING_TYPES, Event
from narrows.features.kinds import State
from narrows.features.registry import Features, FeatureSet

RING = 128
DO_NOT_SHOW = 500
SHARDS = 16
_HEADER = b"NV1"
_NONE: Mapping[str, Any] = MappingProxyType({})


class UnreadableState(NarrowsError):
    """Stored bytes are not a visitor's state of a version that this code reads."""


@dataclass(frozen=True)
class VisitorState:
    """A visitor's features and what makes their fold exact.

    `applied`: shard -> the highest sequence number folded in. `ring`: short digests of the newest event ids,
    which stop a producer's duplicate. `do_not_show`: item id -> when the visitor said so. `updated_at` is in
    epoch seconds; `version` counts the stored writes, 0 for a state that was never stored.
    """

    features: Features = field(default_factory=lambda: _NONE)
    applied: Mapping[str, int] = field(default_factory=lambda: _NONE)
    ring: tuple[str, ...] = ()
    do_not_show: Mapping[str, float] = field(default_factory=lambda: _NONE)
    updated_at: float = 0.0
    version: int = 0


@dataclass(frozen=True)
class Arrival:
    """An event as the stream delivered it; `sequence` is the shard's own, as an integer."""

    shard: str
    sequence: int
    event: Event


class StateStore(Protocol):
    """Where visitors' states are kept, by visitor key."""

    def get_many(self, keys: Sequence[str]) -> Mapping[str, VisitorState]:
        """The states that exist and have not expired; any number of keys; StoreUnavailable when it cannot."""

    def put(self, key: str, state: VisitorState, expected_version: int) -> None:
        """Store as version `expected_version` + 1; Conflict when another version stands there, 0 for none."""


def fold(state: VisitorState, records: Sequence[Arrival], feature_set: FeatureSet) -> VisitorState:
    """The state after these records, in the order of their shard; what is in it already changes nothing.

    Records at or below `applied[shard]` were folded before. An event whose id is in the ring is a duplicate.
    An event without consent is stepped over. So retries, other batch boundaries and bisected ones end alike.
    """
    applied, ring = dict(state.applied), list(state.ring)
    known = set(ring)
    fresh: list[Event] = []
    for record in sorted(records, key=lambda one: one.sequence):
        if record.sequence <= applied.get(record.shard, -1):
            continue
        applied[record.shard] = record.sequence
        mark = _digest(record.event.event_id)
        if mark not in known and record.event.consent:
            known.add(mark)
            ring.append(mark)
            fresh.append(record.event)
    return replace(
        state,
        features=feature_set.add_all(state.features, [one for one in fresh if _counts(one)]),
        applied=_newest_shards(applied),
        ring=tuple(ring[-RING:]),
        do_not_show=_hide(state.do_not_show, fresh),
        updated_at=max([state.updated_at, *(one.received_at for one in fresh)]),
    )


def combine(states: Sequence[VisitorState], feature_set: FeatureSet) -> VisitorState | None:
    """One state to read from several of the same visitor, such as user and session; None for none."""
    if not states:
        return None
    first, *others = states
    for other in others:
        first = VisitorState(
            features=feature_set.merge(first.features, other.features),
            do_not_show={**first.do_not_show, **other.do_not_show},
            updated_at=max(first.updated_at, other.updated_at),
        )
    return first


def encode(state: VisitorState) -> bytes:
    """The state in a few hundred bytes, behind a header that names the format."""
    content = [state.features, state.applied, state.ring, state.do_not_show, state.updated_at, state.version]
    text = json.dumps(content, separators=(",", ":"), default=dict, ensure_ascii=False, allow_nan=False)
    return _HEADER + zlib.compress(text.encode(), level=3)


def decode(data: bytes) -> VisitorState:
    """The state that `encode` wrote; `UnreadableState` for anything else."""
    if data[: len(_HEADER)] != _HEADER:
        raise UnreadableState(f"visitor state starts with {data[:3]!r}, this code reads {_HEADER!r}")
    try:
        features, applied, ring, hidden, updated_at, version = json.loads(zlib.decompress(data[3:]))
        states = {key: _frozen(value) for key, value in features.items()}
        return VisitorState(states, applied, tuple(ring), hidden, updated_at, version)
    except (zlib.error, ValueError, TypeError, AttributeError) as error:
        raise UnreadableState(f"visitor state of {len(data)} bytes is damaged: {error}") from error


def _frozen(value: list[Any]) -> State:
    return tuple(tuple(one) if isinstance(one, list) else one for one in value)


def _digest(event_id: str) -> str:
    return b85encode(hashlib.blake2b(event_id.encode("utf-8", "replace"), digest_size=8).digest()).decode()


def _counts(event: Event) -> bool:
    return event.event_type not in EXCLUDING_TYPES


def _hide(hidden: Mapping[str, float], events: Sequence[Event]) -> Mapping[str, float]:
    said = [(one.item_id, one.time) for one in events if one.event_type in EXCLUDING_TYPES and one.item_id]
    if not said:
        return hidden
    merged = dict(hidden)
    for item_id, time in said:
        merged[item_id] = max(time, merged.get(item_id, time))
    newest = sorted(merged.items(), key=lambda one: (one[1], one[0]))[-DO_NOT_SHOW:]
    return dict(newest)


def _newest_shards(applied: Mapping[str, int]) -> Mapping[str, int]:
    """A key lives in one shard at a time, so only its last few parents can still be replayed."""
    if len(applied) <= SHARDS:
        return applied
    return dict(sorted(applied.items(), key=lambda one: one[1])[-SHARDS:])
