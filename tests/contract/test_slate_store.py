"""What every store of remembered slates does."""

from __future__ import annotations

import pytest

from narrows.adapters.dynamodb import DynamoSlateStore
from narrows.adapters.memory import MemorySlateStore
from narrows.visitor import Remembered, SlateStore
from tests.contract.tables import create_table
from tests.servers import DYNAMODB, on

NOW = 1_800_000_000.0
SLATE = Remembered(("i1", "i2"), ("i1", "i2", "ü\n3"), NOW - 1.25)


class SlateStoreContract:
    """Subscribed to by every adapter."""

    def test_nothing_is_remembered_of_a_stranger(self, store: SlateStore) -> None:
        """Unknown is None, not an empty slate."""
        assert store.read("u#a", "feed", now=NOW) is None

    def test_each_surface_remembers_its_own(self, store: SlateStore) -> None:
        """What is written for a visitor's surface is read back there and only there."""
        store.write("u#a", "feed", SLATE, expires_at=NOW + 60)
        assert store.read("u#a", "feed", now=NOW) == SLATE
        assert store.read("u#a", "cart", now=NOW) is None
        assert store.read("u#b", "feed", now=NOW) is None

    def test_an_expired_slate_is_absent(self, store: SlateStore) -> None:
        """Even where the store has not deleted it yet."""
        store.write("u#a", "feed", SLATE, expires_at=NOW + 60)
        assert store.read("u#a", "feed", now=NOW + 61) is None

    def test_the_newer_slate_stays(self, store: SlateStore) -> None:
        """Replayed records of the stream do not bring an old slate back."""
        newer = Remembered(("i9",), (), NOW)
        store.write("u#a", "feed", newer, expires_at=NOW + 60)
        store.write("u#a", "feed", SLATE, expires_at=NOW + 60)
        assert store.read("u#a", "feed", now=NOW) == newer


class TestMemorySlateStore(SlateStoreContract):
    @pytest.fixture
    def store(self) -> SlateStore:
        return MemorySlateStore()


class TestDynamoSlateStore(SlateStoreContract):
    @pytest.fixture(params=DYNAMODB)
    def store(self, request: pytest.FixtureRequest) -> SlateStore:
        client = on(request).client("dynamodb")
        return DynamoSlateStore(client, create_table(client, "slates"))
