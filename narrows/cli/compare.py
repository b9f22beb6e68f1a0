"""`narrows compare`: two stacks of candidate sources over the same log, with the same ranker behind both."""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from narrows.adapters.tables import write_training_data
from narrows.cli.console import CommandFailed, Console
from narrows.cli.demo import event_count
from narrows.cli.places import Places
from narrows.cli.search_node import search_node
from narrows.cli.steps import Steps
from narrows.cli.train import run_job, tuning_seconds
from narrows.evaluation.stacks import STACKS, Stack, stacks_of
from narrows.market_tables import MarketPlan, tables_of
from narrows.settings import LEARNED_SOURCES, App

DESCRIPTION = """\
Train two stacks of candidate sources on the same log and compare what they find, what it brings behind the
same ranker, and what they cost: recall by group of requests, NDCG@10, business value, time, memory,
staleness, cost, features and jobs; then a verdict, what would change it, and what the funnel detector finds.

What `narrows import` brought is taken; without it, or with --simulate, the simulator makes a market for the
app, a third of its visits anonymous. Only there is it known what a slate is truly worth.

Where an app's vectors lie in OpenSearch, the two towers are measured there: on the node that SEARCH_URL names
(with SEARCH_ENGINE, else the app's engine; signed in AWS_REGION for a domain of Amazon's), in indexes of its
own that are gone afterwards; else on one that is started here for as long as it takes. Without a node its
figures are missing, with the reason."""
BUDGET_S = 180.0
SHARES = {"counted": 0.2, "learned": 0.6, "compare": 0.2}
"""Of the budget: the counted sources side by side, the learned ones one by one, the ranker's trees."""
KINDS = {
    "lost": "more is found, and lost on the way",
    "clean": "more is found, and kept",
    "no_rise": "no more is found",
    "no_verdict": "not decided",
}
SOONEST = {
    "own_click": "own click",
    "new_item": "new item, for a known visitor",
    "new_item_shown": "new item, for all alike",
    "learned": "what visitors did",
}
CLOCKS = {"wall": "wall time", "processor": "of one processor"}
ON_NODES = {"files": "index files", "graphs": "graphs in memory"}
FIGURES = {
    "business_per_1000": "clicks, conversions, revenue and margin",
    "retrieval_ms": "retrieval time",
    "build_s.index": "time to build the index",
    "node_bytes": "size on the node",
    "node_bytes.graphs": "graphs in memory",
    "new_item": "until a new item counts",
    "cost_per_million_usd": "cost",
}
"""What is not known, in the table's words; a group has its own."""
UNITS = ((86_400.0, "d"), (3600.0, "h"), (60.0, "min"), (1.0, "s"))


