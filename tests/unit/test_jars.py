"""Java libraries: fetched once, kept for all checkouts, and only if they are the files that were pinned."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from localcloud import jars
from localcloud.jars import ICEBERG, JarMissing, fetch, kept

CONTENT = b"a library"
PINNED = replace(ICEBERG, size=len(CONTENT), sha256=hashlib.sha256(CONTENT).hexdigest())


@pytest.fixture
def ivy(monkeypatch: pytest.MonkeyPatch) -> Callable[[bytes | None], list[str]]:
    """Stands in for Ivy: brings this content, or nothing; returns what was asked for."""
    asked: list[str] = []

    def bring(content: bytes | None) -> list[str]:
        def resolve(wanted: Sequence[jars.Jar], scratch: Path, _: object) -> str:
            asked.extend(jar.name for jar in wanted)
            for jar in wanted if content is not None else ():
                (scratch / jar.name).write_bytes(content or b"")
            return "UNRESOLVED DEPENDENCY"

        monkeypatch.setattr(jars, "_resolve", resolve)
        return asked

    return bring


def test_it_is_fetched_once_into_the_users_cache(
    tmp_path: Path, ivy: Callable[[bytes | None], list[str]]
) -> None:
    """The second time nothing is asked for, and nothing but the jar is left in the folder."""
    asked, environment = ivy(CONTENT), {"XDG_CACHE_HOME": str(tmp_path)}
    (path,) = fetch([PINNED], lambda _: None, environment)
    assert fetch([PINNED], lambda _: None, environment) == [path] == [kept(PINNED, environment)]
    assert asked == [PINNED.name]
    assert list((tmp_path / "narrows" / "jars").iterdir()) == [path]


def test_only_what_is_not_there_is_asked_for(
    tmp_path: Path, ivy: Callable[[bytes | None], list[str]]
) -> None:
    """Of two, one was fetched before."""
    asked, environment = ivy(CONTENT), {"XDG_CACHE_HOME": str(tmp_path)}
    other = replace(PINNED, artifact="other", kind="zip")
    fetch([PINNED], lambda _: None, environment)
    paths = fetch([PINNED, other], lambda _: None, environment)
    assert [path.name for path in paths] == [PINNED.name, other.name]
    assert asked == [PINNED.name, other.name]


def test_opensearch_is_pinned_whole() -> None:
    """Core and plugin of one version, each file with its size and checksum, none twice."""
    pinned = jars.opensearch()
    named = {jar.name: jar for jar in pinned}
    assert len(named) == len(pinned) == 77
    assert {"opensearch-2.19.1.jar", "opensearch-knn-2.19.1.0.zip"} <= named.keys()
    assert all(len(jar.sha256) == 64 and jar.size > 0 for jar in pinned)


def test_another_file_never_gets_its_name(tmp_path: Path, ivy: Callable[[bytes | None], list[str]]) -> None:
    """A wrong checksum is named, and the next attempt starts anew."""
    ivy(b"something else")
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    with pytest.raises(JarMissing, match=r"another file, with sha256 [0-9a-f]{64}; run `make setup`"):
        fetch([PINNED], lambda _: None, environment)
    assert list((tmp_path / "narrows" / "jars").iterdir()) == []


def test_without_a_network_the_way_by_hand_is_told(
    tmp_path: Path, ivy: Callable[[bytes | None], list[str]]
) -> None:
    """What Ivy said, where the file belongs, and which file it must be."""
    ivy(None)
    environment = {"XDG_CACHE_HOME": str(tmp_path)}
    with pytest.raises(JarMissing, match="UNRESOLVED DEPENDENCY") as told:
        fetch([PINNED], lambda _: None, environment)
    path = tmp_path / "narrows" / "jars" / PINNED.name
    assert str(path) in str(told.value)
    assert PINNED.sha256 in str(told.value)
    with pytest.raises(JarMissing, match="run `make setup` once with a network"):
        kept(PINNED, environment)
