"""The skew report on a real lake: an honest run is exact, and each of six planted skews is named."""

from __future__ import annotations

import dataclasses
import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from narrows.events import Event
from narrows.features.declarations import FeatureDeclaration
from narrows.features.registry import FeatureSet
from narrows.settings import load_app
from narrows.simulator import Behaviour, Market
from narrows.skew.comparing import Row as Vector
from tests.served import Served, events_of, serve
from tests.spark_session import lake_session, spark

__all__ = ["spark"]

pytestmark = pytest.mark.spark

AS_OF = 1_790_000_000.0
DAY_S = 86_400.0
Applied = Callable[[Any, Sequence[Any]], Any]


def _feature(
    name: str, kind: str, events: tuple[str, ...], scope: str = "visitor", **more: Any
) -> FeatureDeclaration:
    given = {"owner": "test", "description": "", "default": 0.0, "parameters": {}, "value": None}
    given |= {"where": {}, "freshness_s": None}
    return FeatureDeclaration(name=name, kind=kind, scope=scope, events=events, **{**given, **more})


FEATURES = FeatureSet(
    [
        _feature("views", "count", ("view",)),
        _feature("spend", "count", ("purchase",), value="event_value", default=-1.0),
        _feature("activity_1d", "decayed_count", ("view", "click"), parameters={"half_life_s": DAY_S}),
        _feature("history", "last_n", ("view", "click", "purchase"), parameters={"keep": 20}),
        _feature("session_views", "count", ("view",), scope="session"),
        # declared here and nowhere else: no program knows of views in the last hour by category
        _feature(
            *("views_1h", "recent_count", ("view",), "visitor x category"), parameters={"window_s": 3_600.0}
        ),
        _feature("hour", "hour_of_day", (), scope="request"),
        _feature("item_views", "count", ("view",), scope="item"),
    ]
)


@dataclasses.dataclass
class Shop:
    """A lake, what was served while it filled, and the job that compares the two."""

    session: Any
    sample: Sequence[Any]
    served: Served

    def report(self, sample: Sequence[Any] | None = None) -> dict[str, Any]:
        """The skew report on the decisions, or on others in their place."""
        from glue_jobs import measure_skew

        return measure_skew.measure(self.session, self.sample if sample is None else sample, FEATURES)


def _dear(events: Iterator[Event]) -> Iterator[Event]:
    """The same shop in a currency of small coins: a purchase costs more of them than 32 bits hold."""
    for event in events:
        yield dataclasses.replace(event, value=round(event.value * 1e8)) if event.value else event


@pytest.fixture(scope="module")
def shop(spark: Any, tmp_path_factory: pytest.TempPathFactory) -> Shop:
    """Events of 20 days, a fifth of anonymous sessions logging in, and a hundred decisions in between."""
    from glue_jobs.compact_events import compact
    from glue_jobs.decision_sample import read_sample

    root = tmp_path_factory.mktemp("shop")
    app = load_app(Path(__file__).parents[2] / "apps" / "megashop")
    behaviour = Behaviour(scrapers=0.0, logins=0.6)
    market = Market(7, users=60, items=200, as_of=AS_OF, behaviour=behaviour)
    events = _dear(events_of(market.events(2_500, AS_OF - 20 * DAY_S, AS_OF), app))
    served = serve(events, FEATURES, root, every=20)
    session = lake_session(spark, root / "lake")
    landing, today = str(root / "landing" / "events"), datetime.fromtimestamp(AS_OF, UTC).date()
    compact(session, landing, events_per_minute=120.0, today=today)
    decisions = str(root / "landing" / "decisions")
    sample = read_sample(session, decisions, rate=1.0, at_most=2000, since=None)
    return Shop(session, sample, served)


def test_an_honest_run_is_exact(shop: Shop) -> None:
    """Every value of every decision comes out of the lake again, those of a new feature included."""
    found = shop.report()
    assert found["sampled"] == shop.served.decisions > 100
    assert found["rows"] + sum(found["left_out"].values()) == found["sampled"]
    assert found["rows"] > 0.9 * found["sampled"]
    assert found["exact_share"] == 1.0, found["first_divergence"]
    assert found["first_divergence"] is None
    assert found["causes"] == []
    assert set(found["by_feature"]) == {one.name for one in FEATURES.declarations} - {"item_views"}
    assert found["by_feature"]["views_1h"]["values"] > 0


