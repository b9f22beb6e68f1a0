"""A stream and its pollers as a model: shards split and have lanes, batches move, handlers die.

Every store operation is a turn, and the one who gives the turns decides who goes on, who dies before or after
its operation, and who is only believed to be dead. One thread runs at a time, so a run follows from its tape.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from typing import Any

from narrows.adapters.memory import MemoryDeadLetters
from narrows.events import Event, to_record
from narrows.features.declarations import FeatureDeclaration
from narrows.features.login import StateFeatures
from narrows.features.ring import digest_of
from narrows.features.state import StateStore, VisitorState, Write
from narrows.features.stream import Outcome, StreamRecord, update_features

T0 = 1_700_000_000.0
GO, DIE_BEFORE, DIE_AFTER, BELIEVED_DEAD = "go", "die before", "die after", "believed dead"


def declared(name: str, kind: str, scope: str = "visitor", **more: Any) -> FeatureDeclaration:
    """A feature of clicks."""
    given = {"events": ("click",), "owner": "team", "description": "", "default": 0.0, "parameters": {}}
    given |= {"value": None, "where": {}, "freshness_s": None}
    return FeatureDeclaration(name=name, kind=kind, scope=scope, **{**given, **more})


class Died(BaseException):
    """The environment is gone; no `except Exception` may hold it up."""


class Inline(Executor):
    """Runs what it is given at once, in the thread that gives it."""

    def submit(self, call: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(call(*arguments, **named))
        except Exception as error:  # noqa: BLE001  # a future carries whatever was raised
            future.set_exception(error)
        return future


@dataclass
class Tape:
    """Choices, each a number; when they are used up the first possibility is taken."""

    numbers: Sequence[int]
    at: int = 0

    def choose(self, among: int) -> int:
        if self.at >= len(self.numbers):
            return 0
        self.at += 1
        return self.numbers[self.at - 1] % among


class Shards:
    """Records in shards, each cut into lanes by partition key; a child is read after its parent."""

    def __init__(self, shards: int, lanes: int) -> None:
        self.lanes = lanes
        self.open = [(f"shardId-{n:012d}", n / shards, (n + 1) / shards) for n in range(shards)]
        self.parent: dict[str, str] = {}
        self.records: dict[tuple[str, int], list[StreamRecord]] = {}
        self.events: list[tuple[str, int, Event]] = []
        self._sequence = 0

    def put(self, event: Event) -> None:
        digest = int.from_bytes(digest_of(event.partition_key), "little")
        place, lane = digest / 2**64, digest % self.lanes
        shard = next(name for name, low, high in self.open if low <= place < high)
        self._sequence += 1
        record = StreamRecord(shard, str(self._sequence), json.dumps(to_record(event)).encode())
        self.records.setdefault((shard, lane), []).append(record)
        self.events.append((shard, self._sequence, event))

    def split(self, at: int) -> None:
        """Close one shard; two new ones share its keys."""
        closed, low, high = self.open.pop(at % len(self.open))
        for start, end in ((low, (low + high) / 2), ((low + high) / 2, high)):
            name = f"shardId-{len(self.parent) + 100:012d}"
            self.parent[name] = closed
            self.open.append((name, start, end))


class Turns:
    """One handler at a time, each until its next store operation."""

    def __init__(self) -> None:
        self.arrived = threading.Semaphore(0)


@dataclass
class Invocation:
    """A handler over a batch, in a thread of its own that waits for its turns."""

    lane: tuple[str, int]
    batch: Sequence[StreamRecord]
    turns: Turns
    go: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    word: str = GO
    over: bool = False
    outcome: Outcome | None = None
    error: BaseException | None = None

    def start(self, store: StateStore, features: StateFeatures) -> None:
        def run() -> None:
            self.go.acquire()
            try:
                self.outcome = update_features(
                    self.batch,
                    _TurnStore(store, self),
                    features,
                    dead_letters=MemoryDeadLetters(),
                    executor=Inline(),
                )
            except Died:
                pass
            except BaseException as error:  # noqa: BLE001  # it is raised again where the test can see it
                self.error = error
            self.over = True
            self.turns.arrived.release()

        threading.Thread(target=run, daemon=True).start()

    def advance(self, word: str) -> None:
        """Let it run to its next operation or its end; `word` is what becomes of the one it stands before."""
        self.word = word
        self.go.release()
        self.turns.arrived.acquire()
        if self.error is not None:
            raise self.error

    def turn(self, operation: Callable[[], Any]) -> Any:
        self.turns.arrived.release()
        self.go.acquire()
        if self.word == DIE_BEFORE:
            raise Died
        answer = operation()
        if self.word == DIE_AFTER:
            raise Died
        return answer


class _TurnStore:
    """The store as one handler sees it: every operation is a turn."""

    def __init__(self, store: StateStore, invocation: Invocation) -> None:
        self._store = store
        self._invocation = invocation

    def get_many(self, keys: Sequence[str]) -> Mapping[str, VisitorState]:
        found: Mapping[str, VisitorState] = self._invocation.turn(lambda: self._store.get_many(keys))
        return found

    def put(self, key: str, state: VisitorState, expected_version: int) -> None:
        self._invocation.turn(lambda: self._store.put(key, state, expected_version))

    def put_all(self, writes: Sequence[Write]) -> None:
        self._invocation.turn(lambda: self._store.put_all(writes))


class Poller:
    """Drives handlers over the shards as Lambda does, at least once, in the order that the tape tells.

    Three of `odds` operations kill their handler.
    """

    def __init__(
        self,
        shards: Shards,
        store: StateStore,
        features: StateFeatures,
        tape: Tape,
        *,
        batch: int,
        odds: int = 12,
    ) -> None:
        self.deaths = self.invocations = self.repeated = 0
        self._shards, self._store, self._features = shards, store, features
        self._tape, self._batch, self._odds = tape, batch, odds
        self._done = dict.fromkeys(shards.records, 0)
        self._running: list[Invocation] = []
        self._zombies: list[Invocation] = []
        self._turns = Turns()

    def run(self) -> None:
        """Until every record is done and nobody runs."""
        while self._start() or self._running or self._zombies:
            alive = [*self._running, *self._zombies]
            self._step(alive[self._tape.choose(len(alive))])

    def _start(self) -> bool:
        busy = {one.lane for one in self._running}
        for lane in [one for one in self._ready() if one not in busy]:
            if self._running and self._tape.choose(3) == 1:
                continue  # later
            at = self._done[lane]
            batch = self._shards.records[lane][at : at + 1 + self._tape.choose(self._batch)]
            invocation = Invocation(lane, batch, self._turns)
            invocation.start(self._store, self._features)
            self._running.append(invocation)
            self.invocations += 1
        return bool(self._running)

    def _ready(self) -> list[tuple[str, int]]:
        left = {lane for lane, records in self._shards.records.items() if self._done[lane] < len(records)}
        unread = {shard for shard, _ in left}

        def waits(shard: str) -> bool:
            above = self._shards.parent.get(shard)
            return above is not None and (above in unread or waits(above))

        return sorted(lane for lane in left if not waits(lane[0]))

    def _step(self, one: Invocation) -> None:
        word = {1: DIE_BEFORE, 2: DIE_AFTER, 3: BELIEVED_DEAD}.get(self._tape.choose(self._odds), GO)
        zombie = one in self._zombies
        one.advance(GO if zombie and word == BELIEVED_DEAD else word)
        if zombie:
            if one.over:
                self._zombies.remove(one)
        elif word != GO and not (one.over and one.outcome):
            self.deaths += 1
            self._running.remove(one)
            if not one.over:
                self._zombies.append(one)
        elif one.over:
            self._running.remove(one)
            self._checkpoint(one)

    def _checkpoint(self, one: Invocation) -> None:
        """Up to the first failed record; now and then the checkpoint is lost and the batch comes again."""
        if self._tape.choose(8) == 1 or one.outcome is None:
            self.repeated += 1
            return
        first = min((int(failure.sequence) for failure in one.outcome.failures), default=None)
        done = sum(first is None or int(record.sequence) < first for record in one.batch)
        self._done[one.lane] += done
