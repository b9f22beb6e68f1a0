"""A shard of a stream while it is read: its buffer, its batches, and the checkpoint that survives a crash."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from localcloud.functions import Outcome
from localcloud.processes import write_json
from localcloud.sources import Position, Record, ShardInfo

BATCH_BYTES = 6 * 1024 * 1024


class Checkpoints:
    """Where each shard of one mapping goes on after a crash; one small file a shard, replaced atomically."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory

    def read(self, shard_id: str) -> Position | None:
        """The stored position; None for a shard that was never read. A finished shard's kind is FINISHED."""
        path = self._path(shard_id)
        return Position(**json.loads(path.read_text())) if path.exists() else None

    def write(self, shard_id: str, position: Position) -> None:
        write_json(self._path(shard_id), asdict(position))

    def _path(self, shard_id: str) -> Path:
        return self._directory / f"{shard_id}.json"


@dataclass(frozen=True)
class Batch:
    """Consecutive records of one shard, and how often they were tried as they are."""

    records: tuple[Record, ...]
    attempts: int = 0

    def halves(self) -> tuple[Batch, Batch]:
        """The batch cut in two; cutting is not an attempt."""
        middle = len(self.records) // 2
        return replace(self, records=self.records[:middle]), replace(self, records=self.records[middle:])


class Shard:
    """What has been read of one shard and not yet been handled."""

    def __init__(self, info: ShardInfo, position: Position) -> None:
        self.info = info
        self.position = position
        self.iterator: str | None = None
        self.read_to_end = False
        self.buffer: deque[Record] = deque()
        self.buffer_bytes = 0
        self.buffered_since = 0.0
        self.work: deque[Batch] = deque()
        self.next_read = 0.0
        self.next_try = 0.0
        self.last_record = 0.0

    @property
    def finished(self) -> bool:
        return self.read_to_end and not self.buffer and not self.work

    def put(self, records: Sequence[Record]) -> None:
        """Keep records that were read, in order."""
        self.buffer.extend(records)
        self.buffer_bytes += sum(record.size for record in records)

    def take(self, at_most: int) -> Batch:
        """The next batch out of the buffer: up to `at_most` records and Lambda's 6 MB."""
        records = [self.buffer.popleft()]
        size = records[0].size
        while self.buffer and len(records) < at_most and size + self.buffer[0].size <= BATCH_BYTES:
            size += self.buffer[0].size
            records.append(self.buffer.popleft())
        self.buffer_bytes -= size
        return Batch(tuple(records))


def done_before_failure(outcome: Outcome, records: Sequence[Record], *, partial: bool) -> int:
    """How many of `records`, from the first, are done: all, those before the first failed one, or none.

    As in AWS an answer that reports a failure without a sequence number of this batch fails the whole batch.
    """
    if outcome.error is not None:
        return 0
    failures = (
        outcome.answer.get("batchItemFailures") if partial and isinstance(outcome.answer, Mapping) else None
    )
    if not failures:
        return len(records)
    position = {record.sequence: index for index, record in enumerate(records)}
    named = [item.get("itemIdentifier") if isinstance(item, Mapping) else None for item in failures]
    return min(position.get(sequence, 0) if isinstance(sequence, str) else 0 for sequence in named)
