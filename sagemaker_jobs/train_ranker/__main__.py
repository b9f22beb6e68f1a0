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
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from narrows.adapters.bundle import RANKER_FILE, SEGMENTS_FILE
from narrows.adapters.bundled_indexes import write_indexes
from narrows.adapters.feature_tables import read_negatives
from narrows.errors import InvalidInput
from narrows.evaluation.leave_one_out import cases
from narrows.features import statistics
from narrows.features.vectors import VectorSpec
from narrows.ranking import ModelManifest, write_manifest
from narrows.sources import SOURCES, covisitation
from sagemaker_jobs.container import Container, Progress, run, unpacked, write_json
from sagemaker_jobs.declared import Declared, declared_features
from sagemaker_jobs.replay import funnel_of, replay
from sagemaker_jobs.train_ranker.lambdamart import BUDGET_S, Trained, fit
from sagemaker_jobs.training_set import HOLDOUT, REPLAY, app_of, funnel, read

FILES = (*(source.FILE for source in SOURCES.values()), statistics.FILE, SEGMENTS_FILE)
SUMMARIES = tuple(f"{name}.json" for name in SOURCES)
CHANNELS = ("sources", "als", "covisitation")
MOST_ROWS = 2_000_000
ASKED = 400
"""Visitors by whom the indexes of large sources are measured."""


def train(container: Container) -> None:
    """Collect the sources' files, replay, train, write the bundle and its held-out twin."""
    progress = Progress("train_ranker")
    data = read(container)
    quotas, most = funnel(container)
    seed = int(container.number("seed", 0))
    with TemporaryDirectory() as scratch:
        _collect(container, container.model, Path(scratch))
    _refuse_leak(container.model, data.labels)
    declared = declared_features(container.channel("training"), app_of(container), data)
    past = funnel_of(container.model / REPLAY, data, quotas, most, declared)
    spec = VectorSpec.over(past.sources, past.items, declared.trained_on, past.statistics)
    drawn = np.random.default_rng(seed)
    held = [cases(data.log, back).shuffled(drawn) for back in range(1, data.labels + 1)]
    most_rows = int(container.number("most_rows", MOST_ROWS))
    passed_over = read_negatives(container.channel("training"), data.rows_of)
    groups = replay(held, past, spec, most_rows=most_rows, seed=seed, passed_over=passed_over)
    progress.say(
        f"{len(groups.lengths):,} groups of {groups.asked:,} requests, {len(groups.features):,} rows; "
        f"of {len(passed_over):,} labels is known what was passed over"
    )
    trained = fit(groups, spec, seed, progress, budget_s=container.number("budget_s", BUDGET_S))
    shutil.rmtree(container.model / REPLAY)
    drawn_cases = cases(data.log).sample(ASKED, drawn)
    asked = [drawn_cases.query(case) for case in range(len(drawn_cases))]
    indexed = write_indexes(container.model, data.rows_of, data.log.item_count, asked)
    if indexed:
        progress.say(f"indexes of {', '.join(indexed)}")
    for folder in (container.model / HOLDOUT, container.model):
        _finish(folder, container, trained, spec, declared)
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


def _finish(
    folder: Path, container: Container, trained: Trained, spec: VectorSpec, declared: Declared
) -> None:
    """Put the ranker, its figures, the newest item features and the manifest beside the sources."""
    table = folder / statistics.FILE
    replace(statistics.load(table), declared=declared.items.newest()).save(table)
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
