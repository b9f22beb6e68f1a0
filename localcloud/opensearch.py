"""A real OpenSearch 2.19.1 with the k-NN plugin on this machine: one node, its own home, ports and data.

    python -m localcloud.opensearch --home .narrows/opensearch --port 9200

This process becomes the node. It needs the jars of `localcloud.jars` and a whole JDK, 11 to 23: a plain Java
runtime can neither run the node from its source nor analyse text.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from localcloud import jars
from localcloud.home import StartError
from localcloud.jars import JarMissing
from localcloud.processes import end, ready_line, spawn
from narrows.errors import NarrowsError

ROOT = Path(__file__).resolve().parent.parent
SOURCE = Path(__file__).with_name("OpenSearchNode.java")
HEAP_MB = 512
START_S, GLANCE_S = 120.0, 0.05
OLDEST_JDK, NEWEST_JDK = 11, 23
FLAGS = (
    "-Djava.awt.headless=true",
    "-Dlog4j2.disable.jmx=true",
    "-Dlog4j.shutdownHookEnabled=false",
    "-Dio.netty.noUnsafe=true",
    "-Dio.netty.noKeySetOptimization=true",
    "-Dio.netty.recycler.maxCapacityPerThread=0",
    "-XX:+UseSerialGC",
)
SOON_READY = "-XX:TieredStopAtLevel=1"
"""Java's first compiler alone: half the work of a start, and enough for small indexes."""


class JdkMissing(NarrowsError):
    """There is no JDK on this machine that OpenSearch runs on."""


def command(
    home: Path,
    port: int,
    environment: Mapping[str, str],
    *,
    heap_mb: int = HEAP_MB,
    soon_ready: bool = False,
) -> list[str]:
    """The command that starts a node, port 0 for a free one; JarMissing or JdkMissing where it cannot."""
    options = [*FLAGS, SOON_READY] if soon_ready else FLAGS
    path = os.pathsep.join(map(str, _class_path(environment)))
    return [
        str(java(environment)), f"-Xms{heap_mb}m", f"-Xmx{heap_mb}m", f"-Djava.io.tmpdir={home / 'tmp'}",
        *options, "-cp", path, str(SOURCE), str(home), str(port),
    ]  # fmt: skip


def started(
    home: Path, log: Path, environment: Mapping[str, str], *, port: int = 0, soon_ready: bool = False
) -> tuple[subprocess.Popen[bytes], str]:
    """(a node as a process of its own, its address), as soon as it answers; whoever asked for it ends it.

    JarMissing or JdkMissing where it cannot start, StartError with the log's last line where it does not.
    """
    arguments = ["--home", str(home), "--port", str(port), *(["--soon-ready"] if soon_ready else [])]
    command(home, port, environment)
    offset = log.stat().st_size if log.exists() else 0
    process = spawn("localcloud.opensearch", arguments, log=log, environment=environment, cwd=ROOT)
    until = time.monotonic() + START_S
    try:
        while (ready := ready_line(log, offset)) is None:
            if process.poll() is not None or time.monotonic() > until:
                said = log.read_bytes()[offset:].decode(errors="replace").split("\n")
                last = next((line for line in reversed(said) if line.strip()), "it said nothing")
                raise StartError(f"OpenSearch did not start: {last.strip()} (all of it: {log})")
            time.sleep(GLANCE_S)
    except BaseException:
        end(process)
        raise
    return process, f"http://127.0.0.1:{ready['port']}"


@contextmanager
def running(folder: Path, environment: Mapping[str, str]) -> Iterator[str]:
    """The address of a node that lives as long as the context; all that stays of it is its log in `folder`.

    It is for measuring, with both of Java's compilers. Errors are those of `started`.
    """
    home = folder / "node"
    process, url = started(home, folder / "node.log", environment)
    try:
        yield url
    finally:
        end(process)
        shutil.rmtree(home, ignore_errors=True)


def java(environment: Mapping[str, str]) -> Path:
    """The `java` of a whole JDK: that of JAVA_HOME, else the one on the path."""
    home = environment.get("JAVA_HOME")
    looked = [Path(home) / "bin" / "javac"] if home else []
    on_path = shutil.which("javac", path=environment.get("PATH"))
    looked += [Path(on_path).resolve()] if on_path else []
    found = [f"{path} is version {_version(path)}" for path in looked if path.is_file()]
    for path in looked:
        if path.is_file() and OLDEST_JDK <= _version(path) <= NEWEST_JDK:
            return path.with_name("java")
    raise JdkMissing(
        f"OpenSearch needs a whole JDK, version {OLDEST_JDK} to {NEWEST_JDK}, and there is "
        f"{'; '.join(found) or 'no javac'}: install one (Debian: apt-get install openjdk-17-jdk-headless) "
        "or set JAVA_HOME to it"
    )


def _version(javac: Path) -> int:
    """Its major version; 0 where it cannot say, as the stand-in of a system without a JDK."""
    said = subprocess.run([javac, "-version"], capture_output=True, text=True, check=False)
    number = re.search(r"javac (\d+)", said.stdout + said.stderr)
    return int(number[1]) if number else 0


def _class_path(environment: Mapping[str, str]) -> list[Path]:
    """Core and plugin; the plugin's own jars lie in its zip, and are taken out once."""
    pinned = [jars.kept(jar, environment) for jar in jars.opensearch()]
    (plugin,) = (path for path in pinned if path.suffix == ".zip")
    inside = plugin.with_suffix("")
    if not inside.is_dir():
        with tempfile.TemporaryDirectory(dir=plugin.parent) as scratch, zipfile.ZipFile(plugin) as archive:
            archive.extractall(Path(scratch) / "plugin")
            (Path(scratch) / "plugin").rename(inside)
    return [*(path for path in pinned if path != plugin), *sorted(inside.glob("*.jar"))]


def main() -> None:
    """Become an OpenSearch node; it writes one line of JSON when it is ready, with its port."""
    parser = argparse.ArgumentParser(prog="localcloud.opensearch", description=main.__doc__)
    parser.add_argument(
        "--check", action="store_true", help="say on which JDK it would run, and start nothing"
    )
    parser.add_argument("--home", type=Path, default=Path(".narrows/opensearch"), help="its data and logs")
    parser.add_argument("--port", type=int, default=0, help="0: one that is free")
    parser.add_argument("--heap-mb", type=int, default=HEAP_MB)
    parser.add_argument("--soon-ready", action="store_true", help="for small indexes: start in half the time")
    arguments = parser.parse_args()
    try:
        if arguments.check:
            print(f"OpenSearch would run on {java(os.environ)}")  # noqa: T201  # that is what was asked
            return
        options = {"heap_mb": arguments.heap_mb, "soon_ready": arguments.soon_ready}
        line = command(arguments.home, arguments.port, os.environ, **options)
    except (JarMissing, JdkMissing) as error:
        sys.exit(str(error))
    (arguments.home / "tmp").mkdir(parents=True, exist_ok=True)
    os.execv(line[0], line)  # noqa: S606  # no shell: these are our words and the machine's JDK


if __name__ == "__main__":
    main()
