"""The funnel detector: retrieval that finds more while less is bought further down, and where it is lost.

A request's numbers at each stage, per variant: whether what the visitor wanted was retrieved, ranked among
the first, shown; what was then clicked, converted and earned. Offline recall alone would call such a variant
better.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from narrows.errors import InvalidInput
from narrows.evaluation.metrics import Values, interval, mean

STAGES = ("retrieved", "ranked", "shown", "clicked", "converted", "margin")
OUTCOMES = ("converted", "margin")
"""What the funnel is for: a fall of one of these is a loss."""
FEWEST_REQUESTS = 100
TOLERATED = 0.05
NAN = float("nan")

Kind = Literal["lost", "clean", "no_rise", "no_verdict"]


@dataclass(frozen=True)
class StageChange:
    """A stage's mean a request under two variants; `low` and `high` bound variant - baseline with 95%.

    All are nan, and `reason` says why, where the stage was not measured.
    """

    stage: str
    baseline: float
    variant: float
    low: float
    high: float
    requests: int
    reason: str = ""

    @property
    def rose(self) -> bool:
        """The whole interval is above zero."""
        return self.low > 0.0

    @property
    def fell(self) -> bool:
        """The whole interval is below zero."""
        return self.high < 0.0

    @property
    def may_have_fallen(self) -> bool:
        """The interval leaves room for a fall of more than 5% of the baseline."""
        return not self.rose and self.low < -TOLERATED * abs(self.baseline)

    @property
    def may_have_risen(self) -> bool:
        """The interval leaves room for a rise of more than 5% of the baseline."""
        return not self.fell and self.high > TOLERATED * abs(self.baseline)

    def said(self) -> str:
        """The change in words, as shares of the baseline: "margin -3.1% [-5.0%, -1.2%]"."""
        if not self.baseline:
            return f"{self.stage} {self.baseline:.4g} -> {self.variant:.4g}"
        change, low, high = (
            value / abs(self.baseline) for value in (self.variant - self.baseline, self.low, self.high)
        )
        return f"{self.stage} {change:+.1%} [{low:+.1%}, {high:+.1%}]"


@dataclass(frozen=True)
class Finding:
    """What the detector says; `stage` is the one that loses, None where none does."""

    kind: Kind
    stage: str | None
    reason: str


def changes(
    baseline: Mapping[str, Values], variant: Mapping[str, Values], generator: np.random.Generator
) -> tuple[StageChange, ...]:
    """The change of each of `STAGES`, from float64[n] by stage over the same n requests under both variants.

    Requests are paired, so that what differs between visitors cancels. A stage that a side lacks, or of which
    a value is not finite, counts as not measured. InvalidInput where the lengths differ.
    """
    return tuple(_change(stage, baseline.get(stage), variant.get(stage), generator) for stage in STAGES)


def _change(
    stage: str, baseline: Values | None, variant: Values | None, generator: np.random.Generator
) -> StageChange:
    if baseline is None or variant is None:
        return StageChange(stage, NAN, NAN, NAN, NAN, 0, "not measured")
    if len(baseline) != len(variant):
        remedy = "give both variants' values of the same requests"
        raise InvalidInput(stage, f"{len(baseline)} and {len(variant)} values", remedy)
    if not (np.isfinite(baseline).all() and np.isfinite(variant).all()):
        return StageChange(stage, NAN, NAN, NAN, NAN, len(baseline), "some values are not numbers")
    low, high = interval(variant - baseline, generator)
    return StageChange(stage, mean(baseline), mean(variant), low, high, len(baseline))


def reverse(found: Sequence[StageChange]) -> tuple[StageChange, ...]:
    """The same with the variants' parts exchanged."""
    return tuple(
        replace(one, baseline=one.variant, variant=one.baseline, low=-one.high, high=-one.low)
        for one in found
    )


def widest(trials: Sequence[Sequence[StageChange]]) -> tuple[StageChange, ...]:
    """One change for each stage of several trials over the same requests, such as trainings with other seeds.

    Means are those of all trials, and an interval holds that of every trial, so that no chance of a training
    passes for a rise or a fall.
    """
    return tuple(
        replace(
            stage[0],
            baseline=float(np.mean([one.baseline for one in stage])),
            variant=float(np.mean([one.variant for one in stage])),
            low=min(one.low for one in stage),
            high=max(one.high for one in stage),
        )
        for stage in zip(*trials, strict=True)
    )


def detect(found: Sequence[StageChange]) -> Finding:
    """Flag retrieval recall that rose while conversions or margin fell, with the stage that loses them.

    The stage is the first of the funnel, after retrieval, whose number fell: what comes in there is more than
    before, what goes out is less. There is no verdict on fewer than 100 requests, without any outcome, or
    where an interval is so wide that it could hide a change of more than 5% which would decide.
    """
    by_stage = {one.stage: one for one in found}
    retrieved = by_stage.get("retrieved")
    outcomes = [by_stage[name] for name in OUTCOMES if name in by_stage and _measured(by_stage[name])]
    thin = _too_thin(retrieved, outcomes, by_stage)
    if thin or retrieved is None:
        return Finding("no_verdict", None, thin)
    if not retrieved.rose:
        return Finding(
            "no_rise", None, f"{retrieved.said()}: retrieval did not rise, nothing hides behind it"
        )
    fallen = [one for one in outcomes if one.fell]
    if fallen:
        stage = _loser(by_stage, fallen[-1])
        lost = ", ".join(one.said() for one in fallen)
        told = "" if stage in fallen else f"; {stage.said()}"
        return Finding("lost", stage.stage, f"{retrieved.said()}, but {lost}: lost at '{stage.stage}'{told}")
    unclear = [one for one in outcomes if one.may_have_fallen]
    if unclear:
        wide = ", ".join(one.said() for one in unclear)
        reason = f"{retrieved.said()}; {wide} could be a fall of more than {TOLERATED:.0%}: ask more visitors"
        return Finding("no_verdict", None, reason)
    held = ", ".join(one.said() for one in outcomes)
    return Finding("clean", None, f"{retrieved.said()}, and what follows keeps up: {held}")


def _too_thin(
    retrieved: StageChange | None, outcomes: Sequence[StageChange], by_stage: Mapping[str, StageChange]
) -> str:
    """Why there can be no verdict; "" where there can."""
    if retrieved is None or not _measured(retrieved):
        return f"retrieval has no number: {retrieved.reason if retrieved else 'not measured'}"
    if retrieved.requests < FEWEST_REQUESTS:
        return f"{retrieved.requests} requests are too few, ask at least {FEWEST_REQUESTS}"
    if not outcomes:
        why = {one.reason for name in OUTCOMES if (one := by_stage.get(name)) and one.reason}
        return f"neither conversions nor margin are known: {', '.join(sorted(why)) or 'not measured'}"
    if not retrieved.rose and retrieved.may_have_risen:
        return f"{retrieved.said()} could be a rise of more than {TOLERATED:.0%}: ask more visitors"
    return ""


def _measured(change: StageChange) -> bool:
    return bool(np.isfinite([change.baseline, change.variant, change.low, change.high]).all())


def _loser(by_stage: Mapping[str, StageChange], outcome: StageChange) -> StageChange:
    """The first that fell since the last that still rose, on the way from retrieval to the fallen outcome."""
    way = [by_stage[name] for name in STAGES[1 : STAGES.index(outcome.stage) + 1] if name in by_stage]
    risen = [at for at, one in enumerate(way) if one.rose]
    return next(one for one in way[risen[-1] + 1 if risen else 0 :] if one.fell)
