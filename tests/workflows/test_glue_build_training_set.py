"""Events and decision records -> the training data directory, on a real local Spark."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from narrows.adapters.feature_tables import read_item_features, read_negatives, read_visitor_features
from narrows.adapters.tables import read_training_data
from narrows.features.declarations import FeatureDeclaration
from narrows.features.registry import FeatureSet
from narrows.freshening import ItemEntry
from narrows.landing import items_file
from narrows.settings import App, EventType, load_app
from tests.spark_session import lake_session
from tests.spark_session import spark as spark

pytestmark = pytest.mark.spark

APPS = Path(__file__).parents[2] / "apps"
NOW, HOUR, DAY = 1_700_000_000.0, 3600.0, 86_400.0
TYPES = {
    "impression": EventType(),
    "view": EventType(),
    "click": EventType(label=1.0),
    "purchase": EventType(label=3.0, matures_after_s=DAY),
}


def _feature(name: str, kind: str, scope: str, events: tuple[str, ...]) -> FeatureDeclaration:
    return FeatureDeclaration(name, kind, scope, events, "tests", name, 0.0, {}, None, {}, None)


FEATURES = (
    _feature("views", "count", "visitor", ("view",)),
    _feature("clicks_by", "count", "visitor x category", ("click",)),
    _feature("in_session", "count", "session", ("view", "click")),
    _feature("item_clicks", "count", "item", ("click",)),
)
FINGERPRINT = FeatureSet(FEATURES).fingerprint()


def app() -> App:
    """Megashop with four event types and four features."""
    return replace(load_app(APPS / "megashop"), events=TYPES, features=FEATURES)


def event(number: int, event_type: str, time: float, visitor: str, **more: Any) -> dict[str, Any]:
    """A row of the lake; the visitor is "user", "#session" or both as "user#session"."""
    user, _, session = visitor.partition("#")
    row = {
        "event_id": f"e{number}",
        "event_type": event_type,
        "time": time,
        "visitor": f"u#{user}" if user else f"s#{session}",
        "user_id": user or None,
        "session_id": session or None,
        "texts": {},
        "numbers": {},
        "impression": [],
        "marks": [],
        "consent": True,
        "shard": "0",
        "sequence": str(number),
        "event_date": date(2023, 11, 14),
    }
    return {**row, **more}


T0 = NOW - 3 * DAY
ROWS = [
    event(1, "view", T0, "ann#x", item_id="i1", texts={"category": "Books"}),
    event(2, "impression", T0 + 10, "ann#x", recommendation_id="r1", impression=["i1", "i2", "i3"]),
    event(3, "click", T0 + 20, "ann#x", item_id="i2", recommendation_id="r1", texts={"category": "Pens"}),
    event(4, "purchase", T0 + HOUR, "ann#x", item_id="i2", recommendation_id="r1"),
    event(5, "purchase", T0 + 2 * DAY, "ann#x", item_id="i3", recommendation_id="r1"),
    # a guest looks around twice, is shown a slate, logs in as bob and clicks
    event(6, "view", T0, "#g", item_id="i1"),
    event(7, "impression", NOW - HOUR, "#g", recommendation_id="r2", impression=["i1", "i4"]),
    event(
        8,
        "click",
        NOW - HOUR + 60,
        "bob#g",
        item_id="i4",
        recommendation_id="r2",
        texts={"category": "Pens", "location": "DE"},
    ),
    event(9, "view", NOW - HOUR + 70, "#g", item_id="i1"),
    event(10, "click", NOW - HOUR + 80, "bob#h", item_id="i1"),
    # what must not count
    event(11, "click", T0, "ann#x", item_id="i4", marks=["bot:rate"]),
    event(12, "click", T0, "#nobody", item_id="i4", consent=False),
    event(13, "click", NOW + 1, "ann#x", item_id="i1"),
]
DECISIONS = [
    {
        "recommendation_id": "r1",
        "at": T0 + 9,
        "user_key": "u#ann",
        "session_key": "s#x",
        "snapshot_version": "s1",
        "model_version": "v1",
        "feature_fingerprint": FINGERPRINT,
        "visitor_features": {"views": 41.0, "views_missing": 0.0, "unread": None},
        "request_features": {"hour": 3.0},
        "slate": [{"item_id": "i2", "row": 7, "score": 0.5, "source": "als", "propensity": 1.0}],
    },
    {
        "recommendation_id": "r2",
        "at": NOW - HOUR,
        "session_key": "s#g",
        "snapshot_version": "s1",
        "feature_fingerprint": "of other declarations",
        "visitor_features": {"views": 99.0},
        "slate": [],
    },
]


def built(spark: Any, folder: Path, rows: list[dict[str, Any]]) -> tuple[Path, Mapping[str, int]]:
    """The directory that the job writes from these rows, and its counts."""
    from glue_jobs.build_training_set import Inputs, build
    from glue_jobs.lake import EVENTS
    from glue_jobs.point_in_time import DECISIONS as SCHEMA

    events = spark.createDataFrame([[row.get(name) for name in EVENTS.names] for row in rows], EVENTS)
    records = spark.createDataFrame([[row.get(name) for name in SCHEMA.names] for row in DECISIONS], SCHEMA)
    items = spark.createDataFrame([(f"i{number}",) for number in range(1, 7)], ["item_id"])
    return folder, build(spark, Inputs(events, records, items, app(), NOW), str(folder))


@pytest.fixture(scope="module")
def made(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Mapping[str, int]]:
    """All of it, once."""
    return built(spark, tmp_path_factory.mktemp("training"), ROWS)


def read(directory: Path, *columns: str) -> list[tuple[Any, ...]]:
    """The rows of a table, in order."""
    table = pq.read_table(directory, columns=list(columns))
    return sorted(zip(*(table[column].to_pylist() for column in columns), strict=True), key=repr)


def test_every_event_is_counted_once(made: tuple[Path, Mapping[str, int]]) -> None:
    """Thirteen events: one marked, one without consent, one later than the moment, ten usable."""
    expected = {"read": 13, "usable": 10, "later": 1, "marked": 1, "without_consent": 1, "decisions": 2}
    assert expected.items() <= made[1].items()
    assert made[1]["interactions"] == len(read(made[0] / "interactions", "item_id")) == 5


def test_each_visitor_keeps_what_they_did(made: tuple[Path, Mapping[str, int]]) -> None:
    """A type that is worth something, an item, and whether its window has passed."""
    columns = ("user_id", "time", "item_id", "event_type", "weight", "mature")
    assert read(made[0] / "interactions", *columns) == [
        ("u#ann", T0 + 20, "i2", "click", 1.0, True),
        ("u#ann", T0 + HOUR, "i2", "purchase", 3.0, True),
        ("u#ann", T0 + 2 * DAY, "i3", "purchase", 3.0, True),
        ("u#bob", NOW - HOUR + 60, "i4", "click", 1.0, True),
        ("u#bob", NOW - HOUR + 80, "i1", "click", 1.0, True),
    ]


def test_a_visitors_segment_is_the_last_place_told(made: tuple[Path, Mapping[str, int]]) -> None:
    """The location of the events' context, through the lake into what training reads."""
    log = read_training_data(made[0]).interactions
    assert log.segments is not None
    assert (log.user_ids.tolist(), log.segments.tolist()) == (["u#ann", "u#bob"], ["", "DE"])


