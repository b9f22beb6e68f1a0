"""Whatever stands in features.toml is either told as problems or becomes features that everything can use."""

from __future__ import annotations

import json
import math
from datetime import date
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrows.errors import Problem
from narrows.features.audit import audit, explanation
from narrows.features.checks import check, parameters_of
from narrows.features.computed import COMPUTED
from narrows.features.declarations import definitions
from narrows.features.feature_file import read_features
from narrows.features.kinds import KINDS
from narrows.features.registry import FeatureSet
from narrows.toml_reading import Table

EVENTS = ("view", "click", "impression")
NAMES = ("a", "b", "c", "price")
SCOPES = ("visitor", "user", "session", "item", "request", "visitor x item", "visitor x brand", "by:brand")
OF_ANYTHING = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.dates()
    | st.lists(st.integers() | st.text(max_size=3), max_size=3)
    | st.dictionaries(st.text(max_size=3), st.integers() | st.lists(st.text()), max_size=2)
).filter(lambda value: value is not None)  # fmt: skip
PARAMETERS = sorted({name for kind in (*KINDS, *COMPUTED) for name in parameters_of(kind, None)})
RIGHT = {
    "half_life_s": "7d", "window_s": "1h", "per": ["view"], "prior_successes": 1.0, "prior_trials": 20,
    "keep": 20, "statistic": "mean", "buckets": 4, "values": ["x", "y"], "among": ["x"], "context": "device",
    "column": "price", "item": "brand", "scale": "log", "of": "a",
}  # fmt: skip


@pytest.mark.parametrize("default", [math.nan, math.inf, -math.inf, 10**400])
def test_a_default_that_is_no_finite_number_is_told_once(default: Any) -> None:
    """With what to write instead."""
    one = {"name": "a", "kind": "count", "owner": "o", "description": "d", "events": ["view"]}
    problems: list[Problem] = []
    table = Table({"feature": [{**one, "default": default}]}, "features.toml", "", problems)
    problems += check(read_features(table, EVENTS))
    (problem,) = problems
    assert (problem.path, problem.remedy) == ("feature[0].default", "write a finite number")


@st.composite
def declarations(draw: st.DrawFn) -> dict[str, Any]:
    """A declaration that is right, nearly right, or nonsense."""
    kind = draw(st.sampled_from([*KINDS, *COMPUTED]))
    wanted = parameters_of(kind, None)
    one: dict[str, Any] = {
        "name": draw(st.sampled_from(NAMES)),
        "kind": kind,
        "owner": "o",
        "description": "d",
    }
    one |= {name.removesuffix("_s"): RIGHT[name] for name in wanted if draw(st.integers(0, 9))}
    if kind in COMPUTED:
        one["scope"] = COMPUTED[kind].scope
    else:
        one |= {"events": ["view"], "scope": draw(st.sampled_from(SCOPES))}
        if KINDS[kind].VALUE != "none":
            one["value"] = draw(st.sampled_from(NAMES))
    if draw(st.booleans()):
        key = draw(st.sampled_from([*one, "where", "default", "freshness", "sensitivity", *PARAMETERS]))
        one[key] = draw(OF_ANYTHING)
    return one


@settings(max_examples=300)
@given(features=st.lists(declarations(), max_size=4), sources=OF_ANYTHING, extra=st.booleans())
def test_any_content_is_told_or_used(features: list[dict[str, Any]], sources: Any, extra: bool) -> None:
    """Never an exception; and what passes folds, reads, is audited, explained and has a definition."""
    problems: list[Problem] = []
    content = {"feature": features, **({"source": sources} if extra else {})}
    declared = read_features(Table(content, "features.toml", "", problems), EVENTS)
    problems += check(declared)
    assert all(str(problem) and problem.file == "features.toml" for problem in problems)
    if problems:
        return
    built = FeatureSet(declared)
    values = built.read(built.zero(), 1.8e9)
    assert all(math.isfinite(value) for value in values.values())
    assert all(math.isfinite(value) for value in built.computed.request_values(1.8e9, {}, values).values())
    assert len(audit(declared)) == len(definitions(declared)) == len(declared)
    for one in declared:
        json.dumps(explanation(one.name, declared))
    assert len(built.fingerprint()) == 32


def test_right_declarations_are_among_them() -> None:
    """The parameters that the test calls right are right, for every kind."""
    for kind in (*KINDS, *COMPUTED):
        one = {"name": "x", "kind": kind, "owner": "o", "description": "d", "scope": "visitor"}
        one |= {name.removesuffix("_s"): RIGHT[name] for name in parameters_of(kind, None)}
        if kind in COMPUTED:
            one["scope"] = COMPUTED[kind].scope
        else:
            one |= {"events": ["view"]} | ({"value": "price"} if KINDS[kind].VALUE != "none" else {})
        problems: list[Problem] = []
        declared = read_features(Table({"feature": [one]}, "features.toml", "", problems), EVENTS)
        told = [*problems, *check(declared)]
        assert [one for one in told if not one.path.endswith(".of")] == []


def test_a_date_is_no_filter() -> None:
    """TOML has dates, events have none."""
    one = {"name": "x", "kind": "count", "events": ["view"], "owner": "o", "description": "d"}
    problems: list[Problem] = []
    one["where"] = {"day": date(2026, 1, 1)}  # type: ignore[assignment]
    declared = read_features(Table({"feature": [one]}, "features.toml", "", problems), EVENTS)
    assert [problem.path for problem in [*problems, *check(declared)]] == ["x.where.day"]


def test_a_duration_in_bare_seconds_is_refused() -> None:
    """It would stand beside the one with a unit, and nobody could say which counts."""
    one = {"name": "x", "kind": "decayed_count", "events": ["view"], "owner": "o", "description": "d"}
    one |= {"half_life": "7d", "half_life_s": 60}  # type: ignore[dict-item]
    problems: list[Problem] = []
    read_features(Table({"feature": [one]}, "features.toml", "", problems), EVENTS)
    assert [(one.path, one.remedy) for one in problems] == [
        ("feature[0].half_life_s", 'write it with its unit, as half_life = "7d"')
    ]
