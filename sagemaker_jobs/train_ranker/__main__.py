"""Trains LambdaMART on replayed requests and writes the bundle that is served.

The chain has no leak: the sources of `replay/` have not seen the labels that the ranker learns from, those of
`holdout/` not the events that it is evaluated on; the served bundle takes the sources of everything.
"""

from __future__ import annotations

import sagemaker_jobs  # noqa: F401  # first: it sets how many threads numpy takes

# isort: split
import json
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightgbm
import numpy as np

from narrows.adapters.bundle import RANKER_FILE, SEGMENTS_FILE
from narrows.errors import InvalidInput
from narrows.evaluation.leave_one_out import cases
from narrows.evaluation.metrics import MAIN, gain_at, mean
from narrows.features import statistics
from narrows.features.vectors import VectorSpec
from narrows.ranking import ModelManifest, write_manifest
from narrows.sources import als, covisitation, popular
from sagemaker_jobs.container import Container, Progress, run, unpacked, write_json
from sagemaker_jobs.replay import Groups, funnel_of, replay
from sagemaker_jobs.training_set import HOLDOUT, REPLAY, funnel, read

FILES = (als.FILE, covisitation.FILE, popular.FILE, statistics.FILE, SEGMENTS_FILE)
SUMMARIES = ("als.json", "covisitation.json")
CHANNELS = ("sources", "als", "covisitation")
MOST_ROWS = 2_000_000
FEWEST_GROUPS = 30
VALIDATED = 8
PARAMS: Mapping[str, Any] = {
    "objective": "lambdarank",
    "metric": "ndcg",
    "eval_at": [10],
    "learning_rate": 0.05,
    "num_leaves": 31,
    "feature_fraction": 0.5,
    "lambdarank_truncation_level": 100,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}
ROUNDS, PATIENCE = 400, 40
FEW_GROUPS = 3000
CAUTIOUS_LEAVES = 7
RISING = ("score", "scaled", "last", "long", "best", "links", "recent", "reciprocal_rank", "found_by")
FALLING = ("rank", "place")


@dataclass(frozen=True)
class Trained:
    """The booster as text, "" where there was too little to learn from, and what was measured on the way."""

    text: str
    metrics: Mapping[str, Any]


def train(container: Container) -> None:
    """Collect the sources' files, replay, train, write the bundle and its held-out twin."""
    progress = Progress("train_ranker")
    data = read(container)
    quotas, most = funnel(container)
    seed = int(container.number("seed", 0))
    with TemporaryDirectory() as scratch:
        _collect(container, container.model, Path(scratch))
    _refuse_leak(container.model, data.labels)
    past = funnel_of(container.model / REPLAY, data, quotas, most)
    spec = VectorSpec.over(past.sources, past.items)
    drawn = np.random.default_rng(seed)
    held = [cases(data.log, back).shuffled(drawn) for back in range(1, data.labels + 1)]
    groups = replay(held, past, spec, most_rows=int(container.number("most_rows", MOST_ROWS)))
    progress.say(
        f"{len(groups.lengths):,} groups of {groups.asked:,} requests, {len(groups.features):,} rows"
    )
    trained = fit(groups, spec, seed, progress)
    shutil.rmtree(container.model / REPLAY)
    for folder in (container.model / HOLDOUT, container.model):
        _finish(folder, container, trained, spec)
    progress.say(f"bundle with {len(spec.names)} features")


def _collect(container: Container, target: Path, scratch: Path) -> None:
    """Copy the sources' files of every input into the bundle, with `holdout/` and `replay/` below it."""
    for channel in CHANNELS:
        if container.has(channel):
            folder = unpacked(container.channel(channel), scratch / channel)
            for path in sorted(folder.rglob("*")):
                if path.name in (*FILES, *SUMMARIES):
                    part = path.parent.name if path.parent.name in (HOLDOUT, REPLAY) else "."
                    (target / part).mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, target / part / path.name)
    missing = [
        f"{part}/{name}"
        for part in (".", HOLDOUT, REPLAY)
        for name in (statistics.FILE, covisitation.FILE)
        if not (target / part / name).is_file()
    ]
    if missing:
        raise InvalidInput(
            "channel.sources", missing, "give the models of train_als and train_covisitation as input"
        )


