"""What the jobs of the learned sources have in common: a level part, then a decay for each part's events."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from narrows.evaluation.leave_one_out import Cases, cases, find, first_hundred
from narrows.evaluation.metrics import gain_at, hit_at, mean
from narrows.interactions import Interactions
from narrows.networks import Weights
from narrows.retrieval import CandidateSource, Floats
from narrows.sources.rows import RowsOf
from sagemaker_jobs.carrying import Finished
from sagemaker_jobs.container import Container, Progress, write_json
from sagemaker_jobs.optimiser import Batch, Course, Descent, Epoch, Recipe
from sagemaker_jobs.training_set import REPLAY, TrainingSet, read

BUDGET_S = 540.0
MOST_CASES = 4000
STEPS_AN_EPOCH, FEWEST_A_BATCH = 50, 64


class Model(Protocol):
    """A trained source, as its bundle keeps it."""

    def save(self, path: Path) -> None:
        """Write its file."""

    def bind(self, rows_of: RowsOf, size: int) -> CandidateSource:
        """The source that serves it."""


class Subject(Protocol):
    """What one kind of model learns: its networks, its batches and what is kept of it."""

    @property
    def params(self) -> Any:
        """The shape of the networks, a dataclass."""

    def start(self, events: Interactions, generator: np.random.Generator) -> dict[str, Floats]:
        """The weights before the first step, which may look at the events of the level part."""

    def loss(self, weights: Weights, batch: Batch, key: Any) -> Any:
        """What is made smaller."""

    def epochs(self, events: Interactions, seed: int) -> Epoch:
        """The batches over these events, by the number of the epoch."""

    def model(self, weights: Mapping[str, Floats], events: Interactions) -> Model:
        """What is served after learning from these events."""


@dataclass(frozen=True, eq=False)
class Catalogue:
    """The items that have events, which are what is learned: `items` int64[n] their numbers in the log.

    `codes` int32[item_count] has the place of each in `items`, 0 for the others.
    """

    items: NDArray[np.int64]
    codes: NDArray[np.int32]

    @staticmethod
    def of(log: Interactions) -> Catalogue:
        """The items of a log."""
        items = np.unique(log.items)
        codes = np.zeros(log.item_count, np.int32)
        codes[items] = np.arange(len(items))
        return Catalogue(items, codes)

    def __len__(self) -> int:
        return len(self.items)

    def counts(self, events: Interactions) -> NDArray[np.int64]:
        """int64[n]: how many of the events each item has."""
        return np.bincount(self.codes[events.items], minlength=len(self.items)).astype(np.int64)


def train_learned(
    container: Container, name: str, subject_of: Any, recipe: Recipe, *, budget_s: float = BUDGET_S
) -> None:
    """Train one source, or carry its last models over where its schedule is not due.

    It leaves `<name>.npz` for all three parts, and `<name>.json` with how it went.

    `subject_of(data, seed)` gives the Subject. The hyperparameters `budget_s`, `most_epochs` and `seed` are
    read here. Where no history has two events there is nothing to learn: no model, and the reason instead.
    """
    progress = Progress(f"train_{name}")
    data = read(container)
    seed, given_s = int(container.number("seed", 0)), container.number("budget_s", budget_s)
    recipe = replace(recipe, most_epochs=int(container.number("most_epochs", recipe.most_epochs)))
    progress.say(f"{len(data.log):,} events, {data.log.user_count:,} users, {data.log.item_count:,} items")
    if (np.diff(data.replay.per_user()) < 2).all():
        reason = "no history has two events that are not held out"
        write_json(container.model / f"{name}.json", {"reason": reason, "labels_per_user": data.labels})
        return
    finished, now = Finished.of(container, name, data, recipe), time.time()
    why = finished.why_train(now)
    if not why:
        progress.say(finished.carry(container.model, now))
        return
    progress.say(f"trains: {why}")
    subject: Subject = subject_of(data, seed)
    mark = f"{name} {subject.params} {len(data.log)} {container.text('version')}"
    descent = Descent(subject.loss, recipe, seed, progress, checkpoints=container.checkpoints, mark=mark)
    held = cases(data.log, back=1).sample(MOST_CASES, np.random.default_rng(seed))
    judge = partial(_quality, subject, data, held)
    level_s = max(given_s - progress.seconds, 0.0) / (1.0 + len(data.parts) * recipe.decay)
    start = subject.start(data.replay, np.random.default_rng([seed, 1]))
    course = descent.level(start, subject.epochs(data.replay, seed), judge, level_s)
    settled = None
    for folder, events in data.parts.items():
        part = "everything" if folder == "." else folder
        weights = descent.decay(course, part, subject.epochs(events, seed), level_s * recipe.decay)
        (container.model / folder).mkdir(exist_ok=True)
        subject.model(weights, events).save(container.model / folder / f"{name}.npz")
        settled = judge(weights) if folder == REPLAY else settled
    write_json(
        container.model / f"{name}.json",
        {
            **_summary(subject, recipe, course, data),
            "settled": None if settled != settled else settled,
            "seconds": round(progress.seconds, 1),
        },
    )
    finished.keep(container.model, container.text("version"), now)


def batch_size(events: int, most: int) -> int:
    """A power of two, at most `most`, that gives small data some steps in an epoch."""
    return int(np.clip(2 ** int(np.log2(max(events / STEPS_AN_EPOCH, 1))), min(FEWEST_A_BATCH, most), most))


def _quality(subject: Subject, data: TrainingSet, held: Cases, weights: Mapping[str, Floats]) -> float:
    """How early the validation events are found, and how many among the first hundred; nan without any."""
    source = subject.model(weights, data.replay).bind(data.rows_of, data.log.item_count)
    ranks = find(held, partial(first_hundred, source)).ranks
    return mean(gain_at(ranks, 10)) + 0.05 * mean(hit_at(ranks, 100))


def _summary(subject: Subject, recipe: Recipe, course: Course, data: TrainingSet) -> dict[str, Any]:
    return {
        "params": asdict(subject.params),
        "recipe": asdict(recipe),
        "epochs": [None if score != score else score for score in course.scores],
        "best_epoch": course.best_epoch + 1,
        "steps": course.best_steps,
        "out_of_time": course.out_of_time,
        "labels_per_user": data.labels,
    }
