"""Served vectors against the same computed from the lake: how many values agree, and why the others do not.

    measure_skew.py --lake PATH [--database NAME] --decisions PATH --app-config PATH --output PATH
                    [--rate 0.01] [--at-most 2000] [--since MOMENT | --within 2d] [--least-exact SHARE]
                    [--streamed PATH] [--nightly PATH]

A share `--rate` of the decision records under `--decisions`, chosen by a hash of their ids, is computed again
by Spark with the definitions of today: as of the moment of the decision, from exactly those events that its
states had applied. Every value is compared: integers and lists bit for bit, other numbers to 1 part in 10^9.
The report, one JSON object, goes to the folder `--output`. A divergence does not fail the job, unless fewer
values agree than the share `--least-exact`: then its error is the report in one sentence.

Items' values are approximate in the stream and exact after the night: their distance from the exact ones is
told as information, for `--streamed` (JSON lines of item_id, at, values) and `--nightly` (build_features'
folder `item/`).
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F  # the name that Spark's own documentation uses

from glue_jobs.app_files import read_app
from glue_jobs.compact_events import READ_THROUGH
from glue_jobs.decision_sample import Decision, read_sample
from glue_jobs.item_errors import item_statistics
from glue_jobs.lake import add_arguments, events_table, open_lake, read_events
from glue_jobs.reports import moment, write_report
from narrows.events import EXCLUDING_TYPES, Event
from narrows.features.kinds import LastN, PerValue
from narrows.features.registry import MISSING_SUFFIX, FeatureSet
from narrows.features.scopes import VISITOR_SCOPES
from narrows.features.sql import values_sql
from narrows.marking import DUPLICATE, RATE
from narrows.skew.comparing import Row as Vector
from narrows.skew.comparing import compare, exact_features, values_of
from narrows.skew.marks import DIGITS, forgotten, keys_of, marks_of, placed, reached
from narrows.skew.report import diverging, report, summary
from narrows.skew.trials import Case
from narrows.toml_reading import duration_s

MARKS = (
    "key string, as_of double, origin string, shard string, last string, session string, scopes array<string>"
)
OTHER_FEATURES, FORGOTTEN, NOT_READ, SHARED = (
    "served by other declarations than today's",
    "more marks than a state keeps",
    "the lake has not read so far yet",
    "a session of two users",
)


def folded(events: DataFrame) -> DataFrame:
    """The events that states fold: marks that are set in the lake came after the fold and do not count."""
    of_lake = F.array(F.lit(RATE), F.lit(DUPLICATE))
    marks = F.array_except(F.coalesce("marks", F.array().cast("array<string>")), of_lake)
    kept = F.coalesce("consent", F.lit(True)) & (F.size(marks) == 0)
    return events.where(kept & ~F.col("event_type").isin(*EXCLUDING_TYPES))


def applied_events(events: DataFrame, decisions: Sequence[Decision]) -> DataFrame:
    """The events that each decision's states had applied: lake columns with `key`, `as_of` and `scopes`."""
    rows = [
        (one.recommendation_id, one.at, mark.origin, mark.shard, mark.last, mark.session, sorted(mark.scopes))
        for one in decisions
        for mark in marks_of(one.applied)
    ]
    marks = events.sparkSession.createDataFrame(rows, MARKS).alias("mark")
    return (
        events.alias("event")
        .join(
            F.broadcast(marks),
            (F.col("event.visitor") == F.col("mark.origin"))
            & (F.col("event.shard") == F.col("mark.shard"))
            & (F.lpad("event.sequence", DIGITS, "0") <= F.col("mark.last"))
            & (F.col("mark.session").isNull() | (F.col("event.session_id") == F.col("mark.session"))),
        )
        .select("event.*", "mark.key", "mark.as_of", "mark.scopes")
    )


