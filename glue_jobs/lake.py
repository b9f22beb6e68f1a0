"""The lake: Iceberg tables of an app's events, of its items, and of the landed lines that are no events.

The catalogue is a matter of configuration: a folder (`--lake PATH`) where Spark works on files, the Glue
catalogue (with `--database NAME`) in AWS. The jobs see `events`, `items` and `quarantine`
in either.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # the name that Spark's own documentation uses
from pyspark.sql import types as T

CATALOG = "lake"
NAMESPACE = "narrows"
"""What stands in a database's place where the catalogue is a folder."""
_NAMESPACE_SETTING = f"spark.sql.catalog.{CATALOG}.default-namespace"
_TEXTS = T.MapType(T.StringType(), T.StringType())
_NUMBERS = T.MapType(T.StringType(), T.DoubleType())

EVENTS = T.StructType(
    [
        T.StructField("event_id", T.StringType()),
        T.StructField("event_type", T.StringType()),
        T.StructField("time", T.DoubleType()),  # when it happened, epoch seconds
        T.StructField("received_at", T.DoubleType()),
        T.StructField("visitor", T.StringType()),  # the key of the state that it folds into
        T.StructField("user_id", T.StringType()),
        T.StructField("session_id", T.StringType()),
        T.StructField("item_id", T.StringType()),
        T.StructField("value", T.DoubleType()),
        T.StructField("recommendation_id", T.StringType()),
        T.StructField("position", T.IntegerType()),
        T.StructField("surface", T.StringType()),
        T.StructField("impression", T.ArrayType(T.StringType())),
        T.StructField("query", T.StringType()),
        T.StructField("texts", _TEXTS),  # the properties that are text
        T.StructField("numbers", _NUMBERS),  # the properties that are numbers or true and false
        T.StructField("schema_version", T.IntegerType()),
        T.StructField("consent", T.BooleanType()),
        T.StructField("marks", T.ArrayType(T.StringType())),  # why it trains nothing; empty for most
        T.StructField("shard", T.StringType()),
        T.StructField("sequence", T.StringType()),
        T.StructField("event_date", T.DateType()),  # of `time`, UTC; the table is partitioned by it
    ]
)
ITEMS = T.StructType(
    [
        T.StructField("item_id", T.StringType()),
        T.StructField("version", T.LongType()),  # of the items table; rises with each change of the item
        T.StructField("deleted", T.BooleanType()),
        T.StructField("first_at", T.DoubleType()),  # since when there is the item, epoch seconds
        T.StructField("content", T.StringType()),  # what was sent of it, as JSON, under the app's names
    ]
)
QUARANTINE = T.StructType(
    [
        T.StructField("file", T.StringType()),
        T.StructField("reason", T.StringType()),
        T.StructField("line", T.StringType()),
        T.StructField("times", T.LongType()),  # how often the file has it
    ]
)
PROPERTIES: Mapping[str, str] = {
    "format-version": "2",
    "write.distribution-mode": "hash",  # a day is written by one task: few files
    "write.merge.distribution-mode": "hash",
    "write.metadata.delete-after-commit.enabled": "true",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare where the lake is, in the same words for every job."""
    parser.add_argument("--lake", required=True, help="the lake's folder")
    parser.add_argument("--database", default="", help="its database in the Glue catalogue; none: the folder")


def open_lake(
    job: str, lake: str, database: str = "", more: Mapping[str, str] = MappingProxyType({})
) -> SparkSession:
    """A session that sees the lake: in this folder, or in this database of the Glue catalogue.

    `more` are settings of the job itself; a Spark that is up already keeps its own.
    """
    builder = SparkSession.builder.appName(job)
    for name, value in {**settings(lake, database), **more}.items():
        builder = builder.config(name, value)
    return builder.getOrCreate()


def settings(lake: str, database: str = "") -> dict[str, str]:
    """What Spark must be told before its session starts."""
    catalog = f"spark.sql.catalog.{CATALOG}"
    kind = (
        {
            f"{catalog}.catalog-impl": "org.apache.iceberg.aws.glue.GlueCatalog",
            f"{catalog}.io-impl": "org.apache.iceberg.aws.s3.S3FileIO",
        }
        if database
        else {f"{catalog}.type": "hadoop"}
    )
    return {
        "spark.sql.extensions": "org.apache.iceberg.spark.extensions.IcebergSparkSessionExtensions",
        "spark.sql.session.timeZone": "UTC",
        catalog: "org.apache.iceberg.spark.SparkCatalog",
        f"{catalog}.warehouse": lake.rstrip("/"),
        _NAMESPACE_SETTING: database or NAMESPACE,
        **kind,
    }


def events_table(spark: SparkSession) -> str:
    """The events' table in SQL: `lake.<database>.events`."""
    return f"{CATALOG}.`{spark.conf.get(_NAMESPACE_SETTING)}`.events"


def items_table(spark: SparkSession) -> str:
    """The table of the items that came or changed after the catalogue was published."""
    return f"{CATALOG}.`{spark.conf.get(_NAMESPACE_SETTING)}`.items"


def quarantine_table(spark: SparkSession) -> str:
    """The table of the landed lines that are no events."""
    return f"{CATALOG}.`{spark.conf.get(_NAMESPACE_SETTING)}`.quarantine"


def read_events(spark: SparkSession, as_of: datetime | int | None = None) -> DataFrame:
    """The events with the columns of `EVENTS`: as they are, as of a moment, or in one snapshot by its number.

    What an older snapshot does not have yet is null. A moment before the first snapshot is an error.
    """
    found = spark.sql(f"SELECT * FROM {events_table(spark)} {version_sql(as_of)}")  # noqa: S608  # names and numbers
    return found.select(
        *(
            F.col(field.name)
            if field.name in found.columns
            else F.lit(None).cast(field.dataType).alias(field.name)
            for field in EVENTS
        )
    )


def ensure_tables(spark: SparkSession) -> None:
    """Create the tables that are not there, and give the events' table the columns that it lacks."""
    spark.sql(f"CREATE NAMESPACE IF NOT EXISTS {CATALOG}.`{spark.conf.get(_NAMESPACE_SETTING)}`")
    _create(spark, events_table(spark), EVENTS, "PARTITIONED BY (event_date)")
    _create(spark, quarantine_table(spark), QUARANTINE)
    there = set(spark.table(events_table(spark)).columns)
    added = [field for field in EVENTS if field.name not in there]
    if added:
        columns = ", ".join(f"`{field.name}` {field.dataType.simpleString()}" for field in added)
        spark.sql(f"ALTER TABLE {events_table(spark)} ADD COLUMNS ({columns})")


def ensure_items(spark: SparkSession) -> None:
    """Create the table of items, which an app without changes never needs."""
    spark.sql(f"CREATE NAMESPACE IF NOT EXISTS {CATALOG}.`{spark.conf.get(_NAMESPACE_SETTING)}`")
    _create(spark, items_table(spark), ITEMS)


def _create(spark: SparkSession, table: str, schema: T.StructType, partitioned: str = "") -> None:
    columns = ", ".join(f"`{field.name}` {field.dataType.simpleString()}" for field in schema)
    properties = ", ".join(f"'{name}' = '{value}'" for name, value in PROPERTIES.items())
    spark.sql(
        f"CREATE TABLE IF NOT EXISTS {table} ({columns}) USING iceberg {partitioned} "
        f"TBLPROPERTIES ({properties})"
    )


def version_sql(as_of: datetime | int | None) -> str:
    """What follows a table to read it as of a moment or in one snapshot."""
    if as_of is None:
        return ""
    if isinstance(as_of, int):
        return f"VERSION AS OF {as_of}"
    if as_of.tzinfo is None:
        raise ValueError(f"as_of {as_of} has no time zone; give datetime(..., tzinfo=UTC)")
    return f"TIMESTAMP AS OF '{as_of.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}'"
