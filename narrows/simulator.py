"""A market with known preferences: makes the events of a shop whose right answers are known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from narrows.errors import InvalidInput
from narrows.market import DAY_S, SUCCESSORS, Flags, Floats, Integers, Times, World, repeated

TYPES = ("impression", "view", "click", "add_to_cart", "purchase")
IMPRESSION, VIEW, CLICK, ADD_TO_CART, PURCHASE = range(5)
_PROPOSALS = 48
_ORDER = ("number", "session", "time", "kind", "item", "slate", "position")


@dataclass(frozen=True)
class Behaviour:
    """How visitors act; shares are of sessions, steps, views, events and purchases, in this order."""

    anonymous: float = 0.35
    slate_share: float = 0.35
    follow: float = 0.5
    duplicates: float = 0.005
    late_purchases: float = 0.3
    late_by_s: float = 6 * 3600.0
    slate_length: int = 10
    steps_per_session: float = 6.0


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
        rng = np.random.default_rng([self.seed, 1, n, int(start), int(end)])
        sessions, known = self._open_sessions(n, start, end, rng)
        log = _Log()
        self._walk(log, sessions, end, rng)
        repeats = round(n * self.behaviour.duplicates)
        columns = _delivered(log.joined(), n - repeats, repeats, end, rng)
        stamp = f"{self.seed}-{int(start)}"
        names = [f"session-{stamp}-{s:06d}" for s in range(len(known))]
        users = [self.user_ids[v] if k else None for v, k in zip(sessions.visitor, known, strict=True)]
        yield from _Envelope(self, stamp, names, users).events(columns, log.all_slates())

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
        state = _Sessions(
            np.array([self.user_number(user_id)]), np.ones(1, int), np.array([now]), np.array([-1])
        )
        log = _Log()
        self._show(log, np.array([0]), state, rows, rng)
        stamp = f"{rng.integers(2**62):x}"
        envelope = _Envelope(self, stamp, [session_id or f"session-{stamp}"], [user_id])
        envelope.surface, envelope.recommendation_id = surface, recommendation_id
        return list(envelope.events(log.joined(), rows))

    def _open_sessions(
        self, n: int, start: float, end: float, rng: np.random.Generator
    ) -> tuple[_Sessions, list[bool]]:
        """More sessions than needed, spread over the window with a peak at noon; True marks a known user."""
        count = int(n / self.behaviour.steps_per_session) + 50
        moment = start + (end - start) * rng.random(count)
        at_noon = np.clip(0.5 + 0.18 * rng.normal(size=count), 0.0, 0.999)
        clock = (np.floor(moment / DAY_S) + at_noon) * DAY_S
        clock = np.where((clock < start) | (clock > end - 3600.0), moment, clock)
        length = rng.geometric(1.0 / self.behaviour.steps_per_session, count)
        known = (rng.random(count) >= self.behaviour.anonymous).tolist()
        return _Sessions(self.visitors(count, rng), length, clock, np.full(count, -1)), known

    def _walk(self, log: _Log, sessions: _Sessions, end: float, rng: np.random.Generator) -> None:
        for step in range(int(sessions.length.max())):
            active = np.flatnonzero((sessions.length > step) & (sessions.clock < end))
            if not len(active):
                return
            shown = rng.random(len(active)) < self.behaviour.slate_share
            self._browse(log, sessions, active[~shown], rng)
            looking = active[shown]
            state = sessions.of(looking)
            sessions.last[looking] = self._show(log, looking, state, self._logging_policy(state, rng), rng)
            sessions.clock[active] += 60.0 + rng.exponential(45.0, len(active))

    def _browse(self, log: _Log, sessions: _Sessions, index: Integers, rng: np.random.Generator) -> None:
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
        log.add(VIEW, index, state.clock, item=viewed)
        sessions.last[index] = viewed
        self._buy(log, index, state.visitor, viewed, state.clock, rng)

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
        self, log: _Log, index: Integers, state: _Sessions, slates: Integers, rng: np.random.Generator
    ) -> Integers:
        """Show slates: who looks at what, clicks, buys; answers with each session's last item."""
        number = log.add_slates(slates)
        log.add(IMPRESSION, index, state.clock, slate=number)
        attraction = self.utility(state.visitor, slates) + 1.5 * self._continues(state.last, slates)
        clicks = rng.random(slates.shape) < examination(slates.shape[1]) * _sigmoid(1.2 * attraction - 3.4)
        who, position = np.nonzero(clicks)
        item, time = slates[who, position], state.clock[who] + 2.0 + 4.0 * position
        log.add(CLICK, index[who], time, item=item, slate=number[who], position=position)
        self._buy(log, index[who], state.visitor[who], item, time, rng)
        last = state.last.copy()
        last[who] = item
        return last

    def _buy(
        self,
        log: _Log,
        index: Integers,
        visitor: Integers,
        item: Integers,
        time: Times,
        rng: np.random.Generator,
    ) -> None:
        """Some items go to the cart, some of those are paid, and some payments arrive late."""
        liking = self.utility(visitor, item[:, None])[:, 0]
        carts = np.flatnonzero(rng.random(len(item)) < 0.2 * _sigmoid(liking - 1.0))
        in_cart = time[carts] + 15.0 + rng.exponential(10.0, len(carts))
        log.add(ADD_TO_CART, index[carts], in_cart, item=item[carts])
        bought = np.flatnonzero(rng.random(len(carts)) < 0.45)
        paid = in_cart[bought] + 60.0 + rng.exponential(120.0, len(bought))
        late = rng.random(len(bought)) < self.behaviour.late_purchases
        delay = np.where(late, 3600.0 + rng.exponential(self.behaviour.late_by_s, len(bought)), 0.0)
        log.add(PURCHASE, index[carts][bought], paid, item=item[carts][bought], arrival=paid + delay)

    def _in_mind(self, state: _Sessions, rng: np.random.Generator) -> Integers:
        """Half famous items, half of the categories that the visitor likes."""
        famous = self.famous((len(state.visitor), _PROPOSALS // 2), rng)
        return np.concatenate([famous, self.liked(state.visitor, _PROPOSALS // 2, rng)], axis=1)

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

    def of(self, index: Integers) -> _Sessions:
        return _Sessions(self.visitor[index], self.length[index], self.clock[index], self.last[index])


class _Log:
    """Columns of what happened, one list entry per vectorised step."""

    def __init__(self) -> None:
        self._columns: dict[str, list[np.ndarray]] = {}
        self._slates: list[Integers] = []
        self._shown = 0

    def add(self, kind: int, session: Integers, time: Times, **values: np.ndarray) -> None:
        """Append events of one kind; what is not given is -1, and arrives when it happens."""
        absent = np.full(len(session), -1, dtype=np.int64)
        row = {"item": absent, "slate": absent, "position": absent, "arrival": time} | values
        row |= {"session": session, "time": time, "kind": np.full(len(session), kind)}
        for name, column in row.items():
            self._columns.setdefault(name, []).append(column)

    def add_slates(self, slates: Integers) -> Integers:
        """Number the slates that are shown now."""
        self._slates.append(slates)
        numbers = np.arange(self._shown, self._shown + len(slates))
        self._shown += len(slates)
        return numbers

    def all_slates(self) -> Integers:
        return np.concatenate(self._slates)

    def joined(self) -> dict[str, np.ndarray]:
        """All events in the order of session, then time, numbered."""
        joined = {name: np.concatenate(parts) for name, parts in self._columns.items()}
        order = np.lexsort((joined["kind"], joined["time"], joined["session"]))
        ordered = {name: column[order] for name, column in joined.items()}
        return ordered | {"number": np.arange(len(order))}


class _Envelope:
    """Turns the columns of the log into API events."""

    def __init__(
        self, market: World, stamp: str, sessions: Sequence[str], users: Sequence[str | None]
    ) -> None:
        self._market, self._stamp = market, stamp
        self._sessions, self._users = sessions, users
        self.surface: str | None = None
        self.recommendation_id: str | None = None

    def events(self, columns: dict[str, np.ndarray], slates: Integers) -> Iterator[dict[str, object]]:
        """One dictionary for each row of the columns, in their order."""
        for row in zip(*(columns[name].tolist() for name in _ORDER), strict=True):
            yield self._event(slates, *row)

    def _event(
        self,
        slates: Integers,
        number: int,
        session: int,
        time: float,
        kind: int,
        item: int,
        slate: int,
        position: int,
    ) -> dict[str, object]:
        event: dict[str, object] = {
            "event_id": f"e-{self._stamp}-{number:07d}",
            "event_type": TYPES[kind],
            "sent_at": datetime.fromtimestamp(round(time, 3), UTC).isoformat(timespec="milliseconds"),
            "session_id": self._sessions[session],
            "schema_version": 1,
            "consent": True,
        }
        if (user := self._users[session]) is not None:
            event["user_id"] = user
        if item >= 0:
            event["item_id"] = self._market.item_ids[item]
        if slate >= 0:
            event["recommendation_id"] = self.recommendation_id or f"r-{self._stamp}-{slate:07d}"
            event["surface"] = self.surface or ("homepage" if slate % 3 else "product")
        if position >= 0:
            event["position"] = position + 1
        if kind == IMPRESSION:
            event["impression"] = [self._market.item_ids[i] for i in slates[slate].tolist()]
        if kind == PURCHASE:
            event["event_value"] = float(self._market.price[item])
        return event


def _delivered(
    columns: dict[str, np.ndarray], n: int, repeats: int, end: float, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """The first `n` events session by session, repeats added, in the order of their arrival."""
    if len(columns["time"]) < n:
        raise InvalidInput("events", n, "the window is too short for so many sessions; widen it")
    again = np.sort(rng.choice(n, size=repeats, replace=False))
    joined = {name: np.concatenate([column[:n], column[again]]) for name, column in columns.items()}
    joined["arrival"][n:] += 5.0 + rng.exponential(60.0, repeats)
    joined["time"] = np.minimum(joined["time"], end)
    order = np.lexsort((joined["number"], joined["arrival"]))
    return {name: column[order] for name, column in joined.items()}


def _draw(items: Integers, score: np.ndarray, rng: np.random.Generator) -> Integers:
    """One item of each row, with odds by the exponential of its score."""
    best = (score + rng.gumbel(size=items.shape)).argmax(axis=1)
    return np.asarray(np.take_along_axis(items, best[:, None], axis=1)[:, 0])


def _sigmoid(values: np.ndarray) -> Floats:
    return np.asarray(1.0 / (1.0 + np.exp(-values)), dtype=np.float32)
