"""What was known of a visitor or an item at a moment: served where there is a record of it, else recomputed.

A request is a visitor at a moment. Its values come from the events at or before that moment and from no
other: one aggregate grouped by (key, as_of) gives them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F  # the name that Spark's own documentation uses
from pyspark.sql import types as T
from pyspark.sql.window import Window

from narrows.features.kinds import LastN, PerValue
from narrows.features.registry import MISSING_SUFFIX, VISITOR_SCOPES, FeatureSet
from narrows.features.sql import extracted_sql, folded_sql, is_one_aggregate, keyed_sql

JUST_BEFORE_S = 0.001
"""A label's own event must not be among what was known: a request is asked a millisecond earlier."""
SETTINGS: Mapping[str, str] = {
    # 128 by default: a task with more keys than that would sort its rows instead of hashing them
    "spark.sql.objectHashAggregate.sortBased.fallbackThreshold": "50000",
    # rows are kept for a minute; finding out how each column compresses takes longer than reading them
    "spark.sql.inMemoryColumnarStorage.compressed": "false",
}
VALUES = T.MapType(T.StringType(), T.DoubleType())
DECISIONS = T.StructType(
    [
        T.StructField("recommendation_id", T.StringType()),
        T.StructField("at", T.DoubleType()),
        T.StructField("surface", T.StringType()),
        T.StructField("user_key", T.StringType()),
        T.StructField("session_key", T.StringType()),
        T.StructField("snapshot_version", T.StringType()),
        T.StructField("model_version", T.StringType()),
        T.StructField("feature_fingerprint", T.StringType()),
        T.StructField("visitor_features", VALUES),
        T.StructField("request_features", VALUES),
        T.StructField(
            "slate",
            T.ArrayType(
                T.StructType(
                    [
                        T.StructField("item_id", T.StringType()),
                        T.StructField("row", T.IntegerType()),
                        T.StructField("score", T.DoubleType()),
                        T.StructField("source", T.StringType()),
                        T.StructField("propensity", T.DoubleType()),
                    ]
                )
            ),
        ),
    ]
)


def read_decisions(spark: SparkSession, landing: str) -> DataFrame:
    """The decision records under a folder of landed lines, one for each recommendation: the first."""
    lines = (
        spark.read.schema(DECISIONS)
        .option("recursiveFileLookup", "true")
        .option("pathGlobFilter", "*.jsonl.gz")
        .json(landing)
        .where(F.col("recommendation_id").isNotNull() & F.col("at").isNotNull())
    )
    first = F.min_by(F.struct(*DECISIONS.names), "at").alias("record")
    return lines.groupBy("recommendation_id").agg(first).select("record.*")


def keyed(events: DataFrame, scope: str) -> DataFrame:
    """The events that count under the key whose state they fold into, and `since` when they are known to it.

    What a session did before its visitor logged in belongs to the session, and from then on to the user as
    well: whoever asks for the session asks for a moment before.
    """
    events.createOrReplaceTempView("narrows_lake")
    own = events.sparkSession.sql(keyed_sql(scope, "narrows_lake")).withColumn("since", F.col("time"))
    return own.unionByName(_moved(events, own)) if scope == "visitor" else own


def point_in_time(events: DataFrame, requests: DataFrame, features: FeatureSet, scope: str) -> DataFrame:
    """key, as_of and one column a feature of the scope, for those of the (key, as_of) that have any event."""
    asked = requests.select("key", "as_of").distinct()
    rows = _extracted(keyed(events, scope), features, scope)
    known = rows.join(asked, "key").where(F.col("since") <= F.col("as_of"))
    return _folded(_together(known.drop("since"), features, scope), features, scope)


def _extracted(rows: DataFrame, features: FeatureSet, scope: str) -> DataFrame:
    for name, value in SETTINGS.items():
        rows.sparkSession.conf.set(name, value)
    rows.createOrReplaceTempView("narrows_keyed")
    return rows.sparkSession.sql(extracted_sql(features, scope, "narrows_keyed", "since"))


def _together(rows: DataFrame, features: FeatureSet, scope: str) -> DataFrame:
    """The rows side by side by key and kept, where more than one aggregate reads them."""
    if is_one_aggregate(features, scope):
        return rows
    parts = int(rows.sparkSession.conf.get("spark.sql.shuffle.partitions") or 200)
    return rows.repartition(parts, "key").persist()


def _folded(rows: DataFrame, features: FeatureSet, scope: str) -> DataFrame:
    rows.createOrReplaceTempView("narrows_extracted_rows")
    return rows.sparkSession.sql(folded_sql(features, scope, "narrows_extracted_rows"))


def served_and_recomputed(
    events: DataFrame, labels: DataFrame, slates: DataFrame, decisions: DataFrame, features: FeatureSet
) -> DataFrame:
    """user_id, time, recommendation_id, served, visitor, request, context: what was known at each moment.

    `labels` and `slates` have visitor, session_id, time, recommendation_id and context. A label without a
    record is recomputed; a slate without one is left out, since nothing is learned from its moment alone.
    Values that were served by other declarations than today's are no values of these features.
    """
    joined = _with_records(labels, slates, _records(decisions, features)).cache()
    columns = (F.col("visitor").alias("user_id"), "time", "recommendation_id")
    served = joined.where("record IS NOT NULL").select(
        *columns,
        F.lit(True).alias("served"),
        F.col("record.visitor_values").alias("visitor_features"),
        F.col("record.request_values").alias("request"),
        "context",
    )
    unrecorded = joined.where("record IS NULL").select("visitor", "session_id", *columns[1:], "context")
    again = recomputed(events, unrecorded, features).select(
        *columns,
        F.lit(False).alias("served"),
        "visitor_features",
        F.create_map().cast(VALUES).alias("request"),
        "context",
    )
    return served.unionByName(again).withColumnRenamed("visitor_features", "visitor")


