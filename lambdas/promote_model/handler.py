"""Invoked by Step Functions: promotes the candidate if the gate says so, by moving one pointer."""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lambdas.promote_model.contract import asked
from lambdas.promote_model.index import IndexBuilder, versions_of
from narrows.adapters.aws import client
from narrows.adapters.control import DynamoControlTable
from narrows.adapters.models import S3ModelFolders
from narrows.adapters.s3 import S3Objects
from narrows.promotion import promote
from narrows.settings import environment, load_app


@dataclass(frozen=True)
class Settings:
    """The variables of this function."""

    app: str
    bucket: str
    control_table: str
    aws_region: str
    search_url: str = ""
    search_name: str = ""
    search_engine: str = ""
    item_window_s: int = 0


SETTINGS = environment(Settings, os.environ)
APP = load_app(Path(__file__).resolve().parents[2] / "apps" / SETTINGS.app)
S3 = client("s3", read_timeout_s=60, connect_timeout_s=2, attempts=3)
OBJECTS, FOLDERS = S3Objects(S3, SETTINGS.bucket), S3ModelFolders(S3, SETTINGS.bucket)
CONTROL = DynamoControlTable(
    SETTINGS.control_table, region=SETTINGS.aws_region, connect_timeout_s=1, read_timeout_s=5
)
SEARCH = (SETTINGS.search_url, SETTINGS.search_name, SETTINGS.search_engine, SETTINGS.aws_region)
INDEX = IndexBuilder(APP, versions_of(APP, *SEARCH), CONTROL, OBJECTS, SETTINGS.item_window_s, time.sleep)


def handler(event: dict[str, Any], _: Any) -> dict[str, Any]:
    """{"candidate", "metrics", "version"} in, {"promoted", "reason", "version"} out."""
    ask = asked(event)
    with tempfile.TemporaryDirectory() as directory:
        done = promote(
            *(ask.candidate, FOLDERS.metrics(ask.metrics), ask.version),
            app=APP,
            control=CONTROL,
            folders=FOLDERS,
            directory=Path(directory),
            now=time.time(),
            preparation=INDEX,
        )
    return asdict(done)
