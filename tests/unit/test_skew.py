"""The comparison of served with recomputed values, and the six causes told apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from narrows.events import Event
from narrows.features.declarations import FeatureDeclaration, Parameter
from narrows.features.registry import FeatureSet
from narrows.settings import load_app
from narrows.skew.causes import (
    LATE_EVENT,
    NORMALISATION,
    NULL_DEFAULT,
    OLD_KEY,
    OVERFLOW,
    REPEATED,
    TIME_ZONE,
    UNKNOWN,
    causes_of,
)
from narrows.skew.comparing import Row, Value, compare, exact_features
from narrows.skew.relations import overflowed, rescaled
from narrows.skew.report import NEVER_SERVED, NOT_RECORDED, OF_AN_ITEM, OF_THE_NIGHT, report
from narrows.skew.trials import Case, Placed, Trial, rendered

NOW = 1_790_000_000.0
DAY_S = 86_400.0
VISITOR, SESSION = frozenset({"visitor"}), frozenset({"visitor", "session"})


def _feature(
    name: str, kind: str, events: tuple[str, ...], value: str | None = None, **parameters: Parameter
) -> FeatureDeclaration:
    scope = "request" if kind == "hour_of_day" else "visitor"
    default = {"click_rate": 0.05, "spend": -1.0}.get(name, 0.0)
    return FeatureDeclaration(
        name, kind, scope, events, "test", "of the test", default, parameters, value, {}, None
    )


FEATURES = FeatureSet(
    [
        _feature("views", "count", ("view",)),
        _feature("purchases", "count", ("purchase",)),
        _feature("spend", "count", ("purchase",), "event_value"),
        _feature("activity_1d", "decayed_count", ("view", "click", "purchase"), half_life_s=DAY_S),
        _feature(
            *("click_rate", "smoothed_rate", ("click",)),
            per=("impression",),
            prior_successes=1.0,
            prior_trials=20.0,
            half_life_s=7 * DAY_S,
        ),
        _feature("history", "last_n", ("view", "click", "purchase"), keep=10),
        _feature("hour", "hour_of_day", ()),
    ]
)
EXACT = exact_features(FEATURES.declarations)
VISITORS = 24


def _case(number: int) -> Case:
    """A visitor who logged in midway, with some events that reached the state only after the decision."""
    rng = np.random.default_rng([5, number])
    user, session = f"user{number}", f"session{number}"
    events: list[Placed] = []
    for place in range(30):
        time = NOW - float(rng.integers(60, 20 * DAY_S))
        kind = str(rng.choice(["view", "click", "impression", *(["purchase"] if number % 4 else [])]))
        anonymous = place % 3 == 0
        spent = float(rng.integers(1_000, 5_000)) * (1_000_000.0 if number % 5 == 1 else 1.0)
        event = Event(
            *(f"e{number}-{place:02d}", kind, time, time + 1.0),
            user_id=None if anonymous else user,
            session_id=session,
            item_id=f"i{int(rng.integers(0, 50))}",
            value=spent if kind == "purchase" else None,
        )
        late = place % 10 == 4 and number % 2 == 0
        events.append(Placed(event, frozenset() if late else VISITOR, VISITOR, VISITOR))
    return Case(Row(f"r{number:02d}", NOW + number, {}, {}), events)


CASES = [_case(number) for number in range(VISITORS)]
Values = dict[str, Value]
Plant = Callable[[Case, Values], Values]


def _honest(case: Case) -> Values:
    return rendered(FEATURES, case.honest, case.context)


def _time_zone(case: Case, honest: Values) -> Values:
    """Moments parsed as if a zone two hours east were UTC."""
    events = [(replace(one, time=one.time + 7_200.0), scopes) for one, scopes in case.honest.events]
    return rendered(FEATURES, Trial(events, case.row.at), case.context)


def _clock(case: Case, honest: Values) -> Values:
    """The request's hour taken from a local clock."""
    return rendered(FEATURES, case.honest._replace(now=case.row.at - 5.5 * 3_600.0), case.context)


def _null_default(case: Case, honest: Values) -> Values:
    """A missing number taken for zero, and its flag forgotten."""
    filled = {name: 0.0 for name in ("spend", "purchases") if honest[f"{name}_missing"] == 1.0}
    return honest | filled | {f"{name}_missing": 0.0 for name in filled}


def _late_event(case: Case, honest: Values) -> Values:
    """A join by the time of the events, which also takes those that had not arrived."""
    events = [(one.event, one.counted or one.late) for one in case.events if one.event.time <= case.row.at]
    return rendered(FEATURES, Trial(events, case.row.at), case.context)


def _overflow(case: Case, honest: Values) -> Values:
    """A sum in a 32-bit integer."""
    spend = honest["spend"]
    assert isinstance(spend, float)
    return honest | {"spend": float((int(spend) + 2**31) % 2**32 - 2**31)}


