"""The nightly build on a real local Spark: every scope's values as of a moment, equal to the live fold."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from narrows.events import Event
from narrows.features.items import item_events
from narrows.features.registry import FeatureSet
from narrows.settings import load_app
from tests.spark_session import lake_session
from tests.spark_session import spark as spark

pytestmark = pytest.mark.spark

APPS = Path(__file__).parents[2] / "apps"
NOW, DAY = 1_700_000_000.0, 86_400.0
FEATURES = FeatureSet(load_app(APPS / "megashop").features)


def _event(number: int, event_type: str, age_s: float, **more: Any) -> Event:
    return Event(f"e{number}", event_type, NOW - age_s, NOW - age_s, **more)


BOOK = {"category": "Books", "brand": "Alder Books", "price": 12.5, "device": "mobile", "location": "DE"}
PEN = {"category": "Pens", "brand": "Birch Pens", "price": 3.0, "device": "desktop", "location": "US"}
EVENTS = [
    _event(1, "view", 9 * DAY, user_id="ann", session_id="x", item_id="i1", properties=BOOK),
    _event(2, "impression", 8 * DAY, user_id="ann", session_id="x", impression=("i1", "i2")),
    _event(3, "purchase", 7 * DAY, user_id="ann", session_id="x", item_id="i2", value=3.0, properties=PEN),
    _event(4, "view", 3 * DAY, session_id="g", item_id="i2", properties={**PEN, "dwell_s": 8.0}),
    _event(5, "click", 2 * DAY, user_id="bob", session_id="g", item_id="i2", position=4, properties=PEN),
    _event(6, "view", DAY, session_id="g", item_id="i1", properties=BOOK),
    _event(7, "view", -60.0, user_id="ann", session_id="y", item_id="i2", properties=PEN),
    _event(8, "view", DAY, session_id="robot", item_id="i2", properties=PEN, marks=("bot:rate",)),
]


def row(one: Event) -> dict[str, Any]:
    """The event as the lake keeps it."""
    texts = {name: value for name, value in one.properties.items() if isinstance(value, str)}
    return {
        **{name: getattr(one, name) for name in ("event_id", "event_type", "time", "received_at", "item_id")},
        **{name: getattr(one, name) for name in ("user_id", "session_id", "value", "position", "consent")},
        "visitor": one.visitor_key,
        "impression": list(one.impression),
        "marks": list(one.marks),
        "texts": texts,
        "numbers": {name: float(value) for name, value in one.properties.items() if name not in texts},
        "event_date": datetime.fromtimestamp(one.time, UTC).date(),
    }


def folded(key: str, scope: str) -> dict[str, float]:
    """What one event at a time gives the key; the guest's events are bob's, who logged in from there."""
    chosen, state = FEATURES.scoped(scope), FEATURES.zero()
    for one in EVENTS[:6]:
        whose = "u#bob" if one.session_id == "g" else one.visitor_key
        of_items = item_events(one) if scope == "item" else [one]
        for event in of_items:
            if key == {"visitor": whose, "session": f"s#{one.session_id}", "item": event.item_id}[scope]:
                state = chosen.add_all(state, [event])
    return chosen.read(state, NOW)


@pytest.fixture(scope="module")
def made(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The job run once over a lake of these events."""
    from glue_jobs import build_features
    from glue_jobs.lake import EVENTS as SCHEMA
    from glue_jobs.lake import ensure_tables, events_table

    root = tmp_path_factory.mktemp("features")
    session = lake_session(spark, root / "lake")
    ensure_tables(session)
    values = [[row(one).get(name) for name in SCHEMA.names] for one in EVENTS]
    session.createDataFrame(values, SCHEMA).writeTo(events_table(session)).append()
    arguments = ["--lake", root / "lake", "--app-config", APPS / "megashop", "--output", root, "--as-of", NOW]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build_features, "open_lake", lambda *_: session)
        with pytest.raises(SystemExit, match="no event at or before 1 among the 8"):
            build_features.main([*map(str, arguments[:-1]), "1"])
        build_features.main([str(one) for one in arguments])
    return root


def values(folder: Path) -> dict[str, dict[str, Any]]:
    """The table of a scope by key."""
    return {one["key"]: one for one in pq.read_table(folder).to_pylist()}


@pytest.mark.parametrize(
    ("scope", "keys"),
    [("visitor", {"u#ann", "u#bob"}), ("session", {"s#x", "s#g"}), ("item", {"i1", "i2"})],
)
def test_every_key_has_what_the_live_fold_gives(made: Path, scope: str, keys: set[str]) -> None:
    """Defaults stand for null, pairs for maps; the session that logged in has left its visitor's part."""
    found = values(made / scope)
    assert set(found) == keys
    for key, built in found.items():
        for name, expected in folded(key, scope).items():
            if name.endswith("_missing"):
                assert (built[name.removesuffix("_missing")] is None) == (expected == 1.0), (key, name)
            elif "[" in name:
                pair, _, text = name.removesuffix("]").partition("[")
                assert dict(built[pair])[text] == pytest.approx(expected, rel=1e-9), (key, name)
            elif built[name] is not None:
                assert built[name] == pytest.approx(expected, rel=1e-9), (key, name)


def test_later_and_marked_events_count_nowhere(made: Path) -> None:
    """Ann's view of a minute ahead and the program's view are in no count."""
    assert values(made / "visitor")["u#ann"]["views"] == 1.0
    assert "s#robot" not in values(made / "session")


def test_a_group_has_the_values_of_its_events(made: Path) -> None:
    """One pen was bought, for 3; no book was, so that group has no row."""
    found = values(made / "by_category")
    assert set(found) == {"Pens"}
    numbers = [value for one in found.values() for name, value in one.items() if name not in ("key", "as_of")]
    assert numbers == [3.0]


def test_counts_are_the_last_line(spark: Any, made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was read, what is later than the moment, and the keys of each scope."""
    from glue_jobs.event_files import lake_files
    from glue_jobs.nightly import write_night

    session = lake_session(spark, made / "lake")
    few = FeatureSet([replace(one) for one in FEATURES.declarations if one.scope == "item" and one.events])
    counts = write_night(session, lake_files(session), few, NOW, str(made / "again"))
    assert json.loads(json.dumps(counts)) == {"read": 8, "later": 1, "item": 2}
    assert capsys.readouterr().out == ""
