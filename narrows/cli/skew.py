"""`narrows skew`: whether what was served is what the lake gives, value by value."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from narrows.cli.console import CommandFailed, Console, between
from narrows.cli.deployment import Deployment
from narrows.cli.kept import STREAMED, keep, kept
from narrows.cli.places import Places
from narrows.cli.steps import Steps

DESCRIPTION = """\
Recompute served vectors with Spark, from the events that their states had applied, and compare every value:
integers and lists bit for bit, other numbers to one part in 10^9. The exit code is 0 only when all agree.
Works on the running local cloud, and after it on what a demo has left in NARROWS_HOME."""
SHOWN = (
    "rows",
    "features",
    "values",
    "exact_share",
    "max_abs_diff",
    "first_divergence",
    "not_compared",
    "causes",
    "left_out",
)
JOB_S = 1800.0


def add(commands: Any) -> None:
    """Declare the command line."""
    parser = commands.add_parser(
        "skew",
        help="compare served features with recomputed ones",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--app", required=True, help="the app that was served")
    parser.add_argument(
        "--rate", type=share, default=1.0, help="the share of decisions to recompute, by a hash of their ids"
    )
    parser.add_argument(
        "--at-most", type=between(1, 100_000), default=2000, help="decisions to recompute (default: 2000)"
    )
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")
    parser.set_defaults(run=run)


def share(text: str) -> float:
    """A number above 0, at most 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value <= 1.0:
        raise argparse.ArgumentTypeError(f"'{text}': give a share above 0, at most 1")
    return value


def run(arguments: argparse.Namespace, places: Places, console: Console) -> Mapping[str, Any]:
    """Bring the lake up to date and measure; what diverges makes the exit code 1."""
    app = places.app(arguments.app)
    steps, folder = Steps(console, 3), kept(places, app.name)
    steps.begin("landed", "what has landed of events and decisions")
    running = Deployment.running(places.home, app.name)
    if running is not None:
        counts = keep(running, app, folder)
        steps.remark(", ".join(f"{count:,} files of {kind}" for kind, count in counts.items()))
    elif not (folder / "decisions").is_dir():
        raise CommandFailed(
            f"no decisions of {app.name} in {folder}; run `narrows demo` first, or ask for slates"
        )
    jobs = _Jobs(places, app.name, folder)
    steps.begin("lake", "compact_events, from the first event on")
    steps.remark(jobs.compact())
    steps.begin("compare", "measure_skew on Spark")
    report = jobs.measure(arguments.rate, arguments.at_most)
    steps.end()
    if not report["rows"]:
        raise CommandFailed(f"no decision could be compared: {report['left_out'] or 'none has landed yet'}")
    return _told(report, jobs.report, console)


def _told(report: Mapping[str, Any], folder: Path, console: Console) -> dict[str, Any]:
    table = [
        (name, f"{one['values']:,}", f"{one['exact_share']:.2%}", f"{one['max_abs_diff']:.3g}")
        for name, one in report["by_feature"].items()
    ]
    console.table(("feature", "values", "exact", "largest difference"), table)
    console.say(
        f"\n{report['values']:,} values of {report['rows']:,} decisions: {report['exact_share']:.4%} exact"
    )
    for reason, names in _by_reason(report["not_compared"]).items():
        console.say(f"not compared: {', '.join(names)}: {reason}")
    for cause in report["causes"]:
        console.say(
            f"{cause['cause']}: {cause['values']:,} values of {', '.join(cause['features'])}; "
            f"{cause['evidence']}; {cause['remedy']}"
        )
    if report["first_divergence"]:
        console.say(f"first: {json.dumps(report['first_divergence'])}")
    exact = report["exact_share"] == 1.0
    shown = {name: report[name] for name in SHOWN}
    return {**shown, "item_statistics": report["item_statistics"], "report": str(folder), "ok": exact}


def _by_reason(left_out: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    names: dict[str, list[str]] = {}
    for one in left_out:
        names.setdefault(one["reason"], []).append(one["feature"])
    return names


class _Jobs:
    """The Spark jobs on what was kept: a lake of its own, built from the first event on."""

    def __init__(self, places: Places, app: str, landed: Path) -> None:
        self._repository, self._landed = places.repository, landed
        self._app = places.repository / "apps" / app
        self._folder = places.home / "apps" / app / "skew"
        self._lake = self._folder / "lake"
        self.report = self._folder / "report"
        shutil.rmtree(self._folder, ignore_errors=True)

    def compact(self) -> str:
        """Bring all that landed into the lake; returns what the job counted."""
        return self._run("compact_events", {"--landing": self._landed / "events", "--lake": self._lake})

    def measure(self, rate: float, at_most: int) -> dict[str, Any]:
        """The skew report."""
        given: dict[str, object] = {
            "--lake": self._lake,
            "--decisions": self._landed / "decisions",
            "--output": self.report,
        }
        given |= {"--rate": rate, "--at-most": at_most}
        if (self._landed / STREAMED).is_file():
            given["--streamed"] = self._landed / STREAMED
        self._run("measure_skew", given)
        found = sorted(self.report.glob("part-*"))
        report: dict[str, Any] = json.loads(found[0].read_text(encoding="utf-8"))
        return report

    def _run(self, job: str, given: Mapping[str, object]) -> str:
        from localcloud.jars import ICEBERG
        from localcloud.jars import kept as jar  # starts programs: only this command loads it
        from localcloud.jobs import job_environment, last_lines, run_process
        from localcloud.spark import spark_environment

        log, scratch = self._folder / f"{job}.log", self._folder / "tmp"
        scratch.mkdir(parents=True, exist_ok=True)
        arguments = [str(part) for pair in {**given, "--app-config": self._app}.items() for part in pair]
        ended = run_process(
            [sys.executable, str(self._repository / "glue_jobs" / f"{job}.py"), *arguments],
            cwd=self._repository,
            environment=job_environment(
                scratch, spark_environment([self._repository], scratch, [jar(ICEBERG)])
            ),
            log=log,
            timeout_s=JOB_S,
        )
        if ended.code or ended.overran:
            raise CommandFailed(f"{job} failed: {last_lines(log)}; its log is {log}")
        return last_lines(log).splitlines()[-1]
