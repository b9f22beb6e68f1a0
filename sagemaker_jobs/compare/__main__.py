"""Compares two stacks of candidate sources over the same log, with the same ranker behind both.

Channel `sources` has a folder for each training job, as the job left it. `rankers.py` says what the ranker
reads, and why; `running.py` asks a stack, `truth.py` knows what only a simulated market does.
"""

from __future__ import annotations

import sagemaker_jobs  # noqa: F401  # first: it sets how many threads numpy takes

# isort: split
import json
import math
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from narrows.capacity import Load, cost_per_million
from narrows.errors import InvalidInput
from narrows.evaluation import funnel
from narrows.evaluation.comparison import (
    NO_CREATION,
    NO_TRUTH,
    Group,
    business_of,
    gain_of,
    groups_of,
    mean_gain,
    recall_of,
)
from narrows.evaluation.leave_one_out import PROTOCOL, Cases, cases
from narrows.evaluation.metrics import Values, finite, interval, mean
from narrows.evaluation.stacks import Stack, jobs_of, needed_jobs, runs_a_month, stacks_of, staleness
from narrows.evaluation.verdict import Decision, Terms, Trials, verdict, would_change
from narrows.features.vectors import VectorSpec
from narrows.market_tables import MarketPlan
from narrows.ranking import Ranker
from narrows.settings import App, Surface
from sagemaker_jobs.compare.indexes import NO_WORK
from sagemaker_jobs.compare.rankers import Training, train_rankers
from sagemaker_jobs.compare.running import Running, missing_sources
from sagemaker_jobs.compare.tiers import searching
from sagemaker_jobs.compare.truth import Truth
from sagemaker_jobs.container import Container, Progress, run, write_json
from sagemaker_jobs.declared import Declared, declared_features
from sagemaker_jobs.replay import Funnel, funnel_of
from sagemaker_jobs.training_set import HOLDOUT, REPLAY, TrainingSet, app_of, read

MACHINE = Path(__file__).resolve().parents[2] / "stepfunctions" / "train_and_promote.asl.json"
MOST_USERS = 3000
MOST_ROWS = 1_000_000
BUDGET_S = 30.0
REQUESTS_PER_S = 1000.0


@dataclass(frozen=True, eq=False)
class Log:
    """What both stacks are asked about: the data, the held-out requests, and the truth where it is known."""

    data: TrainingSet
    declared: Declared
    held: Cases
    truth: Truth | None
    groups: Mapping[str, Group]


@dataclass(frozen=True, eq=False)
class Place:
    """Where they are asked: the app's surface, the seconds that each training job took, and the traffic."""

    app: App
    surface: Surface
    build_s: Mapping[str, float]
    requests_per_s: float
    jobs: Sequence[str]


def compare(container: Container) -> None:
    """Write `comparison.json`."""
    progress = Progress("compare")
    app = app_of(container)
    if app is None:
        raise InvalidInput("hyperparameters.app", container.text("app"), "name an app of apps/")
    surface, stacks = stacks_of(app, container.text("stacks").split(), container.text("surface"))
    log = _log(container, app)
    progress.say(f"{len(log.held):,} requests, left out: {dict(log.held.excluded)}")
    with (
        TemporaryDirectory() as scratch,
        searching(app, container.mapping("search"), progress) as tier,
    ):
        folder = Path(scratch)
        build_s = _gathered(container.channel("sources"), folder)
        quotas = surface.rank_at_most
        past = funnel_of(folder / REPLAY, log.data, (), quotas, log.declared)
        present = funnel_of(folder / HOLDOUT, log.data, (), quotas, log.declared)
        _refuse_absent(stacks, present, folder)
        training = Training(
            int(container.number("seed", 0)),
            int(container.number("most_rows", MOST_ROWS)),
            container.number("budget_s", BUDGET_S),
        )
        rankers = train_rankers(log.data, stacks, past, present, training, folder / "rankers")
        running = [Running.of(stack, present, folder / "indexes" / stack.name, tier) for stack in stacks]
        asked = [
            _asked(one, log, surface, rankers.same, own)
            for one, own in zip(running, rankers.own, strict=True)
        ]
        progress.say(f"NDCG@10: {[[mean(mean_gain(trials)) for trials in kinds] for kinds in asked]}")
        machine = json.loads(MACHINE.read_text(encoding="utf-8"))
        per_s = container.number("requests_per_s", REQUESTS_PER_S)
        place = Place(app, surface, build_s, per_s, jobs_of(machine))
        content = _content(log, place, running, asked, training.seed)
    for target in (container.output_data, container.model):
        write_json(target / "comparison.json", finite(content))