def add(commands: Any) -> None:
    """Declare the command line."""
    parser = commands.add_parser(
        "compare",
        help="compare two stacks of candidate sources",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "stacks", nargs=2, choices=STACKS, metavar="STACK", help=f"two of {', '.join(STACKS)}"
    )
    parser.add_argument("--app", required=True, help="the app whose sources are compared")
    parser.add_argument(
        "--surface", default="", help="where (default: the first that asks both for a history)"
    )
    parser.add_argument(
        "--budget",
        type=tuning_seconds,
        default=BUDGET_S,
        metavar="SECONDS",
        help=f"for tuning and training; the whole takes longer (default: {BUDGET_S:.0f})",
    )
    parser.add_argument(
        "--simulate", action="store_true", help="a simulated market, though data were imported"
    )
    parser.add_argument(
        "--events", type=event_count, default=MarketPlan.events, help="simulated (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=MarketPlan.seed, help="of market and training")
    parser.add_argument(
        "--requests-per-second",
        type=tuning_seconds,
        default=1000.0,
        metavar="NUMBER",
        help="a month's mean, which shares the cost of training (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, places: Places, console: Console) -> Mapping[str, Any]:
    """Find or make the data, train the sources of both stacks, measure, and print the report."""
    app = places.app(arguments.app)
    if not arguments.requests_per_second:
        raise CommandFailed("--requests-per-second 0: give more than 0, they share the cost of training")
    _, stacks = stacks_of(app, arguments.stacks, arguments.surface)
    jobs = list(dict.fromkeys(job for stack in stacks for job in stack.jobs))
    learned = [job for job in jobs if job.removeprefix("train_") in LEARNED_SOURCES]
    counted = [job for job in jobs if job not in learned]
    nodes = int(app.tiers["vectors"] == "opensearch")
    work = _Comparison(places, app, arguments, Steps(console, 3 + nodes + len(learned)))
    with work.node() as search:
        report = work.report(stacks, counted, learned, search)
    report["seconds"] = {name: round(value, 1) for name, value in work.steps.seconds.items()}
    for line in lines_of(report):
        console.say(line) if isinstance(line, str) else console.table(*line)
    return report


class _Comparison:
    """The folders and programs of one comparison."""

    def __init__(self, places: Places, app: App, arguments: argparse.Namespace, steps: Steps) -> None:
        self.steps = steps
        self._places, self._app, self._asked = places, app, arguments
        self._folder = places.home / "apps" / app.name / "compare"
        shutil.rmtree(self._folder, ignore_errors=True)
        self._data = places.data(app.name)
        imported = (self._data / "interactions").is_dir() and not arguments.simulate
        self._plan = None if imported else MarketPlan(seed=arguments.seed, events=arguments.events)

    @contextmanager
    def node(self) -> Iterator[Mapping[str, str]]:
        """What the job must know of the node where an app's vectors lie; one is started if there is none."""
        if self._app.tiers["vectors"] == "opensearch":
            self.steps.begin("node", "of OpenSearch, where the app's vectors lie")
        with search_node(self._app, self._folder / "opensearch", os.environ, self.steps) as search:
            yield search

    def report(
        self,
        stacks: Sequence[Stack],
        counted: Sequence[str],
        learned: Sequence[str],
        search: Mapping[str, str],
    ) -> dict[str, Any]:
        """Train all sources and compare the stacks."""
        log = self.data()
        self.steps.begin("sources", f"{' and '.join(counted)}, side by side")
        with ThreadPoolExecutor(len(counted)) as pool:
            list(pool.map(self.train, counted, [SHARES["counted"]] * len(counted)))
        for job in learned:  # one after the other, since each takes every processor
            self.steps.begin(job.removeprefix("train_"), "trained on every history")
            self.train(job, SHARES["learned"] / len(learned))
        report = {**self.compare(stacks, search), "log": log}
        self.steps.end()
        return report

    def data(self) -> dict[str, Any]:
        """Where the log comes from; a market's is made and written here."""
        if self._plan is None:
            self.steps.begin("log", f"imported, in {self._data}")
            return {"imported": str(self._data)}
        self.steps.begin(
            "log", f"a simulated market, {self._plan.events:,} events of {self._plan.days:.0f} days"
        )
        tables = tables_of(self._plan, self._plan.market(), self._app)
        self._data = self._folder / "data"
        write_training_data(self._data, tables.interactions, tables.items)
        kept = len(tables.interactions["item_id"])
        reasons = ", ".join(f"{count:,} {why}" for why, count in tables.left_out.items())
        self.steps.remark(f"{kept:,} events kept; left out: {reasons}")
        return {"simulated": asdict(self._plan), "events": kept, "left_out": dict(tables.left_out)}

    def train(self, job: str, share: float) -> None:
        """Run one of the training jobs, in its share of the budget."""
        budget_s = self._asked.budget * share
        self._run(job, {"training": self._data}, self._folder / "sources" / job, budget_s=budget_s)

    def compare(self, stacks: Sequence[Stack], search: Mapping[str, str]) -> dict[str, Any]:
        """Run the comparison; returns its report."""
        names = [stack.name for stack in stacks]
        self.steps.begin("compare", f"{' and '.join(names)} behind one ranker")
        output = self._run(
            "compare",
            {"training": self._data, "sources": self._folder / "sources"},
            self._folder / "report",
            budget_s=self._asked.budget * SHARES["compare"],
            stacks=" ".join(names),
            surface=self._asked.surface,
            market=asdict(self._plan) if self._plan else {},
            requests_per_s=self._asked.requests_per_second,
            search=search,
        )
        report: dict[str, Any] = json.loads((output / "comparison.json").read_text(encoding="utf-8"))
        return report

    def _run(self, job: str, channels: Mapping[str, Path], model: Path, **more: Any) -> Path:
        more["seed"] = self._asked.seed
        return run_job(self._places, self._app.name, job, channels, model, "compared", **more)


def lines_of(report: Mapping[str, Any]) -> Iterator[str | tuple[Sequence[str], Sequence[Sequence[str]]]]:
    """The report for people: lines of text, and (heads, rows) of its table."""
    stacks: Mapping[str, Any] = report["stacks"]
    left_out = ", ".join(f"{count:,} ({why.replace('_', ' ')})" for why, count in report["excluded"].items())
    where = f"{report['app']}, {report['surface']}"
    whose = "of a simulated market" if report["simulated"] else "of the imported data"
    yield f"{where}: the last events of {report['users']:,} visitors {whose}; not asked: {left_out}"
    yield ("", *stacks), [(name, *cells) for name, cells in _rows(report, list(stacks.values()))]
    yield from _remarks(report["clock"], stacks)
    for name, group in report["groups"].items():
        yield f"{name}: {group['meaning']} ({group['users']:,} visitors)"
    yield f"\n{report['verdict']}"
    yield "What would change it:"
    yield from (f"  - {one}" for one in report["would_change"])
    first, second = stacks
    yield f"\nThe funnel, means a request; the difference is {second} less {first}, with 95%:"
    yield ("stage", first, second, "difference"), list(_stages(report["funnel"]["stages"]))
    ways = [f"{first} -> {second}", f"{second} -> {first}"]
    findings = {way: report["funnel"][way] for way in ways}
    way = next((way for way in ways if findings[way]["kind"] != "no_rise"), ways[0])
    yield f"{way}: {KINDS[findings[way]['kind']]}; {findings[way]['reason']}"


def _remarks(clock: str, stacks: Mapping[str, Any]) -> Iterator[str]:
    for stack, one in stacks.items():
        if one["index"]["note"]:
            yield f"vector index of {stack}: {one['index']['note']}"
    if clock == "wall":
        yield (
            "wall time: another process searches the vectors; "
            "what else runs here lengthens both stacks' times"
        )
    yield from _unknown(stacks)


def _unknown(stacks: Mapping[str, Any]) -> Iterator[str]:
    """A line for each reason, with the figures and the stacks of which it is true."""
    lines: dict[str, tuple[dict[str, None], dict[str, None]]] = {}
    for stack, one in stacks.items():
        for figure, why in one["undefined"].items():
            figures, names = lines.setdefault(why, ({}, {}))
            figures[FIGURES.get(figure, figure)] = names[stack] = None
    for why, (figures, names) in lines.items():
        of = "" if len(names) == len(stacks) else f" of {', '.join(names)}"
        yield f"{', '.join(figures)}{of}: not known, {why}"


def _rows(report: Mapping[str, Any], stacks: Sequence[Any]) -> Iterator[tuple[str, list[str]]]:
    at = report["retrieved_at"]
    known = {int(name.rpartition("_")[2]) for name in stacks[0]["recall"]["overall"]}
    for k in sorted(known, key=lambda one: (one != at, one)):
        groups = report["groups"] if k == min(known, key=lambda one: abs(one - at)) else ("overall",)
        for group in groups:
            yield f"recall@{k} {group}", [_number(one["recall"][group][f"recall_at_{k}"]) for one in stacks]
    for group in report["groups"]:
        yield f"NDCG@10 {group}", [_number(one["ndcg_at_10"][group]) for one in stacks]
    yield "NDCG@10 overall, 95%", [", ".join(map(_number, one["ndcg_at_10_interval"])) for one in stacks]
    for name in stacks[0]["business_per_1000"]:
        yield f"{name}, 1,000 slates", [_interval(one["business_per_1000"][name]) for one in stacks]
    own = [one["with_own_scores"] for one in stacks]
    yield "NDCG@10, own ranker", [_number(one["ndcg_at_10"]["overall"]) for one in own]
    for name in ("conversions", "margin"):
        yield f"{name}, 1,000 slates, own ranker", [_interval(one["business_per_1000"][name]) for one in own]
    yield "vector index", [one["index"]["on"] or "-" for one in stacks]
    for name in ("p50", "p99"):
        row = f"retrieval {name} (ms, {CLOCKS[report['clock']]})"
        yield row, [_number(one["retrieval_ms"][name]) for one in stacks]
    yield "training (s)", [_number(_training_s(one["build_s"]), 1) for one in stacks]
    yield "vector index, until live (s)", [_number(one["build_s"]["index"], 3) for one in stacks]
    yield "memory of a process (MB)", [_number(one["memory_bytes"] / 1e6, 1) for one in stacks]
    for name, said in ON_NODES.items() if report["vectors"] == "opensearch" else ():
        yield f"on the node: {said} (MB)", [_number(_mega(one["node_bytes"][name]), 1) for one in stacks]
    for name in stacks[0]["staleness_s"]:
        yield f"until it counts: {SOONEST[name]}", [_span(one["staleness_s"][name]) for one in stacks]
    for name in stacks[0]["cost_per_million_usd"]:
        yield (
            f"$ a million retrievals: {name}",
            [_number(one["cost_per_million_usd"][name], 4) for one in stacks],
        )
    yield "declared features", [str(one["features"]["declared"]) for one in stacks]
    yield "columns of its own ranker", [str(one["features"]["ranker_columns"]) for one in stacks]
    yield "jobs of the workflow", [str(len(one["jobs"])) for one in stacks]


def _stages(stages: Sequence[Mapping[str, Any]]) -> Iterator[list[str]]:
    for one in stages:
        interval = (
            f"[{_number(one['low'])}, {_number(one['high'])}]" if one["low"] is not None else one["reason"]
        )
        yield [one["stage"], _number(one["baseline"]), _number(one["variant"]), interval]


def _training_s(build_s: Mapping[str, float | None]) -> float | None:
    seconds = [value for name, value in build_s.items() if name != "index"]
    return sum(value for value in seconds if value is not None) if None not in seconds else None


def _number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:,.{digits}f}"


def _mega(count: float | None) -> float | None:
    return None if count is None else count / 1e6


def _interval(found: Mapping[str, float | None]) -> str:
    if found["mean"] is None:
        return "-"
    return f"{_number(found['mean'], 1)} [{_number(found['low'], 1)}, {_number(found['high'], 1)}]"


def _span(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    size, unit = next((one for one in UNITS if seconds >= one[0]), UNITS[-1])
    return f"{seconds / size:.3g} {unit}"
