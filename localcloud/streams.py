"""Event source mappings on this machine: streams drive a handler as Lambda's own pollers do.

Per shard and in order: batches by size, bytes and window; a checkpoint after each; on failure a partial
checkpoint, bisection, bounded retries and the on-failure destination. One process is one execution
environment: it calls its handler once at a time, so a ParallelizationFactor changes nothing here.

    python -m localcloud.processes localcloud.streams --function NAME --endpoint URL --home DIR
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from localcloud.functions import REGION, Function, Outcome, enter, invoke, load
from localcloud.mappings import NO_LIMIT, Destination, EventSourceMapping, failure_report, stream_mappings
from localcloud.processes import log_to_stderr, report_ready, write_json
from localcloud.shards import BATCH_BYTES, Batch, Checkpoints, Shard, done_before_failure
from localcloud.sources import (
    OLDEST,
    IteratorExpired,
    Position,
    Record,
    ShardGone,
    Source,
    SourceUnavailable,
    Trimmed,
    in_order_of_parents,
    open_source,
)

LOG = logging.getLogger("localcloud.streams")
Call = Callable[[Mapping[str, Any]], Outcome]
Send = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True)
class Pace:
    """How soon things are tried again, in seconds; an empty shard is polled less often after a while."""

    poll_s: float = 0.05
    poll_idle_s: float = 0.2
    idle_after_s: float = 5.0
    retry_s: float = 0.1
    retry_at_most_s: float = 5.0
    discovery_s: float = 2.0
    unreachable_s: float = 1.0


@dataclass
class Counts:
    """What a mapping's runner has done since it started; `iterator_age_s` is that of the last batch."""

    invocations: int = 0
    records: int = 0
    failures: int = 0
    partial_failures: int = 0
    retries: int = 0
    bisections: int = 0
    discarded: int = 0
    undelivered: int = 0
    unreachable: int = 0
    iterator_age_s: float = 0.0


