"""A batch of stream records into states: one read for all keys, one conditional write for each changed."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Protocol

from narrows.errors import Conflict, InvalidInput, StoreUnavailable
from narrows.events import from_record
from narrows.features.codec import UnreadableState
from narrows.features.items import fold_item, partials
from narrows.features.login import StateFeatures, advance, followed, keys_of
from narrows.features.state import Arrival, StateStore, VisitorState, Write

ATTEMPTS = 6
KEYS_A_READ = 100
LARGEST_GROUP = 90
"""States in one transaction, of which DynamoDB takes 100; a batch that links more is folded in halves."""

States = Mapping[str, VisitorState]


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
    """Fold the records into the store.

    Keys that events link are written by one thread, the others in parallel. All of a key's records of the
    batch go in with one write or none does, so after a key's failure nothing later of it is applied. A
    malformed record harms only itself: it goes to the dead letters, and fails only where they are full.
    """
    arrivals, poison = _decode(records)
    items = partials(arrivals, features.item) if features.item.features else {}
    failures = _give_up(poison, dead_letters)
    run = _Run(store, features, attempts)
    stored = _read_all(arrivals, list(items), store, executor)
    parts = _components(arrivals, stored or {})
    futures = [(part, executor.submit(run.update, part, stored)) for part in parts]
    futures += [(part, executor.submit(run.update_item, key, part, stored)) for key, part in items.items()]
    done = [(part, future.result()) for part, future in futures]
    failed = {one.sequence: each.reason for part, each in done if each.reason for one in part}
    failures += [Failure(str(sequence), reason) for sequence, reason in failed.items()]
    return Outcome(
        failures=sorted(failures, key=lambda failure: int(failure.sequence)),
        given_up=len(poison),
        events=len(arrivals),
        keys=len(keys_of(arrivals)) + len(items),
        writes=sum(each.writes for _, each in done),
        together=sum(each.together for _, each in done),
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

    for one in arrivals:
        own = root(one.event.visitor_key)
        for key in keys_of((one,)) | followed((one,), stored):
            parent[root(key)] = own
    parts: dict[str, list[Arrival]] = defaultdict(list)
    for one in arrivals:
        parts[root(one.event.visitor_key)].append(one)
    return list(parts.values())


@dataclass
class _Done:
    """What came of some keys' events: "" or the reason why they were not folded, and the states written."""

    reason: str = ""
    writes: int = 0
    together: int = 0

    def also(self, other: _Done) -> _Done:
        return _Done(self.reason or other.reason, self.writes + other.writes, self.together + other.together)


@dataclass(frozen=True)
class _Run:
    """One batch on its way into the store."""

    store: StateStore
    features: StateFeatures
    attempts: int

    def update(self, arrivals: Sequence[Arrival], stored: States | None) -> _Done:
        """Write the new states of keys that hang together, each group whole or not at all."""
        done = _Done()
        for attempt in range(self.attempts):
            try:
                states = self._read(arrivals) if attempt or stored is None else stored
                groups = advance(arrivals, states, self.features)
                if len(arrivals) > 1 and any(len(group) > LARGEST_GROUP for group in groups):
                    return done.also(self._in_halves(arrivals))
                for group in groups:
                    self._write(group, states, done)
            except Conflict:
                continue
            except (StoreUnavailable, UnreadableState) as error:
                done.reason = f"unavailable: {error}"
            return done
        done.reason = "conflict"
        return done

    def update_item(self, key: str, arrivals: Sequence[Arrival], stored: States | None) -> _Done:
        """Write one item's new partial."""
        done = _Done()
        for attempt in range(self.attempts):
            try:
                states = self.store.get_many([key]) if attempt or stored is None else stored
                before = states.get(key) or VisitorState()
                after = fold_item(before, arrivals, self.features.item)
                if after != before:
                    self._write({key: after}, states, done)
            except Conflict:
                continue
            except (StoreUnavailable, UnreadableState) as error:
                done.reason = f"unavailable: {error}"
            return done
        done.reason = "conflict"
        return done

    def _in_halves(self, arrivals: Sequence[Arrival]) -> _Done:
        """As two batches, one after the other: the later events wait for the earlier ones."""
        ordered = sorted(arrivals, key=lambda one: one.sequence)
        first = self.update(ordered[: len(ordered) // 2], None)
        return first if first.reason else first.also(self.update(ordered[len(ordered) // 2 :], None))

    def _read(self, arrivals: Sequence[Arrival]) -> States:
        states = self.store.get_many(sorted(keys_of(arrivals)))
        more = followed(arrivals, states) - states.keys()
        return {**states, **self.store.get_many(sorted(more))} if more else states

    def _write(self, group: States, before: States, done: _Done) -> None:
        writes = [
            Write(key, state, before[key].version if key in before else 0) for key, state in group.items()
        ]
        if len(writes) == 1:
            self.store.put(writes[0].key, writes[0].state, writes[0].expected_version)
        else:
            self.store.put_all(writes)
            done.together += len(writes)
        done.writes += len(writes)
