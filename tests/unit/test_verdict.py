"""A verdict on two stacks: what the numbers say, no more, and what would turn it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from narrows.evaluation.comparison import Answers, Group
from narrows.evaluation.funnel import StageChange
from narrows.evaluation.metrics import Values
from narrows.evaluation.verdict import Decision, Terms, verdict, would_change
from narrows.simulator import Worth

BEFORE = Terms("counted", 0.4, 2.0, 70.0, 86_400.0, 0.02)
AFTER = Terms("learned", 0.5, 1.0, 78.0, 20.0, 0.05)
RISEN, FALLEN, UNCLEAR = (0.1, 0.3), (-0.3, -0.1), (-0.1, 0.2)


def change(low: float, high: float, requests: int = 1000) -> StageChange:
    """A baseline of 1 and a variant in the middle of the interval."""
    return StageChange("difference", 1.0, 1.0 + (low + high) / 2, low, high, requests)


def decision(
    same: tuple[float, float],
    own: tuple[float, float] | None = None,
    gained: Values | None = None,
    *,
    simulated: bool = True,
) -> Decision:
    """Of a thousand requests."""
    each = np.full(1000, sum(same) / 2) if gained is None else gained
    return Decision(change(*same), change(*(own or same)), each, simulated)


def test_the_better_one_is_named_with_its_numbers() -> None:
    """And what speaks for the other one, where anything does."""
    learned = verdict(decision(RISEN), BEFORE, AFTER)
    assert learned.startswith("learned is better behind the same ranker: margin of a slate")
    assert (
        "counted 1.0000, learned 1.2000; difference +20.0% [+10.0%, +30.0%], over 1,000 visitors." in learned
    )
    assert learned.endswith("For counted speaks cost ($0.03 less a million requests).")
    counted = verdict(decision(FALLEN, simulated=False), BEFORE, AFTER)
    assert counted.startswith("counted is better behind the same ranker: NDCG@10: ")
    assert counted.endswith(
        "For learned speaks recall of its candidates (0.5000 against 0.4000), "
        "new items (20 s against 86,400 s)."
    )
    ahead_in_all = Terms("better", 0.6, 1.0, 78.0, 20.9, 0.01)
    assert "speaks" not in verdict(decision(RISEN), AFTER, ahead_in_all)


def test_where_neither_is_better_both_have_their_say() -> None:
    """No winner is made of noise."""
    said = verdict(decision(UNCLEAR), BEFORE, AFTER)
    assert said.startswith("Neither is better behind the same ranker")
    assert "For counted speaks cost" in said
    assert "For learned speaks recall" in said


def test_rankers_that_disagree_are_told() -> None:
    """In the verdict itself, and as what turns it; where they agree, as what leaves it."""
    other = decision(FALLEN, UNCLEAR)
    assert verdict(other, BEFORE, AFTER).endswith(
        "Behind rankers that read each stack's own scores neither is better: "
        "difference +5.0% [-10.0%, +20.0%]."
    )
    assert would_change(other, BEFORE, AFTER, {})[0].endswith("[-10.0%, +20.0%]; that turns the verdict")
    alike = decision(FALLEN)
    assert "own scores" not in verdict(alike, BEFORE, AFTER)
    assert would_change(alike, BEFORE, AFTER, {})[0].endswith("[-30.0%, -10.0%]; that leaves the verdict")


def test_it_says_what_was_measured() -> None:
    """Each stack that searches an index names it; one whose index was not there says so."""
    on = replace(AFTER, index="OpenSearch 2.19.1, lucene hnsw")
    said = verdict(decision(RISEN), BEFORE, on)
    assert said.endswith("requests). learned was measured on OpenSearch 2.19.1, lucene hnsw.")
    assert "measured on" not in verdict(decision(RISEN), BEFORE, AFTER)
    nan = float("nan")
    without = replace(AFTER, index=None, retrieval_p99_ms=nan, new_item_s=nan, cost_per_million=nan)
    said = verdict(decision(RISEN), BEFORE, without)
    assert said.endswith(
        "over 1,000 visitors. learned was measured without its index: it compared every item, and its time "
        "and cost are not known."
    )
    changes = would_change(decision(RISEN), BEFORE, without, {})
    assert "price: not known, since that of learned was not measured" in changes
    assert not any("nan" in one for one in changes)
    assert not any(one.startswith("time: learned") for one in changes)


def test_what_a_request_brings_less_is_said_so() -> None:
    """The dearer one may earn less: no negative amount is "more"."""
    (price,) = [one for one in would_change(decision(FALLEN), BEFORE, AFTER, {}) if one.startswith("price: ")]
    assert price.endswith("brings $3e-08 more, and these bring $0.2 less")


def test_without_requests_there_is_no_verdict() -> None:
    """Nor is one made of numbers that are not there."""
    nothing = StageChange("difference", *[float("nan")] * 4, 0)
    empty = Decision(nothing, nothing, np.empty(0), simulated=True)
    assert verdict(empty, BEFORE, AFTER) == (
        "No verdict: margin of a slate, by the market's truth is not known (no requests)."
    )
    assert not any("nan" in one for one in would_change(empty, BEFORE, AFTER, {}))


def test_thresholds_are_computed() -> None:
    """A group of the other sign turns it at a share of requests; price, novelty and time have theirs."""
    few = np.arange(1000) < 100
    gained = np.where(few, -0.3, 0.1)  # even where one request in four is of the group
    said = would_change(decision(RISEN, gained=gained), BEFORE, AFTER, {"anonymous": Group(few, "")})
    assert said[1:] == [
        "anonymous: 10% of requests today; above 25%, counted, which is better there, is ahead",
        "price: learned costs $0.03 more a million requests than counted; it pays as soon as a request "
        "brings $3e-08 more, and these bring $0.06 more",
        "new items: whoever needs them counted for a visitor in less than 86,400 s cannot have counted "
        "alone; learned needs 20 s",
        "time: counted retrieves in 2.00 ms (p99) of 70 ms allowed; 35.0 times as slow and it is dropped",
        "time: learned retrieves in 1.00 ms (p99) of 78 ms allowed; 78.0 times as slow and it is dropped",
    ]


def test_a_group_that_leads_today_is_told_from_below() -> None:
    """Where the group carries the lead, fewer of it lose it; a small group says nothing."""
    most = np.arange(1000) >= 200
    groups = {"head": Group(most, ""), "new_items": Group(np.arange(1000) < 10, "")}
    found = decision(RISEN, gained=np.where(most, 0.1, -0.1), simulated=False)
    text = "\n".join(would_change(found, BEFORE, AFTER, groups))
    assert "head: 80% of requests today; below 50%, learned, which is better there, is behind" in text
    assert "new_items" not in text
    assert "these bring" not in text


def test_an_undecided_comparison_says_what_it_takes() -> None:
    """An interval of three times the difference takes nine times the visitors; or trainings disagree."""
    spread = 0.3 * np.sqrt(1000) / 1.96
    gained = 0.1 + spread * np.where(np.arange(1000) % 2, 1.0, -1.0)
    said = would_change(decision((-0.2, 0.4), gained=gained), BEFORE, AFTER, {})
    assert said[1].startswith("more visitors: about 9,000 would")
    agreed = would_change(decision((-0.2, 0.4), gained=np.full(1000, 0.1)), BEFORE, AFTER, {})
    assert agreed[1].startswith("trainings: visitors are enough")


def test_the_chance_of_a_training_is_no_difference() -> None:
    """Two trials that come to opposite ends leave an interval that holds both."""
    ranks = np.zeros(50, np.int64)
    worth = [Worth(*(np.full(50, value) for _ in range(4))) for value in (1.0, 1.5)]
    one, other = (Answers(ranks, ranks, ranks, each) for each in worth)
    found = Decision.of([[one, other], [other, one]], [[one, one], [other, other]], np.random.default_rng(0))
    assert (found.same.low, found.same.high, found.same.baseline) == (-0.5, 0.5, 1.25)
    assert (found.own.low, found.own.high) == (0.5, 0.5)
    assert not found.gained.any()
    assert verdict(found, BEFORE, AFTER).startswith("Neither is better")


def test_margin_decides_where_it_is_known() -> None:
    """Else the gain of the ranked order does; requests are paired."""
    ranks = np.zeros(50, np.int64)
    poor, rich = (Worth(*(np.full(50, value) for _ in range(4))) for value in (1.0, 1.5))
    known = [[Answers(ranks, ranks, ranks, worth)] for worth in (poor, rich)]
    found = Decision.of(known, known[::-1], np.random.default_rng(0))
    assert (found.same.baseline, found.same.variant, found.same.low) == (1.0, 1.5, 0.5)
    assert (found.own.low, found.simulated) == (-0.5, True)
    assert found.gained == pytest.approx(np.full(50, 0.5))
    blind = [[Answers(one, one, one, None)] for one in (ranks + 1, ranks)]
    unknown = Decision.of(blind, blind, np.random.default_rng(0))
    assert unknown.same.variant == 1.0
    assert unknown.what == "NDCG@10"
