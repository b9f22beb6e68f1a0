"""What a client sends to POST /api/recommendations/{surface}, and what it is answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lambdas.http import json_object, refuse_unknown
from narrows.errors import InvalidInput, UnknownSurface
from narrows.events import checked_text, nearest, parse_moment
from narrows.item_details import Details
from narrows.pipeline import Recommendation
from narrows.settings import LARGEST_LIMIT, App

BYTES_A_REQUEST = 16_384
FIELDS = ("user_id", "session_id", "limit", "context", "item_id", "item_ids", "explain")
CONTEXT_FIELDS = ("device", "location", "time")
ID_CHARACTERS = 256
CONTEXT_CHARACTERS = 64
CONTEXT_ITEMS = 100
AHEAD_S = 300.0


@dataclass(frozen=True)
class Ask:
    """A valid request, with the identifiers as the client sent them."""

    surface: str
    limit: int
    user_id: str | None = None
    session_id: str | None = None
    item_ids: tuple[str, ...] = ()
    context: Mapping[str, str] = field(default_factory=dict)
    explain: bool = False


def asked(event: Mapping[str, Any], surface: str, *, app: App, now: float) -> Ask:
    """The request; UnknownSurface, TooLarge or InvalidInput with what to send instead."""
    if surface not in app.surfaces:
        close = nearest(surface, app.surfaces)
        hint = f"did you mean '{close}'? " if close else ""
        raise UnknownSurface("surface", surface, f"{hint}use one of {', '.join(app.surfaces)}")
    body = json_object(event, limit_bytes=BYTES_A_REQUEST, fields=FIELDS, finite=True)
    user_id, session_id = _identifier(body, "user_id"), _identifier(body, "session_id")
    if user_id is None and session_id is None:
        raise InvalidInput("user_id", None, "send user_id or session_id, or both")
    return Ask(
        surface=surface,
        limit=_limit(body.get("limit"), app.surfaces[surface].limit),
        user_id=user_id,
        session_id=session_id,
        item_ids=_items(body),
        context=_context(body.get("context"), now),
        explain=_flag(body, "explain"),
    )


@dataclass(frozen=True)
class Explanation:
    """What is known of the `items` of an answer, and all that could have been in it, best first."""

    items: Mapping[str, Details]
    eligible: Sequence[str]


def shown(recommendation: Recommendation, explanation: Explanation | None) -> dict[str, Any]:
    """The answer; with an explanation also how it came about."""
    content = recommendation.content()
    return content if explanation is None else {**content, "trace": _trace(recommendation, explanation)}


def _trace(recommendation: Recommendation, explanation: Explanation) -> dict[str, Any]:
    record = recommendation.record
    ranks = {one.item_id: dict(one.sources) for one in record.considered}
    return {
        "rung": recommendation.fallback,
        "stages_ms": dict(record.stage_ms),
        "history": [{"item_id": item_id, "time": time} for item_id, time in record.history],
        "sources": {
            item.item_id: {"source": item.source, "ranks": ranks.get(item.item_id, {})}
            for item in recommendation.slate
        },
        "items": dict(explanation.items),
        "eligible": list(explanation.eligible),
        "counts": dict(record.counts),
        "gate": dict(record.gate),
        "visitor_features": dict(record.visitor_features),
        "snapshot_version": record.snapshot_version,
    }


def _identifier(body: Mapping[str, Any], name: str) -> str | None:
    value = body.get(name)
    return None if value is None else checked_text(name, value, ID_CHARACTERS)


def _limit(value: object, usual: int) -> int:
    if value is None:
        return usual
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST_LIMIT:
        raise InvalidInput("limit", value, f"send an integer from 1 to {LARGEST_LIMIT}")
    return value


def _items(body: Mapping[str, Any]) -> tuple[str, ...]:
    one, many = _identifier(body, "item_id"), body.get("item_ids")
    if many is None:
        many = []
    if not isinstance(many, list) or len(many) > CONTEXT_ITEMS:
        raise InvalidInput("item_ids", many, f"send a list of at most {CONTEXT_ITEMS} item ids")
    ids = [checked_text(f"item_ids[{index}]", value, ID_CHARACTERS) for index, value in enumerate(many)]
    return tuple(dict.fromkeys([one, *ids] if one else ids))


def _context(value: object, now: float) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidInput("context", value, "send an object with device, location or time")
    refuse_unknown("context.", value, CONTEXT_FIELDS)
    context = {
        name: checked_text(f"context.{name}", value[name], CONTEXT_CHARACTERS)
        for name in ("device", "location")
        if value.get(name) is not None
    }
    if value.get("time") is not None:
        if parse_moment("context.time", value["time"]) > now + AHEAD_S:
            remedy = f"it is more than {AHEAD_S:g} seconds ahead of our clock; check the client's clock"
            raise InvalidInput("context.time", value["time"], remedy)
        context["time"] = str(value["time"])
    return context


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise InvalidInput(name, value, "send true or false")
    return value