def _refuse_leak(bundle: Path, labels: int) -> None:
    """Labels may only be events that the sources of `replay/` were fitted without."""
    for name in SUMMARIES:
        path = bundle / name
        without = (
            json.loads(path.read_text(encoding="utf-8"))["labels_per_user"] if path.is_file() else labels
        )
        if without < labels:
            raise InvalidInput(
                "hyperparameters.labels_per_user", labels, f"{name} was fitted without {without} of them only"
            )


def fit(groups: Groups, spec: VectorSpec, seed: int, progress: Progress) -> Trained:
    """Train until the validation users' gain stops rising; every eighth user validates."""
    validated = groups.users % VALIDATED == 0
    learning, judging = groups.take(~validated), groups.take(validated)
    found: dict[str, Any] = {
        "groups": len(groups.lengths),
        "requests": groups.asked,
        "rows": len(groups.features),
    }
    found["candidate_recall"] = len(groups.lengths) / groups.asked if groups.asked else None
    if len(learning.lengths) < FEWEST_GROUPS or not len(judging.lengths):
        reason = (
            f"{len(learning.lengths)} groups to learn from, fewer than {FEWEST_GROUPS}: fused ranks serve"
        )
        progress.say(reason)
        return Trained("", {**found, "reason": reason})
    params = _params(learning, spec, seed)
    dataset = _dataset(learning, spec)
    booster = lightgbm.train(
        params,
        dataset,
        ROUNDS,
        valid_sets=[_dataset(judging, spec, reference=dataset)],
        callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False)],
    )
    gain = booster.feature_importance("gain")
    order = np.argsort(-gain)
    found |= {
        "trees": booster.best_iteration,
        f"validation_{MAIN}": mean(
            gain_at(_ranks(np.asarray(booster.predict(judging.features)), judging), 10)
        ),
        "importance": {spec.names[at]: round(float(gain[at]), 1) for at in order[:20]},
    }
    progress.say(f"{booster.best_iteration} trees, gain among found {found[f'validation_{MAIN}']:.4f}")
    return Trained(booster.model_to_string(num_iteration=booster.best_iteration), found)


def _params(learning: Groups, spec: VectorSpec, seed: int) -> dict[str, Any]:
    """Where groups are few, small trees that may not turn a source's order around."""
    least = max(5, min(50, len(learning.features) // 1000))
    params = {**PARAMS, "seed": seed, "min_data_in_leaf": least}
    if len(learning.lengths) >= FEW_GROUPS:
        return params
    return params | {"num_leaves": CAUTIOUS_LEAVES, "monotone_constraints": directions(spec)}


def directions(spec: VectorSpec) -> list[int]:
    """For each column 1, -1 or 0: whether the model's score may only rise with it, only fall, or do both."""
    found = []
    for name in spec.names:
        owner, _, last = name.rpartition(".")
        by_source = (owner in spec.sources and owner != "fresh") or not owner
        found.append((last in RISING) - (last in FALLING) if by_source else 0)
    return found


def _dataset(groups: Groups, spec: VectorSpec, reference: Any = None) -> Any:
    weights = np.repeat(groups.weights / max(float(groups.weights.mean()), 1e-9), groups.lengths)
    return lightgbm.Dataset(
        groups.features,
        label=groups.relevant,
        group=groups.lengths,
        weight=None if np.ptp(weights) == 0 else weights,
        feature_name=list(spec.names),
        reference=reference,
    )


def _ranks(scores: np.ndarray, groups: Groups) -> np.ndarray:
    """Of each group's relevant candidate, from 0."""
    ends = np.cumsum(groups.lengths)
    ranks = [
        int((scores[begin:end] > scores[begin:end][groups.relevant[begin:end] > 0]).sum())
        for begin, end in zip(ends - groups.lengths, ends, strict=True)
    ]
    return np.asarray(ranks, np.int64)


def _finish(folder: Path, container: Container, trained: Trained, spec: VectorSpec) -> None:
    """Put the ranker, its figures and the manifest beside the sources."""
    if trained.text:
        (folder / RANKER_FILE).write_text(trained.text, encoding="utf-8")
    write_json(folder / "metrics.json", trained.metrics)
    now = time.time()
    manifest = ModelManifest(
        version=container.text("version") or time.strftime("v%Y%m%dT%H%M%S", time.gmtime(now)),
        app=container.text("app"),
        created_at=now,
        feature_names=spec.names,
        fingerprint=spec.fingerprint(),
        spec=spec.to_json(),
        metrics={name: value for name, value in trained.metrics.items() if name != "importance"},
    )
    write_manifest(folder, manifest)


if __name__ == "__main__":
    sys.exit(run(train))
