"""The decision stream to DynamoDB: the last slate and its candidates, for the lower rungs of the ladder."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from aws_lambda_powertools import Logger

from lambdas.stream import partial_failure, records_of
from narrows.adapters.aws import client
from narrows.adapters.dynamodb import DynamoSlateStore
from narrows.remembering import remember_slates
from narrows.settings import environment

WRITERS = 16


@dataclass(frozen=True)
class Settings:
    """The variables of this function."""

    slates_table: str


SETTINGS = environment(Settings, os.environ)
DYNAMODB = client("dynamodb", read_timeout_s=3, connect_timeout_s=1, attempts=3, connections=WRITERS)
STORE = DynamoSlateStore(DYNAMODB, SETTINGS.slates_table)
EXECUTOR = ThreadPoolExecutor(WRITERS)
LOGGER = Logger(service="remember_slates")


def handler(event: dict[str, Any], _: Any) -> dict[str, Any]:
    """A Kinesis batch of decision records."""
    failures = remember_slates(records_of(event), STORE, executor=EXECUTOR)
    if failures:
        LOGGER.warning("slates were not remembered", extra={"reason": failures[0].reason})
    return partial_failure(failure.sequence for failure in failures)
