"""Calls the HTTP API, here or deployed, and says how a person would make the same call."""

from __future__ import annotations

import json
import shlex
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit
from zlib import crc32

from narrows.cli.console import CommandFailed, Progress

JSON = {"content-type": "application/json"}
BATCH = 500


class Refused(CommandFailed):
    """The API answered with an error; `status` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Api:
    """The API at a base URL; each thread keeps its own connection."""

    def __init__(self, url: str, *, timeout_s: float = 30.0) -> None:
        parts = urlsplit(url if "//" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise CommandFailed(f"'{url}' is no address of an API; write for example http://127.0.0.1:8080")
        self.url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}"
        self._parts, self._timeout_s = parts, timeout_s
        self._threads = threading.local()

    def close(self) -> None:
        """Close this thread's connection; the next call opens another."""
        self._connection().close()

    def health(self) -> dict[str, Any]:
        """What the API says about itself."""
        return self._call("GET", "/api/health", None)

    def recommend(self, surface: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The slate for a request."""
        return self._call("POST", f"/api/recommendations/{surface}", body)

    def send_events(self, events: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Send one batch; the answer has a verdict for each event."""
        return self._call("POST", "/api/events", {"events": list(events)})

    def change_policy(self, changes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Set stock, regions or blocks of items."""
        return self._call("POST", "/api/policy/changes", {"changes": list(changes)})

    def change_items(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Send new, changed and deleted items; the answer has a verdict for each."""
        return self._call("POST", "/api/items", {"items": list(items)})

    def curl(self, surface: str, body: Mapping[str, Any]) -> str:
        """The command line that gets the same slate."""
        text = shlex.quote(json.dumps(body))
        return (
            f"curl -s {self.url}/api/recommendations/{surface} -H 'content-type: application/json' -d {text}"
        )

    def _call(self, method: str, path: str, body: object) -> dict[str, Any]:
        payload = None if body is None else json.dumps(body).encode()
        status, answer = self._answer(method, path, payload)
        try:
            content = json.loads(answer)
        except ValueError:
            raise Refused(status, f"{method} {path}: {status} and no JSON: {answer[:200]!r}") from None
        if status >= 400 or not isinstance(content, dict):
            raise Refused(status, f"{method} {path}: {status} {_message(content)}")
        return content

    def _answer(self, method: str, path: str, payload: bytes | None) -> tuple[int, bytes]:
        for attempt in (1, 2):
            connection = self._connection()
            try:
                connection.request(method, self._parts.path.rstrip("/") + path, payload, JSON)
                response = connection.getresponse()
                return response.status, response.read()
            except (OSError, HTTPException) as error:
                connection.close()
                if attempt == 2:  # the first may only have met a connection that had been closed
                    problem = f"{method} {self.url}{path}: {error or type(error).__name__}"
                    raise CommandFailed(f"{problem}; is it running? (narrows up)") from error
        raise AssertionError("unreachable")

    def _connection(self) -> HTTPConnection:
        connection: HTTPConnection | None = getattr(self._threads, "connection", None)
        if connection is None:
            kind = HTTPSConnection if self._parts.scheme == "https" else HTTPConnection
            connection = kind(self._parts.hostname or "", self._parts.port, timeout=self._timeout_s)
            self._threads.connection = connection
        return connection


@dataclass
class Sent:
    """How many events were sent, how many were accepted, and the first refusals."""

    events: int = 0
    accepted: int = 0
    refusals: list[str] = field(default_factory=list)


def send_in_lanes(
    api: Api, events: Iterable[Mapping[str, Any]], *, lanes: int, total: int, progress: Progress
) -> Sent:
    """Send events in batches from several clients; one visitor's events stay in order, in one lane."""
    queues: list[list[Mapping[str, Any]]] = [[] for _ in range(lanes)]
    for event in events:
        visitor = str(event.get("user_id") or event.get("session_id"))
        queues[crc32(visitor.encode()) % lanes].append(event)
    sent, lock = Sent(), threading.Lock()

    def drive(queue: Sequence[Mapping[str, Any]]) -> None:
        with closing(api):
            send(queue)

    def send(queue: Sequence[Mapping[str, Any]]) -> None:
        for start in range(0, len(queue), BATCH):
            batch = queue[start : start + BATCH]
            refusals = _refusals(api.send_events(batch))
            with lock:
                sent.events += len(batch)
                sent.accepted += len(batch) - len(refusals)
                sent.refusals.extend(refusals[: 5 - len(sent.refusals)])
                progress.to(min(sent.events, total))

    with ThreadPoolExecutor(lanes) as pool:
        for future in [pool.submit(drive, queue) for queue in queues]:
            future.result()
    return sent


def _refusals(answer: Mapping[str, Any]) -> list[str]:
    return [json.dumps(one) for one in answer["verdicts"] if one["status"] != "accepted"]


def _message(content: object) -> str:
    if isinstance(content, Mapping):
        error = content.get("error", content)
        message = error.get("message") if isinstance(error, Mapping) else error
        return str(message or content)
    return str(content)
