"""A compared stack: indexes where an app has them, and what a process holds of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from narrows.evaluation.comparison import held_bytes
from narrows.evaluation.stacks import Stack
from narrows.features import statistics
from narrows.interactions import interactions_of
from narrows.retrieval import NO_ROWS, Query
from narrows.settings import SourceQuota
from narrows.sources.als import AlsSource, Params, gram
from sagemaker_jobs.compare import running
from sagemaker_jobs.compare.running import Running, missing_sources
from sagemaker_jobs.declared import Declared
from sagemaker_jobs.replay import Funnel
from sagemaker_jobs.training_set import TableItems

ITEMS = 60
STACK = Stack("traditional", ("als",), (SourceQuota("als", 20, 0.5),))


@pytest.fixture
def funnel() -> Funnel:
    """One source over sixty items."""
    vectors = np.random.default_rng(0).normal(size=(ITEMS, 8)).astype(np.float32)
    source = AlsSource(vectors, gram(vectors), ITEMS, Params(dimension=8))
    log = interactions_of(["a"], ["i"], [1.0])
    table = statistics.fit(log, statistics.Params()).bind(lambda ids: np.arange(len(ids), dtype=np.int32), 1)
    return Funnel({"als": source}, table, TableItems({}, {}), (), 20, Declared())


def found(one: Running) -> list[int]:
    """What it offers to somebody with two items."""
    history = np.array([3, 7], np.int32)
    query = Query(history, np.zeros(2), np.ones(2, np.float32), NO_ROWS, 1.0, "", exclude=history)
    rows: list[int] = one.funnel.candidates(query).rows.tolist()
    return rows


def test_a_large_source_is_compared_over_an_index(
    funnel: Funnel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It finds the same, takes time to build, and is held beside the vectors."""
    plain = Running.of(STACK, funnel, tmp_path / "plain")
    assert (plain.index_s, plain.index_bytes) == (0.0, 0)
    assert plain.bytes_held == held_bytes(*funnel.sources.values())
    monkeypatch.setattr(running, "EXACT_BELOW", ITEMS)
    indexed = Running.of(STACK, funnel, tmp_path / "indexed")
    assert found(indexed) == found(plain)
    assert indexed.index_s > 0.0
    assert indexed.bytes_held == plain.bytes_held + indexed.index_bytes > plain.bytes_held


def test_sources_without_a_model_are_named(funnel: Funnel) -> None:
    """Only the stack's own; what both have may be absent."""
    assert missing_sources(STACK, funnel.sources) == ()
    assert missing_sources(Stack("two_tower", ("two_tower",), ()), funnel.sources) == ("two_tower",)
