"""How our own implementation of AWS operations answers over HTTP, beside the emulator's."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

Operation = Callable[[dict[str, Any]], dict[str, Any]]
Answer = tuple[int, dict[str, str], bytes]
Handler = Callable[[str, str, dict[str, str], bytes, dict[str, Any]], Awaitable[Answer]]

log = logging.getLogger("localcloud")


class Refused(Exception):
    """An AWS error that a caller sees under its name, such as `ValidationException`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


def answer(operation: Operation, body: bytes) -> Answer:
    """Run one operation of a JSON protocol: a refusal is a 400 with the error's name, a fault of ours 500."""
    try:
        return _json(200, operation(json.loads(body or b"{}")))
    except Refused as refused:
        return _json(400, {"__type": refused.code, "message": refused.message})
    except Exception as error:  # the caller is on the other side of HTTP: it gets the text, the log the trace
        log.exception("operation failed")
        return _json(500, {"__type": "InternalFailure", "message": f"{type(error).__name__}: {error}"})


def routed(prefix: str, operations: Mapping[str, Operation], otherwise: Handler) -> Handler:
    """A handler that runs the operations given here, by their X-Amz-Target, and leaves the rest be."""

    async def handle(
        method: str, path: str, headers: dict[str, str], body: bytes, query: dict[str, Any]
    ) -> Answer:
        operation = operations.get(headers.get("x-amz-target", "").removeprefix(prefix))
        if operation is None:
            return await otherwise(method, path, headers, body, query)
        return await asyncio.to_thread(answer, operation, body)

    return handle


def _json(status: int, content: Mapping[str, Any]) -> Answer:
    return status, {"Content-Type": "application/x-amz-json-1.1"}, json.dumps(content).encode()
