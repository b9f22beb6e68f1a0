"""One definition, three renderings: Python, numpy and Spark SQL give the same values of the same events."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from narrows.events import Event
from narrows.features.columns import EventColumns
from narrows.features.declarations import FeatureDeclaration
from narrows.features.items import item_events
from narrows.features.kinds import KINDS
from narrows.features.registry import MISSING_SUFFIX, FeatureSet
from narrows.features.sql import keyed_sql, values_sql
from tests.spark_session import spark

__all__ = ["spark"]

DAY = 86_400.0
T0 = 1_763_596_800.0
NOW = T0 + 30 * DAY
TYPES = ("impression", "view", "click", "add_to_cart", "purchase", "refund", "do_not_show")
LATE_LOGINS = {1: 0.3, 2: 0.9}
"""Of what share of the events of a visitor the account is not known, by the visitor's number modulo 5."""
COLOURS = ("red", "blue", "grün", "紫", "it's \\ odd", "")


def declared(name: str, kind: str, scope: str = "visitor", **changes: Any) -> FeatureDeclaration:
    """A feature; what is no field of a declaration is a parameter."""
    fields = {
        "events": ("view", "click", "purchase"), "owner": "team", "description": "", "default": 0.0,
        "value": None, "where": {}, "freshness_s": None,
    }  # fmt: skip
    given = {key: changes.pop(key) for key in list(changes) if key in fields}
    return FeatureDeclaration(name=name, kind=kind, scope=scope, parameters=changes, **{**fields, **given})  # type: ignore[arg-type]


RATE = {"events": ("click",), "per": ("impression",), "prior_successes": 1.0, "prior_trials": 20.0}
GROUP = {"minimum_group": 30, "distinct": "user_id"}
EVERYTHING = (
    declared("views", "count", events=("view",)),
    declared("spent", "count", events=("purchase",), value="event_value"),
    declared("big", "count", value="big"),
    declared("on_phones", "count", where={"device": "phone"}),
    declared("gifts", "count", where={"gift": True, "position": 1}),
    declared("odd", "count", where={"colour": COLOURS[4]}),
    declared("shown", "count", events=("impression",), value="impressions"),
    declared("activity_1s", "decayed_count", half_life_s=1.0),
    declared("activity_1d", "decayed_count", half_life_s=DAY),
    declared("spend_7d", "decayed_sum", events=("purchase",), value="event_value", half_life_s=7 * DAY),
    declared("click_rate", "smoothed_rate", **RATE),
    declared("click_rate_7d", "smoothed_rate", half_life_s=7 * DAY, **RATE),
    declared("views_1h", "recent_count", events=("view",), window_s=3600.0),
    declared("views_1h_by_colour", "recent_count", "visitor x colour", events=("view",), window_s=3600.0),
    declared("spend_1d", "recent_count", events=("purchase",), value="event_value", window_s=DAY, buckets=7),
    declared("last_price", "last_value", value="price"),
    declared("last_colour", "last_value", value="colour", values=("red", "紫")),
    declared("history", "last_n", keep=5),
    declared("everything", "last_n", events=(), keep=20),
    declared("bought", "last_n", events=("purchase",), keep=3),
    declared("brands", "distinct_count", value="brand", keep=16),
    declared("items", "distinct_count", value="item_id", keep=128),
    declared("first", "first_seen"),
    declared("last", "last_seen", events=("purchase",)),
    *(
        declared(f"price_{one}", "value_statistics", value="price", statistic=one)
        for one in ("mean", "std", "min", "max", "count")
    ),
    declared("breadth", "entropy", value="colour"),
    declared("brand_breadth", "entropy", value="brand", keep=5),
    declared("by_colour", "count", "visitor x colour"),
    declared("colour_spend", "decayed_sum", "visitor x colour", value="price", half_life_s=DAY),
    declared("colour_rate", "smoothed_rate", "visitor x colour", **{**RATE, "per": ("view",)}),
    declared("by_brand", "decayed_count", "visitor x brand", half_life_s=DAY, keep=4),
    declared("hours", "count", "visitor x hour"),
    declared("of_user", "count", "user"),
    declared("user_last", "last_value", "user", value="position"),
    declared("in_session", "count", "session"),
    declared("session_items", "last_n", "session", keep=4),
    declared("session_brands", "last_seen", "session x brand"),
    declared("item_views", "decayed_count", "item", events=("view",), half_life_s=DAY),
    declared("item_rate", "smoothed_rate", "item", half_life_s=7 * DAY, **RATE),
    declared("item_fans", "distinct_count", "item", value="user_id", keep=32),
    declared("item_price", "value_statistics", "item", value="price", statistic="mean"),
    declared("brand_price", "value_statistics", "by:brand", value="price", statistic="mean"),
    declared("rare", "count", "by:brand", events=("purchase",), minimum_group=30, distinct="user_id"),
    declared(
        "rare_1d", "recent_count", "by:brand", value="price", window_s=DAY, **{**GROUP, "minimum_group": 5}
    ),
    declared("rare_price", "value_statistics", "by:brand", value="big", statistic="mean", **GROUP),
    declared("rare_rate", "smoothed_rate", "by:brand", value="price", **{**RATE, **GROUP}),
    declared("rare_breadth", "entropy", "by:brand", events=("purchase",), value="colour", **GROUP),
    declared("rare_last", "last_value", "by:brand", value="colour", values=("red",), **GROUP),
)