def _asked(
    running: Running, log: Log, surface: Surface, same: Sequence[Ranker], own: Sequence[Ranker]
) -> tuple[Trials, Trials]:
    """The stack's answers behind the rankers of both stacks, and behind its own."""
    found = running.answers(log.held, [*same, *own], surface, log.truth)
    return found[: len(same)], found[len(same) :]


def _log(container: Container, app: App) -> Log:
    data = read(container)
    seed = int(container.number("seed", 0))
    most = int(container.number("most_users", MOST_USERS))
    held = cases(data.log).sample(most, np.random.default_rng(seed))
    declared = declared_features(container.channel("training"), app, data)
    plan = container.mapping("market")
    truth = Truth.of(MarketPlan(**plan), held) if plan else None
    popularity = np.bincount(data.holdout.items, minlength=data.log.item_count)
    unknown = np.full(data.log.item_count, np.nan)
    created = np.asarray(data.items.columns.get("created_at", unknown), np.float64)
    return Log(data, declared, held, truth, groups_of(held, popularity, created))


def _gathered(jobs: Path, target: Path) -> dict[str, float]:
    """Put the sources of every job into one folder; returns the seconds of each job."""
    seconds = {}
    for job in sorted(one for one in jobs.iterdir() if one.is_dir()):
        shutil.copytree(job, target, dirs_exist_ok=True)
        summary = job / f"{job.name.removeprefix('train_')}.json"
        if summary.is_file():
            seconds[job.name] = float(json.loads(summary.read_text("utf-8")).get("seconds", np.nan))
    return seconds


def _refuse_absent(stacks: Sequence[Stack], present: Funnel, folder: Path) -> None:
    for stack in stacks:
        for name in missing_sources(stack, present.sources):
            path = folder / f"{name}.json"
            why = json.loads(path.read_text("utf-8")).get("reason") if path.is_file() else None
            raise InvalidInput(f"sources.{name}", why or "no model", "give it data that it can learn from")


def _content(
    log: Log, place: Place, running: Sequence[Running], asked: Sequence[Sequence[Trials]], seed: int
) -> dict[str, Any]:
    names = [one.stack.name for one in running]
    same, own = zip(*asked, strict=True)
    parts = [_part(log, place, *one, seed) for one in zip(running, same, own, strict=True)]
    at = place.surface.rank_at_most, place.surface.limit
    stages = [[one.stages(*at) for one in trials] for trials in same]
    decision = Decision.of(same, own, np.random.default_rng(seed))
    terms = [
        _terms(one.stack, part, mean(values[0]["retrieved"]))
        for one, part, values in zip(running, parts, stages, strict=True)
    ]
    return {
        "app": place.app.name,
        "surface": place.surface.name,
        "protocol": PROTOCOL,
        "simulated": decision.simulated,
        "users": len(log.held),
        "excluded": dict(log.held.excluded),
        "requests_per_s": place.requests_per_s,
        "retrieved_at": place.surface.rank_at_most,
        "vectors": place.app.tiers["vectors"],
        "clock": "wall" if running[0].wall else "processor",
        "groups": {
            name: {"users": int(group.chosen.sum()), "meaning": group.meaning}
            for name, group in log.groups.items()
        },
        "stacks": dict(zip(names, parts, strict=True)),
        "difference": {"of": "margin" if decision.simulated else "ndcg_at_10", **asdict(decision.same)},
        "difference_with_own_scores": asdict(decision.own),
        "funnel": _funnel(stages, names, seed),
        "verdict": verdict(decision, *terms),
        "would_change": would_change(decision, *terms, log.groups),
    }


