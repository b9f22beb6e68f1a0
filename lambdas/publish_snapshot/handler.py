"""The items table's stream to S3: a delta of the snapshot for serving, a landed file for training."""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aws_lambda_powertools import Logger

from narrows.adapters.aws import client
from narrows.adapters.control import DynamoControlTable
from narrows.adapters.items import entries_of
from narrows.adapters.s3 import S3Objects
from narrows.adapters.snapshots import LiveSnapshot, SnapshotCopy, SnapshotPublisher
from narrows.landing import items_file
from narrows.settings import environment, load_app


@dataclass(frozen=True)
class Settings:
    """The variables of this function."""

    app: str
    bucket: str
    control_table: str
    aws_region: str


SETTINGS = environment(Settings, os.environ)
APP = load_app(Path(__file__).resolve().parents[2] / "apps" / SETTINGS.app)
OBJECTS = S3Objects(client("s3", read_timeout_s=20, connect_timeout_s=1, attempts=3), SETTINGS.bucket)
CONTROL = DynamoControlTable(
    SETTINGS.control_table, region=SETTINGS.aws_region, connect_timeout_s=1, read_timeout_s=3
)
SCRATCH = Path(tempfile.mkdtemp())
LIVE = LiveSnapshot(APP, CONTROL, SnapshotCopy(SCRATCH / "copies", OBJECTS.download, OBJECTS.get))
PUBLISHER = SnapshotPublisher(LIVE, OBJECTS, SCRATCH / "made", clock=time.time)
LOGGER = Logger(service="publish_snapshot")


def handler(event: dict[str, Any], _: Any) -> None:
    """A batch of the table's stream; an error makes Lambda deliver it again, which changes nothing twice."""
    entries = entries_of(event)
    landed = items_file(entries, time.time())
    if landed:
        OBJECTS.put(landed.key, landed.data)
    version = PUBLISHER.publish(entries)
    LOGGER.info("published", extra={"items": len(entries), "version": version})
