"""Shows slates as a person reads them, each with the command line that gets it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from narrows.cli.api_client import Api
from narrows.cli.console import CommandFailed, Console
from narrows.simulator import Market

CONTEXT = {"device": "mobile", "location": "US"}
REACTION_S = 3.0
SURFACE = "homepage"
JUDGED_USERS = 30
FULL = "full"
PATIENCE_S = 10.0


def item_ids(answer: Mapping[str, Any]) -> list[str]:
    """The items of a slate, first position first."""
    return [str(one.get("item_id") or one.get("product_id")) for one in answer["recommendations"]]


def show(
    console: Console, title: str, answer: Mapping[str, Any], names: Mapping[str, str], curl: str
) -> None:
    """A slate with its reasons and the rung that answered."""
    console.say()
    degraded = answer.get("degraded") or ""
    console.say(f"{title}   fallback: {answer['fallback']} {degraded}  model: {answer['model_version']}")
    rows = [
        (one["position"], item, names.get(item, ""), shown_score(one), one["reason"])
        for one, item in zip(answer["recommendations"], item_ids(answer), strict=True)
    ]
    console.table(("#", "item", "title", "score", "reason"), rows)
    console.say(curl)


def shown_score(one: Mapping[str, Any]) -> str:
    """An item's score; a list that was made earlier has none."""
    return "" if one["score"] is None else f"{one['score']:.3f}"


def three_slates(api: Api, market: Market, console: Console, *, stamp: str) -> dict[str, Any]:
    """A known user, a brand-new user, and an anonymous session before and after three clicks."""
    names = {str(row["item_id"]): str(row["title"]) for row in market.catalogue()}
    slates: dict[str, Any] = {}
    known = _busiest_user(market)
    people = {"a known user": known, "a brand-new user": f"newcomer-{stamp}"}
    for title, user in people.items():
        body = {"user_id": user, "limit": 10, "context": CONTEXT}
        answer = _best_answer(api, title, body)
        show(console, f"{title}, {user}", answer, names, api.curl(SURFACE, body))
        slates[title.removeprefix("a ").replace(" ", "_")] = answer
    slates |= _reaction(api, market, console, names, stamp)
    slates["truth"] = _truth(api, market)
    console.say(
        "\nof {shown} items shown to {users} known users, {liked} are truly in their best tenth; by chance "
        "it would be {by_chance}".format(**slates["truth"])
    )
    return slates


def _truth(api: Api, market: Market) -> dict[str, int]:
    """How many of the items shown to known users the market knows that they prefer."""
    users = market.user_ids[:: max(1, len(market.user_ids) // JUDGED_USERS)][:JUDGED_USERS]
    shown, liked = 0, 0
    for user in users:
        slate = item_ids(api.recommend(SURFACE, {"user_id": user, "limit": 10, "context": CONTEXT}))
        shown += len(slate)
        liked += len(set(slate) & set(market.preferred(user, market.items // 10)))
    return {"users": len(users), "shown": shown, "liked": liked, "by_chance": shown // 10}


def _reaction(
    api: Api, market: Market, console: Console, names: Mapping[str, str], stamp: str
) -> dict[str, Any]:
    session = f"visit-{stamp}"
    body = {"session_id": session, "limit": 10, "context": CONTEXT}
    before = _best_answer(api, "an anonymous session", body)
    curl = api.curl(SURFACE, body)
    show(console, f"an anonymous session, {session}, before its clicks", before, names, curl)
    clicked = _clicked(market)
    started = time.monotonic()
    api.send_events(
        [
            {
                "event_id": f"{session}-{n}",
                "event_type": "click",
                "session_id": session,
                "item_id": item,
                "sent_at": round(time.time(), 3),
                "surface": SURFACE,
            }
            for n, item in enumerate(clicked)
        ]
    )
    console.say(f"\nthree clicks: {', '.join(f'{item} ({names[item]})' for item in clicked)}")
    after, seconds = _changed_slate(api, body, item_ids(before), started)
    if seconds > REACTION_S:
        console.note(f"      slower than the {REACTION_S:.0f} s that it should take: is the machine busy?")
    title = f"the same session {seconds:.1f} s after its clicks"
    show(console, title, after, names, curl)
    return {"anonymous_before": before, "anonymous_after": after, "reaction_seconds": round(seconds, 2)}


def _changed_slate(
    api: Api, body: Mapping[str, Any], before: Sequence[str], started: float
) -> tuple[dict[str, Any], float]:
    while (elapsed := time.monotonic() - started) < PATIENCE_S:
        answer = api.recommend(SURFACE, body)
        if answer["fallback"] == FULL and item_ids(answer) != list(before):
            return answer, elapsed
        time.sleep(0.1)
    raise CommandFailed(
        f"three clicks did not change the slate within {elapsed:.0f} s (fallback {answer['fallback']}, "
        f"{answer.get('degraded')}); see the logs of the stream runner for update_features"
    )


def _clicked(market: Market) -> list[str]:
    """Three items of one category that are for sale everywhere."""
    for_sale = (market.stock > 0) & market.sold_in.all(axis=0) & (market.created_at < market.as_of)
    rows = [i for i in range(market.items) if for_sale[i] and market.category[i] == market.category[0]]
    best = sorted(rows, key=lambda i: -float(market.quality[i]))
    return [market.item_ids[i] for i in best[:3]]


def _busiest_user(market: Market) -> str:
    return market.user_ids[market.most_active()]


def _best_answer(api: Api, title: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """The first answer of the whole pipeline; while the machine is still busy a lower rung may answer."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        answer = api.recommend(SURFACE, body)
        if answer["fallback"] == FULL:
            return answer
        if time.monotonic() > deadline:
            break
        time.sleep(0.2)
    if not answer["recommendations"]:
        raise CommandFailed(f"{title}: the slate is empty ({answer['fallback']}, {answer.get('degraded')})")
    return answer
