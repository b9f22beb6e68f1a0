"""A feature that an app declares, and nobody wrote code for: folded, served, rendered, audited, measured."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from narrows.cli import main
from narrows.events import Event
from narrows.features.columns import EventColumns
from narrows.features.registry import FeatureSet
from narrows.settings import App, load_app
from narrows.simulator import Behaviour, Market
from tests.served import events_of, serve
from tests.spark_session import lake_session, spark

__all__ = ["spark"]

ROOT = Path(__file__).parents[2]
BEFORE = """
[[feature]]
name = "views"
kind = "count"
events = ["view"]
owner = "storefront"
description = "Product pages opened, ever"

[[feature]]
name = "history"
kind = "last_n"
events = ["view", "click"]
keep = 20
owner = "recommendations"
description = "The last items that the visitor touched"
"""
DECLARATION = """
[[feature]]
name = "category_views_1h"
kind = "recent_count"
scope = "visitor x category"
events = ["view"]
window = "1h"
owner = "storefront"
description = "Views of each category in the last hour"
"""
START = 1_700_000_000.0
EVENTS = 3_000


@pytest.fixture(scope="module")
def app_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small shop with one declaration more; not one line of code is changed."""
    folder = tmp_path_factory.mktemp("repository") / "apps/megashop"
    shutil.copytree(ROOT / "apps/megashop", folder)
    (folder / "features.toml").write_text(BEFORE + DECLARATION)
    return folder


@pytest.fixture(scope="module")
def app(app_folder: Path) -> App:
    """Its settings."""
    return load_app(app_folder)


@pytest.fixture(scope="module")
def events(app: App) -> list[Event]:
    """Six hours of a market without programs, as events are stored."""
    people = Behaviour(crawlers=0.0, scrapers=0.0)
    market = Market(7, users=300, items=400, as_of=START + 6 * 3600.0, behaviour=people)
    return list(events_of(market.events(EVENTS, START, START + 6 * 3600.0), app))


def test_python_and_arrays_agree_on_it(app: App, events: list[Event]) -> None:
    """Of every visitor after four hours, by folding one event after another and by arrays."""
    features, now = FeatureSet(app.features), START + 4 * 3600.0
    mine: dict[str, list[Event]] = defaultdict(list)
    for event in {event.event_id: event for event in events}.values():
        if event.time <= now:
            mine[event.visitor_key].append(event)
    keys = sorted(mine)
    flat = [(key, event) for key in keys for event in mine[key]]
    columns = EventColumns.of([event for _, event in flat]).keyed(key for key, _ in flat)
    by_arrays = features.values(columns, keys, np.full(len(keys), now))["category_views_1h"]
    seen = 0
    for key, found in zip(keys, by_arrays, strict=True):
        read = features.read(features.add_all(features.zero(), mine[key]), now)
        assert found == {
            name.removeprefix("category_views_1h[").removesuffix("]"): value
            for name, value in read.items()
            if name.startswith("category_views_1h[")
        }
        seen += sum(value > 0 for value in found.values())
    assert seen > 30


def test_it_is_audited_and_explained(
    app_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command knows it from the file alone."""
    code = app_folder.parents[1] / "narrows/__init__.py"
    monkeypatch.setattr("narrows.cli.places.narrows.__file__", str(code))
    assert main(["features", "audit", "--app", "megashop"]) == 0
    line = next(one for one in capsys.readouterr().out.splitlines() if one.startswith("category_views_1h"))
    assert line.split() == [
        *("category_views_1h", "storefront", "view:", "category", "internal", "streaming"),
        *("visitor", "x", "category", "recent_count", "0"),
    ]
    assert main(["features", "explain", "category_views_1h", "--app", "megashop", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"] == {"window": "1h"}


@pytest.mark.spark
def test_what_is_served_of_it_is_what_spark_computes(
    app: App, events: list[Event], spark: Any, tmp_path: Path
) -> None:
    """Events land and fold, requests are served in between; the skew report compares the new feature too."""
    from glue_jobs.compact_events import compact
    from glue_jobs.decision_sample import read_sample
    from glue_jobs.measure_skew import measure

    features = FeatureSet(app.features)
    served = serve(events, features, tmp_path)
    lake = lake_session(spark, tmp_path / "lake")
    landing, most = str(tmp_path / "landing/events"), app.bots.events_per_minute
    compact(lake, landing, events_per_minute=most, today=date(2026, 11, 21))
    sample = read_sample(lake, str(tmp_path / "landing/decisions"), rate=1.0, at_most=1000, since=None)
    report = measure(lake, sample, features)
    assert report["rows"] > served.decisions / 2
    assert (report["exact_share"], report["first_divergence"]) == (1.0, None)
    assert any(name.startswith("category_views_1h") for name in report["by_feature"])