def test_a_sample_is_a_part_of_every_larger_one(shop: Shop) -> None:
    """The hash of its id decides whether a decision is looked at, the same ones every time."""
    from glue_jobs.decision_sample import read_sample

    decisions = str(shop.served.landing / "landing" / "decisions")
    part = {
        one.recommendation_id
        for one in read_sample(shop.session, decisions, rate=0.3, at_most=2000, since=None)
    }
    assert 0.1 < len(part) / len(shop.sample) < 0.5
    later = read_sample(shop.session, decisions, rate=0.3, at_most=5, since=AS_OF - 5 * DAY_S)
    assert len(later) == 5
    assert {one.recommendation_id for one in later} <= part
    assert min(one.at for one in later) >= AS_OF - 5 * DAY_S


def _time_zone(applied: Applied, events: Any, decisions: Sequence[Any]) -> Any:
    """Moments read as those of a zone two hours east."""
    from pyspark.sql import functions as F

    return applied(events, decisions).withColumn("time", F.col("time") - 7_200.0)


def _late_event(applied: Applied, events: Any, decisions: Sequence[Any]) -> Any:
    """A join by time alone: also what had not arrived, or had not been folded."""
    from pyspark.sql import functions as F

    through = [
        dataclasses.replace(
            one, applied={key: dict.fromkeys(marks, "9" * 60) for key, marks in one.applied.items()}
        )
        for one in decisions
    ]
    return applied(events, through).where(F.col("time") <= F.col("as_of"))


def _overflow(applied: Applied, events: Any, decisions: Sequence[Any]) -> Any:
    """An amount cast to an integer of 32 bits."""
    from pyspark.sql import functions as F

    return applied(events, decisions).withColumn(
        "value", F.col("value").cast("bigint").cast("int").cast("double")
    )


def _old_key(applied: Applied, events: Any, decisions: Sequence[Any]) -> Any:
    """A join on the session, of which the login had made a user's."""
    from pyspark.sql import functions as F

    return applied(events, decisions).where(F.col("visitor").startswith("s#"))


@pytest.mark.parametrize(
    ("expected", "plant"),
    [
        ("time zone", _time_zone),
        ("late event", _late_event),
        ("integer overflow", _overflow),
        ("join on an old key", _old_key),
    ],
)
def test_a_skew_in_the_events_of_the_job_is_named(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, expected: str, plant: Callable[..., Any]
) -> None:
    """And no other cause beside it; the first diverging event is one of the lake's."""
    from glue_jobs import measure_skew

    monkeypatch.setattr(measure_skew, "applied_events", partial(plant, measure_skew.applied_events))
    found = shop.report()
    assert {one["cause"] for one in found["causes"]} == {expected}, found["causes"]
    assert found["first_divergence"]["cause"] == expected
    assert found["first_divergence"]["event_id"]
    assert found["exact_share"] < 1.0


def test_a_null_default_in_serving_is_named(shop: Shop) -> None:
    """Serving took a missing amount for zero and forgot the flag."""
    filled = [
        dataclasses.replace(one, served={**one.served, "spend": 0.0, "spend_missing": 0.0})
        if one.served["spend_missing"]
        else one
        for one in shop.sample
    ]
    found = shop.report(filled)
    assert [(one["cause"], one["features"]) for one in found["causes"]] == [("null default", ["spend"])]
    first = found["first_divergence"]
    assert (first["feature"], first["served"], first["recomputed"]) == ("spend", 0.0, -1.0)


