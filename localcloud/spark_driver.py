"""Runs a job's script in the Spark that is up already, in a session and with cached tables of its own.

    python -m localcloud.spark_driver [SCRIPT [ARGUMENT ...]]

PYSPARK_GATEWAY_PORT and PYSPARK_GATEWAY_SECRET say where that Spark is. The script asks for its session as
always and gets this one, with its own settings. Without a script it only makes Spark ready for one.
"""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Sequence

from pyspark.context import SparkContext
from pyspark.java_gateway import launch_gateway
from pyspark.sql import SparkSession


def attach() -> SparkSession:
    """The session that `SparkSession.builder.getOrCreate()` gives in this process from now on."""
    gateway = launch_gateway()  # type: ignore[no-untyped-call]  # starts nothing where the port is given
    SparkContext._ensure_initialized(gateway=gateway)
    running = gateway.jvm.org.apache.spark.SparkContext.getOrCreate()
    context = SparkContext(gateway=gateway, jsc=gateway.jvm.JavaSparkContext.fromSparkContext(running))
    # Spark's Python workers see what this job sees, each job's in processes of its own
    context.environment["PYTHONPATH"] = os.environ.get("PYTHONPATH", "")
    # not the JVM's session: tables that a job keeps in memory are its own, and cleared by it alone
    return SparkSession(context, gateway.jvm.SparkSession(running, {}))


def main(arguments: Sequence[str]) -> None:
    """Run the script as Python itself would."""
    session = attach()
    if not arguments:
        return
    sys.argv = list(arguments)
    sys.path.insert(0, os.path.dirname(os.path.abspath(arguments[0])))
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    finally:
        session.catalog.clearCache()


if __name__ == "__main__":
    main(sys.argv[1:])
