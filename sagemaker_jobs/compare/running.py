"""A stack as it would serve, but for exploration: sources over an index, ranker, gate, re-ranking."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from narrows.adapters.faiss import EXACT_BELOW, FaissVectorIndex
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
from narrows.sources.two_tower import TwoTowerSource
from sagemaker_jobs.compare.truth import Truth
from sagemaker_jobs.replay import Funnel
from sagemaker_jobs.workers import in_parts

TIMED, WARM_UP = 400, 20
PLACED = 20


@dataclass(frozen=True, eq=False)
class Running:
    """One stack's funnel; `index_s` and `index_bytes` are what its vector index took to build and holds."""

    stack: Stack
    funnel: Funnel
    index_s: float = 0.0
    index_bytes: int = 0

    @staticmethod
    def of(stack: Stack, funnel: Funnel, scratch: Path) -> Running:
        """The stack over a fitted folder, with indexes of the embedded tier where an app would have them.

        That is for the two towers, and for any other source that can search one and has many items.
        """
        chosen = {name: funnel.sources[name] for name in stack.sources if name in funnel.sources}
        began, held = time.perf_counter(), 0
        for name, source in chosen.items():
            if _searches(source):
                index = _index(source)
                index.save(scratch / name)
                held += sum(path.stat().st_size for path in (scratch / name).iterdir())
                chosen[name] = source.searching(index)
        seconds = time.perf_counter() - began if held else 0.0
        return Running(stack, replace(funnel, quotas=stack.quotas, sources=chosen), seconds, held)

    @property
    def bytes_held(self) -> int:
        """What a process holds of sources and index; the ranker and the item columns are everybody's."""
        plain = [
            replace(source, index=None)
            if isinstance(getattr(source, "index", None), FaissVectorIndex)
            else source
            for source in self.funnel.sources.values()
        ]
        return held_bytes(*plain) + self.index_bytes

    def answers(self, held: Cases, ranker: Ranker, surface: Surface, truth: Truth | None) -> Answers:
        """Ask for every case, on every core."""
        parts = in_parts(
            lambda part: [self._answer(held, one, ranker, surface, truth) for one in part], len(held)
        )
        found = [answer for part in parts for answer in part]
        ranks = np.asarray([ranks for ranks, _ in found], np.int64).reshape(-1, 3)
        slates = np.full((len(found), surface.limit), -1, np.int32)
        for row, (_, slate) in enumerate(found):
            slates[row, : len(slate)] = slate
        return Answers(ranks[:, 0], ranks[:, 1], ranks[:, 2], truth.worth(slates) if truth else None)

    def _answer(
        self, held: Cases, case: int, ranker: Ranker, surface: Surface, truth: Truth | None
    ) -> tuple[tuple[int, int, int], Rows]:
        request, wanted = self.funnel.declared.request(held, case), held.target(case)
        if truth:
            request = replace(request, query=replace(request.query, passes=partial(truth.eligible, case)))
        candidates = self.funnel.candidates(request.query)
        retrieved = _rank(fuse(candidates, len(candidates)).rows, wanted)
        if truth:
            candidates = candidates.take(np.flatnonzero(truth.eligible(case, candidates.rows)))
        ranked = ranker.rank(request, candidates, surface.rank_at_most)
        slate = ranked.rows[diversify(ranked, surface.diversity, surface.limit).order]
        return (retrieved, _rank(ranked.rows, wanted), _rank(slate, wanted)), slate

    def times_ms(self, held: Cases) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Milliseconds of one processor: all sources and the merge; those that search an index.

        Processor time, so that other programs of this machine do not count; sources run one by one.
        """
        queries = [held.query(case) for case in range(min(len(held), TIMED + WARM_UP))]
        searching = [one for one in self.funnel.sources.values() if isinstance(one, TwoTowerSource)]
        quotas = {quota.name: quota.quota for quota in self.stack.quotas}
        whole, search = [], []
        for query in queries:
            began = time.thread_time()
            self.funnel.candidates(query)
            whole.append(time.thread_time() - began)
            began = time.thread_time()
            for one in searching:
                one.retrieve(query, quotas[one.name])
            search.append(time.thread_time() - began if searching else 0.0)
        warm = WARM_UP if len(queries) > WARM_UP else 0
        return np.asarray(whole[warm:]) * 1e3, np.asarray(search[warm:]) * 1e3

    def placing(self, texts: Sequence[str]) -> tuple[dict[str, float], dict[str, str]]:
        """(own source that places items by their text -> seconds for one, own source -> why it could not)."""
        seconds, failed = {}, {}
        for name in self.stack.own:
            source = self.funnel.sources[name]
            if hasattr(source, "place"):
                try:
                    seconds[name] = _placed(source, texts)
                except NarrowsError as error:
                    failed[name] = str(error)
        return seconds, failed


def missing_sources(stack: Stack, sources: Mapping[str, SignallingSource]) -> tuple[str, ...]:
    """Own sources of the stack for which there is no model."""
    return tuple(name for name in stack.own if name not in sources)


def _searches(source: Any) -> bool:
    return isinstance(source, TwoTowerSource) or (
        hasattr(source, "searching") and np.count_nonzero(~np.isnan(source.vectors[:, 0])) >= EXACT_BELOW
    )


def _index(source: Any) -> FaissVectorIndex:
    rows = np.flatnonzero(~np.isnan(source.vectors[:, 0])).astype(np.int32)
    index = FaissVectorIndex("compared", source.vectors.shape[1], filters=())
    index.upsert(rows, np.ascontiguousarray(source.vectors[rows]))
    return index


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
