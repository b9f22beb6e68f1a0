"""The ranker's input: every column by hand, in the declared order, for any request."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from narrows.events import Event
from narrows.features import statistics
from narrows.features.registry import FeatureSet
from narrows.features.statistics import DeclaredItems
from narrows.features.vectors import VectorInputs, VectorSpec, assemble
from narrows.interactions import interactions_of
from narrows.retrieval import Candidates, Query, merge
from narrows.settings import load_app
from narrows.sources import covisitation, popular

APPS = Path(__file__).parents[2] / "apps"
DAY = 86_400.0


class Items:
    """Six items in a table."""

    columns: ClassVar[dict[str, np.ndarray[Any, Any]]] = {
        "category": np.asarray([0, 0, 1, 1, -1, 2], np.int32),
        "category_all": np.asarray([[0, 1], [0, -1], [1, -1], [1, -1], [-1, -1], [2, -1]], np.int32),
        "price": np.asarray([1.0, 2.0, 4.0, np.nan, 16.0, 32.0], np.float32),
    }

    def take(self, rows: np.ndarray, names: tuple[str, ...]) -> dict[str, np.ndarray[Any, Any]]:
        """Columns by row."""
        return {name: self.columns[name][rows] for name in names}

    def vocabulary(self, name: str) -> tuple[str, ...]:
        """The words of the categories."""
        return ("lamps", "rugs", "tools") if name == "category" else ()


def rows_by_number(ids: list[str]) -> np.ndarray:
    """Items are named by their row."""
    return np.asarray([int(one) for one in ids], np.int32)


LOG = interactions_of(
    ["a", "a", "a", "b", "b", "c", "c"],
    ["0", "1", "2", "1", "2", "0", "1"],
    [0.0, 10.0, 20.0, 0.0, 10.0, 0.0, 10.0],
    catalogue=[str(one) for one in range(6)],
)
SOURCES = {
    "covisitation": covisitation.fit(LOG, covisitation.Params()).bind(rows_by_number, 6),
    "popular": popular.fit(LOG, popular.Params()).bind(rows_by_number, 6),
}
STATISTICS = statistics.fit(LOG, statistics.Params()).bind(rows_by_number, 6)
ITEMS = Items()


def query(history: list[int], *, now: float = 10 * DAY + 3600.0) -> Query:
    """A request a while after these items, one a day."""
    return Query(
        np.asarray(history, np.int32),
        np.arange(len(history)) * DAY,
        np.ones(len(history), np.float32),
        np.empty(0, np.int32),
        now,
        "feed",
    )


def columns(
    asked: Query, *, visitor: dict[str, float] | None = None, spec: VectorSpec | None = None
) -> tuple[Candidates, dict[str, np.ndarray]]:
    """The candidates and the matrix by column name."""
    spec = spec or VectorSpec.over(SOURCES, ITEMS)
    found = merge([(name, source.retrieve(asked, 10)) for name, source in SOURCES.items()])
    matrix = assemble(spec, VectorInputs(visitor or {}, {}, asked), found, ITEMS, STATISTICS, SOURCES)
    assert matrix.dtype == np.float32
    assert matrix.shape == (len(found), len(spec.names))
    return found, dict(zip(spec.names, matrix.T, strict=True))


def test_sources_give_score_rank_share_and_place() -> None:
    """Per source: its score, the retrieval rank, the score over the best, the place among the candidates."""
    asked = query([0])
    found, by = columns(asked)
    assert found.rows.tolist() == [0, 1, 2]
    score = SOURCES["popular"].score(asked, found.rows)
    assert by["popular.score"] == pytest.approx(score)
    assert by["popular.rank"].tolist() == [1, 0, 2]
    assert by["popular.place"].tolist() == [1, 0, 2]
    assert by["popular.scaled"] == pytest.approx(score / score.max())
    assert np.isnan(by["covisitation.score"][0])
    assert by["covisitation.rank"][1:].tolist() == [0, 1]
    assert by["found_by"].tolist() == [1, 2, 2]


def test_crosses_compare_with_the_history() -> None:
    """Category share, price step and distance, and how often the item was seen, by hand."""
    found, by = columns(query([1, 1, 2]))
    weights = np.asarray([0.85**2, 0.85, 1.0])
    shares = {0: weights[:2].sum() / weights.sum(), 1: 1.0 / weights.sum()}
    assert found.rows.tolist() == [0, 1, 2]
    assert by["category.affinity"] == pytest.approx([(shares[0] + shares[1]) / 2, shares[0], shares[1]])
    assert by["category.last"].tolist() == [0.5, 0.0, 1.0]
    mean = (weights * [2.0, 2.0, 4.0]).sum() / weights.sum()
    assert by["price.step"].tolist() == [-3.0, -2.0, 0.0]
    assert by["price.distance"] == pytest.approx(np.abs(np.asarray([1.0, 2.0, 4.0]) - mean), rel=1e-5)
    assert by["history.times_seen"].tolist() == [0, 2, 1]


def test_time_is_read_from_the_query() -> None:
    """Hour of day (UTC), days since the last event, length and span of the history."""
    _, by = columns(query([1, 2, 0]))
    assert by["time.hour"][0] == pytest.approx(1.0)
    assert by["time.days_since_last"][0] == pytest.approx(8 + 1 / 24)
    assert by["time.history_days"][0] == pytest.approx(2.0)
    assert by["time.history_length"][0] == 3.0


def test_declared_values_stand_in_order_and_missing_ones_are_nan() -> None:
    """Visitor features arrive by name."""
    spec = VectorSpec({"popular": ("score",)}, visitor=("clicks_7d", "orders"))
    _, by = columns(query([1]), visitor={"orders": 4.0}, spec=spec)
    assert by["visitor.orders"].tolist() == [4.0] * len(by["visitor.orders"])
    assert np.isnan(by["visitor.clicks_7d"]).all()


def test_declared_features_are_columns_with_their_flags() -> None:
    """Of visitor and request by name, of items and of both for each row, of the nightly job as given."""
    features = FeatureSet(load_app(APPS / "megashop").features)
    nightly = DeclaredItems(
        ("item_click_rate",),
        np.asarray([0.05], np.float32),
        np.asarray(["0", "1"]),
        np.asarray([0.0]),
        np.asarray([[[0.5], [np.nan]]], np.float32),
    )
    table = replace(statistics.fit(LOG, statistics.Params()), declared=nightly).bind(rows_by_number, 6)
    spec = VectorSpec.over(SOURCES, ITEMS, features, table)
    asked = query([0])
    seen = [
        Event(str(n), "view", asked.now - DAY, asked.now, user_id="u", item_id="0", properties=told)
        for n, told in enumerate([{"category": "rugs", "price": 4.0}, {"category": "tools", "price": 4.0}])
    ]
    visitor = features.read(features.add_all(features.zero(), seen), asked.now)
    request = features.computed.request_values(asked.now, {"device": "mobile"}, visitor)
    found = merge([(name, source.retrieve(asked, 10)) for name, source in SOURCES.items()])
    matrix = assemble(spec, VectorInputs(visitor, request, asked), found, ITEMS, table, SOURCES)
    by = dict(zip(spec.names, matrix.T, strict=True))
    assert found.rows.tolist() == [0, 1, 2]
    assert by["visitor.views"].tolist() == [2.0] * 3
    assert (by["visitor.purchases_missing"][0], by["visitor.views_missing"][0]) == (1.0, 0.0)
    assert (by["request.mobile"][0], by["request.days_since_last_visit"][0]) == (1.0, 1.0)
    assert by["request.request_country_missing"][0] == 1.0
    assert by["cross.category_affinity"].tolist() == [0.5, 0.0, 0.5]
    assert by["cross.price_distance"] == pytest.approx(np.log([4.0, 2.0, 1.0]), rel=1e-5)
    assert by["item.item_click_rate"].tolist() == pytest.approx([0.5, 0.05, 0.05])
    assert by["item.item_click_rate_missing"].tolist() == [0.0, 1.0, 1.0]
    assert not any(
        name.startswith(("visitor.history", "visitor.last_seen_at", "visitor.category_in")) for name in by
    )
    assert VectorSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_a_specification_says_which_definitions_have_changed() -> None:
    """Another half-life of a pair changes the cross feature that reads it; what no column reads, nothing."""
    declared = load_app(APPS / "megashop").features
    spec = VectorSpec.over(SOURCES, ITEMS, FeatureSet(declared))
    assert spec.changed(FeatureSet(declared)) == []

    def with_half_life(name: str) -> FeatureSet:
        return FeatureSet(
            [
                replace(one, parameters={**one.parameters, "half_life_s": 60.0}) if one.name == name else one
                for one in declared
            ]
        )

    assert spec.changed(with_half_life("activity_1d")) == ["activity_1d"]
    assert spec.changed(with_half_life("category_interest")) == ["category_affinity"]
    assert spec.changed(with_half_life("item_click_rate")) == []
    fewer = FeatureSet([one for one in declared if one.name != "views"])
    assert spec.changed(fewer) == ["views"]


def test_a_new_item_without_statistics_has_defaults_and_a_flag() -> None:
    """Items without events read the declared defaults; nothing is refused."""
    asked = query([])
    found = Candidates(
        np.asarray([5], np.int32), ("popular",), np.zeros((1, 1), np.int32), np.ones((1, 1), np.float32)
    )
    spec = VectorSpec.over(SOURCES, ITEMS)
    matrix = assemble(spec, VectorInputs({}, {}, asked), found, ITEMS, STATISTICS, SOURCES)
    by = dict(zip(spec.names, matrix[0], strict=True))
    assert by["item.missing"] == 1.0
    assert by["item.log_events"] == 0.0
    assert by["item.repeats"] == 1.0


def test_an_absent_source_leaves_its_columns_missing() -> None:
    """The model sees nan where a source failed to load, in the same columns."""
    asked = query([0])
    found = merge([("popular", SOURCES["popular"].retrieve(asked, 3))])
    spec = VectorSpec.over(SOURCES, ITEMS)
    only = {"popular": SOURCES["popular"]}
    matrix = assemble(spec, VectorInputs({}, {}, asked), found, ITEMS, STATISTICS, only)
    by = dict(zip(spec.names, matrix.T, strict=True))
    assert np.isnan(by["covisitation.score"]).all()
    assert not np.isnan(by["popular.score"]).any()


def test_the_fingerprint_follows_the_meaning() -> None:
    """Equal for what a manifest kept, another for another order, another set of columns."""
    spec = VectorSpec.over(SOURCES, ITEMS)
    kept = VectorSpec.from_json(json.loads(json.dumps(spec.to_json())))
    assert kept == spec
    assert kept.fingerprint() == spec.fingerprint()
    others = {
        VectorSpec({"popular": ("score",)}, visitor=("a", "b")).fingerprint(),
        VectorSpec({"popular": ("score",)}, visitor=("b", "a")).fingerprint(),
        VectorSpec({"popular": ("score",)}).fingerprint(),
        spec.fingerprint(),
    }
    assert len(others) == 4
