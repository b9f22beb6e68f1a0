"""Snapshots on S3: a local copy that follows the live one, and the publisher that extends it."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from narrows.control import ControlTable, Pointer, snapshot_pointer
from narrows.errors import Conflict, SnapshotError, StoreUnavailable
from narrows.freshening import ItemEntry
from narrows.settings import App
from narrows.snapshot import ItemSnapshot, open_base
from narrows.snapshot_feed import SnapshotChange, change_of, empty_base, new_base
from narrows.snapshot_versions import base_of, delta_file, follow, next_version, number_of

MOST_DELTAS = 512
"""After so many a new base is written, since a process that starts reads all of them."""
ATTEMPTS = 8


class SnapshotFiles(Protocol):
    """The objects that snapshots are kept in."""

    def get(self, key: str) -> bytes | None:
        """What is stored under the key, None for nothing."""

    def put(self, key: str, data: bytes) -> None:
        """Store under the key."""

    def download(self, prefix: str, directory: Path) -> object:
        """Copy everything below the prefix."""

    def upload(self, directory: Path, prefix: str) -> object:
        """Store everything in the directory below the prefix."""


class SnapshotCopy:
    """Snapshots copied into a local folder, each under a name of its own."""

    def __init__(
        self,
        directory: Path,
        download: Callable[[str, Path], object],
        get: Callable[[str], bytes | None],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`download(prefix, folder)` copies every file under a prefix; it raises when it cannot."""
        self._clock = clock
        self._directory = directory
        self._download = download
        self._get = get

    def folder(self, kind: str, prefix: str) -> Path:
        """The copy of everything below a prefix, made now if it is not here; it raises when it cannot."""
        folder = self._directory / f"{kind}-{hashlib.sha256(prefix.encode()).hexdigest()[:16]}"
        if not folder.is_dir():
            pending = folder.with_suffix(".pending")
            shutil.rmtree(pending, ignore_errors=True)
            pending.mkdir(parents=True)
            self._download(prefix, pending)
            pending.rename(folder)
        return folder

    def open(self, pointer: Pointer, *, verify: bool = True) -> ItemSnapshot:
        """The snapshot that the pointer names; SnapshotError for a damaged one, which is not kept."""
        folder = self.folder("snapshot", pointer.prefix)
        try:
            base = open_base(folder, verify=verify)
            return self.follow(base, pointer) if number_of(pointer.version) else base
        except SnapshotError as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise SnapshotError(f"{error}; it is copied again at the next refresh") from error

    def follow(
        self, snapshot: ItemSnapshot, pointer: Pointer, *, within_s: float = float("inf")
    ) -> ItemSnapshot:
        """The snapshot at the pointer's version, by deltas; SnapshotError where it stands on another base.

        StoreUnavailable when fetching them takes longer; what is here by then need not be fetched again.
        """
        folder = self.folder("snapshot", pointer.prefix)
        until = self._clock() + within_s
        return follow(
            snapshot, folder, pointer.version, lambda path: self._bring(pointer.prefix, path, until)
        )

    def keep_only(self, folders: Collection[Path]) -> None:
        """Remove the other copies; what is mapped into memory stays readable after it is gone from here."""
        for folder in self._directory.iterdir() if self._directory.is_dir() else ():
            if folder not in folders:
                shutil.rmtree(folder, ignore_errors=True)

    def _bring(self, prefix: str, path: Path, until: float) -> None:
        if self._clock() > until:
            raise StoreUnavailable(
                f"{path.name}: the deltas take too long to fetch; the next refresh goes on"
            )
        data = self._get(f"{prefix}/{path.name}")
        if data is None:
            raise StoreUnavailable(f"{prefix}/{path.name} is not there yet")
        pending = path.with_suffix(".pending")
        pending.write_bytes(data)
        pending.rename(path)


