"""The items table's stream to the vector index: what is refused is told, counted and watched."""

from __future__ import annotations

import base64
import json
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from narrows.adapters.memory_vectors import MemoryIndexVersions
from tests.functions.doorways import CONTEXT, cold_start

VARIABLES = {
    "APP": "shopnow",
    "BUCKET": "narrows",
    "SEARCH_URL": "http://127.0.0.1:9",
    "SEARCH_NAME": "narrows-shopnow-dev",
    "SEARCH_ENGINE": "lucene",
    "AWS_REGION": "us-east-1",
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_LAMBDA_FUNCTION_NAME": "narrows-index-items",
    "POWERTOOLS_METRICS_NAMESPACE": "Narrows",
    "POWERTOOLS_SERVICE_NAME": "index_items",
}


@pytest.fixture
def deployed(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The function before a live index of two dimensions."""
    module = cold_start("index_items", monkeypatch, VARIABLES)
    versions = MemoryIndexVersions()
    versions.create("m1", 2)
    versions.promote("m1")
    monkeypatch.setattr(module, "VERSIONS", versions)
    return module


def record(item_id: str, *vector: float, content: str = "{}") -> dict[str, Any]:
    """A change of the table as its stream tells it."""
    packed = base64.b64encode(np.asarray(vector, np.float32).tobytes()).decode()
    image = {
        "pk": {"S": f"item#{item_id}"},
        "row": {"N": str(ord(item_id))},
        "v": {"N": "1"},
        "c": {"S": content},
        "d": {"BOOL": False},
        "t": {"N": "1.5"},
        "e": {"B": packed},
        "ev": {"S": "m1"},
    }
    return {"dynamodb": {"NewImage": image}}


def metrics(printed: str) -> list[dict[str, Any]]:
    return [one for one in map(json.loads, printed.splitlines()) if "_aws" in one]


def test_refused_items_are_counted(deployed: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    """One of another size and one that cannot be read make a metric of two; the third item is found."""
    batch = [record("a", 1, 1), record("b", 1, 2, 3), record("c", 1, 1, content="{")]
    deployed.handler({"Records": batch}, CONTEXT)
    (told,) = metrics(capsys.readouterr().out)
    assert told["ItemsRefused"] == [2.0]
    (directive,) = told["_aws"]["CloudWatchMetrics"]
    assert directive["Namespace"] == "Narrows"
    assert sorted(directive["Dimensions"][0]) == ["FunctionName", "service"]
    assert (told["FunctionName"], told["service"]) == ("narrows-index-items", "index_items")
    assert len(deployed.VERSIONS.open("m1")) == 1


def test_nothing_is_counted_where_all_are_found(
    deployed: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    """No metric line, so that an alarm on it costs nothing while all is well."""
    deployed.handler({"Records": [record("a", 1, 1)]}, CONTEXT)
    assert not metrics(capsys.readouterr().out)
