"""Tunes and fits ALS: `als.npz`, and the same without the last events in `holdout/` and `replay/`."""

from __future__ import annotations

import sagemaker_jobs  # noqa: F401  # first: it sets how many threads numpy takes

# isort: split
import sys
from dataclasses import asdict, replace
from functools import partial

import numpy as np

from narrows.evaluation.leave_one_out import Cases, cases, find, first_hundred
from narrows.evaluation.metrics import gain_at, hit_at, mean
from narrows.interactions import Interactions
from narrows.sources import als
from sagemaker_jobs.container import Container, Progress, run, write_json
from sagemaker_jobs.training_set import TrainingSet, read
from sagemaker_jobs.tuning import BETTER_BY, Tuned, descend

AXES = {
    "unobserved": (0.3, 1.0, 0.03),
    "regularisation": (0.01, 0.001),
    "dimension": (32, 128),
}
DECAYS = (0.95, 0.9, 0.8, 0.7)
MOST_CASES, FEWEST_CASES = 3000, 300
SCORES_A_TRIAL = 60_000_000
BUDGET_S = 75.0
FEWEST_EVENTS_A_DIMENSION = 20


def train(container: Container) -> None:
    """Read, tune on the validation events, fit the three parts."""
    progress = Progress("train_als")
    data = read(container)
    seed = int(container.number("seed", 0))
    progress.say(f"{len(data.log):,} events, {data.log.user_count:,} users, {data.log.item_count:,} items")
    tuned, judged = tune(data, seed, container.number("budget_s", BUDGET_S), progress)
    for folder, events in data.parts.items():
        (container.model / folder).mkdir(exist_ok=True)
        known = judged if events is data.replay else None
        (known or fitted(events, tuned.params, seed)).save(container.model / folder / als.FILE)
        progress.say(f"fitted on {len(events):,} events for {folder}")
    write_json(
        container.model / "als.json",
        {
            "params": asdict(tuned.params),
            "trials": tuned.trials,
            "out_of_time": tuned.out_of_time,
            "labels_per_user": data.labels,
            "seconds": round(progress.seconds, 1),
        },
    )


def fitted(events: Interactions, params: als.Params, seed: int) -> als.Als:
    """A fit whose start depends on the seed alone."""
    return als.fit(events, params, np.random.default_rng(seed))


def tune(data: TrainingSet, seed: int, budget_s: float, progress: Progress) -> tuple[Tuned, als.Als | None]:
    """Parameters that find most of the validation events, and their fit on `data.replay`.

    Where there is nothing to judge by, the start and no fit. The recency decay costs no fit, so every fit is
    judged at its best decay.
    """
    most = int(np.clip(SCORES_A_TRIAL // data.log.item_count, FEWEST_CASES, MOST_CASES))
    held = cases(data.log, back=1).sample(most, np.random.default_rng(seed))
    start = als.Params(dimension=_dimension(data.replay), unobserved=0.1)
    if not len(held) or not len(data.replay):
        return Tuned(start, float("nan"), 0, False), None
    leading: list[tuple[float, als.Als]] = []  # as `descend` has it; the other fits are not kept

    def score(params: als.Params) -> float:
        model = fitted(data.replay, params, seed)
        decayed = [replace(model, params=replace(params, history_decay=decay)) for decay in DECAYS]
        scores = [_quality(one, data, held) for one in decayed]
        if not leading or max(scores) > leading[0][0] + BETTER_BY:
            leading[:] = [(max(scores), decayed[int(np.argmax(scores))])]
        return max(scores)

    tuned = descend(start, AXES, score, rounds=1, budget_s=budget_s, progress=progress, cost=_cost)
    chosen = leading[0][1]
    return replace(tuned, params=chosen.params), chosen


def _quality(model: als.Als, data: TrainingSet, held: Cases) -> float:
    """What a source of candidates is for: items found among the first hundred, the earlier the better."""
    source = model.bind(data.rows_of, data.log.item_count)
    ranks = find(held, partial(first_hundred, source)).ranks
    return mean(hit_at(ranks, 100)) + mean(gain_at(ranks, 10))


def _cost(params: als.Params) -> float:
    """Solving for one vector is cubic in the dimension, gathering its events quadratic: in between."""
    return float(params.dimension**2.5)


def _dimension(events: Interactions) -> int:
    """A start that the number of events can bear."""
    return 64 if len(events) >= FEWEST_EVENTS_A_DIMENSION * 64 * 10 else 16


def main() -> int:
    """The program."""
    return run(train)


if __name__ == "__main__":
    sys.exit(main())