def test_each_shown_item_has_the_best_that_came_inside_the_window(
    made: tuple[Path, Mapping[str, int]],
) -> None:
    """A purchase two days later is no outcome; a login between slate and click does not part them.

    An hour of a day's window has passed for the second slate: it is unripe and weighs that share.
    """
    columns = ("recommendation_id", "position", "item_id", "user_id", "label", "outcome", "mature")
    assert read(made[0] / "impressions", *columns) == [
        ("r1", 1, "i1", "u#ann", 0.0, None, True),
        ("r1", 2, "i2", "u#ann", 3.0, "purchase", True),
        ("r1", 3, "i3", "u#ann", 0.0, None, True),
        ("r2", 1, "i1", "s#g", 0.0, None, False),
        ("r2", 2, "i4", "s#g", 1.0, "click", False),
    ]
    weights = dict(read(made[0] / "impressions", "recommendation_id", "weight"))
    assert weights == {"r1": 1.0, "r2": pytest.approx(HOUR / DAY)}
    served = read(
        made[0] / "impressions", "item_id", "recommendation_id", "served", "row", "snapshot_version"
    )
    assert ("i2", "r1", True, 7, "s1") in served
    assert ("i1", "r1", False, None, None) in served


def test_served_values_come_from_the_record(made: tuple[Path, Mapping[str, int]]) -> None:
    """A slate's values, and those of the labels that came of it, are what its record says was served."""
    known = read_visitor_features(made[0])
    assert known is not None
    slate = known.at("u#ann", T0 + 10)
    assert slate is not None
    assert slate.visitor == {"views": 41.0, "views_missing": 0.0}
    assert slate.request == {"hour": 3.0}
    assert known.at("u#ann", T0 + HOUR) == slate


