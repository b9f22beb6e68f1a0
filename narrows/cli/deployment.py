"""The deployed app as the demo sees it: where to publish, what to run, how far the consumers have read."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from narrows.adapters.aws import client
from narrows.adapters.control import DynamoControlTable
from narrows.adapters.publishing import publish_catalogue
from narrows.adapters.s3 import S3Objects
from narrows.adapters.workflow import Workflow
from narrows.cli.console import CommandFailed, Progress
from narrows.settings import App

REGION = "us-east-1"
TIMEOUT_S = 10.0
EVENTS = "Events"


@dataclass(frozen=True)
class Deployment:
    """The outputs of the app's stacks."""

    outputs: Mapping[str, str]

    @classmethod
    def of(cls, outputs: Mapping[str, Mapping[str, str]], endpoint: str) -> Deployment:
        """The stacks' outputs, by stack, in the local AWS at this endpoint, which all later calls go to."""
        os.environ.update(
            {
                "AWS_ENDPOINT_URL": endpoint,
                "AWS_DEFAULT_REGION": REGION,
                "AWS_REGION": REGION,
                "AWS_ACCESS_KEY_ID": "local",
                "AWS_SECRET_ACCESS_KEY": "local",
            }
        )
        return cls({name: value for stack in outputs.values() for name, value in stack.items()})

    @classmethod
    def running(cls, home: Path, app: str) -> Deployment | None:
        """The deployment in the local AWS that runs in this home; None where none serves this app."""
        from localcloud import supervisor

        state = supervisor.status(home)
        if not state["running"] or state.get("app") != app or "aws_endpoint" not in state:
            return None
        cls.of({}, state["aws_endpoint"])
        cloudformation = client("cloudformation", read_timeout_s=TIMEOUT_S, connect_timeout_s=2.0, attempts=3)
        stacks = cloudformation.get_paginator("describe_stacks").paginate()
        outputs = {
            stack["StackName"]: {one["OutputKey"]: one["OutputValue"] for one in stack.get("Outputs", ())}
            for page in stacks
            for stack in page["Stacks"]
        }
        return cls.of(outputs, state["aws_endpoint"])

    def publish(
        self, app: App, rows: Sequence[Mapping[str, Any]], scratch: Path, version: str, now: float
    ) -> None:
        """Publish the catalogue and move the pointer of the snapshot."""
        s3 = client("s3", read_timeout_s=60.0, connect_timeout_s=2.0, attempts=3)
        control = DynamoControlTable(
            self.output("ControlTableName"),
            region=REGION,
            connect_timeout_s=2.0,
            read_timeout_s=TIMEOUT_S,
        )
        publish_catalogue(
            app,
            rows,
            objects=S3Objects(s3, self.output("BucketName")),
            control=control,
            directory=scratch,
            version=version,
            now=now,
        )

    def run_workflow(self, run: str, entered: Callable[[str], None], timeout_s: float) -> dict[str, Any]:
        """Train and, if the gate says so, promote; the output says whether and why."""
        workflow = Workflow(self.output("StateMachineArn"))
        return workflow.run(run, {"run": run}, entered=entered, timeout_s=timeout_s)

    def output(self, name: str) -> str:
        """An output of the stacks by its name."""
        if name not in self.outputs:
            raise CommandFailed(
                f"the stacks have no output {name}; they have {', '.join(sorted(self.outputs))}"
            )
        return self.outputs[name]


class Consumers:
    """How many events the consumers of the stream have handled since this was made."""

    def __init__(self, home: Path, names: Sequence[str]) -> None:
        self._folder, self._names = home / "run" / "streams", names
        self._before = self._read()

    def wait_for(self, events: int, timeout_s: float, progress: Progress) -> dict[str, int]:
        """Wait until each consumer has handled so many; a consumer that stands still for long is an error."""
        deadline = time.monotonic() + timeout_s
        while True:
            done = {name: count - self._before.get(name, 0) for name, count in self._read().items()}
            slowest = min((done.get(name, 0) for name in self._names), default=0)
            progress.to(min(slowest, events))
            if slowest >= events:
                return done
            if time.monotonic() > deadline:
                raise CommandFailed(
                    f"after {timeout_s:.0f} s the consumers have handled {done} of {events:,} events; "
                    f"see the logs of the stream runner in {self._folder.parents[1] / 'logs'}"
                )
            time.sleep(0.25)

    def _read(self) -> dict[str, int]:
        """Records of the stream of events that each function has read, by the name that we know it by."""
        counts: dict[str, int] = {}
        for file in sorted(self._folder.glob("*.json")):
            name = next((one for one in self._names if _same(one, file.stem)), None)
            if name is None:
                continue
            mappings: dict[str, dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
            counts[name] = counts.get(name, 0) + sum(
                int(one["records"]) for arn, one in mappings.items() if EVENTS.lower() in arn.lower()
            )
        return counts


def _same(name: str, deployed: str) -> bool:
    """Whether a deployed function is the one of this folder of `lambdas`."""
    return name.replace("_", "") in deployed.lower().replace("_", "").replace("-", "")
