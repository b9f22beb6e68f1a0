"""Declarations: every mistake is named with its key and remedy, and what may not be built is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from narrows.errors import SettingsError
from narrows.features.checks import check, parameters_of
from narrows.features.computed import COMPUTED
from narrows.features.declarations import FeatureDeclaration, SourceDeclaration, definitions, lineage
from narrows.features.kinds import KINDS
from narrows.features.registry import FeatureSet
from narrows.features.scopes import Scope, scope_of
from narrows.features.sensitivity import class_of, sensitive_word

RATE = {"per": ("view",), "prior_successes": 1.0, "prior_trials": 50.0}
GROUP = {"minimum_group": 5, "distinct": "seller_id"}
PRICES = (SourceDeclaration("seller_price", "aggregate_only"),)


def declared(name: str = "clicks_7d", kind: str = "decayed_count", **changes: Any) -> FeatureDeclaration:
    """A right declaration with these changes."""
    given = {
        "name": name, "kind": kind, "scope": "user", "events": ("click",), "owner": "team",
        "description": "", "default": 0.0, "parameters": {"half_life_s": 604_800.0}, "value": None,
        "where": {}, "freshness_s": None,
    }  # fmt: skip
    return FeatureDeclaration(**{**given, **changes})  # type: ignore[arg-type]


def summed(**changes: Any) -> FeatureDeclaration:
    """A decayed sum, which needs a value, with these changes."""
    return declared("sum_7d", "decayed_sum", **changes)


def computed(name: str, kind: str, scope: str = "request", **parameters: Any) -> FeatureDeclaration:
    """A feature that no event folds into."""
    return declared(name, kind, scope=scope, events=(), parameters=parameters)


def told(*declarations: FeatureDeclaration) -> list[tuple[str, str]]:
    """(key, remedy) of each problem."""
    return [(problem.path, problem.remedy) for problem in check(declarations)]


@pytest.mark.parametrize(
    ("declaration", "path", "remedy"),
    [
        (declared(kind="decayed_cout"), "clicks_7d.kind", "did you mean 'decayed_count'"),
        (declared(parameters={}), "clicks_7d.half_life", "needs it"),
        (declared(parameters={"half_life_s": -3.0}), "clicks_7d.half_life", "duration"),
        (declared(parameters={"half_life": "7"}), "clicks_7d.half_life", "duration"),
        (declared(parameters={"half_life_s": 60.0, "halflife": 3}), "clicks_7d.halflife", "half_life"),
        (declared(scope="usr"), "clicks_7d.scope", "did you mean 'user'"),
        (declared(scope="user x Category"), "clicks_7d.scope", "visitor x <property>"),
        (declared(scope="user x item"), "clicks_7d.scope", "visitor x item"),
        (declared(scope="request"), "clicks_7d.kind", "nothing is folded for request; choose one of"),
        (declared(events=()), "clicks_7d.events", "event types"),
        (declared(default=float("nan")), "clicks_7d.default", "finite"),
        (declared(where={"price": float("inf")}), "clicks_7d.where.price", "no event holds it"),
        (declared(where={"price": float("nan")}), "clicks_7d.where.price", "no event holds it"),
        (declared(where={"price": 10**400}), "clicks_7d.where.price", "from -1e+15 to 1e+15"),
        (declared(where={"device": ["a"]}), "clicks_7d.where.device", "give one text"),
        (declared("Clicks"), "Clicks.name", "lower-case"),
        (declared("clicks_missing"), "clicks_missing.name", "not ending in _missing"),
        (declared("gender"), "gender.name", "sensitive"),
        (declared("age_group"), "age_group.name", "sensitive"),
        (declared("user_ethnicity"), "user_ethnicity.name", "sensitive"),
        (declared("by_religion"), "by_religion.name", "sensitive"),
        (summed(value="ageGroup"), "sum_7d.value", "sensitive"),
        (summed(), "sum_7d.value", "needs it"),
        (declared(where={"gender": "f"}), "clicks_7d.where.gender", "sensitive"),
        (declared(scope="user x gender"), "clicks_7d.scope", "sensitive"),
        (computed("g", "context_is", context="gender", among=("f",)), "g.context", "sensitive"),
        (declared(sensitivity="sensitive"), "clicks_7d.sensitivity", "refused"),
        (declared(sensitivity="special"), "clicks_7d.sensitivity", "choose one of"),
        (
            summed(value="mood", sources=(SourceDeclaration("mood", "sensitive"),)),
            "sum_7d.value",
            "[source.mood] is of class sensitive",
        ),
        (
            declared("ctr", "smoothed_rate", parameters={**RATE, "prior_successes": 60.0}),
            "ctr.prior_successes",
            "at most 1",
        ),
        (declared("l", "last_n", parameters={"keep": 0}), "l.keep", "1 to 500"),
        (declared("l", "last_n", parameters={"keep": 3}, value="price"), "l.value", "takes no value"),
        (declared("l", "last_n", parameters={"keep": 3}, scope="item"), "l.scope", "of a visitor"),
        (
            declared("d", "distinct_count", scope="user x brand", value="item_id", parameters={}),
            "d.scope",
            "no pair can hold",
        ),
        (computed("hour", "hour_of_day", "user"), "hour.scope", 'scope = "request"'),
        (computed("hour", "hour_of_day", of="x"), "hour.of", "takes no parameters"),
        (declared("hour", "hour_of_day", scope="request", parameters={}), "hour.events", "no event folds"),
        (computed("c", "context_is", context="device"), "c.among", "needs it"),
        (computed("c", "is_known"), "c.of", "needs it"),
        (computed("c", "is_known", of="nothing"), "c.of", "no feature has this name"),
    ],
)
def test_a_mistake_in_a_declaration_names_its_place_and_the_remedy(
    declaration: FeatureDeclaration, path: str, remedy: str
) -> None:
    """The one who wrote it finds the line and the correction in the message."""
    problems = told(declaration)
    assert path in [one for one, _ in problems]
    assert any(remedy in why for one, why in problems if one == path), problems


def test_all_mistakes_are_reported_together() -> None:
    """Three mistakes and a duplicate name are four problems of one error."""
    wrong = [declared(), declared(kind="sum_of"), declared("gender"), declared("x", parameters={})]
    with pytest.raises(SettingsError) as refusal:
        FeatureSet(wrong)
    assert [(one.file, one.path) for one in refusal.value.problems] == [
        ("features.toml", "clicks_7d.name"),
        ("features.toml", "clicks_7d.kind"),
        ("features.toml", "gender.name"),
        ("features.toml", "x.half_life"),
    ]


def test_a_cycle_is_told_once_with_its_way() -> None:
    """Three features computed from one another are one mistake, at the first of them."""
    cycle = [computed("a", "is_known", of="b"), computed("b", "is_known", of="c")]
    cycle.append(computed("c", "is_known", of="a"))
    found = [why for path, why in told(*cycle) if "itself" in why]
    assert found == ["it is computed from itself: a -> b -> c -> a; break the cycle"]
    assert any("itself" in why for _, why in told(computed("a", "is_known", of="a")))


@pytest.mark.parametrize(
    ("one", "remedy"),
    [
        (computed("d", "time_since", of="clicks_7d"), "a first_seen or last_seen"),
        (computed("d", "affinity", "visitor x item", of="clicks_7d", item="brand"), "a pair"),
        (computed("d", "distance", "visitor x item", of="by_brand", item="price"), "a number of a visitor"),
        (computed("d", "at_this_hour", of="by_brand"), 'scope "visitor x hour"'),
        (computed("d", "is_known", of="by_brand"), "one value"),
    ],
)
def test_a_computed_feature_names_one_that_it_can_read(one: FeatureDeclaration, remedy: str) -> None:
    """The kind of what `of` names is judged too."""
    assert [
        (path, remedy in why)
        for path, why in told(declared(), declared("by_brand", scope="visitor x brand"), one)
    ] == [("d.of", True)]


def test_a_restricted_value_is_refused_outside_an_aggregate() -> None:
    """A seller's raw price, by the class of its source or by its name, may only leave as a group's mean."""
    raw = summed(value="seller_price", sources=PRICES)
    assert told(raw)[0][0] == "sum_7d.value"
    assert "only be aggregated by a group" in told(raw)[0][1]
    assert told(summed(value="seller_price")) == told(raw)
    assert told(summed(value="seller_price", scope="item", sources=PRICES)) != []
    assert told(summed(value="listing", sources=(SourceDeclaration("listing", "aggregate_only"),))) != []
    grouped = declared(
        "sum", "count", scope="by:category", value="seller_price", sources=PRICES, parameters=GROUP
    )
    assert told(grouped) == []
    assert class_of(grouped) == "aggregate_only"


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"parameters": {"distinct": "seller_id"}}, "sum.minimum_group"),
        ({"parameters": {**GROUP, "minimum_group": 2}}, "sum.minimum_group"),
        ({"parameters": {"minimum_group": 5}}, "sum.distinct"),
        ({"parameters": {**GROUP, "distinct": "category"}}, "sum.distinct"),
        ({"parameters": {**GROUP, "distinct": "session_id"}}, "sum.distinct"),
        ({"where": {"seller_price": 9.99}}, "sum.where.seller_price"),
        ({"scope": "by:seller_price"}, "sum.scope"),
        ({"kind": "last_value"}, "sum.kind"),
        ({"kind": "first_seen"}, "sum.kind"),
        ({"kind": "decayed_sum", "parameters": {"half_life_s": 60.0, **GROUP}}, "sum.kind"),
        ({"kind": "smoothed_rate", "parameters": {"half_life_s": 60.0, **RATE, **GROUP}}, "sum.half_life"),
        ({"kind": "value_statistics", "parameters": {"statistic": "min", **GROUP}}, "sum.statistic"),
    ],
)
def test_a_group_that_would_show_one_seller_is_refused(changes: dict[str, Any], path: str) -> None:
    """Too few sellers, a filter on the price, a group for each price, or what ages would give it away."""
    right = declared("sum", "count", scope="by:category", value="seller_price", parameters=GROUP)
    right = replace(right, sources=PRICES)
    assert told(right) == []
    assert path in [key for key, _ in told(replace(right, **changes))]


@pytest.mark.parametrize("given", GROUP)
def test_half_a_minimum_is_no_minimum(given: str) -> None:
    """Of a source that is not restricted too: the group would be shown however small it is."""
    grouped = declared("all", "count", scope="by:category", parameters={given: GROUP[given]})
    assert [key for key, _ in told(grouped)] == [f"all.{other}" for other in GROUP if other != given]


def test_the_age_of_an_item_is_not_the_age_of_a_person() -> None:
    """Words are judged with their neighbours, not by what they contain."""
    assert sensitive_word("item_age_days") is None
    assert sensitive_word("page_views") is None
    assert sensitive_word("user_age") == "age"


@pytest.mark.parametrize(
    "name", ["usergender", "GenderCode", "genders", "is_pregnant", "religion2", "ethnicities"]
)
def test_a_sensitive_attribute_is_recognised_inside_a_word(name: str) -> None:
    """However it is spelled together."""
    assert sensitive_word(name) is not None


@pytest.mark.parametrize(
    ("text", "scope"),
    [
        ("visitor", Scope("visitor")),
        ("session x brand", Scope("session", "brand")),
        ("visitor x item_id", Scope("visitor", "item_id")),
        ("by:category", Scope("by", "category")),
        ("visitor x item", Scope("cross")),
        ("item x brand", None),
        ("visitor x ", None),
        ("by:", None),
    ],
)
def test_scopes(text: str, scope: Scope | None) -> None:
    """A word, a pair, or a group."""
    assert scope_of(text) == scope


def test_a_definition_changes_with_what_it_is_computed_from() -> None:
    """A cross feature of a pair with another half-life is another feature; an owner changes nothing."""
    pair = declared("by_brand", scope="visitor x brand")
    cross = computed("likes_brand", "affinity", "visitor x item", of="by_brand", item="brand")
    faster = declared("by_brand", scope="visitor x brand", parameters={"half_life_s": 60.0})
    mine = declared("by_brand", scope="visitor x brand", owner="another team", unit="views")
    assert definitions([pair, cross]) == definitions([cross, mine])
    assert definitions([pair, cross])["likes_brand"] != definitions([faster, cross])["likes_brand"]
    assert lineage(cross, {"by_brand": pair}) == ("by_brand",)


def test_every_kind_says_what_it_takes() -> None:
    """Names are unique over both families, and no parameter hides a field of a declaration."""
    assert not KINDS.keys() & COMPUTED.keys()
    fields = set(FeatureDeclaration.__dataclass_fields__)
    for name in (*KINDS, *COMPUTED):
        assert not fields & parameters_of(name, None).keys()
        assert all(rule.meaning and rule.remedy for rule in parameters_of(name, None).values())
