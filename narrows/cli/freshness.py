"""`narrows freshness`: how soon a new item can be shown, and how soon one that changed no longer is."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from contextlib import closing
from typing import Any

import numpy as np

from narrows.cli.api_client import Api
from narrows.cli.console import CommandFailed, Console, between
from narrows.cli.deployment import Deployment
from narrows.cli.places import Places
from narrows.cli.probes import CREATED, INDEXED, SUPPRESSED, TARGETS_S, Index, Probes
from narrows.cli.tastes import Tastes, noted_market, told
from narrows.settings import App
from narrows.vector_index import IndexGone

DESCRIPTION = """\
Inject probe items through POST /api/items into the local cloud that runs this app (narrows up), ask every
surface for slates until each probe may be shown, then sell it out or delete it and ask until it no longer
may. Where vectors lie in OpenSearch, look as well when each is found in the index; all else is measured at
the API's answers. With --tastes, add items like some of the simulated market that narrows demo runs on, and
see to whom they come. What was added is removed afterwards. Exit code 1 where a target is missed, and where
so many answers lack a source that offers new items that the others prove nothing."""
SEED = 0


def add(commands: Any) -> None:
    """Declare the command line."""
    parser = commands.add_parser(
        "freshness",
        help="measure how soon items appear and disappear",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--app", default="megashop", help="the app that runs (default: megashop)")
    parser.add_argument(
        "--probes", type=between(1, 10_000), default=50, help="how many items to inject (default: 50)"
    )
    parser.add_argument(
        "--tastes",
        type=between(0, 100),
        default=0,
        metavar="N",
        help="add so many items to see whether they come to the users whose taste they fit (default: 0)",
    )
    parser.add_argument("--json", action="store_true", help="print the percentiles as one JSON object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, places: Places, console: Console) -> Mapping[str, Any]:
    """Measure in the local cloud that runs."""
    from localcloud import supervisor  # only the commands that look at it load it

    app = places.app(arguments.app)
    state = supervisor.status(places.home)
    if not state["running"] or "api" not in state:
        raise CommandFailed(
            f"no local cloud runs in {places.home}; start it with narrows up --app {app.name}"
        )
    if state.get("app") != app.name:
        raise CommandFailed(f"the local cloud runs {state.get('app')}, not {app.name}; narrows down ends it")
    index, why_not = _index(app, places, state)
    market = noted_market(places.home) if arguments.tastes else None
    run, rng = f"{int(time.time())}", np.random.default_rng(SEED)
    with closing(Api(state["api"])) as api:
        probes = Probes(app, api, time.monotonic, time.sleep, run=run, index=index)
        report = _went(probes, arguments.probes, why_not, console)
        if market is None:
            return report
        tastes = Tastes(app, market, api, time.monotonic, time.sleep, run=run, rng=rng)
        came = _came(tastes, arguments.tastes, console)
    return {**report, "tastes": came, "ok": report["ok"] and came["ok"]}


def _index(app: App, places: Places, state: Mapping[str, Any]) -> tuple[Index | None, str]:
    """(the app's index where its vectors lie in one, why that cannot be looked at)."""
    from narrows.cli.indexed import DeployedIndex  # other commands need no client of OpenSearch

    deployment = Deployment.running(places.home, app.name) if app.tiers["vectors"] == "opensearch" else None
    if deployment is None or "search" not in state:
        return None, ""
    try:
        return DeployedIndex.of(app, deployment, state["search"]), ""
    except IndexGone as error:
        return None, f"{error}; narrows demo trains a model and promotes it"


def _went(probes: Probes, count: int, why_not: str, console: Console) -> dict[str, Any]:
    with console.progress("probes", count, "probes") as progress:
        try:
            probes.measure(count, progress)
        finally:
            removed = probes.remove()
    report = probes.report()
    report["unmeasured"] |= {"index": why_not} if why_not else {}
    return _told({**report, "removed": removed}, console)


def _came(tastes: Tastes, count: int, console: Console) -> dict[str, Any]:
    with console.progress("new items", count, "items") as progress:
        try:
            tastes.measure(count, progress)
        finally:
            tastes.remove()
    return told(tastes.report(), console)


def _told(report: dict[str, Any], console: Console) -> dict[str, Any]:
    rows = [
        (surface, *_row(name, one))
        for surface, both in {**report["surfaces"], "all": report}.items()
        for name in (CREATED, SUPPRESSED)
        if (one := both[name])
    ]
    if INDEXED in report:
        rows.append(("index", *_row(INDEXED, report[INDEXED])))
    console.table(("surface", "", "p50", "p99", "target (p99)"), rows)
    if report["answers_left_out"]:
        late = f"{report['answers_left_out']:,} of {report['answers']:,} answers"
        console.say(f"{late} are left out: in them a source that offers new items missed its deadline")
    for surface, why in report["unmeasured"].items():
        console.say(f"{surface}: not measured; {why}")
    for reason in report["reasons"]:
        console.say(reason)
    return report


def _row(name: str, took: Mapping[str, float]) -> tuple[str, str, str, str]:
    return name.replace("_", " "), f"{took['p50']:.1f} s", f"{took['p99']:.1f} s", f"{TARGETS_S[name]:g} s"
