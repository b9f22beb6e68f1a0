"""Coordinate descent over a few parameters of a source, on validation events, inside a time budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from sagemaker_jobs.container import Progress

P = TypeVar("P")
BETTER_BY = 1e-4


@dataclass(frozen=True)
class Tuned:
    """The best parameters found, their score, and whether the time ran out first."""

    params: Any
    score: float
    trials: int
    out_of_time: bool


def descend(
    start: Any,
    axes: Mapping[str, Sequence[Any]],
    score: Callable[[Any], float],
    *,
    rounds: int,
    budget_s: float,
    progress: Progress,
) -> Tuned:
    """Try one axis after another, from the best so far; stop after a round that moved nothing."""
    until = progress.seconds + budget_s
    known: dict[Any, float] = {}

    def judged(params: Any) -> float:
        if params not in known:
            known[params] = score(params)
            progress.say(f"{known[params]:.4f} {params}")
        return known[params]

    best, best_score = start, judged(start)
    for _ in range(rounds):
        before = best
        for name, values in axes.items():
            for value in values:
                if progress.seconds > until:
                    return Tuned(best, best_score, len(known), True)
                found = judged(replace(best, **{name: value}))
                if found > best_score + BETTER_BY:
                    best, best_score = replace(best, **{name: value}), found
        if best == before:
            break
    return Tuned(best, best_score, len(known), False)
