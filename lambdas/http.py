"""The HTTP doorway of every function: bodies within limits, and errors mapped to answers in one place."""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from http import HTTPStatus
from typing import Any

from aws_lambda_powertools import Logger
from aws_lambda_powertools.event_handler import APIGatewayHttpResolver, Response
from aws_lambda_powertools.event_handler.exceptions import NotFoundError

from narrows.errors import InvalidInput, NarrowsError, StoreUnavailable, TooLarge, UnknownSurface
from narrows.events import nearest

JSON = "application/json"
TRY_AGAIN = "try again in a moment"
DEEPEST = 32
"""Levels of lists and objects in a body: more than any field takes, far fewer than a stack holds."""
DIGITS = 1_000
"""Of a whole number: more than any field takes, fewer than Python reads."""
TOO_DEEP = json.dumps(f"(lists and objects nested more than {DEEPEST} deep)")
_NESTING = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[{]|[\]}]', re.DOTALL)
"""Brackets, and texts whole, since theirs are none; a text that is never closed goes to the end."""


def doorway(logger: Logger) -> APIGatewayHttpResolver:
    """A resolver for payload format 2.0 that answers every error in the one shape of the API."""
    app = APIGatewayHttpResolver(serializer=_compact)

    def invalid(error: InvalidInput) -> Response[str]:
        return refusal(_status(error), error, field=error.field, value=error.value, remedy=error.remedy)

    def unavailable(error: StoreUnavailable) -> Response[str]:
        logger.warning("store unavailable", extra={"reason": str(error)})
        return refusal(HTTPStatus.SERVICE_UNAVAILABLE, error, remedy=TRY_AGAIN)

    def failed(error: NarrowsError) -> Response[str]:
        logger.error("failed", extra={"reason": str(error)})
        return refusal(HTTPStatus.INTERNAL_SERVER_ERROR, error, remedy=TRY_AGAIN)

    def crashed(error: Exception) -> Response[str]:
        logger.error("crashed", exc_info=error)
        hidden = NarrowsError("an error that we did not expect; it is in the log")
        return refusal(HTTPStatus.INTERNAL_SERVER_ERROR, hidden, remedy=TRY_AGAIN)

    def not_found(_: NotFoundError) -> Response[str]:
        path = app.current_event.path
        error = InvalidInput("path", path, "see GET /openapi.json for the routes of this API")
        return refusal(HTTPStatus.NOT_FOUND, error, field="path", value=error.value, remedy=error.remedy)

    app.exception_handler(InvalidInput)(invalid)
    app.exception_handler(StoreUnavailable)(unavailable)
    app.exception_handler(NarrowsError)(failed)
    app.exception_handler(Exception)(crashed)
    app.not_found(not_found)
    return app


def answer(content: Mapping[str, Any], status: int = HTTPStatus.OK) -> Response[str]:
    """A JSON response."""
    return Response(status_code=int(status), content_type=JSON, body=_compact(content))


def refusal(status: int, error: Exception, **details: str) -> Response[str]:
    """The error object of the API, with the class as its type."""
    shown = {
        "type": type(error).__name__,
        "message": str(error),
        "field": None,
        "value": None,
        "remedy": None,
    }
    return answer({"error": {**shown, **details}}, status)


def json_object(
    event: Mapping[str, Any], *, limit_bytes: int, fields: Collection[str], finite: bool
) -> dict[str, Any]:
    """The body as a JSON object with no fields but these; InvalidInput or TooLarge otherwise.

    With `finite`, what no field takes is refused wherever it stands: NaN, infinity, and nesting beyond
    `DEEPEST`. Without, the part that holds it gets its own verdict: see `decoded`.
    """
    text = _text(event, limit_bytes)
    try:
        content = decoded(text, finite=finite)
    except ValueError as error:
        raise InvalidInput("body", text[:80], f"send one JSON object ({error})") from None
    if not isinstance(content, dict):
        raise InvalidInput("body", text[:80], "send one JSON object")
    refuse_unknown("", content, fields)
    return content


