"""`narrows recommend`: one slate, from files alone or from an API."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from narrows.cli.api_client import Api
from narrows.cli.console import CommandFailed, Console
from narrows.cli.places import Places
from narrows.cli.slates import item_ids, shown_score
from narrows.settings import App

DESCRIPTION = """\
Ask for one slate. Without --api the current model bundle and the imported history answer, through the same
pipeline that serves; with --api the API at that address answers."""


def add(commands: Any) -> None:
    """Declare the command line."""
    parser = commands.add_parser(
        "recommend",
        help="show one slate",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--app", required=True, help="the app to ask")
    parser.add_argument("--user", help="for whom; its history counts")
    parser.add_argument("--session", help="for which anonymous session")
    parser.add_argument("--surface", help="where it is shown (default: the app's first surface)")
    parser.add_argument("--limit", type=int, help="how many items (default: the surface's)")
    parser.add_argument(
        "--item", action="append", default=[], help="an item of the page or the cart (repeatable)"
    )
    parser.add_argument("--api", metavar="URL", help="ask this API instead of the files")
    parser.add_argument("--json", action="store_true", help="print the answer as one JSON object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, places: Places, console: Console) -> Mapping[str, Any]:
    """Get the slate and print it."""
    app = places.app(arguments.app)
    surface = _surface(arguments.surface, app)
    if arguments.api:
        answer: Mapping[str, Any] = Api(arguments.api).recommend(surface, _body(arguments))
    else:
        from narrows.cli.offline import recommend_from_files  # loads the bundle and the imported history

        answer = recommend_from_files(places, app, surface, arguments)
    rows = [
        (one["position"], item, shown_score(one), one["reason"])
        for one, item in zip(answer["recommendations"], item_ids(answer), strict=True)
    ]
    console.table(("#", "item", "score", "reason"), rows)
    console.say(f"fallback: {answer.get('fallback')}   model: {answer.get('model_version')}")
    return answer


def _surface(asked: str | None, app: App) -> str:
    surface = asked or next(iter(app.surfaces))
    if surface not in app.surfaces:
        raise CommandFailed(f"{app.name} has no surface '{surface}'; it has {', '.join(app.surfaces)}")
    return surface


def _body(arguments: argparse.Namespace) -> dict[str, Any]:
    body = {"user_id": arguments.user, "session_id": arguments.session, "limit": arguments.limit}
    body["item_ids"] = arguments.item or None
    return {name: value for name, value in body.items() if value is not None}
