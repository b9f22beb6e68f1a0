"""Candidates: what a source is, asking all of them inside the deadline, merging with provenance."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from concurrent.futures import TimeoutError as Late
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from narrows.settings import SourceQuota

Rows = NDArray[np.int32]
Floats = NDArray[np.float32]
Passes = Callable[[Rows], NDArray[np.bool_]]
"""Which of the rows may be shown."""

NO_ROWS: Rows = np.empty(0, np.int32)
NO_TIMES: NDArray[np.float64] = np.empty(0, np.float64)
NO_WEIGHTS: Floats = np.empty(0, np.float32)
RECIPROCAL_RANK_CONSTANT = 60.0
COMPARED = 20_000
"""Up to so many pairs of rows to compare all is faster than to sort."""


@dataclass(frozen=True, eq=False)
class Query:
    """What the sources may know of a request; rows are the snapshot's, and never -1.

    `history` runs from the oldest to the newest, with `history_times` (epoch seconds) and `history_weights`
    (labels of the event types) alongside. `seeds` are the product page's item or the cart's items; `segment`
    is "" when unknown. `passes(rows)` tells which rows the rules allow now, so that a source with one list
    for many visitors need not spend its quota on others; the gate judges again. `sold_in` is the region in
    which an item must be sold, "" where the rules ask for none or everything is sold there; `scarce` is False
    where the rules bar so few items that what is nearest to a visitor may be taken as it is.
    """

    history: Rows
    history_times: NDArray[np.float64]
    history_weights: Floats
    seeds: Rows
    now: float
    surface: str
    segment: str = ""
    exclude: Rows = field(default_factory=lambda: NO_ROWS)
    passes: Passes | None = None
    sold_in: str = ""
    scarce: bool = True


@dataclass(frozen=True, eq=False)
class Retrieved:
    """A source's answer, best first: rows int32[k] and its own scores float32[k]."""

    rows: Rows
    scores: Floats


class CandidateSource(Protocol):
    """One way of finding candidates; safe to call from several threads at once."""

    @property
    def name(self) -> str:
        """The name under which surfaces ask for it."""

    def retrieve(self, query: Query, quota: int) -> Retrieved:
        """At most `quota` candidates, best first; empty when it has nothing to say about this visitor."""

    def score(self, query: Query, rows: Rows) -> Floats:
        """Its score of each given row, nan where it knows nothing."""


@dataclass(frozen=True, eq=False)
class Candidates:
    """The union of the sources' answers: one line per row, one column per source asked.

    `ranks` int32[n, s] count from 0, and are -1 where that source did not return the row, as `scores` are
    nan.
    """

    rows: Rows
    source_names: tuple[str, ...]
    ranks: NDArray[np.int32]
    scores: Floats

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, order: NDArray[np.intp]) -> Candidates:
        """The candidates at these positions, in this order."""
        return Candidates(self.rows[order], self.source_names, self.ranks[order], self.scores[order])


@dataclass(frozen=True)
class Gathered:
    """`failures`: source without an answer -> "timeout", "absent" or the exception's class name."""

    candidates: Candidates
    failures: Mapping[str, str]
    timings_ms: Mapping[str, float]


@dataclass(frozen=True)
class _Answer:
    retrieved: Retrieved
    finished: float


def gather(
    sources: Mapping[str, CandidateSource],
    quotas: Sequence[SourceQuota],
    query: Query,
    *,
    deadline: float,
    budget_s: float,
    clock: Callable[[], float],
    executor: Executor,
) -> Gathered:
    """Ask every source at once and merge what arrives in time; never raises for a source's sake.

    A source's time is `share` of `budget_s`, the surface's whole deadline, and ends at the latest at
    `deadline`, a moment of `clock` in seconds. An answer after that is dropped even if it is at hand.
    """
    started = clock()
    failures = {quota.name: "absent" for quota in quotas if quota.name not in sources}
    asked: list[tuple[float, SourceQuota, Future[_Answer]]] = []
    for quota in quotas:
        if quota.name in sources:
            until = min(started + quota.share * budget_s, deadline)
            asked.append(
                (until, quota, executor.submit(_ask, sources[quota.name], query, quota.quota, clock))
            )
    answers: dict[str, Retrieved] = {}
    timings_ms: dict[str, float] = {}
    for until, quota, future in sorted(asked, key=lambda one: one[0]):
        outcome = _await(future, until, clock)
        if isinstance(outcome, str):
            failures[quota.name] = outcome
            timings_ms[quota.name] = (clock() - started) * 1e3
        else:
            answers[quota.name] = outcome.retrieved
            timings_ms[quota.name] = (outcome.finished - started) * 1e3
    merged = merge([(quota.name, answers.get(quota.name)) for quota in quotas], exclude=query.exclude)
    return Gathered(merged, failures, timings_ms)


