"""Handlers for the HTTP tests."""

import atexit
import os
import time
from pathlib import Path
from typing import Any

if "NARROWS_HOME" in os.environ:  # as a handler that flushes what it still holds
    atexit.register(Path(os.environ["NARROWS_HOME"], f"flushed-{os.getpid()}").touch)


def echo(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """The event itself, and which process saw it; a bare dictionary."""
    return {"event": event, "process": os.getpid(), "left": context.get_remaining_time_in_millis()}


def shaped(event: dict[str, Any], context: Any) -> Any:
    """What the path asks for."""
    return {
        "full": {
            "statusCode": 201,
            "headers": {"X-One": "1", "Content-Type": "text/plain"},
            "cookies": ["a=1; Secure", "b=2"],
            "body": "made",
        },
        "binary": {"statusCode": 200, "body": "AAH/", "isBase64Encoded": True},
        "empty": {"statusCode": 204},
        "split": {"statusCode": 200, "headers": {"x": "a\r\nset-cookie: b"}, "body": ""},
        "strange": {"statusCode": "many", "body": "x"},
        "object": {"statusCode": 200, "body": {"not": "text"}},
        "unjson": {"when": object()},
    }[event["pathParameters"]["kind"]]


def failing(event: dict[str, Any], context: Any) -> Any:
    """Fails as a handler with a bug does."""
    raise RuntimeError("secret detail")


def slow(event: dict[str, Any], context: Any) -> Any:
    """Longer than its function's timeout."""
    time.sleep(30)
