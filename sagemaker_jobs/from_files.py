"""All the jobs in one process, over training data: `python -m sagemaker_jobs.from_files DATA OUT`.

`OUT` becomes the bundle; the report of the evaluation goes to `OUT.evaluation/metrics.json`.
"""

from __future__ import annotations

import sagemaker_jobs  # noqa: F401  # first: it sets how many threads numpy takes

# isort: split
import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sagemaker_jobs.container import Container
from sagemaker_jobs.evaluate.__main__ import evaluate
from sagemaker_jobs.train_als.__main__ import train as train_als
from sagemaker_jobs.train_covisitation.__main__ import train as train_covisitation
from sagemaker_jobs.train_ranker.__main__ import train as train_ranker
from sagemaker_jobs.train_session.__main__ import train as train_session
from sagemaker_jobs.train_two_tower.__main__ import train as train_two_tower

BUDGET_S = 180.0
LEARNED = {"two_tower": train_two_tower, "session": train_session}


def train_from_files(
    data: Path,
    bundle: Path,
    *,
    app: str = "",
    seed: int = 0,
    budget_s: float = BUDGET_S,
    learned: Sequence[str] = (),
    **more: Any,
) -> Path:
    """Tune, fit, replay and train; `budget_s` is shared by the jobs' tuning; progress goes to stderr.

    `learned` names the sources of LEARNED that are wanted as well. With a budget of 0 nothing is tuned, and
    small data take a few seconds.
    """
    jobs = (train_als, train_covisitation, *(LEARNED[name] for name in learned))
    given = {"app": app, "seed": seed, "budget_s": budget_s / (len(jobs) + 1), **more}
    shutil.rmtree(bundle, ignore_errors=True)
    bundle.mkdir(parents=True)
    with TemporaryDirectory() as folder:
        sources = Path(folder)
        for job in jobs:
            job(_container(sources, {"training": data}, given))
        train_ranker(_container(bundle, {"training": data, "sources": sources}, given))
    return bundle


def evaluate_from_files(
    data: Path, bundle: Path, *, app: str = "", seed: int = 0, **more: Any
) -> dict[str, Any]:
    """The leave-one-out report of a bundle on the data that it was trained from."""
    with TemporaryDirectory() as folder:
        output = Path(folder)
        channels = {"training": data, "candidate": bundle}
        evaluate(_container(output, channels, {"app": app, "seed": seed, **more}))
        report: dict[str, Any] = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
    return report


def _container(results: Path, channels: Mapping[str, Path], given: Mapping[str, Any]) -> Container:
    return Container(results, results, results, results, channels, given)


def main(arguments: list[str]) -> int:
    """The program."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--app", default="")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="seconds of tuning")
    parser.add_argument("--learned", nargs="*", choices=LEARNED, default=(), help="learned sources to train")
    asked = parser.parse_args(arguments)
    train_from_files(
        asked.data,
        asked.out,
        app=asked.app,
        seed=asked.seed,
        budget_s=asked.budget,
        learned=asked.learned,
    )
    report = evaluate_from_files(asked.data, asked.out, app=asked.app, seed=asked.seed)
    target = asked.out.with_name(f"{asked.out.name}.evaluation")
    target.mkdir(parents=True, exist_ok=True)
    (target / "metrics.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
