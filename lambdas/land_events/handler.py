"""Kinesis to the lake's landing zone: one file for each batch, named so that a retry replaces it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from lambdas.stream import records_of
from narrows.adapters.aws import client
from narrows.adapters.s3 import S3Objects
from narrows.landing import EVENTS, landing_files
from narrows.settings import environment


@dataclass(frozen=True)
class Settings:
    """The variables of this function."""

    bucket: str


SETTINGS = environment(Settings, os.environ)
OBJECTS = S3Objects(client("s3", read_timeout_s=10, connect_timeout_s=2, attempts=3), SETTINGS.bucket)


def handler(event: dict[str, Any], _: Any) -> None:
    """A Kinesis batch; an error makes Lambda deliver all of it again."""
    first = event["Records"][0]
    stream = first["eventSourceARN"].rpartition("/")[2]
    kind = "decisions" if "decision" in stream.lower() else EVENTS
    arrived_at = first["kinesis"]["approximateArrivalTimestamp"]
    for file in landing_files(records_of(event), kind, arrived_at):
        OBJECTS.put(file.key, file.data)
