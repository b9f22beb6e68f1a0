"""The rungs of the ladder: what each can offer, and how far down a request has to climb."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from concurrent.futures import TimeoutError as Late
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np

from narrows.exploration import arrange
from narrows.features.registry import FeatureSet
from narrows.policy import PolicyState, gate, passing, region_asked
from narrows.question import Question, Request
from narrows.ranking import Ranked, Ranker, RankRequest
from narrows.retrieval import NO_ROWS, Candidates, CandidateSource, Retrieved, Rows, gather, merge
from narrows.settings import App, Surface
from narrows.snapshot import ItemSnapshot
from narrows.visitor import VisitorReader

NONE_ELIGIBLE = "none_eligible"
STATIC = "static"
ENOUGH = 0.25
"""Of all candidates that a surface asks for, the part that must have been asked of sources that answered."""


@dataclass(frozen=True, eq=False)
class Stages:
    """All that a request passes through; replaced as a whole when a part of it changes.

    `ranker` is None where there is no model. `segment_slates` holds rows by segment, under "" everybody's.
    `problems`: parts that could not be loaded -> the reason; every response names them.
    """

    app: App
    features: FeatureSet
    snapshot: ItemSnapshot
    visitors: VisitorReader
    sources: Mapping[str, CandidateSource]
    ranker: Ranker | None
    fusion: Ranker
    policy: PolicyState
    segment_slates: Mapping[str, Rows]
    static_rows: Rows
    executor: Executor
    clock: Callable[[], float]
    model_version: str | None = None
    problems: Mapping[str, str] = field(default_factory=dict)


class Run:
    """One request on its way: what it measured, what went wrong, and what was retrieved for it."""

    def __init__(self, request: Request, surface: Surface, stages: Stages) -> None:
        self.request, self.surface, self.stages = request, surface, stages
        self.started = stages.clock()
        self.budget_s = max(0.0, request.deadline - self.started)
        self.degraded: dict[str, str] = {f"load.{part}": why for part, why in stages.problems.items()}
        self.stage_ms: dict[str, float] = {}
        self.counts: dict[str, int] = {}
        self.dropped: dict[str, int] = {}
        self.retrieved: Candidates | None = None

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Measure a stage, in milliseconds."""
        started = self.stages.clock()
        yield
        self.stage_ms[stage] = (self.stages.clock() - started) * 1e3

    def remaining_s(self) -> float:
        """Seconds until the deadline, never below 0."""
        return max(0.0, self.request.deadline - self.stages.clock())


@dataclass(frozen=True)
class Line:
    """One item on its way into the slate."""

    row: int
    score: float | None
    source: str
    propensity: float = 1.0


@dataclass(frozen=True, eq=False)
class Offer:
    """What a rung has to offer, best first; `ranked` and `candidates` are what a scoring rung chose from."""

    rung: str
    lines: Sequence[Line]
    ranked: Ranked | None = None
    candidates: Candidates | None = None


def ruled(run: Run, question: Question) -> Question:
    """The question, by whose query sources can tell what the rules allow."""
    stages = run.stages
    passes = passing(
        state=stages.policy, rules=stages.app.rules, context=question.context, now=run.request.now
    )
    region = region_asked(stages.policy, stages.app.rules, question.context)
    return replace(
        question, query=replace(question.query, passes=passes, sold_in=region, scarce=stages.policy.scarce)
    )


def climb(run: Run, question: Question) -> Offer:
    """The first rung of the surface's ladder that offers something; in need, whatever a source found."""
    for rung in run.surface.ladder:
        if question.readable or rung in _WITHOUT_VISITOR:
            offer = _RUNGS[rung](run, question)
            if offer.lines:
                return offer
    offer = _ranked_offer("in_process", run, question, _retrieve(run, question), run.stages.fusion)
    return offer if offer.lines else Offer(NONE_ELIGIBLE, ())


