"""The rankers of a comparison: one behind both stacks, and for each stack one that reads its own scores too.

The one behind both is trained once, on the requests as both stacks answer them: for each past request one
group of the candidates of either. It reads what either stack has: visitors, items, popularity, age, and the
fused rank of a candidate, but no other source's own score. So what differs behind it differs because of the
candidates, and neither stack needs the other's models. What that leaves out, a stack's own scores as
features, the rankers of their own show: each reads all sources of its stack, as it would in an app that has
this stack alone. The verdict goes by the first, and names it if the others would turn it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from narrows.adapters.bundle import RANKER_FILE
from narrows.adapters.lightgbm import load_scorer
from narrows.evaluation.leave_one_out import cases
from narrows.evaluation.stacks import SHARED, Stack
from narrows.features.vectors import VectorSpec
from narrows.ranking import EmbeddedRanker, FusionRanker, Ranker
from sagemaker_jobs.container import Progress
from sagemaker_jobs.replay import Funnel, Groups, replay
from sagemaker_jobs.train_ranker.lambdamart import fit
from sagemaker_jobs.training_set import TrainingSet

TRIALS = 2
"""Trainings of each ranker, with seeds of their own: what differs between them is chance."""


@dataclass(frozen=True)
class Training:
    """How much the rankers learn from, and how long the one behind both may be tuned."""

    seed: int
    most_rows: int
    budget_s: float


@dataclass(frozen=True, eq=False)
class Rankers:
    """Those behind both stacks, one of each trial, and each stack's own in the stacks' order."""

    same: tuple[Ranker, ...]
    own: tuple[tuple[Ranker, ...], ...]


def train_rankers(
    data: TrainingSet,
    stacks: Sequence[Stack],
    past: Funnel,
    present: Funnel,
    training: Training,
    folder: Path,
) -> Rankers:
    """Replay the labels through every stack over `past`, and fit; the rankers serve over `present`.

    Fused ranks take the place of one that has too little to learn from.
    """
    progress = Progress("compare: rankers")
    specs = [_spec(past, stack.sources) for stack in stacks]
    same = _spec(past, SHARED)
    drawn = np.random.default_rng(training.seed)
    held = [cases(data.log, back).shuffled(drawn) for back in range(1, data.labels + 1)]
    groups = [
        replay(
            held,
            replace(past, quotas=stack.quotas),
            spec,
            most_rows=training.most_rows // len(stacks),
            seed=training.seed,
        )
        for stack, spec in zip(stacks, specs, strict=True)
    ]
    progress.say(f"{[len(one.lengths) for one in groups]} groups of {groups[0].asked:,} requests each")
    both = Groups.joined([_columns(one, spec, same) for one, spec in zip(groups, specs, strict=True)])

    def fitted(learned: Groups, spec: VectorSpec, name: str, budget_s: float) -> tuple[Ranker, ...]:
        found = []
        for trial in range(TRIALS):
            trained = fit(learned, spec, training.seed + trial, progress, budget_s=budget_s / TRIALS)
            found.append(_ranker(trained.text, spec, present, folder / f"{name}-{trial}"))
        return tuple(found)

    return Rankers(
        fitted(both, same, "same", training.budget_s),
        tuple(
            fitted(one, spec, stack.name, 0.0) for one, spec, stack in zip(groups, specs, stacks, strict=True)
        ),
    )


def _spec(funnel: Funnel, names: Sequence[str]) -> VectorSpec:
    sources = {name: funnel.sources[name] for name in names if name in funnel.sources}
    return VectorSpec.over(sources, funnel.items, funnel.declared.trained_on, funnel.statistics)


def _columns(groups: Groups, spec: VectorSpec, wanted: VectorSpec) -> Groups:
    """The same groups with the columns of a specification that reads less."""
    at = {name: place for place, name in enumerate(spec.names)}
    return replace(groups, features=groups.features[:, [at[name] for name in wanted.names]])


def _ranker(text: str, spec: VectorSpec, present: Funnel, folder: Path) -> Ranker:
    if not text:
        return FusionRanker(present.items)
    folder.mkdir(parents=True)
    (folder / RANKER_FILE).write_text(text, encoding="utf-8")
    read = {name: present.sources[name] for name in spec.sources}
    scorer, fingerprint = load_scorer(folder / RANKER_FILE), spec.fingerprint()
    return EmbeddedRanker(present.items, present.statistics, read, scorer, spec, fingerprint=fingerprint)
