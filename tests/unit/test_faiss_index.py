"""The embedded index: what is its own, beside the contract: recall as measured, files, many changes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pytest

from narrows.adapters.faiss import ABOUT_FILE, INDEX_FILE, PARTS_FILE, FaissVectorIndex, load
from narrows.adapters.memory_vectors import MemoryVectorIndex
from narrows.errors import BundleError
from narrows.retrieval import Floats, Rows
from narrows.vector_index import EVERYTHING, VectorIndex, Where

DIMENSION = 32
MANY = 12_000
SHARES = {"90": 0.9, "50": 0.5, "10": 0.1}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """As a request has it; threads that wait for each other cost more than these sizes take."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    yield
    faiss.omp_set_num_threads(threads)


def spread(count: int, seed: int) -> Floats:
    """Directions whose spectrum falls as a power, without clusters."""
    scale = np.arange(1, DIMENSION + 1, dtype=np.float32) ** -0.5
    drawn = np.random.default_rng(seed).standard_normal((count, DIMENSION), dtype=np.float32) * scale
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True), np.float32)


def clustered(count: int, seed: int) -> Floats:
    """Directions around two hundred centres, which are the same for every seed."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((200, DIMENSION), dtype=np.float32)
    drawn = centres[rng.integers(0, 200, count)] + 0.2 * rng.standard_normal(
        (count, DIMENSION), dtype=np.float32
    )
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True), np.float32)


def shares(count: int) -> dict[str, list[tuple[str, ...]]]:
    """A filter whose values pass 90%, 50% and 10% of the rows."""
    drawn = np.random.default_rng(3).random(count)
    return {"region": [tuple(name for name, share in SHARES.items() if one < share) for one in drawn]}


def of_lists(vectors: Floats) -> FaissVectorIndex:
    """An index that keeps all of these in lists."""
    index = FaissVectorIndex("v1", DIMENSION, exact_below=1000)
    index.upsert(np.arange(len(vectors), dtype=np.int32), vectors, shares(len(vectors)))
    return index


def recall(index: VectorIndex, oracle: VectorIndex, questions: Floats, where: Where = EVERYTHING) -> float:
    """The share of the hundred nearest that the index finds."""
    found, truth = index.search(questions, 100, where), oracle.search(questions, 100, where)
    hits = [len(np.intersect1d(ours, theirs)) for ours, theirs in zip(found.rows, truth.rows, strict=True)]
    return float(np.mean(hits)) / 100


@pytest.fixture(scope="module")
def power_law() -> tuple[FaissVectorIndex, MemoryVectorIndex]:
    """The index and its oracle over the same rows."""
    vectors, oracle = spread(MANY, 0), MemoryVectorIndex("v1", DIMENSION)
    oracle.upsert(np.arange(MANY, dtype=np.int32), vectors, shares(MANY))
    return of_lists(vectors), oracle


def test_recall_is_what_was_wanted(power_law: tuple[FaissVectorIndex, MemoryVectorIndex]) -> None:
    """For questions that the build has not seen, unfiltered and filtered, by visiting a part of the lists."""
    index, oracle = power_law
    questions = spread(100, 1)
    lists = index._state.lists
    assert lists is not None
    assert max(lists.visited[:2]) < 0.9
    assert recall(index, oracle, questions) >= 0.97
    for name in SHARES:
        assert recall(index, oracle, questions, Where({"region": frozenset({name})})) >= 0.97


def test_how_far_it_looks_follows_the_vectors() -> None:
    """Where there are clusters a few lists are enough; nothing about the data is a constant."""
    near, far = of_lists(clustered(MANY, 0))._state.lists, of_lists(spread(MANY, 0))._state.lists
    assert near is not None
    assert far is not None
    assert 2 * near.visited[0] < far.visited[0]  # for the ten nearest: a cluster has sixty


def test_the_lists_visited_are_the_nearest_that_hold_enough(
    power_law: tuple[FaissVectorIndex, MemoryVectorIndex],
) -> None:
    """In order; where the nearest hold too few as many more as it takes, and all where all hold too few."""
    parts = power_law[0]._state.lists
    assert parts is not None
    scan, wanted = parts.scan, MANY / 5
    for question in spread(50, 7):
        lists, near = scan.nearest(question, wanted)
        held = int(scan.sizes[lists].sum())
        assert held - scan.sizes[lists[-1]] < wanted <= held
        true = scan.centres @ question
        assert lists.tolist() == (-true).argsort()[: len(lists)].tolist()
        assert near.tolist() == true[lists].tolist()
    away = scan.centres @ question
    hollow = replace(scan, sizes=np.where(away > np.quantile(away, 0.4), 1, scan.sizes))
    lists, near = hollow.nearest(question, wanted)
    assert hollow.sizes[lists].sum() >= wanted
    assert lists.tolist() == (-away).argsort()[: len(lists)].tolist()
    assert len(scan.nearest(question, 2 * MANY)[0]) == len(scan.sizes)


def test_what_one_list_holds_lies_together(power_law: tuple[FaissVectorIndex, MemoryVectorIndex]) -> None:
    """A search compares vectors of few lists; slots still say which row each is of."""
    parts = power_law[0]._state.lists
    assert parts is not None
    scan, lists = parts.scan, parts.scan.coded.invlists
    begins = [0, *scan.sizes.cumsum().tolist()]
    for one, begin in enumerate(begins[:-1]):
        held = faiss.rev_swig_ptr(lists.get_ids(one), int(scan.sizes[one])) if scan.sizes[one] else []
        assert list(held) == list(range(begin, begins[one + 1]))
    some = np.arange(0, MANY, 97)
    assert scan.vectors(some) == pytest.approx(spread(MANY, 0)[parts.slots.rows[some]], abs=1e-3)


def test_deleted_and_changed_rows_are_found_as_they_are(
    power_law: tuple[FaissVectorIndex, MemoryVectorIndex], tmp_path: Path
) -> None:
    """A tenth deleted and a tenth moved, without a rebuild: the recall stays."""
    power_law[0].save(tmp_path)
    index, oracle = load(tmp_path), MemoryVectorIndex("v1", DIMENSION, _entries=dict(power_law[1]._entries))
    before = index._state.lists
    gone, moved = np.arange(0, MANY, 10, dtype=np.int32), np.arange(1, MANY, 10, dtype=np.int32)
    for one in (index, oracle):
        one.delete(gone)
        one.upsert(moved, spread(len(moved), 7))
    assert before is not None
    assert index._state.lists is not None
    assert index._state.lists.scan is before.scan
    assert len(index) == len(oracle) == MANY - len(gone)
    questions = spread(100, 8)
    assert recall(index, oracle, questions) >= 0.97
    assert not np.isin(index.search(questions, 100).rows, gone).any()


@pytest.mark.parametrize("seed", range(3))
def test_any_sequence_of_changes_ends_where_the_oracle_does(seed: int) -> None:
    """Two hundred changes of a few rows, through merges and rebuilds; at every tenth both hold the same, and
    of the best the lists find nearly all."""
    rng = np.random.default_rng(seed)
    index = FaissVectorIndex("v1", DIMENSION, exact_below=40, fresh_at_most=8, recall=1.0)
    oracle = MemoryVectorIndex("v1", DIMENSION)
    for step in range(200):
        rows: Rows = np.unique(rng.integers(0, 200, rng.integers(1, 6))).astype(np.int32)
        vectors = spread(len(rows), int(rng.integers(1 << 30)))
        sellers = {"seller": [(f"s{one % 3}",) for one in rng.integers(0, 9, len(rows))]}
        for one in (index, oracle):
            if step % 4 == 3:
                one.delete(rows)
            else:
                one.upsert(rows, vectors, sellers)
        if step % 10 == 0:
            where = EVERYTHING if step % 20 else Where({"seller": frozenset({"s1", "s2"})})
            found, truth = (one.search(spread(2, step), 200, where) for one in (index, oracle))
            assert np.allclose(found.scores, truth.scores, atol=2e-3, equal_nan=True)
            assert len(index) == len(oracle)
            best = index.search(spread(2, step), 20, where)
            for rows, wanted in zip(best.rows, truth.rows[:, :20], strict=True):
                assert len(np.intersect1d(rows, wanted)) >= 0.9 * len(np.unique(wanted))


def test_vectors_unlike_those_of_the_build_are_found() -> None:
    """Three times as long as any other: they stay where all are compared, and are every question's best."""
    index = FaissVectorIndex("v1", DIMENSION, exact_below=1000, fresh_at_most=50)
    index.upsert(np.arange(3000, dtype=np.int32), spread(3000, 0))
    added, questions = np.concatenate([3 * spread(30, 5), spread(30, 6)]), spread(20, 7)
    index.upsert(np.arange(3000, 3060, dtype=np.int32), added)
    lists = index._state.lists
    assert lists is not None
    assert len(lists.slots) == 3030
    best = 3000 + np.argmax(questions @ added[:30].T, axis=1)
    assert index.search(questions, 1).rows[:, 0].tolist() == best.tolist()


