"""The lake's events and the decision records -> the training data directory.

    build_training_set.py --lake PATH [--database NAME] --decisions PATH --catalogue PATH --app-config PATH
                          --output PATH [--as-of SECONDS]

Every PATH is a folder that Spark can read: a plain one here, s3:// in Glue. What is written:

- `interactions/`: user_id, item_id, time, event_type, value, weight, recommendation_id, mature. One row for
  each event of a type that the app gives a label; `weight` is that label. `user_id` is the visitor's key:
  "u#..." or, where the visitor is anonymous, "s#...".
- `impressions/`: recommendation_id, user_id, item_id, position (from 1), surface, shown_at, label, outcome,
  mature, weight, and what the decision record holds of the item. One row for each item shown; `label` is the
  best that came of it inside its window, 0 for nothing. `served` is false where there is no record.
- `negatives/`: user_id, time, item_id, negative_id, drawn_from, weight: items that were shown and no choice
  at a label.
- `visitor_features/`: user_id, time, recommendation_id, served, visitor, request, context: what was known
  at each visitor's newest labels, and when a slate was shown that has a decision record. `served` values are
  those of the record; the others are recomputed from the events before that moment.
- `item_features/`: item_id, as_of and one column a feature, as of a few moments and of now.
- `items/`: the catalogue as published, with the items that came or changed since in their newest version,
  and without those that were deleted.

An event that is marked (a program's, a duplicate) or came without consent trains nothing, and is counted.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # the name that Spark's own documentation uses
from pyspark.sql.window import Window

from glue_jobs.app_files import read_app
from glue_jobs.changed_items import read_catalogue
from glue_jobs.lake import add_arguments, open_lake, read_events
from glue_jobs.outcomes import impressions, interactions, label, negatives, slates, with_served
from glue_jobs.point_in_time import (
    DECISIONS,
    JUST_BEFORE_S,
    point_in_time,
    read_decisions,
    served_and_recomputed,
)
from narrows.evaluation.leave_one_out import labels_to_hold
from narrows.features.registry import FeatureSet
from narrows.settings import App

ITEM_MOMENTS = 4
AT_ONCE = 3


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a training set is built from; `as_of` is the moment that it stands at, in epoch seconds."""

    events: DataFrame
    decisions: DataFrame
    items: DataFrame
    app: App
    as_of: float


def usable(events: DataFrame, as_of: float) -> DataFrame:
    """The events up to the moment that their visitors consented to and that no mark speaks against."""
    return events.withColumn("why_not", _why_not(as_of)).where("why_not IS NULL").drop("why_not")


def left_out(events: DataFrame, as_of: float) -> dict[str, int]:
    """How many events there are, and how many of them are left out for each reason."""
    reasons = events.groupBy(_why_not(as_of).alias("reason")).count().collect()
    found = {row["reason"]: row["count"] for row in reasons}
    counts = {"read": sum(found.values()), "usable": found.pop(None, 0)}
    return {**counts, **dict.fromkeys(("later", "marked", "without_consent"), 0), **found}


def tables(inputs: Inputs) -> dict[str, DataFrame]:
    """Every table of the training data directory."""
    events = usable(inputs.events, inputs.as_of).cache()
    features = FeatureSet(inputs.app.features)
    types = inputs.app.events
    done = interactions(events, types, inputs.as_of)
    seen = impressions(events, types, inputs.as_of).cache()
    labels = newest_labels(events, inputs.app, labels_read(done)).cache()
    moments = _moments(labels), _moments(slates(events))
    positives = labels.select(F.col("visitor").alias("user_id"), "time", "item_id", "recommendation_id")
    return {
        "interactions": done,
        "impressions": with_served(seen, inputs.decisions),
        "negatives": negatives(positives, seen, done),
        "visitor_features": served_and_recomputed(events, *moments, inputs.decisions, features),
        "item_features": item_features(events, inputs.items, labels, features, inputs.as_of),
        "items": inputs.items,
    }


def labels_read(done: DataFrame) -> int:
    """How many of a visitor's newest labels have to be known: a ranker learns from all but the last."""
    sizes = done.groupBy("user_id").count().groupBy("count").agg(F.count("*").alias("visitors")).collect()
    lengths, visitors = (np.array([row[name] for row in sizes], np.int64) for name in ("count", "visitors"))
    return 1 + labels_to_hold(lengths, visitors)


