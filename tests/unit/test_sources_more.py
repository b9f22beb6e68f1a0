"""Bought together, trending and content: what they count by hand, and what they offer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from narrows.interactions import Interactions, interactions_of
from narrows.retrieval import Query, Rows
from narrows.sources import bought_together, content, trending
from narrows.text_vectors import fit_hashed_words, text_marks

HOUR = 3600.0


def rows_by_number(ids: list[str]) -> Rows:
    """Items are named by their row."""
    return np.asarray([int(one) for one in ids], np.int32)


def query(
    history: list[int], *, seeds: tuple[int, ...] = (), exclude: tuple[int, ...] = (), segment: str = ""
) -> Query:
    """A request after these rows."""
    return Query(
        np.asarray(history, np.int32),
        np.arange(len(history), dtype=np.float64),
        np.ones(len(history), np.float32),
        np.asarray(seeds, np.int32),
        1e9,
        "cart",
        segment,
        np.asarray(exclude, np.int32),
    )


def baskets(*contents: list[int], weight: float = 4.0, items: int = 8) -> Interactions:
    """One basket a day for one user each, after a click on item 7 that is in no basket."""
    rows = [("u", 7, 0.0, 1.0)]
    for user, content_of in enumerate(contents):
        rows += [(f"u{user}", item, 86_400.0 + at, weight) for at, item in enumerate(content_of)]
    users, which, times, weights = zip(*rows, strict=True)
    return interactions_of(
        users, [str(item) for item in which], times, weights, catalogue=[str(one) for one in range(items)]
    )


def test_lift_by_hand() -> None:
    """Of eight pairs counted both ways, 0 with 1 are four; each stands in six: 4 * 16 / (6 * 6)."""
    log = baskets([0, 1], [0, 1], [0, 1], [1, 0], [0, 2], [1, 2], [0, 3], [1, 3])
    model = bought_together.fit(log, bought_together.Params(support=2))
    assert model.neighbours.tolist() == [1, 0]
    assert np.exp(model.lifts) == pytest.approx([4 * 16 / 36] * 2)
    source = model.bind(rows_by_number, 8)
    assert source.name == "bought_together"
    assert source.retrieve(query([], seeds=(0,)), 5).rows.tolist() == [1]
    assert len(source.retrieve(query([], seeds=(0,), exclude=(1,)), 5).rows) == 0
    assert source.score(query([0]), np.asarray([1], np.int32)) == pytest.approx([np.log(16 / 9)], rel=1e-5)


def test_what_is_rarely_bought_needs_support() -> None:
    """A pair seen once has the highest lift of all, and is not believed below the support."""
    log = baskets([0, 1], [0, 1], [0, 1], [4, 5])
    pairs = bought_together.count_pairs(log, bought_together.Params())
    known = {
        support: bought_together.weigh(
            log, pairs, bought_together.Params(support=support)
        ).neighbours.tolist()
        for support in (1, 2)
    }
    assert known == {1: [1, 0, 5, 4], 2: [1, 0]}


def test_baskets_end_with_the_user_and_with_the_sitting() -> None:
    """Two users, and one user an hour and a minute apart; clicks are not in the basket."""
    log = interactions_of(
        ["a", "a", "a", "a", "b"],
        ["0", "9", "1", "2", "3"],
        [0.0, 5.0, 10.0, 10.0 + HOUR + 60, 11.0],
        [3.0, 1.0, 3.0, 3.0, 3.0],
    )
    found = bought_together.count_pairs(log, bought_together.Params())
    pairs = {(int(key) // log.item_count, int(key) % log.item_count) for key in found.keys}
    assert pairs == {(0, 1), (1, 0)}


def test_no_events_make_no_pairs() -> None:
    """An empty log fits, and knows nothing."""
    log = interactions_of([], [], [], catalogue=["0", "1"])
    assert len(bought_together.fit(log, bought_together.Params()).neighbours) == 0
    source = trending.fit(log, trending.Params()).bind(rows_by_number, 2)
    assert len(source.retrieve(query([]), 5).rows) == 0


def test_trending_is_a_rise_and_not_a_size() -> None:
    """Item 0 is always popular; item 1 came up in the last hour; item 2 went away."""
    old = [(0, 100), (1, 2), (2, 50)]
    new = [(0, 10), (1, 10), (2, 0)]
    rows = [
        (str(item), when)
        for part, when in ((old, 0.0), (new, 100 * HOUR))
        for item, n in part
        for _ in range(n)
    ]
    log = interactions_of([f"u{at}" for at in range(len(rows))], *zip(*rows, strict=True))
    params = trending.Params(half_life_s=HOUR)
    found = trending.fit(log, params)
    expected = 12 * 20 / 172
    assert found.rises[0] == pytest.approx([0.0, (10 - expected) / np.sqrt(expected + 1), 0.0], abs=1e-4)
    source = found.bind(rows_by_number, 3)
    assert (source.name, source.retrieve(query([]), 5).rows.tolist()) == ("trending", [1])


def test_segments_have_trends_of_their_own() -> None:
    """What rises in one segment is offered there, and everywhere's rise to a visitor of none."""
    rows = (
        [("a", "0", 0.0)] * 40
        + [("b", "1", 0.0)] * 40
        + [("a", "1", 50 * HOUR)] * 9
        + [("b", "0", 50 * HOUR)] * 5
    )
    users, items, times = zip(*rows, strict=True)
    log = replace(interactions_of(users, items, times), segments=np.asarray(["DE", "US"]))
    params = trending.Params(half_life_s=HOUR, least_users=1)
    source = trending.fit(log, params).bind(rows_by_number, 2)
    first = {
        name: source.retrieve(query([], segment=name), 1).rows.tolist() for name in ("DE", "US", "", "XX")
    }
    assert first == {"DE": [1], "US": [0], "": [1], "XX": [1]}


