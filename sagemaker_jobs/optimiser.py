"""Gradient descent on a loss: a level rate until validation or time says stop, then a decay to zero.

The level part learns from the events of `replay/`. Each model that is wanted branches off from it and decays
over the events that it may see, so that three models cost little more than one. A step depends on its
number, the seed and the weights alone: a job that was interrupted goes on from its checkpoint as if it had
not been. AdamW: Loshchilov and Hutter (2019); the schedule: Hu et al., "MiniCPM" (2024).
"""

from __future__ import annotations

import ctypes
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from narrows.networks import Weights
from sagemaker_jobs.container import Progress

Batch = tuple[Any, ...]
Loss = Callable[[Weights, Batch, Any], Any]
"""(weights, batch, key of what is random) -> a scalar."""
Epoch = Callable[[int], Iterable[Batch]]
"""The batches of the epoch of this number."""
LEVEL = "level"
KEEP_MEMORY = ((-4, 0), (-1, 2**31 - 1))
"""M_MMAP_MAX and M_TRIM_THRESHOLD of glibc's mallopt: freed memory stays with the process."""
FEWEST_STEPS = 20
"""What is taken however little time there is: an untrained model is of no use."""


@dataclass(frozen=True)
class Recipe:
    """How a model is trained; `warm_up` steps raise the rate, the decay takes `decay` of the level's steps.

    The level part ends after `most_epochs`, after `patience` epochs without a better score, or with its time.
    """

    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    warm_up: int = 200
    most_epochs: int = 60
    patience: int = 3
    decay: float = 0.25


@dataclass(frozen=True)
class Course:
    """Where the level part stands: the newest state and the best one, each with the steps taken to it."""

    state: Any
    steps: int
    best: Any
    best_steps: int
    scores: tuple[float, ...] = ()
    seconds: float = 0.0
    out_of_time: bool = False

    @property
    def best_epoch(self) -> int:
        """The first of those with the highest score, the last where none could be scored; 0 before any."""
        if not np.isfinite(self.scores).any():
            return max(len(self.scores) - 1, 0)
        return int(np.nanargmax(self.scores))