def recompute(events: DataFrame, decisions: Sequence[Decision], features: FeatureSet) -> list[Vector]:
    """Every sampled vector beside what Spark makes of its events, with what follows for the request."""
    if not decisions:
        return []
    applied = applied_events(events, decisions).cache()
    found: dict[str, dict[str, Any]] = {}
    for scope in VISITOR_SCOPES:
        view = features.scoped(scope)
        if not view.features:
            continue
        name = f"narrows_applied_{scope}"
        applied.where(F.array_contains("scopes", scope)).createOrReplaceTempView(name)
        for row in events.sparkSession.sql(values_sql(features, scope, name)).collect():
            found.setdefault(row["key"], {}).update(row.asDict())
    applied.unpersist()
    return [_vector(one, found.get(one.recommendation_id, {}), features) for one in decisions]


def _vector(one: Decision, columns: Mapping[str, Any], features: FeatureSet) -> Vector:
    values, lists = as_served(columns, features)
    request = features.computed.request_values(one.at, one.context, values)
    return Vector(one.recommendation_id, one.at, values_of(one.served), values_of(values, request, lists))


def as_served(
    columns: Mapping[str, Any], features: FeatureSet
) -> tuple[dict[str, float], dict[str, Sequence[str]]]:
    """What Spark gives, in the form of a decision record: defaults with flags, and each part of a pair."""
    values: dict[str, float] = {}
    lists: dict[str, Sequence[str]] = {}
    for feature in features.features:
        name, value = feature.name, columns.get(feature.name)
        if isinstance(feature.kind, LastN):
            lists[name] = tuple(value or ())
        elif isinstance(feature.kind, PerValue):
            values.update(
                {f"{name}[{text}]": part for text, part in (value or {}).items() if part is not None}
            )
        else:
            values[name] = feature.declaration.default if value is None else value
            values[f"{name}{MISSING_SUFFIX}"] = float(value is None)
    return values, lists


def cases_of(events: DataFrame, decisions: Sequence[Decision], vectors: Sequence[Vector]) -> list[Case]:
    """The diverging vectors with every event of their visitors' keys."""
    if not vectors:
        return []
    known = {one.recommendation_id: one for one in decisions}
    asked = [known[vector.recommendation_id] for vector in vectors]
    keys = [keys_of(one.applied, *one.keys) for one in asked]
    rows = _by_visitor(events, frozenset().union(*keys))
    cases = []
    for vector, decision, wanted in zip(vectors, asked, keys, strict=True):
        marks = marks_of(decision.applied)
        found = [
            placed(event_of(row), row["shard"], row["sequence"], marks)
            for key in sorted(wanted)
            for row in rows.get(key, ())
        ]
        cases.append(Case(vector, found, decision.context))
    return cases


def _by_visitor(events: DataFrame, keys: Iterable[str]) -> dict[str, list[Row]]:
    chosen = events.sparkSession.createDataFrame([(key,) for key in sorted(keys)], "visitor string")
    rows: dict[str, list[Row]] = {}
    for row in events.join(F.broadcast(chosen), "visitor", "left_semi").collect():
        rows.setdefault(row["visitor"], []).append(row)
    return rows


def event_of(row: Row) -> Event:
    """A row of the lake as the event that it was."""
    return Event(
        event_id=row["event_id"],
        event_type=row["event_type"],
        time=row["time"],
        received_at=row["received_at"],
        user_id=row["user_id"],
        session_id=row["session_id"],
        item_id=row["item_id"],
        value=row["value"],
        recommendation_id=row["recommendation_id"],
        position=row["position"],
        surface=row["surface"],
        impression=tuple(row["impression"] or ()),
        query=row["query"],
        properties={**(row["numbers"] or {}), **(row["texts"] or {})},
    )


def comparable(
    events: DataFrame, decisions: Sequence[Decision], through: Mapping[str, str], fingerprint: str
) -> tuple[list[Decision], Counter[str]]:
    """The decisions whose events can be told exactly, and how many others there are, by reason."""
    shared = _shared_sessions(events, decisions)
    kept, left_out = list[Decision](), Counter[str]()
    for one in decisions:
        if one.fingerprint != fingerprint:
            left_out[OTHER_FEATURES] += 1
        elif forgotten(one.applied):
            left_out[FORGOTTEN] += 1
        elif not reached(one.applied, through):
            left_out[NOT_READ] += 1
        elif keys_of(one.applied) & shared:
            left_out[SHARED] += 1
        else:
            kept.append(one)
    return kept, left_out


