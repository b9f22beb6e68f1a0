"""A request becomes a slate: the stages in order, inside a deadline, down a ladder of fallbacks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from concurrent.futures import TimeoutError as Late
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np

from narrows.decision import ConsideredItem, DecisionRecord, ShownItem
from narrows.errors import InvalidInput, UnknownSurface
from narrows.features.registry import FeatureSet
from narrows.features.state import combine
from narrows.policy import GateContext, PolicyState, gate
from narrows.ranking import Ranked, Ranker, RankRequest
from narrows.reranking import diversify
from narrows.retrieval import NO_ROWS, Candidates, CandidateSource, Query, Retrieved, Rows, gather, merge
from narrows.settings import LARGEST_LIMIT, App, Surface
from narrows.snapshot import ItemSnapshot
from narrows.visitor import Visitor, VisitorReader

NONE_ELIGIBLE = "none_eligible"
VISITOR_SHARE = 0.4
CONSIDERED = 50
REMEMBERED = 100


@dataclass(frozen=True)
class Request:
    """A visitor on a surface; `now` is in epoch seconds, `deadline` a moment of the stages' clock in seconds.

    `item_ids` are the product page's item or the cart's items. `context` may tell `device` and `location`,
    the region for rules and segments.
    """

    surface: str
    limit: int
    now: float
    deadline: float
    recommendation_id: str
    user_key: str | None = None
    session_key: str | None = None
    item_ids: tuple[str, ...] = ()
    context: Mapping[str, str] = field(default_factory=dict)


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


@dataclass(frozen=True, eq=False)
class Recommendation:
    """The answer; `fallback` is the rung that gave it, `degraded` what went wrong: stage -> reason."""

    slate: tuple[ShownItem, ...]
    fallback: str
    degraded: Mapping[str, str]
    model_version: str | None
    policy_version: int
    missing_ids: tuple[str, ...]
    record: DecisionRecord


def recommend(request: Request, stages: Stages) -> Recommendation:
    """Answer the request; only a wrong request raises, as UnknownSurface or InvalidInput.

    Read the visitor; climb down the surface's ladder until a rung offers something that the rules allow;
    fill a short slate from the rungs below; judge it by the gate; keep the record.
    """
    run = _Run(request, _surface(request, stages.app), stages)
    with run.timed("visitor"):
        visitor = _read_visitor(run)
    question = _ask(run, visitor)
    offer = _climb(run, question)
    with run.timed("gate"):
        lines = _allowed(run, question, _filled(run, question, offer))[: request.limit]
    return _respond(run, question, offer, lines)


class _Run:
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


@dataclass(frozen=True, eq=False)
class _Question:
    """What the visitor is asked about: `readable` is False when the visitor's own state could not be read."""

    visitor: Visitor
    readable: bool
    query: Query
    history: tuple[tuple[str, float], ...]
    visitor_values: Mapping[str, float]
    request_values: Mapping[str, float]
    context: GateContext
    missing_ids: tuple[str, ...]


@dataclass(frozen=True)
class _Line:
    """One item on its way into the slate."""

    row: int
    score: float | None
    source: str


@dataclass(frozen=True, eq=False)
class _Offer:
    """What a rung has to offer, best first; `ranked` and `candidates` are what a scoring rung chose from."""

    rung: str
    lines: Sequence[_Line]
    ranked: Ranked | None = None
    candidates: Candidates | None = None


def _surface(request: Request, app: App) -> Surface:
    if request.surface not in app.surfaces:
        raise UnknownSurface("surface", request.surface, f"use one of {', '.join(app.surfaces)}")
    if not 1 <= request.limit <= LARGEST_LIMIT:
        raise InvalidInput("limit", request.limit, f"send an integer from 1 to {LARGEST_LIMIT}")
    return app.surfaces[request.surface]


def _read_visitor(run: _Run) -> Visitor:
    request = run.request
    if not request.user_key and not request.session_key:
        return Visitor()
    timeout_s = min(VISITOR_SHARE * run.budget_s, run.remaining_s())
    return run.stages.visitors.read(
        request.user_key, request.session_key, request.surface, now=request.now, timeout_s=timeout_s
    )


