"""Exploration: what is new gets its places, by known chances, under the caps, the same for one request."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrows.exploration import Arranged, arrange
from narrows.ranking import Ranked
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


def slate(items: Ranked, on: Surface, limit: int = 6, seed: str = "r") -> Arranged:
    return arrange(items, on, limit, now=NOW, seed=seed)


def test_new_items_get_their_places_and_the_others_keep_their_order() -> None:
    """Two of six places, spread; the chance of each is told, and 1 for what was not drawn."""
    shown = slate(ranked([90.0] * 8 + [1.0] * 4), surface(2))
    new = [place for place, position in enumerate(shown.order.tolist()) if position >= 8]
    assert new == [2, 4]
    assert [one for one in shown.order.tolist() if one < 8] == [0, 1, 2, 3]
    assert shown.explored == 2
    assert [chance < 1.0 for chance in shown.propensities.tolist()] == [place in new for place in range(6)]


def test_a_new_item_that_is_good_enough_keeps_its_place() -> None:
    """It takes none of those that are kept for the others."""
    items = ranked([1.0] + [90.0] * 7 + [1.0] * 4)
    for seed in "abcdefgh":
        shown = slate(items, surface(2), seed=seed)
        assert shown.order[0] == 0
        assert shown.propensities[0] == 1.0
        assert (shown.order >= 8).sum() == 2


def test_one_request_draws_the_same_again_and_another_may_not() -> None:
    """So that a decision can be replayed by its identity."""
    items = ranked([90.0] * 8 + [1.0] * 40)
    slates = [tuple(slate(items, surface(2), seed=seed).order.tolist()) for seed in "aabcdef"]
    assert slates[0] == slates[1]
    assert len(set(slates)) > 2


def test_items_are_drawn_as_often_as_their_propensity_says() -> None:
    """Over 4,000 requests: the better ones more often, and every one now and then."""
    items = ranked([90.0] * 5 + [1.0] * 5)
    drawn: Counter[int] = Counter()
    told: dict[int, float] = {}
    for request in range(4000):
        shown = slate(items, surface(1, 5), 5, seed=f"r{request}")
        ((position, chance),) = [
            (position, chance)
            for position, chance in zip(shown.order.tolist(), shown.propensities.tolist(), strict=True)
            if position >= 5
        ]
        drawn[position] += 1
        told[position] = chance
    assert sum(told.values()) == pytest.approx(1.0)
    assert [told[position] for position in range(5, 10)] == sorted(told.values(), reverse=True)
    for position, chance in told.items():
        assert drawn[position] / 4000 == pytest.approx(chance, abs=4 * np.sqrt(chance * (1 - chance) / 4000))


def test_the_propensities_of_a_slate_multiply_to_its_chance() -> None:
    """Two equal new items for two places are in every slate, in two orders of the same chance."""
    items = ranked([90.0] * 6 + [1.0] * 2)
    items.scores[6:] = -1.0
    chances = {
        tuple(shown.order.tolist()): float(shown.propensities.prod())
        for shown in (slate(items, surface(2), seed=f"{seed}") for seed in range(40))
    }
    assert sorted(chances.values()) == [0.5, 0.5]
    assert {tuple(sorted(order)) for order in chances} == {(0, 1, 2, 3, 6, 7)}


@given(
    st.lists(st.sampled_from([1.0, 90.0, float("nan")]), max_size=30),
    st.integers(0, 5),
    st.integers(1, 12),
    st.integers(1, 4),
)
def test_a_slate_has_every_item_once_under_its_caps(
    ages: list[float], slots: int, limit: int, cap: int
) -> None:
    """As many as without exploration, no cap broken for what was drawn, the best always first."""
    brands = [place % 7 for place in range(len(ages))]
    items = ranked(ages, brands)
    plain = slate(items, surface(0, brand=cap), limit)
    shown = slate(items, surface(slots, brand=cap), limit)
    assert len(shown.order) == len(set(shown.order.tolist())) == len(plain.order)
    assert shown.order.tolist()[:1] == plain.order.tolist()[:1]
    most = max(Counter(items.columns["brand"][shown.order].tolist()).values(), default=0)
    assert most <= max([cap, *Counter(items.columns["brand"][plain.order].tolist()).values()])
    assert (shown.propensities <= 1.0).all()


def test_caps_hold_for_what_is_explored_and_for_the_rest_beside_it() -> None:
    """One of a brand: the best item keeps a new one out, any other gives way."""
    items = ranked([90.0] * 6 + [1.0] * 3, brands=[0, 1, 2, 3, 4, 5, 0, 0, 0])
    shown = slate(items, surface(2, brand=1))
    assert (shown.order.tolist(), shown.explored) == (list(range(6)), 0)
    items = ranked([90.0] * 6 + [1.0] * 3, brands=[0, 1, 2, 3, 4, 5, 3, 3, 3])
    shown = slate(items, surface(1, brand=1))
    assert sorted(items.columns["brand"][shown.order].tolist()) == [0, 1, 2, 3, 4, 5]
    assert (3 not in shown.order.tolist(), shown.explored) == (True, 1)


@pytest.mark.parametrize("age", [90.0, float("nan"), -1.0], ids=["old", "unknown", "later"])
def test_where_nothing_is_new_the_slate_is_the_rankers(age: float) -> None:
    """An item whose time is unknown, or still to come, is not new."""
    shown = slate(ranked([age] * 8), surface(3))
    assert shown.order.tolist() == list(range(6))
    assert shown.explored == 0
    assert shown.propensities.tolist() == [1.0] * 6


@pytest.mark.parametrize(("limit", "explored"), [(1, 0), (3, 1), (6, 2), (12, 4)])
def test_slots_are_in_proportion_to_what_is_asked_for(limit: int, explored: int) -> None:
    """A single item is never an experiment."""
    shown = slate(ranked([90.0] * 20 + [1.0] * 20), surface(2), limit)
    assert (shown.explored, len(set(shown.order.tolist()))) == (explored, limit)


def test_a_score_that_is_not_finite_is_never_drawn() -> None:
    """It says nothing; the other new one is drawn without it, every time."""
    items = ranked([90.0] * 4 + [1.0, 1.0])
    items.scores[5] = np.nan
    for seed in "abcdef":
        shown = slate(items, surface(1, 4), 4, seed=seed)
        assert sorted(shown.order.tolist()) == [0, 1, 2, 4]
