"""What an operator sends to POST /api/policy/changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from lambdas.http import json_object, refuse_unknown
from narrows.errors import InvalidInput, TooLarge
from narrows.events import checked_text, nearest
from narrows.policy import Change, ChangeKind, Value

CHANGES_AT_ONCE = 500
BYTES_AT_ONCE = 200_000
FIELDS = ("changes",)
CHANGE_FIELDS = ("kind", "item_id", "value")
KINDS: tuple[str, ...] = tuple(kind for kind in get_args(ChangeKind) if kind != "deleted")
"""A deletion comes with the item itself: POST /api/items."""

REGIONS_AN_ITEM = 300


def sent_changes(event: Mapping[str, Any]) -> list[Change]:
    """The changes of an HTTP request, or of a direct invocation with the same content."""
    if "requestContext" in event:
        event = json_object(event, limit_bytes=BYTES_AT_ONCE, fields=FIELDS, finite=True)
    else:
        refuse_unknown("", event, FIELDS)
    changes = event.get("changes")
    if not isinstance(changes, list) or not changes:
        raise InvalidInput(
            "changes", changes, 'send {"changes": [{"kind": ..., "item_id": ..., "value": ...}]}'
        )
    if len(changes) > CHANGES_AT_ONCE:
        raise TooLarge("changes", f"{len(changes)} changes", f"send at most {CHANGES_AT_ONCE} at once")
    return [_change(f"changes[{index}]", one) for index, one in enumerate(changes)]


def _change(path: str, raw: object) -> Change:
    if not isinstance(raw, dict):
        raise InvalidInput(path, raw, "send an object with kind, item_id and value")
    refuse_unknown(f"{path}.", raw, CHANGE_FIELDS)
    kind = raw.get("kind")
    if kind not in KINDS:
        close = nearest(str(kind), KINDS)
        hint = f"did you mean '{close}'? " if close else ""
        raise InvalidInput(f"{path}.kind", kind, f"{hint}send one of {', '.join(KINDS)}")
    item_id = checked_text(f"{path}.item_id", raw.get("item_id"), 256, needed=True)
    return Change(kind, item_id, _value(f"{path}.value", kind, raw.get("value")))


def _value(path: str, kind: str, value: object) -> Value:
    if kind != "region":
        if not isinstance(value, bool):
            means = "in stock" if kind == "stock" else "blocked"
            raise InvalidInput(path, value, f"send true for {means}, else false")
        return value
    if not isinstance(value, list) or len(value) > REGIONS_AN_ITEM:
        raise InvalidInput(path, value, "send the list of regions where the item may not be shown, or []")
    return tuple(checked_text(f"{path}[{index}]", one, 64) for index, one in enumerate(value))
