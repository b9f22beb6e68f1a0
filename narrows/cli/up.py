"""`narrows up` and `narrows down`: the local cloud, in the foreground or detached."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from narrows.cli.console import Console, between
from narrows.cli.places import Places

UP = """\
Start an AWS of this machine, deploy the stacks into it with the CDK's own command, and serve the API and the
page. Ports are free ones and are printed. State lies in NARROWS_HOME (.narrows)."""
MOST_WORKERS = 64
DOWN = "Stop the local cloud: no process and no temporary file is left behind."


def add(commands: Any) -> None:
    """Declare both command lines."""
    up = commands.add_parser(
        "up",
        help="start the local cloud",
        description=UP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    up.add_argument("--app", default="megashop", help="the app to serve (default: megashop)")
    up.add_argument("--detach", action="store_true", help="return when it is ready; narrows down stops it")
    up.add_argument(
        "--workers", type=between(1, MOST_WORKERS), default=2, help="processes of the API (default: 2)"
    )
    up.add_argument("--port", type=between(0, 65_535), default=0, help="the API's port (default: a free one)")
    up.add_argument("--json", action="store_true", help="print the addresses as one JSON object")
    up.set_defaults(run=run_up)
    down = commands.add_parser("down", help="stop the local cloud", description=DOWN)
    down.add_argument("--json", action="store_true", help="print the result as one JSON object")
    down.set_defaults(run=run_down)


def run_up(arguments: argparse.Namespace, places: Places, console: Console) -> Mapping[str, Any]:
    """Start everything; without --detach it serves until Ctrl-C."""
    from localcloud import supervisor  # starts programs: only the commands that need it load it

    app = places.app(arguments.app)
    addresses: Mapping[str, Any] = supervisor.up(
        places.home,
        app.name,
        detach=arguments.detach,
        workers=arguments.workers,
        port=arguments.port,
        progress=console.note,
    )
    for name, address in addresses.items():
        console.say(f"{name:<13} {address}")
    if not arguments.detach:
        console.publish(addresses)
        serve_until_stopped(places, console)
    return addresses


def serve_until_stopped(places: Places, console: Console) -> None:
    """Wait for Ctrl-C, or for `narrows down` in another terminal, then stop everything."""
    from localcloud import supervisor

    console.note("serving; Ctrl-C stops everything")
    try:
        supervisor.wait(places.home)
    except KeyboardInterrupt:
        console.note("stopping")
    finally:
        supervisor.down(places.home)


def run_down(arguments: argparse.Namespace, places: Places, console: Console) -> Mapping[str, Any]:  # noqa: ARG001
    """Stop everything; stopping what does not run is fine."""
    from localcloud import supervisor

    running = supervisor.down(places.home)
    console.say("stopped" if running else "nothing was running")
    return {"ok": True, "was_running": running}