def happened(count: int, seed: int = 7, visitors: int = 3_000) -> list[Event]:
    """Events as they arrive: shuffled, 5 % of them twice, some late, some at the same moment."""
    rng = random.Random(seed)
    events = [_event(rng, place, visitors) for place in range(int(count / 1.05))]
    events += rng.sample(events, count - len(events))
    rng.shuffle(events)
    return events


def _event(rng: random.Random, place: int, visitors: int) -> Event:
    number = int(visitors * rng.random() ** 2)
    time = T0 + (rng.randrange(30 * 1440) * 60.0 if rng.random() < 0.3 else rng.random() * 30 * DAY)
    kind = rng.choices(TYPES, (3, 8, 4, 2, 1, 0.2, 0.1))[0]
    shown = tuple(f"i{rng.randrange(500)}" for _ in range(rng.randrange(6))) if kind == "impression" else ()
    properties = {
        "price": round(rng.lognormvariate(3, 1), 2), "brand": f"brand {rng.randrange(40)}",
        "colour": rng.choice(COLOURS), "gift": rng.random() < 0.5, "device": rng.choice(("phone", "tablet")),
        "big": rng.choice((2**53 + 1, 2**60, "much", 1)),
    }  # fmt: skip
    return Event(
        event_id=f"e{rng.getrandbits(40):x}-{place}",
        event_type=kind,
        time=min(time, NOW),
        received_at=time + rng.choice((1.0, 5.0, 2 * DAY)),
        user_id=f"ann{number}" if number % 3 and rng.random() > LATE_LOGINS.get(number % 5, 0.0) else None,
        session_id=f"visit{number}",
        item_id=None if kind == "impression" else f"i{rng.randrange(500)}",
        value=rng.choice((None, rng.uniform(1, 300))),
        position=rng.choice((None, rng.randrange(5))),
        impression=shown,
        properties={name: one for name, one in properties.items() if rng.random() < 0.8},
    )


def distinct(events: Sequence[Event]) -> list[Event]:
    """What ingestion leaves: each event once, and those that only hide an item nowhere."""
    once = {event.event_id: event for event in events}
    return [event for event in once.values() if event.event_type != "do_not_show"]


def keyed(scope: str, events: Sequence[Event]) -> list[tuple[str, Event]]:
    """The keys that an event belongs to in a scope."""
    if scope == "item":
        return [(one.item_id or "", one) for event in events for one in item_events(event)]
    if scope.startswith("by:"):
        pairs = [(event.properties.get(scope[3:]), event) for event in events]
        return [(str(key), event) for key, event in pairs if key]
    if scope == "visitor":
        return [(event.visitor_key, event) for event in events]
    ids = [(getattr(event, f"{scope}_id"), event) for event in events]
    return [(f"{scope[0]}#{key}", event) for key, event in ids if key]


def of_scope(features: FeatureSet, scope: str) -> FeatureSet:
    return features.scoped(scope.split(":")[0])


