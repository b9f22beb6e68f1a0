"""The simulated market: what it promises about its log, measured on the log."""

from __future__ import annotations

from collections import Counter
from datetime import datetime

import numpy as np
import pytest

from narrows.envelope import parse_event
from narrows.errors import InvalidInput
from narrows.events import Event as Stored
from narrows.market import DAY_S
from narrows.market_log import TYPES
from narrows.marking import fast_visitors
from narrows.simulator import Behaviour, Market, examination

Event = dict[str, object]
N = 30_000


@pytest.fixture(scope="module")
def market() -> Market:
    return Market(11, users=600, items=1500)


@pytest.fixture(scope="module")
def log(market: Market) -> list[Event]:
    return list(market.events(N, market.as_of - 30 * DAY_S, market.as_of))


def test_same_seed_gives_the_same_events_and_another_seed_does_not(market: Market, log: list[Event]) -> None:
    """A market is a function of its seed."""
    window = (market.as_of - 30 * DAY_S, market.as_of)
    assert list(Market(11, users=600, items=1500).events(N, *window)) == log
    assert list(Market(12, users=600, items=1500).events(N, *window)) != log


def test_exactly_as_many_events_as_asked_inside_the_window(market: Market, log: list[Event]) -> None:
    """Repeated deliveries count as deliveries, and no event is sent before the start or after the end."""
    sent = [_sent(event) for event in log]
    assert len(log) == N
    assert market.as_of - 30 * DAY_S <= min(sent)
    assert max(sent) <= market.as_of


def test_share_of_anonymous_sessions_is_the_declared_one(log: list[Event]) -> None:
    """About 35 sessions in a hundred start without a user; one in five of those who stay logs in midway."""
    users: dict[object, list[object]] = {}
    for event in sorted(_once(log), key=_sent):
        users.setdefault(event["session_id"], []).append(event.get("user_id"))
    assert all(len(set(found) - {None}) <= 1 for found in users.values())
    assert np.mean([found[0] is None for found in users.values()]) == pytest.approx(0.36, abs=0.02)
    anonymous = [found for found in users.values() if found[0] is None and len(found) > 20]
    assert 0.1 < np.mean([found[-1] is not None for found in anonymous]) < 0.3
    assert all(found == sorted(found, key=lambda user: user is not None) for found in users.values())


def test_events_say_what_features_read(market: Market, log: list[Event]) -> None:
    """Item, place and device of every event; how long a page was looked at; returns of what was bought."""
    rows = {row["item_id"]: row for row in market.catalogue()}
    bought = {(e["session_id"], e["item_id"]) for e in log if e["event_type"] == "purchase"}
    returns = [event for event in log if event["event_type"] == "refund"]
    assert 0 < len(returns) < 0.1 * len(bought)
    assert all((event["session_id"], event["item_id"]) in bought for event in returns)
    for event in log:
        properties = _taken(event).properties
        assert {"device", "location"} <= properties.keys()
        assert ("dwell_s" in properties) == (event["event_type"] == "view")
        if "item_id" in event:
            row = rows[event["item_id"]]
            assert properties["category"] == row["category"][0]
            assert (properties["brand"], properties["price"]) == (row["brand"], row["price"])


def test_three_sessions_in_ten_speak_the_old_version(log: list[Event]) -> None:
    """Every session keeps to one version of the envelope."""
    versions: dict[object, set[object]] = {}
    for event in log:
        versions.setdefault(event["session_id"], set()).add(event["schema_version"])
    assert all(len(found) == 1 for found in versions.values())
    assert np.mean([found == {1} for found in versions.values()]) == pytest.approx(0.3, abs=0.03)


def test_crawlers_say_so_and_only_look(log: list[Event]) -> None:
    """About one session in a hundred; collecting marks all of its events, and nobody else's."""
    marked = [event for event in log if _taken(event).marks]
    sessions = {event["session_id"] for event in marked}
    assert {event["event_type"] for event in marked} == {"view"}
    assert all(event in marked for event in log if event["session_id"] in sessions)
    assert len(sessions) / len({event["session_id"] for event in log}) == pytest.approx(0.01, abs=0.005)


def test_scrapers_are_faster_than_people(log: list[Event]) -> None:
    """A few sessions, always anonymous; the app's rule finds them, and nobody else."""
    fast = {visitor for visitor, _ in fast_visitors(map(_taken, log), 90.0)}
    sessions = Counter(event["session_id"] for event in log if f"s#{event['session_id']}" in fast)
    assert 1 <= len(fast) <= 8
    assert len(sessions) == len(fast)
    assert min(sessions.values()) > 150