def test_a_normalisation_at_training_only_is_named(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    """The training side standardised a count that serving gives as it is."""
    from glue_jobs import measure_skew

    real = measure_skew.recompute

    def normalised(*arguments: Any) -> list[Vector]:
        return [
            dataclasses.replace(
                one, recomputed={**one.recomputed, "views": (one.recomputed["views"] - 9.5) / 7.25}
            )
            for one in real(*arguments)
        ]

    monkeypatch.setattr(measure_skew, "recompute", normalised)
    found = shop.report()
    assert [(one["cause"], one["features"]) for one in found["causes"]] == [
        ("normalisation at training only", ["views"])
    ]


def _copied(shop: Shop, folder: Path, *, spoilt: int = 0) -> Path:
    """The landed decisions again, of which so many say that they served one view more than they did."""
    for path in sorted((shop.served.landing / "landing" / "decisions").rglob("*.jsonl.gz")):
        lines = []
        for line in gzip.decompress(path.read_bytes()).decode().splitlines():
            record = json.loads(line)
            if spoilt and "views" in record["visitor_features"]:
                record["visitor_features"]["views"] += 1.0
                spoilt -= 1
            lines.append(json.dumps(record, separators=(",", ":")))
        target = folder / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(gzip.compress("\n".join(lines).encode()))
    return folder


def test_a_night_fails_below_the_least_exact_share_and_has_reported(
    shop: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exact ends well; one value of one decision does not, and the error is the report in a sentence."""
    from glue_jobs import measure_skew

    monkeypatch.setattr(measure_skew, "open_lake", lambda *_: shop.session)
    app = dataclasses.replace(
        load_app(Path(__file__).parents[2] / "apps" / "megashop"), features=FEATURES.declarations
    )
    monkeypatch.setattr(measure_skew, "read_app", lambda *_: app)

    def night(decisions: Path, *more: str) -> dict[str, Any]:
        given = {
            "--lake": "x",
            "--decisions": decisions,
            "--app-config": "x",
            "--output": tmp_path / "report",
        }
        words = [str(part) for pair in given.items() for part in pair]
        measure_skew.main([*words, "--rate", "1.0", "--least-exact", "1.0", *more])
        return _reported(tmp_path)

    honest = night(_copied(shop, tmp_path / "honest"))
    assert (honest["exact_share"], honest["sampled"]) == (1.0, len(shop.sample))
    with pytest.raises(SystemExit, match=r"served features differ from the lake's: .* 99\.\d+% exact"):
        night(_copied(shop, tmp_path / "spoilt", spoilt=1))
    assert _reported(tmp_path)["exact_share"] < 1.0
    nothing = night(tmp_path / "nowhere")
    assert (nothing["sampled"], nothing["rows"], nothing["exact_share"]) == (0, 0, None)
    assert night(tmp_path / "honest", "--within", "2d")["sampled"] == 0  # all days ended long ago


def _reported(folder: Path) -> dict[str, Any]:
    (part,) = (folder / "report").glob("part-*")
    return dict(json.loads(part.read_text()))


def test_what_the_lake_has_not_read_yet_is_left_out_and_counted(shop: Shop) -> None:
    """A decision from events beyond the lake's last compaction says nothing yet; nor do other definitions."""
    beyond = [
        dataclasses.replace(
            one, applied={key: dict.fromkeys(marks, "9" * 60) for key, marks in one.applied.items()}
        )
        for one in shop.sample[:3]
        if one.applied
    ]
    other = [dataclasses.replace(one, fingerprint="0" * 32) for one in shop.sample[3:5]]
    found = shop.report([*beyond, *other])
    assert (found["rows"], found["exact_share"]) == (0, None)
    assert found["left_out"] == {
        "the lake has not read so far yet": len(beyond),
        "served by other declarations than today's": 2,
    }


def test_items_are_exact_after_the_night_and_their_streamed_error_is_told(shop: Shop, tmp_path: Path) -> None:
    """What build_features writes has no error; a streamed count that is one too high has an error of one."""
    from glue_jobs.event_files import lake_files
    from glue_jobs.item_errors import item_statistics
    from glue_jobs.lake import read_events
    from glue_jobs.nightly import write_night

    events = read_events(shop.session)
    items = FeatureSet([one.declaration for one in FEATURES.scoped("item").features])
    write_night(shop.session, lake_files(shop.session), items, AS_OF, str(tmp_path / "night"))
    night = shop.session.read.parquet(str(tmp_path / "night" / "item")).orderBy("key").limit(2).collect()
    lines = [
        {
            "item_id": row["key"],
            "at": AS_OF,
            "values": {"item_views": row["item_views"] + more, "item_views_missing": 0.0},
        }
        for row, more in zip(night, (0.0, 1.0), strict=True)
    ]
    streamed = tmp_path / "streamed.jsonl"
    streamed.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    found = item_statistics(events, FEATURES, str(streamed), str(tmp_path / "night" / "item"))
    assert found is not None
    assert found["nightly"]["items"] > 100
    assert (found["nightly"]["exact_share"], found["nightly"]["max_abs_error"]) == (1.0, 0.0)
    assert (found["streamed"]["exact_share"], found["streamed"]["max_abs_error"]) == (0.5, 1.0)