def test_moments_are_those_of_labels_and_of_slates_with_a_record(
    made: tuple[Path, Mapping[str, int]],
) -> None:
    """Nothing learns from a slate alone: one whose record stands on other declarations is not asked for."""
    assert read(made[0] / "visitor_features", "user_id", "time", "served") == [
        ("u#ann", T0 + 10, True),
        ("u#ann", T0 + HOUR, True),
        ("u#ann", T0 + 2 * DAY, True),
        ("u#bob", NOW - HOUR + 60, False),
        ("u#bob", NOW - HOUR + 80, False),
    ]


def test_an_event_is_not_among_what_was_known_at_its_own_moment(
    made: tuple[Path, Mapping[str, int]],
) -> None:
    """Bob's click that logs in has the guest's session before it, without a request of a record."""
    known = read_visitor_features(made[0])
    assert known is not None
    click = known.at("u#bob", NOW - HOUR + 60)
    assert click is not None
    assert click.request is None
    assert click.visitor == {"views": 0.0, "views_missing": 1.0, "in_session": 1.0, "in_session_missing": 0.0}


def test_a_login_brings_what_the_session_did_before(made: tuple[Path, Mapping[str, int]]) -> None:
    """Bob's last click knows the guest's two views; the click that logs in is not yet among what is known."""
    known = read_visitor_features(made[0])
    assert known is not None
    last, first = known.at("u#bob", NOW - HOUR + 80), known.at("u#bob", NOW - HOUR + 60)
    assert last is not None
    assert last.visitor["views"] == 2.0
    assert last.visitor["in_session_missing"] == 1.0
    assert first is not None
    assert first.visitor["views_missing"] == 1.0
    assert first.visitor["in_session"] == 1.0


def test_values_at_a_moment_know_nothing_of_later_events(
    spark: Any, made: tuple[Path, Mapping[str, int]], tmp_path: Path
) -> None:
    """Events planted at and after each label change no value of that label, of visitor and of item."""
    label = NOW - HOUR + 80
    planted = [
        event(100 + place, kind, time, "bob#h", item_id="i1", texts={"category": "Pens"})
        for place, (kind, time) in enumerate(
            [("view", label), ("click", label), ("view", label + 1), ("click", label + 60)]
        )
    ]
    again, _ = built(spark, tmp_path, ROWS + planted)
    before, after = read_visitor_features(made[0]), read_visitor_features(again)
    assert before is not None
    assert after is not None
    found, again_found = before.at("u#bob", label), after.at("u#bob", label)
    assert found is not None
    assert again_found is not None
    assert again_found.visitor == found.visitor
    assert (found.visitor["views"], found.visitor["clicks_by[Pens]"]) == (2.0, 1.0)
    items = read_item_features(again, {"item_clicks": 0.0})
    assert items is not None
    early = items.values[items.moments < label, list(items.item_ids).index("i1"), 0]
    assert not (early > 0).any()


