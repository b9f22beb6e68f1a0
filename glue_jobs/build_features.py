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

from glue_jobs.app_files import read_app
from glue_jobs.event_files import lake_files
from glue_jobs.lake import add_arguments, open_lake
from glue_jobs.nightly import SETTINGS, write_night
from narrows.features.registry import FeatureSet


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
    spark = open_lake("build_features", arguments.lake, arguments.database, SETTINGS)
    features = FeatureSet(read_app(spark, arguments.app_config).features)
    counts = write_night(spark, lake_files(spark), features, arguments.as_of, arguments.output)
    print(json.dumps(counts))  # noqa: T201  # the job's log is where its counts are looked for
    if counts["read"] == counts["later"]:
        raise SystemExit(
            f"no event at or before {arguments.as_of:.0f} among the {counts['read']} in {arguments.lake}; "
            "check that compact_events has filled it, and --as-of"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
