"""A batch of stream records as one file of the lake's landing zone."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from narrows.features.stream import StreamRecord

LANDING = "landing"
QUARANTINE = "quarantine"
_NUMBER = bool | int | float


@dataclass(frozen=True)
class LandingFile:
    """A gzipped file of JSON lines, and the key under which it is stored."""

    key: str
    data: bytes


def landing_files(records: Sequence[StreamRecord], kind: str, arrived_at: float) -> list[LandingFile]:
    """One file for the batch, and one in quarantine for its records that are not JSON objects.

    `kind` is "events" or "decisions"; `arrived_at` is when the stream took the first record, epoch seconds.
    The key names shard, first and last sequence number, so a batch that comes again replaces itself. Each
    line holds its record, with `shard` and `sequence` added, and `properties` split into `texts`, `numbers`.
    """
    if not records:
        return []
    day = datetime.fromtimestamp(arrived_at, UTC).date().isoformat()
    first, last = records[0], records[-1]
    name = f"{kind}/dt={day}/{first.shard}-{first.sequence}-{last.sequence}.jsonl.gz"
    good: list[str] = []
    bad: list[str] = []
    for record in records:
        line = _line(record)
        (bad if line is None else good).append(line or _damaged(record))
    folders = ((LANDING, good), (QUARANTINE, bad))
    return [LandingFile(f"{folder}/{name}", _zipped(lines)) for folder, lines in folders if lines]


def _line(record: StreamRecord) -> str | None:
    try:
        content = json.loads(record.data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict):
        return None
    return _compact({**_typed(content), "shard": record.shard, "sequence": record.sequence})


def _typed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The record with its `properties` by type, as `texts` and `numbers`: a column holds one type."""
    line = {name: value for name, value in content.items() if name != "properties"}
    properties = content.get("properties")
    if isinstance(properties, dict) and properties:
        line["texts"] = {name: one for name, one in properties.items() if isinstance(one, str)}
        line["numbers"] = {name: float(one) for name, one in properties.items() if isinstance(one, _NUMBER)}
    return line


def _damaged(record: StreamRecord) -> str:
    return _compact({"shard": record.shard, "sequence": record.sequence, "data": record.data.hex()})


def _zipped(lines: Sequence[str]) -> bytes:
    return gzip.compress(("\n".join(lines) + "\n").encode(), mtime=0)


def _compact(content: object) -> str:
    return json.dumps(content, separators=(",", ":"))
