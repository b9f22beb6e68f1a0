"""Before and after a model is live: the index of its item vectors, where the app has them in one."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from narrows.adapters.control import DynamoControlTable
from narrows.adapters.opensearch_versions import index_versions
from narrows.adapters.s3 import S3Objects
from narrows.adapters.snapshots import LiveSnapshot, SnapshotCopy
from narrows.adapters.text_encoders import text_encoder
from narrows.errors import StoreUnavailable
from narrows.index_building import build_index, keep_indexes, undo_index
from narrows.settings import App
from narrows.snapshot import ItemSnapshot
from narrows.sources import two_tower
from narrows.vector_index import IndexVersions, opened

PUBLISHING_S = 5.0
"""How long after its window a change is published at the latest, as a rule."""


class IndexBuilder:
    """Builds the index of a candidate that has an item network, and drops those of former ones."""

    def __init__(
        self,
        app: App,
        versions: IndexVersions | None,
        control: DynamoControlTable,
        objects: S3Objects,
        item_window_s: int,
        sleep: Callable[[float], object],
    ) -> None:
        """Changes of items are gathered for `item_window_s` before they are published."""
        self._app, self._versions, self._control, self._objects = app, versions, control, objects
        self._wait = partial(sleep, item_window_s + PUBLISHING_S)

    def lacks(self, version: str) -> bool:
        """Whether there is no whole index of that version, where the app has indexes."""
        return self._versions is not None and opened(self._versions, version) is None

    def build(self, directory: Path, version: str) -> None:
        """From the live catalogue's items; nothing without an index, an item network or a catalogue.

        StoreUnavailable where it cannot.
        """
        file = directory / two_tower.FILE
        if self._versions is None or not file.is_file():
            return
        with tempfile.TemporaryDirectory() as scratch:
            copy = SnapshotCopy(Path(scratch), self._objects.download, self._objects.get)
            live = LiveSnapshot(self._app, self._control, copy)
            if live.current() is not None:
                network = two_tower.load(file).reading(text_encoder(self._app.text_vectors))
                build_index(self._versions, version, network, partial(_newest, live), self._wait)

    def keep(self, live: str, previous: str) -> None:
        """Drop all indexes but those of the live model and its predecessor."""
        if self._versions is not None:
            keep_indexes(self._versions, live, previous)

    def undo(self, version: str, live: str) -> None:
        """Drop the index of a model that is not promoted after all."""
        if self._versions is not None:
            undo_index(self._versions, version, live)


def _newest(live: LiveSnapshot) -> ItemSnapshot:
    snapshot = live.current()
    if snapshot is None:
        raise StoreUnavailable("the catalogue's pointer is gone; promote again when it is back")
    return snapshot


def versions_of(app: App, url: str, name: str, engine: str, region: str) -> IndexVersions | None:
    """The app's indexes; None where its vectors lie in the serving processes."""
    if not url:
        return None
    return index_versions(app.index, url=url, name=name, engine=engine, region=region)
