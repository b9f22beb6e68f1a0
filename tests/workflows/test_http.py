"""The HTTP front over real sockets: payload 2.0 in, answers out, and whatever a stranger may send."""

import base64
import http.client
import json
import os
import socket
import statistics
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from plain_aws import ROOT, Aws, plain_aws, wait_for

from localcloud.functions import CREDENTIALS, REGION
from localcloud.gateway import Api, Route
from localcloud.processes import end, ready_line, spawn

HERE = Path(__file__).parent
ROUTES = {
    "POST /api/echo/{surface}": "echo",
    "GET /api/echo/{surface}": "echo",
    "GET /api/shaped/{kind}": "shaped",
    "GET /api/failing": "failing",
    "GET /api/slow": "slow",
}


@dataclass
class Served:
    """A running front."""

    port: int
    process: subprocess.Popen[bytes]

    def request(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Any:
        """One request over a connection of its own; the answer with its body as `.content`."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        try:
            connection.request(
                method, path, body, {name.replace("_", "-"): text for name, text in headers.items()}
            )
            answer = connection.getresponse()
            answer.content = answer.read()  # type: ignore[attr-defined]
            return answer
        finally:
            connection.close()

    def raw(self, sent: bytes, *, more_to_come: bool = False) -> bytes:
        """Everything that comes back for these bytes until the server closes the connection."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            connection.sendall(sent)
            if not more_to_come:
                connection.shutdown(socket.SHUT_WR)
            received = b""
            while part := connection.recv(65536):
                received += part
        return received

    def event(self, method: str, path: str, body: bytes | None = None, **headers: str) -> dict[str, Any]:
        """The event that a handler saw for a request."""
        answer = self.request(method, path, body, **headers)
        assert answer.status == 200, answer.content
        return dict(json.loads(answer.content)["event"])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    directory = tmp_path_factory.mktemp("http")
    with plain_aws(directory / "aws") as aws:
        _deploy(aws)
        console = directory / "console"
        (console / "icons").mkdir(parents=True)
        (console / "index.html").write_text("<title>Narrows</title>")
        (console / "app.js").write_text("let a = 1;")
        (console / "icons" / "a.svg").write_text("<svg/>")
        (directory / "secret.txt").write_text("secret")
        (console / "way-out").symlink_to(directory / "secret.txt")
        with socket.create_server(("127.0.0.1", 0)) as listening:
            listening.set_inheritable(True)
            log = directory / "http.log"
            arguments = ["--fd", str(listening.fileno()), "--endpoint", aws.endpoint]
            arguments += ["--console", str(console), "--body-seconds", "1.0"]
            environment = os.environ | CREDENTIALS | {"PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}"}
            keep = [listening.fileno()]
            process = spawn(
                "localcloud.http", arguments, log=log, environment=environment, cwd=ROOT, keep=keep
            )
            wait_for(lambda: process.poll() is not None or ready_line(log), 30, "the front")
            assert process.poll() is None, log.read_text()
            yield Served(listening.getsockname()[1], process)
            end(process)


def _deploy(aws: Aws) -> None:
    gateway = aws.client("apigatewayv2")
    api = gateway.create_api(Name="api", ProtocolType="HTTP")["ApiId"]
    gateway.create_stage(ApiId=api, StageName="$default", AutoDeploy=True)
    integrations = {}
    for name in dict.fromkeys(ROUTES.values()):
        aws.function(name, f"http_handlers.{name}", {"APP": "test"}, timeout=1 if name == "slow" else 10)
        arn = f"arn:aws:lambda:{REGION}:{aws.account}:function:{name}"
        made = gateway.create_integration(
            ApiId=api, IntegrationType="AWS_PROXY", IntegrationUri=arn, PayloadFormatVersion="2.0"
        )
        integrations[name] = made["IntegrationId"]
    for key, name in ROUTES.items():
        gateway.create_route(ApiId=api, RouteKey=key, Target=f"integrations/{integrations[name]}")


pytestmark = pytest.mark.local


def test_an_event_has_the_shape_of_payload_version_2(served: Served) -> None:
    """Every documented field with its value; header names in lower case; what is absent is absent."""
    event = served.event(
        "POST",
        "/api/echo/feed%20x?a=1&a=2&b=",
        b'{"n": 1}',
        X_Custom="Yes",
        Cookie="k=v; l=w",
        User_Agent="test",
    )
    context = event.pop("requestContext")
    headers = event.pop("headers")
    assert event == {
        "version": "2.0",
        "routeKey": "POST /api/echo/{surface}",
        "rawPath": "/api/echo/feed x",
        "rawQueryString": "a=1&a=2&b=",
        "cookies": ["k=v", "l=w"],
        "queryStringParameters": {"a": "1,2", "b": ""},
        "pathParameters": {"surface": "feed x"},
        "body": '{"n": 1}',
        "isBase64Encoded": False,
    }
    assert headers["x-custom"] == "Yes"
    assert "cookie" not in headers
    assert context["http"] == {
        "method": "POST",
        "path": "/api/echo/feed x",
        "protocol": "HTTP/1.1",
        "sourceIp": "127.0.0.1",
        "userAgent": "test",
    }
    assert context["stage"] == "$default"
    assert context["routeKey"] == "POST /api/echo/{surface}"
    assert abs(context["timeEpoch"] / 1000 - time.time()) < 60
    assert len(context["requestId"]) > 10


def test_a_request_without_extras_has_no_empty_fields(served: Served) -> None:
    """No query, cookies or body: the keys are missing, as they are in AWS."""
    event = served.event("GET", "/api/echo/feed")
    assert not {"queryStringParameters", "cookies", "body"} & event.keys()


def test_values_of_a_repeated_header_are_joined(served: Served) -> None:
    """Two headers of one name become one with a comma."""
    sent = b"GET /api/echo/x HTTP/1.1\r\nHost: h\r\nX-A: 1\r\nx-a: 2\r\nConnection: close\r\n\r\n"
    event = json.loads(served.raw(sent).partition(b"\r\n\r\n")[2])["event"]
    assert event["headers"]["x-a"] == "1,2"


def test_a_body_that_is_not_text_arrives_as_base64(served: Served) -> None:
    """Bytes that are no UTF-8 survive the way to the handler."""
    event = served.event("POST", "/api/echo/x", b"\xff\x00\xfe")
    assert event["isBase64Encoded"] is True
    assert base64.b64decode(event["body"]) == b"\xff\x00\xfe"


def test_a_full_answer_keeps_status_headers_and_cookies(served: Served) -> None:
    """Status, headers in any case, two cookies as two headers, and the body."""
    answer = served.request("GET", "/api/shaped/full")
    assert (answer.status, answer.content) == (201, b"made")
    assert answer.getheader("x-one") == "1"
    assert answer.getheader("content-type") == "text/plain"
    assert answer.headers.get_all("set-cookie") == ["a=1; Secure", "b=2"]


def test_a_bare_dictionary_is_a_json_answer(served: Served) -> None:
    """Without a statusCode the answer itself is the body, 200 and JSON."""
    answer = served.request("GET", "/api/echo/x")
    assert answer.status == 200
    assert answer.getheader("content-type") == "application/json"


def test_binary_and_empty_answers(served: Served) -> None:
    """A base64 body is decoded; 204 has none."""
    assert served.request("GET", "/api/shaped/binary").content == b"\x00\x01\xff"
    answer = served.request("GET", "/api/shaped/empty")
    assert (answer.status, answer.content) == (204, b"")


@pytest.mark.parametrize(
    "path", ["failing", "shaped/split", "shaped/strange", "shaped/object", "shaped/unjson"]
)
def test_a_broken_handler_is_a_500_without_details(served: Served, path: str) -> None:
    """Exceptions and answers that cannot be sent look alike from outside; the next request is served."""
    answer = served.request("GET", f"/api/{path}")
    assert answer.status == 500
    assert json.loads(answer.content) == {"message": "Internal Server Error"}
    assert answer.getheader("set-cookie") is None
    assert served.request("GET", "/api/echo/x").status == 200


def test_a_handler_past_its_timeout_is_a_503(served: Served) -> None:
    """A function of one second that sleeps is stopped; the process serves on."""
    began = time.monotonic()
    assert served.request("GET", "/api/slow").status == 503
    assert 0.9 < time.monotonic() - began < 3
    assert served.request("GET", "/_local/health").status == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/nothing"),
        ("POST", "/"),
        ("DELETE", "/api/echo/x"),
        ("GET", "/api/echo/"),
        ("GET", "/api/echo/x/y"),
        ("HEAD", "/api/echo/x"),
        ("GET", "//"),
    ],
)
def test_an_unknown_route_is_a_404(served: Served, method: str, path: str) -> None:
    """What is not deployed is not found, in API Gateway's words."""
    answer = served.request(method, path)
    assert answer.status == 404
    assert answer.content == (b"" if method == "HEAD" else b'{"message": "Not Found"}')


