"""Parameters are chosen one axis at a time, and no trial begins that would outlast the budget."""

from __future__ import annotations

from dataclasses import dataclass

from sagemaker_jobs.tuning import descend


@dataclass(frozen=True)
class Point:
    """Two parameters of something that is best at x = 3, y = 2."""

    x: int = 0
    y: int = 0


class Stopwatch:
    """Progress whose seconds pass only when a trial says so."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def say(self, _: str) -> None:
        """Nobody listens."""


def _quality(point: Point) -> float:
    return -float((point.x - 3) ** 2 + (point.y - 2) ** 2)


def test_the_best_of_each_axis_is_found() -> None:
    """Nine distinct points are tried: two axes of four values, and the start."""
    axes = {"x": (1, 2, 3, 4), "y": (0, 1, 2, 3)}
    tuned = descend(Point(), axes, _quality, rounds=3, budget_s=1e9, progress=Stopwatch())  # type: ignore[arg-type]
    assert (tuned.params, tuned.score, tuned.out_of_time) == (Point(3, 2), 0.0, False)


def test_a_trial_that_would_outlast_the_budget_is_not_begun() -> None:
    """At a second per cost the trial of cost 100 is left out, and the cheap ones after it are not."""
    watch = Stopwatch()
    tried: list[Point] = []

    def cost(point: Point) -> float:
        return 100.0 if point.x == 3 else 1.0

    def score(point: Point) -> float:
        tried.append(point)
        watch.seconds += cost(point)
        return _quality(point)

    tuned = descend(
        Point(),
        {"x": (3, 2), "y": (2,)},
        score,
        rounds=1,
        budget_s=10,
        progress=watch,
        cost=cost,  # type: ignore[arg-type]
    )
    assert tried == [Point(0, 0), Point(2, 0), Point(2, 2)]
    assert (tuned.params, tuned.out_of_time) == (Point(2, 2), True)
    assert watch.seconds <= 10
