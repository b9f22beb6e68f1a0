"""All the jobs, one after another, over training data: `python -m sagemaker_jobs.from_files DATA OUT`.

`OUT` becomes the bundle; the report of the evaluation goes to `OUT.evaluation/metrics.json`. The learned
sources are trained in processes of their own: jax keeps threads, beside which a process must not fork.
"""

from __future__ import annotations

import sagemaker_jobs  # noqa: F401  # first: it sets how many threads numpy takes

# isort: split
import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from narrows.errors import NarrowsError
from narrows.settings import LEARNED_SOURCES
from sagemaker_jobs.container import Container
from sagemaker_jobs.evaluate.__main__ import evaluate
from sagemaker_jobs.train_als.__main__ import train as train_als
from sagemaker_jobs.train_covisitation.__main__ import train as train_covisitation
from sagemaker_jobs.train_ranker.__main__ import train as train_ranker

BUDGET_S = 180.0
ROOT = Path(__file__).resolve().parents[1]


class JobFailed(NarrowsError):
    """A job that ran in a process of its own gave no model; the message is the reason that it wrote."""


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

    `learned` names those of LEARNED_SOURCES that are wanted as well. With a budget of 0 nothing is tuned, and
    small data take a few seconds.
    """
    jobs = (train_als, train_covisitation)
    given = {"app": app, "seed": seed, "budget_s": budget_s / (len(jobs) + len(learned) + 1), **more}
    shutil.rmtree(bundle, ignore_errors=True)
    bundle.mkdir(parents=True)
    with TemporaryDirectory() as folder:
        sources = Path(folder)
        for job in jobs:
            job(_container(sources, {"training": data}, given))
        for name in learned:
            _train_apart(name, _container(sources, {"training": data}, given))
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


def _train_apart(name: str, container: Container) -> None:
    """Run a learned source's job under the contract of its container, as SageMaker does."""
    environment = {
        **os.environ,
        **{f"SM_CHANNEL_{channel.upper()}": str(path) for channel, path in container.channels.items()},
        "SM_MODEL_DIR": str(container.model),
        "SM_OUTPUT_DIR": str(container.output),
        "SM_OUTPUT_DATA_DIR": str(container.output_data),
        "SM_HPS": json.dumps(dict(container.hyperparameters)),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, "-m", f"sagemaker_jobs.train_{name}"]
    if subprocess.run(command, env=environment, check=False).returncode:  # noqa: S603  # our own module
        failure = container.output / "failure"
        said = failure.read_text(encoding="utf-8").strip() if failure.is_file() else "see its lines above"
        raise JobFailed(f"train_{name} failed: {said}")


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
    parser.add_argument(
        "--learned", nargs="*", choices=LEARNED_SOURCES, default=(), help="learned sources to train"
    )
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
