"""Landed lines -> the lake's table of events, each event once.

    compact_events.py --landing PATH [--items PATH] --lake PATH [--database NAME] --app-config PATH
                      [--keep-days 30]

Reads the landing files that no earlier run has read, MERGEs their events on `event_id` and notes how far it
came. Of an event that arrives more than once the first arrival stays, in whatever order and company the
arrivals are read; a late event goes to its own day. What is unusual is marked, and stays: `bot:rate`, and
`duplicate` for an event that repeats another one under an id of its own. Lines that are no events lie in the
table `quarantine`, with the reason.

Changed items that landed under `--items` go into the table `items`, each in its newest version.

A run that is killed at any point, or repeated, leaves the table as one whole run would.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as F  # the name that Spark's own documentation uses

from glue_jobs.app_files import read_app
from glue_jobs.changed_items import keep_items
from glue_jobs.lake import (
    CATALOG,
    EVENTS,
    add_arguments,
    ensure_tables,
    events_table,
    open_lake,
    quarantine_table,
)
from glue_jobs.landed import DAY_S, events, landing_files, malformed, read_landed
from narrows.marking import DUPLICATE, RATE, fast_visitors_sql

READ_THROUGH = "narrows.read-through"
"""A property of the table: the last sequence number that was read of each shard, as JSON."""
TOTALS = "narrows.totals-by-day"
"""A property of the table: what the runs of each of the last days have counted, as JSON."""
DAYS_OF_TOTALS = 31
APART_DAYS = 31
"""Arrivals of one event say times at most so far apart: what is older is refused at collection."""
NAMED = re.compile(r"(?P<shard>[^/]+)-(?P<first>\d+)-(?P<last>\d+)\.jsonl\.gz$")
SMALL_FILES, SMALL_BYTES = 8, 32 * 2**20
CONTENT = (
    *("event_type", "time", "user_id", "session_id", "item_id", "value", "recommendation_id", "position"),
    *("surface", "impression", "query"),
)


@dataclass(frozen=True)
class Landing:
    """The files of the landing zone that are still to be read, and how far one has read with them."""

    files: Sequence[str]
    through: Mapping[str, str]


def unread(files: Iterable[str], through: Mapping[str, str]) -> Landing:
    """Which files hold something after `through`. One whose name says no sequence numbers is always read."""
    after, found = dict(through), []
    for file in sorted(files):
        name = NAMED.search(file)
        if name is None:
            found.append(file)
        elif int(name["last"]) > int(through.get(name["shard"], "-1")):
            found.append(file)
            after[name["shard"]] = str(max(int(name["last"]), int(after.get(name["shard"], "-1"))))
    return Landing(found, after)


def compact(
    spark: SparkSession, landing: str, *, events_per_minute: float, today: date, everything: bool = False
) -> Mapping[str, int]:
    """Bring what has landed since the last run into the lake; returns how many of what."""
    ensure_tables(spark)
    properties = _properties(spark)
    through = {} if everything else json.loads(properties.get(READ_THROUGH, "{}"))
    new = unread(landing_files(spark, landing), through)
    if not new.files:
        return {"files": 0}
    landed = read_landed(spark, new.files)
    _spread_over_cores(landed)
    landed.cache()
    rejected = _keep_malformed(spark, landed)
    merged = _merge(spark, events(landed), events_per_minute)
    counts = {"files": len(new.files), "malformed": rejected, **merged}
    totals = _added(json.loads(properties.get(TOTALS, "{}")), today, counts)
    _set_properties(spark, {READ_THROUGH: json.dumps(new.through), TOTALS: json.dumps(totals)})
    landed.unpersist()
    return counts


def first_arrivals(arrivals: DataFrame) -> DataFrame:
    """One row for each event: its first arrival, how many lines it had, and where in the stream they were."""
    row = F.struct(*(F.col(field.name) for field in EVENTS))
    return arrivals.groupBy("event_id").agg(
        F.min_by(row, _arrival()).alias("event"),
        F.count("*").alias("lines"),
        F.collect_set(F.struct("shard", "sequence")).alias("places"),
    )


def marked(rows: DataFrame, events_per_minute: float) -> DataFrame:
    """The rows with the marks that need other rows set anew; all rows of a visitor's day must be there."""
    rows.createOrReplaceTempView("narrows_rows")
    fast = rows.sparkSession.sql(fast_visitors_sql("narrows_rows", events_per_minute))
    same = Window.partitionBy("visitor", "event_date", "_content").orderBy(_arrival())
    is_copy = (F.row_number().over(same) > 1) & (F.col("time") != F.col("received_at"))
    kept = F.array_except("marks", F.array(F.lit(RATE), F.lit(DUPLICATE)))
    none = F.array().cast("array<string>")
    return (
        rows.withColumn("_content", _content())
        .withColumn("_copy", is_copy)
        .join(F.broadcast(fast.withColumn("_fast", F.lit(True))), ["visitor", "event_date"], "left")
        .withColumn("_was", F.col("marks"))
        .withColumn(
            "marks",
            F.concat(
                kept,
                F.when(F.col("_fast"), F.array(F.lit(RATE))).otherwise(none),
                F.when(F.col("_copy"), F.array(F.lit(DUPLICATE))).otherwise(none),
            ),
        )
        .drop("_content", "_copy", "_fast")
    )


