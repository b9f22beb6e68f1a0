"""Decision records into remembered slates: what a visitor saw last, and the candidates it was chosen from."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

from narrows.decision import DecisionRecord
from narrows.errors import InvalidInput, StoreUnavailable
from narrows.features.stream import Failure, StreamRecord
from narrows.visitor import Remembered, SlateStore

REMEMBER_S = 7 * 86_400.0
CANDIDATES = 100
PERSONAL_RUNGS = frozenset({"full", "remembered", "in_process"})
"""Only what was made for the visitor is worth showing again; the other rungs would replace it by less."""


@dataclass
class _Latest:
    remembered: Remembered
    sequences: list[str] = field(default_factory=list)


def remember_slates(
    records: Sequence[StreamRecord], store: SlateStore, *, executor: Executor, keep_s: float = REMEMBER_S
) -> list[Failure]:
    """Store the newest slate of each visitor and surface in the batch; the records that could not be."""
    latest: dict[tuple[str, str], _Latest] = {}
    failures: list[Failure] = []
    for record in records:
        try:
            decision = DecisionRecord.from_json(record.data)
        except InvalidInput as error:
            failures.append(Failure(record.sequence, f"malformed: {error}"))
        else:
            _note(decision, record.sequence, latest)
    writes = [
        (one, executor.submit(_write, store, key, surface, one.remembered, keep_s))
        for (key, surface), one in latest.items()
    ]
    for one, write in writes:
        reason = write.result()
        if reason:
            failures += [Failure(sequence, reason) for sequence in one.sequences]
    return sorted(failures, key=lambda failure: int(failure.sequence))


def _note(decision: DecisionRecord, sequence: str, latest: dict[tuple[str, str], _Latest]) -> None:
    key = decision.user_key or decision.session_key
    if key is None or decision.rung not in PERSONAL_RUNGS or not decision.slate:
        return
    slate = tuple(item.item_id for item in decision.slate)
    remembered = Remembered(slate, decision.remembered[:CANDIDATES], decision.at)
    one = latest.setdefault((key, decision.surface), _Latest(remembered))
    if one.remembered.at <= remembered.at:
        one.remembered = remembered
    one.sequences.append(sequence)


def _write(store: SlateStore, key: str, surface: str, remembered: Remembered, keep_s: float) -> str:
    try:
        store.write(key, surface, remembered, expires_at=remembered.at + keep_s)
    except StoreUnavailable as error:
        return f"unavailable: {error}"
    return ""
