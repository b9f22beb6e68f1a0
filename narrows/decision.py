"""The decision record: what was shown, from what, why, and with which versions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

from narrows.errors import InvalidInput

RECORD_VERSION = 2
READ_VERSIONS = (1, 2)


@dataclass(frozen=True)
class ShownItem:
    """One place of the slate; `position` counts from 1, `row` is the one of the record's snapshot.

    `score` is None where the rung does not score; `propensity` is the chance of this item's draw given
    those before it, 1 for one that was not drawn: multiplied over the slate, the chance of the slate.
    """

    item_id: str
    row: int
    position: int
    score: float | None
    source: str
    reason: str
    propensity: float = 1.0


@dataclass(frozen=True)
class ConsideredItem:
    """A candidate as the ranker left it; `sources`: source -> the rank, from 0, at which it offered it."""

    item_id: str
    row: int
    score: float | None
    sources: Mapping[str, int]


@dataclass(frozen=True)
class DecisionRecord:
    """Everything that explains or replays one response; visitors appear by their pseudonymous keys only.

    `at` is in epoch seconds, `stage_ms` in milliseconds. `history` is (item id, time) as the sources saw
    it, oldest first. `applied` says what events the visitor's values stand on: state key -> mark -> the last
    sequence number folded in, as `visitor.Reading` has them. `feature_fingerprint` names the declarations by
    which the features were served. `considered` is a sample, the best of the ranked; `remembered` are the
    candidates worth keeping for the visitor's next request. `counts` and `gate` count items: by stage, and by
    the rule that dropped them.
    """

    recommendation_id: str
    app: str
    surface: str
    at: float
    limit: int
    user_key: str | None
    session_key: str | None
    rung: str
    snapshot_version: str
    model_version: str | None
    policy_version: int
    context: Mapping[str, str] = field(default_factory=dict)
    context_items: tuple[str, ...] = ()
    history: tuple[tuple[str, float], ...] = ()
    visitor_features: Mapping[str, float | None] = field(default_factory=dict)
    visitor_lists: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    applied: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    request_features: Mapping[str, float | None] = field(default_factory=dict)
    feature_fingerprint: str = ""
    considered: tuple[ConsideredItem, ...] = ()
    slate: tuple[ShownItem, ...] = ()
    remembered: tuple[str, ...] = ()
    degraded: Mapping[str, str] = field(default_factory=dict)
    gate: Mapping[str, int] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    stage_ms: Mapping[str, float] = field(default_factory=dict)
    record_version: int = RECORD_VERSION

    def to_json(self) -> str:
        """One compact line; ValueError for a float that is not finite, which a record never holds."""
        content = {
            **vars(self),
            "considered": [vars(one) for one in self.considered],
            "slate": [vars(one) for one in self.slate],
        }
        return json.dumps(content, separators=(",", ":"), allow_nan=False, ensure_ascii=False, default=dict)

    @classmethod
    def from_json(cls, text: str | bytes) -> DecisionRecord:
        """The record that `to_json` wrote; InvalidInput when this code cannot read it."""
        try:
            content: dict[str, Any] = json.loads(text)
            version = content["record_version"]
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidInput("record", text, "send one line written by DecisionRecord.to_json") from error
        if version not in READ_VERSIONS:
            raise InvalidInput("record_version", version, f"this code reads versions {READ_VERSIONS}")
        if version == 1:
            content = {"visitor_lists": {}, "applied": {}, "feature_fingerprint": "", **content}
        try:
            return cls(**{one.name: _restored(one.name, content[one.name]) for one in fields(cls)})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidInput("record", text, f"a field is missing or malformed: {error}") from error


def _restored(name: str, value: Any) -> Any:
    if name == "slate":
        return tuple(ShownItem(**one) for one in value)
    if name == "considered":
        return tuple(ConsideredItem(**one) for one in value)
    if name == "visitor_lists":
        return {feature: tuple(ids) for feature, ids in value.items()}
    if name == "history":
        return tuple((item_id, time) for item_id, time in value)
    return tuple(value) if name in {"context_items", "remembered"} else value


class RecordSink(Protocol):
    """Where decision records go; never on the request's own time."""

    def append(self, record: DecisionRecord) -> None:
        """Take the record and return at once; a record that cannot be kept is counted, not raised."""

    def flush(self) -> None:
        """Hand over what was taken so far, or count what cannot be."""
