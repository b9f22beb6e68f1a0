"""API Gateway's HTTP API as functions over values: routes, payload 2.0 events, and handlers' answers."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl
from uuid import uuid4

from localcloud.functions import FunctionError

JSON = (b"content-type", b"application/json")
DEFAULT = "$default"


@dataclass(frozen=True)
class Route:
    """One route: its key as deployed ("POST /api/x/{y}") and the name of the function behind it."""

    key: str
    function: str

    @property
    def method(self) -> str:
        return self.key.partition(" ")[0]

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(self.key.partition(" ")[2].strip("/").split("/"))


@dataclass(frozen=True)
class Api:
    """The routes of one HTTP API, and what its events say of it."""

    routes: tuple[Route, ...]
    api_id: str = "local"
    stage: str = DEFAULT
    account: str = "000000000000"

    @classmethod
    def read(cls, client: Any) -> Api:
        """The one deployed HTTP API, from a boto3 apigatewayv2 client."""
        apis = [api for api in client.get_apis()["Items"] if api["ProtocolType"] == "HTTP"]
        if len(apis) != 1:
            raise FunctionError(f"{len(apis)} HTTP APIs are deployed; this front serves exactly one")
        api_id = apis[0]["ApiId"]
        functions = {
            f"integrations/{each['IntegrationId']}": each["IntegrationUri"]
            for each in client.get_integrations(ApiId=api_id)["Items"]
        }
        routes = [
            Route(each["RouteKey"], _function_name(functions[each["Target"]]))
            for each in client.get_routes(ApiId=api_id, MaxResults="100")["Items"]
        ]
        stages = [each["StageName"] for each in client.get_stages(ApiId=api_id)["Items"]]
        return cls(tuple(routes), api_id, stages[0] if stages else DEFAULT)

    def match(self, method: str, path: str) -> tuple[Route, dict[str, str]] | None:
        """The most specific route of a request with its path parameters; None where there is no route."""
        best: tuple[Specificity, Route, dict[str, str]] | None = None
        for route in self.routes:
            found = _match(route, method, path)
            if found is not None and (best is None or found[0] > best[0]):
                best = found[0], route, found[1]
        return None if best is None else best[1:]


Specificity = tuple[tuple[int, ...], bool]


@dataclass(frozen=True)
class Answer:
    """What goes back to the client; headers in lower case, without content-length."""

    status: int
    headers: Sequence[tuple[bytes, bytes]] = field(default_factory=tuple)
    body: bytes = b""


def message(status: int, text: str = "Internal Server Error", *, close: bool = False) -> Answer:
    """An answer of the gateway's own; `close` ends the connection after it."""
    headers = [JSON, (b"connection", b"close")] if close else [JSON]
    return Answer(status, headers, json.dumps({"message": text}).encode())


def event_of(
    scope: Mapping[str, Any], body: bytes, *, route: Route, parameters: Mapping[str, str], api: Api
) -> dict[str, Any]:
    """The payload 2.0 event of an ASGI request; parts that a request does not have are absent, as in AWS."""
    headers, cookies = _headers(scope["headers"])
    query = scope["query_string"].decode("latin-1")
    event: dict[str, Any] = {
        "version": "2.0",
        "routeKey": route.key,
        "rawPath": scope["path"],
        "rawQueryString": query,
        "headers": headers,
        "requestContext": _request_context(scope, headers, route, api),
        "isBase64Encoded": False,
    }
    if cookies:
        event["cookies"] = cookies
    if query:
        event["queryStringParameters"] = _joined(parse_qsl(query, keep_blank_values=True))
    if parameters:
        event["pathParameters"] = dict(parameters)
    if body:
        event["body"], event["isBase64Encoded"] = _body(body)
    return event


def answer_of(answer: Any) -> Answer:
    """What API Gateway makes of a handler's answer: one without a statusCode is itself the body, as JSON.

    Raises TypeError or ValueError for an answer that API Gateway could not send either.
    """
    if not isinstance(answer, Mapping) or "statusCode" not in answer:
        text = answer if isinstance(answer, str) else json.dumps(answer)
        return Answer(200, [JSON], text.encode())
    body = answer.get("body") or ""
    if not isinstance(body, str):
        raise TypeError(f"body is {type(body).__name__}, not text")
    content = base64.b64decode(body, validate=True) if answer.get("isBase64Encoded") else body.encode()
    return Answer(_status(answer["statusCode"]), list(_answer_headers(answer)), content)


