"""python -m localcloud up | down | status | deploy"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from localcloud import supervisor
from localcloud.daemon import ROOT
from localcloud.processes import report_ready
from narrows.errors import NarrowsError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    asked = _parser().parse_args(arguments)
    try:
        return int(asked.command(asked))
    except NarrowsError as error:
        sys.stderr.write(f"{error}\n")
        return 1


def _up(asked: argparse.Namespace) -> int:
    def progress(text: str) -> None:
        sys.stderr.write(f"{text}\n")

    options = {"detach": asked.detach, "workers": asked.workers, "port": asked.port}
    addresses = supervisor.up(asked.home, asked.app, progress=progress, **options)
    _show(addresses, as_json=asked.json)
    if not asked.detach:
        try:
            supervisor.wait(asked.home)
        except KeyboardInterrupt:
            sys.stderr.write("stopping\n")
        finally:
            supervisor.down(asked.home)
    return 0


def _down(asked: argparse.Namespace) -> int:
    _show({"was_running": supervisor.down(asked.home)}, as_json=asked.json)
    return 0


def _status(asked: argparse.Namespace) -> int:
    status = supervisor.status(asked.home)
    _show(status, as_json=asked.json)
    return 0 if status["running"] else 1


def _deploy(asked: argparse.Namespace) -> int:
    from localcloud.deploy import deploy

    context = {"search_url": asked.search_url} if asked.search_url else {}
    report_ready(outputs=deploy(asked.endpoint, asked.home / "cdk", asked.app, "local", context=context))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="localcloud", description="The local cloud of one home folder.")
    commands = parser.add_subparsers(required=True)
    for name, command, text in (
        ("up", _up, "start AWS, deploy the stacks, run the functions"),
        ("down", _down, "end everything and remove the temporary files"),
        ("status", _status, "what runs; the exit status is 1 when nothing does"),
        ("deploy", _deploy, "deploy the stacks to an AWS that already runs"),
    ):
        each = commands.add_parser(name, help=text, description=text)
        each.set_defaults(command=command)
        each.add_argument("--home", type=Path, default=ROOT / ".narrows")
        each.add_argument("--json", action="store_true", help="answer in JSON")
        if name in ("up", "deploy"):
            each.add_argument("--app", default="megashop")
        if name == "up":
            each.add_argument("--detach", action="store_true", help="leave it running")
            each.add_argument("--workers", type=int, default=2, help="processes that serve the API")
            each.add_argument("--port", type=int, default=0, help="the API's port; a free one by default")
        if name == "deploy":
            each.add_argument("--endpoint", required=True)
            each.add_argument("--search-url", default="", help="the OpenSearch that keeps the app's vectors")
    return parser


def _show(facts: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(facts) + "\n")
        return
    for name, value in facts.items():
        sys.stdout.write(f"{name}: {value if isinstance(value, str | bool) else json.dumps(value)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
