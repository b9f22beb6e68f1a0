"""A batch of stream records into states: one read for all keys, one conditional write for each changed."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Protocol

from narrows.errors import InvalidInput, StoreUnavailable
from narrows.events import from_record
from narrows.features.codec import UnreadableState
from narrows.features.items import partials
from narrows.features.login import StateFeatures, followed, keys_of, touched
from narrows.features.rounds import Part, Rounds, States
from narrows.features.state import Arrival, StateStore

ATTEMPTS = 6
KEYS_A_READ = 100


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


@dataclass(frozen=True)
class DeadLetter:
    """A record that no delivery can make an event of, and why."""

    record: StreamRecord
    reason: str


class DeadLetters(Protocol):
    """Where records go that are given up, for a person to look at."""

    def put(self, letters: Sequence[DeadLetter]) -> None:
        """Keep all of them; StoreUnavailable when it cannot keep one."""


@dataclass(frozen=True)
class Outcome:
    """What became of a batch: the failures in order of sequence, and what it cost.

    `keys` are the distinct states that its events touch; `writes` the states written, of which `together` in
    transactions, where a write costs twice.
    """

    failures: Sequence[Failure] = ()
    given_up: int = 0
    events: int = 0
    keys: int = 0
    writes: int = 0
    together: int = 0


def update_features(
    records: Sequence[StreamRecord],
    store: StateStore,
    features: StateFeatures,
    *,
    dead_letters: DeadLetters,
    executor: Executor,
    attempts: int = ATTEMPTS,
) -> Outcome:
    """Fold the records into the store; the executor's threads wait for it, and nothing else runs in them.

    All of a key's records of the batch go in with one write or none does, so after a key's failure nothing
    later of it is applied. A malformed record harms only itself: it goes to the dead letters, and fails only
    where they are full.
    """
    arrivals, poison = _decode(records)
    items = partials(arrivals, features.item) if features.item.features else {}
    failures = _give_up(poison, dead_letters)
    stored = _read_all(arrivals, list(items), store, executor)
    parts = [Part(one) for one in _components(arrivals, stored or {})]
    parts += [Part(one, item=key) for key, one in items.items()]
    Rounds(store, features, executor, attempts).run(parts, stored)
    failed = {one.sequence: part.reason for part in parts if part.reason for one in part.arrivals}
    failures += [Failure(str(sequence), reason) for sequence, reason in failed.items()]
    return Outcome(
        failures=sorted(failures, key=lambda failure: int(failure.sequence)),
        given_up=len(poison),
        events=len(arrivals),
        keys=len(keys_of(arrivals)) + len(items),
        writes=sum(part.writes for part in parts),
        together=sum(part.together for part in parts),
    )


def _decode(records: Sequence[StreamRecord]) -> tuple[list[Arrival], list[DeadLetter]]:
    arrivals: list[Arrival] = []
    poison: list[DeadLetter] = []
    for record in records:
        try:
            event = from_record(json.loads(record.data))
        except (InvalidInput, ValueError, RecursionError) as error:
            poison.append(DeadLetter(record, f"malformed: {error}"))
        else:
            arrivals.append(Arrival(record.shard, int(record.sequence), event))
    return arrivals, poison


def _give_up(poison: Sequence[DeadLetter], dead_letters: DeadLetters) -> list[Failure]:
    """The malformed records that nobody took; the stream delivers these again, and its mapping gives up."""
    if not poison:
        return []
    try:
        dead_letters.put(poison)
    except StoreUnavailable:
        return [Failure(one.record.sequence, one.reason) for one in poison]
    return []


def _read_all(
    arrivals: Sequence[Arrival], items: Sequence[str], store: StateStore, executor: Executor
) -> States | None:
    """None when the common read failed; then each key reads alone, and only the keys at fault fail."""

    def read(keys: Iterable[str]) -> States:
        wanted = sorted(keys)
        chunks = [wanted[at : at + KEYS_A_READ] for at in range(0, len(wanted), KEYS_A_READ)]
        return {key: state for found in executor.map(store.get_many, chunks) for key, state in found.items()}

    try:
        stored = read(keys_of(arrivals) | set(items))
        return {**stored, **read(followed(arrivals, stored) - stored.keys())}
    except (StoreUnavailable, UnreadableState):
        return None


def _components(arrivals: Sequence[Arrival], stored: States) -> list[list[Arrival]]:
    """The events in parts that share no state, as far as the states read tell."""
    parent: dict[str, str] = {}

    def root(key: str) -> str:
        while (above := parent.setdefault(key, key)) != key:
            parent[key] = key = parent[above]
        return key

    mine: list[str] = []
    for one in arrivals:
        key, *sessions = touched(one.event)
        mine.append(key)
        own = root(key)
        for session in sessions:
            parent[root(session)] = own
        state = stored.get(key)
        if state is not None and state.merged_into:
            parent[root(state.merged_into)] = own
    parts: dict[str, list[Arrival]] = defaultdict(list)
    for key, one in zip(mine, arrivals, strict=True):
        parts[root(key)].append(one)
    return list(parts.values())
