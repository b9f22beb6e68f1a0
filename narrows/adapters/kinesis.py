"""Kinesis: events in, and decision records out without costing the request any time."""

from __future__ import annotations

import http.client
import json
import threading
import time
import urllib.request
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from narrows.adapters.aws import translated
from narrows.decision import DecisionRecord
from narrows.errors import StoreUnavailable
from narrows.events import Event, to_record

RECORDS_A_CALL = 500
BYTES_A_CALL = 4_500_000
BYTES_A_RECORD = 1_000_000
ATTEMPTS = 3

Entry = tuple[bytes, str]
Sleep = Callable[[float], None]


def put_records(
    client: Any, stream: str, entries: Sequence[Entry], *, attempts: int = ATTEMPTS, sleep: Sleep = time.sleep
) -> dict[int, str]:
    """Put (data, partition key) entries, the failed ones again; position -> reason of those given up."""
    failed: dict[int, str] = {}
    for chunk in _chunks(entries, failed):
        pending = chunk
        for attempt in range(attempts):
            if attempt:
                sleep(0.05 * 2**attempt)
            reasons = _put(client, stream, [entries[at] for at in pending])
            pending, refused = [pending[at] for at in reasons], {pending[at]: reasons[at] for at in reasons}
            if not pending:
                break
        else:
            failed.update(refused)
    return failed


def _chunks(entries: Sequence[Entry], failed: dict[int, str]) -> list[list[int]]:
    """Positions in calls that Kinesis accepts; a record over its limit is entered in `failed`."""
    chunks: list[list[int]] = [[]]
    size = 0
    for at, (data, key) in enumerate(entries):
        length = len(data) + len(key.encode())
        if length > BYTES_A_RECORD:
            failed[at] = "TooLarge"
            continue
        if chunks[-1] and (len(chunks[-1]) == RECORDS_A_CALL or size + length > BYTES_A_CALL):
            chunks.append([])
            size = 0
        chunks[-1].append(at)
        size += length
    return chunks if chunks[-1] else chunks[:-1]


def _put(client: Any, stream: str, entries: Sequence[Entry]) -> dict[int, str]:
    records = [{"Data": data, "PartitionKey": key} for data, key in entries]
    try:
        with translated(f"put to {stream}"):
            answer = client.put_records(StreamName=stream, Records=records)
    except StoreUnavailable as error:
        return dict.fromkeys(range(len(entries)), str(error))
    return {at: one["ErrorCode"] for at, one in enumerate(answer["Records"]) if one.get("ErrorCode")}


class KinesisEventStream:
    """Accepted events, each visitor's in one shard."""

    def __init__(self, client: Any, stream: str, *, sleep: Sleep = time.sleep) -> None:
        self._client = client
        self._stream = stream
        self._sleep = sleep

    def put(self, events: Sequence[Event]) -> Mapping[int, str]:
        entries = [
            (json.dumps(to_record(event), separators=(",", ":")).encode(), event.partition_key)
            for event in events
        ]
        return put_records(self._client, self._stream, entries, sleep=self._sleep)


