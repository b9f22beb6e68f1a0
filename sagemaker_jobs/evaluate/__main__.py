"""Leave-one-out on the last events: the held-out twin of a bundle, through the code that serves it."""

from __future__ import annotations

import sagemaker_jobs  # noqa: F401  # first: it sets how many threads numpy takes

# isort: split
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from narrows.adapters.bundle import RANKER_FILE
from narrows.adapters.lightgbm import load_scorer
from narrows.evaluation.leave_one_out import (
    CANDIDATES,
    LENGTH,
    MERGED,
    PROTOCOL,
    Cases,
    Found,
    cases,
    find,
    find_cases,
    first_hundred,
    reports,
)
from narrows.evaluation.metrics import MAIN, gain_at, interval, mean
from narrows.features.vectors import VectorSpec
from narrows.ranking import EmbeddedRanker, FusionRanker, ModelManifest, Ranker, read_manifest
from narrows.retrieval import Query, Rows, fuse
from sagemaker_jobs.container import Container, Progress, run, unpacked, write_json
from sagemaker_jobs.declared import declared_features
from sagemaker_jobs.replay import Funnel, funnel_of
from sagemaker_jobs.training_set import HOLDOUT, TrainingSet, app_of, funnel, read
from sagemaker_jobs.workers import in_parts

MOST_USERS = 20_000


def evaluate(container: Container) -> None:
    """Write `metrics.json`: the candidate's report, and both where there is a current model."""
    progress = Progress("evaluate")
    data = read(container)
    seed = int(container.number("seed", 0))
    most = int(container.number("most_users", MOST_USERS))
    held = cases(data.log).sample(most, np.random.default_rng(seed))
    progress.say(f"{len(held):,} users asked, left out: {dict(held.excluded)}")
    sides: dict[str, dict[str, Found]] = {}
    with TemporaryDirectory() as scratch:
        for side in ("candidate", "current"):
            if side == "candidate" or container.has(side):
                folder = _bundle(unpacked(container.channel(side), Path(scratch) / side))
                sides[side] = measure(folder, container, data, held)
                progress.say(f"{side}: {MAIN} {mean(gain_at(sides[side]['two_stage'].ranks, 10)):.4f}")
    content = _content(container, held, sides, seed)
    for folder in (container.output_data, container.model):  # for people, and for the workflow's next state
        write_json(folder / "metrics.json", content)


def measure(folder: Path, container: Container, data: TrainingSet, held: Cases) -> dict[str, Found]:
    """Every source alone, each asked for a hundred items, and both stages together.

    With the hyperparameter `sources` also the first three hundred candidates of all sources, merged.
    """
    quotas, most = funnel(container)
    declared = declared_features(container.channel("training"), app_of(container), data)
    stages = funnel_of(folder, data, quotas, most, declared)
    ranker = ranker_of(folder, stages)
    with_merged = bool(container.number("sources", 0))
    parts = in_parts(lambda part: _found(stages, ranker, held.part(part), with_merged), len(held))
    return {name: Found.joined([part[name] for part in parts]) for name in parts[0]}


def _found(stages: Funnel, ranker: Ranker, held: Cases, with_merged: bool) -> dict[str, Found]:
    found = {name: find(held, partial(first_hundred, one)) for name, one in sorted(stages.sources.items())}
    if with_merged:
        merged = find_cases(held, lambda case: _merged(stages, held.query(case)), CANDIDATES)
        found[MERGED] = Found(merged.ranks, [rows[:LENGTH] for rows in merged.slates])
    found["two_stage"] = find_cases(held, lambda case: stages.ranked(ranker, held, case))
    return found


def _merged(stages: Funnel, query: Query) -> Rows:
    """What all sources together offer the ranker, the best by fused ranks first."""
    return fuse(stages.candidates(query), CANDIDATES).rows


def ranker_of(folder: Path, stages: Funnel) -> Ranker:
    """The bundle's ranker; fused ranks where it was too small to have one."""
    path = folder / RANKER_FILE
    if not path.is_file():
        return FusionRanker(stages.items)
    manifest: ModelManifest = read_manifest(folder)
    return EmbeddedRanker(
        stages.items,
        stages.statistics,
        stages.sources,
        load_scorer(path),
        VectorSpec.from_json(manifest.spec),
        fingerprint=manifest.fingerprint,
        version=manifest.version,
    )


def _bundle(folder: Path) -> Path:
    """The held-out twin inside a bundle: the bundle itself has seen the events it would be asked for."""
    for path in sorted(folder.rglob("manifest.json"), key=lambda one: len(one.parts)):
        if path.parent.name == HOLDOUT:
            return path.parent
    raise FileNotFoundError(f"{folder} holds no {HOLDOUT}/manifest.json; evaluate a bundle of train_ranker")


def _content(
    container: Container, held: Cases, sides: Mapping[str, Mapping[str, Found]], seed: int
) -> dict[str, Any]:
    parts: dict[str, dict[str, Any]] = {}
    for side, found in sides.items():
        overall, segments = reports(held, found, np.random.default_rng(seed))
        parts[side] = {"users": len(held), "reports": overall, "segments": segments}
    content = {
        "app": container.text("app"),
        "protocol": PROTOCOL,
        "excluded": dict(held.excluded),
        **parts["candidate"],
    }
    if "current" in sides:
        ours, theirs = (gain_at(sides[side]["two_stage"].ranks, 10) for side in ("candidate", "current"))
        low, high = interval(ours - theirs, np.random.default_rng(seed))
        difference = {"mean": mean(ours - theirs), "low": low, "high": high} if len(held) else None
        content |= {**parts, "difference": {MAIN: difference}}
    return content


if __name__ == "__main__":
    sys.exit(run(evaluate))
