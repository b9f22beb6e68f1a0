"""POST /api/policy/changes and direct invocations, on moto."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

from narrows.adapters.dynamodb import DynamoPolicyLog
from narrows.errors import InvalidInput
from tests.contract.tables import create_table
from tests.functions.doorways import CONTEXT, call, cold_start, http_event
from tests.servers import Aws

PATH = "/api/policy/changes"
CHANGES = [
    {"kind": "stock", "item_id": "i1", "value": False},
    {"kind": "region", "item_id": "i2", "value": ["DE"]},
]


class Deployed:
    """The function and its table."""

    def __init__(self, aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
        client = aws.client("dynamodb")
        table = create_table(client, "policy")
        self.module: ModuleType = cold_start("update_policy", monkeypatch, {"POLICY_TABLE": table})
        self.log = DynamoPolicyLog(client, table, replica=9)


@pytest.fixture
def deployed(moto: Aws, monkeypatch: pytest.MonkeyPatch) -> Deployed:
    return Deployed(moto, monkeypatch)


def test_changes_are_answered_with_their_version(deployed: Deployed) -> None:
    """Over HTTP and by direct invocation alike, and every replica holds them."""
    assert call(deployed.module, http_event("POST", PATH, {"changes": CHANGES})) == (200, {"version": 2})
    assert deployed.module.handler({"changes": CHANGES[:1]}, CONTEXT) == {"version": 3}
    assert [(one.version, one.item_id, one.value) for one in deployed.log.read(0)] == [
        (1, "i1", False),
        (2, "i2", ("DE",)),
        (3, "i1", False),
    ]


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({}, 400, "changes"),
        ({"changes": []}, 400, "changes"),
        ({"change": CHANGES}, 400, "change"),
        ({"changes": ["i1"]}, 400, "changes[0]"),
        ({"changes": [CHANGES[0], {"kind": "stok", "item_id": "i", "value": True}]}, 400, "changes[1].kind"),
        ({"changes": [{"kind": "stock", "value": True}]}, 400, "changes[0].item_id"),
        ({"changes": [{"kind": "stock", "item_id": "", "value": True}]}, 400, "changes[0].item_id"),
        ({"changes": [{"kind": "stock", "item_id": "i", "value": "no"}]}, 400, "changes[0].value"),
        ({"changes": [{"kind": "block", "item_id": "i", "value": 1}]}, 400, "changes[0].value"),
        ({"changes": [{"kind": "region", "item_id": "i", "value": True}]}, 400, "changes[0].value"),
        ({"changes": [{"kind": "region", "item_id": "i", "value": [""]}]}, 400, "changes[0].value[0]"),
        ({"changes": [{**CHANGES[0], "until": 5}]}, 400, "changes[0].until"),
        ({"changes": CHANGES * 251}, 413, "changes"),
        ("not json", 400, "body"),
    ],
)
def test_a_wrong_change_refuses_all_of_them(deployed: Deployed, body: Any, status: int, field: str) -> None:
    """The error names the change, and nothing is appended."""
    answered, content = call(deployed.module, http_event("POST", PATH, body))
    assert (answered, content["error"]["field"]) == (status, field)
    assert list(deployed.log.read(0)) == []


def test_an_item_must_be_named(deployed: Deployed) -> None:
    """An empty id cannot be left out instead."""
    body = {"changes": [{**CHANGES[0], "item_id": ""}]}
    _, content = call(deployed.module, http_event("POST", PATH, body))
    assert content["error"]["remedy"] == "send a non-empty string"


def test_a_direct_invocation_raises_what_http_answers(deployed: Deployed) -> None:
    """A caller without HTTP sees the error's class and message."""
    with pytest.raises(InvalidInput, match="kind"):
        deployed.module.handler({"changes": [{"kind": "x", "item_id": "i", "value": True}]}, CONTEXT)