def test_position_bias_is_the_declared_one(log: list[Event]) -> None:
    """Slates are shown in random order, so clicks by position fall exactly as examination does."""
    clicks = Counter(event["position"] for event in _once(log) if event["event_type"] == "click")
    measured = np.array([clicks[position] / clicks[1] for position in range(1, 11)])
    np.testing.assert_allclose(measured, examination(10), atol=0.06)


def test_late_purchases_come_hours_after_later_events(log: list[Event]) -> None:
    """About three purchases in ten are delivered an hour or more after they were sent."""
    newest, late, purchases = 0.0, 0, 0
    for event in log:
        newest = max(newest, _sent(event))
        if event["event_type"] == "purchase":
            purchases += 1
            late += newest - _sent(event) > 3000.0
    assert late / purchases == pytest.approx(0.3, abs=0.07)


def test_some_events_are_delivered_twice_and_unchanged(log: list[Event]) -> None:
    """Half a percent of the deliveries repeat an earlier event word for word."""
    first: dict[object, Event] = {}
    repeats = 0
    for event in log:
        known = first.setdefault(event["event_id"], event)
        repeats += known is not event
        assert known == event
    assert repeats == round(N * 0.005)


def test_clicks_reveal_true_preference(market: Market, log: list[Event]) -> None:
    """Per look, a user's truly preferred tenth is clicked at least twice as often as the rest."""
    looks: Counter[bool] = Counter()
    clicks: Counter[bool] = Counter()
    top = {user: set(market.preferred(user, 150)) for user in market.user_ids}
    weight = dict(enumerate(examination(10).tolist()))
    for event in _once(log):
        user = event.get("user_id")
        if user is None:
            continue
        for position, item in enumerate(event.get("impression", ())):
            looks[item in top[user]] += weight[position]
        if event["event_type"] == "click":
            clicks[event["item_id"] in top[user]] += 1
    rate = {preferred: clicks[preferred] / looks[preferred] for preferred in (True, False)}
    assert rate[True] > 2.0 * rate[False]


def test_what_is_viewed_next_follows_the_last_item(market: Market, log: list[Event]) -> None:
    """A successor of the last item is viewed next in a third of the cases; chance would be 1 in 375."""
    last: dict[object, int] = {}
    followed, views = 0, 0
    for event in sorted(_once(log), key=_sent):
        if event["event_type"] == "view":
            item = market.item_number(str(event["item_id"]))
            if (before := last.get(event["session_id"])) is not None:
                views += 1
                followed += item in market.successors[before]
        if event["event_type"] in {"view", "click"}:
            last[event["session_id"]] = market.item_number(str(event["item_id"]))
    assert followed / views > 1 / 3


def test_nobody_touches_what_they_cannot_buy(market: Market, log: list[Event]) -> None:
    """No event names an item out of stock or one that does not exist yet, nor one sold elsewhere only."""
    for event in log:
        named = [event["item_id"]] if "item_id" in event else list(event["impression"])
        rows = [market.item_number(str(item)) for item in named]
        assert (market.stock[rows] > 0).all()
        assert (market.created_at[rows] <= _sent(event) + 0.001).all()
        if (user := event.get("user_id")) is not None:
            assert market.sold_in[market.country[market.user_number(user)], rows].all()


def test_reaction_to_a_slate_prefers_what_the_user_likes(market: Market) -> None:
    """A slate of the best items earns at least four times the clicks of a slate of the worst."""
    rng = np.random.default_rng(5)
    liking = market.true_preference("user-00007")
    order = [i for i in np.argsort(-liking) if np.isfinite(liking[i])]
    best = [market.item_ids[i] for i in order[:10]]
    worst = [market.item_ids[i] for i in order[-10:]]
    count = {
        name: sum(
            event["event_type"] == "click"
            for _ in range(200)
            for event in market.react("user-00007", slate, rng, now=market.as_of)
        )
        for name, slate in (("best", best), ("worst", worst))
    }
    assert count["best"] > 4 * max(count["worst"], 1)
    assert best == market.preferred("user-00007", 10)


def test_reaction_starts_with_the_impression_that_was_shown(market: Market) -> None:
    """The events of one slate share its recommendation and session; the impression lists it in order."""
    slate = market.item_ids[:5]
    events = market.react(
        "user-00001",
        slate,
        np.random.default_rng(1),
        now=market.as_of,
        recommendation_id="r1",
        session_id="s1",
    )
    assert events[0]["event_type"] == "impression"
    assert events[0]["impression"] == slate
    assert {event["session_id"] for event in events} == {"s1"}
    assert {event["recommendation_id"] for event in events if "recommendation_id" in event} == {"r1"}


