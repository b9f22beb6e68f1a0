"""Exploration: what is new gets its places, by known chances, under the caps, the same for one request."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from narrows.exploration import arrange, explore
from narrows.ranking import Ranked
from narrows.reranking import Caps
from narrows.settings import Diversity, Exploration, Surface, load_app

NOW = 1_000_000.0
DAY_S = 86400.0
FEED = load_app(Path(__file__).parents[2] / "apps" / "shopnow").surfaces["feed"]


def ranked(ages: list[float], brands: list[int] | None = None) -> Ranked:
    """Items by falling score, so many days old; nan for an unknown age."""
    count = len(ages)
    columns = {
        "created_at": NOW - np.asarray(ages) * DAY_S,
        "brand": np.asarray(brands or range(count), np.int32),
    }
    scores = np.linspace(1.0, -1.0, count).astype(np.float32)
    return Ranked(np.arange(100, 100 + count, dtype=np.int32), scores, columns)


def surface(slots: int, limit: int = 6, **caps: int) -> Surface:
    exploration = Exploration("softmax", slots, new_for_s=7 * DAY_S, temperature=0.5)
    return replace(FEED, limit=limit, exploration=exploration, diversity=Diversity("mmr", 1.0, caps))


def test_new_items_get_their_places_and_the_others_keep_their_order() -> None:
    """Two of six places, spread; the chance of each is told, and 1 for what was not drawn."""
    items = ranked([90.0] * 8 + [1.0] * 4)
    slate = arrange(items, surface(2), 6, now=NOW, seed="r1")
    new = [place for place, position in enumerate(slate.order.tolist()) if position >= 8]
    assert new == [2, 4]
    assert [one for one in slate.order.tolist() if one < 8] == [0, 1, 2, 3]
    assert slate.explored == 2
    assert [chance < 1.0 for chance in slate.propensities.tolist()] == [place in new for place in range(6)]


def test_one_request_draws_the_same_again_and_another_may_not() -> None:
    """So that a decision can be replayed by its identity."""
    items = ranked([90.0] * 8 + [1.0] * 40)
    slates = [tuple(arrange(items, surface(2), 6, now=NOW, seed=seed).order.tolist()) for seed in "aabcdef"]
    assert slates[0] == slates[1]
    assert len(set(slates)) > 2


def test_items_are_drawn_as_often_as_their_propensity_says() -> None:
    """Over 4,000 requests: the better ones more often, and every one now and then."""
    items, exploration = ranked([1.0] * 5), surface(1).exploration
    drawn: Counter[int] = Counter()
    told: dict[int, float] = {}
    for request in range(4000):
        one = explore(items, exploration, 1, caps=Caps(()), now=NOW, seed=f"r{request}")
        drawn[int(one.chosen[0])] += 1
        told[int(one.chosen[0])] = float(one.propensities[0])
    assert sum(told.values()) == pytest.approx(1.0)
    assert [told[position] for position in range(5)] == sorted(told.values(), reverse=True)
    for position, chance in told.items():
        assert drawn[position] / 4000 == pytest.approx(chance, abs=4 * np.sqrt(chance * (1 - chance) / 4000))


def test_the_second_draw_is_among_what_is_left() -> None:
    """Without replacement: its propensity is the one beside the first."""
    items, exploration = ranked([1.0] * 2), surface(1).exploration
    both = explore(items, exploration, 2, caps=Caps(()), now=NOW, seed="r")
    assert sorted(both.chosen.tolist()) == [0, 1]
    assert both.propensities[1] == 1.0


def test_caps_hold_for_what_is_explored_and_for_the_rest_beside_it() -> None:
    """One item of a brand in the slate, drawn or not."""
    items = ranked([90.0] * 6 + [1.0] * 3, brands=[0, 1, 2, 3, 4, 5, 0, 0, 0])
    slate = arrange(items, surface(2, brand=1), 6, now=NOW, seed="r")
    brands = items.columns["brand"][slate.order].tolist()
    assert slate.explored == 1
    assert sorted(brands) == [0, 1, 2, 3, 4, 5]
    assert slate.order.tolist().count(0) == 0


@pytest.mark.parametrize("age", [90.0, float("nan"), -1.0], ids=["old", "unknown", "later"])
def test_where_nothing_is_new_the_slate_is_the_rankers(age: float) -> None:
    """An item whose time is unknown, or still to come, is not new."""
    slate = arrange(ranked([age] * 8), surface(3), 6, now=NOW, seed="r")
    assert slate.order.tolist() == list(range(6))
    assert slate.explored == 0
    assert slate.propensities.tolist() == [1.0] * 6


@pytest.mark.parametrize(("limit", "explored"), [(1, 0), (3, 1), (6, 2), (12, 4)])
def test_slots_are_in_proportion_to_what_is_asked_for(limit: int, explored: int) -> None:
    """A single item is never an experiment."""
    items = ranked([90.0] * 20 + [1.0] * 20)
    slate = arrange(items, surface(2), limit, now=NOW, seed="r")
    assert (slate.explored, len(set(slate.order.tolist()))) == (explored, limit)


def test_no_item_stands_twice_where_everything_is_new() -> None:
    """What is drawn is not chosen again, and a short list is shown whole."""
    slate = arrange(ranked([1.0] * 4), surface(2), 6, now=NOW, seed="r")
    assert sorted(slate.order.tolist()) == [0, 1, 2, 3]
    assert arrange(ranked([]), surface(2), 6, now=NOW, seed="r").order.tolist() == []


def test_a_score_that_is_not_finite_is_never_drawn() -> None:
    """It says nothing; the others are drawn without it."""
    items = ranked([1.0, 1.0, 1.0])
    items.scores[1] = np.nan
    both = explore(items, surface(2).exploration, 3, caps=Caps(()), now=NOW, seed="r")
    assert sorted(both.chosen.tolist()) == [0, 2]
