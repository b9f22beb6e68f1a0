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
    cost: Callable[[Any], float] = lambda _: 1.0,
) -> Tuned:
    """Try one axis after another, from the best so far; stop after a round that moved nothing.

    `cost` says how long a trial takes relative to the others: one that would outlast the budget, going by the
    slowest seconds per cost so far, is not begun.
    """
    until = progress.seconds + budget_s
    known: dict[Any, float] = {}
    pace_s = 0.0

    def judged(params: Any) -> float:
        nonlocal pace_s
        if params not in known:
            began = progress.seconds
            known[params] = score(params)
            pace_s = max(pace_s, (progress.seconds - began) / cost(params))
            progress.say(f"{known[params]:.4f} {params}")
        return known[params]

    best, best_score, out_of_time = start, judged(start), False
    for _ in range(rounds):
        before = best
        for name, values in axes.items():
            for value in values:
                trial = replace(best, **{name: value})
                if trial not in known and progress.seconds + pace_s * cost(trial) > until:
                    out_of_time = True
                    continue
                found = judged(trial)
                if found > best_score + BETTER_BY:
                    best, best_score = replace(best, **{name: value}), found
        if best == before:
            break
    return Tuned(best, best_score, len(known), out_of_time)