def _merge(spark: SparkSession, arrivals: DataFrame, events_per_minute: float) -> dict[str, int]:
    """MERGE the arrivals, and the rows whose marks they change; returns how many of what."""
    firsts = first_arrivals(arrivals).cache()
    around = _around(firsts)
    if around is None:
        return {"lines": 0, "new": 0, "again": 0, "duplicates": 0, "late": 0, "marked": 0}
    known = spark.table(events_table(spark)).where(around)
    judged = _judged(firsts, known).cache()
    fresh = judged.where("is_new OR is_earlier").select("event.*")
    touched = fresh.select("visitor", "event_date").distinct()
    others = known.join(touched, ["visitor", "event_date"], "left_semi").join(fresh, "event_id", "left_anti")
    rows = others.withColumn("_fresh", F.lit(False)).unionByName(fresh.withColumn("_fresh", F.lit(True)))
    changed = marked(rows, events_per_minute).where("_fresh OR NOT marks <=> _was").select(*EVENTS.names)
    changed = changed.cache()
    # counted before the table changes, which what is cached would follow
    counts = {**_counts(judged), "marked": changed.where(F.size("marks") > 0).count()}
    if not changed.isEmpty():
        changed.createOrReplaceTempView("narrows_changed")
        spark.sql(
            f"MERGE INTO {events_table(spark)} AS old USING narrows_changed AS new "
            f"ON old.event_id = new.event_id AND old.{around} "
            "WHEN MATCHED THEN UPDATE SET * WHEN NOT MATCHED THEN INSERT *"
        )
    for cached in (changed, judged, firsts):  # else they would follow snapshots that are forgotten one day
        cached.unpersist()
    return counts


def _around(firsts: DataFrame) -> str | None:
    """Where in the table arrivals of these events may lie already; None when there are no events."""
    days = firsts.agg(F.min("event.event_date"), F.max("event.event_date")).first()
    if days is None or days[0] is None:
        return None
    apart = timedelta(days=APART_DAYS)
    return f"event_date BETWEEN DATE'{days[0] - apart}' AND DATE'{days[1] + apart}'"


def _judged(firsts: DataFrame, known: DataFrame) -> DataFrame:
    """The events that came, each beside what the lake has of it: is it new, or an earlier arrival?"""
    before = known.select(
        "event_id", _arrival().alias("before"), F.struct("shard", "sequence").alias("place")
    )
    beside = firsts.join(before, "event_id", "left")
    return (
        beside.withColumn("is_new", F.col("before").isNull())
        .withColumn("is_earlier", _arrival("event.") < F.col("before"))
        .withColumn("again", F.col("lines") - F.size("places") + _as_number(_holds_place()))
        .withColumn("duplicates", F.size("places") - _as_number(F.col("is_new") | _holds_place()))
        .withColumn("is_late", F.col("is_new") & (F.col("event.received_at") - F.col("event.time") >= DAY_S))
    )


def _holds_place() -> F.Column:
    """Whether the row of the lake came from one of these lines: it is read a second time."""
    return F.coalesce(F.array_contains("places", F.col("place")), F.lit(False))


def _counts(judged: DataFrame) -> dict[str, int]:
    """How many lines there were; each is a new event, one that was read before, or a duplicate."""
    columns = {"new": "is_new", "again": "again", "duplicates": "duplicates", "late": "is_late"}
    sums = [F.sum(_as_number(F.col(column))).alias(name) for name, column in columns.items()]
    row = judged.agg(F.sum("lines").alias("lines"), *sums).first()
    return {name: int(count) for name, count in row.asDict().items()} if row else {}


def _as_number(flag: F.Column) -> F.Column:
    return flag.cast("int")


def _arrival(of: str = "") -> F.Column:
    """An event's place among its arrivals: its place in the stream, which is the order of its shard."""
    sequence = F.coalesce(F.col(f"{of}sequence"), F.lit(""))
    return F.struct(  # decimal numbers without leading zeros: the longer one is the greater
        F.length(sequence).alias("digits"),
        sequence.alias("sequence"),
        F.col(f"{of}shard").alias("shard"),
        F.col(f"{of}received_at").alias("at"),
    )


