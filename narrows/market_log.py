"""What a market's visitors did, as columns, and the API events that their shops and apps send of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import numpy as np

from narrows.errors import InvalidInput
from narrows.market import Flags, Integers, Times, World

TYPES = ("impression", "view", "click", "add_to_cart", "purchase", "refund")
IMPRESSION, VIEW, CLICK, ADD_TO_CART, PURCHASE, REFUND = range(6)
DEVICES = ("mobile", "desktop", "tablet")
USER_AGENTS = {
    "mobile": "Mozilla/5.0 (iPhone; CPU iPhone OS 18_1 like Mac OS X) AppleWebKit/605.1.15 Mobile/15E148",
    "desktop": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
    "tablet": "Mozilla/5.0 (iPad; CPU OS 18_1 like Mac OS X) AppleWebKit/605.1.15 Mobile/15E148",
}
CRAWLER = "Mozilla/5.0 (compatible; Pagebot/2.1; +https://example.com/bot)"
_ORDER = ("number", "session", "time", "kind", "item", "slate", "position", "dwell")


@dataclass(frozen=True)
class Visits:
    """What is sent of each session beside its events; its user is told from the moment `known_from` on."""

    session_ids: Sequence[str]
    user_ids: Sequence[str]
    known_from: Times
    device: Integers
    location: Sequence[str]
    old_app: Flags
    crawls: Flags

    @classmethod
    def of_one(cls, session_id: str, user_id: str, now: float, location: str) -> Visits:
        """A visit that starts now, of somebody who is logged in and has a phone."""
        no = np.zeros(1, dtype=np.bool_)
        return cls([session_id], [user_id], np.array([now]), np.zeros(1, int), [location], no, no)


class Log:
    """Columns of what happened, one list entry per vectorised step."""

    def __init__(self) -> None:
        self._columns: dict[str, list[np.ndarray]] = {}
        self._slates: list[Integers] = []
        self._shown = 0

    def add(self, kind: int, session: Integers, time: Times, **values: np.ndarray) -> None:
        """Append events of one kind; what is not given is -1, and arrives when it happens."""
        absent = np.full(len(session), -1, dtype=np.int64)
        row = {"item": absent, "slate": absent, "position": absent, "dwell": absent, "arrival": time} | values
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

    def of_kind(self, kind: int) -> tuple[Integers, Times, Integers]:
        """Session, time and item of the events of one kind."""
        session, time, item, kinds = (
            np.concatenate(self._columns[name]) for name in ("session", "time", "item", "kind")
        )
        chosen = kinds == kind
        return session[chosen], time[chosen], item[chosen]

    def joined(self) -> dict[str, np.ndarray]:
        """All events in the order of session, then time, numbered."""
        joined = {name: np.concatenate(parts) for name, parts in self._columns.items()}
        order = np.lexsort((joined["kind"], joined["time"], joined["session"]))
        ordered = {name: column[order] for name, column in joined.items()}
        return ordered | {"number": np.arange(len(order))}


class Envelope:
    """Turns the columns of the log into API events."""

    def __init__(
        self,
        market: World,
        stamp: str,
        visits: Visits,
        *,
        surface: str | None = None,
        recommendation_id: str | None = None,
    ) -> None:
        self._market, self._stamp, self._visits = market, stamp, visits
        self._surface, self._recommendation_id = surface, recommendation_id
        self._known_from: list[float] = visits.known_from.tolist()
        self._described: dict[int, dict[str, object]] = {}

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
        dwell: float,
    ) -> dict[str, object]:
        properties: dict[str, object] = {}
        event: dict[str, object] = {
            "event_id": f"e-{self._stamp}-{number:07d}",
            "event_type": TYPES[kind],
            "sent_at": datetime.fromtimestamp(round(time, 3), UTC).isoformat(timespec="milliseconds"),
            "session_id": self._visits.session_ids[session],
            "consent": True,
            "properties": properties,
        }
        if time >= self._known_from[session]:
            event["user_id"] = self._visits.user_ids[session]
        if item >= 0:
            event["item_id"] = self._market.item_ids[item]
            properties |= self._of_item(item)
        if slate >= 0:
            event["recommendation_id"] = self._recommendation_id or f"r-{self._stamp}-{slate:07d}"
            event["surface"] = self._surface or ("homepage" if slate % 3 else "product")
        if position >= 0:
            event["position"] = position + 1
        if dwell >= 0.0:
            properties["dwell_s"] = round(dwell, 1)
        if kind == IMPRESSION:
            event["impression"] = [self._market.item_ids[i] for i in slates[slate].tolist()]
        if kind in (PURCHASE, REFUND):
            event["event_value"] = float(self._market.price[item])
        self._tell_context(event, properties, session)
        return event

    def _tell_context(self, event: dict[str, object], properties: dict[str, object], session: int) -> None:
        """Where and on what the visitor was, as the schema version of the sender says it."""
        visits = self._visits
        device = DEVICES[visits.device[session]]
        context: dict[str, object] = {"device": device, "location": visits.location[session]}
        if visits.old_app[session]:
            event["schema_version"] = 1
            properties |= context
        else:
            agent = CRAWLER if visits.crawls[session] else USER_AGENTS[device]
            event["schema_version"] = 2
            event["context"] = {**context, "user_agent": agent}

    def _of_item(self, item: int) -> dict[str, object]:
        if item not in self._described:
            self._described[item] = self._market.described(item)
        return self._described[item]


def delivered(
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
