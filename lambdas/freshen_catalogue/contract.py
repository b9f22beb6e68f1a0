"""What a catalogue sends to POST /api/items or into the stream of items, and what it is answered."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lambdas.http import decoded, json_object
from narrows.errors import InvalidInput, TooLarge
from narrows.features.stream import StreamRecord
from narrows.freshening import ItemVerdict

ITEMS_A_BATCH = 250
BYTES_A_BATCH = 1_000_000


def sent_items(event: Mapping[str, Any]) -> list[object]:
    """The items of the batch, not judged yet; an error here refuses the whole batch."""
    body = json_object(event, limit_bytes=BYTES_A_BATCH, fields=("items",), finite=False)
    items = body.get("items")
    if not isinstance(items, list):
        raise InvalidInput("items", items, 'send {"items": [...]}')
    if len(items) > ITEMS_A_BATCH:
        raise TooLarge("items", f"{len(items)} items", f"send at most {ITEMS_A_BATCH} items at once")
    return items


def streamed_item(record: StreamRecord) -> object:
    """The item that a record of the stream holds; what cannot be read stays text, for its verdict."""
    try:
        return decoded(record.data.decode(json.detect_encoding(record.data)))
    except ValueError:
        return record.data[:200].decode(errors="replace")


def without_vector(verdicts: Sequence[ItemVerdict]) -> int:
    """How many were stored without a vector of what is written about them."""
    return sum(one.no_vector is not None for one in verdicts)


def shown(verdicts: Sequence[ItemVerdict]) -> dict[str, Any]:
    """A verdict for each item, in the order in which they were sent."""
    rejected = sum(one.status == "rejected" for one in verdicts)
    return {
        "accepted": len(verdicts) - rejected,
        "rejected": rejected,
        "no_vector": without_vector(verdicts),
        "verdicts": [one.shown() for one in verdicts],
    }
