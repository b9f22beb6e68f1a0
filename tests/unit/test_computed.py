"""Computed features: each kind by hand, at its edges, and undefined where nothing is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrows.features.computed import (
    COMPUTED,
    Asked,
    Computed,
    ComputedFeatures,
    row_values,
    with_flags,
)
from narrows.features.declarations import FeatureDeclaration

NOW = 1_800_000_000.0  # Friday 15 January 2027, 08:00 UTC
DAY = 86_400.0
NAN = math.nan


class Items:
    """Four items: two categories, brands, prices and a moment."""

    def __init__(self) -> None:
        self.columns: dict[str, Any] = {
            "category": np.asarray([0, 1, -1, 0], np.int32),
            "category_all": np.asarray([[0, 1], [1, -1], [-1, -1], [0, -1]], np.int32),
            "brand": np.asarray([1, 0, -1, 0], np.int32),
            "price": np.asarray([10.0, 20.0, np.nan, 0.0], np.float32),
            "created_at": np.asarray([NOW - 3 * DAY, NOW + DAY, np.nan, 0.0]),
            "title": np.asarray([b"a", b"b", b"c", b"d"]),
        }

    def take(self, rows: np.ndarray, names: tuple[str, ...]) -> dict[str, np.ndarray]:
        """Columns by row."""
        return {name: self.columns[name][rows] for name in names}

    def vocabulary(self, name: str) -> tuple[str, ...]:
        """The words of a column."""
        return {"category": ("lamps", "tools"), "brand": ("acme", "best")}.get(name, ())


ROWS = np.arange(4, dtype=np.int32)


def feature(kind: str, *, name: str = "f", default: float = 0.0, **parameters: Any) -> FeatureDeclaration:
    """A declaration of a computed kind."""
    return FeatureDeclaration(
        name=name,
        kind=kind,
        scope=COMPUTED[kind].scope,
        events=(),
        owner="o",
        description="d",
        default=default,
        parameters=parameters,
        value=None,
        where={},
        freshness_s=None,
    )


def requested(one: FeatureDeclaration, *, now: float = NOW, context: Any = None, **visitor: float) -> float:
    """The value of a request feature, nan where only the default is known."""
    values = ComputedFeatures([one]).request_values(now, context or {}, visitor)
    assert values.keys() == {"f", "f_missing"}
    return NAN if values["f_missing"] else values["f"]


def of_rows(one: FeatureDeclaration, visitor: dict[str, float] | None = None) -> list[float]:
    """The values for the four items, nan where only the default is known."""
    value, missing = row_values([Computed.of(one)], Asked(NOW, visitor=visitor or {}), Items(), ROWS)
    assert value.dtype == missing.dtype == np.float32
    assert not np.isnan(value).any()
    return [NAN if flag else float(number) for number, flag in zip(value, missing, strict=True)]


@pytest.mark.parametrize(
    ("one", "context", "visitor", "value"),
    [
        (feature("hour_of_day"), {}, {}, 8.0),
        (feature("day_of_week"), {}, {}, 4.0),
        (feature("context_is", context="device", among=("mobile",)), {"device": "mobile"}, {}, 1.0),
        (feature("context_is", context="device", among=("mobile",)), {"device": "tv"}, {}, 0.0),
        (feature("context_is", context="device", among=("mobile",)), {"device": ""}, {}, NAN),
        (feature("context_code", context="c", values=("a", "b")), {"c": "b"}, {}, 1.0),
        (feature("context_code", context="c", values=("a", "b")), {"c": "z"}, {}, 2.0),
        (feature("context_code", context="c", values=("a", "b")), {}, {}, NAN),
        (feature("context_number", context="size"), {"size": "12.5"}, {}, 12.5),
        (feature("context_number", context="size"), {"size": "inf"}, {}, NAN),
        (feature("context_number", context="size"), {"size": "many"}, {}, NAN),
        (feature("time_since", of="seen"), {}, {"seen": NOW - 2 * DAY, "seen_missing": 0.0}, 2.0),
        (feature("time_since", of="seen"), {}, {"seen": NOW + 60, "seen_missing": 0.0}, 0.0),
        (feature("time_since", of="seen"), {}, {"seen": 0.0, "seen_missing": 1.0}, NAN),
        (feature("time_since", of="seen"), {}, {}, NAN),
        (feature("is_known", of="x"), {}, {"x": 0.0, "x_missing": 0.0}, 1.0),
        (feature("is_known", of="x"), {}, {"x": 0.0, "x_missing": 1.0}, 0.0),
        (feature("at_this_hour", of="h"), {}, {"h[8]": 3.0, "h[9]": 1.0, "hh[8]": 7.0}, 0.75),
        (feature("at_this_hour", of="h"), {}, {"h[9]": 1.0}, 0.0),
        (feature("at_this_hour", of="h"), {}, {}, NAN),
    ],
)
def test_a_request_feature_by_hand(
    one: FeatureDeclaration, context: dict[str, str], visitor: dict[str, float], value: float
) -> None:
    """Known numbers for each kind, and nothing where nothing is known."""
    assert requested(one, context=context, **visitor) == pytest.approx(value, nan_ok=True)


@pytest.mark.parametrize(
    ("one", "visitor", "values"),
    [
        (feature("column", column="price"), {}, [10.0, 20.0, NAN, 0.0]),
        (feature("column", column="title"), {}, [NAN] * 4),
        (feature("column", column="absent"), {}, [NAN] * 4),
        (feature("age", column="created_at"), {}, [3.0, 0.0, NAN, NOW / DAY]),
        (
            feature("affinity", of="p", item="category"),
            {"p[tools]": 3.0, "p[lamps]": 1.0},
            [0.75, 0.75, NAN, 0.25],
        ),
        (feature("affinity", of="p", item="brand"), {"p[best]": 1.0, "p[gone]": 3.0}, [0.25, 0.0, NAN, 0.0]),
        (feature("affinity", of="p", item="brand"), {"p[best]": 0.0}, [NAN] * 4),
        (feature("affinity", of="p", item="brand"), {}, [NAN] * 4),
        (feature("affinity", of="p", item="absent"), {"p[best]": 1.0}, [NAN] * 4),
        (feature("distance", of="m", item="price"), {"m": 15.0, "m_missing": 0.0}, [5.0, 5.0, NAN, 15.0]),
        (
            feature("distance", of="m", item="price", scale="log"),
            {"m": 10.0, "m_missing": 0.0},
            [0.0, math.log(2.0), NAN, NAN],
        ),
        (feature("distance", of="m", item="price", scale="log"), {"m": 0.0, "m_missing": 0.0}, [NAN] * 4),
        (feature("distance", of="m", item="price"), {"m": 15.0, "m_missing": 1.0}, [NAN] * 4),
        (feature("distance", of="m", item="absent"), {"m": 15.0, "m_missing": 0.0}, [NAN] * 4),
    ],
)
def test_a_feature_of_each_item_by_hand(
    one: FeatureDeclaration, visitor: dict[str, float], values: list[float]
) -> None:
    """Known numbers for each kind; an item without the column has no value, not a zero."""
    assert of_rows(one, visitor) == pytest.approx(values, rel=1e-5, nan_ok=True)


def test_the_default_stands_where_nothing_is_known() -> None:
    """The model reads the declared default, and the flag says so."""
    one = Computed.of(feature("affinity", of="p", item="brand", default=0.125))
    value, missing = row_values([one], Asked(NOW), Items(), ROWS)
    assert (value.tolist(), missing.tolist()) == ([0.125] * 4, [1.0] * 4)
    assert with_flags(["a", "b"]) == ("a", "a_missing", "b", "b_missing")


def test_every_kind_is_tested() -> None:
    """Each computed kind appears in the tables above, and computes either one number or one for each row."""
    tables = (test_a_request_feature_by_hand, test_a_feature_of_each_item_by_hand)
    seen = {case[0].kind for test in tables for case in test.pytestmark[0].args[1]}  # type: ignore[attr-defined]
    assert seen == COMPUTED.keys()
    assert all((kind.value is None) != (kind.values is None) for kind in COMPUTED.values())


@given(
    shares=st.dictionaries(st.sampled_from(["lamps", "tools", "rugs"]), st.floats(0.0, 1e9), max_size=3),
    scale=st.floats(1e-3, 1e3),
)
def test_an_affinity_is_a_share_whatever_the_unit(shares: dict[str, float], scale: float) -> None:
    """Between 0 and 1, and the same when all counts are multiplied."""
    one = feature("affinity", of="p", item="category")
    found = of_rows(one, {f"p[{word}]": share for word, share in shares.items()})
    assert all(math.isnan(value) or 0.0 <= value <= 1.0 + 1e-6 for value in found)
    larger = of_rows(one, {f"p[{word}]": share * scale for word, share in shares.items()})
    if sum(shares.values()) > 1e-100:
        assert larger == pytest.approx(found, rel=1e-5, abs=1e-6, nan_ok=True)
