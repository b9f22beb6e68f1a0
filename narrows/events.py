"""What a visitor did: the event envelope, its verdicts, and the pseudonyms under which it is stored."""

from __future__ import annotations

import difflib
import hashlib
import hmac
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import MappingProxyType
from typing import Any

from narrows.errors import InvalidInput

Scalar = str | int | float | bool

SCHEMA_VERSIONS = (1,)
EXCLUDING_TYPES = frozenset({"do_not_show", "dislike"})
"""Event types that every app accepts: they put their item on the visitor's do-not-show list."""

FIELDS = (
    *("event_id", "event_type", "event_value", "sent_at", "received_at", "user_id", "session_id", "item_id"),
    *("recommendation_id", "position", "surface", "impression", "query", "properties", "schema_version"),
    "consent",
)
_DERIVED = "sha256:"
_NO_PROPERTIES: Mapping[str, Scalar] = MappingProxyType({})


@dataclass(frozen=True)
class Limits:
    """What one event may hold; times in seconds around the moment of receipt."""

    ahead_s: float = 300.0
    behind_s: float = 30 * 86_400.0
    id_characters: int = 256
    query_characters: int = 512
    impressions: int = 200
    properties: int = 50
    property_characters: int = 1_024
    position: int = 100_000


LIMITS = Limits()


@dataclass(frozen=True)
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
    properties: Mapping[str, Scalar] = field(default_factory=lambda: _NO_PROPERTIES)
    schema_version: int = 1
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

    def property_named(self, name: str) -> Scalar | None:
        """A property by name, where `event_value`, `surface`, `query` and `position` name the fields."""
        if name in ("event_value", "value") and name not in self.properties:
            return self.value
        if name in ("surface", "query", "position"):
            return getattr(self, name)  # type: ignore[no-any-return]
        return self.properties.get(name)


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
    if event_id.startswith(_DERIVED):
        event_id = pseudonym(event_id, key)
    if not event.consent:
        return replace(event, event_id=event_id, user_id=None, session_id=pseudonym(event_id, key))
    return replace(
        event,
        event_id=event_id,
        user_id=pseudonym(event.user_id, key) if event.user_id else None,
        session_id=pseudonym(event.session_id, key) if event.session_id else None,
    )


def parse_event(
    raw: object,
    *,
    types: Collection[str],
    now: float,
    limits: Limits = LIMITS,
) -> Event:
    """The event that a producer sent, or `InvalidInput` naming the field, the value and what to send instead.

    Without `event_id` the id follows from the content, so that a retry of the same event is recognised;
    without `sent_at` the event happened at `now`, and then two equal events are two events.
    """
    if not isinstance(raw, Mapping):
        raise InvalidInput("event", raw, "send a JSON object")
    _refuse_unknown_fields(raw)
    reader = _Reader(raw, limits)
    event_type = _event_type(reader, types)
    user_id, session_id = reader.identifier("user_id"), reader.identifier("session_id")
    if user_id is None and session_id is None:
        raise InvalidInput("user_id", None, "send user_id or session_id, or both")
    event = Event(
        event_id=reader.identifier("event_id") or _derived_id(raw, now),
        event_type=event_type,
        time=_moment(raw.get("sent_at"), now, limits),
        received_at=now,
        user_id=user_id,
        session_id=session_id,
        item_id=reader.identifier("item_id"),
        value=reader.number("event_value"),
        recommendation_id=reader.identifier("recommendation_id"),
        position=reader.count("position", limits.position),
        surface=reader.identifier("surface"),
        impression=reader.identifiers("impression"),
        query=reader.text("query", limits.query_characters),
        properties=_properties(raw.get("properties"), limits),
        schema_version=_schema_version(raw.get("schema_version")),
        consent=reader.flag("consent", missing=True),
    )
    if event_type in EXCLUDING_TYPES and event.item_id is None:
        raise InvalidInput("item_id", None, f"a {event_type} event needs the item that it is about")
    return event


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
    """The event that `to_record` wrote; `InvalidInput` when the record is something else."""
    if not isinstance(record, Mapping):
        raise InvalidInput("event", record, "a stored event is a JSON object")
    for name in ("event_id", "event_type"):
        if not isinstance(record.get(name), str) or not record[name]:
            raise InvalidInput(name, record.get(name), "a stored event has a non-empty string here")
    for name in ("user_id", "session_id", "item_id"):
        if not isinstance(record.get(name), str | None):
            raise InvalidInput(name, record[name], "a stored event has a string here, or nothing")
    if not record.get("user_id") and not record.get("session_id"):
        raise InvalidInput("user_id", None, "a stored event has user_id or session_id")
    _schema_version(record.get("schema_version"))
    time = _stored_number(record, "sent_at")
    if time is None:
        raise InvalidInput("sent_at", None, "a stored event has its time in epoch seconds here")
    received = _stored_number(record, "received_at")
    properties = record.get("properties")
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
        position=record.get("position"),
        surface=record.get("surface"),
        impression=tuple(record.get("impression") or ()),
        query=record.get("query"),
        properties=properties if isinstance(properties, dict) else _NO_PROPERTIES,
        schema_version=record.get("schema_version") or 1,
        consent=record.get("consent") is not False,
        marks=tuple(record.get("marks") or ()),
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
    if isinstance(value, bool) or not isinstance(value, int | float) or not _finite(value):
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


