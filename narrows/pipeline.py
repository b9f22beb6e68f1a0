"""A request becomes a slate: the stages in order, inside a deadline, down a ladder of fallbacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from narrows.decision import ConsideredItem, DecisionRecord, ShownItem
from narrows.ladder import NONE_ELIGIBLE, Line, Offer, Run, allowed, climb, filled, finite, places, ruled
from narrows.ladder import Stages as Stages
from narrows.question import Question, ask, own_state, surface_of
from narrows.question import Request as Request
from narrows.retrieval import NO_ROWS, Rows
from narrows.visitor import Visitor

VISITOR_SHARE = 0.4
CONSIDERED = 50
REMEMBERED = 100


@dataclass(frozen=True, eq=False)
class Recommendation:
    """The answer; `fallback` is the rung that gave it, `degraded` what went wrong: stage -> reason.

    `eligible` are the rows that were ranked, best first: found by a source, and allowed by the rules.
    """

    slate: tuple[ShownItem, ...]
    fallback: str
    degraded: Mapping[str, str]
    model_version: str | None
    policy_version: int
    missing_ids: tuple[str, ...]
    record: DecisionRecord
    eligible: Rows = field(default_factory=lambda: NO_ROWS)

    def content(self) -> dict[str, Any]:
        """The answer as the API gives it, ready for JSON."""
        return {
            "recommendations": [
                {
                    "product_id": item.item_id,
                    "item_id": item.item_id,
                    "score": item.score,
                    "reason": item.reason,
                    "position": item.position,
                }
                for item in self.slate
            ],
            "model_version": self.model_version,
            "experiment_id": None,
            "recommendation_id": self.record.recommendation_id,
            "fallback": self.fallback,
            "degraded": dict(self.degraded),
            "policy_version": self.policy_version,
            "missing_ids": list(self.missing_ids),
        }


def recommend(request: Request, stages: Stages) -> Recommendation:
    """Answer the request; only a wrong request raises, as UnknownSurface or InvalidInput.

    Read the visitor; climb down the surface's ladder until a rung offers something that the rules allow;
    fill a short slate from the rungs below; judge it by the gate; keep the record.
    """
    surface = surface_of(request, stages.app)
    run = Run(request, surface, stages)
    with run.timed("visitor"):
        visitor = _read_visitor(run)
    question = ask(
        request, surface, visitor, app=stages.app, features=stages.features, snapshot=stages.snapshot
    )
    question = ruled(run, question)
    offer = climb(run, question)
    with run.timed("gate"):
        lines = allowed(run, question, filled(run, question, offer))[: request.limit]
    return _respond(run, question, offer, lines)


def _read_visitor(run: Run) -> Visitor:
    request = run.request
    if not request.user_key and not request.session_key:
        return Visitor()
    timeout_s = min(VISITOR_SHARE * run.budget_s, run.remaining_s())
    visitor = run.stages.visitors.read(
        request.user_key, request.session_key, request.surface, now=request.now, timeout_s=timeout_s
    )
    for part, why in visitor.failures.items():
        run.degraded["visitor" if part == own_state(request) else part] = why
    return visitor


def _respond(run: Run, question: Question, offer: Offer, lines: list[Line]) -> Recommendation:
    stages, request = run.stages, run.request
    slate = _shown(lines, stages)
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
        visitor_lists={name: tuple(ids) for name, ids in question.visitor_lists.items()},
        applied=question.reading.applied if question.readable else {},
        request_features=_nullable(question.request_values),
        feature_fingerprint=stages.features.fingerprint(),
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
        eligible=offer.ranked.rows if offer.ranked else NO_ROWS,
    )


def _shown(lines: list[Line], stages: Stages) -> tuple[ShownItem, ...]:
    """The places of the slate, from 1, with what the item's source says for a reason."""
    ids, reasons = stages.snapshot.ids([line.row for line in lines]), stages.app.reasons
    return tuple(
        ShownItem(
            item_id=item_id,
            row=line.row,
            position=position,
            score=line.score,
            source=line.source,
            reason=reasons.get(line.source, ""),
            propensity=line.propensity,
        )
        for position, (item_id, line) in enumerate(zip(ids, lines, strict=True), start=1)
    )


def _with_considered(record: DecisionRecord, offer: Offer, stages: Stages) -> DecisionRecord:
    """The record with the best of what the rung chose from."""
    ranked, candidates = offer.ranked, offer.candidates
    if ranked is None or candidates is None:
        return record
    ids = stages.snapshot.ids(ranked.rows[:REMEMBERED])
    sample = ranked.rows[:CONSIDERED]
    ranks = candidates.ranks[places(candidates, sample)].tolist()
    considered = tuple(
        ConsideredItem(
            item_id,
            int(row),
            finite(score),
            {name: rank for name, rank in zip(candidates.source_names, offered, strict=True) if rank >= 0},
        )
        for item_id, row, score, offered in zip(ids, sample, ranked.scores, ranks, strict=False)
    )
    return replace(record, considered=considered, remembered=tuple(ids))


def _nullable(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: finite(value) for name, value in values.items()}
