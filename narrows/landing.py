"""A batch of stream records, or of changed items, as one file of the lake's landing zone."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from narrows.errors import InvalidInput
from narrows.events import from_record
from narrows.features.stream import StreamRecord
from narrows.freshening import ItemEntry

LANDING = "landing"
QUARANTINE = "quarantine"
EVENTS = "events"
ITEMS = "items"


@dataclass(frozen=True)
class LandingFile:
    """A gzipped file of JSON lines, and the key under which it is stored."""

    key: str
    data: bytes


def landing_files(records: Sequence[StreamRecord], kind: str, arrived_at: float) -> list[LandingFile]:
    """One file for the batch, and one in quarantine for its records that do not belong into the lake.

    `kind` is "events" or "decisions"; `arrived_at` is when the stream took the first record, epoch seconds.
    The key names shard, first and last sequence number, so a batch that comes again replaces itself. Each
    line holds its record, with `shard` and `sequence` added, and `properties` split into `texts`, `numbers`.
    A line in quarantine says which field was wrong, its value and the remedy, beside the record's bytes.
    """
    if not records:
        return []
    day = datetime.fromtimestamp(arrived_at, UTC).date().isoformat()
    first, last = records[0], records[-1]
    name = f"{kind}/dt={day}/{first.shard}-{first.sequence}-{last.sequence}.jsonl.gz"
    good: list[str] = []
    bad: list[str] = []
    for record in records:
        try:
            good.append(_line(record, kind))
        except InvalidInput as error:
            bad.append(_refused(record, error))
    folders = ((LANDING, good), (QUARANTINE, bad))
    return [LandingFile(f"{folder}/{name}", _zipped(lines)) for folder, lines in folders if lines]


def items_file(entries: Sequence[ItemEntry], arrived_at: float) -> LandingFile | None:
    """One file for the items of a batch, which training reads; None for none.

    The key names the content, so a batch that comes again on the same day replaces itself. A line holds id,
    version, whether the item is deleted, since when there is the item, and as JSON text what was sent of it.
    """
    if not entries:
        return None
    data = _zipped([_compact(_item_line(entry)) for entry in entries])
    day = datetime.fromtimestamp(arrived_at, UTC).date().isoformat()
    name = hashlib.sha256(data).hexdigest()[:32]
    return LandingFile(f"{LANDING}/{ITEMS}/dt={day}/{name}.jsonl.gz", data)


def _item_line(entry: ItemEntry) -> dict[str, Any]:
    return {
        "item_id": entry.item_id,
        "version": entry.version,
        "deleted": entry.deleted,
        "first_at": entry.first_at,
        "content": _compact(dict(entry.values)),
    }


def _line(record: StreamRecord, kind: str) -> str:
    """Any record is one, or raises InvalidInput: another error would fail its batch until it expires."""
    try:
        return _compact(_content(record, kind))
    except (ValueError, RecursionError) as error:
        raise InvalidInput("record", record.data[:40], f"write JSON to the stream ({error})") from None


def _content(record: StreamRecord, kind: str) -> dict[str, Any]:
    content = json.loads(record.data)
    if not isinstance(content, dict):
        raise InvalidInput("record", record.data[:40], "write a JSON object to the stream")
    if kind == EVENTS:
        from_record(content)
        content = _typed(content)
    return {**content, "shard": record.shard, "sequence": record.sequence}


def _typed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The record with its `properties` by type, as `texts` and `numbers`: a column holds one type."""
    line = {name: value for name, value in content.items() if name != "properties"}
    if properties := content.get("properties"):
        line["texts"] = {name: one for name, one in properties.items() if isinstance(one, str)}
        line["numbers"] = {name: float(one) for name, one in properties.items() if not isinstance(one, str)}
    return line


def _refused(record: StreamRecord, error: InvalidInput) -> str:
    reason = {"field": error.field, "value": error.value, "remedy": error.remedy}
    place = {"shard": record.shard, "sequence": record.sequence}
    return _compact({**place, **reason, "data": record.data.hex()})


def _zipped(lines: Sequence[str]) -> bytes:
    return gzip.compress(("\n".join(lines) + "\n").encode(), mtime=0)


def _compact(content: object) -> str:
    return json.dumps(content, separators=(",", ":"))