@dataclass(frozen=True)
class _Reader:
    raw: Mapping[str, Any]
    limits: Limits

    def text(self, name: str, longest: int) -> str | None:
        value = self.raw.get(name)
        if value is None:
            return None
        return checked_text(name, value, longest)

    def identifier(self, name: str) -> str | None:
        return self.text(name, self.limits.id_characters)

    def identifiers(self, name: str) -> tuple[str, ...]:
        value = self.raw.get(name)
        if value is None:
            return ()
        if not isinstance(value, list):
            raise InvalidInput(name, value, "send a list of item ids")
        if len(value) > self.limits.impressions:
            remedy = f"it has {len(value)} items; send at most {self.limits.impressions} in one event"
            raise InvalidInput(name, f"{len(value)} items", remedy)
        longest = self.limits.id_characters
        return tuple(checked_text(f"{name}[{index}]", one, longest) for index, one in enumerate(value))

    def number(self, name: str) -> float | None:
        value = self.raw.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not _finite(value):
            raise InvalidInput(name, value, "send a finite number")
        return float(value)

    def count(self, name: str, most: int) -> int | None:
        value = self.raw.get(name)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
            raise InvalidInput(name, value, f"send an integer from 0 to {most}")
        return value

    def flag(self, name: str, *, missing: bool) -> bool:
        value = self.raw.get(name)
        if value is None:
            return missing
        if not isinstance(value, bool):
            raise InvalidInput(name, value, "send true or false")
        return value


def checked_text(name: str, value: object, longest: int) -> str:
    """The value, if it is a string of 1 to `longest` characters that UTF-8 can write; else `InvalidInput`."""
    if not isinstance(value, str):
        raise InvalidInput(name, value, "send a string")
    if not value.strip():
        raise InvalidInput(name, value, "send a non-empty string, or leave the field out")
    if len(value) > longest:
        raise InvalidInput(name, value, f"it has {len(value)} characters; send at most {longest}")
    if any("\ud800" <= character <= "\udfff" or character == "\0" for character in value):
        raise InvalidInput(name, value, "it holds a NUL or half of a surrogate pair; send valid Unicode")
    return value


def _event_type(reader: _Reader, types: Collection[str]) -> str:
    event_type = reader.text("event_type", reader.limits.id_characters)
    if event_type is None:
        raise InvalidInput("event_type", None, f"send one of {', '.join(sorted(types))}")
    if event_type in types or event_type in EXCLUDING_TYPES:
        return event_type
    close = nearest(event_type, {*types, *EXCLUDING_TYPES})
    hint = f"did you mean '{close}'? " if close else ""
    raise InvalidInput("event_type", event_type, f"{hint}send one of {', '.join(sorted(types))}")


def _moment(value: object, now: float, limits: Limits) -> float:
    if value is None:
        return now
    moment = parse_moment("sent_at", value)
    if moment > now + limits.ahead_s:
        remedy = f"it is more than {limits.ahead_s:g} seconds ahead of our clock; check the producer's clock"
        if moment > 1e11:
            remedy += " (send seconds, not milliseconds)"
        raise InvalidInput("sent_at", value, remedy)
    if moment < now - limits.behind_s:
        days = limits.behind_s / 86_400
        raise InvalidInput(
            "sent_at", value, f"it is more than {days:g} days old; import old events from files"
        )
    return moment


def _properties(value: object, limits: Limits) -> Mapping[str, Scalar]:
    if value is None:
        return _NO_PROPERTIES
    if not isinstance(value, Mapping):
        raise InvalidInput("properties", value, "send an object of names and plain values")
    if len(value) > limits.properties:
        remedy = f"it has {len(value)} entries; send at most {limits.properties}"
        raise InvalidInput("properties", f"{len(value)} entries", remedy)
    kept: dict[str, Scalar] = {}
    for name, one in value.items():
        checked_text("properties", name, limits.id_characters)
        if one is not None:
            kept[name] = _property(f"properties.{name}", one, limits)
    return kept


def _property(path: str, value: object, limits: Limits) -> Scalar:
    if isinstance(value, str):
        return value if not value else checked_text(path, value, limits.property_characters)
    if not isinstance(value, bool | int | float):
        raise InvalidInput(path, value, "send a string, a number, true or false; nesting is not kept")
    if not _finite(value):
        raise InvalidInput(path, value, "send a finite number")
    return value


def _schema_version(value: object) -> int:
    if value is None:
        return 1
    if isinstance(value, bool) or value not in SCHEMA_VERSIONS:
        known = ", ".join(str(version) for version in SCHEMA_VERSIONS)
        raise InvalidInput("schema_version", value, f"known schema versions: {known}")
    return int(value)


def _stored_number(record: Mapping[str, Any], name: str) -> float | None:
    value = record.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not _finite(value):
        raise InvalidInput(name, value, "a stored event has a finite number here")
    return float(value)


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the range of a float
        return False


def _refuse_unknown_fields(raw: Mapping[str, Any]) -> None:
    for name in raw:
        if name not in FIELDS:
            close = nearest(str(name), FIELDS)
            remedy = f"did you mean '{close}'?" if close else "send it under 'properties'"
            raise InvalidInput(str(name), raw[name], f"no such field in an event; {remedy}")


def _derived_id(raw: Mapping[str, Any], now: float) -> str:
    content: dict[str, Any] = {name: value for name, value in raw.items() if name != "received_at"}
    if content.get("sent_at") is None:
        content["received_at"] = now
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)
    return _DERIVED + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:40]
