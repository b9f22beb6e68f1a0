"""`narrows evaluate`: how good an app's models are on the events that they have not seen."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from narrows.cli.console import CommandFailed, Console
from narrows.cli.places import Places
from narrows.cli.steps import Steps
from narrows.cli.train import current_bundle, imported, run_job

DESCRIPTION = """\
Measure the current model bundle on the imported data: every item is ranked for every user, items that the
user has seen are masked, and the user's last event is the one to be found."""
SHOWN = ("hit_at_10", "hit_at_100", "normalized_discounted_cumulative_gain_at_10")


def add(commands: Any) -> None:
    """Declare the command line."""
    parser = commands.add_parser(
        "evaluate",
        help="measure an app's models on held-out events",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--app", required=True, help="the app whose models were trained")
    parser.add_argument(
        "--sources", action="store_true", help="also how often the merged candidates hold what came next"
    )
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, places: Places, console: Console) -> Mapping[str, Any]:
    """Run the evaluation job and print its report."""
    app = places.app(arguments.app)
    data, bundle = imported(places, app.name), current_bundle(places, app.name)
    steps = Steps(console, 1)
    steps.begin("evaluate", f"{bundle.name} on the held-out events")
    model = bundle.parent / f"{bundle.name}.evaluation"
    channels = {"training": data, "candidate": bundle}
    asked = {"sources": 1.0} if arguments.sources else {}
    output = run_job(places, app.name, "evaluate", channels, model, bundle.name, **asked)
    steps.end()
    report = _report(output, model)
    heads = ("", *(name.replace("normalized_discounted_cumulative_gain", "ndcg") for name in SHOWN))
    rows = [(name, *(part.get(metric, "-") for metric in SHOWN)) for name, part in report["reports"].items()]
    console.table(heads, rows)
    if arguments.sources:
        console.say(f"recall of 300 merged candidates: {report['reports']['merged']['recall_at_300']}")
    console.say(f"{report['protocol']}, {report['users']:,} users")
    return report


def _report(*folders: Path) -> dict[str, Any]:
    for folder in folders:
        found = sorted(folder.glob("**/metrics.json"))
        if found:
            report: dict[str, Any] = json.loads(found[0].read_text(encoding="utf-8"))
            return report
    raise CommandFailed(f"the evaluation wrote no metrics.json in {folders[0]}; see log.txt beside it")
