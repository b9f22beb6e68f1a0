"""POST /api/policy/changes, or the same payload by direct invocation: facts that the gate must know."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

from aws_lambda_powertools import Logger
from aws_lambda_powertools.event_handler import Response

from lambdas.http import answer, doorway
from lambdas.update_policy.contract import sent_changes
from narrows.adapters.aws import client
from narrows.adapters.dynamodb import DynamoPolicyLog
from narrows.settings import environment


@dataclass(frozen=True)
class Settings:
    """The variables of this function."""

    policy_table: str


SETTINGS = environment(Settings, os.environ)
DYNAMODB = client("dynamodb", read_timeout_s=2, connect_timeout_s=1, attempts=2)
LOG = DynamoPolicyLog(DYNAMODB, SETTINGS.policy_table, replica=0)
HTTP = doorway(Logger(service="update_policy"))


def append(event: dict[str, Any]) -> dict[str, Any]:
    """Append the changes and tell the version from which on every response heeds them."""
    return {"version": LOG.append(sent_changes(event), now=time.time())}


@HTTP.post("/api/policy/changes")
def changes() -> Response[str]:
    """The changes of an HTTP request."""
    return answer(append(HTTP.current_event.raw_event))


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """API Gateway's payload 2.0, or {"changes": [...]} itself, whose errors are raised."""
    return HTTP.resolve(event, context) if "requestContext" in event else append(event)