def decoded(text: str, *, finite: bool = False) -> Any:
    """What the JSON says; ValueError for what is none.

    Without `finite` it holds, for a verdict on the part where it stands, what no field takes: numbers that
    are not finite, also for whole ones of more than `DIGITS` digits, and a text in place of what is nested
    deeper than `DEEPEST`. With it, these raise InvalidInput.
    """
    try:
        content = _loaded(text, finite)
        if not _is_deeper(content, DEEPEST):
            return content
    except RecursionError:  # deeper still
        pass
    if finite:
        raise InvalidInput("body", text[:80], f"nest lists and objects at most {DEEPEST} deep")
    try:
        return _loaded(_flattened(text), finite)
    except ValueError:  # its place is one in the flattened text, which nobody sent
        raise ValueError(f"it is no JSON, and nested more than {DEEPEST} deep") from None


def refuse_unknown(path: str, content: Mapping[str, Any], fields: Collection[str]) -> None:
    """InvalidInput for the first name that is not one of the fields, with the nearest that is."""
    for name in content:
        if name not in fields:
            close = nearest(name, fields)
            hint = f"did you mean '{close}'? " if close else ""
            raise InvalidInput(path + name, content[name], f"{hint}the fields are {', '.join(fields)}")


def _loaded(text: str, finite: bool) -> Any:
    constants = _refuse if finite else float
    return json.loads(text, parse_constant=constants, parse_float=_number(finite), parse_int=_integer(finite))


def _flattened(text: str) -> str:
    """The JSON with a text in place of each list or object that lies deeper than `DEEPEST`."""
    kept: list[str] = []
    depth = done = 0
    for found in _NESTING.finditer(text):
        if found[0] in "[{":
            depth += 1
            if depth == DEEPEST + 1:
                kept += (text[done : found.start()], TOO_DEEP)
        elif found[0] in "]}":
            depth -= 1
            if depth == DEEPEST:
                done = found.end()
    return "".join(kept) + ("" if depth > DEEPEST else text[done:])


def _is_deeper(content: object, levels: int) -> bool:
    """Whether lists and objects lie within each other on more than so many levels; told without recursion."""
    level: list[Any] = [content] if isinstance(content, dict | list) else []
    for _ in range(levels):
        level = [one for each in level for one in (each.values() if isinstance(each, dict) else each)]
        level = [one for one in level if isinstance(one, dict | list)]
        if not level:
            return False
    return True


def _text(event: Mapping[str, Any], limit_bytes: int) -> str:
    body = event.get("body") or ""
    if event.get("isBase64Encoded"):
        try:
            data = base64.b64decode(body, validate=True)
        except (binascii.Error, ValueError):
            raise InvalidInput("body", body, "the body is marked as base64 and is not") from None
    else:
        data = body.encode("utf-8", "surrogatepass")
    if len(data) > limit_bytes:
        raise TooLarge("body", f"{len(data)} bytes", f"send at most {limit_bytes} bytes")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        remedy = f"encode it as UTF-8; byte {error.start} is not"
        raise InvalidInput("body", data[max(0, error.start - 10) : error.start + 10], remedy) from None


def _refuse(constant: str) -> float:
    raise InvalidInput("body", constant, "JSON has no such number; send a finite one, or leave it out")


def _number(finite: bool) -> Callable[[str], float]:
    def parsed(text: str) -> float:
        number = float(text)
        return number if math.isfinite(number) or not finite else _refuse(text)

    return parsed


def _integer(finite: bool) -> Callable[[str], float]:
    def parsed(text: str) -> float:
        if len(text) <= DIGITS:
            return int(text)
        return _refuse(text) if finite else float(text)

    return parsed


def _status(error: InvalidInput) -> HTTPStatus:
    if isinstance(error, TooLarge):
        return HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    return HTTPStatus.NOT_FOUND if isinstance(error, UnknownSurface) else HTTPStatus.BAD_REQUEST


def _compact(content: Any) -> str:
    return json.dumps(content, separators=(",", ":"))  # ASCII: also half a surrogate pair can be answered
