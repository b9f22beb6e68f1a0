"""POST /api/events: a verdict for each event; accepted ones go to the stream under pseudonyms."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aws_lambda_powertools import Logger
from aws_lambda_powertools.event_handler import Response

from lambdas.collect_events.contract import sent_events, shown
from lambdas.http import answer, doorway
from narrows.adapters.aws import client
from narrows.adapters.kinesis import KinesisEventStream
from narrows.adapters.s3 import S3Objects
from narrows.adapters.secrets import SecretKey
from narrows.collecting import collect
from narrows.settings import environment, load_app


@dataclass(frozen=True)
class Settings:
    """The variables of this function."""

    app: str
    events_stream: str
    bucket: str
    pseudonym_secret: str


SETTINGS = environment(Settings, os.environ)
APP = load_app(Path(__file__).resolve().parents[2] / "apps" / SETTINGS.app)
STREAM = KinesisEventStream(
    client("kinesis", read_timeout_s=1.5, connect_timeout_s=0.5), SETTINGS.events_stream
)
QUARANTINE = S3Objects(client("s3", read_timeout_s=1.5, connect_timeout_s=0.5), SETTINGS.bucket)
SECRETS = client("secretsmanager", read_timeout_s=1, connect_timeout_s=0.5)
KEY = SecretKey(SECRETS, SETTINGS.pseudonym_secret, clock=time.monotonic)
LOGGER = Logger(service="collect_events")
HTTP = doorway(LOGGER)


@HTTP.post("/api/events")
def collect_events() -> Response[str]:
    """Judge and store one batch."""
    sent, now = sent_events(HTTP.current_event.raw_event), time.time()
    collected = collect(sent, types=APP.events, now=now, key=KEY.get(), stream=STREAM, quarantine=QUARANTINE)
    if collected.quarantine_failure:
        LOGGER.warning("rejected events were not kept", extra={"reason": collected.quarantine_failure})
    return answer(shown(collected))


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """API Gateway's payload 2.0 in, its response out."""
    return HTTP.resolve(event, context)
