"""A batch of events from a producer: a verdict for each, pseudonyms before anything is kept."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal, Protocol

from narrows.envelope import FIELDS, LIMITS, Limits, parse_event
from narrows.errors import InvalidInput, StoreUnavailable
from narrows.events import Event, pseudonym, pseudonymise

QUARANTINE = "quarantine/events"
PUBLIC = frozenset(FIELDS) - {"user_id", "session_id"}
"""The fields that are kept of a rejected event as they were sent; unknown ones may hold anything."""

SEND_AGAIN = "the event was not stored; send it again"


class EventStream(Protocol):
    """Where accepted events go, in order for each visitor."""

    def put(self, events: Sequence[Event]) -> Mapping[int, str]:
        """Store them; the position in `events` of each that could finally not be stored, and why."""


class ObjectStore(Protocol):
    """Files by key."""

    def put(self, key: str, data: bytes) -> None:
        """Store under the key, replacing what is there; StoreUnavailable when it cannot."""

    def get(self, key: str) -> bytes | None:
        """What is stored under the key, None for nothing; StoreUnavailable when it cannot tell."""

    def keys(self, prefix: str) -> list[str]:
        """Every key that starts with the prefix, sorted."""


@dataclass(frozen=True)
class Verdict:
    """What became of the event at `index`; a rejected one names field, value and remedy."""

    index: int
    event_id: str | None
    status: Literal["accepted", "rejected"]
    field: str | None = None
    value: str | None = None
    remedy: str | None = None

    def shown(self) -> dict[str, Any]:
        """For the response: only what is known."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Collected:
    """A verdict for each event, in order; `quarantine_failure`: why the bad ones were not kept, or ""."""

    verdicts: tuple[Verdict, ...]
    quarantine_failure: str = ""

    @property
    def accepted(self) -> int:
        return sum(one.status == "accepted" for one in self.verdicts)

    @property
    def unkept(self) -> int:
        """Rejected events whose copy is lost: only their producer has read why."""
        if not self.quarantine_failure:
            return 0
        return sum(one.status == "rejected" and one.remedy != SEND_AGAIN for one in self.verdicts)


def collect(
    sent: Sequence[object],
    *,
    types: Collection[str],
    now: float,
    key: bytes,
    stream: EventStream,
    quarantine: ObjectStore,
    limits: Limits = LIMITS,
    user_agent: str | None = None,
) -> Collected:
    """Judge each event on its own, store the good ones in the stream and the bad ones with their reason.

    Nothing is stored under the visitor's own identifiers. An event that the stream refuses in the end is
    answered as rejected, with the remedy to send it again. `user_agent` is the one of the request.
    """
    verdicts: dict[int, Verdict] = {}
    good: list[tuple[int, Event]] = []
    for index, raw in enumerate(sent):
        try:
            event = parse_event(raw, types=types, now=now, limits=limits, user_agent=user_agent)
            good.append((index, pseudonymise(event, key)))
        except InvalidInput as error:
            verdicts[index] = _rejected(index, raw, error)
    failure = _keep([(sent[index], verdict) for index, verdict in verdicts.items()], quarantine, now, key)
    refused = stream.put([event for _, event in good]) if good else {}
    for position, (index, event) in enumerate(good):
        if position in refused:
            reason = refused[position]
            verdicts[index] = Verdict(index, event.event_id, "rejected", "event", reason, SEND_AGAIN)
        else:
            verdicts[index] = Verdict(index, event.event_id, "accepted")
    return Collected(tuple(verdicts[index] for index in sorted(verdicts)), failure)


def _rejected(index: int, raw: object, error: InvalidInput) -> Verdict:
    event_id = raw.get("event_id") if isinstance(raw, Mapping) else None
    shown = event_id[:256] if isinstance(event_id, str) else None
    return Verdict(index, shown, "rejected", error.field, error.value, error.remedy)


def _keep(rejected: Sequence[tuple[object, Verdict]], quarantine: ObjectStore, now: float, key: bytes) -> str:
    """One object for the rejected events of a batch, named by its content; the failure, "" for none."""
    if not rejected:
        return ""
    lines = [
        {
            "received_at": now,
            "index": verdict.index,
            "field": verdict.field,
            "value": _value_without_identifiers(raw, verdict, key),
            "remedy": verdict.remedy,
            "event": _without_identifiers(raw, key),
        }
        for raw, verdict in rejected
    ]
    text = "".join(json.dumps(line, sort_keys=True) + "\n" for line in lines).encode()
    day = datetime.fromtimestamp(now, UTC).date().isoformat()
    name = f"{QUARANTINE}/dt={day}/{hashlib.sha256(text).hexdigest()[:32]}.jsonl.gz"
    try:
        quarantine.put(name, gzip.compress(text, mtime=0))
    except StoreUnavailable as error:
        return str(error)
    return ""


def _without_identifiers(raw: object, key: bytes) -> object:
    """The rejected event as it may be kept: identifiers and unknown fields are pseudonyms."""
    if not isinstance(raw, Mapping):
        return {"type": type(raw).__name__}
    return {str(name): value if name in PUBLIC else _masked(value, key) for name, value in raw.items()}


def _value_without_identifiers(raw: object, verdict: Verdict, key: bytes) -> str | None:
    """The refused value as it was answered, unless it may tell who the visitor is."""
    field = verdict.field or ""
    of_the_whole = field == "event" and isinstance(raw, Mapping) and field not in raw
    is_public = of_the_whole or re.split(r"[.\[]", field, maxsplit=1)[0] in PUBLIC
    return verdict.value if is_public else _masked(verdict.value, key)


def _masked(value: object, key: bytes) -> str | None:
    if value is None or value == "":
        return None
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    return pseudonym(text.encode("utf-8", "replace").decode(), key)
