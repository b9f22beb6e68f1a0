"""Popular and fresh: orders that can be told by looking at the log."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from narrows.features import statistics
from narrows.interactions import interactions_of
from narrows.retrieval import Query
from narrows.sources import load_sources, popular
from narrows.sources.fresh import fresh
from narrows.sources.popular import Params


def rows_by_number(ids: list[str]) -> np.ndarray:
    """Items are named by their row."""
    return np.asarray([int(one) for one in ids], np.int32)


def query(*, segment: str = "", exclude: list[int] | None = None, now: float = 1e9) -> Query:
    """A request of a visitor without a history."""
    nothing = np.empty(0, np.int32)
    return Query(
        nothing,
        np.empty(0),
        np.empty(0, np.float32),
        nothing,
        now,
        "feed",
        segment,
        np.asarray(exclude or [], np.int32),
    )


LOG = interactions_of(
    ["a", "a", "a", "b", "b", "c"], ["0", "1", "2", "0", "1", "0"], [0, 100, 200, 0, 100, 0], catalogue=["3"]
)


def test_the_most_frequent_item_comes_first() -> None:
    """Without decay the order is that of the counts, and what nobody touched is not popular."""
    source = popular.fit(LOG, Params()).bind(rows_by_number, 4)
    found = source.retrieve(query(), 10)
    assert found.rows.tolist() == [0, 1, 2]
    assert found.scores == pytest.approx([3 / 6, 2 / 6, 1 / 6])
    assert np.isnan(source.score(query(), np.asarray([3, 99], np.int32))).all()


def test_decay_prefers_what_is_recent() -> None:
    """With a half-life of 50 s, one event at 200 s outweighs two at 100 s and three at 0 s."""
    source = popular.fit(LOG, Params(half_life_s=50)).bind(rows_by_number, 4)
    assert source.retrieve(query(), 10).rows.tolist() == [2, 1, 0]


def test_a_segment_has_its_own_order() -> None:
    """Where a segment differs from everyone, its visitors get its order; unknown segments get everyone's."""
    log = interactions_of(["a"] * 3 + ["b"] * 2, ["0", "0", "0", "1", "1"], range(5))
    model = popular.fit(log, Params(prior_events=1), segments=["DE", "FR"])
    source = model.bind(rows_by_number, 2)
    assert source.retrieve(query(), 1).rows.tolist() == [0]
    assert source.retrieve(query(segment="FR"), 1).rows.tolist() == [1]
    assert source.retrieve(query(segment="XX"), 1).rows.tolist() == [0]
    assert model.slates(1) == {"": ["0"], "DE": ["0"], "FR": ["1"]}


def test_excluded_rows_make_room_for_the_next() -> None:
    """The quota is filled after the exclusion."""
    source = popular.fit(LOG, Params()).bind(rows_by_number, 4)
    assert source.retrieve(query(exclude=[0]), 2).rows.tolist() == [1, 2]


def test_a_saved_model_answers_the_same(tmp_path: Path) -> None:
    """Saved and loaded, segments and order are equal."""
    popular.fit(LOG, Params(), segments=["DE", "FR", ""]).save(tmp_path / popular.FILE)
    source = load_sources(tmp_path, rows_by_number, 4)["popular"]
    assert source.retrieve(query(segment="DE"), 3).rows.tolist() == [0, 1, 2]
    assert set(load_sources(tmp_path, rows_by_number, 4)) == {"popular"}


def test_fresh_gives_the_newest_that_exists() -> None:
    """Items of the future and of unknown age are not offered; the rest comes newest first."""
    source = fresh(np.asarray([100.0, np.nan, 300.0, 200.0]))
    assert source.retrieve(query(now=250.0), 10).rows.tolist() == [3, 0]
    assert source.retrieve(query(now=400.0, exclude=[2]), 1).rows.tolist() == [3]
    assert source.score(query(now=86_600.0), np.asarray([3], np.int32)) == pytest.approx([-1.0])


def test_statistics_count_what_happened() -> None:
    """Counts, repeats, openings and age are those of the log."""
    log = interactions_of(["a", "a", "b"], ["0", "0", "1"], [0.0, 86_400.0, 86_400.0], catalogue=["2"])
    table = statistics.fit(log, statistics.Params(half_life_s=86_400.0)).bind(rows_by_number, 3)
    read = table.read(np.asarray([0, 1, 2, 9, -1], np.int32))
    assert read[0] == pytest.approx([np.log1p(2), np.log1p(1.5), 2.0, 0.5, 1.0, 0.0])
    assert read[1] == pytest.approx([np.log1p(1), np.log1p(1), 1.0, 1.0, 0.0, 0.0])
    assert read[2:] == pytest.approx(np.tile([0, 0, 1, 0, 0, 1], (3, 1)))
