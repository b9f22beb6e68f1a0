"""Popular and fresh: orders that can be told by looking at the log."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from narrows.features import statistics
from narrows.features.statistics import DeclaredItems
from narrows.interactions import interactions_of
from narrows.retrieval import Query
from narrows.sources import load_sources, popular
from narrows.sources.fresh import fresh
from narrows.sources.popular import Params
from narrows.sources.rows import save_arrays


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
    log = replace(log, segments=np.asarray(["DE", "FR"]))
    model = popular.fit(log, Params(prior_events=1, least_users=1))
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
    log = replace(LOG, segments=np.asarray(["DE", "FR", ""]))
    popular.fit(log, Params()).save(tmp_path / popular.FILE)
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


def test_declared_item_features_are_read_as_of_a_moment(tmp_path: Path) -> None:
    """The newest layer that is not in the future; a default and a flag for the unknown, and before any."""
    declared = DeclaredItems(
        ("sold", "rate"),
        np.asarray([0.0, 0.05], np.float32),
        np.asarray(["0", "1"]),
        np.asarray([100.0, 200.0]),
        np.asarray([[[1, 0.5], [np.nan, 0.25]], [[2, 0.75], [3, np.nan]]], np.float32),
    )
    log = interactions_of(["a"], ["0"], [0.0], catalogue=["1", "2"])
    replace(statistics.fit(log, statistics.Params()), declared=declared).save(tmp_path / "kept.npz")
    table = statistics.load(tmp_path / "kept.npz").bind(rows_by_number, 3)
    assert table.declared == ("sold", "sold_missing", "rate", "rate_missing")
    rows = np.asarray([0, 1, 2], np.int32)
    unknown = [0, 1, 0.05, 1]
    assert table.read_declared(rows, 99.0) == pytest.approx(np.asarray([unknown] * 3))
    assert table.read_declared(rows, 100.0) == pytest.approx(
        np.asarray([[1, 0, 0.5, 0], [0, 1, 0.25, 0], unknown])
    )
    served = replace(statistics.load(tmp_path / "kept.npz"), declared=declared.newest())
    assert served.bind(rows_by_number, 3).read_declared(rows[:2], 1e9) == pytest.approx(
        np.asarray([[2, 0, 0.75, 0], [3, 0, 0.05, 1]])
    )


def test_item_statistics_of_a_model_without_declared_features_still_read(tmp_path: Path) -> None:
    """A file that was written before there were any gives a table that declares nothing."""
    log = interactions_of(["a"], ["0"], [0.0])
    fitted = statistics.fit(log, statistics.Params())
    save_arrays(tmp_path / "old.npz", {"item_ids": fitted.item_ids, "values": fitted.values}, fitted.params)
    table = statistics.load(tmp_path / "old.npz").bind(rows_by_number, 1)
    assert table.declared == ()
    assert table.read_declared(np.asarray([0], np.int32), 1.0).shape == (1, 0)


def test_a_segment_of_a_few_is_nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor are there more segments than one wants to hold in memory, the busiest first."""
    users = [f"u{number}" for number in range(25)]
    log = interactions_of(users, ["0"] * 10 + ["1"] * 15, range(25))
    segments = np.where(np.arange(25) < 10, "DE", np.where(np.arange(25) < 16, "XX", "FR"))
    log = replace(log, segments=segments)
    assert popular.fit(log, Params()).segments == ("", "DE")
    assert popular.fit(log, Params(least_users=6)).segments == ("", "DE", "FR", "XX")
    monkeypatch.setattr(popular, "VALUES", 2 * log.item_count)
    assert popular.fit(log, Params(least_users=6)).segments == ("", "DE", "FR")