def _shared_sessions(events: DataFrame, decisions: Sequence[Decision]) -> frozenset[str]:
    """The keys of those sessions that more than one user has used: a late event there follows the latest."""
    keys = sorted({key for one in decisions for key in keys_of(one.applied) if key.startswith("s#")})
    if not keys:
        return frozenset()
    chosen = events.sparkSession.createDataFrame(
        [(key.removeprefix("s#"),) for key in keys], "session_id string"
    )
    users = events.join(F.broadcast(chosen), "session_id", "left_semi").groupBy("session_id")
    shared = users.agg(F.count_distinct("user_id").alias("users")).where("users > 1")
    return frozenset(f"s#{row['session_id']}" for row in shared.collect())


def measure(spark: SparkSession, decisions: Sequence[Decision], features: FeatureSet) -> dict[str, Any]:
    """The report on these decisions against the lake as it is."""
    properties = spark.sql(f"SHOW TBLPROPERTIES {events_table(spark)}").collect()
    through = json.loads({row["key"]: row["value"] for row in properties}.get(READ_THROUGH, "{}"))
    events = folded(read_events(spark))
    kept, left_out = comparable(events, decisions, through, features.fingerprint())
    vectors = recompute(events, kept, features)
    exact = exact_features(features.declarations)
    first = set(diverging(compare(vectors, exact)))
    cases = cases_of(events, kept, [one for one in vectors if one.recommendation_id in first])
    return {**report(vectors, cases, features, exact), "sampled": len(decisions), "left_out": dict(left_out)}


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--decisions", required=True, help="folder of landed decision records (*.jsonl.gz)")
    parser.add_argument("--app-config", required=True, help="the app's folder, or a .zip of it")
    parser.add_argument("--output", required=True, help="the folder of the report")
    parser.add_argument("--rate", type=float, default=0.01, help="the share of records to look at")
    parser.add_argument("--at-most", type=int, default=2000, help="records to look at, at most")
    parser.add_argument("--streamed", default=None, help="items as the stream has counted them")
    parser.add_argument("--nightly", default=None, help="items as the night has computed them")
    parser.add_argument("--least-exact", type=float, default=0.0, help="fail below this share that agrees")
    when = parser.add_mutually_exclusive_group()
    when.add_argument("--since", type=moment, default=None, help="no records from before this moment")
    when.add_argument("--within", type=_ago, dest="since", help='the same as a duration until now: "2d"')
    known, _ = parser.parse_known_args(argv)  # Glue adds arguments of its own: --JOB_NAME, --TempDir
    return known


def _ago(text: str) -> float:
    """The moment that lies so long before now."""
    seconds = duration_s(text)
    if seconds is None:
        raise argparse.ArgumentTypeError(f'{text!r}: write a duration such as "2d", with s, m, h or d')
    return time.time() - seconds


def main(argv: Sequence[str]) -> None:
    arguments = _arguments(argv)
    spark = open_lake("measure_skew", arguments.lake, arguments.database)
    app = read_app(spark, arguments.app_config)
    sample = read_sample(
        spark, arguments.decisions, rate=arguments.rate, at_most=arguments.at_most, since=arguments.since
    )
    features = FeatureSet(app.features)
    items = item_statistics(read_events(spark), features, arguments.streamed, arguments.nightly)
    found = {"app": app.name, **measure(spark, sample, features), "item_statistics": items}
    write_report(spark, arguments.output, found)
    print(json.dumps(found))  # noqa: T201  # the job's log is where its result is looked for
    share = found["exact_share"]
    if share is not None and share < arguments.least_exact:
        raise SystemExit(f"served features differ from the lake's: {summary(found)}")


if __name__ == "__main__":
    main(sys.argv[1:])
