"""Re-ranking: equal to a brute-force search, and caps hold until they would leave the slate short."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrows.ranking import Ranked
from narrows.reranking import diversify
from narrows.settings import Diversity


def ranked(scores: list[float], categories: list[list[int]], brands: list[int]) -> Ranked:
    """Items with up to four categories and a brand; -1 for none."""
    every = np.full((len(scores), 4), -1, np.int32)
    for row, codes in enumerate(categories):
        every[row, : len(codes)] = codes
    columns = {"category": every[:, 0], "category_all": every, "brand": np.array(brands, np.int32)}
    return Ranked(np.arange(len(scores), dtype=np.int32), np.array(scores, np.float32), columns)


def likeness(left: int, right: int, categories: list[list[int]], brands: list[int]) -> float:
    """Half the cosine of the category sets, half the equality of the brands."""
    a, b = set(categories[left]), set(categories[right])
    cosine = len(a & b) / np.sqrt(len(a) * len(b)) if a and b else 0.0
    return 0.5 * cosine + 0.5 * float(brands[left] == brands[right] >= 0)


def brute_force(
    scores: list[float], categories: list[list[int]], brands: list[int], lambda_: float, limit: int
) -> list[int]:
    """Maximal marginal relevance, by its definition."""
    low, high = min(scores), max(scores)
    scaled = [(score - low) / (high - low) if high > low else 0.0 for score in scores]
    chosen: list[int] = []
    while len(chosen) < min(limit, len(scores)):
        values = {}
        for item in set(range(len(scores))) - set(chosen):
            closest = max((likeness(item, other, categories, brands) for other in chosen), default=0.0)
            values[item] = lambda_ * scaled[item] - (1 - lambda_) * closest
        best = max(values.values())
        chosen.append(min(item for item, value in values.items() if value >= best - 1e-6))
    return chosen


def test_variety_beats_a_slightly_better_twin() -> None:
    """After item 0 its twin 1 waits for item 2, which is like neither."""
    items = ranked([1.0, 0.9, 0.8, 0.0], [[0], [0], [1], [2]], [0, 0, 1, 2])
    assert diversify(items, Diversity("mmr", 0.7), 4).order.tolist() == [0, 2, 1, 3]
    assert diversify(items, Diversity("mmr", 1.0), 4).order.tolist() == [0, 1, 2, 3]


items_of_any_kind = st.integers(1, 12).flatmap(
    lambda count: st.tuples(
        st.lists(st.integers(0, 100).map(float), min_size=count, max_size=count).map(
            lambda scores: sorted(scores, reverse=True)
        ),
        st.lists(st.lists(st.integers(0, 4), max_size=4, unique=True), min_size=count, max_size=count),
        st.lists(st.integers(-1, 3), min_size=count, max_size=count),
    )
)


@given(items_of_any_kind, st.sampled_from([0.0, 0.3, 0.7, 0.95]), st.integers(1, 15))
def test_it_is_maximal_marginal_relevance(
    items: tuple[list[float], list[list[int]], list[int]], lambda_: float, limit: int
) -> None:
    """Each choice is worth as much as the brute-force choice, and ties are only ties."""
    order = diversify(ranked(*items), Diversity("mmr", lambda_), limit).order.tolist()
    expected = brute_force(*items, lambda_, limit)
    assert len(order) == len(set(order)) == len(expected)
    assert worth(order, *items, lambda_) == pytest.approx(worth(expected, *items, lambda_), abs=1e-5) or (
        order == expected
    )


def worth(
    order: list[int], scores: list[float], categories: list[list[int]], brands: list[int], lambda_: float
) -> float:
    """What the first two choices are worth: up to there ties cannot lead apart."""
    low, high = min(scores), max(scores)
    scaled = [(score - low) / (high - low) if high > low else 0.0 for score in scores]
    total = lambda_ * scaled[order[0]]
    if len(order) > 1:
        total += lambda_ * scaled[order[1]]
        total -= (1 - lambda_) * likeness(order[0], order[1], categories, brands)
    return total


@given(items_of_any_kind, st.integers(1, 3), st.integers(1, 15))
def test_caps_hold_unless_the_slate_would_be_short(
    items: tuple[list[float], list[list[int]], list[int]], most: int, limit: int
) -> None:
    """Before the relaxed part no brand stands more often than its cap, and nothing fitting was left out."""
    result = diversify(ranked(*items), Diversity("mmr", 0.8, {"brand": most}), limit)
    order, brands = result.order.tolist(), items[2]
    assert len(order) == min(limit, len(brands))
    capped = order[: len(order) - result.relaxed]
    counts = {brand: sum(brands[item] == brand for item in capped) for brand in set(brands) - {-1}}
    assert all(count <= most for count in counts.values())
    if result.relaxed:
        left = set(range(len(brands))) - set(capped)
        assert all(brands[item] >= 0 and counts[brands[item]] == most for item in left)


def test_caps_are_relaxed_in_the_rankers_order() -> None:
    """Three of one brand under a cap of one: the slate is filled, and the two extra are counted."""
    items = ranked([3.0, 2.0, 1.0, 0.5], [[0], [1], [2], [3]], [0, 0, 0, 1])
    result = diversify(items, Diversity("none", 1.0, {"brand": 1}), 4)
    assert (result.order.tolist(), result.relaxed) == ([0, 3, 1, 2], 2)


def test_a_cap_on_a_column_that_is_not_there_is_no_cap() -> None:
    """An app may cap brands before its catalogue has them."""
    items = ranked([3.0, 2.0, 1.0], [[0], [0], [0]], [0, 0, 0])
    del items.columns["brand"]
    assert diversify(items, Diversity("none", 1.0, {"brand": 1}), 3).relaxed == 0


@pytest.mark.parametrize("scores", [[1.0, 1.0, 1.0], [float("nan")] * 3, [float("inf"), 1.0, float("-inf")]])
def test_scores_without_a_spread_keep_the_order(scores: list[float]) -> None:
    """Equal and undefined scores leave everything to variety, and to the ranker's order."""
    items = ranked(scores, [[0], [1], [2]], [0, 1, 2])
    assert diversify(items, Diversity("mmr", 0.7), 3).order.tolist() == [0, 1, 2]


def test_nothing_ranked_gives_nothing() -> None:
    """An empty ranking is no error, with and without a method."""
    empty = ranked([], [], [])
    for diversity in (Diversity("mmr", 0.5, {"brand": 1}), Diversity()):
        assert diversify(empty, diversity, 5).order.tolist() == []
