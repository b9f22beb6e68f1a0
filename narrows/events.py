"""What a visitor did, as it is stored: the event, its record, and the pseudonyms in it."""

from __future__ import annotations

import difflib
import hashlib
import hmac
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import MappingProxyType
from typing import Any

from narrows.errors import InvalidInput

Scalar = str | int | float | bool

NEWEST_VERSION = 2
"""Of the envelope; what is stored is upgraded to it first. Records of version 1 are read all the same."""
EXCLUDING_TYPES = frozenset({"do_not_show", "dislike"})
"""Event types that every app accepts: they put their item on the visitor's do-not-show list."""

LARGEST = 1e15
"""Of a number that is folded or stored, either way: sums and squares of such stay finite, where one of 1e308
is infinite for good. Milliseconds since 1970 and article numbers of 14 digits lie below it."""
USUAL = f"from {-LARGEST:g} to {LARGEST:g}"

DERIVED = "sha256:"
"""Before an id that follows from the content of an event that was sent without one."""

_TEXTS = (
    *("event_id", "event_type", "user_id", "session_id", "item_id", "recommendation_id", "surface", "query"),
)
NO_PROPERTIES: Mapping[str, Scalar] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that a visitor did; `time` and `received_at` are epoch seconds, UTC.

    `marks` say why the event is kept and yet counts nowhere, such as "bot:user_agent".
    """

    event_id: str
    event_type: str
    time: float
    received_at: float
    user_id: str | None = None
    session_id: str | None = None
    item_id: str | None = None
    value: float | None = None
    recommendation_id: str | None = None
    position: int | None = None
    surface: str | None = None
    impression: tuple[str, ...] = ()
    query: str | None = None
    properties: Mapping[str, Scalar] = field(default_factory=lambda: NO_PROPERTIES)
    schema_version: int = NEWEST_VERSION
    consent: bool = True
    marks: tuple[str, ...] = ()

    @property
    def partition_key(self) -> str:
        """The user, else the session: one visitor's events stay in order."""
        return self.user_id or self.session_id or self.event_id

    @property
    def visitor_key(self) -> str:
        """The key of the state that this event folds into; meaningful on a pseudonymised event."""
        return user_key(self.user_id) if self.user_id else session_key(self.session_id or self.event_id)


def user_key(pseudonym_of_user: str) -> str:
    """The key of a user's state, from the pseudonym."""
    return f"u#{pseudonym_of_user}"


def session_key(pseudonym_of_session: str) -> str:
    """The key of a session's state, from the pseudonym."""
    return f"s#{pseudonym_of_session}"


def pseudonym(identifier: str, key: bytes) -> str:
    """32 hex digits that stand for the identifier and cannot be turned back without the key (HMAC-SHA256)."""
    return hmac.new(key, identifier.encode("utf-8"), hashlib.sha256).hexdigest()[:32]


def pseudonymise(event: Event, key: bytes) -> Event:
    """The event as it may be stored; without consent it belongs to nobody that another event belongs to.

    An event id derived from the content is keyed as well: its plain hash would confirm a guessed user.
    """
    event_id = event.event_id
    if event_id.startswith(DERIVED):
        event_id = pseudonym(event_id, key)
    if not event.consent:
        return replace(event, event_id=event_id, user_id=None, session_id=pseudonym(event_id, key))
    return replace(
        event,
        event_id=event_id,
        user_id=pseudonym(event.user_id, key) if event.user_id else None,
        session_id=pseudonym(event.session_id, key) if event.session_id else None,
    )


def to_record(event: Event) -> dict[str, Any]:
    """The event as a JSON object under the envelope's names; absent fields are left out."""
    record: dict[str, Any] = {
        "event_id": event.event_id,
        "event_type": event.event_type,
        "event_value": event.value,
        "sent_at": event.time,
        "received_at": event.received_at,
        "user_id": event.user_id,
        "session_id": event.session_id,
        "item_id": event.item_id,
        "recommendation_id": event.recommendation_id,
        "position": event.position,
        "surface": event.surface,
        "impression": list(event.impression) or None,
        "query": event.query,
        "properties": dict(event.properties) or None,
        "schema_version": event.schema_version,
        "consent": event.consent,
        "marks": list(event.marks) or None,
    }
    return {name: value for name, value in record.items() if value is not None}