def test_a_stray_percent_sign_is_a_value_like_any_other(served: Served) -> None:
    """A path that is not quite percent-encoded reaches its handler as it was sent."""
    assert served.event("GET", "/api/echo/100%")["pathParameters"] == {"surface": "100%"}


@pytest.mark.parametrize(
    ("path", "kind", "content"),
    [
        ("/", "text/html", b"<title>"),
        ("/console/", "text/html", b"<title>"),
        ("/app.js", "text/javascript", b"let a"),
        ("/console/app.js", "text/javascript", b"let a"),
        ("/console/icons/a.svg", "image/svg+xml", b"<svg/>"),
    ],
)
def test_the_console_is_served(served: Served, path: str, kind: str, content: bytes) -> None:
    """The page stands at the root and under /console/, with the types that browsers insist on."""
    answer = served.request("GET", path)
    assert answer.status == 200
    assert answer.getheader("content-type").startswith(kind)
    assert answer.content.startswith(content)
    head = served.request("HEAD", path)
    assert (head.status, head.content) == (200, b"")
    assert head.getheader("content-length") == answer.getheader("content-length")


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.txt",
        "/console/../secret.txt",
        "/console/../../secret.txt",
        "/console/%2e%2e/secret.txt",
        "/console/..%2fsecret.txt",
        "/console/%252e%252e/secret.txt",
        "/console/..\\secret.txt",
        "/console//etc/passwd",
        "//etc/passwd",
        "/console/way-out",
        "/console/app.js%00.txt",
        "/console/icons",
        "/console/" + "a" * 5000,
    ],
)
def test_no_path_leaves_the_console(served: Served, path: str) -> None:
    """Dots, encoded dots, backslashes, links, NUL and long names all end in 404."""
    received = served.raw(f"GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode())
    assert received.startswith(b"HTTP/1.1 404 ")
    assert b"secret" not in received.partition(b"\r\n\r\n")[2]


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GARBAGE\r\n\r\n",
        b"GET /\x00 HTTP/1.1\r\nHost: h\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: h\r\n\r\n",
        b"POST /api/echo/x HTTP/1.1\r\nHost: h\r\nContent-Length: -5\r\n\r\n",
        b"POST /api/echo/x HTTP/1.1\r\nHost: h\r\nContent-Length: many\r\n\r\nabc",
        b"POST /api/echo/x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_malformed_requests_are_refused_and_harm_nobody(served: Served, sent: bytes) -> None:
    """No answer but 400 comes back for bytes that are no HTTP, and the next request is served."""
    received = served.raw(sent)
    assert received == b"" or received.startswith(b"HTTP/1.1 400 ")
    assert served.request("GET", "/_local/health").status == 200


def test_a_body_at_the_limit_passes_and_one_byte_more_does_not(served: Served) -> None:
    """10 MB is API Gateway's limit; what is over it is answered 413, not with a broken connection."""
    limit = 10 * 1024 * 1024
    assert served.request("POST", "/api/echo/x", b"a" * limit).status == 200
    answer = served.request("POST", "/api/echo/x", b"a" * (limit + 1))
    assert answer.status == 413
    assert json.loads(answer.content) == {"message": "Request Entity Too Large"}


def test_a_chunked_body_over_the_limit_is_refused_too(served: Served) -> None:
    """A body that does not announce its size is counted while it is read."""
    piece = b"100000\r\n" + b"a" * 0x100000 + b"\r\n"
    head = b"POST /api/echo/x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert served.raw(head + piece * 11 + b"0\r\n\r\n").startswith(b"HTTP/1.1 413 ")


def test_a_body_that_never_ends_is_given_up_on(served: Served) -> None:
    """A client that announces 100 bytes and sends 3 hears 408 after a second; others are served meanwhile."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as connection:
        connection.sendall(b"POST /api/echo/x HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\nabc")
        began = time.monotonic()
        assert served.request("GET", "/api/echo/x").status == 200
        assert time.monotonic() - began < 0.5
        received = b""
        while part := connection.recv(65536):
            received += part
    assert received.startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - began < 5


def test_a_client_that_leaves_in_its_body_is_forgotten(served: Served) -> None:
    """A connection reset in mid-body costs nothing."""
    with socket.create_connection(("127.0.0.1", served.port), timeout=10) as connection:
        connection.sendall(b"POST /api/echo/x HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\nabc")
    assert served.request("GET", "/api/echo/x").status == 200


def test_pipelined_requests_are_answered_in_order(served: Served) -> None:
    """Three requests in one segment get three answers, in order."""
    one = b"GET /api/echo/%d HTTP/1.1\r\nHost: h\r\n\r\n"
    last = b"GET /api/echo/3 HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    received = served.raw(one % 1 + one % 2 + last, more_to_come=True)
    places = [received.index(b'"surface": "%d"' % n) for n in (1, 2, 3)]
    assert places == sorted(places)


def test_the_front_adds_little(served: Served) -> None:
    """A trivial handler answers in under 5 ms at the median, over a connection that is kept."""
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    took = []
    for _ in range(300):
        began = time.perf_counter()
        connection.request("GET", "/api/echo/x")
        connection.getresponse().read()
        took.append(time.perf_counter() - began)
    connection.close()
    assert statistics.median(took) < 0.005


def test_the_most_specific_route_wins() -> None:
    """Static before parameter before greedy before $default, and a method before ANY."""
    keys = ["$default", "ANY /a/{rest+}", "GET /a/{id}", "GET /a/b", "ANY /a/b", "GET /a/{id}/c"]
    api = Api(tuple(Route(key, "f") for key in keys))

    def matched(method: str, path: str) -> tuple[str, dict[str, str]]:
        found = api.match(method, path)
        assert found is not None
        return found[0].key, found[1]

    assert matched("GET", "/a/b") == ("GET /a/b", {})
    assert matched("POST", "/a/b") == ("ANY /a/b", {})
    assert matched("GET", "/a/x") == ("GET /a/{id}", {"id": "x"})
    assert matched("GET", "/a/x/c") == ("GET /a/{id}/c", {"id": "x"})
    assert matched("GET", "/a/x/y") == ("ANY /a/{rest+}", {"rest": "x/y"})
    assert matched("GET", "/z") == ("$default", {})