def by_python(
    features: FeatureSet, scope: str, events: Sequence[Event], asked: Sequence[tuple[str, float]]
) -> list[dict[str, Any]]:
    """Every event folded by itself in the order of arrival, as the stream does; then read."""
    view = of_scope(features, scope)
    mine: dict[str, list[Event]] = defaultdict(list)
    for key, event in keyed(scope, events):
        mine[key].append(event)
    read = []
    for key, as_of in asked:
        state = view.add_all(view.zero(), [one for one in mine[key] if one.time <= as_of])
        read.append({**view.read(state, as_of), **view.lists(state, as_of)})
    return read


def by_numpy(
    features: FeatureSet, scope: str, events: EventColumns, asked: Sequence[tuple[str, float]]
) -> list[dict[str, Any]]:
    """The same by arrays, with pairs flattened as Python reads them."""
    keys, moments = [key for key, _ in asked], np.array([as_of for _, as_of in asked])
    values = of_scope(features, scope).values(events, keys, moments)
    return [flat({name: column[row] for name, column in values.items()}) for row in range(len(asked))]


def columns_of(scope: str, events: Sequence[Event], every: EventColumns) -> EventColumns:
    """The columns of the events, keyed as the scope wants them."""
    pairs = keyed(scope, events)
    place = {event.event_id: row for row, event in enumerate(events)}
    chosen = every.take(np.array([place[event.event_id] for _, event in pairs]))
    chosen = chosen.keyed(key for key, _ in pairs)
    if scope != "item":
        return chosen
    numbers = {**chosen.numbers, "impressions": np.ones(len(chosen))}
    return replace(chosen, texts={**chosen.texts, "item_id": chosen.key}, numbers=numbers)


def flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """Mappings as `name[text]`."""
    read: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            read.update({f"{name}[{text}]": one for text, one in value.items()})
        else:
            read[name] = value
    return read


def differences(left: Mapping[str, Any], right: Mapping[str, Any]) -> list[str]:
    """The names whose values differ."""
    return [
        f"{name}: {left.get(name)!r} / {right.get(name)!r}"
        for name in sorted(left.keys() | right.keys())
        if not same(left.get(name), right.get(name), rounded=name.split("[")[0] in ROUNDED)
    ]


def same(left: Any, right: Any, *, rounded: bool) -> bool:
    """Texts, lists and integers exactly; numbers that are `rounded` to 1e-9 of their size."""
    if rounded and isinstance(left, float) and isinstance(right, float):
        return math.isclose(left, right, rel_tol=1e-9, abs_tol=1e-300)
    return bool(left == right)


def lake(events: Sequence[Event]) -> pa.Table:
    """The events as the lake's rows."""
    rows = [
        {
            **{name: getattr(event, name) for name in (*PLAIN, "position")},
            "visitor": event.visitor_key,
            "impression": list(event.impression),
            "texts": [(name, one) for name, one in event.properties.items() if isinstance(one, str)],
            "numbers": [
                (name, float(one)) for name, one in event.properties.items() if not isinstance(one, str)
            ],
            "marks": None,
        }
        for event in events
    ]
    return pa.Table.from_pylist(rows, schema=LAKE)


PLAIN = {
    "event_id": pa.string(), "event_type": pa.string(), "time": pa.float64(), "user_id": pa.string(),
    "session_id": pa.string(), "item_id": pa.string(), "value": pa.float64(), "surface": pa.string(),
    "query": pa.string(), "consent": pa.bool_(),
}  # fmt: skip
LAKE = pa.schema(
    {
        **PLAIN,
        "visitor": pa.string(),
        "position": pa.int32(),
        "impression": pa.list_(pa.string()),
        "texts": pa.map_(pa.string(), pa.string()),
        "numbers": pa.map_(pa.string(), pa.float64()),
        "marks": pa.list_(pa.string()),
    }
)


