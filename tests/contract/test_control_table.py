"""What every control table does."""

from __future__ import annotations

import pytest

from narrows.adapters.control import DynamoControlTable
from narrows.adapters.memory import MemoryControlTable
from narrows.control import ControlTable, Pointer
from narrows.errors import Conflict, StoreUnavailable
from tests import servers
from tests.contract.tables import create_table

FIRST = Pointer("v1", "models/v1", 1_800_000_000.25)
SECOND = Pointer("v2", "models/v2", 1_800_000_060.0, previous="v1")


class ControlTableContract:
    """Subscribed to by every adapter."""

    def test_before_the_first_promotion_there_is_no_pointer(self, table: ControlTable) -> None:
        """That is None, so that the first deploy works without a model."""
        assert table.read("model#media") is None

    def test_a_pointer_moves_from_what_stands_there(self, table: ControlTable) -> None:
        """First from nothing, then from version to version, each app's on its own."""
        table.move("model#media", FIRST, expected=None)
        table.move("model#media", SECOND, expected="v1")
        table.move("model#shopnow", FIRST, expected=None)
        assert table.read("model#media") == SECOND
        assert table.read("model#shopnow") == FIRST

    @pytest.mark.parametrize("expected", [None, "v0", "v2"])
    def test_a_move_from_something_else_is_a_conflict(
        self, table: ControlTable, expected: str | None
    ) -> None:
        """Two promotions at once do not both win."""
        table.move("model#media", FIRST, expected=None)
        with pytest.raises(Conflict):
            table.move("model#media", SECOND, expected=expected)
        assert table.read("model#media") == FIRST


class TestMemoryControlTable(ControlTableContract):
    @pytest.fixture
    def table(self) -> ControlTable:
        return MemoryControlTable()


class TestDynamoControlTable(ControlTableContract):
    @pytest.fixture(params=servers.DYNAMODB)
    def table(self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ControlTable:
        aws = servers.on(request)
        name = create_table(aws.client("dynamodb"), "control")
        servers.credentials(monkeypatch, aws.endpoint)
        return DynamoControlTable(name, region=servers.REGION, connect_timeout_s=2, read_timeout_s=20)


def test_a_server_that_is_not_there_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither reading nor moving takes a dead server for an absent pointer."""
    servers.credentials(monkeypatch, f"http://127.0.0.1:{servers.free_port()}")
    table = DynamoControlTable("control", region=servers.REGION, connect_timeout_s=0.2, read_timeout_s=0.2)
    with pytest.raises(StoreUnavailable):
        table.read("model#media")
    with pytest.raises(StoreUnavailable):
        table.move("model#media", FIRST, expected=None)