def test_a_few_very_long_vectors_cost_the_others_nothing() -> None:
    """One of twelve thousand is 300 times as long, and still there after it moves to another direction."""
    vectors = spread(MANY, 0)
    vectors[7] *= 300
    index, oracle = (
        FaissVectorIndex("v1", DIMENSION, exact_below=1000, recall=0.9),
        MemoryVectorIndex("v1", DIMENSION),
    )
    for one in (index, oracle):
        one.upsert(np.arange(MANY, dtype=np.int32), vectors)
    lists = index._state.lists
    assert lists is not None
    assert max(lists.visited[:2]) < 0.9
    assert recall(index, oracle, spread(100, 1)) >= 0.88
    for one in (index, oracle):
        one.upsert(np.asarray([7], np.int32), 300 * spread(1, 9))
    assert index.search(spread(20, 8), 1).rows.tolist() == oracle.search(spread(20, 8), 1).rows.tolist()


def test_what_the_lists_are_not_fit_for_does_not_fill_the_fresh_part() -> None:
    """It is counted once: later changes wait for as many others as ever."""
    index = FaissVectorIndex("v1", DIMENSION, exact_below=1000, fresh_at_most=40)
    index.upsert(np.arange(1500, dtype=np.int32), spread(1500, 0))
    index.upsert(np.arange(1500, 1540, dtype=np.int32), np.concatenate([9 * spread(19, 5), spread(21, 6)]))
    moved, left = index._state.lists, len(index._state.fresh.slots)
    assert 19 <= left < 25
    index.upsert(np.arange(1540, 1570, dtype=np.int32), spread(30, 7))
    assert moved is not None
    assert index._state.lists is not None
    assert index._state.lists.scan is moved.scan
    assert len(index._state.fresh.slots) == left + 30
    assert len(index) == 1570


