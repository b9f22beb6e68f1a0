"""One Spark for all jobs of the lake: a Java process that stays up between them.

A job is a Python process of its own, as in Glue; the Spark that it talks to has been started before it, with
its classes loaded and compiled. `localcloud.spark_driver` connects the two, each job in a session of its own.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shlex
import struct
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from localcloud.jobs import JobFailed, last_lines
from localcloud.processes import end
from localcloud.spark import spark_environment

START_S = 60.0
IDLE_S = 600.0  # how long it stays up with nothing to do
POLL_S = 0.05
MEMORY = "3g"  # up to three jobs at once
PLANNED_ONCE = MappingProxyType({"spark.sql.adaptive.enabled": "false"})
"""On so few rows it costs more to plan each stage anew than it saves."""
EXTENSIONS = "org.apache.iceberg.spark.extensions.IcebergSparkSessionExtensions"
"""A setting that a session cannot change any more; every job of the lake asks for it."""


class SparkServer:
    """Starts Spark when a job first needs it, and ends it when none has for a while."""

    def __init__(self, home: Path, jars: Sequence[Path], *, idle_s: float = IDLE_S) -> None:
        self._folder = home / "spark"
        self._log = home / "logs" / "spark.log"
        self._jars = tuple(jars)
        self._idle_s = idle_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._environment: dict[str, str] = {}
        self._jobs = 0
        self._starts = 0
        self._worn = False
        self._idle: threading.Timer | None = None

    @contextlib.contextmanager
    def lent(self) -> Iterator[Mapping[str, str]]:
        """The variables by which a job finds the Spark that is up; it stays up until the job has ended."""
        with self._lock:
            self._cancel_idle()
            if self._process is None or self._process.poll() is not None or (self._worn and not self._jobs):
                self._end()
                self._start()
            self._jobs += 1
            environment = dict(self._environment)
        try:
            yield environment
        finally:
            with self._lock:
                self._jobs -= 1
                if not self._jobs:
                    self._rest()

    def wear(self) -> None:
        """Say that a job was broken off: what it left running ends with this Spark, after the other jobs."""
        with self._lock:
            self._worn = True

    def end(self) -> None:
        """End it now, whatever it does."""
        with self._lock:
            self._cancel_idle()
            self._end()

    def _rest(self) -> None:
        if self._worn:
            self._end()
            return
        self._idle = threading.Timer(self._idle_s, self._end_when_idle)
        self._idle.daemon = True
        self._idle.start()

    def _end_when_idle(self) -> None:
        with self._lock:
            if not self._jobs:
                self._end()

    def _cancel_idle(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
            self._idle = None

    def _start(self) -> None:
        self._starts += 1
        scratch = self._folder / str(self._starts)
        scratch.mkdir(parents=True, exist_ok=True)
        told = scratch / "connection"
        told.unlink(missing_ok=True)
        environment = spark_environment((), scratch, self._jars, memory=MEMORY)
        settings = {**PLANNED_ONCE, **({"spark.sql.extensions": EXTENSIONS} if self._jars else {})}
        arguments = [word for name, value in settings.items() for word in ("--conf", f"{name}={value}")]
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                [str(_submit()), *arguments, *shlex.split(environment.pop("PYSPARK_SUBMIT_ARGS"))],
                stdin=subprocess.PIPE,  # its end, also by the death of this process, ends Spark
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment, "_PYSPARK_DRIVER_CONN_INFO_PATH": str(told)},
                cwd=scratch,
                start_new_session=True,
            )
        port, secret = self._wait_for(told)
        self._environment = {"PYSPARK_GATEWAY_PORT": str(port), "PYSPARK_GATEWAY_SECRET": secret}
        self._worn = False

    def _wait_for(self, told: Path) -> tuple[int, str]:
        """The port and the secret, once Spark has written them: two lengths with what they are long."""
        until = time.monotonic() + START_S
        while not told.exists():
            assert self._process is not None
            if self._process.poll() is not None or time.monotonic() > until:
                self._end()
                raise JobFailed(
                    f"Spark did not start; its log {self._log} ends with: {last_lines(self._log)}"
                )
            time.sleep(POLL_S)
        content = told.read_bytes()
        port, length = struct.unpack(">ii", content[:8])
        return port, content[8 : 8 + length].decode()

    def _end(self) -> None:
        if self._process is not None:
            end(self._process, grace_s=0.0)
            self._process = None


def _submit() -> Path:
    found = importlib.util.find_spec("pyspark")
    if found is None or not found.submodule_search_locations:
        raise JobFailed("pyspark is not installed; run make setup")
    return Path(found.submodule_search_locations[0]) / "bin" / "spark-submit"
