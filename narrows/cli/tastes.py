"""Whether new items come to those whose taste they fit: asked at the API, where a market knows the truth."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from narrows.cli.console import CommandFailed, Console, Progress
from narrows.market import Floats, World
from narrows.settings import App, Catalogue
from narrows.simulator import Market

NOTE = Path("run") / "market.json"
"""In the home of a local cloud: the market whose visitors it has seen; it goes when the cloud goes."""

WITHIN_S = 60.0
BEST = 0.01
"""An item fits the taste of whoever likes it more than all but so many of the items to be had."""
WORST = 0.5
"""It does not fit that of whoever likes more than so many of them better."""
MORE = 1.2
"""An answer shows a new item at least so many times as often to those whose taste it fits as to others."""
WARM = 5
"""Items that the history of a warm user has at least."""
ASKED = 60
USERS_AN_ITEM = 6
PAUSE_S = 0.25


def note_market(home: Path, market: Market) -> None:
    """Write down which market's events the local cloud of this home is given."""
    told = {"seed": market.seed, "users": market.users, "items": market.items, "as_of": market.as_of}
    (home / NOTE).write_text(json.dumps(told), encoding="utf-8")


def noted_market(home: Path) -> Market:
    """The market that was noted; CommandFailed where none was."""
    try:
        told = json.loads((home / NOTE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CommandFailed(
            f"whose taste an item fits only a simulated market knows, and the local cloud in {home} has seen "
            "none; start one with narrows demo, or leave --tastes out"
        ) from None
    return Market(told["seed"], told["users"], told["items"], as_of=told["as_of"])


class Answers(Protocol):
    """The API as it is asked here."""

    def change_items(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Send items; the answer has a verdict for each."""

    def recommend(self, surface: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The slate for a request."""


@dataclass
class _Pair:
    """A user and a new item; seconds until it was in the user's slate, and until it could have been.

    `answers` are those that could have shown it, up to the first that did.
    """

    user: str
    item_id: str
    fits: bool
    shown_s: float = math.inf
    eligible_s: float = math.inf
    answers: int = 0


class Tastes:
    """New items like some that the market has, and the warm users whose taste they fit, or do not fit."""

    def __init__(
        self,
        app: App,
        market: World,
        api: Answers,
        clock: Callable[[], float],
        sleep: Callable[[float], object],
        *,
        run: str,
        rng: np.random.Generator,
    ) -> None:
        self._app, self._market, self._api = app, market, api
        self._clock, self._sleep, self._run, self._rng = clock, sleep, run, rng
        feeds = [name for name, surface in app.surfaces.items() if surface.seed == "history"]
        if not feeds:
            raise CommandFailed(f"no surface of {app.name} starts from a visitor's history; tastes need one")
        self.surface = feeds[0]
        self._pairs: list[_Pair] = []
        self._made: list[str] = []
        self._asked = 0

    def measure(self, count: int, progress: Progress) -> None:
        """Add so many items and ask for the users' slates until each has come, for a minute at most."""
        users = self._warm_users()
        liked = np.stack([_standing(self._market.true_preference(user)) for user in users])
        items = self._items(liked, count)
        self._made = [f"taste-{self._run}-{place:03d}" for place in range(len(items))]
        for item, item_id in zip(items, self._made, strict=True):
            for fits, who in ((True, liked[:, item] <= BEST), (False, liked[:, item] >= WORST)):
                chosen = self._rng.permutation(np.flatnonzero(who))[:USERS_AN_ITEM]
                self._pairs += [_Pair(users[one], item_id, fits) for one in chosen.tolist()]
        self._send([self._twin(item, item_id) for item, item_id in zip(items, self._made, strict=True)])
        self._watch(self._clock(), progress)

    def _warm_users(self) -> list[str]:
        """The most active users whose history the API knows."""
        active = [self._market.user_ids[one] for one in self._market.by_activity()[:ASKED].tolist()]
        found = [user for user in active if len(self._slate(user)["trace"]["history"]) >= WARM]
        if not found:
            raise CommandFailed(
                f"of {len(active)} active users of the market the API knows none with {WARM} items or more "
                "in the history: send the market's events first"
            )
        return found

    def _items(self, liked: Floats, count: int) -> list[int]:
        """Items that fit somebody's taste, each as likely as another."""
        fitting = self._rng.permutation(np.flatnonzero((liked <= BEST).any(axis=0)))[:count]
        if not len(fitting):
            raise CommandFailed("no item of the market fits the taste of one of its warm users")
        return [int(one) for one in fitting]

    def _twin(self, item: int, item_id: str) -> dict[str, Any]:
        """What the app's catalogue sends of it."""
        row = self._market.twin(item, item_id)
        return {name: row[name] for name in _sent(self._app.catalogue) if name in row}

    def _watch(self, began: float, progress: Progress) -> None:
        waiting = {pair.user for pair in self._pairs}
        while waiting and self._clock() - began < WITHIN_S:
            for user in sorted(waiting):
                self._look(user, began)
            waiting = {pair.user for pair in self._pairs if pair.shown_s == math.inf}
            progress.to(len(self._reached()))
            self._sleep(PAUSE_S)

    def _look(self, user: str, began: float) -> None:
        answer = self._slate(user)
        took = self._clock() - began
        shown = {str(one["item_id"]) for one in answer["recommendations"]}
        eligible = shown | set(answer["trace"]["eligible"])
        for pair in self._pairs:
            if pair.user == user and pair.shown_s == math.inf and pair.item_id in eligible:
                pair.eligible_s = min(pair.eligible_s, took)
                pair.answers += 1
                pair.shown_s = took if pair.item_id in shown else math.inf

    def _slate(self, user: str) -> dict[str, Any]:
        self._asked += 1
        (country,) = self._market.country_of(np.asarray([self._market.user_number(user)]))
        body = {"user_id": user, "context": {"location": country}, "explain": True}
        return self._api.recommend(self.surface, body)

    def remove(self) -> int:
        """Delete the items of this run; how many were made."""
        name = self._app.catalogue.id
        self._send([{name: item_id, "deleted": True} for item_id in self._made])
        return len(self._made)

    def _send(self, items: Sequence[Mapping[str, Any]]) -> None:
        if not items:
            return
        verdicts = self._api.change_items(items)["verdicts"]
        refused = [one for one in verdicts if one["status"] not in ("accepted", "unchanged")]
        if refused:
            raise CommandFailed(f"{len(refused)} new items were refused, for example {refused[0]}")

    def _reached(self) -> set[str]:
        """The new items that somebody has seen whose taste they fit."""
        return {pair.item_id for pair in self._pairs if pair.fits and pair.shown_s < math.inf}

    def report(self) -> dict[str, Any]:
        """Of the pairs that fit and of the others: the shares that came, and how soon; what is wrong."""
        fits, others = (_came([one for one in self._pairs if one.fits is fit]) for fit in (True, False))
        reached = self._reached()
        missed = sorted({pair.item_id for pair in self._pairs if pair.fits} - reached)
        reasons = []
        if missed:
            reasons.append(
                f"{len(missed)} of {len(self._made)} new items came within {WITHIN_S:g} s to nobody whose "
                f"taste they fit, for example {missed[0]}"
            )
        if math.isnan(fits["an_answer"]) or math.isnan(others["an_answer"]):
            reasons.append("nobody could have been shown a new item yet, so nothing can be compared")
        elif not fits["an_answer"] > MORE * others["an_answer"]:
            reasons.append("new items come no more often to those whose taste they fit than to others")
        return {
            "app": self._app.name,
            "surface": self.surface,
            "items": len(self._made),
            "users": len({pair.user for pair in self._pairs}),
            "answers": self._asked,
            "within_s": WITHIN_S,
            "fits": fits,
            "others": others,
            "items_reached": len(reached),
            "reasons": reasons,
            "ok": not reasons,
        }


def _standing(liking: Floats) -> Floats:
    """For each item the share of those to be had that are liked more; nan for what cannot be bought."""
    had = np.isfinite(liking)
    ordered = np.sort(liking[had])
    above = len(ordered) - np.searchsorted(ordered, liking, side="right")
    return np.where(had, above / max(len(ordered), 1), np.nan).astype(np.float32)


def _sent(catalogue: Catalogue) -> list[str]:
    """The columns that an item is sent with; it is created when it comes."""
    named = (
        catalogue.categories, catalogue.brand, catalogue.seller, catalogue.price, catalogue.regions,
        catalogue.stock,
    )  # fmt: skip
    return [catalogue.id, *catalogue.text, *(name for name in named if name), *catalogue.attributes]


def _came(pairs: Sequence[_Pair]) -> dict[str, float]:
    """How many pairs, the shares of them that were shown and could have been, and the middle of how soon.

    `an_answer` is the chance that an answer shows the item to somebody who has not seen it yet.
    """
    shown = [pair.shown_s for pair in pairs if pair.shown_s < math.inf]
    eligible = [pair.eligible_s for pair in pairs if pair.eligible_s < math.inf]
    answers = sum(pair.answers for pair in pairs)
    return {
        "pairs": len(pairs),
        "shown": round(len(shown) / len(pairs), 4) if pairs else math.nan,
        "an_answer": round(len(shown) / answers, 4) if answers else math.nan,
        "eligible": round(len(eligible) / len(pairs), 4) if pairs else math.nan,
        "shown_p50_s": round(float(np.median(shown)), 2) if shown else math.nan,
        "eligible_p50_s": round(float(np.median(eligible)), 2) if eligible else math.nan,
    }


def told(report: Mapping[str, Any], console: Console) -> dict[str, Any]:
    """Show the report as a person reads it, and give it back."""
    rows = [
        (
            title,
            f"{one['pairs']}",
            f"{one['shown']:.0%}",
            f"{one['shown_p50_s']:.1f} s",
            f"{one['an_answer']:.1%}",
            f"{one['eligible']:.0%}",
        )
        for title, one in (("it fits", report["fits"]), ("it does not", report["others"]))
    ]
    console.table(("whose taste", "pairs", "in the slate", "p50", "an answer", "could have been"), rows)
    for reason in report["reasons"]:
        console.say(reason)
    return dict(report)
