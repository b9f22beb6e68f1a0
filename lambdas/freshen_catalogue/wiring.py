"""What the function stores items with, from its variables."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from narrows.adapters.aws import client
from narrows.adapters.control import DynamoControlTable
from narrows.adapters.dynamodb import DynamoPolicyLog
from narrows.adapters.item_encoder import LiveEncoder
from narrows.adapters.items import DynamoItemTable
from narrows.adapters.s3 import S3Objects
from narrows.adapters.snapshots import LiveSnapshot, SnapshotCopy
from narrows.adapters.text_encoders import text_encoder
from narrows.freshening import ItemVerdict, freshen
from narrows.item_stream import StreamOutcome, freshen_stream
from narrows.settings import environment, load_app


@dataclass(frozen=True)
class Settings:
    """The variables of this function."""

    app: str
    bucket: str
    items_table: str
    policy_table: str
    control_table: str
    aws_region: str


class Freshener:
    """The app's catalogue, the table and what is live, opened once for each process."""

    def __init__(self) -> None:
        settings = environment(Settings, os.environ)
        self._app = load_app(Path(__file__).resolve().parents[2] / "apps" / settings.app)
        dynamodb = client("dynamodb", read_timeout_s=3, connect_timeout_s=1, attempts=2)
        self._table = DynamoItemTable(
            dynamodb, settings.items_table, DynamoPolicyLog(dynamodb, settings.policy_table, replica=0)
        )
        control = DynamoControlTable(
            settings.control_table, region=settings.aws_region, connect_timeout_s=1, read_timeout_s=2
        )
        s3 = client("s3", read_timeout_s=20, connect_timeout_s=1, attempts=2)
        self._objects = S3Objects(s3, settings.bucket)
        copy = SnapshotCopy(Path(tempfile.mkdtemp()), self._objects.download, self._objects.get)
        self._live = LiveSnapshot(self._app, control, copy)
        reading = text_encoder(self._app.text_vectors)
        self._encoder = LiveEncoder(self._app.name, control, self._objects.get, reading)

    def freshen(self, sent: Sequence[object]) -> list[ItemVerdict]:
        """Judge and store one batch."""
        return freshen(
            sent,
            app=self._app,
            table=self._table,
            published=self._live.current,
            encoder=self._encoder.at_hand(),
            now=time.time(),
        )

    def freshen_stream(self, sent: Sequence[object]) -> StreamOutcome:
        """Judge and store what came through the stream, and keep what was refused."""
        now = time.time()
        return freshen_stream(sent, self.freshen, catalogue=self._app.catalogue, kept=self._objects, now=now)
