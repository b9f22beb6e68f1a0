"""authorise_search as CloudFormation invokes it, against stand-ins of the domain's security API and of S3."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import ModuleType
from typing import Any

import pytest

from tests.functions.doorways import CONTEXT, cold_start

ROLE = "arn:aws:iam::123456789012:role/narrows-recommend"
SECURITY = "/_plugins/_security/api/"


class Stand:
    """Keeps what was put under each path; paths that begin with one of `broken` answer 500."""

    def __init__(self) -> None:
        stand = self
        self.held: dict[str, Any] = {}
        self.broken: set[str] = set()

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                content = self.rfile.read(int(self.headers["content-length"]))
                if not any(self.path.startswith(path) for path in stand.broken):
                    stand.held[self.path] = json.loads(content)
                self._say(500 if any(self.path.startswith(path) for path in stand.broken) else 200)

            def do_DELETE(self) -> None:
                self._say(200 if stand.held.pop(self.path, None) else 404)

            def _say(self, status: int) -> None:
                self.send_response(status)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", "2")
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *_: Any) -> None:
                return

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def stand() -> Iterator[Stand]:
    one = Stand()
    threading.Thread(target=one.server.serve_forever, daemon=True).start()
    yield one
    one.server.shutdown()
    one.server.server_close()


@pytest.fixture
def module(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    variables = {"SEARCH_URL": stand.url, "SEARCH_NAME": "narrows-shop-dev", "AWS_REGION": "us-east-1"}
    one = cold_start("authorise_search", monkeypatch, variables)
    yield one
    one.CLIENT.close()


def asked(stand: Stand, request: str, **more: Any) -> dict[str, Any]:
    """What CloudFormation sends."""
    return {
        "RequestType": request,
        "ResponseURL": f"{stand.url}/answer",
        "StackId": "stack",
        "RequestId": "request",
        "LogicalResourceId": "SearchAccess",
        "ResourceProperties": {"ServiceToken": "arn", "Principal": ROLE, "May": "search"},
        **more,
    }


def test_a_role_is_let_in_and_out(stand: Stand, module: ModuleType) -> None:
    """It may read the app's indexes and nothing else; afterwards nothing of it is left."""
    module.handler(asked(stand, "Create"), CONTEXT)
    answer = stand.held["/answer"]
    name = answer["PhysicalResourceId"]
    assert answer["Status"] == "SUCCESS"
    assert {answer[one] for one in ("StackId", "RequestId", "LogicalResourceId")} == {
        "stack", "request", "SearchAccess",
    }  # fmt: skip
    assert stand.held[f"{SECURITY}rolesmapping/{name}"] == {"backend_roles": [ROLE]}
    (indexes,) = stand.held[f"{SECURITY}roles/{name}"]["index_permissions"]
    assert indexes["index_patterns"] == ["narrows-shop-dev-*"]
    assert not {"crud", "write", "indices_all"} & set(indexes["allowed_actions"])
    module.handler(asked(stand, "Delete", PhysicalResourceId=name), CONTEXT)
    assert set(stand.held) == {"/answer"}
    module.handler(asked(stand, "Delete", PhysicalResourceId=name), CONTEXT)
    assert stand.held["/answer"]["Status"] == "SUCCESS"


def test_another_principal_is_another_resource(stand: Stand, module: ModuleType) -> None:
    """So that CloudFormation takes the old one back when a function gets a new role."""
    module.handler(asked(stand, "Create"), CONTEXT)
    first = stand.held["/answer"]["PhysicalResourceId"]
    properties = {"Principal": f"{ROLE}-2", "May": "change"}
    module.handler(asked(stand, "Update", PhysicalResourceId=first, ResourceProperties=properties), CONTEXT)
    second = stand.held["/answer"]["PhysicalResourceId"]
    assert first != second
    allowed = stand.held[f"{SECURITY}roles/{second}"]["index_permissions"][0]["allowed_actions"]
    assert allowed == ["indices_all"]


def test_a_failure_is_told_at_once(stand: Stand, module: ModuleType) -> None:
    """With its reason, so that the stack does not wait for an hour; a wrong wish likewise."""
    stand.broken = {SECURITY}
    module.handler(asked(stand, "Create"), CONTEXT)
    assert stand.held["/answer"]["Status"] == "FAILED"
    assert "status 500" in stand.held["/answer"]["Reason"]
    stand.broken = set()
    wrong = {"Principal": ROLE, "May": "everything"}
    module.handler(asked(stand, "Create", ResourceProperties=wrong), CONTEXT)
    assert stand.held["/answer"]["Status"] == "FAILED"
    assert "choose one of search, change" in stand.held["/answer"]["Reason"]


def test_a_domain_that_is_gone_holds_no_stack_up(stand: Stand, module: ModuleType) -> None:
    """Taking back what nobody can use any more succeeds."""
    stand.broken = {SECURITY}
    module.handler(asked(stand, "Delete", PhysicalResourceId="narrows-shop-dev-search-1"), CONTEXT)
    assert stand.held["/answer"]["Status"] == "SUCCESS"
