"""Co-visitation: equal to counting by hand, and right on data whose answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from narrows.errors import BundleError
from narrows.interactions import Interactions, interactions_of
from narrows.retrieval import NO_ROWS, Query
from narrows.sources import covisitation
from narrows.sources.covisitation import Params


def rows_by_number(ids: list[str]) -> np.ndarray:
    """Items are named by their row."""
    return np.asarray([int(one) for one in ids], np.int32)


def random_log(seed: int, *, users: int = 12, items: int = 9, events: int = 150) -> Interactions:
    """A small log with repeats, equal times and two kinds of events."""
    generator = np.random.default_rng(seed)
    return interactions_of(
        [f"u{one}" for one in generator.integers(0, users, events)],
        [str(one) for one in generator.integers(0, items, events)],
        generator.integers(0, 40, events).astype(float),
        generator.choice([1.0, 3.0], events),
        catalogue=[str(one) for one in range(items)],
    )


def query(history: list[int], *, seeds: list[int] | None = None, exclude: list[int] | None = None) -> Query:
    """A request after these items."""
    return Query(
        np.asarray(history, np.int32),
        np.arange(len(history), dtype=np.float64),
        np.ones(len(history), np.float32),
        np.asarray(seeds or [], np.int32),
        1e9,
        "feed",
        exclude=np.asarray(exclude or [], np.int32),
    )


def strengths_by_hand(log: Interactions, params: Params) -> np.ndarray:
    """The definition, one pair at a time."""
    table = np.zeros((log.item_count, log.item_count))
    popularity = np.bincount(log.items, minlength=log.item_count) + 1.0
    worth = log.weights / log.weights.mean()
    for user in range(log.user_count):
        events = np.flatnonzero(log.users == user)
        for at, earlier in enumerate(events):
            for apart in range(1, params.gap + 1):
                if at + apart < len(events):
                    later = events[at + apart]
                    one, other = log.items[earlier], log.items[later]
                    if one != other:
                        count = params.gap_decay ** (apart - 1) * worth[later]
                        table[one, other] += count
                        table[other, one] += params.backward * count
    return table / popularity[None] ** params.popularity / popularity[:, None] ** params.activity


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "params", [Params(), Params(gap=3, backward=0.5), Params(gap=1, activity=0.0, popularity=1.0)]
)
def test_strengths_are_what_counting_every_pair_gives(seed: int, params: Params) -> None:
    """Sorting encoded pairs gives the sums of the definition."""
    log = random_log(seed)
    model = covisitation.fit(log, params)
    table = np.zeros((log.item_count, log.item_count))
    source = np.repeat(np.arange(log.item_count), np.diff(model.offsets))
    table[source, model.neighbours] = model.strengths
    assert table == pytest.approx(strengths_by_hand(log, params), abs=1e-6)


def test_one_count_serves_every_weighting() -> None:
    """Weighing pairs counted up to a wider gap equals counting up to the narrower one."""
    log = random_log(5)
    narrow = covisitation.fit(log, Params(gap=2))
    wide = covisitation.weigh(log, covisitation.count_pairs(log, 6), Params(gap=2))
    assert np.array_equal(narrow.neighbours, wide.neighbours)
    assert narrow.strengths == pytest.approx(wide.strengths)


def test_retrieve_ranks_as_a_dense_sum_does() -> None:
    """The first answers are those of the history's weighted rows of the table, best first."""
    log, params = random_log(1), Params(history=3)
    source = covisitation.fit(log, params).bind(rows_by_number, log.item_count)
    history = [0, 4, 2, 7]
    table = strengths_by_hand(log, params)
    scores = table[7] + params.history_decay * table[2] + params.history_decay**2 * table[4]
    scores[history] = 0.0
    found = source.retrieve(query(history, exclude=history), 100)
    assert found.rows.tolist() == [one for one in np.argsort(-scores, kind="stable") if scores[one] > 0]
    assert found.scores == pytest.approx(scores[found.rows], rel=1e-5)
    assert source.score(query(history), found.rows) == pytest.approx(found.scores, rel=1e-5)