def newest_labels(events: DataFrame, app: App, newest: int) -> DataFrame:
    """The last events of each visitor that train."""
    from_end = Window.partitionBy("visitor").orderBy(F.col("time").desc())
    worth = events.where((label(app.events) > 0) & F.col("item_id").isNotNull())
    return worth.withColumn("place", F.row_number().over(from_end)).where(F.col("place") <= newest)


def item_features(
    events: DataFrame, items: DataFrame, labels: DataFrame, features: FeatureSet, as_of: float
) -> DataFrame:
    """The items' values as of now, and as of moments before labels: none of them may see itself counted."""
    shares = [place / ITEM_MOMENTS for place in range(ITEM_MOMENTS)]
    times = labels.approxQuantile("time", shares, 0.001)
    moments = sorted({*(moment - JUST_BEFORE_S for moment in times), as_of})
    asked = items.select(F.col("item_id").cast("string").alias("key")).where("key IS NOT NULL")
    asked = asked.withColumn("as_of", F.explode(F.array(*map(F.lit, moments))))
    names = features.scoped("item").names
    if not names:
        return asked.where("false").select(F.col("key").alias("item_id"), "as_of")
    values = point_in_time(events, asked, features, "item")
    return values.select(
        F.col("key").alias("item_id"), "as_of", *(F.col(name).cast("double") for name in names)
    )


def build(spark: SparkSession, inputs: Inputs, output: str) -> dict[str, int]:
    """Write the training data directory under `output`; returns how many of what, nothing left uncounted."""
    counts = left_out(inputs.events, inputs.as_of)
    counts["decisions"] = inputs.decisions.count()
    made = tables(inputs)

    def write(name: str) -> int:
        folder = f"{output.rstrip('/')}/{name}"
        made[name].write.mode("overwrite").parquet(folder)
        return spark.read.schema(made[name].schema).parquet(folder).count()

    with ThreadPoolExecutor(AT_ONCE) as pool:  # Spark itself spreads each; together they leave no core idle
        counts |= dict(zip(made, pool.map(write, made), strict=True))
    spark.catalog.clearCache()
    return counts


def decisions_of(spark: SparkSession, landing: str) -> DataFrame:
    """The decision records; none where nothing was recommended yet."""
    path = spark._jvm.org.apache.hadoop.fs.Path(landing)  # Spark's Python has no look for files
    files = path.getFileSystem(spark._jsc.hadoopConfiguration())
    if files.exists(path):
        return read_decisions(spark, landing)
    none = [F.lit(None).cast(field.dataType).alias(field.name) for field in DECISIONS]
    return spark.range(0).select(*none)


def _moments(events: DataFrame) -> DataFrame:
    return events.select(
        "visitor", "session_id", "time", "recommendation_id", F.col("texts").alias("context")
    )


def _why_not(as_of: float) -> F.Column:
    return (
        F.when(F.col("time") > as_of, "later")
        .when(F.size("marks") > 0, "marked")
        .when(~F.coalesce("consent", F.lit(True)), "without_consent")
    )


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--decisions", required=True, help="folder of landed decision records (*.jsonl.gz)")
    parser.add_argument("--catalogue", required=True, help="folder of the items' Parquet files")
    parser.add_argument("--app-config", required=True, help="the app's folder, or a .zip of it")
    parser.add_argument("--output", required=True, help="the training data directory to write")
    parser.add_argument("--as-of", type=float, default=time.time(), help="the moment, epoch seconds; now")
    known, _ = parser.parse_known_args(argv)  # Glue adds arguments of its own: --JOB_NAME, --TempDir
    return known


def main(argv: Sequence[str]) -> None:
    arguments = _arguments(argv)
    spark = open_lake("build_training_set", arguments.lake, arguments.database)
    app = read_app(spark, arguments.app_config)
    inputs = Inputs(
        read_events(spark),
        decisions_of(spark, arguments.decisions),
        read_catalogue(spark, arguments.catalogue, app),
        app,
        arguments.as_of,
    )
    counts = build(spark, inputs, arguments.output)
    print(json.dumps(counts))  # noqa: T201  # the job's log is where its counts are looked for
    if counts["interactions"] == 0:
        raise SystemExit(
            f"no interactions: {counts['usable']} of {counts['read']} events in {arguments.lake} are usable; "
            "check that compact_events has filled it and that app.toml gives their types labels above 0"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