def _request_context(
    scope: Mapping[str, Any], headers: Mapping[str, str], route: Route, api: Api
) -> dict[str, Any]:
    now = time.time()
    client = scope.get("client")
    return {
        "accountId": api.account,
        "apiId": api.api_id,
        "domainName": headers.get("host", ""),
        "domainPrefix": headers.get("host", "").partition(".")[0],
        "http": {
            "method": scope["method"],
            "path": scope["path"],
            "protocol": f"HTTP/{scope['http_version']}",
            "sourceIp": client[0] if client else "",
            "userAgent": headers.get("user-agent", ""),
        },
        "requestId": str(uuid4()),
        "routeKey": route.key,
        "stage": api.stage,
        "time": time.strftime("%d/%b/%Y:%H:%M:%S +0000", time.gmtime(now)),
        "timeEpoch": int(now * 1000),
    }


def _headers(raw: Sequence[tuple[bytes, bytes]]) -> tuple[dict[str, str], list[str]]:
    """Headers with their values joined by commas, and the cookies, which payload 2.0 keeps apart."""
    pairs = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in raw]
    cookies = [each.strip() for name, value in pairs if name == "cookie" for each in value.split(";")]
    return _joined((name, value) for name, value in pairs if name != "cookie"), cookies


def _joined(pairs: Sequence[tuple[str, str]] | Iterator[tuple[str, str]]) -> dict[str, str]:
    joined: dict[str, str] = {}
    for name, value in pairs:
        joined[name] = f"{joined[name]},{value}" if name in joined else value
    return joined


def _body(body: bytes) -> tuple[str, bool]:
    try:
        return body.decode(), False
    except UnicodeDecodeError:
        return base64.b64encode(body).decode("ascii"), True


def _status(value: Any) -> int:
    status = int(value)
    if not 200 <= status <= 599:
        raise ValueError(f"statusCode {status} is not one of an answer")
    return status


def _answer_headers(answer: Mapping[str, Any]) -> Iterator[tuple[bytes, bytes]]:
    headers = {str(name).lower(): value for name, value in (answer.get("headers") or {}).items()}
    if "content-type" not in headers:
        yield b"content-type", b"text/plain; charset=utf-8"
    for name, value in headers.items():
        if name not in ("content-length", "transfer-encoding", "connection"):
            yield name.encode("latin-1"), _one_line(value)
    for cookie in answer.get("cookies") or ():
        yield b"set-cookie", _one_line(cookie)


def _one_line(value: Any) -> bytes:
    text = str(value).lower() if isinstance(value, bool) else str(value)
    if "\r" in text or "\n" in text:
        raise ValueError("a header value holds a line break")
    return text.encode("latin-1", "replace")


def _match(route: Route, method: str, path: str) -> tuple[Specificity, dict[str, str]] | None:
    """How specific a matching route is, part by part, and its parameters; None where it does not match."""
    if route.key == DEFAULT:
        return ((), False), {}
    if route.method not in ("ANY", method):
        return None
    asked = path.removeprefix("/").split("/")
    parameters: dict[str, str] = {}
    ranks: list[int] = []
    for index, part in enumerate(route.parts):
        if part.endswith("+}"):
            rest = "/".join(asked[index:])
            found = {**parameters, part[1:-2]: rest}
            return ((*ranks, 0), route.method == method), found
        if index >= len(asked):
            return None
        if part.startswith("{") and asked[index]:
            parameters[part[1:-1]] = asked[index]
            ranks.append(1)
        elif part == asked[index]:
            ranks.append(2)
        else:
            return None
    if len(asked) != len(route.parts):
        return None
    return (tuple(ranks), route.method == method), parameters


def _function_name(uri: str) -> str:
    """The function's name in an integration's URI: its ARN, or the invocation ARN around it."""
    arn = uri.partition("/functions/")[2].removesuffix("/invocations") or uri
    return arn.split(":")[6]