def test_lists_of_an_earlier_version_are_refused(
    power_law: tuple[FaissVectorIndex, MemoryVectorIndex], tmp_path: Path
) -> None:
    """By what is said of them, and by what faiss reads; it says to build the index again."""
    index = power_law[0]
    index.save(tmp_path)
    about = json.loads((tmp_path / ABOUT_FILE).read_text())
    former = {name: value for name, value in about.items() if name not in ("compared", "error")}
    (tmp_path / ABOUT_FILE).write_text(json.dumps(former))
    with pytest.raises(BundleError, match="build it again"):
        load(tmp_path)
    (tmp_path / ABOUT_FILE).write_text(json.dumps(about))
    lists = faiss.index_factory(DIMENSION, "IVF16,SQ8,RFlat", faiss.METRIC_INNER_PRODUCT)
    lists.train(spread(1000, 0))
    faiss.write_index(lists, str(tmp_path / INDEX_FILE))
    with pytest.raises(BundleError, match="build it again"):
        load(tmp_path)


def test_what_was_saved_is_what_is_loaded(
    power_law: tuple[FaissVectorIndex, MemoryVectorIndex], tmp_path: Path
) -> None:
    """The same answers, filtered too, from a new process's object; an exact one as well."""
    index = power_law[0]
    small = FaissVectorIndex("v9", DIMENSION, filters=("colour",))
    small.upsert(np.asarray([5, 3], np.int32), spread(2, 0), {"colour": [("red",), ()]})
    questions = spread(5, 2)
    for number, (one, where) in enumerate(
        [
            (index, EVERYTHING),
            (index, Where({"region": frozenset({"10"})})),
            (small, EVERYTHING),
            (small, Where({"colour": frozenset({"red"})})),
        ]
    ):
        one.save(tmp_path / str(number))
        again = load(tmp_path / str(number))
        assert (again.version, again.filters, len(again)) == (one.version, one.filters, len(one))
        assert (
            again.search(questions, 10, where).rows.tolist() == one.search(questions, 10, where).rows.tolist()
        )


@pytest.mark.parametrize("file", [INDEX_FILE, PARTS_FILE, ABOUT_FILE])
def test_a_damaged_file_is_named(
    power_law: tuple[FaissVectorIndex, MemoryVectorIndex], tmp_path: Path, file: str
) -> None:
    """Cut off in the middle, or gone: the folder, and what to do."""
    power_law[0].save(tmp_path)
    content = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(content[: len(content) // 2])
    with pytest.raises(BundleError, match=r"cannot be read as a vector index.*build it again"):
        load(tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(BundleError, match="build it again"):
        load(tmp_path)


def test_what_is_known_of_filters_is_bounded() -> None:
    """Three hundred different filters leave as many bitmaps as are kept, and no more."""
    index = of_lists(spread(2000, 0))
    names = [str(one) for one in range(300)]
    for name in names:
        index.search(spread(1, 1), 5, Where({"seller": frozenset({name})}))
    assert index._state.lists is not None
    assert len(index._state.lists.slots._filters) <= 256
    assert len(index._state.lists.slots._packed) <= 256
