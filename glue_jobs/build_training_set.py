"""Landed events -> the training data directory: interactions, items, and slates with their outcomes.

    build_training_set.py --landing PATH --catalogue PATH --app-config app.toml --output PATH

Every PATH is a folder that Spark can read: a plain one here, s3:// in Glue. What is written:

- `interactions/`: user_id, item_id, time, event_type, value, weight. One row for each event of a type that
  the app gives a label; `weight` is that label. `user_id` is the visitor's key: "u#..." or, where the
  visitor is anonymous, "s#...".
- `impressions/`: recommendation_id, user_id, item_id, position (from 1), surface, shown_at, label. One row
  for each item shown; `label` is the best of what came of it under that recommendation, else 0.
- `items/`: the catalogue as given. `quarantine/`: lines that are no events, as they were.

An event that arrives twice counts once: its first arrival. An event without consent trains nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import tomllib
from collections.abc import Mapping, Sequence

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # the name that Spark's own documentation uses
from pyspark.sql import types as T

MALFORMED = "_malformed"
LANDED = T.StructType(
    [
        T.StructField("event_id", T.StringType()),
        T.StructField("event_type", T.StringType()),
        T.StructField("sent_at", T.DoubleType()),
        T.StructField("received_at", T.DoubleType()),
        T.StructField("user_id", T.StringType()),
        T.StructField("session_id", T.StringType()),
        T.StructField("item_id", T.StringType()),
        T.StructField("event_value", T.DoubleType()),
        T.StructField("recommendation_id", T.StringType()),
        T.StructField("surface", T.StringType()),
        T.StructField("impression", T.ArrayType(T.StringType())),
        T.StructField("consent", T.BooleanType()),
        T.StructField(MALFORMED, T.StringType()),
    ]
)


def read_landed(spark: SparkSession, landing: str) -> DataFrame:
    """Every landed line; one that cannot be read as an event keeps its text in the column `_malformed`."""
    return (
        spark.read.schema(LANDED)
        .option("recursiveFileLookup", "true")
        .option("pathGlobFilter", "*.jsonl.gz")
        .option("columnNameOfCorruptRecord", MALFORMED)
        .json(landing)
    )


def read_catalogue(spark: SparkSession, catalogue: str) -> DataFrame:
    """The items from a folder of Parquet files."""
    return spark.read.parquet(catalogue)


def read_labels(spark: SparkSession, app_config: str) -> dict[str, float]:
    """Event type -> label, from the `events` of an app.toml; types that are context only are left out."""
    text = spark.read.text(app_config, wholetext=True).first()
    if text is None:
        raise ValueError(f"--app-config {app_config} is empty; give the path of the app's app.toml")
    events = tomllib.loads(text[0]).get("events", {})
    return {name: float(event["label"]) for name, event in events.items() if event.get("label", 0.0) > 0.0}


def malformed(landed: DataFrame) -> DataFrame:
    """The lines that are no events: unreadable, or without an id, a type, a time or a visitor."""
    return landed.where(~_is_event())


def usable(landed: DataFrame) -> DataFrame:
    """The first arrival of each event that its visitor consented to, with the key of that visitor."""
    events = landed.where(_is_event()).drop(MALFORMED)
    first = F.min_by(F.struct(*events.columns), F.coalesce("received_at", "sent_at")).alias("event")
    distinct = events.groupBy("event_id").agg(first).select("event.*")
    consented = distinct.where(F.coalesce("consent", F.lit(True)))
    visitor = F.coalesce(F.concat(F.lit("u#"), F.col("user_id")), F.concat(F.lit("s#"), F.col("session_id")))
    return consented.withColumn("visitor", visitor)


def interactions(events: DataFrame, labels: Mapping[str, float]) -> DataFrame:
    """What visitors did with items, oldest first for each visitor."""
    return (
        events.withColumn("weight", _label(labels))
        .where((F.col("weight") > 0) & F.col("item_id").isNotNull())
        .select(
            F.col("visitor").alias("user_id"),
            "item_id",
            F.col("sent_at").alias("time"),
            "event_type",
            F.col("event_value").alias("value"),
            "weight",
        )
        .repartition("user_id")
        .sortWithinPartitions("user_id", "time")
    )


def impressions(events: DataFrame, labels: Mapping[str, float]) -> DataFrame:
    """Every item of every slate that was shown, with the best thing that came of it."""
    shown = events.where((F.col("event_type") == "impression") & F.col("recommendation_id").isNotNull())
    lines = shown.select(
        "recommendation_id",
        F.col("visitor").alias("user_id"),
        F.posexplode("impression").alias("place", "item_id"),
        "surface",
        F.col("sent_at").alias("shown_at"),
    )
    outcomes = (
        events.withColumn("label", _label(labels))
        .where((F.col("label") > 0) & F.col("recommendation_id").isNotNull())
        .groupBy("recommendation_id", F.col("visitor").alias("user_id"), "item_id")
        .agg(F.max("label").alias("label"))
    )
    return (
        lines.withColumn("position", F.col("place") + 1)
        .drop("place")
        .join(outcomes, ["recommendation_id", "user_id", "item_id"], "left")
        .fillna(0.0, ["label"])
    )


def build(landed: DataFrame, items: DataFrame, labels: Mapping[str, float], output: str) -> Mapping[str, int]:
    """Write the training data directory under `output`; returns how many of what, nothing left uncounted."""
    spread_over_cores(landed)
    landed = landed.cache()
    events = usable(landed).cache()
    rejected = malformed(landed)
    counts = {"read": landed.count(), "malformed": rejected.count(), "usable": events.count()}
    counts["duplicates_or_without_consent"] = counts["read"] - counts["malformed"] - counts["usable"]
    tables = {
        "interactions": interactions(events, labels),
        "impressions": impressions(events, labels),
        "items": items,
        "quarantine": rejected,
    }
    for name, table in tables.items():
        folder = f"{output.rstrip('/')}/{name}"
        table.write.mode("overwrite").parquet(folder)
        counts[name] = landed.sparkSession.read.schema(table.schema).parquet(folder).count()
    return counts


def spread_over_cores(landed: DataFrame) -> None:
    """Shuffle into as many parts as cores and input need: Spark's own 200 cost a small input a minute."""
    cores = landed.sparkSession.sparkContext.defaultParallelism
    parts = max(2 * cores, 4 * landed.rdd.getNumPartitions())
    landed.sparkSession.conf.set("spark.sql.shuffle.partitions", str(parts))


