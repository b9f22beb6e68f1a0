"""How the versions of a snapshot hang together: a base, and the deltas that lead from it to what is live.

A version is the base's own, or `<base>+<number>-<digest>` for what a delta made of it; the delta's file is
named after it. Two who publish at once may both write a delta: the live version says which one counts, and
each delta says which one it follows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from narrows.errors import SnapshotError
from narrows.snapshot import ItemSnapshot, followed

Need = Callable[[Path], object]


def base_of(version: str) -> str:
    """The version of the base that a version stands on."""
    return version.partition("+")[0]


def number_of(version: str) -> int:
    """How many deltas lie between a version and its base."""
    number = version.partition("+")[2].partition("-")[0]
    return int(number) if number else 0


def next_version(version: str, content: Sequence[object]) -> str:
    """The version that follows with this content; the same content gives the same version."""
    digest = hashlib.sha256(repr((version, list(content))).encode()).hexdigest()[:8]
    return f"{base_of(version)}+{number_of(version) + 1:06d}-{digest}"


def delta_file(version: str) -> str:
    """The name of the delta that makes this version."""
    return f"delta-{version.partition('+')[2]}.npz"


def follow(snapshot: ItemSnapshot, folder: Path, version: str, need: Need) -> ItemSnapshot:
    """The snapshot at `version`, by the deltas in the folder; `need(path)` brings one that is not there.

    All of them are at hand before the first is applied. SnapshotError where the version does not descend from
    the snapshot's; then it has to be opened anew.
    """
    waiting: list[Path] = []
    at = version
    while at != snapshot.version:
        if base_of(at) != base_of(snapshot.version) or number_of(at) <= number_of(snapshot.version):
            raise SnapshotError(
                f"version {version!r} does not descend from {snapshot.version!r}; open it from its base"
            )
        path = folder / delta_file(at)
        if not path.exists():
            need(path)
        waiting.append(path)
        at = followed(path)
    for path in reversed(waiting):
        snapshot = snapshot.apply(path)
    return snapshot
