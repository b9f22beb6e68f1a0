"""Handlers as Lambda calls them: imported with their variables, given events in AWS's own shapes."""

from __future__ import annotations

import base64
import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

CONTEXT = SimpleNamespace(
    function_name="narrows",
    memory_limit_in_mb="512",
    invoked_function_arn="arn:aws:lambda:us-east-1:123456789012:function:narrows",
    aws_request_id="5b9a1f0e-0000-4000-8000-000000000000",
    get_remaining_time_in_millis=lambda: 10_000,
)


def cold_start(name: str, monkeypatch: pytest.MonkeyPatch, variables: Mapping[str, str]) -> ModuleType:
    """Import `lambdas.<name>.handler` anew, so that its module reads these variables."""
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    for module in [one for one in sys.modules if one.startswith(f"lambdas.{name}.handler")]:
        monkeypatch.delitem(sys.modules, module)
    return importlib.import_module(f"lambdas.{name}.handler")


def http_event(method: str, path: str, body: object = None, *, encoded: bool = False) -> dict[str, Any]:
    """API Gateway's payload 2.0; `body` as JSON, as the text it is, or as bytes in base64."""
    if isinstance(body, bytes):
        text, encoded = base64.b64encode(body).decode(), True
    else:
        text = body if isinstance(body, str) else json.dumps(body)
        text = base64.b64encode(text.encode()).decode() if encoded else text
    return {
        "version": "2.0",
        "routeKey": f"{method} {path}",
        "rawPath": path,
        "rawQueryString": "",
        "headers": {"content-type": "application/json", "host": "api.example.com"},
        "requestContext": {
            "accountId": "123456789012",
            "apiId": "api",
            "domainName": "api.example.com",
            "http": {
                "method": method,
                "path": path,
                "protocol": "HTTP/1.1",
                "sourceIp": "203.0.113.7",
                "userAgent": "test",
            },
            "requestId": "request",
            "routeKey": f"{method} {path}",
            "stage": "$default",
            "time": "21/Nov/2026:05:00:00 +0000",
            "timeEpoch": 1_795_237_200_000,
        },
        "body": None if body is None else text,
        "isBase64Encoded": encoded,
    }


def call(module: ModuleType, event: Mapping[str, Any]) -> tuple[int, Any]:
    """Status and decoded body of the handler's answer."""
    answer = module.handler(event, CONTEXT)
    return answer["statusCode"], json.loads(answer["body"])


def kinesis_event(
    records: Sequence[tuple[str, str, bytes]], *, stream: str = "events", arrived_at: float = 1_795_237_200.5
) -> dict[str, Any]:
    """A batch of (shard, sequence number, data)."""
    return {
        "Records": [
            {
                "kinesis": {
                    "kinesisSchemaVersion": "1.0",
                    "partitionKey": "key",
                    "sequenceNumber": sequence,
                    "data": base64.b64encode(data).decode(),
                    "approximateArrivalTimestamp": arrived_at + index,
                },
                "eventSource": "aws:kinesis",
                "eventVersion": "1.0",
                "eventID": f"{shard}:{sequence}",
                "eventName": "aws:kinesis:record",
                "invokeIdentityArn": "arn:aws:iam::123456789012:role/narrows",
                "awsRegion": "us-east-1",
                "eventSourceARN": f"arn:aws:kinesis:us-east-1:123456789012:stream/{stream}",
            }
            for index, (shard, sequence, data) in enumerate(records)
        ]
    }
