"""Kinesis to DynamoDB: each event folds into its visitor's state exactly once."""

from __future__ import annotations

import os
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from aws_lambda_powertools import Logger

from lambdas.stream import collecting_afterwards, partial_failure, records_of
from narrows.adapters.aws import client
from narrows.adapters.dynamodb import DynamoStateStore
from narrows.adapters.sqs import SqsDeadLetters
from narrows.features.login import StateFeatures
from narrows.features.registry import FeatureSet
from narrows.features.stream import update_features
from narrows.settings import environment, load_app

WRITERS = 8
"""Calls in flight: as many as keep one core busy while each waits for DynamoDB; more only take turns."""


@dataclass(frozen=True)
class Settings:
    """The variables of this function."""

    app: str
    state_table: str
    dead_letters: str


SETTINGS = environment(Settings, os.environ)
APP = load_app(Path(__file__).resolve().parents[2] / "apps" / SETTINGS.app)
FEATURES = StateFeatures.of(FeatureSet(APP.features))
DYNAMODB = client("dynamodb", read_timeout_s=3, connect_timeout_s=1, attempts=3, connections=WRITERS)
STORE = DynamoStateStore(DYNAMODB, SETTINGS.state_table, clock=time.time, consistent=True)
DEAD_LETTERS = SqsDeadLetters(client("sqs", read_timeout_s=3, connect_timeout_s=1), SETTINGS.dead_letters)
EXECUTOR = ThreadPoolExecutor(WRITERS)
LOGGER = Logger(service="update_features")


def handler(event: dict[str, Any], _: Any) -> dict[str, Any]:
    """A Kinesis batch; Lambda delivers again from the first record reported."""
    with collecting_afterwards():
        outcome = update_features(
            records_of(event), STORE, FEATURES, dead_letters=DEAD_LETTERS, executor=EXECUTOR
        )
    cost = {name: count for name, count in asdict(outcome).items() if name != "failures"}
    LOGGER.info("folded", extra={"cost": cost})
    if outcome.failures:
        reasons = Counter(failure.reason for failure in outcome.failures)
        LOGGER.warning("records were not folded", extra={"reasons": dict(reasons.most_common(5))})
    return partial_failure(failure.sequence for failure in outcome.failures)
