"""How far items' values, as the stream counted them or a night computed them, are from the exact ones."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F  # the name that Spark's own documentation uses

from narrows.features.kinds import LastN, PerValue
from narrows.features.registry import FeatureSet
from narrows.features.sql import keyed_sql, values_sql
from narrows.skew.items import Item, errors

MOST_ITEMS = 5_000


def item_statistics(
    events: DataFrame, features: FeatureSet, streamed: str | None, nightly: str | None
) -> dict[str, Any] | None:
    """The errors of the streamed values and of the nightly ones; None where neither was given."""
    spark = events.sparkSession
    given = {
        "streamed": _streamed(spark, streamed) if streamed else None,
        "nightly": _nightly(spark, nightly, features) if nightly else None,
    }
    found = {
        name: errors([(one, exact.get((one.item_id, one.at), {})) for one in items])
        for name, items in given.items()
        if items is not None
        for exact in [exact_values(events, items, features)]
    }
    return found or None


def exact_values(
    events: DataFrame, items: Sequence[Item], features: FeatureSet
) -> dict[tuple[str, float], dict[str, float | None]]:
    """Of each item and moment the values from the events at or before it, each event once."""
    spark = events.sparkSession
    events.createOrReplaceTempView("narrows_item_events")
    asked = spark.createDataFrame([(one.item_id, one.at) for one in items], "key string, as_of double")
    asked.createOrReplaceTempView("narrows_item_requests")
    keyed = f"({keyed_sql('item', 'narrows_item_events')})"
    rows = spark.sql(values_sql(features, "item", keyed, "narrows_item_requests")).collect()
    return {(row["key"], row["as_of"]): _numbers(row, features) for row in rows}


def _numbers(row: Row, features: FeatureSet) -> dict[str, float | None]:
    """The features that are one number; None is missing."""
    chosen = [one for one in features.item_features if not isinstance(one.kind, LastN | PerValue)]
    return {one.name: row[one.name] for one in chosen if one.name in row}


def _streamed(spark: SparkSession, path: str) -> list[Item]:
    lines = [json.loads(row["value"]) for row in spark.read.text(path).limit(MOST_ITEMS).collect()]
    return [Item(one["item_id"], one["at"], _known(one["values"])) for one in lines]


def _known(values: Mapping[str, float]) -> dict[str, float | None]:
    """Values without their flags; None where the flag says missing."""
    names = [name for name in values if f"{name}_missing" in values]
    return {name: None if values[f"{name}_missing"] else values[name] for name in names}


def _nightly(spark: SparkSession, path: str, features: FeatureSet) -> list[Item]:
    rows = spark.read.parquet(path).orderBy(F.md5("key")).limit(MOST_ITEMS).collect()
    return [Item(row["key"], row["as_of"], _numbers(row, features)) for row in rows]