@dataclass
class LiveSnapshot:
    """The live snapshot in this process, brought up to date when it is asked for."""

    app: App
    control: ControlTable
    copy: SnapshotCopy
    pointer: Pointer | None = None
    snapshot: ItemSnapshot | None = None

    def current(self) -> ItemSnapshot | None:
        """What is live now; None before the first."""
        pointer = self.control.read(snapshot_pointer(self.app.name))
        if pointer == self.pointer or pointer is None:
            return self.snapshot
        if self.snapshot is not None and self.pointer and self.pointer.prefix == pointer.prefix:
            self.snapshot = self.copy.follow(self.snapshot, pointer)
        else:
            self.snapshot = self.copy.open(pointer)
        self.pointer = pointer
        return self.snapshot


class SnapshotPublisher:
    """Extends the live snapshot by what changed, one delta for a batch, a new base where that is due.

    Publishers may run at once: whoever moves the pointer first wins, the others start again on what it made.
    """

    def __init__(
        self,
        live: LiveSnapshot,
        files: SnapshotFiles,
        scratch: Path,
        *,
        clock: Callable[[], float],
        most_deltas: int = MOST_DELTAS,
    ) -> None:
        self._live = live
        self._files = files
        self._scratch = scratch
        self._clock = clock
        self._most_deltas = most_deltas

    def publish(self, entries: Sequence[ItemEntry]) -> str | None:
        """Publish these entries, in the order of their changes; the version that has them all.

        None where there is nothing to publish and nothing was. Entries that are there already change
        nothing. Conflict when others publish faster for too long: the batch comes again.
        """
        if not entries:
            return self._live.pointer.version if self._live.pointer else None
        for _ in range(ATTEMPTS):
            snapshot = self._live.current()
            try:
                if snapshot is None:
                    self._first()
                    continue
                change = change_of(entries, snapshot, self._live.app.catalogue)
                if not len(change):
                    return snapshot.version
                if not change.fits(snapshot) or number_of(snapshot.version) >= self._most_deltas:
                    self._rebase(snapshot, change)
                    continue
                return self._extend(snapshot, change)
            except Conflict:
                continue
        raise Conflict(f"lost the race for the snapshot {ATTEMPTS} times")

    def _extend(self, snapshot: ItemSnapshot, change: SnapshotChange) -> str:
        pointer = self._pointer()
        version = next_version(snapshot.version, [change.ids, *_digested(change)])
        path = self._scratch / delta_file(version)
        self._scratch.mkdir(parents=True, exist_ok=True)
        change.write(path, snapshot, version)
        self._files.put(f"{pointer.prefix}/{path.name}", path.read_bytes())
        path.unlink()
        self._move(version, pointer.prefix)
        return version

    def _first(self) -> None:
        self._put_base(lambda folder, version: empty_base(folder, self._live.app.catalogue, version=version))

    def _rebase(self, snapshot: ItemSnapshot, change: SnapshotChange) -> None:
        """The same content on a base of its own; the change follows as its first delta."""
        self._put_base(lambda folder, version: new_base(folder, snapshot, change, version=version))

    def _put_base(self, write: Callable[[Path, str], None]) -> None:
        version = f"s{int(self._clock() * 1000)}"
        folder = self._scratch / version
        write(folder, version)
        self._files.upload(folder, f"snapshots/{version}")
        shutil.rmtree(folder)
        self._move(version, f"snapshots/{version}")

    def _pointer(self) -> Pointer:
        if self._live.pointer is None:
            raise Conflict("the snapshot has no pointer any more")
        return self._live.pointer

    def _move(self, version: str, prefix: str) -> None:
        before = self._live.pointer
        pointer = Pointer(version, prefix, self._clock(), base_of(before.version) if before else "")
        expected = before.version if before else None
        self._live.control.move(snapshot_pointer(self._live.app.name), pointer, expected=expected)


def _digested(change: SnapshotChange) -> list[str]:
    """What tells one change from another with the same items: the bytes of its columns."""
    named = sorted(change.columns.items())
    return [hashlib.sha256(column.tobytes()).hexdigest()[:16] for _, column in named]
