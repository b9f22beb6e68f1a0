"""Iceberg for the Spark of this machine: pinned jars, fetched once for all checkouts and kept.

    python -m localcloud.jars            # what jobs on files need; `make setup` does it
    python -m localcloud.jars --s3       # with what Spark needs to reach S3 itself

In AWS, Glue brings them (`--datalake-formats iceberg`). Here they come through Ivy, which Spark carries, from
where Ivy always looks, and count only with the checksum that is written below.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from localcloud.spark import java_home
from narrows.errors import NarrowsError

GLANCE_S, SPEAK_S = 0.2, 2.0
MEGABYTE = 1_000_000


class JarMissing(NarrowsError):
    """A library of Spark's is not on this machine and could not be brought; says how to bring it by hand."""


@dataclass(frozen=True)
class Jar:
    """One library, as Maven names it."""

    group: str
    artifact: str
    version: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        """The name of its file."""
        return f"{self.artifact}-{self.version}.jar"

    def __str__(self) -> str:
        return f"{self.name} ({self.size / MEGABYTE:.0f} MB)"


ICEBERG = Jar(
    "org.apache.iceberg",
    "iceberg-spark-runtime-3.5_2.12",
    "1.10.0",  # of Glue 5.1
    47_130_096,
    "70f9471870b2d456167d703c829f098a446b86bb1379eee338c0efa03a341026",
)
ICEBERG_S3 = Jar(
    "org.apache.iceberg",
    "iceberg-aws-bundle",
    "1.10.0",
    64_859_357,
    "172370cfc32a5f1ae5399b210e86fc04a366dc29a112d97ac8ffc74df7525596",
)


def folder(environment: Mapping[str, str]) -> Path:
    """Where the jars of all checkouts of this user lie."""
    kept = environment.get("XDG_CACHE_HOME")
    return (Path(kept) if kept else Path.home() / ".cache") / "narrows" / "jars"


def kept(jar: Jar, environment: Mapping[str, str] = os.environ) -> Path:
    """The path of a jar that was fetched before; `JarMissing` where it was not."""
    path = folder(environment) / jar.name
    if not path.is_file():
        raise JarMissing(f"{jar} is not in {path.parent}; {_remedy(jar, path)}")
    return path


def fetch(jar: Jar, say: Callable[[str], None], environment: Mapping[str, str] = os.environ) -> Path:
    """The path of a jar, brought now if it is not there; a file with another checksum never gets its name."""
    path = folder(environment) / jar.name
    if path.is_file():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        said = _resolve(jar, Path(scratch), say)
        brought = Path(scratch) / jar.name
        if not brought.is_file():
            raise JarMissing(f"{jar} could not be fetched: {said}\n{_remedy(jar, path)}")
        found = _checksum(brought)
        if found != jar.sha256:
            raise JarMissing(f"what came as {jar} is another file, with sha256 {found}; {_remedy(jar, path)}")
        brought.replace(path)
    return path


def _resolve(jar: Jar, scratch: Path, say: Callable[[str], None]) -> str:
    """Let Ivy put the jar into `scratch`; returns the end of what it had to say."""
    command = [
        str(Path(java_home()) / "bin" / "java"), f"-Divy.default.ivy.user.dir={scratch / 'ivy'}",
        "-cp", str(_ivy()), "org.apache.ivy.Main", "-warn", "-notransitive", "-types", "jar",
        "-cache", str(scratch / "cache"), "-dependency", jar.group, jar.artifact, jar.version,
        "-retrieve", f"{scratch}/[artifact]-[revision].[ext]",
    ]  # fmt: skip
    log = scratch / "ivy.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        _report(jar, process, scratch / "cache", say)
    finally:
        process.kill()
        process.wait()
    lines = [line.strip(" .:\t") for line in log.read_text(errors="replace").splitlines()]
    return "; ".join([line for line in lines if line][:6]) or f"Ivy ended with {process.returncode}"


def _report(jar: Jar, process: subprocess.Popen[bytes], cache: Path, say: Callable[[str], None]) -> None:
    """Say now and then how much has come, until the process ends."""
    say(f"fetching {jar}")
    spoke = time.monotonic()
    while process.poll() is None:
        time.sleep(GLANCE_S)
        if time.monotonic() - spoke >= SPEAK_S:
            spoke = time.monotonic()
            say(f"fetching {jar}: {_come(cache) / MEGABYTE:.0f} of {jar.size / MEGABYTE:.0f} MB")


def _come(cache: Path) -> int:
    return sum(path.stat().st_size for path in cache.rglob("*.part"))


def _ivy() -> Path:
    """Spark's own Ivy; Spark is not imported for it."""
    spark = importlib.util.find_spec("pyspark")
    if spark is None or spark.origin is None:
        raise JarMissing("pyspark is not installed in this environment; run make setup")
    return next((Path(spark.origin).parent / "jars").glob("ivy-*.jar"))


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _remedy(jar: Jar, path: Path) -> str:
    return (
        f"run `make setup` once with a network, or put {jar.group}:{jar.artifact}:{jar.version} from Maven "
        f"at {path} (sha256 {jar.sha256})"
    )


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201  # a command says what it does


def main() -> None:
    """Fetch what is not there yet."""
    parser = argparse.ArgumentParser(prog="localcloud.jars", description=main.__doc__)
    parser.add_argument("--s3", action="store_true", help="also what Spark needs to reach S3 itself")
    wanted = [ICEBERG, ICEBERG_S3] if parser.parse_args().s3 else [ICEBERG]
    try:
        for jar in wanted:
            fetch(jar, _say)
    except JarMissing as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