def _is_event() -> F.Column:
    whole = F.col(MALFORMED).isNull() & F.col("event_id").isNotNull() & F.col("event_type").isNotNull()
    has_visitor = F.col("user_id").isNotNull() | F.col("session_id").isNotNull()
    return whole & F.col("sent_at").isNotNull() & has_visitor


def _label(labels: Mapping[str, float]) -> F.Column:
    label = F.lit(0.0)
    for name, worth in labels.items():
        label = F.when(F.col("event_type") == name, F.lit(worth)).otherwise(label)
    return label


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--landing", required=True, help="folder of landed events (*.jsonl.gz, any depth)")
    parser.add_argument("--catalogue", required=True, help="folder of the items' Parquet files")
    parser.add_argument("--app-config", required=True, help="the app's app.toml")
    parser.add_argument("--output", required=True, help="the training data directory to write")
    known, _ = parser.parse_known_args(argv)  # Glue adds arguments of its own: --JOB_NAME, --TempDir
    return known


def main(argv: Sequence[str]) -> None:
    arguments = _arguments(argv)
    spark = SparkSession.builder.appName("build_training_set").getOrCreate()
    spark.conf.set("spark.sql.session.timeZone", "UTC")
    counts = build(
        read_landed(spark, arguments.landing),
        read_catalogue(spark, arguments.catalogue),
        read_labels(spark, arguments.app_config),
        arguments.output,
    )
    print(json.dumps(counts))  # noqa: T201  # the job's log is where its counts are looked for
    if counts["interactions"] == 0:
        raise SystemExit(
            f"no interactions among {counts['read']} events under {arguments.landing}; check that the folder "
            "holds landed events and that app.toml gives some of their types a label above 0"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
