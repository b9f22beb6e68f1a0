"""Items that came or changed since the catalogue was published: into the lake, and from there into training.

A line of `landing/items/` is an item as the items table stored it: its version, and what was sent of it. The
lake keeps each item's newest version, a deleted one too, so that what comes again or late changes nothing.
"""

from __future__ import annotations

import re
from datetime import date, timedelta

from pyspark.sql import DataFrame, SparkSession, Window
from pyspark.sql import functions as F  # the name that Spark's own documentation uses
from pyspark.sql import types as T

from glue_jobs.lake import ITEMS, ensure_items, items_table
from glue_jobs.landed import landing_files
from narrows.settings import App, Catalogue

READ_THROUGH = "narrows.read-through"
"""A property of the table: the last day whose files were read."""
DAY = re.compile(r"/dt=(\d{4}-\d{2}-\d{2})/")
AGAIN_DAYS = 1
"""The last day read is read again, and the one before: a batch that was late may lie there."""


def keep_items(spark: SparkSession, landing: str) -> dict[str, int]:
    """Bring the landed items into the lake; how many lines there were, how many items changed."""
    files = landing_files(spark, landing)
    if files:
        ensure_items(spark)
        files = _unread(files, _read_through(spark))
    if not files:
        return {"item_lines": 0, "items_changed": 0}
    lines = spark.read.schema(ITEMS).json(files).where("item_id IS NOT NULL AND version IS NOT NULL").cache()
    latest = Window.partitionBy("item_id").orderBy(F.col("version").desc())
    newest = lines.withColumn("_place", F.row_number().over(latest)).where("_place = 1").drop("_place")
    known = spark.table(items_table(spark)).select("item_id", F.col("version").alias("_known"))
    changed = newest.join(known, "item_id", "left").where("_known IS NULL OR version > _known").drop("_known")
    changed = changed.select(*ITEMS.names).cache()
    counts = {"item_lines": lines.count(), "items_changed": changed.count()}
    if counts["items_changed"]:
        changed.createOrReplaceTempView("narrows_changed_items")
        spark.sql(
            f"MERGE INTO {items_table(spark)} AS old USING narrows_changed_items AS new "
            "ON old.item_id = new.item_id WHEN MATCHED THEN UPDATE SET * WHEN NOT MATCHED THEN INSERT *"
        )
    last = max([one for one in map(_day, files) if one], default="")
    if last:
        spark.sql(f"ALTER TABLE {items_table(spark)} SET TBLPROPERTIES ('{READ_THROUGH}' = '{last}')")
    for cached in (changed, lines):
        cached.unpersist()
    return counts


def read_catalogue(spark: SparkSession, path: str, app: App) -> DataFrame:
    """The items that there are: the published catalogue, with what changed since; the deleted ones are gone.

    What changed has the published columns, as their types are; where nothing was published, the app's own.
    """
    published = _published(spark, path, app.catalogue)
    if not spark.catalog.tableExists(items_table(spark)):
        return published
    changes = spark.table(items_table(spark))
    name = app.catalogue.id
    kept = published.withColumn(name, F.col(name).cast("string"))
    ids = changes.select(F.col("item_id").alias(name))
    before = kept.select(F.col(name).alias("item_id"), *_time_before(app.catalogue, published.columns))
    there = changes.where("NOT deleted").join(before, "item_id", "left")
    said = F.from_json("content", _sent(app.catalogue)).alias("said")
    rows = there.select("item_id", "first_at", "before", said)
    columns = [_column(field, app.catalogue).alias(field.name) for field in published.schema]
    return kept.join(ids, name, "left_anti").unionByName(rows.select(*columns))


def _published(spark: SparkSession, path: str, catalogue: Catalogue) -> DataFrame:
    folder = spark._jvm.org.apache.hadoop.fs.Path(path)  # Spark's Python has no look for files
    if folder.getFileSystem(spark._jsc.hadoopConfiguration()).exists(folder):
        return spark.read.parquet(path)
    schema = T.StructType([T.StructField(catalogue.id, T.StringType()), *_sent(catalogue).fields])
    return spark.createDataFrame([], schema)


def _sent(catalogue: Catalogue) -> T.StructType:
    """An item's columns as `narrows.item_upsert` lets them come."""
    words, number = T.ArrayType(T.StringType()), T.DoubleType()
    parts: dict[str, T.DataType] = {
        **dict.fromkeys(catalogue.attributes, number),
        **dict.fromkeys(catalogue.text, T.StringType()),
        catalogue.categories: words,
        catalogue.brand: T.StringType(),
        catalogue.seller: T.StringType(),
        catalogue.price: number,
        catalogue.time: number,
        catalogue.regions: words,
        catalogue.stock: number,
    }
    return T.StructType([T.StructField(name, kind) for name, kind in parts.items() if name])


def _time_before(catalogue: Catalogue, columns: list[str]) -> list[F.Column]:
    """When each published item came to be, as `before`, for a change of which nothing else tells."""
    there = catalogue.time in columns
    return [(F.col(catalogue.time) if there else F.lit(None)).alias("before")]


def _column(field: T.StructField, catalogue: Catalogue) -> F.Column:
    """A published column of the changed items; null where nothing of it can be sent."""
    if field.name == catalogue.id:
        return F.col("item_id")
    kinds = {one.name: one.dataType for one in _sent(catalogue)}
    if field.name not in kinds:
        return F.lit(None).cast(field.dataType)
    said = _as(F.col("said").getField(field.name), kinds[field.name], field.dataType)
    if field.name == catalogue.time:
        return F.coalesce(said, _as(F.col("first_at"), T.DoubleType(), field.dataType), F.col("before"))
    return said


def _as(value: F.Column, kind: T.DataType, wanted: T.DataType) -> F.Column:
    """A sent value in a published column's type; words stand between bars where the column is a text."""
    if isinstance(kind, T.ArrayType) and isinstance(wanted, T.StringType):
        return F.array_join(value, "|")
    if isinstance(kind, T.DoubleType) and isinstance(wanted, T.TimestampType | T.DateType):
        return F.timestamp_seconds(value).cast(wanted)
    return value.cast(wanted)


def _unread(files: list[str], through: str) -> list[str]:
    """The files of the days from a little before `through` on, and those whose folder says no day."""
    if not through:
        return files
    since = (date.fromisoformat(through) - timedelta(days=AGAIN_DAYS)).isoformat()
    return [file for file in files if _day(file) >= since or not _day(file)]


def _day(file: str) -> str:
    found = DAY.search(file)
    return found[1] if found else ""


def _read_through(spark: SparkSession) -> str:
    rows = spark.sql(f"SHOW TBLPROPERTIES {items_table(spark)}").collect()
    return str({row["key"]: row["value"] for row in rows}.get(READ_THROUGH, ""))
