"""What the function collects into, from its variables."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from narrows.adapters.aws import client
from narrows.adapters.kinesis import KinesisEventStream
from narrows.adapters.s3 import S3Objects
from narrows.adapters.secrets import SecretKey
from narrows.collecting import Collected, collect
from narrows.settings import environment, load_app


@dataclass(frozen=True)
class Settings:
    """The variables of this function."""

    app: str
    events_stream: str
    bucket: str
    pseudonym_secret: str


class Collector:
    """The app's event types, the stream, the quarantine and the key, opened once for each process."""

    def __init__(self) -> None:
        settings = environment(Settings, os.environ)
        self._types = load_app(Path(__file__).resolve().parents[2] / "apps" / settings.app).events
        kinesis = client("kinesis", read_timeout_s=1.5, connect_timeout_s=0.5)
        self._stream = KinesisEventStream(kinesis, settings.events_stream)
        s3 = client("s3", read_timeout_s=1.5, connect_timeout_s=0.5)
        self._quarantine = S3Objects(s3, settings.bucket)
        secrets = client("secretsmanager", read_timeout_s=1, connect_timeout_s=0.5)
        self._key = SecretKey(secrets, settings.pseudonym_secret, clock=time.monotonic)

    def collect(self, sent: list[object], user_agent: str | None) -> Collected:
        """Judge and store one batch."""
        return collect(
            sent,
            types=self._types,
            now=time.time(),
            key=self._key.get(),
            stream=self._stream,
            quarantine=self._quarantine,
            user_agent=user_agent,
        )