def _records(decisions: DataFrame, features: FeatureSet) -> DataFrame:
    """recommendation_id and record: what was served by today's declarations, and to whom."""
    known = [
        F.map_filter(name, lambda _, value: value.isNotNull()).alias(alias)
        for name, alias in (("visitor_features", "visitor_values"), ("request_features", "request_values"))
    ]
    current = decisions.where(F.col("feature_fingerprint") == features.fingerprint())
    return current.select("recommendation_id", F.struct("user_key", "session_key", *known).alias("record"))


def _with_records(labels: DataFrame, slates: DataFrame, records: DataFrame) -> DataFrame:
    """Each (visitor, time) of a label, and of a slate as first shown that has a record; records go first."""
    theirs = F.col("visitor").isin(F.col("record.user_key"), F.col("record.session_key"))
    first = Window.partitionBy("recommendation_id", "visitor").orderBy("time")
    shown = slates.join(records, "recommendation_id").where(theirs)
    shown = shown.withColumn("place", F.row_number().over(first)).where("place = 1").drop("place")
    chosen = labels.join(records, "recommendation_id", "left").withColumn(
        "record", F.when(theirs, F.col("record"))
    )
    row = F.struct("session_id", "recommendation_id", "context", "record")
    order = F.struct(F.col("record").isNull(), F.col("recommendation_id").isNull())
    one = F.min_by(row, order).alias("one")
    both = chosen.unionByName(shown).groupBy("visitor", "time").agg(one)
    return both.select("visitor", "time", "one.*")


def recomputed(events: DataFrame, requests: DataFrame, features: FeatureSet) -> DataFrame:
    """The requests with `visitor_features`: every value as of just before, with defaults and flags."""
    asked = requests.withColumn("as_of", F.col("time") - JUST_BEFORE_S)
    keys = {
        "visitor": F.col("visitor"),
        "user": F.when(F.col("visitor").startswith("u#"), F.col("visitor")),
        "session": F.concat(F.lit("s#"), F.col("session_id")),
    }
    found = asked
    maps: list[Column] = []
    for scope in sorted(VISITOR_SCOPES):
        chosen = features.scoped(scope)
        if not chosen.declarations:
            continue
        under = asked.select(keys[scope].alias("key"), "as_of").where("key IS NOT NULL")
        values = point_in_time(events, under, features, scope)
        packed = values.select(
            F.col("key").alias(f"{scope}_key"), "as_of", values_map(chosen).alias(f"{scope}_values")
        )
        found = found.withColumn(f"{scope}_key", keys[scope]).join(packed, [f"{scope}_key", "as_of"], "left")
        maps.append(F.coalesce(F.col(f"{scope}_values"), _nothing_known(chosen)))
    empty = F.create_map().cast(VALUES)
    return found.withColumn("visitor_features", F.map_concat(*maps) if maps else empty)


def values_map(features: FeatureSet) -> Column:
    """The columns of the features as one map, as `FeatureSet.read` gives them: defaults, flags, pairs."""
    entries: list[Column] = []
    single: list[Column] = []
    for one in features.features:
        if isinstance(one.kind, PerValue):
            pairs = F.map_entries(F.coalesce(F.col(one.name), F.create_map().cast(VALUES)))
            entries.append(F.transform(pairs, _named_in(one.name)))
        elif not isinstance(one.kind, LastN):
            value = F.col(one.name).cast("double")
            single.append(_entry(one.name, F.coalesce(value, F.lit(float(one.declaration.default)))))
            single.append(_entry(one.name + MISSING_SUFFIX, value.isNull().cast("double")))
    return F.map_from_entries(F.concat(F.array(*single), *entries)).cast(VALUES)


def _nothing_known(features: FeatureSet) -> Column:
    known = features.read(features.zero(), 0.0)
    return F.create_map(*(F.lit(one) for entry in known.items() for one in entry)).cast(VALUES)


def _entry(name: str, value: Column) -> Column:
    return F.struct(F.lit(name).alias("key"), value.alias("value"))


def _named_in(name: str) -> Callable[[Column], Column]:
    def rename(entry: Column) -> Column:
        return F.struct(
            F.concat(F.lit(f"{name}["), entry["key"], F.lit("]")).alias("key"), entry["value"].alias("value")
        )

    return rename


def _moved(events: DataFrame, keyed: DataFrame) -> DataFrame:
    """What sessions did without an account, under the user that the session first logged in as."""
    moved = keyed.where("user_id IS NULL").join(_logins(events), "session_id")
    user = F.concat(F.lit("u#"), F.col("login.user_id"))
    since = F.greatest("time", "login.time")
    return moved.withColumn("key", user).withColumn("since", since).select(*keyed.columns)


def _logins(events: DataFrame) -> DataFrame:
    """session_id and login: the first time and user; few sessions have two, so one is found by hashing."""
    both = F.col("user_id").isNotNull() & F.col("session_id").isNotNull()
    each = events.where(both).groupBy("session_id", "user_id").agg(F.min("time").alias("time"))
    return each.groupBy("session_id").agg(F.min(F.struct("time", "user_id")).alias("login"))
