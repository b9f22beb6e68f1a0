"""Declared features at training: from the nightly tables where there are any, else from the file's events."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from narrows.adapters.tables import read_training_data
from narrows.errors import InvalidInput
from narrows.evaluation.leave_one_out import cases
from narrows.features.declarations import FeatureDeclaration
from narrows.settings import App, load_app
from sagemaker_jobs.declared import declared_features
from sagemaker_jobs.training_set import TableItems, TrainingSet

APPS = Path(__file__).parents[2] / "apps"
DAY = 86_400.0


def _feature(name: str, kind: str, scope: str, **parameters: float) -> FeatureDeclaration:
    events = ("click",)
    return FeatureDeclaration(name, kind, scope, events, "tests", name, 0.0, parameters, None, {}, None)


def app() -> App:
    """Media with a count of clicks, by visitor, hour and item, and one feature that files cannot give."""
    features = (
        _feature("clicks", "count", "visitor"),
        _feature("at_hour", "count", "visitor x hour"),
        _feature("in_session", "count", "session"),
        _feature("since", "last_seen", "visitor"),
        _feature("item_clicks", "count", "item"),
        replace(_feature("hour_now", "hour_of_day", "request"), events=()),
    )
    return replace(load_app(APPS / "media"), features=features)


ROWS = {
    "user_id": ["a", "a", "a", "b", "b"],
    "item_id": ["1", "2", "1", "2", "1"],
    "time": [0.0, DAY, 2 * DAY + 3600, DAY, DAY],
    "event_type": ["click", "watch", "click", "click", "click"],
    "weight": [1.0, 2.0, 1.0, 1.0, 1.0],
}


def training_set(folder: Path, rows: dict[str, list[object]]) -> TrainingSet:
    """These rows as a training data directory."""
    (folder / "interactions").mkdir(parents=True)
    pq.write_table(pa.table(rows), folder / "interactions" / "0.parquet")
    log = read_training_data(folder).interactions
    return TrainingSet(log, log, log, TableItems({}, {}), 3, {})


def test_a_files_events_give_the_values_of_just_before(tmp_path: Path) -> None:
    """The held-out event and those of its moment are not among what is known; no session stands in a file."""
    data = training_set(tmp_path, ROWS)
    declared = declared_features(tmp_path, app(), data)
    request = declared.request(cases(data.log, mask_seen=False), 0)
    assert request.query.now == 2 * DAY + 3600
    assert request.visitor == {
        "clicks": 1.0,
        "clicks_missing": 0.0,
        "at_hour[0]": 1.0,
        "since": 0.0,
        "since_missing": 0.0,
        "in_session": 0.0,
        "in_session_missing": 1.0,
    }
    assert request.request == {"hour_now": 1.0, "hour_now_missing": 0.0}


def test_items_of_a_file_are_counted_up_to_moments_before_labels(tmp_path: Path) -> None:
    """The newest layer has every click; the layer of the first labels has none of theirs."""
    data = training_set(tmp_path, ROWS)
    items = declared_features(tmp_path, app(), data).items
    assert items.names == ("item_clicks",)
    assert items.newest().values[0, :, 0].tolist() == [3.0, 1.0]
    before = items.values[items.moments < DAY][-1, :, 0]
    assert before[0] == 1.0
    assert np.isnan(before[1])


def test_events_without_a_type_declare_nothing(tmp_path: Path) -> None:
    """No declaration could tell which of them it takes, so the model gets no such columns."""
    rows = {name: column for name, column in ROWS.items() if name != "event_type"}
    declared = declared_features(tmp_path, app(), training_set(tmp_path, rows))
    assert declared.trained_on is None


def test_item_features_of_other_declarations_are_refused(tmp_path: Path) -> None:
    """A table that lacks a declared feature was built before it was declared."""
    data = training_set(tmp_path, ROWS)
    empty = pa.map_(pa.string(), pa.float64())
    visitors = {
        "user_id": pa.array(["a"]),
        "time": pa.array([1.0]),
        "served": pa.array([False]),
        "visitor": pa.array([[("clicks", 4.0)]], empty),
        "request": pa.array([[]], empty),
        "context": pa.array([[]], pa.map_(pa.string(), pa.string())),
    }
    (tmp_path / "visitor_features").mkdir()
    pq.write_table(pa.table(visitors), tmp_path / "visitor_features" / "0.parquet")
    known = declared_features(tmp_path, app(), data).visitors
    assert known is not None
    found = known.at("a", 1.0)
    assert found is not None
    assert found.visitor == {"clicks": 4.0}
    (tmp_path / "item_features").mkdir()
    pq.write_table(
        pa.table({"item_id": ["1"], "as_of": [1.0], "older": [2.0]}), tmp_path / "item_features" / "0.parquet"
    )
    with pytest.raises(InvalidInput, match="build the features again"):
        declared_features(tmp_path, app(), data)
