"""Ranking metrics and the leave-one-out protocol, against values worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from narrows.evaluation.leave_one_out import cases, find, reports
from narrows.evaluation.metrics import (
    MAIN,
    coverage,
    gain_at,
    hit_at,
    interval,
    mean,
    reciprocal_rank_at,
    summary,
)
from narrows.interactions import interactions_of

RANKS = np.asarray([0, 2, 9, 10, -1])


def test_each_metric_by_hand() -> None:
    """First, third, tenth, eleventh and not found."""
    assert hit_at(RANKS, 10).tolist() == [1, 1, 1, 0, 0]
    assert gain_at(RANKS, 10) == pytest.approx([1, 0.5, 1 / np.log2(11), 0, 0])
    assert reciprocal_rank_at(RANKS, 25) == pytest.approx([1, 1 / 3, 1 / 10, 1 / 11, 0])
    found = summary(RANKS)
    assert found["hit_at_10"] == pytest.approx(0.6)
    assert found["precision_at_10"] == pytest.approx(0.06)
    assert found[MAIN] == pytest.approx((1.5 + 1 / np.log2(11)) / 5)


def test_nobody_has_no_mean() -> None:
    """Undefined is not zero."""
    assert np.isnan(mean(np.empty(0)))
    assert np.isnan(interval(np.empty(0), np.random.default_rng(0))).all()
    assert np.isnan(coverage([], 0))


def test_the_interval_holds_the_mean() -> None:
    """The bootstrap interval of coin flips lies around one half, about as wide as theory says."""
    low, high = interval(np.asarray([0.0, 1.0] * 200), np.random.default_rng(0))
    assert low < 0.5 < high
    assert high - low == pytest.approx(4 * 0.5 / 20, rel=0.25)


def test_coverage_counts_distinct_first_places() -> None:
    """Two slates of two, one item shared, in a catalogue of six."""
    slates = [np.asarray([0, 1, 5], np.int32), np.asarray([1, 2, 5], np.int32)]
    assert coverage(slates, 6, k=2) == pytest.approx(0.5)


LOG = interactions_of(
    ["a", "a", "a", "b", "b", "c", "d", "d"],
    ["x", "y", "z", "x", "x", "y", "y", "z"],
    [3, 1, 2, 1, 1, 1, 5, 5],
    catalogue=["w"],
)


def test_the_last_event_is_held_out_and_the_history_precedes_it() -> None:
    """By time, equal times in the order given; b repeats an item, c has one event only."""
    held = cases(LOG)
    ids = LOG.item_ids
    assert held.excluded == {"too_few_events": 1, "already_seen": 1}
    asked = [(ids[held.query(one).history].tolist(), str(ids[held.target(one)])) for one in range(len(held))]
    assert asked == [(["y", "z"], "x"), (["y"], "z")]
    assert sorted(held.query(0).exclude.tolist()) == sorted(held.query(0).history.tolist())


def test_a_query_names_the_visitors_segment() -> None:
    """As a request's location would; without segments there is none."""
    log = interactions_of(["a", "a", "b", "b"], ["x", "y", "x", "y"], range(4))
    held = cases(replace(log, segments=np.asarray(["DE", ""])))
    assert [held.query(one).segment for one in range(2)] == ["DE", ""]
    assert cases(log).query(0).segment == ""


def test_a_history_is_as_long_as_the_one_that_serving_knows() -> None:
    """Models would else learn from histories that no state holds; what was seen long ago stays masked."""
    items = [f"i{number:02d}" for number in range(71)]
    query = cases(interactions_of(["a"] * 71, items, list(range(71)))).query(0)
    assert query.history.tolist() == list(range(20, 70))
    assert (len(query.history_times), len(query.history_weights)) == (50, 50)
    assert query.exclude.tolist() == list(range(70))


def test_unmasked_users_with_repeats_are_asked() -> None:
    """Where repeats are recommended, a repeated item is a target like any other."""
    assert len(cases(LOG, mask_seen=False)) == 3


def test_who_stops_early_has_met_all_kinds_of_users() -> None:
    """Anonymous visitors' ids sort before users': in order, the first half of the cases would be theirs."""
    users = [f"{kind}#{number:03d}" for kind in "su" for number in range(100) for _ in range(2)]
    held = cases(interactions_of(users, ["x", "y"] * 200, list(range(400))))
    drawn = held.shuffled(np.random.default_rng(0))
    assert sorted(drawn.positions.tolist()) == held.positions.tolist()
    assert 30 < drawn.segments()["anonymous"][:100].sum() < 70
    assert held.segments()["anonymous"][:100].all()


def test_the_fit_never_sees_what_is_asked() -> None:
    """Holding out leaves exactly the events before the held one, and every user's first event."""
    rest, held = LOG.last_out(1)
    assert len(rest) + len(held) == len(LOG)
    assert len(held) == 3
    assert set(LOG.user_ids[np.unique(rest.users)]) == {"a", "b", "c", "d"}


def test_reports_by_source_and_segment() -> None:
    """An oracle scores one everywhere, a source that knows nothing zero; all here are new visitors."""
    held = cases(LOG)
    found = {
        "oracle": find(held, lambda query: np.asarray([held.log.items[0], 2, 1, 3], np.int32)[:0]),
        "all": find(held, lambda query: np.setdiff1d(np.arange(4), query.history).astype(np.int32)),
    }
    overall, segments = reports(held, found, np.random.default_rng(0))
    assert overall["oracle"]["hit_at_10"] == 0.0
    assert overall["all"]["hit_at_10"] == 1.0
    assert segments["new"]["users"] == 2
    assert "anonymous" not in segments
