"""`narrows demo`: deploy, simulate a market, train, serve, and show what came of it."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from narrows.cli.api_client import Api, send_in_lanes
from narrows.cli.console import CommandFailed, Console, between
from narrows.cli.deployment import Consumers, Deployment
from narrows.cli.kept import keep, kept
from narrows.cli.places import Places
from narrows.cli.slates import three_slates
from narrows.cli.steps import Steps
from narrows.cli.tastes import note_market
from narrows.cli.up import MOST_WORKERS, serve_until_stopped
from narrows.market import DAY_S
from narrows.simulator import Market

DESCRIPTION = """\
The whole platform on this machine, in six steps: the stacks are deployed into a local AWS, a simulated
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
    parser.add_argument(
        "--workers", type=between(1, MOST_WORKERS), default=2, help="processes of the API (default: 2)"
    )
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
    """Run the steps, then serve until Ctrl-C."""
    from localcloud import supervisor  # starts programs: only the commands that need it load it

    demo = _Demo(places, console, time.time())
    demo.steps.begin("deploy", "starting the local AWS and deploying the stacks into it")
    addresses = supervisor.up(
        places.home,
        APP,
        workers=arguments.workers,
        trains=True,
        progress=demo.steps.remark,
        prepare=demo.publish,
    )
    try:
        result = {**addresses, **demo.fill(Api(addresses["api"]), arguments.events)}
        demo.steps.table()
        console.say(
            f"\npage  {addresses['page']}\napi   {addresses['api']}\naws   {addresses['aws_endpoint']}"
        )
        if not arguments.once:
            console.publish(result)
            serve_until_stopped(places, console)
    finally:
        supervisor.down(places.home)
    console.note("everything is stopped")
    return result


class _Demo:
    """The steps of the demo."""

    def __init__(self, places: Places, console: Console, now: float) -> None:
        self.steps = Steps(console, 6)
        self._console, self._places, self._home, self._now = console, places, places.home, now
        self._app, self._market = places.app(APP), Market(SEED, as_of=now)
        self._stamp = datetime.fromtimestamp(now, UTC).strftime("%Y%m%dt%H%M%S")

    def publish(self, endpoint: str, outputs: Mapping[str, Any]) -> None:
        """Publish the catalogue into the deployed stacks, before the functions start."""
        self._deployment = Deployment.of(outputs, endpoint)
        self._rows = self._market.catalogue()
        self.steps.begin("catalogue", f"publishing {len(self._rows):,} items")
        with TemporaryDirectory(dir=self._home) as scratch:
            version = f"s{self._stamp}"
            self._deployment.publish(self._app, self._rows, Path(scratch) / version, version, self._now)
        self.steps.begin("start", "starting the API and the consumers of the streams")

    def fill(self, api: Api, events: int) -> dict[str, Any]:
        """Everything that follows the start: events, training, slates."""
        self._take_off_what_is_sold_out(api)
        sent = self._send(api, events)
        promotion = self._train(sent["accepted"])
        slates = self._serve(api, str(promotion["version"]))
        landed = keep(self._deployment, self._app, kept(self._places, APP))
        self.steps.remark(
            f"{landed['decisions']} files of decisions kept; narrows skew --app {APP} proves them"
        )
        self.steps.end()
        seconds = {name: round(value, 1) for name, value in self.steps.seconds.items()}
        return {"events": sent, "promotion": promotion, "slates": slates, "seconds": seconds}

    def _take_off_what_is_sold_out(self, api: Api) -> None:
        sold_out = [str(row["item_id"]) for row in self._rows if not row["stock"]]
        answer = api.change_policy([{"kind": "stock", "item_id": one, "value": False} for one in sold_out])
        self.steps.remark(f"{len(sold_out)} items are sold out, policy version {answer['version']}")

    def _send(self, api: Api, count: int) -> dict[str, int]:
        """Send the events through the API into Kinesis, and wait until all of them have landed."""
        note_market(self._home, self._market)
        self.steps.begin("events", f"{count:,} events of {DAYS:.0f} days through POST /api/events")
        landing = Consumers(self._home, ("land_events",))
        self._folding = Consumers(self._home, ("update_features",))
        events = self._market.events(count, self._now - DAYS * DAY_S, self._now - 60.0)
        with self._console.progress("events", count, "events") as progress:
            sent = send_in_lanes(api, events, lanes=LANES, total=count, progress=progress)
        if sent.refusals:
            raise CommandFailed(
                f"{sent.events - sent.accepted:,} of {sent.events:,} events were refused, for example "
                f"{sent.refusals[0]}; compare with apps/{APP}/app.toml"
            )
        self.steps.remark(f"{sent.accepted:,} events accepted")
        self._wait_for(landing, sent.accepted)
        return {"sent": sent.events, "accepted": sent.accepted}

    def _wait_for(self, consumers: Consumers, events: int) -> None:
        with self._console.progress("consumers", events, "events") as progress:
            read = consumers.wait_for(events, CATCH_UP_S, progress)
        self.steps.remark(", ".join(f"{name} has handled {done:,}" for name, done in read.items()))

    def _train(self, accepted: int) -> Mapping[str, Any]:
        """Run the training workflow, on what has landed, while the visitors' features still catch up.

        The model that it promotes is served without a restart.
        """
        self.steps.begin("train", "the workflow train_and_promote")
        result = self._deployment.run_workflow(f"demo-{self._stamp}", self.steps.remark, TRAINING_S)
        if not result.get("promoted"):
            raise CommandFailed(f"the model was not promoted: {result.get('reason')}")
        self.steps.remark(f"promoted {result['version']}: {result.get('reason')}")
        self._wait_for(self._folding, accepted)
        return result

    def _serve(self, api: Api, version: str) -> dict[str, Any]:
        """Wait until the API answers with the new model, then show three slates."""
        self.steps.begin("serve", f"waiting for model {version}, then three slates")
        deadline, same = time.monotonic() + REFRESH_S, 0
        while same < 8:  # each process of the API refreshes on its own
            found = api.health().get("model_version")
            same = same + 1 if found == version else 0
            if time.monotonic() > deadline:
                raise CommandFailed(f"the API serves model {found} after {REFRESH_S:.0f} s, not {version}")
            time.sleep(0.1)
        self.steps.remark(f"model {version} is live")
        return three_slates(api, self._market, self._console, stamp=self._stamp)
