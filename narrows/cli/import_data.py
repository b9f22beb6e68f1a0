"""`narrows import`: files in the layout of Amazon Personalize become an app's training data."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from narrows.adapters.importer import ImportOptions, import_files
from narrows.adapters.personalize_files import find_files
from narrows.cli.console import CommandFailed, Console
from narrows.cli.places import Places

DESCRIPTION = """\
Read interactions, items and users from a folder (or interactions from one file) as CSV, CSV.gz or Parquet.

Columns are USER_ID, ITEM_ID, TIMESTAMP[, EVENT_TYPE, EVENT_VALUE, LOCATION], in any case; other usual names
are recognised, and the report says which. A row that cannot be used is counted by reason and listed with its
line in the quarantine folder; so is an item that POST /api/items would refuse. Columns such as GENDER or AGE
are put aside unless you allow them by name."""
COLUMNS = ("user_id", "item_id", "timestamp", "event_type", "event_value", "location")


def add(commands: Any) -> None:
    """Declare the command line."""
    parser = commands.add_parser(
        "import",
        help="read interactions, items and users from files",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "path", type=Path, help="folder with interactions.csv (items.csv, users.csv), or one file"
    )
    parser.add_argument(
        "--app", required=True, help="the app that will use the data: megashop, media, shopnow, adpilot"
    )
    parser.add_argument(
        "--columns",
        type=column_names,
        default={},
        metavar="USER_ID=NAME,...",
        help="names of columns that were not recognised",
    )
    parser.add_argument(
        "--allow-sensitive",
        action="append",
        default=[],
        metavar="COLUMN",
        help="use this sensitive column all the same (repeatable)",
    )
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")
    parser.set_defaults(run=run)


def column_names(text: str) -> dict[str, str]:
    """USER_ID=visitor,TIMESTAMP=when as a mapping from part to column."""
    pairs = [pair.partition("=") for pair in text.split(",") if pair.strip()]
    names = {part.strip().lower(): column.strip() for part, _, column in pairs}
    for part, column in names.items():
        if part not in COLUMNS or not column:
            known = ", ".join(one.upper() for one in COLUMNS)
            raise argparse.ArgumentTypeError(f"'{text}': write NAME=column, where NAME is one of {known}")
    return names


def run(arguments: argparse.Namespace, places: Places, console: Console) -> Mapping[str, Any]:
    """Import the files and print what was found."""
    started = time.monotonic()
    app = places.app(arguments.app)
    found = find_files(arguments.path)
    data = places.data(app.name)
    data.parent.mkdir(parents=True, exist_ok=True)
    options = ImportOptions(arguments.columns, arguments.allow_sensitive, time.time())
    sizes = {path: path.stat().st_size for files in found.roles.values() for path in files}
    done: dict[Path, int] = {}
    with console.progress(f"import {arguments.path.name}", sum(sizes.values()), "B") as progress:

        def advance(path: Path, read_bytes: int, rows: int) -> None:
            done[path] = min(read_bytes, sizes[path])
            progress.to(sum(done.values()), f"{path.name}: {rows:,} rows")

        try:
            report = import_files(arguments.path, app, data, options, advance)
        except OSError as error:
            raise CommandFailed(f"{error}; check the permissions and the space left") from error
    report["seconds"] = round(time.monotonic() - started, 1)
    (data / "import_report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    _describe(report, console)
    return report


def _describe(report: Mapping[str, Any], console: Console) -> None:
    roles = [role for role in ("interactions", "items", "users") if role in report]
    numbers = ("read", "accepted", "quarantined")
    console.table(("", *numbers), [(role, *(f"{report[role][n]:,}" for n in numbers)) for role in roles])
    for role in roles:
        for line in _remarks(role, report[role]):
            console.say(line)
    if missing := report["items_missing_from_catalogue"]:
        console.say(f"items with interactions but without a row in the catalogue: {missing:,} (kept)")
    if report["ignored_files"]:
        console.say(f"files not used: {', '.join(report['ignored_files'])}")
    console.say(f"data: {report['data']}  refused rows: {report['quarantine']}  in {report['seconds']} s")
    console.say(f"next: narrows train --app {report['app']}")


def _remarks(role: str, part: Mapping[str, Any]) -> Sequence[str]:
    lines = [f"{role}: {count:,} rows refused: {reason}" for reason, count in part["reasons"].items()]
    lines += [f"{role}: {name} read from column {column}" for name, column in part["inferred"].items()]
    for name, columns in part.get("filled", {}).items():
        lines.append(f"{role}: {name} filled from {', '.join(columns)}")
    if part.get("sensitive"):
        names = ", ".join(part["sensitive"])
        lines.append(f"{role}: sensitive columns put aside: {names} (use one with --allow-sensitive NAME)")
    if part.get("ignored_columns"):
        lines.append(f"{role}: columns not used: {', '.join(part['ignored_columns'])}")
    if part.get("default_event_type"):
        lines.append(f"{role}: no EVENT_TYPE column; every row counts as {part['default_event_type']}")
    for name, count in part.get("unknown_event_types", {}).items():
        lines.append(f"{role}: event type {name} is unknown to the app; {count:,} rows kept with label 1.0")
    return lines