class Runner:
    """Drives one mapping: each `step` does at most one read and one invocation per shard, and never waits."""

    def __init__(
        self,
        mapping: EventSourceMapping,
        source: Source,
        call: Call,
        checkpoints: Checkpoints,
        *,
        send: Send | None = None,
        pace: Pace | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.mapping = mapping
        self.counts = Counts()
        self.shards: dict[str, Shard] = {}
        self._source = source
        self._call = call
        self._checkpoints = checkpoints
        self._send = send
        self._pace = pace or Pace()
        self._wall_clock = wall_clock
        self._next_discovery = 0.0

    def step(self, now: float) -> float:
        """Do what is due at `now` (monotonic seconds) and say when to come back."""
        if now >= self._next_discovery:
            self._next_discovery = now + self._pace.discovery_s
            self._discover(now)
        due = [self._advance(shard, now) for shard in self.shards.values()]
        for shard in [shard for shard in self.shards.values() if shard.finished]:
            del self.shards[shard.info.id]
            self._checkpoints.write(shard.info.id, replace(shard.position, kind="FINISHED"))
            self._next_discovery = now
        return min([*due, self._next_discovery])

    def _discover(self, now: float) -> None:
        """Start reading the shards that are new, but a child only when its parents are read to their end."""
        try:
            listed = self._source.shards()
        except (SourceUnavailable, ShardGone) as error:
            self._unreachable(error)
            return
        for info in in_order_of_parents(listed):
            if info.id in self.shards or any(parent in self.shards for parent in info.parents):
                continue
            position = self._checkpoints.read(info.id)
            if position is None:
                position = self._starting_position()
                self._checkpoints.write(info.id, position)
            if position.kind != "FINISHED":
                self.shards[info.id] = Shard(info, position)
                self.shards[info.id].last_record = now

    def _starting_position(self) -> Position:
        """LATEST is fixed as a time the first time, so that a restart before any record skips nothing."""
        start = self.mapping.start
        if start.kind != "LATEST":
            return start
        since = self._checkpoints.read("start")
        if since is None:
            since = Position("AT_TIMESTAMP", timestamp=self._wall_clock())
            self._checkpoints.write("start", since)
        return since

    def _advance(self, shard: Shard, now: float) -> float:
        """Read if the shard wants records, handle a batch if one is due; returns when to come back."""
        wants = not shard.work and not shard.read_to_end and len(shard.buffer) < self.mapping.batch_size
        if wants and now >= shard.next_read:
            self._read(shard, now)
        if not shard.work and self._batch_is_due(shard, now):
            shard.work.append(shard.take(self.mapping.batch_size))
        if shard.work and now >= shard.next_try:
            self._handle(shard, now)
        if shard.work:
            return shard.next_try
        return now if self._batch_is_due(shard, now) or shard.read_to_end else shard.next_read

    def _batch_is_due(self, shard: Shard, now: float) -> bool:
        if not shard.buffer:
            return False
        full = len(shard.buffer) >= self.mapping.batch_size or shard.buffer_bytes >= BATCH_BYTES
        return full or shard.read_to_end or now >= shard.buffered_since + self.mapping.window_s

    def _read(self, shard: Shard, now: float) -> None:
        idle = now - shard.last_record > self._pace.idle_after_s
        shard.next_read = now + (self._pace.poll_idle_s if idle else self._pace.poll_s)
        try:
            shard.iterator = shard.iterator or self._source.iterator(shard.info.id, shard.position)
            page = self._source.read(shard.iterator)
        except IteratorExpired:
            shard.iterator = None
        except Trimmed:
            LOG.warning(
                "%s: records after %s were trimmed before they were read", shard.info.id, shard.position
            )
            shard.iterator, shard.position = None, OLDEST
        except ShardGone:
            LOG.info("%s: the shard is gone; what was read of it will be handled", shard.info.id)
            shard.read_to_end = True
        except SourceUnavailable as error:
            self._unreachable(error)
            shard.next_read = now + self._pace.unreachable_s
        else:
            shard.iterator, shard.read_to_end = page.next_iterator, page.next_iterator is None
            self._keep(shard, page.records, now)

    def _keep(self, shard: Shard, records: Sequence[Record], now: float) -> None:
        if not records:
            return
        since = self._skip_before(shard)
        if not shard.buffer:
            shard.buffered_since = now
        shard.put([record for record in records if record.arrived_at >= since])
        shard.position = Position("AFTER_SEQUENCE_NUMBER", records[-1].sequence)
        shard.next_read, shard.last_record = now, now

    def _skip_before(self, shard: Shard) -> float:
        """A stream may go back further than the time it was asked for; what came before is not ours."""
        timed = shard.position.kind == "AT_TIMESTAMP"
        return shard.position.timestamp - self._source.time_resolution_s if timed else float("-inf")

    def _handle(self, shard: Shard, now: float) -> None:
        batch = self._without_expired(shard, shard.work.popleft())
        if batch is None:
            return
        outcome = self._invoke(shard, batch)
        done = done_before_failure(outcome, batch.records, partial=self.mapping.partial_failures)
        if done:
            self._checkpoint(shard, batch.records[done - 1])
        if done < len(batch.records):
            rest = Batch(batch.records[done:], batch.attempts)
            self._failed(shard, rest, outcome, cut=done > 0, now=now)

    def _invoke(self, shard: Shard, batch: Batch) -> Outcome:
        self.counts.iterator_age_s = round(self._wall_clock() - batch.records[-1].arrived_at, 3)
        events = [self._source.event(shard.info.id, each) for each in batch.records]
        outcome = self._call({"Records": events})
        self.counts.invocations += (
            1  # only now: whoever waits for the records wants to see what became of them
        )
        self.counts.records += len(batch.records)
        return outcome

    def _failed(self, shard: Shard, rest: Batch, outcome: Outcome, *, cut: bool, now: float) -> None:
        """Cut the batch where that is asked for, else try it again until its retries are used up."""
        if outcome.error is None:
            self.counts.partial_failures += 1
        else:
            self.counts.failures += 1
            LOG.error("%s: %s", shard.info.id, json.dumps(outcome.error, default=str))
        if self.mapping.bisect and (cut or len(rest.records) > 1):
            self.counts.bisections += 1
            shard.work.extendleft(reversed([rest] if cut else rest.halves()))
            shard.next_try = now
            return
        attempts = rest.attempts + 1
        if self.mapping.retries != NO_LIMIT and attempts > self.mapping.retries:
            self._discard(shard, rest.records, "RetryAttemptsExhausted", attempts, outcome)
            return
        self.counts.retries += 1
        shard.work.appendleft(replace(rest, attempts=attempts))
        shard.next_try = now + min(
            self._pace.retry_s * 2 ** min(rest.attempts, 16), self._pace.retry_at_most_s
        )

    def _without_expired(self, shard: Shard, batch: Batch) -> Batch | None:
        """The batch without the records older than the mapping allows; those are given up on."""
        if self.mapping.max_age_s == NO_LIMIT:
            return batch
        oldest = self._wall_clock() - self.mapping.max_age_s
        expired = next(
            (i for i, each in enumerate(batch.records) if each.arrived_at >= oldest), len(batch.records)
        )
        if expired:
            self._discard(shard, batch.records[:expired], "RecordAgeExceeded", batch.attempts, None)
        return replace(batch, records=batch.records[expired:]) if expired < len(batch.records) else None

    def _discard(
        self, shard: Shard, records: Sequence[Record], condition: str, attempts: int, outcome: Outcome | None
    ) -> None:
        self.counts.discarded += len(records)
        report = failure_report(
            self.mapping,
            self._source,
            shard.info.id,
            records,
            condition=condition,
            attempts=attempts,
            outcome=outcome,
            now=self._wall_clock(),
        )
        LOG.error("%s: gave up on %d records: %s", shard.info.id, len(records), json.dumps(report))
        if self._send is not None:
            try:
                self._send(report)
            except (BotoCoreError, ClientError) as error:
                self.counts.undelivered += 1
                LOG.error("%s: the on-failure destination refused the report: %s", shard.info.id, error)
        self._checkpoint(shard, records[-1])

    def _checkpoint(self, shard: Shard, record: Record) -> None:
        self._checkpoints.write(shard.info.id, Position("AFTER_SEQUENCE_NUMBER", record.sequence))

    def _unreachable(self, error: Exception) -> None:
        self.counts.unreachable += 1
        LOG.warning("%s: %s", self.mapping.source_arn, error)


def run(runners: Sequence[Runner], stop: threading.Event, status: Path) -> None:
    """Step every runner when it is due until `stop`; once a second their counts are written to `status`."""
    next_status = 0.0
    while not stop.is_set():
        now = time.monotonic()
        due = min((runner.step(now) for runner in runners), default=now + 1.0)
        if now >= next_status:
            write_json(status, {runner.mapping.source_arn: asdict(runner.counts) for runner in runners})
            next_status = now + 1.0
        stop.wait(max(0.0, min(due - time.monotonic(), 1.0)))


def runners_of(
    function: Function, mappings: Sequence[EventSourceMapping], *, endpoint: str, home: Path
) -> Iterator[Runner]:
    """A runner for each mapping, all calling one handler, which is imported here."""
    handler = load(function)
    for mapping in mappings:
        send = None
        if mapping.on_failure:
            send = Destination(mapping.on_failure, endpoint=endpoint, region=REGION).send
        yield Runner(
            mapping,
            open_source(mapping.source_arn, endpoint=endpoint, region=REGION, identity=function.role),
            lambda event: invoke(function, handler, event),
            Checkpoints(home / "checkpoints" / mapping.uuid),
            send=send,
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one function's mappings until SIGTERM, or until the process that started this one is gone."""
    parser = argparse.ArgumentParser(prog="localcloud.streams", description=main.__doc__)
    parser.add_argument("--function", required=True)
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--home", type=Path, required=True)
    asked = parser.parse_args(arguments)
    log_to_stderr()
    stop = threading.Event()

    def stopped(_signum: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, stopped)
    signal.signal(signal.SIGINT, stopped)
    enter([], asked.endpoint)
    client = boto3.client("lambda", endpoint_url=asked.endpoint, region_name=REGION)
    function = Function.read(client, asked.function)
    enter([function], asked.endpoint)
    mappings = tuple(stream_mappings(client, function.name))
    runners = tuple(runners_of(function, mappings, endpoint=asked.endpoint, home=asked.home))
    report_ready(function=function.name, mappings=len(mappings))
    run(runners, stop, asked.home / "run" / "streams" / f"{function.label}.json")


if __name__ == "__main__":
    main()
