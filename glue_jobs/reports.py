"""What jobs that report have in common: their moment and their one JSON object in a folder."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping
from typing import Any

from pyspark.sql import SparkSession

from narrows.errors import InvalidInput
from narrows.events import parse_moment

NUMBER = re.compile(r"[+-]?\d+(\.\d*)?(e[+-]?\d+)?", re.IGNORECASE)


def moment(text: str) -> float:
    """Epoch seconds from an argument: ISO 8601 with a zone, or epoch seconds."""
    try:
        return parse_moment("as-of", float(text) if NUMBER.fullmatch(text) else text)
    except InvalidInput as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def write_report(spark: SparkSession, folder: str, report: Mapping[str, Any]) -> None:
    """Replace what is in the folder by one file of one line of JSON."""
    lines = spark.createDataFrame([(json.dumps(report, allow_nan=False),)], "line string").coalesce(1)
    lines.write.mode("overwrite").text(folder)
