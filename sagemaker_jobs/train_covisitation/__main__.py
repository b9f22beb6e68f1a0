"""Tunes and fits what is counted: co-visitation, popularity and, where a surface asks, the other sources.

Item statistics and the segment slates come from here as well.
"""

from __future__ import annotations

import sagemaker_jobs  # noqa: F401  # first: it sets how many threads numpy takes

# isort: split
import sys
from dataclasses import asdict
from functools import partial

import numpy as np

from narrows.adapters.bundle import SEGMENTS_FILE
from narrows.evaluation.leave_one_out import Cases, cases, find, first_hundred
from narrows.evaluation.metrics import gain_at, hit_at, mean
from narrows.features import statistics
from narrows.sources import SOURCES, covisitation, popular
from sagemaker_jobs.container import Container, Progress, run, write_json
from sagemaker_jobs.train_covisitation.further_sources import best_of, further_sources, span
from sagemaker_jobs.training_set import TrainingSet, asked_sources, read
from sagemaker_jobs.tuning import Tuned, descend

AXES = {
    "activity": (0.3, 0.7, 1.0, 0.0),
    "popularity": (0.2, 0.3, 0.5, 0.7, 0.0),
    "history_decay": (0.6, 0.8, 0.9, 0.5, 0.95),
    "history": (3, 10, 20),
    "gap_decay": (0.5, 0.6, 0.8, 0.9),
    "gap": (3, 8),
    "backward": (0.1, 0.3, 1.0),
}
WIDEST_GAP = 8
MOST_PAIRS = 40_000_000
MOST_CASES = 4000
BUDGET_S = 75.0
SLATE = 200
HALF_LIVES = (0.25, 1 / 16, 1 / 64)
FEWER_CASES = 1000


def train(container: Container) -> None:
    """Read, tune on the validation events, fit the three parts."""
    progress = Progress("train_covisitation")
    data = read(container)
    seed = int(container.number("seed", 0))
    progress.say(f"{len(data.log):,} events, {data.log.user_count:,} users, {data.log.item_count:,} items")
    held = cases(data.log, back=1).sample(MOST_CASES, np.random.default_rng(seed))
    shares = tune_popularity(data, held, progress)
    tuned = tune(data, held, container.number("budget_s", BUDGET_S), progress)
    recent = statistics.Params(half_life_s=max(span(data.replay) / 16, statistics.DAY_S))
    fewer = held.sample(FEWER_CASES, np.random.default_rng(seed))
    further = further_sources(asked_sources(container), data, fewer, seed)
    for folder, events in data.parts.items():
        target = container.model / folder
        target.mkdir(exist_ok=True)
        covisitation.fit(events, tuned.params).save(target / covisitation.FILE)
        slates = popular.fit(events, shares)
        slates.save(target / popular.FILE)
        statistics.fit(events, recent).save(target / statistics.FILE)
        write_json(target / SEGMENTS_FILE, slates.slates(SLATE))
        for name, source in further.items():
            source.fit(events).save(target / SOURCES[name].FILE)
        progress.say(f"fitted on {len(events):,} events for {folder}")
    write_json(
        container.model / "covisitation.json",
        {
            "params": asdict(tuned.params),
            "popular": asdict(shares),
            **{name: asdict(source.params) for name, source in further.items()},
            "trials": tuned.trials,
            "out_of_time": tuned.out_of_time,
            "labels_per_user": data.labels,
            "seconds": round(progress.seconds, 1),
        },
    )


def tune(data: TrainingSet, held: Cases, budget_s: float, progress: Progress) -> Tuned:
    """Parameters that rank the validation events highest; the start where there are none."""
    start = covisitation.Params()
    if not len(held) or not len(data.replay):
        return Tuned(start, float("nan"), 0, False)
    gap = max(1, min(WIDEST_GAP, MOST_PAIRS // (2 * len(data.replay))))
    pairs = covisitation.count_pairs(data.replay, gap)
    progress.say(f"{len(pairs.codes):,} pairs up to {gap} apart")

    def score(params: covisitation.Params) -> float:
        model = covisitation.weigh(data.replay, pairs, params)
        source = model.bind(data.rows_of, data.log.item_count)
        ranks = find(held, partial(first_hundred, source)).ranks
        return mean(gain_at(ranks, 10)) + 0.05 * mean(hit_at(ranks, 100))

    return descend(start, AXES, score, rounds=2, budget_s=budget_s, progress=progress)


def tune_popularity(data: TrainingSet, held: Cases, progress: Progress) -> popular.Params:
    """The half-life, as a share of the time that the log spans, that finds most; no decay unless it helps."""
    tried = [popular.Params(half_life_s=share * span(data.replay)) for share in (0.0, *HALF_LIVES)]
    best: popular.Params = best_of(tried, partial(popular.fit, data.replay), data, held)
    progress.say(f"popularity: {best}")
    return best


if __name__ == "__main__":
    sys.exit(run(train))
