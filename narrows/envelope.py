"""What a producer may send: the versions of the event envelope, and the verdict on everything else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from narrows.errors import InvalidInput
from narrows.events import (
    AHEAD_S,
    DERIVED,
    EXCLUDING_TYPES,
    ID_CHARACTERS,
    LARGEST,
    NEWEST_VERSION,
    NO_PROPERTIES,
    QUERY_CHARACTERS,
    Event,
    Scalar,
    checked_text,
    nearest,
    parse_moment,
)
from narrows.marking import marks

SCHEMA_VERSIONS = tuple(range(1, NEWEST_VERSION + 1))
FIELDS = (
    *("event_id", "event_type", "event_value", "sent_at", "received_at", "user_id", "session_id", "item_id"),
    *("recommendation_id", "position", "surface", "impression", "query", "context", "properties"),
    *("schema_version", "consent"),
)
CONTEXT_KEPT = ("device", "location")
"""What is kept of the context, as properties of these names."""

CONTEXT = (*CONTEXT_KEPT, "user_agent")


@dataclass(frozen=True)
class Limits:
    """What one event may hold; times in seconds around the moment of receipt.

    A deployment may be stricter; what goes beyond these the stream's readers refuse. `magnitude`: how far
    from 0 its numbers may lie.
    """

    ahead_s: float = AHEAD_S
    behind_s: float = 30 * 86_400.0
    id_characters: int = ID_CHARACTERS
    query_characters: int = QUERY_CHARACTERS
    impressions: int = 200
    properties: int = 50
    property_characters: int = 1_024
    position: int = 100_000
    characters: int = 64_000
    magnitude: float = LARGEST


LIMITS = Limits()


def upgrade(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """The sent event in the newest schema version, whichever known one it was sent in."""
    version = _schema_version(raw.get("schema_version"))
    while version < NEWEST_VERSION:
        raw, version = _UPGRADES[version](raw), version + 1
    return raw


def parse_event(
    raw: object,
    *,
    types: Collection[str],
    now: float,
    limits: Limits = LIMITS,
    user_agent: str | None = None,
) -> Event:
    """The event that a producer sent, or `InvalidInput` naming the field, the value and what to send instead.

    Without `event_id` the id follows from the content, so that a retry of the same event is recognised;
    without `sent_at` the event happened at `now`, and then two equal events are two events. `user_agent` is
    the one of the request that brought it; a bot's leaves its mark.
    """
    if not isinstance(raw, Mapping):
        raise InvalidInput("event", raw, "send a JSON object")
    newest = upgrade(raw)
    _refuse_unknown_fields(newest)
    reader = _Reader(newest, limits)
    event_type = _event_type(reader, types)
    user_id, session_id = reader.identifier("user_id"), reader.identifier("session_id")
    if user_id is None and session_id is None:
        raise InvalidInput("user_id", None, "send user_id or session_id, or both")
    context = _context(newest.get("context"), limits)
    event = Event(
        event_id=reader.identifier("event_id") or _derived_id(raw, now),
        event_type=event_type,
        time=_moment(newest.get("sent_at"), now, limits),
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
        properties=_with_context(_properties(newest.get("properties"), limits), context),
        consent=reader.flag("consent", missing=True),
        marks=marks(context.get("user_agent"), user_agent),
    )
    if event_type in EXCLUDING_TYPES and event.item_id is None:
        raise InvalidInput("item_id", None, f"a {event_type} event needs the item that it is about")
    _refuse_too_much(event, limits)
    return event


def _from_version_1(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """Version 1 has no `context`: where a visitor was, and on what, were properties like any other."""
    if "context" in raw:
        raise InvalidInput(
            "context", raw["context"], 'it came with schema version 2; send "schema_version": 2'
        )
    upgraded = {**raw, "schema_version": 2}
    properties = raw.get("properties")
    if isinstance(properties, Mapping):
        context = {name: properties[name] for name in CONTEXT if _is_said(properties.get(name))}
        if context:
            upgraded["context"] = context
            upgraded["properties"] = {name: one for name, one in properties.items() if name not in context}
    return upgraded


def _is_said(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


_UPGRADES: Mapping[int, Callable[[Mapping[str, Any]], Mapping[str, Any]]] = {1: _from_version_1}


def _context(value: object, limits: Limits) -> Mapping[str, str]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidInput("context", value, f"send an object with {', '.join(CONTEXT)}")
    context: dict[str, str] = {}
    for name, one in value.items():
        if name not in CONTEXT:
            close = nearest(str(name), CONTEXT)
            remedy = f"did you mean '{close}'?" if close else "send it under 'properties'"
            raise InvalidInput(f"context.{name}", one, f"no such field in a context; {remedy}")
        if one is not None:
            context[name] = checked_text(f"context.{name}", one, limits.property_characters)
    return context


def _with_context(properties: Mapping[str, Scalar], context: Mapping[str, str]) -> Mapping[str, Scalar]:
    """The properties and, beside them, what is kept of the context: not the user agent."""
    kept = {name: context[name] for name in CONTEXT_KEPT if name in context}
    for name in kept:
        if name in properties:
            remedy = f"send it once, as context.{name}"
            raise InvalidInput(f"properties.{name}", properties[name], remedy)
    return {**properties, **kept} if kept else properties


def _refuse_too_much(event: Event, limits: Limits) -> None:
    """Each field is within its limit; all together must fit into one record of the stream."""
    shown = sum(map(len, event.impression))
    said = sum(len(name) + len(one) for name, one in event.properties.items() if isinstance(one, str))
    if shown + said > limits.characters:
        remedy = f"send at most {limits.characters} in one event: less in 'impression' or 'properties'"
        raise InvalidInput("event", f"{shown + said} characters", remedy)


@dataclass(frozen=True)
class _Reader:
    raw: Mapping[str, Any]
    limits: Limits

    def text(self, name: str, longest: int, *, needed: bool = False) -> str | None:
        value = self.raw.get(name)
        if value is None:
            return None
        return checked_text(name, value, longest, needed=needed)

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
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidInput(name, value, "send a finite number")
        _refuse_beyond(name, value, self.limits)
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


def _event_type(reader: _Reader, types: Collection[str]) -> str:
    event_type = reader.text("event_type", reader.limits.id_characters, needed=True)
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
        return NO_PROPERTIES
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
    _refuse_beyond(path, value, limits)
    return value


def _refuse_beyond(path: str, value: float, limits: Limits) -> None:
    """nan as well: it lies between no two numbers."""
    if not -limits.magnitude <= value <= limits.magnitude:
        remedy = f"send a finite number, from {-limits.magnitude:g} to {limits.magnitude:g}"
        raise InvalidInput(path, value, remedy)


def _schema_version(value: object) -> int:
    if value is None:
        return 1
    if isinstance(value, bool) or value not in SCHEMA_VERSIONS:
        known = " and ".join(str(version) for version in SCHEMA_VERSIONS)
        raise InvalidInput(
            "schema_version", value, f"the known schema versions are {known}; send one of them"
        )
    return int(value)


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
    return DERIVED + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:40]
