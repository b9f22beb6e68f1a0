"""New items and the users whose taste they fit, against an API that shows them to whom it is told to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from narrows.cli.console import CommandFailed, Progress
from narrows.cli.tastes import Tastes, note_market, noted_market
from narrows.settings import App, load_app
from narrows.simulator import Market

APPS = Path(__file__).parents[2] / "apps"
DELAY_S = 7.0


class Telling(Market):
    """A market that tells which item each new one is like."""

    def __init__(self) -> None:
        super().__init__(3, users=60, items=400)
        self.like: dict[str, int] = {}

    def twin(self, item: int, item_id: str) -> dict[str, object]:
        self.like[item_id] = item
        return super().twin(item, item_id)


class ShowingApi:
    """Shows a new item, so many seconds after it came, to the users for whom `shows(user, item)`."""

    def __init__(
        self,
        market: Telling,
        shows: Callable[[str, int], bool],
        history: int = 9,
        *,
        eligible: bool = True,
    ) -> None:
        self.market, self.shows, self.history, self.eligible = market, shows, history, eligible
        self.time = 50.0
        self.there: dict[str, float] = {}

    def change_items(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        for item in items:
            if item.get("deleted"):
                del self.there[item["item_id"]]
            else:
                assert {"title", "category", "brand", "price", "stock", "margin"} <= item.keys()
                self.there[item["item_id"]] = self.time + DELAY_S
        return {"verdicts": [{"status": "accepted"} for _ in items]}

    def recommend(self, surface: str, body: Mapping[str, Any]) -> dict[str, Any]:
        self.time += 0.01
        shown = [
            item_id
            for item_id, since in self.there.items()
            if self.eligible and self.time >= since and self.shows(body["user_id"], self.market.like[item_id])
        ]
        trace = {"history": [{}] * self.history, "eligible": list(self.there) if self.eligible else []}
        return {"recommendations": [{"item_id": one} for one in shown], "trace": trace}

    def clock(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds


@pytest.fixture(scope="module")
def app() -> App:
    return load_app(APPS / "shopnow")


@pytest.fixture
def market() -> Telling:
    return Telling()


def likes(market: Market, user: str, item: int) -> bool:
    """Whether the item is one of the four that this user likes most."""
    return market.item_ids[item] in market.preferred(user, market.items // 100)


def measured(app: App, market: Telling, api: ShowingApi) -> dict[str, Any]:
    tastes = Tastes(app, market, api, api.clock, api.sleep, run="1", rng=np.random.default_rng(0))
    with Progress("new items", 50, "pairs") as progress:
        tastes.measure(8, progress)
    assert tastes.remove() == 8
    assert api.there == {}
    return tastes.report()


def test_items_come_to_those_whose_taste_they_fit(app: App, market: Telling) -> None:
    """All of these pairs and none of the others, as soon as the API shows them."""
    report = measured(app, market, ShowingApi(market, lambda user, item: likes(market, user, item)))
    assert report["ok"], report
    assert (report["fits"]["shown"], report["others"]["shown"]) == (1.0, 0.0)
    assert report["fits"]["pairs"] >= 8
    assert report["fits"]["shown_p50_s"] == pytest.approx(DELAY_S, abs=1.0)
    assert report["others"]["eligible"] == 1.0
    assert report["fits"]["an_answer"] > report["others"]["an_answer"] == 0.0
    assert report["items_reached"] == 8


@pytest.mark.parametrize(
    ("everybody", "reason"), [(True, "no more often"), (False, "came within 60 s to nobody")]
)
def test_items_that_come_to_all_or_to_nobody_are_told(
    app: App, market: Telling, everybody: bool, reason: str
) -> None:
    """Neither is what was wanted."""
    api = ShowingApi(market, lambda user, item: everybody)
    report = measured(app, market, api)
    assert not report["ok"]
    assert any(reason in one for one in report["reasons"]), report
    assert (api.time < 100.0) is everybody


def test_pairs_are_of_users_who_can_buy_the_item(app: App, market: Telling) -> None:
    """And whose history is known; an item of another country is neither liked nor disliked."""
    api = ShowingApi(market, lambda user, item: True)
    tastes = Tastes(app, market, api, api.clock, api.sleep, run="1", rng=np.random.default_rng(0))
    with Progress("new items", 50, "pairs") as progress:
        tastes.measure(8, progress)
    for pair in tastes._pairs:
        item = market.like[pair.item_id]
        liking = market.true_preference(pair.user)
        assert np.isfinite(liking[item])
        above = float((liking[np.isfinite(liking)] > liking[item]).mean())
        assert above <= 0.01 if pair.fits else above >= 0.5


def test_the_market_of_a_cloud_is_noted_and_found_again(tmp_path: Path) -> None:
    """By those who come later; where none was noted, the remedy is told."""
    with pytest.raises(CommandFailed, match="start one with narrows demo"):
        noted_market(tmp_path)
    (tmp_path / "run").mkdir()
    noted = Market(5, users=70, items=300, as_of=1_700_000_000.0)
    note_market(tmp_path, noted)
    found = noted_market(tmp_path)
    assert found.item_ids == noted.item_ids
    assert found.preferred(found.user_ids[3], 10) == noted.preferred(noted.user_ids[3], 10)
    assert found.created_at.tolist() == noted.created_at.tolist()


def test_where_nobody_could_see_anything_nothing_is_compared(app: App, market: Telling) -> None:
    """No answer could have shown a new item: that is not a comparison won or lost."""
    api = ShowingApi(market, lambda user, item: True, eligible=False)
    report = measured(app, market, api)
    assert not report["ok"]
    assert any("nothing can be compared" in one for one in report["reasons"]), report


def test_a_market_that_nobody_knows_is_refused(app: App, market: Telling) -> None:
    """The API knows no history: what is missing, and what to do."""
    api = ShowingApi(market, lambda user, item: True, history=2)
    with pytest.raises(CommandFailed, match="send the market's events first"):
        Tastes(app, market, api, api.clock, api.sleep, run="1", rng=np.random.default_rng(0)).measure(
            8, Progress("new items", 50, "pairs")
        )
