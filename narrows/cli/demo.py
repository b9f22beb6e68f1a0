"""`narrows demo`: deploy, simulate a market, train, serve, and show what came of it."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from narrows.cli.api_client import Api, send_in_lanes
from narrows.cli.console import CommandFailed, Console
from narrows.cli.deployment import Consumers, Deployment
from narrows.cli.places import Places
from narrows.cli.slates import three_slates
from narrows.cli.steps import Steps
from narrows.market import DAY_S
from narrows.simulator import Market

DESCRIPTION = """\
The whole platform on this machine, in five steps: the stacks are deployed into a local AWS, a simulated
market's catalogue is published, its visitors' events go through Kinesis, the training workflow promotes a
model, and the API serves three slates. It keeps serving until Ctrl-C."""
APP = "megashop"
SEED = 7
DAYS = 20.0
LANES = 4
CATCH_UP_S = 180.0
TRAINING_S = 900.0
REFRESH_S = 60.0


def add(commands: Any) -> None:
    """Declare the command line."""
    parser = commands.add_parser(
        "demo",
        help="deploy, simulate, train and serve on this machine",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--once", action="store_true", help="stop everything after the slates")
    parser.add_argument(
        "--events", type=event_count, default=100_000, help="simulated events (default: 100000)"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes of the API (default: 2)")
    parser.add_argument(
        "--json", action="store_true", help="print times, slates and addresses as one JSON object"
    )
    parser.set_defaults(run=run)


def event_count(text: str) -> int:
    """A number of events that can train a model."""
    if not text.isdecimal() or int(text) < 1000:
        raise argparse.ArgumentTypeError(f"'{text}': give a whole number from 1000")
    return int(text)


def run(arguments: argparse.Namespace, places: Places, console: Console) -> Mapping[str, Any]:
    """Run the five steps, then serve until Ctrl-C."""
    from localcloud import supervisor  # starts programs: only the commands that need it load it

    steps, now = Steps(console, 5), time.time()
    try:
        with steps.step("deploy", "starting the local AWS and deploying the stacks into it"):
            addresses = supervisor.up(
                places.home, APP, detach=True, workers=arguments.workers, progress=steps.remark
            )
        demo = _Demo(places, steps, console, addresses, now)
        demo.publish()
        sent = demo.send(arguments.events)
        promotion = demo.train()
        slates = demo.serve(str(promotion["version"]))
        steps.table()
        console.say(
            f"\npage  {addresses['page']}\napi   {addresses['api']}\naws   {addresses['aws_endpoint']}"
        )
        if not arguments.once:
            _serve_until_stopped(console)
    finally:
        console.note("stopping everything")
        supervisor.down(places.home)
    times = {name: round(seconds, 1) for name, seconds in steps.seconds.items()}
    return {**addresses, "events": sent, "promotion": promotion, "slates": slates, "seconds": times}


class _Demo:
    """The steps that follow the deployment."""

    def __init__(
        self, places: Places, steps: Steps, console: Console, addresses: Mapping[str, Any], now: float
    ) -> None:
        self._steps, self._console, self._now = steps, console, now
        self._app, self._market = places.app(APP), Market(SEED, as_of=now)
        self._api = Api(addresses["api"])
        self._home = places.home
        self._deployment = Deployment.find(APP, addresses["aws_endpoint"])
        self._stamp = datetime.fromtimestamp(now, UTC).strftime("%Y%m%dt%H%M%S")

    def publish(self) -> None:
        """Publish the catalogue, and take what is out of stock off every surface."""
        rows = self._market.catalogue()
        with self._steps.step("catalogue", f"publishing {len(rows):,} items"):
            with TemporaryDirectory(dir=self._home) as scratch:
                self._deployment.publish(self._app, rows, Path(scratch), f"s{self._stamp}", self._now)
            changes = [
                {"kind": "stock", "item_id": row["item_id"], "value": False}
                for row in rows
                if not row["stock"]
            ]
            self._api.change_policy(changes)
            self._steps.remark(f"snapshot s{self._stamp}; {len(changes)} items are out of stock")

    def send(self, count: int) -> dict[str, int]:
        """Send the events through the API into Kinesis, and wait until both consumers have read them all."""
        with self._steps.step("events", f"{count:,} events of {DAYS:.0f} days through POST /api/events"):
            consumers = Consumers(self._home, ("land_events", "update_features"))
            events = self._market.events(count, self._now - DAYS * DAY_S, self._now - 60.0)
            with self._console.progress("events", count, "events") as progress:
                sent = send_in_lanes(self._api, events, lanes=LANES, total=count, progress=progress)
            if sent.refusals:
                raise CommandFailed(
                    f"{sent.events - sent.accepted:,} of {sent.events:,} events were refused, for example "
                    f"{sent.refusals[0]}; compare with apps/{APP}/app.toml"
                )
            self._steps.remark(f"{sent.accepted:,} events accepted")
            with self._console.progress("consumers", sent.accepted, "events") as progress:
                read = consumers.wait_for(sent.accepted, CATCH_UP_S, progress)
            self._steps.remark(", ".join(f"{name} has read {done:,}" for name, done in read.items()))
        return {"sent": sent.events, "accepted": sent.accepted}

    def train(self) -> Mapping[str, Any]:
        """Run the training workflow; the model that it promotes is served without a restart."""
        with self._steps.step("train", "the workflow train_and_promote"):
            result = self._deployment.run_workflow(f"demo-{self._stamp}", self._steps.remark, TRAINING_S)
            if not result.get("promoted"):
                raise CommandFailed(f"the model was not promoted: {result.get('reason')}")
            self._steps.remark(f"promoted {result['version']}")
        return result

    def serve(self, version: str) -> dict[str, Any]:
        """Wait until the API answers with the new model, then show three slates."""
        with self._steps.step("serve", f"waiting for model {version}, then three slates"):
            self._wait_for_model(version)
            return three_slates(self._api, self._market, self._console, stamp=self._stamp)

    def _wait_for_model(self, version: str) -> None:
        deadline = time.monotonic() + REFRESH_S
        same = 0
        while same < 4:  # several workers: each refreshes on its own
            found = self._api.health().get("model_version")
            same = same + 1 if found == version else 0
            if time.monotonic() > deadline:
                raise CommandFailed(
                    f"the API still serves model {found} after {REFRESH_S:.0f} s, not {version}"
                )
            time.sleep(0.25)


def _serve_until_stopped(console: Console) -> None:
    console.say("\nserving; Ctrl-C stops everything")
    with suppress(KeyboardInterrupt):
        while True:
            time.sleep(3600)