def test_a_chain_predicts_its_next_link() -> None:
    """Where everyone goes from each item to the next one, the next one comes first."""
    users = [f"u{start}" for start in range(10) for _ in range(5)]
    items = [str((start + step) % 10) for start in range(10) for step in range(5)]
    log = interactions_of(users, items, list(range(50)))
    source = covisitation.fit(log, Params()).bind(rows_by_number, 10)
    for last in range(10):
        assert source.retrieve(query([last]), 1).rows.tolist() == [(last + 1) % 10]


def test_unknown_items_have_nothing_to_say() -> None:
    """An empty history, and rows newer than the model, give no candidates and nan scores."""
    log = random_log(2)
    source = covisitation.fit(log, Params()).bind(rows_by_number, log.item_count)
    assert len(source.retrieve(query([]), 10).rows) == 0
    assert len(source.retrieve(query([500]), 10).rows) == 0
    scores = source.score(query([1]), np.asarray([500, -1], np.int32))
    assert np.isnan(scores).all()


def test_seeds_lead_before_the_history() -> None:
    """A product page's item weighs as much as the newest item alone would."""
    log = random_log(3)
    source = covisitation.fit(log, Params(history=1)).bind(rows_by_number, log.item_count)
    seeded = source.retrieve(query([1, 2], seeds=[5]), 5)
    assert np.array_equal(seeded.rows, source.retrieve(query([5]), 5).rows)


def test_a_saved_model_answers_the_same(tmp_path: Path) -> None:
    """Saved and loaded, over a snapshot in another order, the same items come back."""
    log = random_log(4)
    model = covisitation.fit(log, Params())
    model.save(tmp_path / covisitation.FILE)
    loaded = covisitation.load(tmp_path / covisitation.FILE)
    assert loaded.params == model.params
    size = log.item_count
    moved = loaded.bind(lambda ids: (size - 1 - rows_by_number(ids)).astype(np.int32), size)
    straight = model.bind(rows_by_number, size).retrieve(query([3]), 20)
    turned = moved.retrieve(query([size - 1 - 3]), 20)
    assert dict(zip((size - 1 - turned.rows).tolist(), turned.scores.tolist(), strict=True)) == dict(
        zip(straight.rows.tolist(), straight.scores.tolist(), strict=True)
    )


def test_items_without_a_row_are_left_out() -> None:
    """An item that the snapshot no longer has is not recommended."""
    log = random_log(6)
    gone = covisitation.fit(log, Params()).bind(
        lambda ids: np.where(rows_by_number(ids) == 2, -1, rows_by_number(ids)).astype(np.int32), 9
    )
    for last in (0, 1, 3, 4):
        assert 2 not in gone.retrieve(query([last]), 20).rows


def test_only_the_strongest_neighbours_are_kept() -> None:
    """The limit keeps the strongest of each item."""
    log = random_log(7)
    full = covisitation.fit(log, Params())
    short = covisitation.fit(log, Params(neighbours=2))
    for item in range(log.item_count):
        all_of = full.strengths[full.offsets[item] : full.offsets[item + 1]]
        kept = short.strengths[short.offsets[item] : short.offsets[item + 1]]
        assert sorted(kept, reverse=True) == sorted(all_of, reverse=True)[:2]


def test_an_empty_log_fits() -> None:
    """No events make a model that knows nothing."""
    log = interactions_of([], [], [], catalogue=["0", "1"])
    source = covisitation.fit(log, Params()).bind(rows_by_number, 2)
    assert len(source.retrieve(query([0]), 5).rows) == 0
    assert NO_ROWS.dtype == source.retrieve(query([0]), 5).rows.dtype


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    """A file that is no model tells its path and what to do."""
    path = tmp_path / covisitation.FILE
    path.write_bytes(b"not a zip")
    with pytest.raises(BundleError, match=r"covisitation\.npz.*train again"):
        covisitation.load(path)