def test_content_offers_what_is_written_alike(tmp_path: Path) -> None:
    """After shoes come shoes; items without words, and visitors without such items, get and give nothing."""
    texts = ["red shoes", "blue shoes", "green tea", "black tea", "shoes and socks", ""]
    encoder = fit_hashed_words(texts, np.random.default_rng(0))
    ids = np.asarray([str(at) for at in range(6)])
    marks = text_marks(texts)
    content.Content(ids, encoder.encode(texts), marks, encoder, content.Params()).save(
        tmp_path / content.FILE
    )
    source = content.load(tmp_path / content.FILE).bind(rows_by_number, 8)
    found = source.retrieve(query([0], exclude=(0,)), 8)
    assert set(found.rows[:2].tolist()) == {1, 4}
    assert 5 not in found.rows
    assert source.score(query([0]), found.rows) == pytest.approx(found.scores, abs=1e-6)
    assert source.signals(query([0]), np.asarray([0, 5, 7, -1], np.int32))[:, 1] == pytest.approx(
        [1.0, np.nan, np.nan, np.nan], nan_ok=True
    )
    assert len(source.retrieve(query([5, 7]), 3).rows) == 0
    source.place(np.asarray([7, 1, 3], np.int32), ["old shoes", "", "black shoes"])
    found = source.retrieve(query([0], exclude=(0,)), 4)
    assert {3, 7} <= set(found.rows.tolist())
    assert 1 not in found.rows
    assert np.isnan(source.score(query([0]), np.asarray([1], np.int32)))


def test_saved_counts_answer_the_same(tmp_path: Path) -> None:
    """Through their files, bit for bit."""
    log = baskets([0, 1], [0, 1], [0, 1, 2], [3, 4])
    models = (
        (bought_together, bought_together.fit(log, bought_together.Params(support=1))),
        (trending, trending.fit(log, trending.Params(half_life_s=HOUR))),
    )
    for module, model in models:
        model.save(tmp_path / module.FILE)
        loaded = module.load(tmp_path / module.FILE)
        assert loaded.params == model.params
        one, other = (each.bind(rows_by_number, 8).retrieve(query([0]), 8) for each in (model, loaded))
        assert len(one.rows) > 0
        assert np.array_equal(one.rows, other.rows)
        assert np.array_equal(one.scores, other.scores)
