"""`narrows train`: the training jobs on imported files, without the local cloud."""

from __future__ import annotations

import argparse
import shutil
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from narrows.adapters.imported_data import item_table
from narrows.adapters.publishing import write_snapshot
from narrows.cli.console import CommandFailed, Console
from narrows.cli.places import Places
from narrows.cli.steps import Steps
from narrows.settings import LEARNED_SOURCES

DESCRIPTION = """\
Train the candidate sources and the ranker on what `narrows import` wrote: the same programs that SageMaker
runs in AWS. The model bundle goes to NARROWS_HOME/apps/<app>/models/<version>/."""
SOURCE_JOBS = ("train_als", "train_covisitation")
CURRENT = "current"


def add(commands: Any) -> None:
    """Declare the command line."""
    parser = commands.add_parser(
        "train",
        help="train an app's models on imported files",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--app", required=True, help="the app whose data were imported")
    parser.add_argument(
        "--budget",
        type=tuning_seconds,
        metavar="SECONDS",
        help="how long each model may be tuned; 0 takes the defaults as they are",
    )
    parser.add_argument(
        "--learned",
        nargs="*",
        choices=LEARNED_SOURCES,
        metavar="NAME",
        help=f"which of {', '.join(LEARNED_SOURCES)} to train; by default those of the app's schedule",
    )
    parser.add_argument(
        "--json", action="store_true", help="print version, folder and times as one JSON object"
    )
    parser.set_defaults(run=run)


def tuning_seconds(text: str) -> float:
    """A number of seconds that is not negative."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0.0 <= seconds < 86_400.0:
        raise argparse.ArgumentTypeError(f"'{text}': give a number of seconds, 0 or more")
    return seconds


def run(arguments: argparse.Namespace, places: Places, console: Console) -> Mapping[str, Any]:
    """Train everything and make the new bundle the current one."""
    app = places.app(arguments.app)
    data = imported(places, app.name)
    version = datetime.fromtimestamp(time.time(), UTC).strftime("v%Y%m%dT%H%M%S")
    items = item_table(data, app.catalogue.id)
    given = {} if arguments.budget is None else {"budget_s": arguments.budget}
    training = _Training(places, app.name, data, version, given)
    learned = app.training.learned if arguments.learned is None else tuple(arguments.learned)
    steps = Steps(console, 2 + len(learned))
    steps.begin("sources", "ALS and co-visitation, side by side")
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(training.source, SOURCE_JOBS))
    for name in learned:  # one after the other, since each takes every processor
        steps.begin(name, "trained on every history")
        training.source(f"train_{name}")
    steps.begin("ranker", "LambdaMART over what the sources find")
    training.ranker()
    write_snapshot(snapshot_folder(places, app.name, version), app, items, version=version)
    bundle = training.finish()
    steps.table()
    console.say(f"bundle: {bundle}\nnext: narrows evaluate --app {app.name}")
    seconds = {name: round(value, 1) for name, value in steps.seconds.items()}
    return {"app": app.name, "version": version, "bundle": str(bundle), "seconds": seconds}


def imported(places: Places, app: str) -> Path:
    """The app's training data directory, which `narrows import` makes."""
    data = places.data(app)
    if not (data / "interactions").is_dir():
        raise CommandFailed(f"no data for {app} in {data}; run narrows import PATH --app {app} first")
    return data


def current_bundle(places: Places, app: str) -> Path:
    """The app's newest model bundle, which `narrows train` makes."""
    pointer = places.models(app) / CURRENT
    if not pointer.is_file():
        raise CommandFailed(
            f"no model for {app} in {places.models(app)}; run narrows train --app {app} first"
        )
    return places.models(app) / pointer.read_text(encoding="utf-8").strip()


def snapshot_folder(places: Places, app: str, version: str) -> Path:
    """Where the item snapshot that belongs to a bundle is."""
    return places.home / "apps" / app / "snapshots" / version


class _Training:
    """The jobs of one training run, in a folder that becomes the bundle when all went well."""

    def __init__(
        self, places: Places, app: str, data: Path, version: str, given: Mapping[str, float]
    ) -> None:
        self._places, self._app, self._data, self._version = places, app, data, version
        self._given = given
        self._folder = places.models(app) / f"{version}.part"
        shutil.rmtree(self._folder, ignore_errors=True)

    def source(self, job: str) -> None:
        """Train one candidate source."""
        self._run(job, {"training": self._data}, self._folder / "sources")

    def ranker(self) -> None:
        """Train the ranker over the candidates of the sources; its model is the whole bundle."""
        channels = {"training": self._data, "sources": self._folder / "sources"}
        self._run("train_ranker", channels, self._folder / "bundle")

    def _run(self, job: str, channels: Mapping[str, Path], model: Path) -> None:
        run_job(self._places, self._app, job, channels, model, self._version, **self._given)

    def finish(self) -> Path:
        """Give the bundle its final name and make it the current one."""
        bundle = self._folder.with_name(self._version)
        (self._folder / "bundle").rename(bundle)
        shutil.rmtree(self._folder)
        pointer = bundle.with_name(f"{CURRENT}.new")
        pointer.write_text(f"{self._version}\n", encoding="utf-8")
        pointer.replace(bundle.with_name(CURRENT))
        return bundle


def run_job(
    places: Places,
    app: str,
    job: str,
    channels: Mapping[str, Path],
    model: Path,
    version: str,
    **more: Any,
) -> Path:
    """Run a program of `sagemaker_jobs` under the container contract; returns its output folder."""
    from localcloud.jobs import run_training_job  # starts programs

    folder = places.home / "apps" / app / "jobs" / job
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    given = {"app": app, "version": version, **more}
    run_training_job(f"sagemaker_jobs.{job}", channels, model, folder / "output", given, folder / "log.txt")
    return folder / "output"
