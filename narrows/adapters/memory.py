"""Every store in this process's memory: for one machine, and held to the same contracts as the real ones."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from narrows.control import Pointer
from narrows.decision import DecisionRecord
from narrows.errors import Conflict
from narrows.events import Event
from narrows.features.codec import decode, encode
from narrows.features.state import ITEM_PREFIX, ITEM_RETENTION_S, VisitorState, Write
from narrows.features.stream import DeadLetter
from narrows.freshening import ItemEntry, ItemWrite, RowBlock
from narrows.policy import Change
from narrows.visitor import Remembered

RETENTION_S = 90 * 86_400.0


class MemoryStateStore:
    """Visitors' states, encoded as they would be stored."""

    def __init__(self, *, clock: Callable[[], float], retention_s: float = RETENTION_S) -> None:
        self._clock = clock
        self._retention_s = retention_s
        self._rows: dict[str, tuple[int, bytes, float]] = {}
        self._lock = threading.Lock()

    def get_many(self, keys: Sequence[str]) -> Mapping[str, VisitorState]:
        with self._lock:
            rows = {key: self._rows[key] for key in keys if key in self._rows}
        now = self._clock()
        return {
            key: decode(data)._replace(version=version)
            for key, (version, data, expires_at) in rows.items()
            if expires_at > now
        }

    def put(self, key: str, state: VisitorState, expected_version: int) -> None:
        self.put_all([Write(key, state, expected_version)])

    def put_all(self, writes: Sequence[Write]) -> None:
        now = self._clock()
        rows = {one.key: self._row(one, now) for one in writes}
        with self._lock:
            lost = [at for at, one in enumerate(writes) if one.expected_version != self._stands(one, now)]
            if lost:
                raise Conflict(f"{len(lost)} of {len(writes)} states have other versions by now", lost)
            self._rows.update(rows)

    def _stands(self, write: Write, now: float) -> int:
        version, _, expires_at = self._rows.get(write.key, (0, b"", 0.0))
        return version if expires_at > now else 0

    def _row(self, write: Write, now: float) -> tuple[int, bytes, float]:
        version = write.expected_version + 1
        retention_s = ITEM_RETENTION_S if write.key.startswith(ITEM_PREFIX) else self._retention_s
        return version, encode(write.state._replace(version=version)), now + retention_s


@dataclass
class MemoryDeadLetters:
    """Records that were given up, in the order of their arrival."""

    letters: list[DeadLetter] = field(default_factory=list)

    def put(self, letters: Sequence[DeadLetter]) -> None:
        self.letters.extend(letters)


class MemorySlateStore:
    """The last slate of each visitor and surface."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, str], tuple[Remembered, float]] = {}

    def read(self, key: str, surface: str, *, now: float) -> Remembered | None:
        remembered, expires_at = self._rows.get((key, surface), (None, 0.0))
        return remembered if expires_at > now else None

    def write(self, key: str, surface: str, remembered: Remembered, *, expires_at: float) -> None:
        stored, _ = self._rows.get((key, surface), (None, 0.0))
        if stored is None or stored.at <= remembered.at:
            self._rows[key, surface] = (remembered, expires_at)


class MemoryPolicyLog:
    """The ordered log of policy changes."""

    def __init__(self) -> None:
        self._changes: list[Change] = []
        self._lock = threading.Lock()

    def read(self, since: int) -> Sequence[Change]:
        with self._lock:
            return [change for change in self._changes if change.version > since]

    def append(self, changes: Sequence[Change], *, now: float) -> int:
        with self._lock:
            for change in changes:
                self._changes.append(replace(change, version=len(self._changes) + 1, at=now))
            return len(self._changes)


class MemoryItemTable:
    """Items and the next row, stored together with what the rules must know of them."""

    def __init__(self, policy: MemoryPolicyLog) -> None:
        self._policy = policy
        self._entries: dict[str, ItemEntry] = {}
        self._next_row: int | None = None
        self._lock = threading.Lock()

    def read(self, item_ids: Sequence[str]) -> Mapping[str, ItemEntry]:
        with self._lock:
            return {one: self._entries[one] for one in item_ids if one in self._entries}

    def next_row(self) -> int | None:
        return self._next_row

    def write(
        self, writes: Sequence[ItemWrite], block: RowBlock | None, changes: Sequence[Change], *, now: float
    ) -> None:
        with self._lock:
            there = [self._entries.get(one.entry.item_id) for one in writes]
            lost = [
                at
                for at, (one, stored) in enumerate(zip(writes, there, strict=True))
                if (stored.version if stored else None) != one.replaces
            ]
            if lost or (block and block.expected != self._next_row):
                raise Conflict(f"{len(lost)} of {len(writes)} items, or the next row, were moved", lost)
            self._entries |= {one.entry.item_id: one.entry for one in writes}
            self._next_row = block.next_row if block else self._next_row
            self._policy.append(changes, now=now)


@dataclass
class MemoryRecordSink:
    """Decision records, in the order in which they were made."""

    records: list[DecisionRecord] = field(default_factory=list)

    def append(self, record: DecisionRecord) -> None:
        self.records.append(record)

    def flush(self) -> None:
        """Nothing waits here."""


@dataclass
class MemoryEventStream:
    """Accepted events, in the order of their arrival."""

    events: list[Event] = field(default_factory=list)

    def put(self, events: Sequence[Event]) -> Mapping[int, str]:
        self.events.extend(events)
        return {}


@dataclass
class MemoryObjects:
    """Files by key."""

    files: dict[str, bytes] = field(default_factory=dict)

    def put(self, key: str, data: bytes) -> None:
        self.files[key] = data

    def get(self, key: str) -> bytes | None:
        return self.files.get(key)

    def keys(self, prefix: str) -> list[str]:
        return sorted(key for key in self.files if key.startswith(prefix))


class MemoryControlTable:
    """Pointers to what is live."""

    def __init__(self) -> None:
        self._pointers: dict[str, Pointer] = {}
        self._lock = threading.Lock()

    def read(self, name: str) -> Pointer | None:
        return self._pointers.get(name)

    def move(self, name: str, pointer: Pointer, *, expected: str | None) -> None:
        with self._lock:
            stands = self._pointers.get(name)
            if (stands.version if stands else None) != expected:
                raise Conflict(f"pointer {name}: {expected} was expected, {stands} stands there")
            self._pointers[name] = pointer