def _full(run: Run, question: Question) -> Offer:
    candidates = _enough(run, question)
    ranker = run.stages.ranker
    if ranker is None:
        run.degraded["rank"] = "no_model"
        return Offer("full", ())
    return _ranked_offer("full", run, question, candidates, ranker)


def _remembered(run: Run, question: Question) -> Offer:
    """The candidates of an earlier request, ranked as things are now; needs the model like `full`."""
    remembered, ranker = question.visitor.remembered, run.stages.ranker
    if remembered is None or ranker is None or "rank" in run.degraded:
        return Offer("remembered", ())
    rows = run.stages.snapshot.rows(remembered.candidates)
    answer = Retrieved(rows, np.full(len(rows), np.nan, np.float32))
    candidates = merge([("remembered", answer)], exclude=question.query.exclude)
    return _ranked_offer("remembered", run, question, _eligible(run, question, candidates), ranker)


def _in_process(run: Run, question: Question) -> Offer:
    """What was retrieved, ranked without a model."""
    return _ranked_offer("in_process", run, question, _enough(run, question), run.stages.fusion)


def _last_slate(run: Run, question: Question) -> Offer:
    remembered = question.visitor.remembered
    rows = run.stages.snapshot.rows(remembered.slate) if remembered else NO_ROWS
    return _listed("last_slate", run, question, rows)


def _segment(run: Run, question: Question) -> Offer:
    slates = run.stages.segment_slates
    rows = slates.get(question.query.segment, slates.get("", NO_ROWS))
    return _listed("segment", run, question, rows)


def _static(run: Run, question: Question) -> Offer:
    return _listed(STATIC, run, question, run.stages.static_rows)


_RUNGS: Mapping[str, Callable[[Run, Question], Offer]] = {
    "full": _full,
    "remembered": _remembered,
    "in_process": _in_process,
    "last_slate": _last_slate,
    "segment": _segment,
    STATIC: _static,
}
_WITHOUT_VISITOR = frozenset({"segment", STATIC})
_FILLERS = ("last_slate", "segment", STATIC)


def _retrieve(run: Run, question: Question) -> Candidates:
    """What the sources find and the rules allow, once for all rungs."""
    if run.retrieved is None:
        with run.timed("retrieve"):
            gathered = gather(
                run.stages.sources,
                run.surface.sources,
                question.query,
                deadline=run.request.deadline,
                budget_s=run.budget_s,
                clock=run.stages.clock,
                executor=run.stages.executor,
            )
        run.degraded.update({f"retrieve.{name}": why for name, why in gathered.failures.items()})
        run.stage_ms.update({f"retrieve.{name}": ms for name, ms in gathered.timings_ms.items()})
        run.counts["candidates"] = len(gathered.candidates)
        run.retrieved = _eligible(run, question, gathered.candidates)
    return run.retrieved


def _enough(run: Run, question: Question) -> Candidates:
    """What was retrieved, or nothing where too few sources answered to call it a retrieval."""
    candidates = _retrieve(run, question)
    quotas = run.surface.sources
    answered = sum(one.quota for one in quotas if f"retrieve.{one.name}" not in run.degraded)
    if answered >= ENOUGH * sum(one.quota for one in quotas):
        return candidates
    run.degraded["retrieve"] = "too_few_sources"
    return candidates.take(np.empty(0, np.intp))


def _eligible(run: Run, question: Question, candidates: Candidates) -> Candidates:
    """The candidates that the gate would pass, so that ranking and variety are not spent on others."""
    return candidates.take(np.flatnonzero(_judge(run, question, candidates.rows)))


