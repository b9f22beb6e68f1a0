"""`narrows features`: what an app's features are, where they come from, and how to declare more."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from narrows.cli.console import CommandFailed, Console
from narrows.cli.places import Places
from narrows.events import nearest
from narrows.features.audit import AuditedFeature, audit, explanation
from narrows.features.registry import FeatureSet

DESCRIPTION = """\
What an app knows of visitors, items and requests. A wrong declaration in apps/<app>/features.toml is told
with its key, and a feature that may not be built with the reason; then the exit code is 2."""
ACTIONS = {
    "list": "the features with kind, scope and default",
    "audit": "owner, sources, class, freshness, lineage, scope, kind and default of each",
    "explain": "all about one feature: how it is made, who reads it, which columns of the model hold it",
}
HEADS = ("feature", "owner", "sources", "class", "freshness", "lineage", "scope", "kind", "default")


def add(commands: Any) -> None:
    """Declare the command line."""
    parser = commands.add_parser(
        "features",
        help="list, audit or explain an app's features",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="<action>")
    for name, help_ in ACTIONS.items():
        action = actions.add_parser(name, help=help_, description=help_)
        if name == "explain":
            action.add_argument("name", help="the feature")
        action.add_argument("--app", required=True, help="the app whose features are asked for")
        action.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, places: Places, console: Console) -> Mapping[str, Any]:
    """Print what was asked for."""
    features = FeatureSet(places.app(arguments.app).features)
    if arguments.action == "explain":
        return _explain(arguments.name, features, console)
    lines = audit(features.declarations)
    if arguments.action == "list":
        rows = [(one.name, one.kind, one.scope, f"{one.default:g}", one.description) for one in lines]
        console.table(("feature", "kind", "scope", "default", "description"), rows)
    else:
        console.table(HEADS, [_row(one) for one in lines])
        console.say(f"{len(lines)} features, fingerprint {features.fingerprint()}")
    content = [_named(one) for one in lines]
    return {"app": arguments.app, "fingerprint": features.fingerprint(), "features": content}


def _explain(name: str, features: FeatureSet, console: Console) -> Mapping[str, Any]:
    known = [one.name for one in features.declarations]
    if name not in known:
        close = nearest(name, known)
        hint = f"did you mean '{close}'? " if close else ""
        raise CommandFailed(f"no feature '{name}'; {hint}there is {', '.join(known)}")
    told = {_RENAMED.get(key, key): value for key, value in explanation(name, features.declarations).items()}
    width = max(map(len, told))
    for key, value in told.items():
        console.say(f"{key.replace('_', ' ').ljust(width)}  {_text(value)}".rstrip())
    return told


def _row(one: AuditedFeature) -> tuple[object, ...]:
    default = f"{one.default:g}"
    return (
        *(one.name, one.owner, one.sources, one.sensitivity, one.freshness),
        *(one.lineage, one.scope, one.kind, default),
    )


_RENAMED = {"sensitivity": "class"}


def _named(one: AuditedFeature) -> dict[str, Any]:
    return {_RENAMED.get(key, key): value for key, value in asdict(one).items()}


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} = {one}" for key, one in value.items()) or "-"
    if isinstance(value, list):
        return "; ".join(_text(one) for one in value) or "-"
    return str(value) if value not in (None, "") else "-"
