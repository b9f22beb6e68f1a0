"""The node of this machine: what it needs is told where it is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from localcloud import jars, opensearch
from localcloud.home import StartError
from localcloud.jars import JarMissing
from localcloud.opensearch import JdkMissing, command, java, running, started
from tests import servers


def stand_in(folder: Path, version: str) -> Path:
    """A JDK whose compiler only says its version."""
    compiler = folder / "bin" / "javac"
    compiler.parent.mkdir(parents=True)
    compiler.write_text(f"#!/bin/sh\necho 'javac {version}'\n")
    compiler.chmod(0o755)
    return folder


def test_without_a_jdk_it_says_what_to_install(tmp_path: Path) -> None:
    """A plain runtime is not enough, and one that is too old or too new is named."""
    with pytest.raises(JdkMissing, match=r"11 to 23.*there is no javac.*apt-get install"):
        java({"PATH": str(tmp_path)})
    old = stand_in(tmp_path / "old", "1.8.0_400")
    with pytest.raises(JdkMissing, match=r"javac is version 1: install one"):
        java({"PATH": str(tmp_path), "JAVA_HOME": str(old)})


def test_java_home_comes_before_the_path(tmp_path: Path) -> None:
    """And the path counts where JAVA_HOME's is of a wrong version."""
    good, other = stand_in(tmp_path / "good", "17.0.15"), stand_in(tmp_path / "other", "21.0.1")
    new = stand_in(tmp_path / "new", "25")
    path = f"{other / 'bin'}:{os.environ['PATH']}"
    assert java({"PATH": path, "JAVA_HOME": str(good)}) == good / "bin" / "java"
    assert java({"PATH": path, "JAVA_HOME": str(new)}) == other / "bin" / "java"


def test_without_its_jars_it_says_how_to_get_them(tmp_path: Path) -> None:
    """Which file is not there, and where it belongs."""
    jdk = stand_in(tmp_path / "jdk", "17")
    with pytest.raises(JarMissing, match="run `make setup` once with a network"):
        command(tmp_path, 9200, {"JAVA_HOME": str(jdk), "XDG_CACHE_HOME": str(tmp_path)})


def test_the_node_is_run_from_source_with_every_pinned_jar() -> None:
    """Core and plugin on the class path, the plugin's own jars out of its zip, memory bounded."""
    try:
        line = command(Path("home"), 9300, os.environ, heap_mb=300)
    except (JarMissing, JdkMissing) as error:
        pytest.skip(str(error))
    path = {Path(one).name for one in line[line.index("-cp") + 1].split(os.pathsep)}
    assert {jar.name for jar in jars.opensearch() if jar.kind == "jar"} < path
    assert "opensearch-knn-2.19.1.0.jar" in path
    assert {"-Xms300m", "-Xmx300m"} < set(line)
    assert line[-3:] == [str(opensearch.SOURCE), "home", "9300"]


def test_the_check_starts_nothing() -> None:
    """It names a JDK, or says which one to install."""
    asked = [sys.executable, "-m", "localcloud.opensearch", "--check"]
    done = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=30)
    assert "OpenSearch would run on" in done.stdout or "install one" in done.stderr


def test_a_node_that_does_not_come_up_says_why(tmp_path: Path) -> None:
    """The last line of its log, and where the rest is; nothing of it runs on."""
    try:
        command(tmp_path, 0, os.environ)
    except (JarMissing, JdkMissing) as error:
        pytest.skip(str(error))
    home = tmp_path / "node"
    home.mkdir()
    (home / "data").write_text("no folder")
    with pytest.raises(StartError, match=r"OpenSearch did not start: .*node\.log"):
        started(home, tmp_path / "node.log", os.environ)


@pytest.mark.local
def test_a_node_for_a_while_leaves_its_log_alone(tmp_path: Path) -> None:
    """It answers inside, and outside neither it nor its data are there."""
    try:
        with running(tmp_path, os.environ) as url:
            assert json.load(urllib.request.urlopen(url, timeout=10))["tagline"]
    except (JarMissing, JdkMissing) as error:
        servers.unavailable("OpenSearch", str(error))
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(url, timeout=2)
    assert [path.name for path in tmp_path.iterdir()] == ["node.log"]
