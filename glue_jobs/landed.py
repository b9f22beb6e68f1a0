"""The lines of the landing zone as rows of the lake: which are events, and why the others are not."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import unquote

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F  # the name that Spark's own documentation uses
from pyspark.sql import types as T

from glue_jobs.lake import EVENTS

UNREADABLE, FILE = "_unreadable", "_file"
LAST_MOMENT = 253_402_300_799.0  # of the year 9999: a date has no other end
DAY_S = 86_400.0
_DERIVED = ("time", "value", "visitor", "event_date")
LANDED = T.StructType(
    [
        *(field for field in EVENTS if field.name not in _DERIVED),
        T.StructField("sent_at", T.DoubleType()),
        T.StructField("event_value", T.DoubleType()),
        T.StructField(UNREADABLE, T.StringType()),
    ]
)


def landing_files(spark: SparkSession, folder: str) -> list[str]:
    """The landed files of a folder, of any depth; none where there is no such folder."""
    path = spark._jvm.org.apache.hadoop.fs.Path(folder)  # Spark's Python has no look for files
    if not path.getFileSystem(spark._jsc.hadoopConfiguration()).exists(path):
        return []
    found = (
        spark.read.option("recursiveFileLookup", "true").option("pathGlobFilter", "*.jsonl.gz").text(folder)
    )
    return [unquote(file) for file in found.inputFiles()]


def read_landed(spark: SparkSession, files: Sequence[str]) -> DataFrame:
    """Every line of these files; one that cannot be read as an event keeps its text in `_unreadable`."""
    lines = spark.read.schema(LANDED).option("columnNameOfCorruptRecord", UNREADABLE).json(list(files))
    return lines.select("*", F.substring_index("_metadata.file_path", "/", -2).alias(FILE))


def events(landed: DataFrame) -> DataFrame:
    """The lines that are events, with the columns of the lake; one event may be there more than once."""
    known = landed.where(_reason().isNull())
    by_user, by_session = F.concat(F.lit("u#"), "user_id"), F.concat(F.lit("s#"), "session_id")
    days = F.floor(F.col("sent_at") / DAY_S).cast("int")
    derived = {
        "time": F.col("sent_at"),
        "value": F.col("event_value"),
        "visitor": F.coalesce(by_user, by_session),
        "event_date": F.date_add(F.lit("1970-01-01").cast("date"), days),
        "received_at": F.coalesce("received_at", "sent_at"),
        "consent": F.coalesce("consent", F.lit(True)),
        "schema_version": F.coalesce("schema_version", F.lit(1)),
        "marks": F.coalesce("marks", F.array().cast("array<string>")),
    }
    return known.select(*(derived.get(field.name, F.col(field.name)).alias(field.name) for field in EVENTS))


def malformed(landed: DataFrame) -> DataFrame:
    """The other lines: file, reason, the line itself and how often the file has it."""
    fields = [F.col(field.name) for field in LANDED if field.name != UNREADABLE]
    line = F.coalesce(F.col(UNREADABLE), F.to_json(F.struct(*fields)))
    found = landed.select(F.col(FILE).alias("file"), _reason().alias("reason"), line.alias("line"))
    return (
        found.where(F.col("reason").isNotNull())
        .groupBy("file", "reason", "line")
        .agg(F.count("*").alias("times"))
    )


def _reason() -> F.Column:
    """Why a line is no event; null where it is one."""
    time = F.col("sent_at")
    out_of_time = F.isnan(time) | (time < 0) | (time > LAST_MOMENT)
    reasons = [
        (F.col(UNREADABLE).isNotNull(), "not a JSON object, or a field has another type than the envelope's"),
        (F.col("event_id").isNull(), "event_id is missing"),
        (F.col("event_type").isNull(), "event_type is missing"),
        (time.isNull(), "sent_at is missing"),
        (out_of_time, "sent_at is no moment in epoch seconds"),
        (F.col("user_id").isNull() & F.col("session_id").isNull(), "user_id and session_id are missing"),
    ]
    return F.coalesce(*(F.when(wrong, F.lit(reason)) for wrong, reason in reasons))
