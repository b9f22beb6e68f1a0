"""Gathering candidates: in parallel, inside the deadline, with provenance, whatever a source does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrows.retrieval import (
    NO_ROWS,
    NO_TIMES,
    NO_WEIGHTS,
    CandidateSource,
    Floats,
    Gathered,
    Query,
    Retrieved,
    Rows,
    fuse,
    gather,
    merge,
    reciprocal_ranks,
)
from narrows.settings import SourceQuota


@dataclass
class Source:
    """Offers what `answer` gives."""

    name: str
    answer: Callable[[Query, int], Retrieved]

    def retrieve(self, query: Query, quota: int) -> Retrieved:
        return self.answer(query, quota)

    def score(self, query: Query, rows: Rows) -> Floats:
        return np.zeros(len(rows), np.float32)


def offers(*rows: int) -> Retrieved:
    """These rows, scored by falling numbers."""
    return Retrieved(np.array(rows, np.int32), np.arange(len(rows), 0, -1).astype(np.float32))


def source(name: str, *rows: int, after_s: float = 0.0, error: Exception | None = None) -> Source:
    """A source that offers the same every time."""

    def answer(query: Query, quota: int) -> Retrieved:
        time.sleep(after_s)
        if error:
            raise error
        return offers(*rows)

    return Source(name, answer)


def query(*exclude: int) -> Query:
    """A visitor of whom nothing is known."""
    return Query(NO_ROWS, NO_TIMES, NO_WEIGHTS, NO_ROWS, 0.0, "feed", exclude=np.array(exclude, np.int32))


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    """Threads for the sources."""
    with ThreadPoolExecutor(4) as threads:
        yield threads


def gathered(
    executor: ThreadPoolExecutor,
    sources: list[Source],
    *,
    exclude: tuple[int, ...] = (),
    share: float = 1.0,
    quota: int = 10,
    budget_s: float = 1.0,
    names: tuple[str, ...] = (),
) -> Gathered:
    """What these sources give within the budget."""
    mapping: dict[str, CandidateSource] = {one.name: one for one in sources}
    return gather(
        mapping,
        [SourceQuota(name, quota, share) for name in names or tuple(mapping)],
        query(*exclude),
        deadline=time.monotonic() + budget_s,
        budget_s=budget_s,
        clock=time.monotonic,
        executor=executor,
    )


def test_the_union_remembers_every_source_and_rank(executor: ThreadPoolExecutor) -> None:
    """A row that two sources offer is one candidate with two ranks; who did not offer it says so."""
    result = gathered(executor, [source("a", 7, 3, 5), source("b", 5, 9)])
    assert result.failures == {}
    assert result.candidates.rows.tolist() == [3, 5, 7, 9]
    assert result.candidates.source_names == ("a", "b")
    assert result.candidates.ranks.tolist() == [[1, -1], [2, 0], [0, -1], [-1, 1]]
    np.testing.assert_array_equal(result.candidates.scores, [[2, np.nan], [1, 2], [3, np.nan], [np.nan, 1]])


def test_a_late_source_is_dropped_at_its_share(executor: ThreadPoolExecutor) -> None:
    """The others answer in time, and nobody waits for the one that sleeps."""
    started = time.monotonic()
    result = gathered(executor, [source("fast", 1), source("slow", 2, after_s=0.6)], share=0.2, budget_s=0.5)
    assert time.monotonic() - started < 0.4
    assert result.failures == {"slow": "timeout"}
    assert result.candidates.rows.tolist() == [1]
    assert result.candidates.ranks.tolist() == [[0, -1]]
    assert result.timings_ms["slow"] >= 95.0


def test_sources_run_at_the_same_time(executor: ThreadPoolExecutor) -> None:
    """Three sources that wait for each other all answer."""
    barrier = threading.Barrier(3)

    def answer(query: Query, quota: int) -> Retrieved:
        barrier.wait(timeout=5.0)
        return offers(1)

    result = gathered(executor, [Source(name, answer) for name in "abc"], budget_s=5.0)
    assert result.failures == {}


@pytest.mark.parametrize("error", [ValueError("x"), MemoryError(), TimeoutError("its own"), KeyError(1)])
def test_a_failing_source_never_fails_the_request(executor: ThreadPoolExecutor, error: Exception) -> None:
    """Whatever it raises, its name and the error's class are reported."""
    result = gathered(executor, [source("bad", error=error), source("good", 4)])
    expected = "timeout" if isinstance(error, TimeoutError) else type(error).__name__
    assert result.failures == {"bad": expected}
    assert result.candidates.rows.tolist() == [4]