def test_item_features_stand_at_moments_before_labels_and_now(
    made: tuple[Path, Mapping[str, int]],
) -> None:
    """The last layer is exact as of now; no layer counts the label at whose moment it stands."""
    items = read_item_features(made[0], {"item_clicks": 0.0})
    assert items is not None
    newest = dict(zip(items.item_ids.tolist(), items.newest().values[0, :, 0].tolist(), strict=True))
    assert {name: newest[name] for name in ("i1", "i2", "i4")} == {"i1": 1.0, "i2": 1.0, "i4": 1.0}
    assert items.moments[-1] == NOW
    assert items.moments[0] == T0 + HOUR - 0.001  # before it no item had any event to count
    assert items.values[0, list(items.item_ids).index("i2"), 0] == 1.0


def test_negatives_come_from_the_slate_first(spark: Any, tmp_path: Path) -> None:
    """What stood beside the choice, then what was shown before; never one acted on, and none out of nowhere.

    Carl's slate is half a day old and a purchase may come within a day: his negatives weigh one half. The
    trainers find them under visitor and moment.
    """
    half = NOW - DAY / 2
    carl = [
        event(200, "impression", half, "carl#y", recommendation_id="r3", impression=["i1", "i2"]),
        event(201, "click", half + 60, "carl#y", item_id="i2", recommendation_id="r3"),
        event(202, "click", half + HOUR, "carl#y", item_id="i3"),
    ]
    folder, _ = built(spark, tmp_path, ROWS + carl)
    rows = read(folder / "negatives", "user_id", "time", "negative_id", "drawn_from", "weight")
    assert ("u#ann", T0 + HOUR, "i1", "slate", 1.0) in rows
    assert ("u#carl", half + 60, "i1", "slate", 0.5) in rows
    assert ("u#carl", half + HOUR, "i1", "shown_before", 0.5) in rows
    assert {negative for _, _, negative, _, _ in rows} == {"i1"}
    found = read_negatives(folder, lambda ids: np.asarray([int(one[1:]) for one in ids], np.int32))
    passed = found["u#carl", half + 60]
    assert passed.shares(np.asarray([0, 1, 2], np.int32)) == pytest.approx([np.nan, 0.5, np.nan], nan_ok=True)


def test_the_job_reads_the_lake_and_refuses_an_empty_one(
    spark: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Plain paths in and out, counts as the last line; without interactions the job fails and says why.

    The items are those that are there now: one came through the API, and one was deleted there.
    """
    from glue_jobs import build_training_set
    from glue_jobs.changed_items import keep_items
    from glue_jobs.lake import EVENTS, ensure_tables, events_table

    session = lake_session(spark, tmp_path / "lake")
    ensure_tables(session)
    monkeypatch.setattr(build_training_set, "open_lake", lambda *_: session)
    (tmp_path / "catalogue").mkdir()
    pq.write_table(pa.table({"item_id": ["i1"]}), tmp_path / "catalogue" / "0.parquet")
    given = {
        "--lake": tmp_path / "lake",
        "--decisions": tmp_path / "decisions",
        "--catalogue": tmp_path / "catalogue",
        "--app-config": APPS / "megashop",
        "--output": tmp_path / "out",
        "--as-of": NOW,
    }
    arguments = [str(one) for pair in given.items() for one in pair]
    with pytest.raises(SystemExit, match="no interactions: 0 of 0 events"):
        build_training_set.main(arguments)
    row = event(1, "click", T0, "ann#x", item_id="i1")
    events = session.createDataFrame([[row.get(name) for name in EVENTS.names]], EVENTS)
    events.writeTo(events_table(session)).append()
    upserted = items_file(
        [ItemEntry("i9", 0, 1, {"title": "Nine"}), ItemEntry("i1", 0, 2, deleted=True)], NOW
    )
    assert upserted is not None
    (tmp_path / "landed").mkdir()
    (tmp_path / "landed" / "one.jsonl.gz").write_bytes(upserted.data)
    keep_items(session, str(tmp_path / "landed"))
    build_training_set.main(arguments)
    counts = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (counts["interactions"], counts["visitor_features"]) == (1, 1)
    assert read(tmp_path / "out" / "items", "item_id") == [("i9",)]
