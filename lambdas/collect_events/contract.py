"""What a producer sends to POST /api/events, and what it is answered."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lambdas.http import json_object
from narrows.collecting import Collected
from narrows.errors import InvalidInput, TooLarge

EVENTS_A_BATCH = 500
BYTES_A_BATCH = 1_000_000


def sent_events(event: Mapping[str, Any]) -> list[object]:
    """The events of the batch, not judged yet; an error here refuses the whole batch."""
    body = json_object(event, limit_bytes=BYTES_A_BATCH, fields=("events",), finite=False)
    events = body.get("events")
    if not isinstance(events, list):
        raise InvalidInput("events", events, 'send {"events": [...]}')
    if len(events) > EVENTS_A_BATCH:
        raise TooLarge("events", f"{len(events)} events", f"send at most {EVENTS_A_BATCH} events at once")
    return events


def shown(collected: Collected) -> dict[str, Any]:
    """A verdict for each event, in the order in which they were sent."""
    return {
        "accepted": collected.accepted,
        "rejected": len(collected.verdicts) - collected.accepted,
        "verdicts": [verdict.shown() for verdict in collected.verdicts],
    }
