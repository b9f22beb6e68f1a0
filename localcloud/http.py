"""The HTTP API on this machine: an ASGI application that calls handlers as API Gateway's payload 2.0 does.

One process of it is one execution environment that serves one request at a time; a supervisor starts several
on one listening socket.

    python -m localcloud.processes localcloud.http --fd N --endpoint URL [--console DIR]
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import boto3
import uvicorn

from localcloud.functions import REGION, Function, Handler, enter, invoke, load
from localcloud.gateway import Answer, Api, answer_of, event_of, message
from localcloud.processes import log_to_stderr, report_ready

LOG = logging.getLogger("localcloud.http")
BODY_BYTES = 10 * 1024 * 1024
UNREAD_BYTES = 64 * 1024 * 1024
BODY_S = 15.0
TURN_S, TURN_AT_MOST_S = 0.001, 0.005
STATIC_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
}

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class Disconnected(Exception):
    """The client went away before its request was complete."""


class BodyTooLarge(Exception):
    """The body is over the size that API Gateway takes."""


@dataclass(frozen=True)
class Deployed:
    """A function and its imported handler."""

    function: Function
    handler: Handler


@dataclass
class Front:
    """The ASGI application: routes of `api` to `functions`, and files of the console for everything else."""

    api: Api
    functions: Mapping[str, Deployed]
    files: Mapping[str, Path] = field(default_factory=dict)
    body_s: float = BODY_S

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request; uvicorn calls this."""
        try:
            async with asyncio.timeout(self.body_s):
                body = await read_body(scope, receive)
        except Disconnected:
            return
        except BodyTooLarge:
            answer = message(413, "Request Entity Too Large", close=True)
        except TimeoutError:
            answer = message(408, "Request Timeout", close=True)
        else:
            answer = self.answer(scope, body)
        await _send(send, answer)

    def answer(self, scope: Scope, body: bytes) -> Answer:
        """The answer to a whole request; a handler runs here, in line, as in an environment of its own."""
        if scope["path"] == "/_local/health":
            return message(200, "ok")
        found = self.api.match(scope["method"], scope["path"])
        if found is None:
            return self._file(scope)
        route, parameters = found
        deployed = self.functions[route.function]
        event = event_of(scope, body, route=route, parameters=parameters, api=self.api)
        outcome = invoke(deployed.function, deployed.handler, event)
        if outcome.error is not None:
            LOG.error("%s: %s: %s", route.key, outcome.request_id, outcome.error)
            return message(503, "Service Unavailable") if outcome.timed_out else message(500)
        try:
            return answer_of(outcome.answer)
        except (TypeError, ValueError) as error:
            LOG.error("%s: %s: the answer cannot be sent: %s", route.key, outcome.request_id, error)
            return message(500)

    def _file(self, scope: Scope) -> Answer:
        path = self.files.get(scope["path"])
        if path is None or scope["method"] not in ("GET", "HEAD"):
            return message(404, "Not Found")
        kind = STATIC_TYPES.get(path.suffix, "application/octet-stream")
        headers = [(b"content-type", kind.encode()), (b"cache-control", b"no-cache")]
        return Answer(200, headers, path.read_bytes())


async def read_body(scope: Scope, receive: Receive) -> bytes:
    """The whole body. One too large is read to its end and dropped, so that its sender hears the answer."""
    chunks: list[bytes] = []
    size = 0
    while True:
        part = await receive()
        if part["type"] == "http.disconnect":
            raise Disconnected
        size += len(part.get("body", b""))
        if size <= BODY_BYTES:
            chunks.append(part.get("body", b""))
        elif size > UNREAD_BYTES or _announced(scope) > UNREAD_BYTES:
            raise BodyTooLarge
        if not part.get("more_body"):
            break
    if size > BODY_BYTES:
        raise BodyTooLarge
    return b"".join(chunks)