def from_record(record: object) -> Event:
    """The event that `to_record` wrote, of any schema version; `InvalidInput` for anything else."""
    if not isinstance(record, Mapping):
        raise InvalidInput("event", record, "a stored event is a JSON object")
    version = record.get("schema_version") or 1
    if version not in range(1, NEWEST_VERSION + 1):
        raise InvalidInput("schema_version", version, f"this code reads versions up to {NEWEST_VERSION}")
    for name in _TEXTS:
        text = record.get(name)
        if text is not None and not isinstance(text, str):
            raise InvalidInput(name, text, "a stored event has a string here, or nothing")
    for name in ("event_id", "event_type"):
        if not record.get(name):
            raise InvalidInput(name, record.get(name), "a stored event has a non-empty string here")
    if not record.get("user_id") and not record.get("session_id"):
        raise InvalidInput("user_id", None, "a stored event has user_id or session_id")
    if not isinstance(record.get("consent"), bool | None):
        raise InvalidInput("consent", record["consent"], "a stored event has true or false here, or nothing")
    time = _stored_number(record, "sent_at")
    if time is None:
        raise InvalidInput("sent_at", None, "a stored event has its time in epoch seconds here")
    received, position = _stored_number(record, "received_at"), _stored_number(record, "position")
    return Event(
        event_id=record["event_id"],
        event_type=record["event_type"],
        time=time,
        received_at=time if received is None else received,
        user_id=record.get("user_id"),
        session_id=record.get("session_id"),
        item_id=record.get("item_id"),
        value=_stored_number(record, "event_value"),
        recommendation_id=record.get("recommendation_id"),
        position=None if position is None else int(position),
        surface=record.get("surface"),
        impression=_stored_texts(record, "impression"),
        query=record.get("query"),
        properties=_stored_properties(record.get("properties")),
        schema_version=version,
        consent=record.get("consent") is not False,
        marks=_stored_texts(record, "marks"),
    )


def parse_moment(field_name: str, value: object) -> float:
    """Epoch seconds from ISO 8601 with a zone or from epoch seconds; `InvalidInput` otherwise."""
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            remedy = "send ISO 8601 such as 2026-11-21T09:30:00Z, or epoch seconds"
            raise InvalidInput(field_name, value, remedy) from None
        if moment.tzinfo is None:
            raise InvalidInput(field_name, value, "add the time zone, for example a final Z for UTC")
        return _timestamp(field_name, value, moment)
    if isinstance(value, bool) or not isinstance(value, int | float) or not is_finite(value):
        raise InvalidInput(field_name, value, "send ISO 8601 with a zone, or epoch seconds as a number")
    return float(value)


def _timestamp(field_name: str, value: str, moment: datetime) -> float:
    try:
        return moment.timestamp()
    except (OverflowError, ValueError):
        raise InvalidInput(field_name, value, "send a moment that can be written in UTC") from None


def nearest(name: str, known: Collection[str]) -> str | None:
    """The known name that is closest to this one, None where none is close."""
    found = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.6)
    return found[0] if found else None


def checked_text(name: str, value: object, longest: int) -> str:
    """The value, if it is a string of 1 to `longest` characters that UTF-8 can write; else `InvalidInput`."""
    if not isinstance(value, str):
        raise InvalidInput(name, value, "send a string")
    if not value.strip():
        raise InvalidInput(name, value, "send a non-empty string, or leave the field out")
    if len(value) > longest:
        raise InvalidInput(name, value, f"it has {len(value)} characters; send at most {longest}")
    if "\0" in value or not _is_unicode(value):
        raise InvalidInput(name, value, "it holds a NUL or half of a surrogate pair; send valid Unicode")
    return value


def _is_unicode(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


def _stored_number(record: Mapping[str, Any], name: str) -> float | None:
    value = record.get(name)
    if value is None or (type(value) is float and -LARGEST <= value <= LARGEST):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not is_usual(value):
        raise InvalidInput(name, value, f"a stored event has a finite number here, {USUAL}")
    return float(value)


def _stored_texts(record: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = record.get(name)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise InvalidInput(name, value, "a stored event has a list of strings here, or nothing")
    return tuple(value)


def _stored_properties(value: object) -> Mapping[str, Scalar]:
    if value is None:
        return NO_PROPERTIES
    if not isinstance(value, dict):
        raise InvalidInput("properties", value, "a stored event has an object here, or nothing")
    for name, one in value.items():
        if not isinstance(one, str) and not (isinstance(one, bool | int | float) and is_usual(one)):
            remedy = f"a stored event has a plain, finite value here, {USUAL}"
            raise InvalidInput(f"properties.{name}", one, remedy)
    return value


def is_usual(value: float) -> bool:
    """Whether it is a number, and neither infinite nor beyond `LARGEST`."""
    return -LARGEST <= value <= LARGEST


def is_finite(value: float) -> bool:
    """Whether it is a number that a float can hold."""
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the range of a float
        return False