def _ask(source: CandidateSource, query: Query, quota: int, clock: Callable[[], float]) -> _Answer:
    retrieved = source.retrieve(query, quota)
    return _Answer(Retrieved(retrieved.rows[:quota], retrieved.scores[:quota]), clock())


def _await(future: Future[_Answer], until: float, clock: Callable[[], float]) -> _Answer | str:
    try:
        answer = future.result(timeout=max(0.0, until - clock()))
    except Late:
        future.cancel()
        return "timeout"
    except Exception as error:  # noqa: BLE001  # whatever one source raises, the others still answer
        return type(error).__name__
    return answer if answer.finished <= until else "timeout"


def among(rows: Rows, others: Rows) -> NDArray[np.bool_]:
    """bool[n]: which of the rows are among the others."""
    if len(rows) * len(others) <= COMPARED:
        return np.asarray((others[:, None] == rows).any(axis=0))
    return np.isin(rows, others)


def merge(answers: Sequence[tuple[str, Retrieved | None]], *, exclude: Rows = NO_ROWS) -> Candidates:
    """One line per distinct row, in order of row; a source without an answer keeps its empty column."""
    names = tuple(name for name, _ in answers)
    found = [retrieved or Retrieved(NO_ROWS, NO_WEIGHTS) for _, retrieved in answers]
    offered = np.concatenate([NO_ROWS, *(one.rows for one in found)])
    lengths = [len(one.rows) for one in found]
    placed = (offered.astype(np.int64) << 32) | np.arange(len(offered))
    placed.sort()  # rows and their places as one number, in half the time of asking for the order
    rows, order = (placed >> 32).astype(np.int32), placed & 0xFFFF_FFFF
    columns = np.repeat(np.arange(len(found)), lengths).take(order)
    again = rows[1:] == rows[:-1]
    if (again & (columns[1:] == columns[:-1])).any():
        return merge(
            [(name, _distinct(one)) for (name, _), one in zip(answers, found, strict=True)], exclude=exclude
        )
    first = np.append(True, ~again)[: len(rows)]
    if len(rows) and (rows[0] < 0 or _held(rows, exclude)):
        places = np.flatnonzero((rows >= 0) & ~among(rows, exclude))
        rows, first = rows.take(places), first.take(places)
        columns, order = columns.take(places), order.take(places)
    distinct = rows[first]
    cells = (first.cumsum() - 1) * len(names) + columns
    ranks = np.full((len(distinct), len(names)), -1, np.int32)
    scores = np.full(ranks.shape, np.nan, np.float32)
    begins = np.cumsum(lengths) - lengths
    ranks.put(cells, order - begins.take(columns))
    scores.put(cells, np.concatenate([NO_WEIGHTS, *(one.scores for one in found)]).take(order))
    return Candidates(distinct, names, ranks, scores)


def _held(ordered: Rows, others: Rows) -> bool:
    """Whether any of the others is one of the rows, which are in order."""
    places = ordered.searchsorted(others)
    return bool((ordered.take(places, mode="clip") == others).any())


def _distinct(retrieved: Retrieved) -> Retrieved:
    _, first = np.unique(retrieved.rows, return_index=True)
    first.sort()
    return Retrieved(retrieved.rows[first], retrieved.scores[first])


def reciprocal_ranks(candidates: Candidates) -> Floats:
    """float32[n]: sum over the sources of 1 / (60 + rank), rank from 1 (Cormack, Clarke, Buettcher 2009)."""
    places = np.where(candidates.ranks >= 0, 1.0 / (RECIPROCAL_RANK_CONSTANT + 1.0 + candidates.ranks), 0.0)
    return np.asarray(places.sum(axis=1), np.float32)


def fuse(candidates: Candidates, limit: int) -> Candidates:
    """The `limit` best by reciprocal rank fusion, best first; ties go to the lower row."""
    order = np.lexsort((candidates.rows, -reciprocal_ranks(candidates)))
    return candidates.take(order[:limit])