def _old_key(case: Case, honest: Values) -> Values:
    """A join on the session, which had long become the user's."""
    events = [one for one in case.honest.events if one[0].user_id is None]
    return rendered(FEATURES, Trial(events, case.row.at), case.context)


def _normalised(case: Case, honest: Values) -> Values:
    """Standardised where the other side is not."""
    views, activity = honest["views"], honest["activity_1d"]
    assert isinstance(views, float)
    assert isinstance(activity, float)
    return honest | {"views": (views - 7.3) / 2.9, "activity_1d": (activity - 2.0) / 1.7}


def _logarithmic(case: Case, honest: Values) -> Values:
    """A logarithm of a count, in the training set alone."""
    views = honest["views"]
    assert isinstance(views, float)
    return honest | {"views": math.log1p(views)}


PLANTS: Mapping[str, tuple[str, Plant]] = {
    "zone of the events": (TIME_ZONE, _time_zone),
    "zone of the request": (TIME_ZONE, _clock),
    "null default": (NULL_DEFAULT, _null_default),
    "late event": (LATE_EVENT, _late_event),
    "overflow": (OVERFLOW, _overflow),
    "old key": (OLD_KEY, _old_key),
    "z-score": (NORMALISATION, _normalised),
    "logarithm": (NORMALISATION, _logarithmic),
}


def _rows(plant: Plant | None, *, at_serving: bool) -> list[Row]:
    rows = []
    for case in CASES:
        honest = _honest(case)
        odd = plant(case, honest) if plant else honest
        served, again = (odd, honest) if at_serving else (honest, odd)
        rows.append(replace(case.row, served=served, recomputed=again))
    return rows


def _diverging(rows: list[Row]) -> list[Case]:
    return [
        replace(case, row=row) for case, row in zip(CASES, rows, strict=True) if row.served != row.recomputed
    ]


@pytest.mark.parametrize("at_serving", [False, True], ids=["in training", "in serving"])
@pytest.mark.parametrize("planted", PLANTS)
def test_each_planted_skew_is_named_and_no_other(planted: str, at_serving: bool) -> None:
    """The matrix of confusion has only its diagonal, whichever side went wrong."""
    expected, plant = PLANTS[planted]
    rows = _rows(plant, at_serving=at_serving)
    found = report(rows, _diverging(rows), FEATURES, EXACT)
    assert {one["cause"] for one in found["causes"]} == {expected}
    assert found["exact_share"] < 1.0
    first = found["first_divergence"]
    assert first["cause"] == expected
    assert first["event_id"].startswith("e")


def test_an_honest_run_has_no_cause() -> None:
    """Equal sides: a share of one, no difference, nothing named."""
    found = report(_rows(None, at_serving=True), [], FEATURES, EXACT)
    shown = {
        name: found[name] for name in ("rows", "exact_share", "max_abs_diff", "first_divergence", "causes")
    }
    assert shown == {
        "rows": VISITORS, "exact_share": 1.0, "max_abs_diff": 0.0, "first_divergence": None, "causes": []
    }  # fmt: skip
    assert found["features"] == 7


@pytest.mark.parametrize(
    "change",
    [lambda value, number: value + 1.0, lambda value, number: value * (1.0 + 0.01 * number % 7) + 0.37],
    ids=["off by one", "noise"],
)
def test_what_no_cause_explains_is_called_unknown(change: Callable[[float, int], float]) -> None:
    """Off by one in a decayed count, and noise, are none of the six."""
    rows = [
        replace(
            row, recomputed={**row.recomputed, "activity_1d": change(float(row.served["activity_1d"]), at)}
        )  # type: ignore[arg-type]
        for at, row in enumerate(_rows(None, at_serving=True))
    ]
    causes = causes_of(_diverging(rows), rows, FEATURES, EXACT)
    assert [one.name for one in causes] == [UNKNOWN]


def test_two_skews_at_once_are_both_named() -> None:
    """Each takes the values it explains: the sum overflows, the count is normalised."""
    rows = _rows(lambda case, honest: _logarithmic(case, _overflow(case, honest)), at_serving=False)
    causes = causes_of(_diverging(rows), rows, FEATURES, EXACT)
    assert {one.name: one.features for one in causes} == {NORMALISATION: ("views",), OVERFLOW: ("spend",)}


def test_the_late_event_itself_is_named() -> None:
    """The first divergence of a late event is that event, not another."""
    rows = _rows(_late_event, at_serving=False)
    first = report(rows, _diverging(rows), FEATURES, EXACT)["first_divergence"]
    late = [one.event for one in CASES[0].events if one.late and not one.counted]
    assert first["recommendation_id"] == "r00"
    assert first["event_id"] == min(late, key=lambda one: one.time).event_id