def _ask(run: _Run, visitor: Visitor) -> _Question:
    """The query and all values of the request, from what could be read of the visitor."""
    request, stages, app = run.request, run.stages, run.stages.app
    own = "user" if request.user_key else "session"
    readable = own not in visitor.failures
    for part, why in visitor.failures.items():
        run.degraded["visitor" if part == own else part] = why
    state = combine([one for one in (visitor.user, visitor.session) if one], stages.features)
    folded = state.features if state else {}
    history = [one for one in stages.features.history(folded) if _label(app, one[2]) > 0.0]
    rows = stages.snapshot.rows([item_id for _, item_id, _ in history])
    known = np.flatnonzero(rows >= 0)
    context_rows = stages.snapshot.rows(request.item_ids)
    seeds = context_rows[context_rows >= 0] if run.surface.seed != "history" else NO_ROWS
    seen = _seen(run, history, rows)
    query = Query(
        history=rows[known],
        history_times=np.array([time for time, _, _ in history], np.float64)[known],
        history_weights=np.array([_label(app, kind) for _, _, kind in history], np.float32)[known],
        seeds=seeds,
        now=request.now,
        surface=request.surface,
        segment=request.context.get("location", ""),
        exclude=np.union1d(seeds, seen).astype(np.int32),
    )
    hidden = stages.snapshot.rows(list(state.do_not_show)) if state else NO_ROWS
    return _Question(
        visitor=visitor,
        readable=readable,
        query=query,
        history=tuple((history[place][1], history[place][0]) for place in known.tolist()),
        visitor_values=stages.features.read(folded, request.now) if readable else {},
        request_values=_request_values(request),
        context=GateContext(query.segment, hidden[hidden >= 0] if not visitor.failures else None),
        missing_ids=tuple(
            item_id for item_id, row in zip(request.item_ids, context_rows, strict=True) if row < 0
        ),
    )


def _label(app: App, event_type: str) -> float:
    return app.events[event_type].label if event_type in app.events else 0.0


def _seen(run: _Run, history: Sequence[tuple[float, str, str]], rows: Rows) -> Rows:
    """The items that the visitor is through with: those of the event types with the app's highest label."""
    if not run.surface.exclude_seen or not history:
        return NO_ROWS
    highest = max(event.label for event in run.stages.app.events.values())
    done = [row for row, one in zip(rows, history, strict=True) if _label(run.stages.app, one[2]) >= highest]
    return np.array([row for row in done if row >= 0], np.int32)


def _request_values(request: Request) -> dict[str, float]:
    device = request.context.get("device", "")
    return {"mobile": float(device in {"mobile", "phone", "tablet"}) if device else math.nan}


def _climb(run: _Run, question: _Question) -> _Offer:
    """The first rung of the surface's ladder that offers something."""
    for rung in run.surface.ladder:
        if question.readable or rung in _WITHOUT_VISITOR:
            offer = _RUNGS[rung](run, question)
            if offer.lines:
                return offer
    return _Offer(NONE_ELIGIBLE, ())


def _full(run: _Run, question: _Question) -> _Offer:
    candidates = _retrieve(run, question)
    ranker = run.stages.ranker
    if ranker is None:
        run.degraded["rank"] = "no_model"
        return _Offer("full", ())
    return _ranked_offer("full", run, question, candidates, ranker)


def _remembered(run: _Run, question: _Question) -> _Offer:
    """The candidates of an earlier request, ranked as things are now; needs the model like `full`."""
    remembered, ranker = question.visitor.remembered, run.stages.ranker
    if remembered is None or ranker is None or "rank" in run.degraded:
        return _Offer("remembered", ())
    rows = run.stages.snapshot.rows(remembered.candidates)
    answer = Retrieved(rows, np.full(len(rows), np.nan, np.float32))
    candidates = merge([("remembered", answer)], exclude=question.query.exclude)
    return _ranked_offer("remembered", run, question, _eligible(run, question, candidates), ranker)


def _in_process(run: _Run, question: _Question) -> _Offer:
    """What was retrieved, ranked without a model."""
    return _ranked_offer("in_process", run, question, _retrieve(run, question), run.stages.fusion)


def _last_slate(run: _Run, question: _Question) -> _Offer:
    remembered = question.visitor.remembered
    rows = run.stages.snapshot.rows(remembered.slate) if remembered else NO_ROWS
    return _listed("last_slate", run, question, rows)


def _segment(run: _Run, question: _Question) -> _Offer:
    slates = run.stages.segment_slates
    rows = slates.get(question.query.segment, slates.get("", NO_ROWS))
    return _listed("segment", run, question, rows)


def _static(run: _Run, question: _Question) -> _Offer:
    return _listed("static", run, question, run.stages.static_rows)


_RUNGS: Mapping[str, Callable[[_Run, _Question], _Offer]] = {
    "full": _full,
    "remembered": _remembered,
    "in_process": _in_process,
    "last_slate": _last_slate,
    "segment": _segment,
    "static": _static,
}
_WITHOUT_VISITOR = frozenset({"segment", "static"})
_FILLERS = ("last_slate", "segment", "static")


def _retrieve(run: _Run, question: _Question) -> Candidates:
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


def _eligible(run: _Run, question: _Question, candidates: Candidates) -> Candidates:
    """The candidates that the gate would pass, so that ranking and variety are not spent on others."""
    return candidates.take(np.flatnonzero(_judge(run, question, candidates.rows)))


def _judge(run: _Run, question: _Question, rows: Rows) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    verdict = gate(
        rows,
        state=run.stages.policy,
        rules=run.stages.app.rules,
        context=question.context,
        now=run.request.now,
    )
    for reason, count in verdict.reasons.items():
        run.dropped[reason] = run.dropped.get(reason, 0) + count
    return verdict.allowed


