"""ALS: equal to the normal equations, and right on a checkerboard."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from narrows.interactions import Interactions, interactions_of
from narrows.retrieval import Query
from narrows.sources import als
from narrows.sources.als import Params


def rows_by_number(ids: list[str]) -> np.ndarray:
    """Items are named by their row."""
    return np.asarray([int(one) for one in ids], np.int32)


def query(history: list[int], *, exclude: list[int] | None = None) -> Query:
    """A request after these items."""
    return Query(
        np.asarray(history, np.int32),
        np.arange(len(history), dtype=np.float64),
        np.ones(len(history), np.float32),
        np.empty(0, np.int32),
        1e9,
        "feed",
        exclude=np.asarray(exclude or [], np.int32),
    )


def checkerboard(size: int = 20) -> Interactions:
    """Even users like even items, odd users odd ones; each user's own item is withheld."""
    cells = [(u, i) for u in range(size) for i in range(size) if u % 2 == i % 2 and u != i]
    return interactions_of(
        [f"{u:02}" for u, _ in cells],
        [str(i) for _, i in cells],
        list(range(len(cells))),
        catalogue=[str(i) for i in range(size)],
    )


def test_the_withheld_item_of_a_checkerboard_comes_first() -> None:
    """Whoever likes even items is offered the even one not yet seen, before any odd one."""
    log = checkerboard()
    model = als.fit(log, Params(dimension=4, sweeps=10), np.random.default_rng(0))
    source = model.bind(rows_by_number, 20)
    for user in range(20):
        seen = [one for one in range(20) if one % 2 == user % 2 and one != user]
        assert source.retrieve(query(seen, exclude=seen), 1).rows.tolist() == [user]


def test_a_half_sweep_solves_the_normal_equations() -> None:
    """The vectors of the last half sweep equal the explicit solution, item by item."""
    log = checkerboard(12)
    params = Params(dimension=3, sweeps=2, unobserved=0.2, regularisation=0.01)
    users, items, weights = als._cells(log)
    people = np.random.default_rng(3).normal(size=(12, 3)).astype(np.float32)
    solved = als._half_sweep(als._Table(items, users, weights, 12), people, params)
    for item in range(12):
        seen = people[users[items == item]].astype(np.float64)
        total = weights[items == item].sum()
        everyone = people.astype(np.float64)
        left = seen.T @ seen + 0.2 * everyone.T @ everyone
        left += (0.01 * (total + 0.2 * 12) + 1e-6) * np.eye(3)
        assert solved[item] == pytest.approx(np.linalg.solve(left, seen.sum(axis=0)), rel=1e-3, abs=1e-5)


def test_fold_in_solves_the_visitors_normal_equations() -> None:
    """A visitor's vector is the weighted least-squares solution, recent items weighing more."""
    log = checkerboard()
    params = Params(dimension=4, sweeps=5, history_decay=0.5)
    model = als.fit(log, params, np.random.default_rng(0))
    items = rows_by_number(model.item_ids.tolist())
    vectors = np.empty((20, 4))
    vectors[items] = model.vectors
    source = model.bind(rows_by_number, 20)
    found = source.visitor(query([2, 4, 6]))
    weights = np.asarray([0.25, 0.5, 1.0])
    seen = vectors[[2, 4, 6]]
    left = (seen * weights[:, None]).T @ seen + params.unobserved * vectors.T @ vectors
    left += (params.regularisation * (1.75 + params.unobserved * 20) + 1e-6) * np.eye(4)
    assert found == pytest.approx(np.linalg.solve(left, (seen * weights[:, None]).sum(axis=0)), rel=1e-3)
    rows = np.arange(20, dtype=np.int32)
    assert source.score(query([2, 4, 6]), rows) == pytest.approx(vectors @ found, rel=1e-3, abs=1e-5)


def test_new_visitors_and_new_items_are_no_error() -> None:
    """No history gives no candidates; an item without events has no score, and is not recommended."""
    log = interactions_of(["a", "a", "b", "b"], ["0", "1", "0", "1"], [1, 2, 3, 4], catalogue=["2"])
    source = als.fit(log, Params(dimension=2), np.random.default_rng(0)).bind(rows_by_number, 3)
    assert len(source.retrieve(query([]), 5).rows) == 0
    assert len(source.retrieve(query([2, 77]), 5).rows) == 0
    assert np.isnan(source.score(query([0]), np.asarray([2, 77, -1], np.int32))).all()
    assert 2 not in source.retrieve(query([0]), 5).rows


def test_the_same_seed_gives_the_same_vectors() -> None:
    """The start is the only chance in a fit."""
    log, params = checkerboard(), Params(dimension=4, sweeps=3)
    one, other = (als.fit(log, params, np.random.default_rng(7)).vectors for _ in range(2))
    assert np.array_equal(one, other)


def test_a_saved_model_answers_the_same(tmp_path: Path) -> None:
    """Saved and loaded, scores are equal bit for bit."""
    model = als.fit(checkerboard(), Params(dimension=4), np.random.default_rng(0))
    model.save(tmp_path / als.FILE)
    loaded = als.load(tmp_path / als.FILE)
    rows = np.arange(20, dtype=np.int32)
    one, other = (each.bind(rows_by_number, 20).score(query([1, 3]), rows) for each in (model, loaded))
    assert np.array_equal(one, other)


def test_recency_changes_what_is_offered() -> None:
    """With a steep decay the last item decides, whatever came before."""
    model = als.fit(checkerboard(), Params(dimension=4, sweeps=10), np.random.default_rng(0))
    steep = replace(model, params=replace(model.params, history_decay=0.01)).bind(rows_by_number, 20)
    history = [0, 2, 4, 6, 1]
    assert all(row % 2 == 1 for row in steep.retrieve(query(history, exclude=history), 5).rows)


def test_an_empty_log_fits() -> None:
    """No events make a model that knows nothing."""
    log = interactions_of([], [], [], catalogue=["0", "1"])
    source = als.fit(log, Params(dimension=2), np.random.default_rng(0)).bind(rows_by_number, 2)
    assert len(source.retrieve(query([0]), 5).rows) == 0