def _content() -> F.Column:
    """A hash of what an event says, without its id and its way here."""
    properties = [F.sort_array(F.map_entries(name)) for name in ("texts", "numbers")]
    return F.xxhash64(*(F.col(name) for name in CONTENT), *properties)


def _keep_malformed(spark: SparkSession, landed: DataFrame) -> int:
    """Put the lines that are no events into quarantine, each once; returns how many there are."""
    lines = malformed(landed).cache()
    count = int(lines.agg(F.coalesce(F.sum("times"), F.lit(0))).first()[0])
    if count:
        lines.createOrReplaceTempView("narrows_malformed")
        spark.sql(
            f"MERGE INTO {quarantine_table(spark)} AS old USING narrows_malformed AS new "
            "ON old.file = new.file AND old.line = new.line WHEN NOT MATCHED THEN INSERT *"
        )
    lines.unpersist()
    return count


def tidy(spark: SparkSession, now: datetime, keep_days: float) -> None:
    """Join the small files of a day once there are many, and forget snapshots older than `keep_days`."""
    table = events_table(spark)
    small = f"SELECT 1 FROM {table}.files WHERE file_size_in_bytes < {SMALL_BYTES} GROUP BY partition"  # noqa: S608
    if spark.sql(f"{small} HAVING count(*) >= {SMALL_FILES} LIMIT 1").count():
        options = f"options => map('min-input-files', '{SMALL_FILES}')"
        spark.sql(f"CALL {CATALOG}.system.rewrite_data_files(table => '{table}', {options})")
    oldest = f"TIMESTAMP '{now - timedelta(days=keep_days):%Y-%m-%d %H:%M:%S}'"
    if spark.sql(f"SELECT 1 FROM {table}.snapshots WHERE committed_at < {oldest} LIMIT 1").count():  # noqa: S608
        spark.sql(f"CALL {CATALOG}.system.expire_snapshots(table => '{table}', older_than => {oldest})")


def _properties(spark: SparkSession) -> dict[str, str]:
    return {
        row["key"]: row["value"] for row in spark.sql(f"SHOW TBLPROPERTIES {events_table(spark)}").collect()
    }


def _added(
    totals: Mapping[str, Mapping[str, int]], today: date, counts: Mapping[str, int]
) -> dict[str, Mapping[str, int]]:
    """The counts of each of the last days, with these in those of today."""
    day, first = today.isoformat(), (today - timedelta(days=DAYS_OF_TOTALS - 1)).isoformat()
    before = totals.get(day, {})
    mine = {name: before.get(name, 0) + count for name, count in counts.items()}
    return {name: one for name, one in {**totals, day: mine}.items() if name >= first}


def _set_properties(spark: SparkSession, properties: Mapping[str, str]) -> None:
    said = ", ".join(f"'{name}' = '{value}'" for name, value in properties.items())
    spark.sql(f"ALTER TABLE {events_table(spark)} SET TBLPROPERTIES ({said})")


def _spread_over_cores(landed: DataFrame) -> None:
    """Shuffle into as many parts as cores and input need: Spark's own 200 cost a small input a minute."""
    spark = landed.sparkSession
    parts = max(2 * spark.sparkContext.defaultParallelism, landed.rdd.getNumPartitions())
    spark.conf.set("spark.sql.shuffle.partitions", str(parts))


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--landing", required=True, help="folder of landed events (*.jsonl.gz, any depth)")
    parser.add_argument("--items", default="", help="folder of landed items (*.jsonl.gz, any depth)")
    add_arguments(parser)
    parser.add_argument("--app-config", required=True, help="the app's folder, or a .zip of it")
    parser.add_argument(
        "--keep-days", type=float, default=30.0, help="how long one can read the lake as of then"
    )
    parser.add_argument(
        "--everything",
        default="no",
        choices=["yes", "no"],
        help="read all landed files again; changes nothing twice",
    )
    known, _ = parser.parse_known_args(argv)  # Glue adds arguments of its own: --JOB_NAME, --TempDir
    return known


def main(argv: Sequence[str]) -> None:
    arguments = _arguments(argv)
    spark = open_lake("compact_events", arguments.lake, arguments.database)
    counts = compact(
        spark,
        arguments.landing,
        events_per_minute=read_app(spark, arguments.app_config).bots.events_per_minute,
        today=datetime.now(UTC).date(),
        everything=arguments.everything == "yes",
    )
    if arguments.items:
        counts = {**counts, **keep_items(spark, arguments.items)}
    tidy(spark, datetime.now(UTC), arguments.keep_days)
    print(json.dumps(counts))  # noqa: T201  # the job's log is where its counts are looked for


if __name__ == "__main__":
    main(sys.argv[1:])
