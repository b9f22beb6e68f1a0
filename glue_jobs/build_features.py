"""The lake's events -> the value of every declared feature as of a moment: the nightly state of the platform.

    build_features.py --lake PATH [--database NAME] --app-config PATH --output PATH [--as-of SECONDS]

Writes one folder for each scope that the app declares features of: `visitor/`, `user/`, `session/`, `item/`
and `by_<property>/`, each with `key`, `as_of` and one column a feature: a number, a list of item ids or, for
a pair, a map from text to number; null is missing. The item values are exact, the stream's approximate.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence

from pyspark.sql import DataFrame
from pyspark.sql import functions as F  # the name that Spark's own documentation uses

from glue_jobs.app_files import read_app
from glue_jobs.lake import add_arguments, open_lake, read_events
from glue_jobs.nightly import Night
from narrows.features.registry import FeatureSet


def build(events: DataFrame, features: FeatureSet, output: str, as_of: float) -> dict[str, int]:
    """Write the folders under `output`; returns how many events were read and how many keys each has."""
    later = F.sum((F.col("time") > as_of).cast("long"))
    read = events.agg(F.count("*").alias("read"), F.coalesce(later, F.lit(0)).alias("later")).first()
    counts: dict[str, int] = read.asDict() if read else {}
    night = Night(events, features, as_of, counts["read"])
    for scope in night.scopes:
        folder = f"{output.rstrip('/')}/{scope.replace(':', '_')}"
        values = night.values(scope)
        values.write.mode("overwrite").parquet(folder)
        counts[scope] = events.sparkSession.read.schema(values.schema).parquet(folder).count()
    night.forget()
    return counts


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--app-config", required=True, help="the app's folder, or a .zip of it")
    parser.add_argument("--output", required=True, help="the folder to write the scopes' folders into")
    parser.add_argument("--as-of", type=float, default=time.time(), help="the moment, epoch seconds; now")
    known, _ = parser.parse_known_args(argv)  # Glue adds arguments of its own: --JOB_NAME, --TempDir
    return known


def main(argv: Sequence[str]) -> None:
    arguments = _arguments(argv)
    spark = open_lake("build_features", arguments.lake, arguments.database)
    features = FeatureSet(read_app(spark, arguments.app_config).features)
    counts = build(read_events(spark), features, arguments.output, arguments.as_of)
    print(json.dumps(counts))  # noqa: T201  # the job's log is where its counts are looked for
    if counts["read"] == counts["later"]:
        raise SystemExit(
            f"no event at or before {arguments.as_of:.0f} among the {counts['read']} in {arguments.lake}; "
            "check that compact_events has filled it, and --as-of"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
