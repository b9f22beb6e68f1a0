"""The promotion gate: every verdict with its reason."""

from __future__ import annotations

from typing import Any

import pytest

from narrows.evaluation.gate import decide
from narrows.settings import PromotionGate

METRIC = "normalized_discounted_cumulative_gain_at_10"
GATE = PromotionGate(METRIC, 0.01, {"new": 0.02})


def evaluation(
    score: float | None, *, popular: float = 0.05, new: float = 0.1, users: int = 500
) -> dict[str, Any]:
    """What the evaluation job writes for one model."""
    return {
        "users": users,
        "reports": {"two_stage": {METRIC: score}, "popular": {METRIC: popular}},
        "segments": {"new": {"users": users // 5, "reports": {"two_stage": {METRIC: new}}}},
    }


@pytest.mark.parametrize(
    ("candidate", "current", "promote", "words"),
    [
        (evaluation(0.2), None, True, "no current model"),
        (evaluation(0.2), evaluation(0.18), True, "0.2000"),
        (evaluation(0.185), evaluation(0.18), False, "margin 0.0100"),
        (evaluation(0.04), None, False, "popularity's 0.0500"),
        (evaluation(0.2, new=0.05), evaluation(0.18, new=0.1), False, "segment 'new'"),
        (evaluation(0.2, new=0.09), evaluation(0.18, new=0.1), True, "0.1800"),
        (evaluation(0.2, new=0.0, users=100), evaluation(0.18, users=100), True, "0.1800"),
        (evaluation(None), None, False, "no held-out users"),
        (evaluation(0.2, users=0), None, False, "no held-out users"),
        (evaluation(0.2), evaluation(None), True, "the current model has no"),
    ],
)
def test_the_verdict_and_its_words(
    candidate: dict[str, Any], current: dict[str, Any] | None, promote: bool, words: str
) -> None:
    """Promoted: better than popularity and the current model plus the margin, and no segment loses much."""
    verdict = decide(candidate, current, GATE)
    assert verdict.promote is promote
    assert words in verdict.reason


def test_an_equal_model_is_promoted_without_a_margin() -> None:
    """A margin of zero lets a fresh model with the same quality replace an old one."""
    assert decide(evaluation(0.2), evaluation(0.2), PromotionGate(METRIC, 0.0, {})).promote
