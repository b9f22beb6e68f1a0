"""What came of what was shown: labels with their windows, and items that were passed over.

An event type's `matures_after` is how long after the impression its outcome may still come. Until the longest
of these windows has passed, a row is unripe: it says so, and weighs the share of the window that has passed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F  # the name that Spark's own documentation uses

from narrows.settings import EventType

NEGATIVES = 4


def interactions(events: DataFrame, types: Mapping[str, EventType], as_of: float) -> DataFrame:
    """What visitors did with items, oldest first for each visitor; `weight` is what the type is worth.

    `segment` is where they were: the context's location, by which requests name it as well.
    """
    ripe_at = F.col("time") + _of_type(types, lambda one: one.matures_after_s)
    return (
        events.withColumn("weight", label(types))
        .where((F.col("weight") > 0) & F.col("item_id").isNotNull())
        .select(
            F.col("visitor").alias("user_id"),
            "item_id",
            "time",
            "event_type",
            "value",
            "weight",
            "recommendation_id",
            (ripe_at <= as_of).alias("mature"),
            F.element_at("texts", "location").alias("segment"),
        )
        .repartition("user_id")
        .sortWithinPartitions("user_id", "time")
    )


def slates(events: DataFrame) -> DataFrame:
    """The impressions of a recommendation that showed anything."""
    there = F.col("recommendation_id").isNotNull() & (F.size("impression") > 0)
    return events.where((F.col("event_type") == "impression") & there)


def shown(events: DataFrame) -> DataFrame:
    """Every item of every slate, once for each visitor and recommendation: as it was shown first."""
    lines = slates(events).select(
        "recommendation_id",
        "visitor",
        "session_id",
        "surface",
        F.col("time").alias("shown_at"),
        F.posexplode("impression").alias("place", "item_id"),
    )
    first = F.min_by(F.struct("session_id", "surface", "shown_at", "place"), F.struct("shown_at", "place"))
    return (
        lines.groupBy("recommendation_id", "visitor", "item_id")
        .agg(first.alias("first"))
        .select("recommendation_id", "visitor", "item_id", "first.*")
        .withColumn("position", F.col("place") + 1)
        .drop("place")
    )


def impressions(events: DataFrame, types: Mapping[str, EventType], as_of: float) -> DataFrame:
    """Each shown item with the best that came of it inside the windows, 0 for nothing; `outcome` is its type.

    An outcome belongs to the one who saw the slate, or to the session that did: people log in between.
    """
    lines, came = shown(events).alias("shown"), _outcomes(events, types).alias("came")
    same = F.col("came.visitor") == F.col("shown.visitor")
    same |= F.col("came.session_id") == F.col("shown.session_id")
    within = F.col("came.time") >= F.col("shown.shown_at")
    within &= F.col("came.time") <= F.col("shown.shown_at") + F.col("came.window_s")
    joined = lines.join(
        came,
        (F.col("shown.recommendation_id") == F.col("came.recommendation_id"))
        & (F.col("shown.item_id") == F.col("came.item_id"))
        & same
        & within,
        "left",
    )
    keys = ("recommendation_id", "visitor", "item_id", "position", "surface", "shown_at")
    best = F.max(F.struct("came.label", "came.event_type")).alias("best")
    found = joined.groupBy(*(F.col(f"shown.{name}") for name in keys)).agg(best)
    return _ripened(
        found.select(
            "recommendation_id",
            F.col("visitor").alias("user_id"),
            *keys[2:],
            F.coalesce("best.label", F.lit(0.0)).alias("label"),
            F.col("best.event_type").alias("outcome"),
        ),
        types,
        as_of,
    )


def with_served(table: DataFrame, decisions: DataFrame) -> DataFrame:
    """The shown items with what the decision record holds of them; `served` is false where there is none."""
    places = decisions.select(
        "recommendation_id", "snapshot_version", "model_version", F.explode("slate").alias("shown")
    ).select(
        "recommendation_id",
        F.col("shown.item_id").alias("item_id"),
        "snapshot_version",
        "model_version",
        F.col("shown.row").alias("row"),
        F.col("shown.score").alias("score"),
        F.col("shown.source").alias("source"),
        F.col("shown.propensity").alias("propensity"),
    )
    joined = table.join(places, ["recommendation_id", "item_id"], "left")
    return joined.withColumn("served", F.col("snapshot_version").isNotNull())


def negatives(positives: DataFrame, impressed: DataFrame, acted: DataFrame) -> DataFrame:
    """For each (user_id, time, item_id) of `positives` at most `NEGATIVES` items, shown and no choice.

    First what stood in the same slate, then what the visitor was shown before, both without an outcome.
    Nothing that the visitor ever acted on. `weight` is the impression's: less while its window is open.
    """
    known = positives.join(_passed_over(impressed, acted), "user_id")
    before = "filter(nothing, one -> one.first_at <= time)"
    offered = F.expr(f"slice(sort_array(transform({before}, {_RANKED})), 1, {NEGATIVES})")
    names = F.element_at(F.array(*map(F.lit, ("slate", "shown_before"))), F.col("one.rank"))
    return known.select("user_id", "time", "item_id", F.explode(offered).alias("one")).select(
        "user_id", "time", "item_id", "one.negative_id", names.alias("drawn_from"), "one.weight"
    )


_RANKED = (
    "one -> struct(if(array_contains(one.slates, recommendation_id), 1, 2) AS rank, "
    "xxhash64(user_id, time, item_id, one.negative_id) AS tie, one.negative_id, one.weight)"
)


def _passed_over(impressed: DataFrame, acted: DataFrame) -> DataFrame:
    """For each visitor the items that were shown and never acted on, with their slates and the first time."""
    nothing = impressed.where("label = 0").join(
        acted.select("user_id", "item_id").distinct(), ["user_id", "item_id"], "left_anti"
    )
    each = nothing.groupBy("user_id", F.col("item_id").alias("negative_id")).agg(
        F.min("shown_at").alias("first_at"),
        F.collect_set("recommendation_id").alias("slates"),
        F.max("weight").alias("weight"),
    )
    one = F.struct("negative_id", "first_at", "slates", "weight")
    return each.groupBy("user_id").agg(F.collect_list(one).alias("nothing"))


def _outcomes(events: DataFrame, types: Mapping[str, EventType]) -> DataFrame:
    window = _of_type(types, lambda one: one.matures_after_s or float("inf"))
    return (
        events.withColumn("label", label(types))
        .where((F.col("label") > 0) & F.col("recommendation_id").isNotNull() & F.col("item_id").isNotNull())
        .select(
            "recommendation_id",
            "visitor",
            "session_id",
            "item_id",
            "time",
            "event_type",
            "label",
            window.alias("window_s"),
        )
    )


def _ripened(table: DataFrame, types: Mapping[str, EventType], as_of: float) -> DataFrame:
    labelled = [one for one in types.values() if one.label > 0]
    longest = max((one.matures_after_s for one in labelled), default=0.0)
    highest = max((one.label for one in labelled), default=0.0)
    mature = (F.col("shown_at") + longest <= as_of) | (F.col("label") >= highest)
    passed = F.lit(as_of) - F.col("shown_at")
    share = F.greatest(F.lit(0.0), F.least(F.lit(1.0), passed / F.lit(longest or 1.0)))
    return table.withColumn("mature", mature).withColumn("weight", F.when(mature, 1.0).otherwise(share))


def label(types: Mapping[str, EventType]) -> Column:
    """What the event's type is worth in training."""
    return _of_type(types, lambda one: one.label)


def _of_type(types: Mapping[str, EventType], number: Callable[[EventType], float]) -> Column:
    """A number of the event's type, 0 for a type that the app no longer has."""
    found = F.lit(0.0)
    for name, one in types.items():
        found = F.when(F.col("event_type") == name, F.lit(number(one))).otherwise(found)
    return found