def console_files(directory: Path) -> dict[str, Path]:
    """Every file of the console by the paths that serve it; a request can reach no other file."""
    files: dict[str, Path] = {}
    for path in directory.rglob("*"):
        if path.is_file() and not path.is_symlink():
            name = path.relative_to(directory).as_posix()
            files |= {f"/{name}": path, f"/console/{name}": path}
    if "/index.html" in files:
        files |= dict.fromkeys(("/", "/console", "/console/"), files["/index.html"])
    return files


def read_front(endpoint: str, console: Path | None, body_s: float = BODY_S) -> Front:
    """The front of the HTTP API deployed at `endpoint`; sets this process's environment, imports handlers."""
    options = {"endpoint_url": endpoint, "region_name": REGION}
    api = Api.read(boto3.client("apigatewayv2", **options))
    client = boto3.client("lambda", **options)
    functions = [Function.read(client, name) for name in sorted({route.function for route in api.routes})]
    enter(functions, endpoint)
    deployed = {function.name: Deployed(function, load(function)) for function in functions}
    return Front(api, deployed, console_files(console) if console else {}, body_s)


class Server(uvicorn.Server):
    """A uvicorn server that shares its listening socket fairly with others, and says when it takes requests.

    The event loops accept all that waits, so one process could end up with every connection while another
    idles. This one waits a moment for each connection that it has before it takes the next.
    """

    def __init__(self, config: uvicorn.Config, listening: socket.socket) -> None:
        super().__init__(config)
        listening.setblocking(False)
        self._listening = listening
        self._accepting: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets or [])
        self._accepting = asyncio.create_task(self._accept())
        report_ready(pid=os.getpid())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._accepting:
            self._accepting.cancel()
        self._listening.close()
        await super().shutdown(sockets)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await _readable(loop, self._listening)
            await asyncio.sleep(min(len(self.server_state.connections) * TURN_S, TURN_AT_MOST_S))
            try:
                accepted, _ = self._listening.accept()
            except (BlockingIOError, ConnectionAbortedError):
                continue
            accepted.setblocking(False)
            accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.connect_accepted_socket(self._protocol, accepted)

    def _protocol(self) -> asyncio.Protocol:
        protocol: Callable[..., asyncio.Protocol] = self.config.http_protocol_class
        return protocol(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)


def serve(front: Front, listening: socket.socket) -> None:
    """Serve until SIGTERM; requests in progress are answered first."""
    config = uvicorn.Config(
        front,
        http="httptools",
        loop="uvloop",
        ws="none",
        lifespan="off",
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=3,
    )
    signal.signal(signal.SIGTERM, _leave)  # uvicorn hands its signal on when it is done
    Server(config, listening).run([])


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve on the listening socket that was inherited as file descriptor --fd."""
    parser = argparse.ArgumentParser(prog="localcloud.http", description=main.__doc__)
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--endpoint", required=True)
    parser.add_argument("--console", type=Path)
    parser.add_argument("--body-seconds", type=float, default=BODY_S)
    asked = parser.parse_args(arguments)
    log_to_stderr()
    enter([], asked.endpoint)
    front = read_front(asked.endpoint, asked.console, asked.body_seconds)
    serve(front, socket.socket(fileno=asked.fd))


async def _readable(loop: asyncio.AbstractEventLoop, listening: socket.socket) -> None:
    """Wait until a connection waits to be accepted."""
    waiting: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not waiting.done():
            waiting.set_result(None)

    loop.add_reader(listening, wake)
    try:
        await waiting
    finally:
        loop.remove_reader(listening)


def _leave(_signum: int, _frame: FrameType | None) -> None:
    """End as a program ends, so that what handlers still hold is flushed at exit."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(0)


def _announced(scope: Scope) -> int:
    value = dict(scope["headers"]).get(b"content-length", b"0")
    return int(value) if value.isdigit() else 0


async def _send(send: Send, answer: Answer) -> None:
    headers = [*answer.headers, (b"content-length", str(len(answer.body)).encode())]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


if __name__ == "__main__":
    main()
