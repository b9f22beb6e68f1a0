"""Java libraries of this machine's servers: pinned, fetched once for all checkouts and kept.

    python -m localcloud.jars            # Iceberg for jobs on files, OpenSearch; `make setup` does it
    python -m localcloud.jars --s3       # with what Spark needs to reach S3 itself

In AWS, Glue brings Iceberg (`--datalake-formats iceberg`), and OpenSearch is a service. Here they come
through Ivy, which Spark carries, from where Ivy always looks, and count only with the checksums that are
written down.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from localcloud.spark import java_home
from narrows.errors import NarrowsError

GLANCE_S, SPEAK_S = 0.2, 2.0
MEGABYTE = 1_000_000
OPENSEARCH = Path(__file__).with_name("opensearch.lock")
SETTINGS = """<ivysettings><settings defaultResolver="central"/><resolvers><ibiblio name="central"
m2compatible="true" usepoms="false" useMavenMetadata="false" checksums=""/></resolvers></ivysettings>"""
"""Nothing but the files themselves is asked for: what belongs together and the checksums are written down."""
WANTED = """<ivy-module version="2.0"><info organisation="narrows" module="jars"/>
<configurations><conf name="default"/></configurations><dependencies>{}</dependencies></ivy-module>"""


class JarMissing(NarrowsError):
    """A library of Spark's is not on this machine and could not be brought; says how to bring it by hand."""


@dataclass(frozen=True)
class Jar:
    """One library, as Maven names it; a plugin comes as a `zip`."""

    group: str
    artifact: str
    version: str
    size: int
    sha256: str
    kind: str = "jar"

    @property
    def name(self) -> str:
        """The name of its file."""
        return f"{self.artifact}-{self.version}.{self.kind}"

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


def opensearch() -> tuple[Jar, ...]:
    """OpenSearch 2.19.1 and its k-NN plugin, with all that they load; the plugin is the zip among them."""
    return tuple(_locked(line) for line in OPENSEARCH.read_text().splitlines())


def _locked(line: str) -> Jar:
    name, size, sha256 = line.split()
    group, artifact, version, kind = name.split(":")
    return Jar(group, artifact, version, int(size), sha256, kind)


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


def fetch(
    wanted: Sequence[Jar], say: Callable[[str], None], environment: Mapping[str, str] = os.environ
) -> list[Path]:
    """The paths of these jars, brought where absent; a file of another checksum never gets its name."""
    there = folder(environment)
    absent = [jar for jar in wanted if not (there / jar.name).is_file()]
    if absent:
        there.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=there) as scratch:
            said = _resolve(absent, Path(scratch), say)
            for jar in absent:
                _keep(jar, Path(scratch) / jar.name, there / jar.name, said)
    return [there / jar.name for jar in wanted]


def _keep(jar: Jar, brought: Path, path: Path, said: str) -> None:
    if not brought.is_file():
        raise JarMissing(f"{jar} could not be fetched: {said}\n{_remedy(jar, path)}")
    found = _checksum(brought)
    if found != jar.sha256:
        raise JarMissing(f"what came as {jar} is another file, with sha256 {found}; {_remedy(jar, path)}")
    brought.replace(path)


def _resolve(wanted: Sequence[Jar], scratch: Path, say: Callable[[str], None]) -> str:
    """Let Ivy put the jars into `scratch`; returns the end of what it had to say."""
    (scratch / "settings.xml").write_text(SETTINGS)
    (scratch / "wanted.xml").write_text(WANTED.format("".join(map(_dependency, wanted))))
    command = [
        str(Path(java_home()) / "bin" / "java"), f"-Divy.default.ivy.user.dir={scratch / 'ivy'}",
        "-cp", str(_ivy()), "org.apache.ivy.Main", "-warn", "-settings", str(scratch / "settings.xml"),
        "-cache", str(scratch / "cache"), "-ivy", str(scratch / "wanted.xml"),
        "-retrieve", f"{scratch}/[artifact]-[revision].[ext]",
    ]  # fmt: skip
    log = scratch / "ivy.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    try:
        _report(wanted, process, scratch / "cache", say)
    finally:
        process.kill()
        process.wait()
    lines = [line.strip(" .:\t") for line in log.read_text(errors="replace").splitlines()]
    return "; ".join([line for line in lines if line and "kB)" not in line][:6]) or (
        f"Ivy ended with {process.returncode}"
    )


def _dependency(jar: Jar) -> str:
    return (
        f'<dependency org="{jar.group}" name="{jar.artifact}" rev="{jar.version}" conf="default" '
        f'transitive="false"><artifact name="{jar.artifact}" type="{jar.kind}" ext="{jar.kind}"/>'
        "</dependency>"
    )


def _report(
    wanted: Sequence[Jar], process: subprocess.Popen[bytes], cache: Path, say: Callable[[str], None]
) -> None:
    """Say now and then how much has come, until the process ends."""
    largest = max(wanted, key=lambda jar: jar.size)
    what = str(largest) if len(wanted) == 1 else f"{largest.name} and {len(wanted) - 1} more"
    total = sum(jar.size for jar in wanted) / MEGABYTE
    say(f"fetching {what}")
    spoke = time.monotonic()
    while process.poll() is None:
        time.sleep(GLANCE_S)
        if time.monotonic() - spoke >= SPEAK_S:
            spoke = time.monotonic()
            say(f"fetching {what}: {_come(cache) / MEGABYTE:.0f} of {total:.0f} MB")


def _come(cache: Path) -> int:
    found = 0
    for kind in ("*.part", "*.jar", "*.zip"):
        for path in cache.rglob(kind):
            with contextlib.suppress(FileNotFoundError):  # a part has got its name meanwhile
                found += path.stat().st_size
    return found


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
        f"run `make setup` once with a network, or put {jar.group}:{jar.artifact}:{jar.version} ({jar.kind}) "
        f"from Maven at {path} (sha256 {jar.sha256})"
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
            fetch([jar], _say)
        fetch(opensearch(), _say)
    except JarMissing as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
