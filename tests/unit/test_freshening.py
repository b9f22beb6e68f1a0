"""Items that are sent while the table does not answer, or not any more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from narrows.adapters.memory import MemoryItemTable, MemoryObjects, MemoryPolicyLog
from narrows.errors import StoreUnavailable
from narrows.freshening import (
    ITEMS_A_WRITE,
    SEND_AGAIN,
    ItemEntry,
    ItemVerdict,
    ItemWrite,
    RowBlock,
    freshen,
)
from narrows.item_stream import freshen_stream
from narrows.policy import Change
from narrows.settings import load_app

APP = load_app(Path(__file__).parents[2] / "apps" / "megashop")
ITEMS = [{"item_id": f"i{number}", "price": 1.0} for number in range(250)]


class HangingTable(MemoryItemTable):
    """Answers so many reads and writes, and then none; `asked` counts what it was asked."""

    def __init__(self, reads: int = 1_000, writes: int = 1_000) -> None:
        super().__init__(MemoryPolicyLog())
        self.reads, self.writes, self.asked = reads, writes, 0

    def read(self, item_ids: Sequence[str]) -> Mapping[str, ItemEntry]:
        self.asked += 1
        self.reads -= 1
        if self.reads < 0:
            raise StoreUnavailable("read items: ReadTimeoutError")
        return super().read(item_ids)

    def write(
        self, writes: Sequence[ItemWrite], block: RowBlock | None, changes: Sequence[Change], *, now: float
    ) -> None:
        self.asked += 1
        self.writes -= 1
        if self.writes < 0:
            raise StoreUnavailable("write items: ReadTimeoutError")
        super().write(writes, block, changes, now=now)


def sent(table: MemoryItemTable, items: Sequence[Any] = ITEMS) -> list[ItemVerdict]:
    return freshen(items, app=APP, table=table, published=lambda: None, encoder=None, now=9.0)


@pytest.mark.parametrize(
    ("answers", "asked", "said"),
    [
        ({"reads": 0}, 1, "read items: ReadTimeoutError"),
        ({"writes": 0}, 2, "write items: ReadTimeoutError"),
    ],
)
def test_a_table_that_hangs_is_waited_for_once(answers: dict[str, int], asked: int, said: str) -> None:
    """Four parts of a batch would wait four times; each item has its verdict all the same."""
    table = HangingTable(**answers)
    verdicts = sent(table)
    assert table.asked == asked
    assert [one.index for one in verdicts] == list(range(250))
    assert {(one.status, one.value, one.remedy) for one in verdicts} == {("rejected", said, SEND_AGAIN)}
    assert [one.item_id for one in verdicts] == [one["item_id"] for one in ITEMS]


def test_what_was_stored_before_stays_so() -> None:
    """And what is wrong with an item is told whether the table answers or not."""
    table = HangingTable(reads=1)
    bad = {"item_id": "bad", "price": -1}
    verdicts = sent(table, [*ITEMS, bad])
    assert [one.status for one in verdicts] == ["accepted"] * ITEMS_A_WRITE + ["rejected"] * 171
    assert {one.remedy for one in verdicts[ITEMS_A_WRITE:-1]} == {SEND_AGAIN}
    assert (verdicts[-1].field, table.asked) == ("price", 3)
    table.reads = 1_000
    assert [one.status for one in sent(table)] == ["unchanged"] * ITEMS_A_WRITE + ["accepted"] * 170


def test_the_next_call_asks_again() -> None:
    """A table that is back takes what it is sent."""
    table = HangingTable(reads=0)
    sent(table)
    table.reads = 1_000
    assert {one.status for one in sent(table)} == {"accepted"}


def test_a_stream_ends_at_the_first_that_is_lost() -> None:
    """In the middle of a part, and before later changes of the same items."""
    table = HangingTable(reads=1)
    later = [{"item_id": "i0", "price": 2.0}]
    outcome = freshen_stream(
        [*ITEMS, *later],
        lambda part: sent(table, part),
        catalogue=APP.catalogue,
        kept=MemoryObjects(),
        now=9.0,
    )
    assert (outcome.stored_before, outcome.refused, outcome.key) == (ITEMS_A_WRITE, 0, "")
    assert table.asked == 3
    table.reads = 1
    assert table.read(["i0"])["i0"].values == {"price": 1.0}
