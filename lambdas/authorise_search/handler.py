"""Asked by CloudFormation: lets a function's role into the OpenSearch domain, and out again."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from narrows.adapters.cloudformation import answer
from narrows.adapters.opensearch import connect
from narrows.adapters.search_access import allow, disallow
from narrows.environment import environment
from narrows.errors import NarrowsError

PATIENCE_S = 20.0


@dataclass(frozen=True)
class Settings:
    """The variables of this function."""

    search_url: str
    search_name: str
    aws_region: str


SETTINGS = environment(Settings, os.environ)
CLIENT = connect(SETTINGS.search_url, timeout_s=PATIENCE_S, region=SETTINGS.aws_region)


def handler(event: dict[str, Any], _: Any) -> None:
    """One custom resource, with the role's ARN as `Principal` and what it `May`: "search" or "change"."""
    resource = event.get("PhysicalResourceId", "never-made")
    try:
        if event["RequestType"] == "Delete":
            disallow(CLIENT, resource)
        else:
            wanted = event["ResourceProperties"]
            resource = allow(CLIENT, SETTINGS.search_name, wanted["Principal"], wanted["May"])
    except NarrowsError as error:
        # a domain that is gone lets nobody in: its stack must not wait for it
        answer(event, resource, "" if event["RequestType"] == "Delete" else str(error))
    else:
        answer(event, resource)