class Descent:
    """The training of one job's models; `checkpoints` is a folder that outlives the process, or None.

    What lies there under another `mark` belongs to another training and is not used.
    """

    def __init__(
        self,
        loss: Loss,
        recipe: Recipe,
        seed: int,
        progress: Progress,
        *,
        checkpoints: Path | None = None,
        mark: str = "",
    ) -> None:
        _keep_memory()
        self._recipe, self._progress = recipe, progress
        self._folder = checkpoints
        self._mark = f"{recipe} {seed} {mark}"
        self._optimiser = optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.scale_by_adam(b2=0.98),
            optax.add_decayed_weights(recipe.weight_decay),
        )
        key = jax.random.key(seed, impl="rbg")

        def step(state: Any, batch: Batch, number: Any, rate: Any) -> Any:
            weights, moments = state
            slopes = jax.grad(loss)(weights, batch, jax.random.fold_in(key, number))
            updates, moments = self._optimiser.update(slopes, moments, weights)
            return optax.apply_updates(weights, jax.tree.map(lambda one: -rate * one, updates)), moments

        self._step = jax.jit(step)

    def level(
        self, start: Weights, epoch: Epoch, judge: Callable[[Weights], float], budget_s: float
    ) -> Course:
        """Train at the full rate until it gets no better, from a checkpoint where there is one."""
        weights = {name: jnp.asarray(values) for name, values in start.items()}
        state = (weights, self._optimiser.init(weights))
        course = self._restored(Course(state, 0, state, 0))
        while self._goes_on(course):
            course = self._one_epoch(course, epoch(len(course.scores)), judge, budget_s)
            said = f"epoch {len(course.scores)}, {course.steps:,} steps: {course.scores[-1]:.4f}"
            self._progress.say(f"{said}, best of epoch {course.best_epoch + 1}")
            self._keep(course)
        return course

    def _goes_on(self, course: Course) -> bool:
        done = len(course.scores)
        stalled = done - 1 - course.best_epoch >= self._recipe.patience
        return not course.out_of_time and done < self._recipe.most_epochs and not stalled

    def _one_epoch(
        self, course: Course, batches: Iterable[Batch], judge: Callable[[Weights], float], budget_s: float
    ) -> Course:
        began, state, number, late = self._progress.seconds, course.state, course.steps, False
        for batch in batches:
            rate = self._recipe.learning_rate * min(1.0, (number + 1) / self._recipe.warm_up)
            state = self._step(state, batch, number, rate)
            number += 1
            if self._progress.seconds - began + course.seconds > budget_s and number >= FEWEST_STEPS:
                late = True
                break
        scores = (*course.scores, judge(_arrays(state[0])))
        seconds = course.seconds + self._progress.seconds - began
        new = replace(course, state=state, steps=number, scores=scores, seconds=seconds, out_of_time=late)
        return replace(new, best=state, best_steps=number) if new.best_epoch == len(scores) - 1 else new

    def decay(self, course: Course, part: str, epoch: Epoch, budget_s: float) -> Weights:
        """The weights after the rate has gone down to zero over the batches of a part."""
        path = self._folder / f"{part}.npz" if self._folder else None
        kept = _read(path, self._mark)
        if kept:
            return {name.removeprefix("w:"): values for name, values in kept.items()}
        wanted = max(int(course.best_steps * self._recipe.decay), FEWEST_STEPS)
        began, state, done = self._progress.seconds, course.best, 0
        for batch in _endless(epoch, course.best_epoch + 1):
            spent = (self._progress.seconds - began) / max(budget_s, 1e-9) if done >= FEWEST_STEPS else 0.0
            left = 1.0 - max(done / wanted, spent)
            if left <= 0.0:
                break
            state = self._step(
                state, batch, course.best_steps + done, np.float32(self._recipe.learning_rate * left)
            )
            done += 1
        weights = _arrays(state[0])
        self._progress.say(f"{part}: {done:,} of {wanted:,} steps of decay")
        _write(path, self._mark, {f"w:{name}": values for name, values in weights.items()})
        return weights

    def _keep(self, course: Course) -> None:
        if self._folder:
            found = {"scores": np.asarray(course.scores), "seconds": np.asarray(course.seconds)}
            found["at"] = np.asarray([course.steps, course.best_steps, course.out_of_time])
            for name, state in (("state", course.state), ("best", course.best)):
                leaves = jax.tree.leaves(state)
                found |= {f"{name}:{place}": np.asarray(leaf) for place, leaf in enumerate(leaves)}
            _write(self._folder / f"{LEVEL}.npz", self._mark, found)

    def _restored(self, fresh: Course) -> Course:
        found = _read(self._folder / f"{LEVEL}.npz" if self._folder else None, self._mark)
        if not found:
            return fresh
        shape = jax.tree.structure(fresh.state)
        state, best = (
            jax.tree.unflatten(shape, [jnp.asarray(found[f"{name}:{at}"]) for at in range(shape.num_leaves)])
            for name in ("state", "best")
        )
        steps, best_steps, late = found["at"].tolist()
        scores = tuple(found["scores"].tolist())
        self._progress.say(f"goes on after epoch {len(scores)} of a checkpoint")
        return Course(state, steps, best, best_steps, scores, float(found["seconds"]), bool(late))


def _keep_memory() -> None:
    """Spare each step the page faults of arrays that are freed and asked for again: a third of its time."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    for parameter, value in KEEP_MEMORY if mallopt else ():
        mallopt(parameter, value)


def _endless(epoch: Epoch, first: int) -> Iterator[Batch]:
    for number in count(first):
        yield from epoch(number)


def _arrays(weights: Weights) -> dict[str, Any]:
    return {name: np.asarray(values) for name, values in weights.items()}


def _write(path: Path | None, mark: str, arrays: dict[str, Any]) -> None:
    """Replace the file at once, so that an interruption leaves the one before."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    pending = path.with_suffix(".pending")
    with pending.open("wb") as file:
        np.savez(file, mark=np.asarray(json.dumps(mark)), **arrays)
    pending.replace(path)


def _read(path: Path | None, mark: str) -> dict[str, Any]:
    """What `_write` kept under this mark; {} where there is nothing of it."""
    if path is None or not path.is_file():
        return {}
    with np.load(path, allow_pickle=False) as file:
        if file["mark"].item() != json.dumps(mark):
            return {}
        return {name: file[name] for name in file.files if name != "mark"}