def test_an_absent_source_is_named(executor: ThreadPoolExecutor) -> None:
    """A surface may ask for what the bundle does not hold."""
    result = gathered(executor, [source("a", 1)], names=("a", "ghost"))
    assert result.failures == {"ghost": "absent"}
    assert result.candidates.source_names == ("a", "ghost")


def test_excluded_and_unknown_rows_are_removed(executor: ThreadPoolExecutor) -> None:
    """Seeds, seen items and -1 are no candidates; the ranks of the others stay as they were."""
    result = gathered(executor, [source("a", 7, -1, 3, 5)], exclude=(7, 100))
    assert result.candidates.rows.tolist() == [3, 5]
    assert result.candidates.ranks.tolist() == [[2], [3]]


def test_a_source_cannot_give_more_than_its_quota(executor: ThreadPoolExecutor) -> None:
    """What is over the quota is cut, and a row that comes twice counts once, at its better rank."""
    result = gathered(executor, [source("a", 4, 4, 2, 9)], quota=3)
    assert result.candidates.rows.tolist() == [2, 4]
    assert result.candidates.ranks.tolist() == [[1], [0]]


def test_no_time_left_means_every_source_is_late(executor: ThreadPoolExecutor) -> None:
    """A deadline in the past waits for nobody."""
    result = gathered(executor, [source("a", 1, after_s=0.2)], budget_s=0.0)
    assert result.failures == {"a": "timeout"}
    assert len(result.candidates) == 0


def test_an_answer_after_its_time_is_dropped_though_it_is_there() -> None:
    """What counts is when the source finished, by the clock that was given."""
    now = [0.0]

    def answer(query: Query, quota: int) -> Retrieved:
        now[0] += 0.3
        return offers(1)

    with ThreadPoolExecutor(1) as executor:
        result = gather(
            {"a": Source("a", answer)},
            [SourceQuota("a", 5, 0.25)],
            query(),
            deadline=10.0,
            budget_s=1.0,
            clock=lambda: now[0],
            executor=executor,
        )
    assert result.failures == {"a": "timeout"}


rows = st.lists(st.integers(0, 30), max_size=12, unique=True)


@given(st.lists(rows, min_size=1, max_size=4), st.lists(st.integers(0, 30), max_size=8))
def test_merge_is_the_union_without_the_excluded(lists: list[list[int]], exclude: list[int]) -> None:
    """Every rank leads back to the list it came from."""
    answers = [(str(number), offers(*one)) for number, one in enumerate(lists)]
    merged = merge(answers, exclude=np.array(exclude, np.int32))
    assert merged.rows.tolist() == sorted(set().union(*lists) - set(exclude))
    for line, row in enumerate(merged.rows.tolist()):
        for column, one in enumerate(lists):
            rank = int(merged.ranks[line, column])
            assert (rank == -1 and row not in one) or one[rank] == row


@given(st.lists(rows, min_size=1, max_size=4), st.integers(0, 40))
def test_fusion_is_reciprocal_rank_fusion(lists: list[list[int]], limit: int) -> None:
    """The order by hand: the sum of 1 / (60 + rank), rank from 1, ties to the lower row."""
    merged = merge([(str(number), offers(*one)) for number, one in enumerate(lists)])
    found = merged.rows.tolist()
    worth = {row: sum(1 / (61 + one.index(row)) for one in lists if row in one) for row in found}
    expected = sorted(worth, key=lambda row: (-float(np.float32(worth[row])), row))[:limit]
    fused = fuse(merged, limit)
    assert fused.rows.tolist() == expected
    np.testing.assert_allclose(reciprocal_ranks(fused), [worth[row] for row in expected], rtol=1e-6)
