"""What every items table does."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import pytest

from narrows.adapters.dynamodb import DynamoPolicyLog
from narrows.adapters.items import DynamoItemTable, entries_of, entry_of
from narrows.adapters.memory import MemoryItemTable, MemoryPolicyLog
from narrows.errors import Conflict
from narrows.freshening import ITEMS_A_WRITE, ItemEntry, ItemTable, ItemWrite, RowBlock
from narrows.policy import Change, PolicyLog
from tests.contract.tables import create_table
from tests.servers import DYNAMODB, on

NOW = 1_800_000_000.5
VALUES = {"title": "Ünder", "category": ["a", "b"], "price": 9.5, "stock": 3, "created_at": 1.25}
ENTRY = ItemEntry("i1", 4, 7, VALUES, first_at=NOW, vector=b"\x00\x01\xff\x7f", vector_version="m1")


@dataclass
class Stored:
    """A table and the log that its writes append to."""

    table: ItemTable
    log: PolicyLog

    def write(
        self, *writes: ItemWrite, block: RowBlock | None = None, changes: Sequence[Change] = ()
    ) -> None:
        self.table.write(writes, block, changes, now=NOW)


class ItemTableContract:
    """Subscribed to by every adapter."""

    def test_what_was_written_is_read(self, stored: Stored) -> None:
        """Every field comes back, also of a deleted item; what nobody wrote is absent."""
        gone = ItemEntry("i2", 5, 0, deleted=True)
        stored.write(ItemWrite(ENTRY, None), ItemWrite(gone, None))
        assert stored.table.read(["i2", "nobody", "i1", "i1"]) == {"i1": ENTRY, "i2": gone}
        assert stored.table.read([]) == {}

    def test_a_write_needs_the_version_it_replaces(self, stored: Stored) -> None:
        """A second first write, and one that replaces another version than stands there, change nothing."""
        stored.write(ItemWrite(ENTRY, None))
        newer = replace(ENTRY, version=8, values={})
        for replaces in (None, 6):
            with pytest.raises(Conflict):
                stored.write(ItemWrite(newer, replaces))
        assert stored.table.read(["i1"]) == {"i1": ENTRY}
        stored.write(ItemWrite(newer, 7))
        assert stored.table.read(["i1"]) == {"i1": newer}

    def test_rows_items_and_rules_are_stored_together_or_not_at_all(self, stored: Stored) -> None:
        """A block that somebody else took loses the items with it, and what the rules were to know."""
        sold_out = [Change("stock", "i1", False)]
        stored.write(ItemWrite(ENTRY, None), block=RowBlock(None, 5), changes=sold_out)
        assert stored.table.next_row() == 5
        other = ItemWrite(replace(ENTRY, item_id="i2"), None)
        for expected in (None, 4):
            with pytest.raises(Conflict):
                stored.write(other, block=RowBlock(expected, 9), changes=[Change("deleted", "i2", True)])
        assert stored.table.read(["i2"]) == {}
        assert [(one.kind, one.item_id, one.value) for one in stored.log.read(0)] == [("stock", "i1", False)]

    def test_a_new_table_has_given_no_row(self, stored: Stored) -> None:
        """The first writer says where rows begin."""
        assert stored.table.next_row() is None

    def test_a_full_write_fits(self, stored: Stored) -> None:
        """As many items as are written at once, with a block and changes of the rules."""
        writes = [ItemWrite(replace(ENTRY, item_id=f"i{n}", row=n), None) for n in range(ITEMS_A_WRITE)]
        changes = [Change("stock", f"i{n}", False) for n in range(ITEMS_A_WRITE)]
        stored.write(*writes, block=RowBlock(None, ITEMS_A_WRITE), changes=changes)
        assert len(stored.table.read([f"i{n}" for n in range(ITEMS_A_WRITE)])) == ITEMS_A_WRITE
        assert len(stored.log.read(0)) == ITEMS_A_WRITE


class TestMemoryItemTable(ItemTableContract):
    @pytest.fixture
    def stored(self) -> Stored:
        log = MemoryPolicyLog()
        return Stored(MemoryItemTable(log), log)


def on_dynamodb(client: Any) -> Stored:
    log = DynamoPolicyLog(client, create_table(client, "policy"), replica=2)
    return Stored(DynamoItemTable(client, create_table(client, "items"), log), log)


class TestDynamoItemTable(ItemTableContract):
    @pytest.fixture(params=DYNAMODB)
    def stored(self, request: pytest.FixtureRequest) -> Stored:
        stored = on_dynamodb(on(request).client("dynamodb"))
        assert isinstance(stored.table, DynamoItemTable)
        return stored


@pytest.mark.local
@pytest.mark.parametrize("server", ["ministack", "dynamodb_local"])
def test_of_writers_at_once_one_wins(server: str, request: pytest.FixtureRequest) -> None:
    """Eight that replace the same version: seven hear of it, and the table holds what the one wrote."""
    stored = on_dynamodb(request.getfixturevalue(server).client("dynamodb"))
    stored.write(ItemWrite(ENTRY, None))

    def attempt(version: int) -> bool:
        try:
            stored.write(ItemWrite(replace(ENTRY, version=version), 7))
        except Conflict:
            return False
        return True

    with ThreadPoolExecutor(8) as executor:
        won = [
            version
            for version, ok in zip(range(8, 16), executor.map(attempt, range(8, 16)), strict=True)
            if ok
        ]
    assert [stored.table.read(["i1"])["i1"].version] == won


def test_a_streams_record_is_the_stored_item(moto: Any) -> None:
    """Lambda gets bytes as base64; the counter of rows is no item, and neither is a removal."""
    client = moto.client("dynamodb")
    table = create_table(client, "items")
    log = DynamoPolicyLog(client, create_table(client, "policy"), replica=2)
    DynamoItemTable(client, table, log).write([ItemWrite(ENTRY, None)], RowBlock(None, 5), [], now=NOW)
    image = client.get_item(TableName=table, Key={"pk": {"S": "item#i1"}})["Item"]
    assert entry_of(image) == ENTRY
    image["e"] = {"B": "AAH/fw=="}
    counter = {"pk": {"S": "rows"}, "next": {"N": "5"}}
    records = [{"dynamodb": {"NewImage": one}} for one in (image, counter)] + [{"dynamodb": {}}]
    assert entries_of({"Records": records}) == [ENTRY]
