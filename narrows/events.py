"""What a visitor did, as it is stored: the event, its record, and the pseudonyms in it."""

from __future__ import annotations

import difflib
import hashlib
import hmac
import math
from collections.abc import Collection, Iterable, Mapping
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

AHEAD_S = 300.0
"""How far a producer's clock may go ahead of ours, in seconds."""
LATEST = 4_102_444_800.0
"""The moments of stored events lie between 1970 and 2100: beyond it are clocks and milliseconds."""
ID_CHARACTERS = 256
QUERY_CHARACTERS = 512

DERIVED = "sha256:"
"""Before an id that follows from the content of an event that was sent without one."""

_VERSIONS = tuple(range(1, NEWEST_VERSION + 1))
_LONGEST = (
    ("event_id", ID_CHARACTERS),
    ("event_type", ID_CHARACTERS),
    ("user_id", ID_CHARACTERS),
    ("session_id", ID_CHARACTERS),
    ("item_id", ID_CHARACTERS),
    ("recommendation_id", ID_CHARACTERS),
    ("surface", ID_CHARACTERS),
    ("query", QUERY_CHARACTERS),
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
    """The event that `to_record` wrote, of any schema version; `InvalidInput` for anything else.

    Whatever it gives can be folded and stored: its moments are dates, its texts can be written, and its
    numbers stay finite when they are summed. Every record of the stream goes through here.
    """
    if type(record) is not dict and not isinstance(record, Mapping):
        raise InvalidInput("event", record, "a stored event is a JSON object")
    version = record.get("schema_version") or 1
    if version not in _VERSIONS:
        raise InvalidInput("schema_version", version, f"this code reads versions up to {NEWEST_VERSION}")
    _refuse_damaged_texts(record)
    for name in ("event_id", "event_type"):
        if not record.get(name):
            raise InvalidInput(name, record.get(name), "a stored event has a non-empty string here")
    if not record.get("user_id") and not record.get("session_id"):
        raise InvalidInput("user_id", None, "a stored event has user_id or session_id")
    if not isinstance(record.get("consent"), bool | None):
        raise InvalidInput("consent", record["consent"], "a stored event has true or false here, or nothing")
    time, received = _stored_moments(record)
    position = _stored_number(record, "position")
    return Event(
        event_id=record["event_id"],
        event_type=record["event_type"],
        time=time,
        received_at=received,
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


def checked_text(name: str, value: object, longest: int, *, needed: bool = False) -> str:
    """The value, if it is a string of 1 to `longest` characters that UTF-8 can write; else `InvalidInput`.

    What is not `needed` may be left out instead, as the remedy says.
    """
    if not isinstance(value, str):
        raise InvalidInput(name, value, "send a string")
    if not value.strip():
        remedy = "send a non-empty string" if needed else "send a non-empty string, or leave it out"
        raise InvalidInput(name, value, remedy)
    if len(value) > longest:
        raise InvalidInput(name, value, f"it has {len(value)} characters; send at most {longest}")
    if "\0" in value or not _is_unicode(value):
        raise InvalidInput(name, value, "it holds a NUL or half of a surrogate pair; send valid Unicode")
    return value


def _is_unicode(value: str) -> bool:
    """Whether UTF-8 can write it; half of a surrogate pair it cannot."""
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _stored_number(record: Mapping[str, Any], name: str) -> float | None:
    value = record.get(name)
    if value is None or (type(value) is float and -LARGEST <= value <= LARGEST):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not is_usual(value):
        raise InvalidInput(name, value, f"a stored event has a finite number here, {USUAL}")
    return float(value)


def _refuse_damaged_texts(record: Mapping[str, Any]) -> None:
    for name, longest in _LONGEST:
        text = record.get(name)
        if text is None or (type(text) is str and len(text) <= longest and text.isascii()):
            continue
        if not isinstance(text, str) or len(text) > longest or not _is_unicode(text):
            remedy = f"a stored event has valid Unicode of at most {longest} characters here, or nothing"
            raise InvalidInput(name, text, remedy)


def _stored_moments(record: Mapping[str, Any]) -> tuple[float, float]:
    """When it was sent, and when it was received: the same where nothing says it."""
    time, received = _stored_moment(record, "sent_at"), _stored_moment(record, "received_at")
    if time is None:
        raise InvalidInput("sent_at", None, "a stored event has its time in epoch seconds here")
    if received is None:
        return time, time
    if time > received + AHEAD_S:
        remedy = f"a stored event was sent at most {AHEAD_S:g} seconds after it was received"
        raise InvalidInput("sent_at", time, remedy)
    return time, received


def _stored_moment(record: Mapping[str, Any], name: str) -> float | None:
    value = record.get(name)
    if value is None or (type(value) is float and 0.0 <= value <= LATEST):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 <= value <= LATEST:
        remedy = f"a stored event has epoch seconds here, from 0 to {LATEST:.0f}"
        raise InvalidInput(name, value, remedy)
    return float(value)


def _stored_texts(record: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = record.get(name)
    if value is None:
        return ()
    if (
        not isinstance(value, list)
        or not _are_texts(value)
        or max(map(len, value), default=0) > ID_CHARACTERS
    ):
        remedy = f"a stored event has a list of texts of at most {ID_CHARACTERS} characters here, or nothing"
        raise InvalidInput(name, value, remedy)
    return tuple(value)


def _are_texts(values: Iterable[object]) -> bool:
    """Whether all are texts that UTF-8 can write; told at once, since lists of many ids come often."""
    try:
        return _is_unicode("".join(values))  # type: ignore[arg-type]  # what is no text is told by the error
    except TypeError:
        return False


def _stored_properties(value: object) -> Mapping[str, Scalar]:
    if value is None:
        return NO_PROPERTIES
    if not isinstance(value, dict):
        raise InvalidInput("properties", value, "a stored event has an object here, or nothing")
    if not _are_texts(value):
        raise InvalidInput("properties", list(value), "a stored event has names of valid Unicode here")
    for name, one in value.items():
        kept = _is_unicode(one) if isinstance(one, str) else isinstance(one, int | float) and is_usual(one)
        if not kept:
            remedy = f"a stored event has a plain, finite value here, {USUAL}, or a text of valid Unicode"
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
