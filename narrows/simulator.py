"""A market with known preferences: makes the events of a shop whose right answers are known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from narrows.errors import InvalidInput
from narrows.market import DAY_S, SUCCESSORS, Flags, Floats, Integers, Times, World, repeated
from narrows.market_log import (
    ADD_TO_CART,
    CLICK,
    IMPRESSION,
    PURCHASE,
    REFUND,
    VIEW,
    Envelope,
    Log,
    Visits,
    delivered,
)

_PROPOSALS = 48
_SCRAPED_PAGES = 200
_SCRAPED_EVERY_S = 0.2
_PAID = 0.45
"""Of the carts."""


@dataclass(frozen=True)
class Behaviour:
    """How visitors act.

    `anonymous`, `crawlers`, `scrapers` and `old_apps` are shares of sessions, `logins` of the anonymous ones,
    `slate_share` of steps, `follow` of views, `duplicates` of events, `refunds` and `late_purchases` of
    purchases.

    Crawlers say so in their user agent; scrapers do not, and are only faster than people. Old apps send
    events of schema version 1.
    """

    anonymous: float = 0.35
    logins: float = 0.2
    crawlers: float = 0.01
    scrapers: float = 0.001
    old_apps: float = 0.3
    slate_share: float = 0.35
    follow: float = 0.5
    duplicates: float = 0.005
    refunds: float = 0.08
    late_purchases: float = 0.3
    late_by_s: float = 6 * 3600.0
    slate_length: int = 10
    steps_per_session: float = 6.0


@dataclass(frozen=True, eq=False)
class Worth:
    """What each of n slates brings, expected: float64[n] clicks, conversions, and money in the currency."""

    clicks: Times
    conversions: Times
    revenue: Times
    margin: Times


class Market(World):
    """A world with its visitors: the log that they leave, and what one of them does with a shown slate.

    No event concerns an item before it exists, one that is not sold in the visitor's country, or one that
    is out of stock.
    """

    def __init__(
        self,
        seed: int,
        users: int = 2000,
        items: int = 5000,
        *,
        categories: int = 30,
        as_of: float = 1_700_000_000.0,
        behaviour: Behaviour | None = None,
    ) -> None:
        super().__init__(seed, users, items, categories=categories, as_of=as_of)
        self.behaviour = behaviour or Behaviour()

    def events(self, n: int, start: float, end: float) -> Iterator[dict[str, object]]:
        """Exactly `n` API events between two epoch seconds, in the order of their delivery.

        `sent_at` is when a thing happened; a late purchase or a repeated delivery comes after events that
        were sent later. The same market, n and window give the same events.
        """
        if n < 1 or not start < end:
            raise InvalidInput(
                "events", (n, start, end), "ask for one event or more and a start before the end"
            )
        sessions, visits, rng = self._opened(n, start, end)
        log = Log()
        self._walk(log, sessions, end, rng)
        self._scrape(log, sessions, rng)
        self._send_back(log, end, rng)
        repeats = round(n * self.behaviour.duplicates)
        columns = delivered(log.joined(), n - repeats, repeats, end, rng)
        yield from Envelope(self, f"{self.seed}-{int(start)}", visits).events(columns, log.all_slates())

    def visitors_of(self, n: int, start: float, end: float) -> dict[str, str]:
        """Session id -> user id for every session of `events(n, start, end)`, told to the shop or not."""
        _, visits, _ = self._opened(n, start, end)
        return dict(zip(visits.session_ids, visits.user_ids, strict=True))

    def worth(self, visitor: Integers, slates: Integers, last: Integers, time: Times) -> Worth:
        """What slates[n, k] would bring if visitor[n], who comes from item last[n], saw them at time[n].

        -1 stands for an empty place and for no last item. Expected values over all that chance decides, paid
        late or not and before returns; an item that the visitor cannot buy brings nothing.
        """
        shown = np.maximum(slates, 0)
        possible = self.available(visitor, shown, time) & (slates >= 0)
        clicks = np.where(possible, self._click_chance(visitor, last, shown), 0.0).astype(np.float64)
        bought = clicks * self._cart_chance(visitor, shown) * _PAID
        revenue = bought * self.price[shown]
        margin = revenue * self.margin[shown]
        return Worth(*(one.sum(axis=1) for one in (clicks, bought, revenue, margin)))

    def react(
        self,
        user_id: str,
        slate: Sequence[str],
        rng: np.random.Generator,
        *,
        now: float,
        surface: str = "homepage",
        recommendation_id: str | None = None,
        session_id: str | None = None,
    ) -> list[dict[str, object]]:
        """What the user does with a shown slate: impression, clicks, carts, purchases, as API events."""
        rows = np.array([[self.item_number(item) for item in slate]], dtype=np.int64)
        nobody = np.zeros(1, dtype=np.bool_)
        number = np.array([self.user_number(user_id)])
        state = _Sessions(number, np.ones(1, int), np.array([now]), np.array([-1]), nobody, nobody)
        log = Log()
        self._show(log, np.array([0]), state, rows, rng)
        stamp = f"{rng.integers(2**62):x}"
        visits = Visits.of_one(
            session_id or f"session-{stamp}", user_id, now, self.country_of(state.visitor)[0]
        )
        envelope = Envelope(self, stamp, visits, surface=surface, recommendation_id=recommendation_id)
        return list(envelope.events(log.joined(), rows))

    def _opened(self, n: int, start: float, end: float) -> tuple[_Sessions, Visits, np.random.Generator]:
        """The sessions of a window, and the generator that decides what happens in them."""
        rng = np.random.default_rng([self.seed, 1, n, int(start), int(end)])
        return *self._open_sessions(n, start, end, rng), rng

    def _open_sessions(
        self, n: int, start: float, end: float, rng: np.random.Generator
    ) -> tuple[_Sessions, Visits]:
        """More sessions than needed, spread over the window with a peak at noon, and what is sent of them."""
        acts = self.behaviour
        count = int(n / acts.steps_per_session) + 50
        moment = start + (end - start) * rng.random(count)
        at_noon = np.clip(0.5 + 0.18 * rng.normal(size=count), 0.0, 0.999)
        clock = (np.floor(moment / DAY_S) + at_noon) * DAY_S
        clock = np.where((clock < start) | (clock > end - 3600.0), moment, clock)
        length = rng.geometric(1.0 / acts.steps_per_session, count)
        visitor = self.visitors(count, rng)
        crawls, scrapes = rng.random(count) < acts.crawlers, rng.random(count) < acts.scrapers
        known = (rng.random(count) >= acts.anonymous) & ~crawls & ~scrapes
        logs_in = (rng.random(count) < acts.logins) & ~crawls & ~scrapes
        login = np.where(logs_in, clock + rng.exponential(180.0, count), np.inf)
        visits = Visits(
            session_ids=[f"session-{self.seed}-{int(start)}-{s:06d}" for s in range(count)],
            user_ids=[self.user_ids[v] for v in visitor],
            known_from=np.where(known, -np.inf, login),
            device=rng.choice(3, count, p=[0.55, 0.37, 0.08]),
            location=self.country_of(visitor),
            old_app=(rng.random(count) < acts.old_apps) & ~crawls,
            crawls=crawls,
        )
        return _Sessions(visitor, length, clock, np.full(count, -1), crawls, scrapes), visits

    def _walk(self, log: Log, sessions: _Sessions, end: float, rng: np.random.Generator) -> None:
        for step in range(int(sessions.length.max())):
            walking = (sessions.length > step) & (sessions.clock < end) & ~sessions.scrapes
            active = np.flatnonzero(walking)
            if not len(active):
                return
            shown = (rng.random(len(active)) < self.behaviour.slate_share) & ~sessions.crawls[active]
            self._browse(log, sessions, active[~shown], rng)
            looking = active[shown]
            state = sessions.of(looking)
            sessions.last[looking] = self._show(log, looking, state, self._logging_policy(state, rng), rng)
            sessions.clock[active] += 60.0 + rng.exponential(45.0, len(active))

    def _browse(self, log: Log, sessions: _Sessions, index: Integers, rng: np.random.Generator) -> None:
        """Views that no slate caused: some follow the last item, the others follow taste."""
        if not len(index):
            return
        state = sessions.of(index)
        follows = self.successors[np.maximum(state.last, 0)]
        possible = self.available(state.visitor, follows, state.clock) & (state.last >= 0)[:, None]
        liking = 0.5 * (self.utility(state.visitor, follows) - np.arange(SUCCESSORS))
        followed = _draw(follows, np.where(possible, liking, -np.inf), rng)
        goes_on = possible.any(axis=1) & (rng.random(len(index)) < self.behaviour.follow)
        viewed = np.where(goes_on, followed, self._wanted(state, rng))
        log.add(VIEW, index, state.clock, item=viewed, dwell=rng.lognormal(3.0, 0.8, len(index)))
        sessions.last[index] = viewed
        people = ~state.crawls
        self._buy(log, index[people], state.visitor[people], viewed[people], state.clock[people], rng)

    def _wanted(self, state: _Sessions, rng: np.random.Generator) -> Integers:
        """The item that each visitor picks out of those that come to its mind."""
        proposals = self._in_mind(state, rng)
        liking = self.utility(state.visitor, proposals)
        liking[~self.available(state.visitor, proposals, state.clock)] = -np.inf
        return _draw(proposals, liking, rng)

    def _logging_policy(self, state: _Sessions, rng: np.random.Generator) -> Integers:
        """Slates of the policy that made the log: it guesses tastes badly, and shows them in random order."""
        proposals = self._in_mind(state, rng)
        score = 0.5 * self.quality[proposals] + 0.5 * self.utility(state.visitor, proposals)
        score = score + rng.gumbel(size=proposals.shape)
        score[~self.available(state.visitor, proposals, state.clock) | repeated(proposals)] = -np.inf
        best = np.argsort(-score, axis=1)[:, : self.behaviour.slate_length]
        return rng.permuted(np.take_along_axis(proposals, best, axis=1), axis=1)

    def _show(
        self, log: Log, index: Integers, state: _Sessions, slates: Integers, rng: np.random.Generator
    ) -> Integers:
        """Show slates: who looks at what, clicks, buys; answers with each session's last item."""
        number = log.add_slates(slates)
        log.add(IMPRESSION, index, state.clock, slate=number)
        clicks = rng.random(slates.shape) < self._click_chance(state.visitor, state.last, slates)
        who, position = np.nonzero(clicks)
        item, time = slates[who, position], state.clock[who] + 2.0 + 4.0 * position
        log.add(CLICK, index[who], time, item=item, slate=number[who], position=position)
        self._buy(log, index[who], state.visitor[who], item, time, rng)
        last = state.last.copy()
        last[who] = item
        return last

    def _buy(
        self,
        log: Log,
        index: Integers,
        visitor: Integers,
        item: Integers,
        time: Times,
        rng: np.random.Generator,
    ) -> None:
        """Some items go to the cart, some of those are paid, and some payments arrive late."""
        carts = np.flatnonzero(rng.random(len(item)) < self._cart_chance(visitor, item[:, None])[:, 0])
        in_cart = time[carts] + 15.0 + rng.exponential(10.0, len(carts))
        log.add(ADD_TO_CART, index[carts], in_cart, item=item[carts])
        bought = np.flatnonzero(rng.random(len(carts)) < _PAID)
        paid = in_cart[bought] + 60.0 + rng.exponential(120.0, len(bought))
        late = rng.random(len(bought)) < self.behaviour.late_purchases
        delay = np.where(late, 3600.0 + rng.exponential(self.behaviour.late_by_s, len(bought)), 0.0)
        log.add(PURCHASE, index[carts][bought], paid, item=item[carts][bought], arrival=paid + delay)

    def _scrape(self, log: Log, sessions: _Sessions, rng: np.random.Generator) -> None:
        """Sessions that open page after page, faster than a person can."""
        scrapers = np.flatnonzero(sessions.scrapes)
        index = np.repeat(scrapers, _SCRAPED_PAGES)
        page = np.tile(np.arange(_SCRAPED_PAGES), len(scrapers))
        time = sessions.clock[index] + _SCRAPED_EVERY_S * page
        items = self.famous((len(index), _PROPOSALS), rng)
        possible = self.available(sessions.visitor[index], items, time)
        seen = np.take_along_axis(items, possible.argmax(axis=1)[:, None], axis=1)[:, 0]
        log.add(VIEW, index, time, item=seen, dwell=np.full(len(index), _SCRAPED_EVERY_S))

    def _send_back(self, log: Log, end: float, rng: np.random.Generator) -> None:
        """Some of what was bought comes back within two weeks, if the log goes on for so long."""
        session, time, item = log.of_kind(PURCHASE)
        back = time + DAY_S * rng.uniform(1.0, 14.0, len(time))
        returned = (rng.random(len(time)) < self.behaviour.refunds) & (back < end)
        log.add(REFUND, session[returned], back[returned], item=item[returned])

    def _in_mind(self, state: _Sessions, rng: np.random.Generator) -> Integers:
        """Half famous items, half of the categories that the visitor likes."""
        famous = self.famous((len(state.visitor), _PROPOSALS // 2), rng)
        return np.concatenate([famous, self.liked(state.visitor, _PROPOSALS // 2, rng)], axis=1)

    def _click_chance(self, visitor: Integers, last: Integers, slates: Integers) -> Floats:
        """Of each place of slates[n, k]: looked at, and liked enough."""
        attraction = self.utility(visitor, slates) + 1.5 * self._continues(last, slates)
        chance: Floats = examination(slates.shape[1]) * _sigmoid(1.2 * attraction - 3.4)
        return chance

    def _cart_chance(self, visitor: Integers, items: Integers) -> Floats:
        """Of items[n, k] that visitor[n] looks at."""
        chance: Floats = 0.2 * _sigmoid(self.utility(visitor, items) - 1.0)
        return chance

    def _continues(self, last: Integers, items: Integers) -> Flags:
        follows = self.successors[np.maximum(last, 0)]
        found = (items[:, :, None] == follows[:, None, :]).any(axis=2)
        return np.asarray(found & (last >= 0)[:, None], dtype=np.bool_)


def examination(length: int) -> Floats:
    """The chance that each position of a slate is looked at, first position first: the position bias."""
    return np.asarray((1.0 + np.arange(length)) ** -0.6, dtype=np.float32)


@dataclass
class _Sessions:
    """The state of many sessions, advanced together; last is -1 before the first item."""

    visitor: Integers
    length: Integers
    clock: Times
    last: Integers
    crawls: Flags
    scrapes: Flags

    def of(self, index: Integers) -> _Sessions:
        flags = self.crawls[index], self.scrapes[index]
        return _Sessions(self.visitor[index], self.length[index], self.clock[index], self.last[index], *flags)


def _draw(items: Integers, score: np.ndarray, rng: np.random.Generator) -> Integers:
    """One item of each row, with odds by the exponential of its score."""
    best = (score + rng.gumbel(size=items.shape)).argmax(axis=1)
    return np.asarray(np.take_along_axis(items, best[:, None], axis=1)[:, 0])


def _sigmoid(values: np.ndarray) -> Floats:
    return np.asarray(1.0 / (1.0 + np.exp(-values)), dtype=np.float32)