def by_spark(
    spark: Any, rows: Path, features: FeatureSet, scope: str, asked: Sequence[tuple[str, float]]
) -> list[dict[str, Any]]:
    """The same by Spark from the lake's rows, with the defaults and flags that Python reads."""
    requests = pa.table({"key": [key for key, _ in asked], "as_of": [as_of for _, as_of in asked]})
    pq.write_table(requests, rows.parent / "asked.parquet")
    relation = f"(SELECT * FROM parquet.`{rows.parent}/asked.parquet`)"
    events = f"({keyed_sql(scope, f'(SELECT * FROM parquet.`{rows}`)')})"
    view = of_scope(features, scope)
    found = spark.sql(values_sql(features, scope, events, relation)).collect()
    read = {(row["key"], row["as_of"]): row.asDict() for row in found}
    return [as_python(view, read[one]) for one in asked]


def as_python(features: FeatureSet, row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of values as `read` and `lists` give them."""
    values: dict[str, Any] = {}
    for feature in features.features:
        value, scope = row.get(feature.name), feature.declaration.scope
        if feature.declaration.kind == "last_n":
            values[feature.name] = value or []
        elif " x " in scope:
            values[feature.name] = dict(value or {})  # Parquet gives pairs of a map
        else:
            values[feature.name] = feature.declaration.default if value is None else value
            values[feature.name + MISSING_SUFFIX] = float(value is None)
    return flat(values)


SCOPES = ("visitor", "user", "session", "item", "by:brand")
INTEGERS = {
    *("views", "on_phones", "gifts", "odd", "shown", "views_1h", "views_1h_by_colour", "last_price"),
    *(
        "last_colour",
        "first",
        "last",
        "price_min",
        "price_max",
        "price_count",
        "by_colour",
        "hours",
        "of_user",
    ),
    *("user_last", "in_session", "session_brands", "rare", "rare_last"),
}
"""What has to be equal to the last bit; the other numbers are sums of floats, in some order."""
ROUNDED = {one.name for one in EVERYTHING} - INTEGERS

EVENTS, FEWER = 200_000, 50_000
"""Visitors get all events, with every kind; the scopes that differ by their keys alone a part of them."""
MOMENTS = 300


@pytest.fixture(scope="module")
def features() -> FeatureSet:
    """Every kind in every scope, pairs and groups too."""
    return FeatureSet(EVERYTHING)


@pytest.fixture(scope="module")
def delivered() -> list[Event]:
    """200,000 shuffled events, one in twenty of them twice."""
    return happened(EVENTS)


@pytest.fixture(scope="module")
def arrived(delivered: list[Event]) -> list[Event]:
    """What ingestion leaves of them, in order of arrival."""
    return distinct(delivered)


@pytest.fixture(scope="module")
def columns(arrived: list[Event]) -> EventColumns:
    """The same events as arrays."""
    return EventColumns.of(arrived)


@pytest.fixture(scope="module")
def folder(delivered: list[Event], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lake's rows of the same events, those of them that count nowhere too."""
    folder = tmp_path_factory.mktemp("parity")
    once = list({event.event_id: event for event in delivered}.values())
    pq.write_table(lake(once), folder / "all.parquet")
    counted = (place for place, event in enumerate(once) if event.event_type != "do_not_show")
    fewer = lake(once[: next(islice(counted, FEWER, None))])
    pq.write_table(fewer, folder / "fewer.parquet", row_group_size=9_000)
    return folder


def asked_of(scope: str, events: Sequence[Event]) -> list[tuple[str, float]]:
    """Every key at the end, some of them before and exactly at the moment of an event, and nobody."""
    pairs = keyed(scope, events)
    keys, rng = sorted({key for key, _ in pairs}), random.Random(3)
    some = min(MOMENTS, len(keys))
    before = [(rng.choice(keys), T0 + rng.random() * 30 * DAY) for _ in range(some)]
    exactly = [(key, event.time) for key, event in rng.sample(pairs, some)]
    return [*((key, NOW) for key in keys), *before, *exactly, ("nobody", NOW)]


def test_every_kind_takes_part() -> None:
    """A new kind has to join the features above."""
    assert {one.kind for one in EVERYTHING} == set(KINDS)


@pytest.mark.spark
@pytest.mark.parametrize("scope", SCOPES)
def test_three_renderings_give_the_same_values(
    spark: Any,
    features: FeatureSet,
    arrived: list[Event],
    columns: EventColumns,
    folder: Path,
    scope: str,
) -> None:
    """Integers, texts and lists exactly, floats to 1e-9: at the end, before it, and exactly at an event."""
    rows = folder / ("all.parquet" if scope == "visitor" else "fewer.parquet")
    events = arrived if scope == "visitor" else arrived[:FEWER]
    asked = asked_of(scope, events)
    python = by_python(features, scope, events, asked)
    numpy = by_numpy(features, scope, columns_of(scope, events, columns), asked)
    for found in (numpy, by_spark(spark, rows, features, scope, asked)):
        wrong = [
            (one, differing)
            for one, left, right in zip(asked, python, found, strict=True)
            if (differing := differences(left, right))
        ]
        assert wrong[:3] == []


@pytest.mark.spark
def test_the_night_gives_every_key_the_same_values(
    spark: Any,
    features: FeatureSet,
    arrived: list[Event],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of all scopes from one scan, in many parts, with sessions that logged in moved to their users."""
    from glue_jobs import nightly

    monkeypatch.setattr(nightly, "AT_A_SEAT", 9_000)
    monkeypatch.setattr(nightly, "READ_BY_ONE", 20_000)
    as_of = T0 + 25 * DAY
    events = [event for event in arrived[:FEWER] if event.time <= as_of]
    lake_rows = pq.read_table(folder / "fewer.parquet").to_pylist()
    of_visitors = logged_in(events, [row for row in lake_rows if row["time"] <= as_of])
    counts = nightly.write_night(spark, [str(folder / "fewer.parquet")], features, as_of, str(tmp_path))
    assert (counts.pop("read"), counts.pop("later")) == (
        len(lake_rows),
        sum(row["time"] > as_of for row in lake_rows),
    )
    assert set(counts) == set(SCOPES)
    for scope in SCOPES:
        found = {row["key"]: row for row in written(tmp_path, scope)}
        assert len(found) == counts[scope]
        asked = [(key, as_of) for key in sorted(found)]
        if scope == "visitor":
            assert found.keys() == {event.visitor_key for event in of_visitors}
        expected = by_python(features, scope, of_visitors if scope == "visitor" else events, asked)
        view = of_scope(features, scope)
        for (key, _), python in zip(asked, expected, strict=True):
            assert differences(python, as_python(view, found[key])) == [], key


def written(output: Path, scope: str) -> list[dict[str, Any]]:
    """The rows that a night wrote of a scope."""
    return pq.read_table(output / scope.replace(":", "_")).to_pylist()


def logged_in(events: Sequence[Event], rows: Sequence[Mapping[str, Any]]) -> list[Event]:
    """The events with those of a session without an account under the first user that it logged in as.

    That an event counts nowhere does not matter to who logged in, so those of all rows tell it.
    """
    logins = sorted((one["time"], one["user_id"], one["session_id"]) for one in rows if one["user_id"])
    first = {session: user for _, user, session in reversed(logins)}
    return [replace(one, user_id=one.user_id or first.get(one.session_id)) for one in events]


@pytest.mark.spark
def test_a_group_below_its_minimum_shows_nothing(
    spark: Any, features: FeatureSet, arrived: list[Event], folder: Path, tmp_path: Path
) -> None:
    """The purchases of a brand are told where thirty users bought it, and else are missing."""
    from glue_jobs.nightly import write_night

    buyers: dict[str, set[str | None]] = defaultdict(set)
    for brand, event in keyed("by:brand", arrived):
        if event.event_type == "purchase" and event.time <= T0 + 7 * DAY:
            buyers[brand].add(event.user_id)
    asked = [(brand, T0 + 7 * DAY) for brand in sorted(buyers)]
    found = by_spark(spark, folder / "all.parquet", features, "by:brand", asked)
    shown = {brand for (brand, _), one in zip(asked, found, strict=True) if not one["rare_missing"]}
    assert shown == {brand for brand, users in buyers.items() if len(users - {None}) >= 30}
    assert 0 < len(shown) < len(buyers)
    write_night(spark, [str(folder / "all.parquet")], features, T0 + 7 * DAY, str(tmp_path))
    assert shown == {row["key"] for row in written(tmp_path, "by:brand") if row["rare"] is not None}


RESTRICTED = {"minimum_group": 3, "distinct": "user_id"}
SMALL_GROUPS = (
    declared("mean", "value_statistics", "by:brand", value="price", statistic="mean", **RESTRICTED),
    declared("within_1h", "recent_count", "by:brand", value="price", window_s=3600.0, **RESTRICTED),
    declared("paid", "smoothed_rate", "by:brand", value="price", **{**RATE, **RESTRICTED}),
    declared("breadth", "entropy", "by:brand", value="colour", **RESTRICTED),
)


def bids() -> list[Event]:
    """Of five users each: one names a price and a colour; one does within the hour; three do; all do."""
    events = []
    for brand, named in (("one", (0,)), ("one now", range(5)), ("three", range(3)), ("all", range(5))):
        for place in range(5):
            told = {"price": 2.0 + place, "colour": "red"} if place in named else {}
            ago = 20 * DAY if brand == "one now" and place else 60.0
            for event_type in ("click", "impression"):
                name, properties = f"{brand} {place} {event_type}", {"brand": brand, **told}
                user = f"u{place}"
                events.append(
                    Event(name, event_type, NOW - ago, NOW, user_id=user, item_id="i", properties=properties)
                )
    return events


@pytest.mark.spark
def test_members_are_those_whose_events_gave_the_value(spark: Any, tmp_path: Path) -> None:
    """Who names no price, or named it before the window, or only saw the item, covers nobody's price."""
    from glue_jobs.nightly import write_night

    features, events = FeatureSet(SMALL_GROUPS), bids()
    asked = [(brand, NOW) for brand in ("all", "one", "one now", "three")]
    expected = [
        {"mean": 4.0, "within_1h": 20.0, "paid": 21.0 / 25.0, "breadth": 0.0},
        {},
        {"mean": 4.0, "paid": 21.0 / 25.0, "breadth": 0.0},
        {"mean": 3.0, "within_1h": 9.0, "paid": 10.0 / 25.0, "breadth": 0.0},
    ]
    pq.write_table(lake(events), tmp_path / "bids.parquet")
    write_night(spark, [str(tmp_path / "bids.parquet")], features, NOW, str(tmp_path / "night"))
    night = {row["key"]: row for row in written(tmp_path / "night", "by:brand")}
    for found in (
        by_python(features, "by:brand", events, asked),
        by_numpy(features, "by:brand", columns_of("by:brand", events, EventColumns.of(events)), asked),
        by_spark(spark, tmp_path / "bids.parquet", features, "by:brand", asked),
        [as_python(of_scope(features, "by:brand"), night[brand]) for brand, _ in asked],
    ):
        assert [told_of(one) for one in found] == [pytest.approx(one) for one in expected]


def told_of(values: Mapping[str, Any]) -> dict[str, float]:
    """What is no default."""
    return {name: one for name, one in values.items() if values.get(f"{name}_missing") == 0.0}


@pytest.mark.spark
def test_an_event_ahead_of_the_clock_counts_alike(spark: Any, features: FeatureSet, folder: Path) -> None:
    """A client's clock may be five minutes ahead: what is folded already is read at full weight."""
    events = [
        Event(
            f"e{place}",
            "view",
            NOW + ahead,
            NOW,
            user_id="ann",
            item_id=f"i{place}",
            properties={"price": 2.0},
        )
        for place, ahead in enumerate((-3600.0, -1.0, 0.0, 1.0, 299.0))
    ]
    pq.write_table(lake(events), folder / "ahead.parquet")
    rows = keyed_sql("visitor", f"(SELECT * FROM parquet.`{folder}/ahead.parquet`)")
    text = values_sql(features, "visitor", f"(SELECT *, {NOW!r}D AS as_of FROM ({rows}))")
    state = features.add_all({}, events)
    python = {**features.scoped("visitor").read(state, NOW), **features.scoped("visitor").lists(state, NOW)}
    assert differences(python, as_python(features.scoped("visitor"), spark.sql(text).first().asDict())) == []
    assert python["activity_1d"] > 4.9
    assert python["history"] == ["i0", "i1", "i2"]
