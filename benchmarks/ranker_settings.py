"""What the ranker's settings are worth on validation events: the table that decision 16 was made from.

    python benchmarks/ranker_settings.py PATH [--app media] [--json build/ranker_settings.json]

PATH is a folder in the layout of Amazon Personalize, or the data of an app that `narrows import` made. Each
user's last event, which `narrows evaluate` asks for, is dropped before anything else: the event before it is
asked for instead, and all before that is learned from. So no setting is chosen on the events it is tested on.
The sources take their starting parameters, so that lines differ by nothing but what they name. Without PATH
nothing is measured.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import sagemaker_jobs  # noqa: F401  # before numpy: it sets how many threads numpy takes

# isort: split
import lightgbm
import numpy as np

from narrows.adapters.importer import ImportOptions, import_files
from narrows.adapters.tables import read_training_data, write_training_data
from narrows.evaluation.leave_one_out import cases
from narrows.evaluation.metrics import gain_at, hit_at, interval
from narrows.features.vectors import VectorSpec
from narrows.settings import load_app
from sagemaker_jobs.container import Container, Progress
from sagemaker_jobs.declared import declared_features
from sagemaker_jobs.replay import Groups, funnel_of, replay
from sagemaker_jobs.train_als.__main__ import train as train_als
from sagemaker_jobs.train_covisitation.__main__ import train as train_covisitation
from sagemaker_jobs.train_ranker.__main__ import MOST_ROWS
from sagemaker_jobs.train_ranker.lambdamart import BUDGET_S, PATIENCE, fit, ranks
from sagemaker_jobs.training_set import (
    APPS,
    HOLDOUT,
    REPLAY,
    TrainingSet,
    app_of,
    funnel,
    labels_per_user,
    read,
)

LABELS = (1, 3, 5, 8, 12)
ROWS = (2_000_000, 4_000_000)
PATIENCES = (20, 50, 100)
COLUMNS = (
    "{labels:>6} {kept:>6.2f} {most_rows:>10,} {patience:>8} {tuning_s:>6.0f} {trees:>5} {seconds:>7.0f}"
)


@dataclass(frozen=True)
class Setting:
    """One line of the table."""

    labels: int
    most_rows: int = MOST_ROWS
    patience: int = PATIENCE
    tuning_s: float = 0.0


class Trial:
    """Training data without the test events, and the sources of one number of labels at a time."""

    def __init__(self, folder: Path, app: str, seed: int, sources_s: float, users: int) -> None:
        self._folder, self._users, self._progress = folder, users, Progress("ranker_settings")
        self._given = {"app": app, "seed": seed, "budget_s": sources_s}
        self._labels, self._replayed = 0, (0, 0)
        self._seed = seed

    def use(self, setting: Setting) -> None:
        """Fit the sources and replay where the last setting's do not fit."""
        if setting.labels != self._labels:
            container = self._container(setting.labels)
            for job in (train_als, train_covisitation):
                job(container)
            self._data: TrainingSet = read(container)
            self._funnel = funnel(container)
            self._declared = declared_features(self._folder / "data", app_of(container), self._data)
            self._judging = self._asked([cases(self._data.log).sample(self._users, self._drawn())], HOLDOUT)
            self._labels = setting.labels
        if (setting.labels, setting.most_rows) != self._replayed:
            held = [cases(self._data.log, back).shuffled(self._drawn()) for back in self._backs]
            self._groups = self._asked(held, REPLAY, setting.most_rows)
            self._replayed = (setting.labels, setting.most_rows)

    def judge(self, setting: Setting) -> tuple[dict[str, Any], np.ndarray]:
        """(what to report, the rank of each user's event, -1 where it was no candidate)."""
        self.use(setting)
        began = self._progress.seconds
        trained = fit(
            self._groups,
            self._spec,
            self._seed,
            self._progress,
            budget_s=setting.tuning_s,
            patience=setting.patience,
        )
        seconds, judging = self._progress.seconds - began, self._judging
        scores = np.zeros(len(judging.features))
        if trained.text:
            scores = np.asarray(lightgbm.Booster(model_str=trained.text).predict(judging.features))
        found = np.full(judging.asked, -1, np.int64)
        found[: len(judging.lengths)] = ranks(scores, judging, self._spec)
        return {
            **asdict(setting),
            "kept": len(self._data.replay) / len(self._data.holdout),
            "groups": len(self._groups.lengths),
            "rows": len(self._groups.features),
            "trees": trained.metrics.get("trees", 0),
            "chosen": trained.metrics.get("chosen"),
            "params": trained.metrics.get("params"),
            "seconds": seconds,
            "hit_at_10": float(np.mean(hit_at(found, 10))),
            "gain_at_10": float(np.mean(gain_at(found, 10))),
        }, found

    @property
    def _backs(self) -> range:
        return range(1, self._labels + 1)

    def _asked(self, held: Sequence[Any], part: str, most_rows: int = 10**9) -> Groups:
        past = funnel_of(self._folder / part, self._data, *self._funnel, self._declared)
        declared = self._declared.trained_on
        self._spec = VectorSpec.over(past.sources, past.items, declared, past.statistics)
        return replay(held, past, self._spec, most_rows=most_rows, seed=self._seed)

    def _drawn(self) -> np.random.Generator:
        return np.random.default_rng(self._seed)

    def _container(self, labels: int) -> Container:
        model = self._folder
        channels = {"training": self._folder / "data"}
        return Container(model, model, model, model, channels, {**self._given, "labels_per_user": labels})


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path, nargs="?")
    parser.add_argument("--app", default="media")
    parser.add_argument("--labels", type=int, nargs="+", default=LABELS)
    parser.add_argument("--users", type=int, default=4000, help="at most so many are asked for")
    parser.add_argument("--budget", type=float, default=0.0, help="seconds of tuning of each source")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    if arguments.path is None or not arguments.path.is_dir():
        print(f"skipped: {arguments.path or 'PATH'} is no folder of data")
        return
    with TemporaryDirectory() as folder:
        automatic = write_without_test_events(arguments.path, arguments.app, Path(folder))
        trial = Trial(Path(folder), arguments.app, arguments.seed, arguments.budget, arguments.users)
        lines = []
        for line in measure(trial, grid(arguments.labels, automatic)):
            lines.append(line)
            content = {"data": arguments.path.name, "automatic_labels": automatic, "settings": lines}
            if arguments.json:
                arguments.json.parent.mkdir(parents=True, exist_ok=True)
                arguments.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def write_without_test_events(path: Path, app: str, folder: Path) -> int:
    """Write the data without each user's last event to `folder`/data; the labels that training would take."""
    if not (path / "interactions").is_dir():
        options = ImportOptions({}, (), time.time())
        import_files(path, load_app(APPS / app), folder / "imported", options, lambda *_: None)
        path = folder / "imported"
    everything = read_training_data(path)
    log, _ = everything.interactions.last_out(1)
    events = {
        "user_id": log.user_ids[log.users].tolist(),
        "item_id": log.item_ids[log.items].tolist(),
        "time": log.times.tolist(),
        "weight": log.weights.tolist(),
    }
    write_training_data(folder / "data", events, everything.items)
    return labels_per_user(log)


def grid(labels: Sequence[int], automatic: int) -> Iterator[Setting]:
    """First the labels, then one axis after another from the number that training would take."""
    yield from (Setting(one) for one in labels if one != automatic)
    here = Setting(automatic)
    yield here
    yield from (replace(here, patience=one) for one in PATIENCES if one != PATIENCE)
    yield replace(here, tuning_s=BUDGET_S)
    yield from (replace(here, most_rows=one) for one in ROWS if one != MOST_ROWS)


def measure(trial: Trial, settings: Iterable[Setting]) -> Iterator[dict[str, Any]]:
    """The lines, each printed when it is known."""
    print("labels   kept  most_rows patience tuning trees seconds  HR@10  NDCG@10", flush=True)
    for setting in settings:
        line, found = trial.judge(setting)
        line["gain_interval"] = list(interval(np.asarray(gain_at(found, 10)), np.random.default_rng(0)))
        print(COLUMNS.format(**line) + f"  {line['hit_at_10']:.4f}  {line['gain_at_10']:.4f}", flush=True)
        yield line


if __name__ == "__main__":
    main()
