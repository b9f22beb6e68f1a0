"""The lake's events -> a report that says whether they are fit to train on, and a job that fails when not.

    check_data_quality.py --lake PATH [--database NAME] --app-config PATH --output PATH [--as-of MOMENT]

Every check of `narrows.quality` is made against the thresholds of the app's `[quality]`; the report, one JSON
object with value, threshold, verdict and remedy of each, goes to the folder `--output`. Where a check fails,
the job fails after it has written the report, and its error names every failed check: a workflow stops there.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # the name that Spark's own documentation uses

from glue_jobs.app_files import read_app
from glue_jobs.compact_events import TOTALS
from glue_jobs.lake import add_arguments, events_table, open_lake, read_events
from glue_jobs.reports import moment, write_report
from narrows.envelope import LIMITS
from narrows.events import EXCLUDING_TYPES
from narrows.quality import Measured, failed, judge, newest_days
from narrows.settings import App

COUNTED = ("events", "without_item", "marked", "future", "ancient")


def measure(events: DataFrame, app: App, totals: Mapping[str, Mapping[str, int]]) -> Measured:
    """What the checks judge of the events, and of the lines that compactions counted on each day.

    A line that was read `again` is not counted: it was the same file, not another arrival.
    """
    newest = events.agg(F.max("received_at").alias("at")).collect()[0]["at"]
    if newest is None:
        return Measured(events=0)
    days = newest_days(datetime.fromtimestamp(newest, UTC).date(), app.quality.volume_days)
    found = [row.asDict() for row in _by_day_and_type(events, app, min(days)).collect()]
    arrived = {day: Counter[str]() for day in sorted(days)}
    by_day, unknown = Counter[date](), Counter[str]()
    for row in found:
        by_day[row["event_date"]] += row["events"]
        if row["arrived"] in arrived:
            counts = {name: row[name] for name in COUNTED}
            if row["event_type"] not in (*app.events, *EXCLUDING_TYPES):
                counts["unknown_types"] = row["events"]
                unknown[row["event_type"]] += row["events"]
            arrived[row["arrived"]].update(counts)
    for text, one in totals.items():
        if (day := date.fromisoformat(text)) >= min(days):  # a run may be after the newest arrival
            arrived.setdefault(day, Counter()).update(_lines(one))
    return Measured(sum(by_day.values()), newest, by_day, arrived, unknown)


def _by_day_and_type(events: DataFrame, app: App, since: date) -> DataFrame:
    """Counts by the day and type of events, and since a day by the day of their arrival."""
    labelled = [name for name, one in app.events.items() if one.label > 0.0]
    ahead, behind = LIMITS.ahead_s, LIMITS.behind_s
    arrived = F.to_date(F.timestamp_seconds("received_at"))
    recent = F.when(arrived >= F.lit(since), arrived).alias("arrived")
    return events.groupBy("event_date", "event_type", recent).agg(
        F.count("*").alias("events"),
        F.count_if(F.col("event_type").isin(labelled) & F.col("item_id").isNull()).alias("without_item"),
        F.count_if(F.size(F.coalesce("marks", F.array())) > 0).alias("marked"),
        F.count_if(F.col("time") > F.col("received_at") + ahead).alias("future"),
        F.count_if(F.col("time") < F.col("received_at") - behind).alias("ancient"),
    )


def _lines(totals: Mapping[str, int]) -> dict[str, int]:
    lines, again, malformed, duplicates = (
        totals.get(name, 0) for name in ("lines", "again", "malformed", "duplicates")
    )
    return {"lines": lines - again + malformed, "malformed": malformed, "duplicates": duplicates}


def compactions(spark: SparkSession) -> dict[str, Mapping[str, int]]:
    """What compactions counted on each day, which the table of events keeps in its properties."""
    properties = spark.sql(f"SHOW TBLPROPERTIES {events_table(spark)}").collect()
    return dict(json.loads({row["key"]: row["value"] for row in properties}.get(TOTALS, "{}")))


def check(spark: SparkSession, app: App, as_of: float) -> dict[str, Any]:
    """The report on the lake as it is, as of this moment."""
    found = measure(read_events(spark), app, compactions(spark))
    checks = judge(found, app.quality, as_of)
    return {
        "app": app.name,
        "as_of": as_of,
        "ok": not failed(checks),
        "reasons": [one.reason for one in failed(checks)],
        "checks": [one.to_json() for one in checks],
        "days": [day.isoformat() for day in sorted(found.arrived)],
        "unknown_types": dict(found.unknown_types),
        "by_day": {day.isoformat(): count for day, count in sorted(found.by_day.items())},
    }


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--app-config", required=True, help="the app's folder, or a .zip of it")
    parser.add_argument("--output", required=True, help="the folder of the report")
    parser.add_argument("--as-of", type=moment, default=None, help="ISO 8601 or epoch seconds (default: now)")
    known, _ = parser.parse_known_args(argv)  # Glue adds arguments of its own: --JOB_NAME, --TempDir
    return known


def main(argv: Sequence[str]) -> None:
    arguments = _arguments(argv)
    spark = open_lake("check_data_quality", arguments.lake, arguments.database)
    as_of = time.time() if arguments.as_of is None else arguments.as_of
    report = check(spark, read_app(spark, arguments.app_config), as_of)
    write_report(spark, arguments.output, report)
    print(json.dumps(report))  # noqa: T201  # the job's log is where its result is looked for
    if not report["ok"]:
        raise SystemExit("the data are not fit to train on: " + "; ".join(report["reasons"]))


if __name__ == "__main__":
    main(sys.argv[1:])
