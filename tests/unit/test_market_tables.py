"""The tables that a shop has of a simulated market: whole, without programs, and only what it was told."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from pathlib import Path

import pytest

from narrows.market import COUNTRIES
from narrows.market_tables import MarketPlan, MarketTables, tables_of
from narrows.settings import load_app

APPS = Path(__file__).parents[2] / "apps"
PLAN = MarketPlan(events=4000)


@pytest.fixture(scope="module")
def tables() -> MarketTables:
    """What ShopNow has of it."""
    return tables_of(PLAN, PLAN.market(), load_app(APPS / "shopnow"))


def test_nothing_is_lost_without_a_reason(tables: MarketTables) -> None:
    """Every event is a row or counted among those left out."""
    rows = len(tables.interactions["item_id"])
    assert rows + sum(tables.left_out.values()) == PLAN.events
    assert {len(column) for column in tables.interactions.values()} == {rows}
    assert tables.left_out["'impression' names no single item"] > 0
    assert tables.left_out["sent by programs"] > 0


def test_the_shop_knows_only_what_it_was_told(tables: MarketTables) -> None:
    """Nothing after its look, and no purchase that it hears of later."""
    assert max(tables.interactions["time"]) <= PLAN.looked_at
    happened = {
        str(event["event_id"])
        for event in PLAN.market().events(*PLAN.window)
        if datetime.fromisoformat(str(event["sent_at"])).timestamp() <= PLAN.looked_at
    }
    kept = len(tables.interactions["item_id"])
    not_late = {name: count for name, count in tables.left_out.items() if name != "after the shop's look"}
    assert kept + sum(not_late.values()) - tables.left_out["delivered twice"] >= len(happened)
    assert tables.left_out["told too late"] >= 1


def test_a_session_that_logs_in_is_its_account(tables: MarketTables) -> None:
    """Others are visitors of their own; a third of the sessions or so has no account."""
    visitors = Counter(tables.interactions["user_id"])
    sessions = {name for name in visitors if name.startswith("s#")}
    assert sessions
    assert all(name in set(PLAN.market().user_ids) for name in visitors if name not in sessions)
    share = sum(visitors[name] for name in sessions) / sum(visitors.values())
    assert 0.2 < share < 0.4


def test_a_visitors_segment_is_where_they_are(tables: MarketTables) -> None:
    """As requests name it: one of the market's countries; what is paid elsewhere does not tell."""
    told = Counter(tables.interactions["segment"])
    assert 0 < told.pop(None) < told.total()
    assert set(told) == set(COUNTRIES)
    assert min(told.values()) > 0.05 * told.total()


def test_worth_and_columns_are_the_apps() -> None:
    """Labels by the app's events; events that it does not have are counted; its own column names."""
    media = tables_of(PLAN, PLAN.market(), load_app(APPS / "media"))
    assert set(media.interactions["weight"]) == {1.0}
    assert media.left_out["media has no event 'purchase'"] > 0
    assert {"item_id", "genres", "created_at", "title"} <= set(media.items)
    assert "price" not in media.items
    assert "seller" not in media.items


def test_several_sellers_have_the_offers(tables: MarketTables) -> None:
    """Twenty offers a seller, or a few more."""
    offers = Counter(tables.items["seller"])
    assert len(offers) == len(tables.items["item_id"]) // 20
    assert 15 <= min(offers.values()) <= max(offers.values()) <= 25


def test_the_same_plan_gives_the_same_tables(tables: MarketTables) -> None:
    """Another seed gives another market."""
    again = tables_of(PLAN, PLAN.market(), load_app(APPS / "shopnow"))
    assert again.interactions == tables.interactions
    other = MarketPlan(seed=8, events=4000)
    assert tables_of(other, other.market(), load_app(APPS / "shopnow")).items != tables.items
