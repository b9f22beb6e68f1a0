"""A batch of stream records into visitors' states: one read for all keys, one conditional write for each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from narrows.errors import Conflict, InvalidInput, StoreUnavailable
from narrows.events import from_record
from narrows.features.registry import FeatureSet
from narrows.features.state import Arrival, StateStore, UnreadableState, VisitorState, fold

ATTEMPTS = 4


@dataclass(frozen=True)
class StreamRecord:
    """A record as the stream holds it; `sequence` is a decimal string of up to 128 digits."""

    shard: str
    sequence: str
    data: bytes


@dataclass(frozen=True)
class Failure:
    """A record that was not folded, and why: "malformed: ...", "conflict" or "unavailable: ..."."""

    sequence: str
    reason: str


def update_features(
    records: Sequence[StreamRecord],
    store: StateStore,
    feature_set: FeatureSet,
    *,
    executor: Executor,
    attempts: int = ATTEMPTS,
) -> list[Failure]:
    """Fold the records into the store; the failures in order of sequence, empty when all went in.

    Keys are independent and written in parallel. All of a key's records of the batch go in with one write or
    none does, so after a key's failure nothing later of it is applied. A malformed record harms only itself.
    """
    arrivals, failures = _decode(records)
    keys = list(arrivals)
    states = _read_all(store, keys)
    futures = [
        executor.submit(_update, key, arrivals[key], states, store, feature_set, attempts) for key in keys
    ]
    for key, future in zip(keys, futures, strict=True):
        reason = future.result()
        if reason:
            failures += [Failure(str(one.sequence), reason) for one in arrivals[key]]
    return sorted(failures, key=lambda failure: int(failure.sequence))


def _read_all(store: StateStore, keys: Sequence[str]) -> Mapping[str, VisitorState] | None:
    """None when the common read failed; then each key reads alone, and only the keys at fault fail."""
    try:
        return store.get_many(keys)
    except (StoreUnavailable, UnreadableState):
        return None


def _decode(records: Sequence[StreamRecord]) -> tuple[Mapping[str, list[Arrival]], list[Failure]]:
    arrivals: dict[str, list[Arrival]] = {}
    failures: list[Failure] = []
    for record in records:
        try:
            event = from_record(json.loads(record.data))
        except (InvalidInput, ValueError, RecursionError) as error:
            failures.append(Failure(record.sequence, f"malformed: {error}"))
        else:
            arrival = Arrival(record.shard, int(record.sequence), event)
            arrivals.setdefault(event.visitor_key, []).append(arrival)
    return arrivals, failures


def _update(
    key: str,
    arrivals: Sequence[Arrival],
    states: Mapping[str, VisitorState] | None,
    store: StateStore,
    feature_set: FeatureSet,
    attempts: int,
) -> str:
    """Write one key's new state; "" or the reason why it could not be."""
    for attempt in range(attempts):
        try:
            read = store.get_many([key]) if attempt or states is None else states
            before = read.get(key) or VisitorState()
            after = fold(before, arrivals, feature_set)
            if after.ring != before.ring or (before.version and after != before):
                store.put(key, after, before.version)
        except Conflict:
            continue
        except (StoreUnavailable, UnreadableState) as error:
            return f"unavailable: {error}"
        return ""
    return "conflict"