def _funnel(
    stages: Sequence[Sequence[Mapping[str, Values]]], names: Sequence[str], seed: int
) -> dict[str, Any]:
    """Every stage's change, and what the detector finds on the way from either stack to the other."""
    trials = zip(*stages, strict=True)
    changes = funnel.widest([funnel.changes(*pair, np.random.default_rng(seed)) for pair in trials])
    return {
        "stages": [asdict(one) for one in changes],
        f"{names[0]} -> {names[1]}": asdict(funnel.detect(changes)),
        f"{names[1]} -> {names[0]}": asdict(funnel.detect(funnel.reverse(changes))),
    }


def _part(log: Log, place: Place, running: Running, same: Trials, own: Trials, seed: int) -> dict[str, Any]:
    stack, app, built = running.stack, place.app, running.built
    times = running.times(log.held)
    node_bytes, untold = built.node_bytes()
    if len(times.retrieval) and math.isnan(times.search):
        untold["cost_per_million_usd"] = NO_WORK
    placing, unplaced = running.placing(log.data.texts)
    stale = staleness(stack, app, place.build_s, placing)
    load = Load(
        retrieval_ms=mean(times.retrieval),
        search_ms=times.search,
        held_bytes=running.bytes_held,
        training_s=sum(runs_a_month(app, job) * place.build_s[job] for job in stack.jobs),
        requests_per_s=place.requests_per_s,
    )
    low, high = interval(mean_gain(same), np.random.default_rng(seed))
    spec = VectorSpec.over(
        running.funnel.sources, log.data.items, log.declared.trained_on, running.funnel.statistics
    )
    return {
        "sources": {quota.name: quota.quota for quota in stack.quotas},
        "index": {"on": built.on, "note": built.note},
        "recall": recall_of(same[0].retrieved, log.groups),
        "ndcg_at_10": gain_of(same, log.groups),
        "ndcg_at_10_interval": [low, high],
        "business_per_1000": business_of(same, np.random.default_rng(seed)),
        "with_own_scores": {
            "ndcg_at_10": gain_of(own, log.groups),
            "business_per_1000": business_of(own, np.random.default_rng(seed)),
        },
        "retrieval_ms": {"p50": _quantile(times.retrieval, 0.5), "p99": _quantile(times.retrieval, 0.99)},
        "time_allowed_ms": min(one.share for one in stack.quotas if one.name in stack.own)
        * place.surface.deadline_ms,
        "build_s": {**{job: place.build_s[job] for job in stack.jobs}, "index": built.seconds},
        "memory_bytes": running.bytes_held,
        "node_bytes": node_bytes,
        "staleness_s": {name: value for name, value in asdict(stale).items() if name != "undefined"},
        "cost_per_million_usd": cost_per_million(load),
        "features": {"declared": len(app.features), "ranker_columns": len(spec.names)},
        "jobs": needed_jobs(stack, place.jobs),
        "undefined": {**_undefined(log), **stale.undefined, **unplaced, **built.unmeasured, **untold},
    }


def _undefined(log: Log) -> dict[str, str]:
    """Why numbers are absent that other data would give."""
    found = {} if log.truth else {"business_per_1000": NO_TRUTH}
    for name, group in log.groups.items():
        if not group.chosen.any():
            known = name != "new_items" or bool(
                np.isfinite(log.data.items.columns.get("created_at", [])).any()
            )
            found[name] = "no request is of this group" if known else NO_CREATION
    return found


def _terms(stack: Stack, part: Mapping[str, Any], recall: float) -> Terms:
    return Terms(
        stack.name,
        recall,
        part["retrieval_ms"]["p99"],
        part["time_allowed_ms"],
        part["staleness_s"]["new_item"],
        part["cost_per_million_usd"]["all"],
        part["index"]["on"],
    )


def _quantile(values: np.ndarray, share: float) -> float:
    return float(np.quantile(values, share)) if len(values) else float("nan")


if __name__ == "__main__":
    sys.exit(run(compare))