def _judge(
    run: Run, question: Question, rows: Rows, *, vouched: bool = False
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    verdict = gate(
        rows,
        state=run.stages.policy,
        rules=run.stages.app.rules,
        context=question.context,
        now=run.request.now,
        vouched=vouched,
    )
    for reason, count in verdict.reasons.items():
        run.dropped[reason] = run.dropped.get(reason, 0) + count
    return verdict.allowed


def _ranked_offer(rung: str, run: Run, question: Question, candidates: Candidates, ranker: Ranker) -> Offer:
    """Rank, then choose for variety; offers nothing when the ranker is late or fails."""
    if not len(candidates):
        return Offer(rung, ())
    with run.timed("rank"):
        ranked = _rank(run, question, candidates, ranker)
    if ranked is None:
        return Offer(rung, ())
    with run.timed("rerank"):
        request = run.request
        slate = arrange(ranked, run.surface, request.limit, now=request.now, seed=request.recommendation_id)
    run.counts |= {"ranked": len(ranked.rows), "explored": slate.explored, "caps_relaxed": slate.relaxed}
    rows, scores = ranked.rows[slate.order], ranked.scores[slate.order]
    names = _best_sources(candidates, rows)
    lines = [
        Line(int(row), finite(score), name, chance)
        for row, score, name, chance in zip(rows, scores, names, slate.propensities.tolist(), strict=True)
    ]
    return Offer(rung, lines, ranked, candidates)


def _rank(run: Run, question: Question, candidates: Candidates, ranker: Ranker) -> Ranked | None:
    asked = RankRequest(question.visitor_values, question.request_values, question.query)
    if ranker is run.stages.fusion:
        return ranker.rank(asked, candidates, run.surface.rank_at_most)
    future = run.stages.executor.submit(ranker.rank, asked, candidates, run.surface.rank_at_most)
    try:
        return future.result(timeout=run.remaining_s())
    except Late:
        future.cancel()
        run.degraded["rank"] = "timeout"
    except Exception as error:  # noqa: BLE001  # whatever a model raises, fusion still answers; it is reported
        run.degraded["rank"] = type(error).__name__
    return None


def _best_sources(candidates: Candidates, rows: Rows) -> list[str]:
    """For each row the source that offered it highest, the surface's first among equals."""
    ranks = candidates.ranks[places(candidates, rows)]
    best = np.where(ranks >= 0, ranks, np.iinfo(np.int32).max).argmin(axis=1)
    return [candidates.source_names[column] for column in best.tolist()]


def places(candidates: Candidates, rows: Rows) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    order = np.argsort(candidates.rows, kind="stable")
    return order[np.searchsorted(candidates.rows, rows, sorter=order)]


def _listed(rung: str, run: Run, question: Question, rows: Rows) -> Offer:
    """A list that was made earlier, without what is unknown now, excluded, or against the rules."""
    rows = rows[(rows >= 0) & ~np.isin(rows, question.query.exclude)]
    rows = rows[_judge(run, question, rows, vouched=rung == STATIC)]
    return Offer(rung, [Line(row, None, rung) for row in dict.fromkeys(rows.tolist())])


def filled(run: Run, question: Question, offer: Offer) -> list[Line]:
    """The offer's lines, and where they are fewer than asked for, those of the rungs below; no item twice."""
    lines = list(offer.lines)
    below = run.surface.ladder[run.surface.ladder.index(offer.rung) + 1 :] if lines else ()
    for rung in below:
        if rung not in _FILLERS or len(lines) >= run.request.limit:
            continue
        held = {line.row for line in lines}
        missing = run.request.limit - len(lines)
        more = [line for line in _RUNGS[rung](run, question).lines if line.row not in held][:missing]
        run.counts["filled"] = run.counts.get("filled", 0) + len(more)
        lines += more
    return lines


def allowed(run: Run, question: Question, lines: list[Line]) -> list[Line]:
    """What the gate passes: the last word on every path."""
    rows = np.array([line.row for line in lines], np.int32)
    vouched = np.array([line.source == STATIC for line in lines], np.bool_)
    allowed = np.zeros(len(lines), np.bool_)
    for part in (False, True):
        allowed[vouched == part] = _judge(run, question, rows[vouched == part], vouched=part)
    return [line for line, passes in zip(lines, allowed, strict=True) if passes]


def finite(score: float) -> float | None:
    return float(score) if math.isfinite(score) else None
