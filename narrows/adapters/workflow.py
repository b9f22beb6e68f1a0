"""Runs a deployed workflow and tells how far it is."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from narrows.adapters.aws import client, translated
from narrows.errors import NarrowsError

POLL_S = 0.5


class WorkflowFailed(NarrowsError):
    """The training workflow did not end well; the message holds its error and cause."""


class Workflow:
    """A Step Functions state machine."""

    def __init__(self, arn: str) -> None:
        self._arn = arn
        self._client = client("stepfunctions", read_timeout_s=60.0, connect_timeout_s=2.0, attempts=3)

    def run(
        self, name: str, given: Mapping[str, Any], *, entered: Callable[[str], None], timeout_s: float
    ) -> dict[str, Any]:
        """Run it to its end; `entered` is told each state as it begins. Returns the output."""
        with translated("start the workflow"):
            started = self._client.start_execution(
                stateMachineArn=self._arn, name=name, input=json.dumps(given)
            )
        execution, told = started["executionArn"], 0
        deadline = time.monotonic() + timeout_s
        while True:
            with translated("watch the workflow"):
                now = self._client.describe_execution(executionArn=execution)
                names = self._states(execution)
            for state in names[told:]:
                entered(state)
            told = len(names)
            if now["status"] != "RUNNING":
                return _output(now)
            if time.monotonic() > deadline:
                self._client.stop_execution(executionArn=execution)
                raise WorkflowFailed(f"the workflow had not ended after {timeout_s:g} s; it was stopped")
            time.sleep(POLL_S)

    def _states(self, execution: str) -> list[str]:
        pages = self._client.get_paginator("get_execution_history").paginate(executionArn=execution)
        return [
            event["stateEnteredEventDetails"]["name"]
            for page in pages
            for event in page["events"]
            if "stateEnteredEventDetails" in event
        ]


def _output(execution: Mapping[str, Any]) -> dict[str, Any]:
    if execution["status"] != "SUCCEEDED":
        reason = f"{execution.get('error', '')} {execution.get('cause', '')}".strip() or "no reason was given"
        raise WorkflowFailed(f"the workflow ended as {execution['status']}: {reason}")
    output: dict[str, Any] = json.loads(execution.get("output") or "{}")
    return output