def test_behaviour_is_a_parameter(market: Market) -> None:
    """A market without anonymous visitors and repeats has none."""
    behaviour = Behaviour(anonymous=0.0, duplicates=0.0)
    events = list(
        Market(3, users=50, items=200, behaviour=behaviour).events(500, market.as_of - DAY_S, market.as_of)
    )
    assert all("user_id" in event for event in events)
    assert len({event["event_id"] for event in events}) == 500


@pytest.mark.parametrize("user_id", ["user-99999", "nobody", "user-x"])
def test_a_stranger_has_no_known_preference(market: Market, user_id: str) -> None:
    """Asking for the truth about somebody who does not exist names the field and the users there are."""
    with pytest.raises(InvalidInput, match=r"field 'user_id': .* this market knows user-00000 to user-00599"):
        market.preferred(user_id, 3)


@pytest.mark.parametrize(("n", "start", "end"), [(0, 0.0, 1.0), (5, 2.0, 1.0)])
def test_an_impossible_log_is_refused(market: Market, n: int, start: float, end: float) -> None:
    """No events, or a window that ends before it starts, is refused."""
    with pytest.raises(InvalidInput, match="events"):
        next(market.events(n, start, end))


def test_a_market_of_nobody_is_refused() -> None:
    """A market needs a user."""
    with pytest.raises(InvalidInput, match="users"):
        Market(1, users=0)


def test_catalogue_names_every_item_once(market: Market) -> None:
    """The catalogue has a row for each item, with the columns that the app's settings name."""
    rows = market.catalogue()
    assert [row["item_id"] for row in rows] == market.item_ids
    assert all(row["category"] and row["regions"] and row["price"] > 0 for row in rows)
    assert len({category for row in rows for category in row["category"]}) == 30


def test_worth_is_what_slates_bring_on_average(market: Market) -> None:
    """Clicks, purchases and revenue of many visits with the same slate come near to the expected ones."""
    user = market.user_ids[market.most_active()]
    visitor, generator, times = np.array([market.user_number(user)]), np.random.default_rng(5), 1500
    slate = market.preferred(user, 10)
    rows = np.array([[market.item_number(item) for item in slate]])
    expected = market.worth(visitor, rows, np.array([-1]), np.array([market.as_of]))
    events = [one for _ in range(times) for one in market.react(user, slate, generator, now=market.as_of)]
    counts = Counter(one["event_type"] for one in events)
    assert counts["click"] / times == pytest.approx(expected.clicks[0], rel=0.05)
    assert counts["purchase"] / times == pytest.approx(expected.conversions[0], rel=0.15)
    paid = sum(float(str(one["event_value"])) for one in events if one["event_type"] == "purchase")
    assert paid / times == pytest.approx(expected.revenue[0], rel=0.2)
    assert 0.1 * expected.revenue[0] < expected.margin[0] < 0.5 * expected.revenue[0]


def test_worth_of_what_cannot_be_bought_is_nothing(market: Market) -> None:
    """Empty places, what is sold out and what does not exist yet bring nothing; going on brings more."""
    visitor, nobody, now = np.array([3]), np.array([-1]), np.array([market.as_of])
    sold_out = np.flatnonzero(market.stock == 0)[:1]
    future = np.array([np.argmax(market.created_at)])
    for item, moment in ((np.array([-1]), now), (sold_out, now), (future, market.created_at[future] - 1.0)):
        worth = market.worth(visitor, item[None], nobody, moment)
        assert (worth.clicks[0], worth.margin[0]) == (0.0, 0.0)
    liked = market.item_number(market.preferred(market.user_ids[3], 1)[0])
    before = np.array([int(np.flatnonzero((market.successors == liked).any(axis=1))[0])])
    going_on, cold = (market.worth(visitor, np.array([[liked]]), last, now) for last in (before, nobody))
    assert going_on.clicks[0] > cold.clicks[0] > 0.0


def test_every_session_has_somebody_behind_it(market: Market, log: list[Event]) -> None:
    """Whoever the shop is told of is the one; of the others the market knows as well."""
    behind = market.visitors_of(N, market.as_of - 30 * DAY_S, market.as_of)
    told = {str(one["session_id"]): str(one["user_id"]) for one in log if "user_id" in one}
    assert told.items() <= behind.items()
    untold = {str(one["session_id"]) for one in log} - told.keys()
    assert untold
    assert {behind[session] for session in untold} <= set(market.user_ids)


def _taken(event: Event) -> Stored:
    """The event as collecting reads it, at the moment when it is sent."""
    return parse_event(event, types=TYPES, now=_sent(event))


def _sent(event: Event) -> float:
    return datetime.fromisoformat(str(event["sent_at"])).timestamp()


def _once(log: list[Event]) -> list[Event]:
    return list({event["event_id"]: event for event in log}.values())
