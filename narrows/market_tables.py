"""What a shop would have written down of a simulated market by some moment: tables to train on.

Written as a shop knows it: programs are left out, a visitor without an account is its session, and what had
not arrived by that moment is not there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from narrows.events import Event, session_key
from narrows.market import DAY_S
from narrows.marking import fast_visitors, marks
from narrows.settings import App, Catalogue
from narrows.simulator import Market

Sent = Mapping[str, Any]
COLUMNS = ("user_id", "item_id", "time", "event_type", "value", "weight", "segment")


@dataclass(frozen=True)
class MarketPlan:
    """Which market, and how much of it; the same plan gives the same tables.

    `events` happen in `days`. The shop looks `late_s` before the end: what is paid until then and told later,
    as some purchases are, is missing.
    """

    seed: int = 7
    events: int = 100_000
    days: float = 20.0
    late_s: float = 12 * 3600.0
    as_of: float = 1_700_000_000.0

    def market(self) -> Market:
        """A visitor with an account for each 50 events, an offer for each 20."""
        return Market(
            self.seed, users=max(50, self.events // 50), items=max(200, self.events // 20), as_of=self.as_of
        )

    @property
    def window(self) -> tuple[int, float, float]:
        """The arguments of `Market.events`."""
        return self.events, self.as_of - self.days * DAY_S, self.as_of - 60.0

    @property
    def looked_at(self) -> float:
        """The moment of the shop's look, in epoch seconds."""
        return self.as_of - 60.0 - self.late_s


@dataclass(frozen=True, eq=False)
class MarketTables:
    """`interactions` and `items` by column; `left_out`: why events are not among them, and how many."""

    interactions: Mapping[str, Sequence[Any]]
    items: Mapping[str, Sequence[Any]]
    left_out: Mapping[str, int]


def tables_of(plan: MarketPlan, market: Market, app: App) -> MarketTables:
    """The tables of the plan's market, under the names of the app's columns and the worth of its events."""
    left_out: Counter[str] = Counter()
    kept = list(_of_people(_arrived(market.events(*plan.window), plan.looked_at, left_out), app, left_out))
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    accounts = {one["session_id"]: one["user_id"] for one in kept if "user_id" in one}
    for one in kept:
        if one["event_type"] not in app.events:
            left_out[f"{app.name} has no event '{one['event_type']}'"] += 1
        elif "item_id" not in one:
            left_out[f"'{one['event_type']}' names no single item"] += 1
        else:
            session = one["session_id"]
            row = (
                accounts.get(session) or session_key(session),
                one["item_id"],
                _time(one),
                one["event_type"],
                one.get("event_value"),
                app.events[one["event_type"]].label,
                one.get("context", {}).get("location"),
            )
            for name, value in zip(COLUMNS, row, strict=True):
                columns[name].append(value)
    return MarketTables(columns, _items(market, app.catalogue), dict(left_out))


def _arrived(events: Iterable[Sent], moment: float, left_out: Counter[str]) -> list[Sent]:
    """What had been delivered when the first event after the moment came; each once."""
    found: dict[str, Sent] = {}
    over = False
    for one in events:
        late = _time(one) <= moment
        over = over or not late
        if over:
            left_out["told too late" if late else "after the shop's look"] += 1
        elif one["event_id"] in found:
            left_out["delivered twice"] += 1
        else:
            found[one["event_id"]] = one
    return list(found.values())


def _of_people(events: Sequence[Sent], app: App, left_out: Counter[str]) -> Iterable[Sent]:
    """Without crawlers, which say so, and scrapers, which are too fast."""
    parsed = [_event(one) for one in events]
    fast = {visitor for visitor, _ in fast_visitors(parsed, app.bots.events_per_minute)}
    for one, event in zip(events, parsed, strict=True):
        if event.visitor_key in fast or marks(one.get("context", {}).get("user_agent"), None):
            left_out["sent by programs"] += 1
        else:
            yield one


def _event(sent: Sent) -> Event:
    time = _time(sent)
    return Event(
        sent["event_id"],
        sent["event_type"],
        time,
        time,
        user_id=sent.get("user_id"),
        session_id=sent["session_id"],
    )


def _time(sent: Sent) -> float:
    return datetime.fromisoformat(sent["sent_at"]).timestamp()


def _items(market: Market, catalogue: Catalogue) -> dict[str, list[Any]]:
    """The offers by column, as the app calls them; what it has no name for is left out."""
    rows = market.catalogue()
    names = {
        "item_id": "item_id",
        "category": catalogue.categories,
        "brand": catalogue.brand,
        "seller": catalogue.seller,
        "price": catalogue.price,
        "created_at": catalogue.time,
        "regions": catalogue.regions,
        "stock": catalogue.stock,
        "title": catalogue.text[0] if catalogue.text else "title",
        "description": "description",
        **{name: name for name in catalogue.attributes if name in rows[0]},
    }
    return {name: [row[part] for row in rows] for part, name in names.items() if name}
