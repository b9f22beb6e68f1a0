"""A stack as it would serve, but for exploration: sources over an index, ranker, gate, re-ranking."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from narrows.errors import NarrowsError
from narrows.evaluation.comparison import Answers, held_bytes
from narrows.evaluation.leave_one_out import Cases
from narrows.evaluation.stacks import Stack
from narrows.ranking import Ranker
from narrows.reranking import diversify
from narrows.retrieval import Rows, fuse
from narrows.settings import Surface
from narrows.sources import SignallingSource
from narrows.sources.rows import PlacedVectors
from sagemaker_jobs.compare.indexes import NAN, Built, indexed
from sagemaker_jobs.compare.tiers import Tier
from sagemaker_jobs.compare.truth import Truth
from sagemaker_jobs.replay import Funnel
from sagemaker_jobs.workers import in_parts

TIMED, WARM_UP = 400, 20
PLACED = 20

Answered = tuple[tuple[int, int, int], Rows]
"""Where the chosen item stands among candidates, in the ranker's order and in the slate; the slate."""


@dataclass(frozen=True, eq=False)
class Times:
    """Milliseconds of a request: `retrieval` float64[n]; `search`, the mean that a node worked for it.

    None, and nan, where the stack lacks its index or nobody asks; `search` is nan where no node tells it.
    """

    retrieval: NDArray[np.float64]
    search: float


@dataclass(frozen=True, eq=False)
class Running:
    """One stack's funnel over the indexes that were `built`; its times are `wall` time or a processor's."""

    stack: Stack
    funnel: Funnel
    built: Built = field(default_factory=Built)
    wall: bool = False

    @staticmethod
    def of(stack: Stack, funnel: Funnel, scratch: Path, tier: Tier) -> Running:
        """The stack over a fitted folder, with indexes where an app would have them."""
        chosen = {name: funnel.sources[name] for name in stack.sources if name in funnel.sources}
        sources, built = indexed(chosen, scratch, tier)
        return Running(stack, replace(funnel, quotas=stack.quotas, sources=sources), built, tier.on_nodes)

    @property
    def bytes_held(self) -> int:
        """What a process holds of sources and index; the ranker and the item columns are everybody's."""
        plain = [_without_index(source) for source in self.funnel.sources.values()]
        return held_bytes(*plain) + self.built.held_bytes

    def answers(
        self, held: Cases, rankers: Sequence[Ranker], surface: Surface, truth: Truth | None
    ) -> list[Answers]:
        """Ask for every case, on every core, and let each ranker order what is found."""
        parts = in_parts(lambda part: self._answered(held, part, rankers, surface, truth), len(held))
        cases = [case for part in parts for case in part]
        return [_answers([case[at] for case in cases], surface, truth) for at in range(len(rankers))]

    def _answered(
        self, held: Cases, part: range, rankers: Sequence[Ranker], surface: Surface, truth: Truth | None
    ) -> list[list[Answered]]:
        funnel = replace(self.funnel, sources=self.built.apart(self.funnel.sources))
        return [_answered(funnel, held, case, rankers, surface, truth) for case in part]

    def times(self, held: Cases) -> Times:
        """How long all sources and the merge take, one source after the other.

        Time of one processor, so that other programs of this machine do not count; wall time where vectors
        lie on nodes, since a processor that waits for them seems idle.
        """
        clock = time.perf_counter if self.wall else time.thread_time
        queries = [held.query(case) for case in range(min(len(held), TIMED + WARM_UP))]
        if self.built.on is None or not queries:
            return Times(np.empty(0), NAN)
        warm = WARM_UP if len(queries) > WARM_UP else 0
        for query in queries[:warm]:
            self.funnel.candidates(query)
        busy, took = self.built.busy_ms(), []
        for query in queries[warm:]:
            began = clock()
            self.funnel.candidates(query)
            took.append(clock() - began)
        return Times(np.asarray(took) * 1e3, (self.built.busy_ms() - busy) / len(took))

    def placing(self, texts: Sequence[str]) -> tuple[dict[str, float], dict[str, str]]:
        """(own source that places items by their text -> seconds for one, own source -> why it could not).

        Seconds are nan where the index is not there into which it would place them.
        """
        seconds, failed = {}, {}
        for name in self.stack.own:
            source = self.funnel.sources[name]
            if hasattr(source, "place"):
                try:
                    seconds[name] = _placed(source, texts) if self.built.on else NAN
                except NarrowsError as error:
                    failed[name] = str(error)
        return seconds, failed


def _answered(
    funnel: Funnel,
    held: Cases,
    case: int,
    rankers: Sequence[Ranker],
    surface: Surface,
    truth: Truth | None,
) -> list[Answered]:
    request, wanted = funnel.declared.request(held, case), held.target(case)
    if truth:
        request = replace(request, query=replace(request.query, passes=partial(truth.eligible, case)))
    candidates = funnel.candidates(request.query)
    retrieved = _rank(fuse(candidates, len(candidates)).rows, wanted)
    if truth:
        candidates = candidates.take(np.flatnonzero(truth.eligible(case, candidates.rows)))
    found = []
    for ranker in rankers:
        ranked = ranker.rank(request, candidates, surface.rank_at_most)
        slate = ranked.rows[diversify(ranked, surface.diversity, surface.limit).order]
        found.append(((retrieved, _rank(ranked.rows, wanted), _rank(slate, wanted)), slate))
    return found


def _answers(found: Sequence[Answered], surface: Surface, truth: Truth | None) -> Answers:
    ranks = np.asarray([ranks for ranks, _ in found], np.int64).reshape(-1, 3)
    slates = np.full((len(found), surface.limit), -1, np.int32)
    for row, (_, slate) in enumerate(found):
        slates[row, : len(slate)] = slate
    return Answers(ranks[:, 0], ranks[:, 1], ranks[:, 2], truth.worth(slates) if truth else None)


def missing_sources(stack: Stack, sources: Mapping[str, SignallingSource]) -> tuple[str, ...]:
    """Own sources of the stack for which there is no model."""
    return tuple(name for name in stack.own if name not in sources)


def _without_index(source: Any) -> Any:
    return source if getattr(source, "index", None) is None else replace(source, index=None)


def _placed(source: Any, texts: Sequence[str]) -> float:
    """Seconds that one new item takes: as if the first of them had just changed, one after the other."""
    rows = np.arange(min(PLACED, len(texts)), dtype=np.int32)
    placed = PlacedVectors(source.vectors.copy(), source.placed.marks.copy())
    new = replace(source, placed=placed)
    began = time.perf_counter()
    for row in rows.tolist():
        new.place(rows[row : row + 1], texts[row : row + 1])
    return (time.perf_counter() - began) / max(len(rows), 1)


def _rank(rows: Rows, wanted: int) -> int:
    at = np.flatnonzero(rows == wanted)
    return int(at[0]) if len(at) else -1
