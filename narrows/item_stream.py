"""Items as they come through a stream: stored in their order, and what is refused kept with its reason."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from narrows.collecting import ObjectStore
from narrows.freshening import SEND_AGAIN, ItemVerdict
from narrows.item_upsert import sent_id
from narrows.settings import Catalogue

QUARANTINE = "quarantine/items"


@dataclass(frozen=True)
class StreamOutcome:
    """Of a batch of a stream: all before `stored_before` is done; what was `refused` is kept under `key`.

    `no_vector` of the stored ones have no vector, though something is written about them.
    """

    stored_before: int
    refused: int = 0
    key: str = ""
    no_vector: int = 0


def freshen_stream(
    sent: Sequence[object],
    freshen: Callable[[Sequence[object]], list[ItemVerdict]],
    *,
    catalogue: Catalogue,
    kept: ObjectStore,
    now: float,
) -> StreamOutcome:
    """Store what came in one batch of a stream, in order; what is refused is kept with its reason.

    It ends at the first item that could not be stored, so that no later change of it is stored before it.
    """
    done: list[tuple[object, ItemVerdict]] = []
    for part in without_twins(sent, catalogue):
        verdicts = freshen(part)
        lost = next((at for at, one in enumerate(verdicts) if one.remedy == SEND_AGAIN), len(part))
        done += zip(part[:lost], verdicts[:lost], strict=True)
        if lost < len(part):
            break
    refused = [(raw, one) for raw, one in done if one.status == "rejected"]
    key = _keep(refused, kept, now) if refused else ""
    return StreamOutcome(len(done), len(refused), key, sum(one.no_vector is not None for _, one in done))


def without_twins(sent: Iterable[object], catalogue: Catalogue) -> list[list[object]]:
    """What came in one batch, cut so that no id comes twice in a part; the order stays."""
    parts: list[list[object]] = [[]]
    seen: set[str] = set()
    for raw in sent:
        item_id = sent_id(raw, catalogue)
        if item_id is not None and item_id in seen:
            parts.append([])
            seen = set()
        seen |= {item_id} if item_id is not None else set()
        parts[-1].append(raw)
    return [part for part in parts if part]


def _keep(refused: Sequence[tuple[object, ItemVerdict]], kept: ObjectStore, now: float) -> str:
    """One object for the refused items of a batch, named by its content."""
    lines = [{"received_at": now, **verdict.shown(), "item": raw} for raw, verdict in refused]
    text = "".join(json.dumps(line, sort_keys=True, default=str) + "\n" for line in lines).encode()
    day = datetime.fromtimestamp(now, UTC).date().isoformat()
    key = f"{QUARANTINE}/dt={day}/{hashlib.sha256(text).hexdigest()[:32]}.jsonl.gz"
    kept.put(key, gzip.compress(text, mtime=0))
    return key