def _ranked_offer(
    rung: str, run: _Run, question: _Question, candidates: Candidates, ranker: Ranker
) -> _Offer:
    """Rank, then choose for variety; offers nothing when the ranker is late or fails."""
    if not len(candidates):
        return _Offer(rung, ())
    with run.timed("rank"):
        ranked = _rank(run, question, candidates, ranker)
    if ranked is None:
        return _Offer(rung, ())
    with run.timed("rerank"):
        diversified = diversify(ranked, run.surface.diversity, run.request.limit)
    run.counts |= {"ranked": len(ranked.rows), "caps_relaxed": diversified.relaxed}
    rows, scores = ranked.rows[diversified.order], ranked.scores[diversified.order]
    names = _best_sources(candidates, rows)
    lines = [
        _Line(int(row), _finite(score), name) for row, score, name in zip(rows, scores, names, strict=True)
    ]
    return _Offer(rung, lines, ranked, candidates)


def _rank(run: _Run, question: _Question, candidates: Candidates, ranker: Ranker) -> Ranked | None:
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
    ranks = candidates.ranks[_places(candidates, rows)]
    best = np.where(ranks >= 0, ranks, np.iinfo(np.int32).max).argmin(axis=1)
    return [candidates.source_names[column] for column in best.tolist()]


def _places(candidates: Candidates, rows: Rows) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    order = np.argsort(candidates.rows, kind="stable")
    return order[np.searchsorted(candidates.rows, rows, sorter=order)]


def _listed(rung: str, run: _Run, question: _Question, rows: Rows) -> _Offer:
    """A list that was made earlier, without what is unknown now, excluded, or against the rules."""
    rows = rows[(rows >= 0) & ~np.isin(rows, question.query.exclude)]
    rows = rows[_judge(run, question, rows)]
    return _Offer(rung, [_Line(row, None, rung) for row in dict.fromkeys(rows.tolist())])


def _filled(run: _Run, question: _Question, offer: _Offer) -> list[_Line]:
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


def _allowed(run: _Run, question: _Question, lines: list[_Line]) -> list[_Line]:
    """What the gate passes: the last word on every path."""
    allowed = _judge(run, question, np.array([line.row for line in lines], np.int32))
    return [line for line, passes in zip(lines, allowed, strict=True) if passes]


def _respond(run: _Run, question: _Question, offer: _Offer, lines: list[_Line]) -> Recommendation:
    stages, request = run.stages, run.request
    ids = stages.snapshot.ids([line.row for line in lines])
    slate = tuple(
        ShownItem(
            item_id, line.row, position, line.score, line.source, stages.app.reasons.get(line.source, "")
        )
        for position, (item_id, line) in enumerate(zip(ids, lines, strict=True), start=1)
    )
    rung = offer.rung if slate else NONE_ELIGIBLE
    run.stage_ms["total"] = (stages.clock() - run.started) * 1e3
    record = DecisionRecord(
        recommendation_id=request.recommendation_id,
        app=stages.app.name,
        surface=request.surface,
        at=request.now,
        limit=request.limit,
        user_key=request.user_key,
        session_key=request.session_key,
        rung=rung,
        snapshot_version=stages.snapshot.version,
        model_version=stages.model_version,
        policy_version=stages.policy.version,
        context=dict(request.context),
        context_items=request.item_ids,
        history=question.history,
        visitor_features=_nullable(question.visitor_values),
        request_features=_nullable(question.request_values),
        slate=slate,
        degraded=run.degraded,
        gate=run.dropped,
        counts=run.counts,
        stage_ms={stage: round(ms, 3) for stage, ms in run.stage_ms.items()},
    )
    return Recommendation(
        slate=slate,
        fallback=rung,
        degraded=run.degraded,
        model_version=stages.model_version,
        policy_version=stages.policy.version,
        missing_ids=question.missing_ids,
        record=_with_considered(record, offer, stages),
    )


def _with_considered(record: DecisionRecord, offer: _Offer, stages: Stages) -> DecisionRecord:
    """The record with the best of what the rung chose from."""
    ranked, candidates = offer.ranked, offer.candidates
    if ranked is None or candidates is None:
        return record
    ids = stages.snapshot.ids(ranked.rows[:REMEMBERED])
    sample = ranked.rows[:CONSIDERED]
    ranks = candidates.ranks[_places(candidates, sample)].tolist()
    considered = tuple(
        ConsideredItem(
            item_id,
            int(row),
            _finite(score),
            {name: rank for name, rank in zip(candidates.source_names, places, strict=True) if rank >= 0},
        )
        for item_id, row, score, places in zip(ids, sample, ranked.scores, ranks, strict=False)
    )
    return replace(record, considered=considered, remembered=tuple(ids))


def _finite(score: float) -> float | None:
    return float(score) if math.isfinite(score) else None


def _nullable(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: _finite(value) for name, value in values.items()}
