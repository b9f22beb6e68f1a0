"""The skew report: what was compared, what diverged first, and the causes by name."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from narrows.events import Event
from narrows.features.audit import columns
from narrows.features.declarations import FeatureDeclaration
from narrows.features.kinds import KINDS
from narrows.features.registry import MISSING_SUFFIX, FeatureSet
from narrows.features.scopes import scope_of
from narrows.skew.causes import LATE_EVENT, OLD_KEY, OVERFLOW, REMEDIES, REPEATED, Cause, causes_of
from narrows.skew.comparing import Comparison, Divergence, Row, compare
from narrows.skew.relations import overflows
from narrows.skew.trials import Case, Trial, rendered

OF_AN_ITEM = "read from the snapshot's row of each candidate; decision records keep no values of candidates"
NOT_RECORDED: Mapping[str, str] = MappingProxyType(
    {
        "item": OF_AN_ITEM,
        "cross": f"computed from the visitor's values, which are compared, and {OF_AN_ITEM}",
        "by": "computed by the night alone, and read by no request",
    }
)
"""Why no value of these scopes can be compared."""
OF_THE_NIGHT = "the same for every visitor; item_statistics tells how far it is from the exact value"
NEVER_SERVED = "no sampled decision had a value of it"
MOST_CASES = 200
"""How many diverging vectors are looked into; all are counted."""


def report(
    rows: Sequence[Row], cases: Sequence[Case], features: FeatureSet, exact: Collection[str]
) -> dict[str, Any]:
    """The report on these rows as JSON takes it; `cases` are the first diverging ones with their events."""
    comparison = compare(rows, exact)
    causes = causes_of(cases, rows, features, exact)
    return {
        "rows": comparison.rows,
        "features": len(comparison.by_feature),
        "values": comparison.values,
        "exact_share": _defined(comparison.exact_share),
        "max_abs_diff": _defined(comparison.max_abs_diff),
        "first_divergence": _first(comparison, cases, causes, features),
        "not_compared": _left_out(comparison, features),
        "causes": [_shown(one) for one in causes],
        "by_feature": comparison.table(),
    }


def _left_out(comparison: Comparison, features: FeatureSet) -> list[dict[str, Any]]:
    """Each declared feature of which nothing was compared: the model's columns that hold it, and why."""
    return [
        {"feature": one.name, "scope": one.scope, "columns": columns(one), "reason": _reason(one)}
        for one in features.declarations
        if one.name not in comparison.by_feature
    ]


def _reason(declaration: FeatureDeclaration) -> str:
    scope = scope_of(declaration.scope)
    if scope and scope.base == "item" and declaration.kind in KINDS:
        return OF_THE_NIGHT
    return NOT_RECORDED.get(scope.base if scope else "", NEVER_SERVED)


def _defined(value: float) -> float | None:
    return None if math.isnan(value) else value


def diverging(comparison: Comparison) -> list[str]:
    """The recommendation ids of the first diverging vectors, as many as are looked into."""
    return list(dict.fromkeys(one.recommendation_id for one in comparison.divergences))[:MOST_CASES]


def _shown(cause: Cause) -> dict[str, Any]:
    return {
        "cause": cause.name,
        "evidence": cause.evidence,
        "values": len(cause.cells),
        "features": list(cause.features),
        "remedy": REMEDIES[cause.name],
    }


def _first(
    comparison: Comparison, cases: Sequence[Case], causes: Sequence[Cause], features: FeatureSet
) -> dict[str, Any] | None:
    """The earliest diverging value and the event from which on it diverges; None where all agree."""
    if not comparison.divergences:
        return None
    earliest = comparison.divergences[0].recommendation_id
    of_it = [one for one in comparison.divergences if one.recommendation_id == earliest]
    first = min(of_it, key=lambda one: (one.feature.endswith(MISSING_SUFFIX), one.feature))
    event, cause = _blamed(first, cases, causes, features)
    return {
        "recommendation_id": first.recommendation_id,
        "at": first.at,
        "feature": first.feature,
        "served": first.served,
        "recomputed": first.recomputed,
        "cause": cause,
        "event_id": event.event_id if event else None,
        "event_type": event.event_type if event else None,
        "event_time": event.time if event else None,
    }


def _blamed(
    first: Divergence, cases: Sequence[Case], causes: Sequence[Cause], features: FeatureSet
) -> tuple[Event | None, str | None]:
    """The event with which the two sides part, and the name of the cause."""
    number = next(
        (at for at, case in enumerate(cases) if case.row.recommendation_id == first.recommendation_id), None
    )
    if number is None:
        return None, None
    cause = next((one for one in causes if (number, first.feature) in one.cells), None)
    case, name = cases[number], first.feature
    if cause and cause.name in (LATE_EVENT, OLD_KEY) and number in cause.trials:
        return _not_in_both(case, cause.trials[number]), cause.name
    if cause and cause.name == REPEATED and number in cause.trials:
        return cause.trials[number].events[-1][0], cause.name
    if cause and cause.name == OVERFLOW:
        return _past_the_limit(case, name, features), cause.name
    return _first_taken(case, name, features), cause.name if cause else None


def _not_in_both(case: Case, trial: Trial) -> Event | None:
    """The earliest event that counts on one side only."""
    apart = case.honest.ids ^ trial.ids
    events = [one.event for one in case.events if one.event.event_id in apart]
    return min(events, key=_moment, default=None)


def _past_the_limit(case: Case, name: str, features: FeatureSet) -> Event | None:
    """The event with which a number leaves what an integer holds."""
    events = sorted(case.honest.events, key=lambda one: _moment(one[0]))
    for number, (event, _) in enumerate(events, start=1):
        value = rendered(features, Trial(events[:number], case.row.at), case.context).get(name)
        if overflows(value):
            return event
    return _first_taken(case, name, features)


def _first_taken(case: Case, name: str, features: FeatureSet) -> Event | None:
    """The earliest event that the feature takes, else the newest that had been applied."""
    nothing = rendered(features, Trial([], case.row.at), case.context).get(name)
    events = sorted(case.honest.events, key=lambda one: _moment(one[0]))
    for one in events:
        if rendered(features, Trial([one], case.row.at), case.context).get(name) != nothing:
            return one[0]
    return events[-1][0] if events else None


def _moment(event: Event) -> tuple[float, str]:
    return event.time, event.event_id


def summary(found: Mapping[str, Any]) -> str:
    """The report in one sentence."""
    share = found["exact_share"]
    named = ", ".join(one["cause"] for one in found["causes"])
    whole = f"{found['values']:,} values of {found['rows']:,} decisions, {share:.4%} exact"
    return f"{whole}; {named}" if named else whole