def test_the_report_names_what_it_does_not_compare() -> None:
    """Of every app each declared feature is compared or named with its columns and the reason."""
    for app in ("megashop", "adpilot", "shopnow", "media"):
        features = load_app(Path(__file__).parents[2] / "apps" / app).features
        seen = {one.name: 1.0 for one in features if one.scope in ("visitor", "user", "session", "request")}
        found = report([Row("r", NOW, seen, seen)], [], FeatureSet(features), ())
        named = {one["feature"]: one for one in found["not_compared"]}
        assert named.keys() == {one.name for one in features} - seen.keys()
        assert found["features"] + len(named) == len(features)
    megashop = load_app(Path(__file__).parents[2] / "apps" / "megashop").features
    found = report([], [], FeatureSet(megashop), ())
    reasons = {one["feature"]: (one["reason"], one["columns"]) for one in found["not_compared"]}
    assert len(reasons) == len(megashop)
    assert reasons["price_distance"] == (
        NOT_RECORDED["cross"],
        ["cross.price_distance", "cross.price_distance_missing"],
    )
    assert {reasons[one.name][0] for one in megashop if one.scope == "item"} == {OF_THE_NIGHT, OF_AN_ITEM}
    assert reasons["views"][0] == NEVER_SERVED


def test_whole_numbers_and_lists_are_compared_bit_for_bit() -> None:
    """A count may not differ by rounding, a decayed count may; a list not by one place."""
    served: Values = {"views": 3.0, "activity_1d": 0.1 + 0.2, "history": ("a", "b"), "views_missing": 0.0}
    again: Values = {"views": 3.0 + 1e-12, "activity_1d": 0.3, "history": ("b", "a"), "views_missing": 0.0}
    compared = compare([Row("r", NOW, served, again)], EXACT)
    assert [one.feature for one in compared.divergences] == ["history", "views"]
    assert compared.values == 4
    assert compared.exact_share == 0.5


def test_a_value_that_one_side_lacks_does_not_agree() -> None:
    """Neither does an undefined one agree with a number; two undefined ones agree."""
    rows = [Row("r", NOW, {"a": None, "b": None, "c": 1.0}, {"a": None, "b": 0.0, "d": 1.0})]
    compared = compare(rows, ())
    assert [one.feature for one in compared.divergences] == ["b", "c", "d"]
    assert compared.values == 4


def test_nothing_compared_has_no_share() -> None:
    """Without a row the share is undefined, not one."""
    assert math.isnan(compare([], ()).exact_share)


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        (3e9, 3e9 - 2**32, True),
        (2.0**31 - 1.0, 5e9, True),
        (40_000.0, 40_000.0 - 65_536.0, True),
        (2.0**31 + 5.0, -(2.0**31) + 5.0, True),
        (5e9, 4e9, False),
        (10.0, 12.0, False),
        (70_000.0, 1.5, False),
    ],
)
def test_an_overflow_is_known_by_its_multiple(left: float, right: float, expected: bool) -> None:
    """Wrapped, or stopped at the largest integer, of 16 or 32 bits; other differences are none."""
    assert overflowed(left, right) is expected
    assert overflowed(right, left) is expected


def test_a_normalisation_needs_enough_rows_and_a_factor() -> None:
    """Three points lie on a line too easily, and a constant offset is no change of scale."""

    def rows(count: int, factor: float, offset: float) -> list[Row]:
        values = [float(one * one) for one in range(1, count + 1)]
        return [Row(str(one), NOW, {"x": one}, {"x": one * factor + offset}) for one in values]

    assert rescaled(rows(3, 0.5, 1.0), "x") is None
    assert rescaled(rows(9, 1.0, 1.0), "x") is None
    assert rescaled(rows(9, 0.5, -1.0), "x") == "recomputed = 0.5 x served -1"


def test_a_repeat_that_the_ring_had_forgotten_is_told_apart() -> None:
    """A visitor of 150 events, one of which counted twice: the declared limit, by its own name."""
    events = [
        Placed(
            Event(f"e{place:03d}", "view", NOW - 10.0 * place, NOW, user_id="busy", item_id="i1"),
            *(VISITOR, VISITOR, VISITOR),
        )
        for place in range(1, 151)
    ]
    case = Case(Row("r", NOW, {}, {}), events)
    twice = rendered(FEATURES, case.honest._replace(events=[*case.honest.events, case.honest.events[40]]), {})
    row = replace(case.row, served=twice, recomputed=_honest(case))
    (cause,) = causes_of([replace(case, row=row)], [row], FEATURES, EXACT)
    assert cause.name == REPEATED
    assert cause.features == ("activity_1d", "views")
    first = report([row], [replace(case, row=row)], FEATURES, EXACT)["first_divergence"]
    assert first["event_id"] == case.honest.events[40][0].event_id