class DecisionStream:
    """Decision records in a bounded buffer that a thread empties.

    `lost` counts by reason what could not be kept: "full", "unwritable" or the stream's own. Inside Lambda
    the thread is `LambdaExtension`; elsewhere `start` runs one of its own.
    """

    def __init__(
        self,
        client: Any,
        stream: str,
        *,
        capacity: int = 2_000,
        flush_at: int = 200,
        max_age_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.sent = 0
        self.lost: Counter[str] = Counter()
        self._client = client
        self._stream = stream
        self._capacity = capacity
        self._flush_at = flush_at
        self._max_age_s = max_age_s
        self._clock = clock
        self._buffer: deque[DecisionRecord] = deque()
        self._oldest = 0.0
        self._changed = threading.Condition()
        self._flushing = threading.Lock()
        self._stopped = False

    def append(self, record: DecisionRecord) -> None:
        with self._changed:
            if len(self._buffer) >= self._capacity:
                self.lost["full"] += 1
                return
            if not self._buffer:
                self._oldest = self._clock()
            self._buffer.append(record)
            if len(self._buffer) >= self._flush_at or len(self._buffer) == 1:
                self._changed.notify_all()

    def due(self) -> bool:
        """Whether enough records wait, or one has waited long enough."""
        with self._changed:
            return self._due_in() == 0.0

    def flush(self) -> None:
        with self._flushing:
            with self._changed:
                records = list(self._buffer)
                self._buffer.clear()
            entries = [entry for entry in map(self._entry, records) if entry is not None]
            try:
                failed = put_records(self._client, self._stream, entries, attempts=2)
            except Exception as error:  # noqa: BLE001  # it would end the thread, and Lambda waits for that thread
                self.lost[type(error).__name__] += len(entries)
                return
            self.sent += len(entries) - len(failed)
            self.lost.update(failed.values())

    def start(self) -> threading.Thread:
        """Flush from a daemon thread until `close`."""
        thread = threading.Thread(target=self._run, name="decision-stream", daemon=True)
        thread.start()
        return thread

    def close(self) -> None:
        """Stop the thread and flush what is left."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self.flush()

    def _entry(self, record: DecisionRecord) -> Entry | None:
        try:
            key = record.user_key or record.session_key or record.recommendation_id
            return record.to_json().encode(), key
        except (ValueError, TypeError):
            self.lost["unwritable"] += 1
            return None

    def _due_in(self) -> float | None:
        """Seconds until a flush is due, None while nothing waits."""
        if not self._buffer:
            return None
        if len(self._buffer) >= self._flush_at:
            return 0.0
        return max(0.0, self._oldest + self._max_age_s - self._clock())

    def _run(self) -> None:
        while True:
            with self._changed:
                due_in = self._due_in()
                while not self._stopped and due_in != 0.0:
                    self._changed.wait(due_in)
                    due_in = self._due_in()
                if self._stopped:
                    return
            self.flush()


class LambdaExtension:
    """An internal extension: flushes after the response has gone, before the environment is frozen.

    It asks the Runtime API for the next invocation only when the flush is done, and Lambda freezes the
    environment only when it has asked. `invocation_finished` is the handler's word that the response is made.
    """

    NAME = "narrows-decisions"

    def __init__(self, api: str, stream: DecisionStream) -> None:
        self._base = f"http://{api}/2020-01-01/extension"
        self._stream = stream
        self._finished = threading.Semaphore(0)
        self._id = ""

    def register(self) -> None:
        """Register for invocations; StoreUnavailable when the Runtime API refuses."""
        body = json.dumps({"events": ["INVOKE"]}).encode()
        headers = {"Lambda-Extension-Name": self.NAME, "Content-Type": "application/json"}
        with self._call("register", body, headers) as answer:
            self._id = answer.headers["Lambda-Extension-Identifier"]

    def start(self) -> threading.Thread:
        """Register, then follow the invocations from a daemon thread."""
        self.register()
        thread = threading.Thread(target=self._run, name=self.NAME, daemon=True)
        thread.start()
        return thread

    def invocation_finished(self) -> None:
        """The response of the current invocation is made."""
        self._finished.release()

    def _run(self) -> None:
        while True:
            try:
                event = self._next()
            except StoreUnavailable:
                return  # the environment is going away
            left_s = float(event.get("deadlineMs", 0)) / 1e3 - time.time()
            self._finished.acquire(timeout=max(0.0, left_s))
            if self._stream.due():
                self._stream.flush()

    def _next(self) -> dict[str, Any]:
        with self._call("event/next", None, {"Lambda-Extension-Identifier": self._id}) as answer:
            try:
                return dict(json.load(answer))
            except (ValueError, OSError, http.client.HTTPException) as error:
                raise StoreUnavailable(f"Runtime API: {type(error).__name__}") from error

    def _call(self, path: str, body: bytes | None, headers: Mapping[str, str]) -> Any:
        url = f"{self._base}/{path}"  # always http: Lambda's own variable
        request = urllib.request.Request(url, data=body, headers=dict(headers))  # noqa: S310
        try:
            return urllib.request.urlopen(request)  # noqa: S310  # http, from Lambda's variable
        except (OSError, http.client.HTTPException) as error:
            raise StoreUnavailable(f"Runtime API {path}: {type(error).__name__}") from error
