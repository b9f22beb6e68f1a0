"""The funnel detector on planted funnels: each stage as the one that loses, a clean one, and thin ones."""

from __future__ import annotations

import numpy as np
import pytest

from narrows.errors import InvalidInput
from narrows.evaluation.funnel import (
    FEWEST_REQUESTS,
    STAGES,
    Finding,
    StageChange,
    changes,
    detect,
    reverse,
)

REQUESTS = 2000
Sides = tuple[dict[str, np.ndarray], dict[str, np.ndarray]]


def planted(effects: dict[str, float], *, requests: int = REQUESTS, noise: float = 0.2) -> Sides:
    """Both sides' values: the baseline is 1 at each stage, the variant that plus its effect, and noise."""
    generator = np.random.default_rng(3)
    baseline = {stage: 1.0 + generator.normal(0.0, 0.5, requests) for stage in STAGES}
    variant = {
        stage: values + effects.get(stage, 0.0) + generator.normal(0.0, noise, requests)
        for stage, values in baseline.items()
    }
    return baseline, variant


def found(sides: Sides) -> Finding:
    """What the detector says of both sides."""
    return detect(changes(*sides, np.random.default_rng(0)))


@pytest.mark.parametrize("lost_at", STAGES[1:])
def test_the_stage_that_loses_is_named(lost_at: str) -> None:
    """Up to the planted stage everything is a tenth more, from there on a tenth less."""
    at = STAGES.index(lost_at)
    finding = found(planted({stage: 0.1 if place < at else -0.1 for place, stage in enumerate(STAGES)}))
    assert (finding.kind, finding.stage) == ("lost", lost_at)
    assert f"lost at '{lost_at}'" in finding.reason
    assert "margin -" in finding.reason


def test_a_rise_that_lasts_is_clean() -> None:
    """More at every stage is what a better retrieval looks like."""
    finding = found(planted(dict.fromkeys(STAGES, 0.1)))
    assert (finding.kind, finding.stage) == ("clean", None)


def test_a_rise_that_fades_without_a_fall_is_clean() -> None:
    """Nothing is lost where conversions and margin stay what they were, within the tolerance."""
    finding = found(planted({"retrieved": 0.1, "ranked": 0.05}))
    assert (finding.kind, finding.stage) == ("clean", None)


def test_a_dip_that_recovers_is_not_the_one_that_loses() -> None:
    """Shown fell, clicks rose again: what conversions lose, they lose after the click."""
    effects = {"retrieved": 0.1, "shown": -0.1, "clicked": 0.1, "converted": -0.1, "margin": -0.1}
    assert found(planted(effects)).stage == "converted"


def test_margin_alone_may_be_what_falls() -> None:
    """As many conversions of cheaper things: flagged as well."""
    finding = found(planted({**dict.fromkeys(STAGES, 0.1), "converted": 0.0, "margin": -0.1}))
    assert (finding.kind, finding.stage) == ("lost", "margin")


def test_without_a_rise_there_is_nothing_to_detect() -> None:
    """A variant that retrieves less and sells less is worse, and no offline number hides it."""
    assert found(planted(dict.fromkeys(STAGES, -0.1))).kind == "no_rise"
    assert found(planted({"margin": -0.2})).kind == "no_rise"


def test_the_other_way_round_the_signs_turn() -> None:
    """From the variant back to the baseline the same numbers are a rise that is lost."""
    sides = planted({"retrieved": -0.1, "converted": 0.1, "margin": 0.1})
    there = changes(*sides, np.random.default_rng(0))
    assert detect(there).kind == "no_rise"
    assert (detect(reverse(there)).kind, detect(reverse(there)).stage) == ("lost", "converted")
    assert reverse(reverse(there)) == there


@pytest.mark.parametrize(
    ("sides", "words"),
    [
        (
            planted({"retrieved": 0.5, "margin": -0.5}, requests=FEWEST_REQUESTS - 1),
            "99 requests are too few",
        ),
        (planted({"retrieved": 0.1}, requests=200, noise=2.0), "retrieved"),
        (planted({"retrieved": 0.5}, requests=300, noise=2.0), "ask more visitors"),
    ],
    ids=["few requests", "retrieval within noise", "outcomes within noise"],
)
def test_thin_evidence_gives_no_verdict(sides: Sides, words: str) -> None:
    """Too few requests, or intervals that could hide what would decide: the reason is given."""
    finding = found(sides)
    assert (finding.kind, finding.stage) == ("no_verdict", None)
    assert words in finding.reason


def test_what_was_not_measured_is_named() -> None:
    """Without outcomes, with broken ones, or without retrieval there is no verdict; a gap between is none."""
    baseline, variant = planted({"retrieved": 0.1, "converted": -0.1, "margin": -0.1})
    upper = {stage: variant[stage] for stage in STAGES[:3]}
    assert "neither conversions nor margin" in found((baseline, upper)).reason
    broken = {**variant, **dict.fromkeys(("converted", "margin"), np.full(REQUESTS, np.nan))}
    assert "some values are not numbers" in found((baseline, broken)).reason
    assert "retrieval has no number: not measured" in found((baseline, {"margin": variant["margin"]})).reason
    assert "retrieval has no number" in detect(()).reason
    gap = {stage: values for stage, values in variant.items() if stage != "shown"}
    assert (found((baseline, gap)).kind, found((baseline, gap)).stage) == ("lost", "converted")


def test_a_stage_that_was_zero_is_told_in_numbers() -> None:
    """A share of nothing is no number."""
    risen = StageChange("retrieved", 0.0, 0.2, 0.1, 0.3, 500)
    lost = StageChange("margin", 2.0, 1.0, -1.2, -0.8, 500)
    assert detect((risen, lost)).reason.startswith("retrieved 0 -> 0.2, but margin -50.0% [-60.0%, -40.0%]")


def test_intervals_are_of_paired_differences() -> None:
    """What differs between visitors and not between variants does not widen them."""
    baseline, variant = planted({"retrieved": 0.1}, noise=1e-6)
    change = changes(baseline, variant, np.random.default_rng(0))[0]
    assert (change.low, change.high) == pytest.approx((0.1, 0.1), abs=1e-6)
    with pytest.raises(InvalidInput, match="retrieved"):
        changes(baseline, {"retrieved": variant["retrieved"][1:]}, np.random.default_rng(0))
