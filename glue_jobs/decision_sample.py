"""A share of the landed decision records, chosen by their ids: cheap to read, and always the same ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pyspark.sql import DataFrame, Row, SparkSession
from pyspark.sql import functions as F  # the name that Spark's own documentation uses
from pyspark.sql import types as T

_TEXTS = T.MapType(T.StringType(), T.StringType())
_NUMBERS = T.MapType(T.StringType(), T.DoubleType())
RECORD = T.StructType(
    [
        T.StructField("recommendation_id", T.StringType()),
        T.StructField("feature_fingerprint", T.StringType()),
        T.StructField("at", T.DoubleType()),
        T.StructField("user_key", T.StringType()),
        T.StructField("session_key", T.StringType()),
        T.StructField("context", _TEXTS),
        T.StructField("visitor_features", _NUMBERS),
        T.StructField("visitor_lists", T.MapType(T.StringType(), T.ArrayType(T.StringType()))),
        T.StructField("request_features", _NUMBERS),
        T.StructField("applied", T.MapType(T.StringType(), _TEXTS)),
    ]
)
_ID = r'"recommendation_id":"([^"]+)"'
_HASHED = 2.0**60


@dataclass(frozen=True)
class Decision:
    """What a decision record tells of what was served, and from which events."""

    recommendation_id: str
    at: float
    keys: tuple[str, ...]
    context: Mapping[str, str] = field(default_factory=dict)
    served: Mapping[str, Any] = field(default_factory=dict)
    applied: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    fingerprint: str = ""


def read_sample(
    spark: SparkSession, landing: str, *, rate: float, at_most: int, since: float | None
) -> list[Decision]:
    """About this share of the records under a folder of landed lines, at most so many, none before `since`.

    Only the lines of the sample are parsed, and days that ended before `since` are not read. A record that
    landed twice is one. Where nothing has landed there is nothing to look at.
    """
    folders = _days(spark, landing, since)
    if not folders:
        return []
    files = spark.read.option("recursiveFileLookup", "true").option("pathGlobFilter", "*.jsonl.gz")
    lines = files.text(folders)
    records = (
        chosen(lines, rate)
        .select("hash", F.from_json("value", RECORD).alias("record"))
        .select("hash", "record.*")
        .where(F.col("at").isNotNull() & (F.col("at") >= F.lit(since or 0.0)))
        .dropDuplicates(["recommendation_id"])
        .orderBy("hash")
        .limit(at_most)
    )
    return [_decision(row) for row in records.collect()]


def _days(spark: SparkSession, landing: str, since: float | None) -> list[str]:
    """The folders of the days from `since` on, told by the arrival that is in their names; all without it."""
    path = spark._jvm.org.apache.hadoop.fs.Path(landing)  # Spark's Python has no look for files
    files = path.getFileSystem(spark._jsc.hadoopConfiguration())
    if not files.exists(path):
        return []
    if since is None:
        return [landing]
    first = f"dt={datetime.fromtimestamp(since, UTC).date().isoformat()}"
    names = [one.getPath().getName() for one in files.listStatus(path)]
    return [f"{landing.rstrip('/')}/{name}" for name in sorted(names) if name >= first]


def chosen(lines: DataFrame, rate: float) -> DataFrame:
    """The lines whose id's hash is in the lowest share `rate` of all hashes; a larger rate keeps them."""
    digest = F.md5(F.regexp_extract("value", _ID, 1))
    hashed = F.conv(F.substring(digest, 1, 15), 16, 10).cast("double") / _HASHED
    return lines.withColumn("hash", hashed).where(F.col("hash") < rate)


def _decision(row: Row) -> Decision:
    lists = {name: tuple(ids) for name, ids in (row.visitor_lists or {}).items()}
    return Decision(
        recommendation_id=row.recommendation_id,
        at=row.at,
        keys=tuple(key for key in (row.user_key, row.session_key) if key),
        context=row.context or {},
        served={**(row.visitor_features or {}), **lists, **(row.request_features or {})},
        applied={key: dict(marks) for key, marks in (row.applied or {}).items()},
        fingerprint=row.feature_fingerprint or "",
    )
