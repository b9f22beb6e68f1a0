"""Two stacks over the same requests: groups, their numbers, what is held and what it costs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from narrows.capacity import PRICES, Load, cost_per_million
from narrows.evaluation.comparison import (
    Answers,
    Group,
    business_of,
    gain_of,
    groups_of,
    held_bytes,
    recall_of,
)
from narrows.evaluation.leave_one_out import cases
from narrows.interactions import interactions_of
from narrows.simulator import Worth

DAY_S = 86_400.0


def test_requests_are_told_apart_by_item_and_visitor() -> None:
    """Head and tail are all; half of the events make the head; new counts from the creation."""
    users = ["a", "a", "b", "b", "s#c", "s#c"]
    items = ["x", "y", "x", "y", "x", "z"]
    log = interactions_of(users, items, [1.0, 10 * DAY_S] * 3)
    created = np.array([np.nan, 0.0, 8 * DAY_S])
    groups = groups_of(cases(log), np.array([6, 3, 1]), created)
    chosen = {name: group.chosen.tolist() for name, group in groups.items()}
    assert chosen["overall"] == [True] * 3
    assert chosen["head"] == [False, False, False]  # x alone has half of the ten events
    assert chosen["tail"] == [True] * 3
    assert chosen["new_items"] == [False, False, True]
    assert chosen["anonymous"] == [False, False, True]
    assert chosen["new_visitors"] == [True] * 3
    assert "50%" in groups["head"].meaning
    popular_y = groups_of(cases(log), np.array([3, 6, 1]), created)
    assert popular_y["head"].chosen.tolist() == [True, True, False]


def test_recall_and_gain_by_group() -> None:
    """By hand: of three found at 0, 50 and nowhere; of nobody there is no number."""
    ranks = np.array([0, 50, -1])
    groups = {"all": Group(np.ones(3, bool), ""), "none": Group(np.zeros(3, bool), "")}
    recall = recall_of(ranks, groups)
    assert recall["all"] == pytest.approx(
        {"recall_at_10": 1 / 3, "recall_at_100": 2 / 3, "recall_at_300": 2 / 3}
    )
    assert all(np.isnan(value) for value in recall["none"].values())
    trials = [Answers(ranks, one, ranks, None) for one in (ranks, np.full(3, -1))]
    assert gain_of(trials, groups)["all"] == pytest.approx(1 / 6)
    assert np.isnan(gain_of(trials, groups)["none"])


def test_business_is_for_a_thousand_slates_or_unknown() -> None:
    """With an interval that a constant does not widen; nan where nobody knows."""
    ranks = np.zeros(50, np.int64)
    each = [Worth(*(np.full(50, value) for value in (0.4, 0.1, 3.0, margin))) for margin in (0.5, 1.5)]
    found = business_of([Answers(ranks, ranks, ranks, one) for one in each], np.random.default_rng(0))
    assert found["margin"] == {"mean": 1000.0, "low": 1000.0, "high": 1000.0}
    assert found["clicks"]["mean"] == pytest.approx(400.0)
    unknown = business_of([Answers(ranks, ranks, ranks, None)], np.random.default_rng(0))
    assert set(unknown) == {"clicks", "conversions", "revenue", "margin"}
    assert all(np.isnan(value) for part in unknown.values() for value in part.values())


def test_stages_and_what_decides() -> None:
    """Without a truth the funnel ends at what is shown, and the gain of the ranked order decides."""
    ranks = np.array([0, 5, -1])
    worth = Worth(*(np.arange(3.0) * at for at in (1, 2, 3, 4)))
    answers = Answers(np.array([200, 5, -1]), ranks, np.array([0, -1, -1]), worth)
    stages = answers.stages(100, 3)
    assert {name: values.tolist() for name, values in stages.items()} == {
        "retrieved": [0, 1, 0],
        "ranked": [1, 0, 0],
        "shown": [1, 0, 0],
        "clicked": [0, 1, 2],
        "converted": [0, 2, 4],
        "margin": [0, 4, 8],
    }
    assert answers.decisive().tolist() == [0, 4, 8]
    blind = Answers(ranks, ranks, ranks, None)
    assert set(blind.stages(100, 3)) == {"retrieved", "ranked", "shown"}
    assert blind.decisive()[0] == 1.0


@dataclass
class Held:
    """Something with arrays in it."""

    table: np.ndarray
    parts: dict[str, object]
    name: str = "a source"


def test_held_bytes_count_each_buffer_once() -> None:
    """Views hold what they look at; text and numbers are nothing beside the arrays."""
    table = np.zeros((100, 10), np.float32)
    held = Held(table[:5], {"again": table, "more": [np.zeros(3, np.int64), (np.zeros(2, np.int8), 7)]})
    assert held_bytes(held) == 4000 + 24 + 2
    assert held_bytes(held, held) == held_bytes(held)
    assert held_bytes() == 0


def test_cost_adds_up_by_hand() -> None:
    """A function of one processor for 2 ms, a node half busy for 1 ms, an hour of training over a month."""
    month = 30 * 86_400.0
    load = Load(2.0, 1.0, 0.0, 3600.0, requests_per_s=1e6 / month)
    cost = cost_per_million(load)
    assert cost["function"] == pytest.approx(2000 * 1769 / 1024 * 0.0000133334)
    assert cost["search"] == pytest.approx(1000 / 3600 / 0.5 * 1.060 / 16)
    assert cost["training"] == pytest.approx(0.23)
    assert cost["all"] == pytest.approx(sum(cost[name] for name in PRICES))
    larger = cost_per_million(Load(2.0, 1.0, 4 * 2**30, 3600.0, 1e6 / month))
    assert larger["function"] / cost["function"] == pytest.approx(4.5 / (1769 / 1024))
    assert np.isnan(cost_per_million(Load(float("nan"), 0.0, 0.0, 0.0, 1.0))["all"])
