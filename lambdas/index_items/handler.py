"""The items table's stream to the vector index: what changed is found with its new vector, or no more."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aws_lambda_powertools import Logger, single_metric
from aws_lambda_powertools.metrics import MetricUnit

from narrows.adapters.aws import client
from narrows.adapters.item_encoder import KeptEncoders
from narrows.adapters.items import readable_entries_of
from narrows.adapters.opensearch_versions import index_versions
from narrows.adapters.s3 import S3Objects
from narrows.adapters.text_encoders import text_encoder
from narrows.indexing import index_items
from narrows.settings import environment, load_app


@dataclass(frozen=True)
class Settings:
    """The variables of this function."""

    app: str
    bucket: str
    search_url: str
    search_name: str
    search_engine: str
    aws_region: str
    aws_lambda_function_name: str


SETTINGS = environment(Settings, os.environ)
APP = load_app(Path(__file__).resolve().parents[2] / "apps" / SETTINGS.app)
NAMED = (SETTINGS.search_url, SETTINGS.search_name, SETTINGS.search_engine)
VERSIONS = index_versions(APP.index, *NAMED, SETTINGS.aws_region)
S3 = client("s3", read_timeout_s=20, connect_timeout_s=1, attempts=2)
NETWORKS = KeptEncoders(S3Objects(S3, SETTINGS.bucket).get, text_encoder(APP.text_vectors))
LOGGER = Logger(service="index_items")


def handler(event: dict[str, Any], _: Any) -> None:
    """A batch of the table's stream; while the index is away Lambda delivers it again and again.

    So nothing else may raise: an item that cannot be indexed is refused, told and counted.
    """
    entries, unreadable = readable_entries_of(event)
    indexed = index_items(entries, VERSIONS, APP.catalogue, NETWORKS.of)
    refused = {**indexed.refused, **unreadable}
    if refused or indexed.waiting:
        told = {"refused": dict(list(refused.items())[:5]), "count": len(refused), "waiting": indexed.waiting}
        LOGGER.warning("items are not in the index", extra=told)
    if refused:
        with single_metric("ItemsRefused", MetricUnit.Count, len(refused)) as metric:
            metric.add_dimension("FunctionName", SETTINGS.aws_lambda_function_name)
