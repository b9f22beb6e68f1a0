"""The learned sources as they are served: two towers and the session transformer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from narrows import networks
from narrows.adapters.memory_vectors import MemoryVectorIndex
from narrows.errors import BundleError
from narrows.retrieval import Floats, Query, Rows
from narrows.sources import session, two_tower
from narrows.sources.session import Session
from narrows.sources.two_tower import TwoTower
from narrows.text_vectors import fit_hashed_words, text_marks

ITEMS, SIZE, DIMENSION = 20, 30, 8
IDS = np.asarray([f"{item:02}" for item in range(ITEMS)])
TEXTS = ["red shoes", "green tea"] * 10


def rows_of(ids: Sequence[str]) -> Rows:
    """Items are named by a number, their row is five later; item 19 is not in the snapshot."""
    return np.asarray([int(one) + 5 if int(one) < 19 else -1 for one in ids], np.int32)


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
        "feed",
        segment,
        np.asarray(exclude, np.int32),
    )


def drawn(weights: dict[str, Floats]) -> dict[str, Floats]:
    """Weights as after some training."""
    generator = np.random.default_rng(2)
    return {
        name: (values + generator.normal(0.0, 0.1, values.shape)).astype(np.float32)
        for name, values in weights.items()
    }


@pytest.fixture(scope="module")
def towers() -> TwoTower:
    """Two towers over twenty items, of which the last has neither events nor content."""
    generator = np.random.default_rng(1)
    params = two_tower.Params(dimension=DIMENSION, history=3, hidden=6)
    encoder = fit_hashed_words(TEXTS, generator, dimension=4, buckets=64)
    weights = drawn(
        networks.two_tower_weights(generator, dimension=DIMENSION, content=4, history=3, hidden=6)
    )
    vectors = generator.normal(size=(ITEMS, DIMENSION)).astype(np.float32)
    vectors[18] = 0.0
    segments = generator.normal(size=(2, DIMENSION)).astype(np.float32)
    ids, unread = vectors.astype(np.float16), np.full(ITEMS, np.nan)
    return TwoTower(IDS, vectors, ids, unread, np.asarray(["DE", "US"]), segments, weights, encoder, params)


@pytest.fixture(scope="module")
def sessions() -> Session:
    """A session transformer over the same items."""
    generator = np.random.default_rng(3)
    params = session.Params(dimension=DIMENSION, blocks=2, heads=2, window=6)
    weights = drawn(networks.session_weights(generator, dimension=DIMENSION, blocks=2, heads=2, window=6))
    return Session(IDS, generator.normal(size=(ITEMS, DIMENSION)).astype(np.float32), weights, params)


def test_two_towers_offer_the_highest_inner_products(towers: TwoTower) -> None:
    """The visitor's vector is the network's over the last three known items; every row is compared."""
    source = towers.bind(rows_of, SIZE)
    asked = query([5, 6, 2, 7, 29, 8], exclude=(5, 6, 7, 8))
    recent = towers.vectors[[1, 2, 3]]
    visitor = networks.user_vectors(towers.weights, recent, np.zeros(DIMENSION, np.float32), np)
    scores = towers.vectors @ visitor
    scores[[0, 1, 2, 3, 18, 19]] = -np.inf
    found = source.retrieve(asked, 4)
    assert found.rows.tolist() == (np.argsort(-scores)[:4] + 5).tolist()
    assert found.scores == pytest.approx(np.sort(scores)[::-1][:4], rel=1e-4)
    assert source.score(asked, found.rows) == pytest.approx(found.scores, rel=1e-4)


def test_two_towers_over_an_index_offer_the_same(towers: TwoTower) -> None:
    """An index that holds the vectors gives what comparing all gives, without what is excluded."""
    source = towers.bind(rows_of, SIZE)
    rows = np.flatnonzero(~np.isnan(source.vectors[:, 0])).astype(np.int32)
    index = MemoryVectorIndex("v1", DIMENSION)
    index.upsert(rows, source.vectors[rows])
    asked = query([5, 6], exclude=(5, 6, 9))
    one, other = source.retrieve(asked, 7), source.searching(index).retrieve(asked, 7)
    assert one.rows.tolist() == other.rows.tolist()
    assert one.scores == pytest.approx(other.scores, rel=1e-5)
    assert len(source.searching(index).retrieve(asked, 100).rows) == len(rows) - 3


def test_a_stranger_is_asked_by_segment_or_not_at_all(towers: TwoTower) -> None:
    """No history and a known segment is enough; neither is nothing; a seed alone is a history."""
    source = towers.bind(rows_of, SIZE)
    assert len(source.retrieve(query([]), 5).rows) == 0
    assert len(source.retrieve(query([29, 23, 24]), 5).rows) == 0
    assert np.isnan(source.signals(query([]), np.asarray([5, 6], np.int32))).all()
    from_segment = source.retrieve(query([], segment="DE"), 5)
    assert len(from_segment.rows) == 5
    assert from_segment.rows.tolist() != source.retrieve(query([], segment="US"), 5).rows.tolist()
    assert len(source.retrieve(query([], segment="XX"), 5).rows) == 0
    assert source.score(query([], seeds=(5,)), from_segment.rows) == pytest.approx(
        source.score(query([5]), from_segment.rows)
    )


def test_signals_of_two_towers(towers: TwoTower) -> None:
    """The cosine to the last item is one for itself; rows without a vector have no signal."""
    source = towers.bind(rows_of, SIZE)
    found = source.signals(query([5, 7]), np.asarray([7, 23, 29, -1, 77], np.int32))
    assert found[0, 1] == pytest.approx(1.0, abs=1e-5)
    assert np.isnan(found[1:]).all()


def test_a_new_item_has_a_vector_from_what_is_written(towers: TwoTower) -> None:
    """The content alone, through the item network; two texts of the same words have the same vector."""
    unknown = np.full(3, -1, np.int32)
    one, other, nothing = towers.network.embed(unknown, ["red shoes", "shoes, RED!", ""])
    assert one == pytest.approx(other)
    assert one == pytest.approx(towers.encoder.encode(["red shoes"])[0] @ towers.weights["item.content"])
    assert not nothing.any()


def test_a_trained_item_keeps_what_its_id_says(towers: TwoTower) -> None:
    """Whatever is written about it now; without a word it has that alone."""
    items = np.asarray([3, 3, -1], np.int32)
    red, silent, unknown = towers.network.embed(items, ["red shoes", "", "red shoes"])
    assert silent == pytest.approx(towers.ids[3].astype(np.float32))
    assert red == pytest.approx(silent + unknown, abs=1e-6)
    assert np.abs(red - unknown).max() > 0.1


def test_a_row_gets_a_vector_by_its_text(towers: TwoTower) -> None:
    """Where the table has a line for it and anything is known of it; so does the index, and others stay."""
    source = towers.bind(rows_of, SIZE)
    index = MemoryVectorIndex("v1", DIMENSION)
    index.upsert(np.asarray([5, 6, 25], np.int32), np.ones((3, DIMENSION), np.float32))
    before = source.vectors.copy()
    rows = np.asarray([24, 5, 25, 77, -1], np.int32)
    source.searching(index).place(rows, ["red shoes", "red shoes", "", "tea", "tea"])
    assert np.flatnonzero(~np.isnan(source.vectors[:, 0])).tolist() == [*range(5, 23), 24]
    expected = towers.network.embed(source.items[rows[:2]], ["red shoes"] * 2)
    assert source.vectors[[24, 5]] == pytest.approx(expected)
    assert np.abs(source.vectors[5] - before[5]).max() > 0.01
    assert np.array_equal(source.vectors[6], before[6])
    assert index.search(source.vectors[5], 9).scores[0, :3] == pytest.approx(
        np.sort([expected[0] @ expected[1], expected[1] @ expected[1], expected[1].sum()])[::-1], abs=1e-4
    )
    assert sorted(index.search(np.ones(DIMENSION, np.float32), 9).rows[0, :3].tolist()) == [5, 6, 24]
    marks = text_marks(["red shoes", "red shoes", ""])
    assert np.array_equal(source.placed.marks[rows[:3]], marks, equal_nan=True)
    assert 24 in source.retrieve(query([5]), SIZE).rows
    source.place(np.empty(0, np.int32), [])


def test_saved_models_answer_the_same(towers: TwoTower, sessions: Session, tmp_path: Path) -> None:
    """Bit for bit, through their files; what was written about items can still be read."""
    asked, rows = query([5, 9, 7], segment="US"), np.arange(SIZE, dtype=np.int32)
    for model, module in ((towers, two_tower), (sessions, session)):
        model.save(tmp_path / module.FILE)
        loaded = module.load(tmp_path / module.FILE)
        assert loaded.params == model.params
        before, after = (one.bind(rows_of, SIZE).score(asked, rows) for one in (model, loaded))
        assert np.array_equal(before, after, equal_nan=True)
    asked_for = np.asarray([3], np.int32), ["red"]
    kept = two_tower.load(tmp_path / two_tower.FILE)
    assert np.array_equal(kept.network.embed(*asked_for), towers.network.embed(*asked_for))
    assert np.array_equal(kept.marks, towers.marks, equal_nan=True)
    with pytest.raises(BundleError, match="lacks"):
        session.load(tmp_path / two_tower.FILE)


def test_the_session_model_offers_the_likeliest(sessions: Session) -> None:
    """The softmax over the catalogue after the last items that it knows, as the whole network gives it."""
    source = sessions.bind(rows_of, SIZE)
    asked = query([2, 5, 6, 29, 7], seeds=(8,), exclude=(5,))
    states = networks.session_states(sessions.weights, sessions.items[[0, 1, 2, 3]], np)
    logits = sessions.items[:19] @ states[-1]
    likely = np.log(np.exp(logits) / np.exp(logits).sum())
    found = source.retrieve(asked, 3)
    likely_but_excluded = np.where(np.arange(19) == 0, -np.inf, likely)
    assert found.rows.tolist() == (np.argsort(-likely_but_excluded)[:3] + 5).tolist()
    assert source.score(asked, np.arange(5, 24, dtype=np.int32)) == pytest.approx(likely, abs=1e-4)
    assert np.isnan(source.signals(asked, np.asarray([0, 24, 29, -1, 99], np.int32))).all()


def test_a_second_question_of_a_request_is_not_computed_again(sessions: Session) -> None:
    """The network runs once for a query, and again for another; what was excluded is still scored."""
    source = sessions.bind(rows_of, SIZE)
    asked, rows = query([5, 6], exclude=(5, 6)), np.arange(5, 24, dtype=np.int32)
    source.retrieve(asked, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session, "session_state", lambda *_: pytest.fail("it was computed again"))
        again = source.score(asked, rows)
    assert np.array_equal(again, source.score(query([5, 6]), rows))
    assert np.isfinite(again).all()


def test_only_the_window_of_a_session_counts(sessions: Session) -> None:
    """What lies further back changes nothing."""
    source = sessions.bind(rows_of, SIZE)
    rows = np.arange(SIZE, dtype=np.int32)
    long, short = (query([*more, 5, 6, 7, 8, 9, 10]) for more in ([11, 12, 13], []))
    assert np.array_equal(source.score(long, rows), source.score(short, rows), equal_nan=True)


def test_the_session_model_has_nothing_for_a_stranger(sessions: Session) -> None:
    """No history, and a history of items that it does not know."""
    source = sessions.bind(rows_of, SIZE)
    for history in ([], [29, 2]):
        assert len(source.retrieve(query(history), 5).rows) == 0
        assert np.isnan(source.score(query(history), np.asarray([5], np.int32))).all()


def test_a_model_for_nobody_binds(towers: TwoTower, sessions: Session) -> None:
    """A snapshot without any of the items: no candidates, no error."""
    nothing = np.full(ITEMS, -1, np.int32)
    for model in (towers, sessions):
        source = model.bind(lambda _: nothing, SIZE)
        assert len(source.retrieve(query([5]), 5).rows) == 0
    few = replace(sessions, item_ids=IDS[:0], items=sessions.items[:0])
    assert len(few.bind(rows_of, SIZE).retrieve(query([5]), 5).rows) == 0
