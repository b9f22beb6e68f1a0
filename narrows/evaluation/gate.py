"""The promotion gate: whether a candidate model replaces the current one, and why, in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from narrows.settings import PromotionGate

FEWEST_USERS = 30


@dataclass(frozen=True)
class Verdict:
    """`reason` is one sentence with the figures that decided."""

    promote: bool
    reason: str


def decide(candidate: Mapping[str, Any], current: Mapping[str, Any] | None, gate: PromotionGate) -> Verdict:
    """Compare two evaluations on the same users.

    Each is `{"users", "reports": {"two_stage", "popular", ...}, "segments": {name: {"users", "reports"}}}`.
    Promotes when the candidate is not below the popularity baseline and, where there is a current model,
    beats that by `gate.margin` and loses no more than its tolerance in any segment of at least 30 users.
    """
    score = _metric(candidate, "two_stage", gate.metric)
    if score is None or int(candidate.get("users") or 0) == 0:
        return Verdict(False, f"the candidate has no {gate.metric}: there were no held-out users to ask")
    baseline = _metric(candidate, "popular", gate.metric)
    if baseline is not None and score < baseline:
        return Verdict(
            False, f"the candidate's {gate.metric} {score:.4f} is below popularity's {baseline:.4f}"
        )
    if current is None:
        return Verdict(True, f"there is no current model, and the candidate's {gate.metric} is {score:.4f}")
    return _against(candidate, current, score, gate)


def _against(
    candidate: Mapping[str, Any], current: Mapping[str, Any], score: float, gate: PromotionGate
) -> Verdict:
    before = _metric(current, "two_stage", gate.metric)
    if before is None:
        return Verdict(True, f"the current model has no {gate.metric}, the candidate has {score:.4f}")
    if score < before + gate.margin:
        return Verdict(
            False,
            f"the candidate's {gate.metric} {score:.4f} is below the current model's {before:.4f} "
            f"plus the margin {gate.margin:.4f}",
        )
    for name, tolerance in gate.segments.items():
        lost = _loss(candidate, current, name, gate.metric)
        if lost is not None and lost > tolerance:
            return Verdict(
                False,
                f"in segment '{name}' the candidate loses {lost:.4f} of {gate.metric}, "
                f"more than the tolerated {tolerance:.4f}",
            )
    return Verdict(True, f"the candidate's {gate.metric} is {score:.4f}, the current model's {before:.4f}")


def _loss(candidate: Mapping[str, Any], current: Mapping[str, Any], name: str, metric: str) -> float | None:
    """What the segment loses; None where it has too few users to tell."""
    ours = candidate.get("segments", {}).get(name)
    theirs = current.get("segments", {}).get(name)
    if ours is None or theirs is None or min(ours["users"], theirs["users"]) < FEWEST_USERS:
        return None
    after, before = _metric(ours, "two_stage", metric), _metric(theirs, "two_stage", metric)
    return None if after is None or before is None else before - after


def _metric(evaluation: Mapping[str, Any], source: str, metric: str) -> float | None:
    value = evaluation.get("reports", {}).get(source, {}).get(metric)
    return None if value is None or value != value else float(value)
