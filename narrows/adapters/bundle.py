"""What a process serves, loaded from a model bundle and an item snapshot."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from narrows.adapters.lightgbm import load_scorer
from narrows.adapters.placing import TEXT_ENCODER, by_region, with_newest
from narrows.adapters.text_encoders import text_encoder
from narrows.errors import BundleError, NarrowsError, SnapshotError
from narrows.features import statistics
from narrows.features.registry import FeatureSet
from narrows.features.vectors import VectorSpec
from narrows.pipeline import Stages
from narrows.policy import PolicyState
from narrows.ranking import MANIFEST, EmbeddedRanker, FusionRanker, ModelManifest, Ranker, read_manifest
from narrows.retrieval import Rows
from narrows.settings import App
from narrows.snapshot import ItemSnapshot, open_snapshot, snapshot_of
from narrows.sources import SOURCES, SignallingSource
from narrows.sources.two_tower import TwoTowerSource
from narrows.text_vectors import TextEncoder
from narrows.vector_index import VectorIndex
from narrows.visitor import VisitorReader

RANKER_FILE = "ranker.txt"
SEGMENTS_FILE = "segments.json"
ABSENT = "absent"
TWO_TOWER = "two_tower"
ABOUT_FILE = "about.json"
"""Of an index beside a source, the file that names it; see `bundled_indexes`."""

Loaded = TypeVar("Loaded")


@dataclass(frozen=True, eq=False)
class Serving:
    """All that is loaded from files; `problems`: file -> why it is not in use, "absent" or an error.

    `index` holds the vectors of the two towers; where there is none, every item's vector is compared here.
    """

    snapshot: ItemSnapshot
    sources: Mapping[str, SignallingSource]
    ranker: Ranker | None
    fusion: Ranker
    segment_slates: Mapping[str, Rows]
    static_rows: Rows
    model_version: str | None
    problems: Mapping[str, str] = field(default_factory=dict)
    index: VectorIndex | None = None


def load_serving(
    app: App,
    model_dir: Path | None,
    items: Path | ItemSnapshot | None,
    *,
    verify: bool = True,
    library: Path | None = None,
) -> Serving:
    """Load what is there; the missing and the damaged are named in `problems`, the rest serves.

    `items` is a snapshot or its folder; without one those of the app's static list are all that is known.
    """
    problems: dict[str, str] = {}
    snapshot = items if isinstance(items, ItemSnapshot) else _snapshot(app, items, verify, problems)
    static_rows = snapshot.rows(app.static_items)
    bundle = _Bundle(model_dir, app, problems, verify) if model_dir else None
    sources, unplaced = with_newest(_sources(app, snapshot, bundle), snapshot)
    for part, why in unplaced.items():
        problems.setdefault(part, why)
    return Serving(
        snapshot=snapshot,
        sources=sources,
        ranker=_ranker(app, snapshot, sources, bundle, library) if bundle else None,
        fusion=FusionRanker(snapshot),
        segment_slates=_segments(snapshot, bundle) if bundle else {},
        static_rows=static_rows[static_rows >= 0],
        model_version=bundle.manifest.version if bundle and bundle.manifest else None,
        problems=problems,
    )


def stages_of(
    app: App,
    serving: Serving,
    *,
    visitors: VisitorReader,
    executor: Executor,
    clock: Callable[[], float],
) -> Stages:
    """The stages over what is loaded, with a policy that has not heard from its log yet."""
    return Stages(
        app=app,
        features=FeatureSet(app.features),
        visitors=visitors,
        policy=PolicyState.over(serving.snapshot),
        executor=executor,
        clock=clock,
        **parts_of(serving),
    )


def parts_of(serving: Serving) -> dict[str, Any]:
    """What becomes a part of the stages; a search goes through the index, a placement never does."""
    parts = {name: getattr(serving, name) for name in serving.__dataclass_fields__ if name != "index"}
    source = serving.sources.get(TWO_TOWER)
    if serving.index is not None and isinstance(source, TwoTowerSource):
        parts["sources"] = {**serving.sources, TWO_TOWER: source.searching(serving.index)}
    return parts


class _Bundle:
    """A folder with a manifest; gives each file only when its checksum is right."""

    def __init__(self, directory: Path, app: App, problems: dict[str, str], verify: bool) -> None:
        self._directory = directory
        self._verify = verify
        self._problems = problems
        self.manifest: ModelManifest | None = self.attempt(MANIFEST, lambda: self._manifest(app))

    def _manifest(self, app: App) -> ModelManifest:
        manifest = read_manifest(self._directory, verify=False)
        if manifest.app != app.name:
            raise BundleError(f"{self._directory} was made for app {manifest.app!r}, this is {app.name!r}")
        return manifest

    def holds(self, file: str) -> bool:
        """Whether the manifest names it."""
        return self.manifest is not None and file in self.manifest.files

    def attempt(self, file: str, load: Callable[[], Loaded]) -> Loaded | None:
        """What `load` gives; None, and a problem under the file's name, when it cannot."""
        try:
            return load()
        except (NarrowsError, OSError, ValueError, LookupError, TypeError) as error:
            self._problems[file] = type(error).__name__
            return None

    def load(self, file: str, load: Callable[[Path], Loaded]) -> Loaded | None:
        """What `load` makes of a file that is the one in the manifest; None, and a problem, otherwise."""
        if self.manifest is None:
            return None
        if file not in self.manifest.files or not (self._directory / file).is_file():
            self._problems[file] = ABSENT
            return None
        return self.attempt(file, lambda: load(self._checked(file)))

    def index(self, name: str, rows: Rows) -> VectorIndex | None:
        """The index beside a source, bound to these rows; None, and a problem, where it cannot be used."""
        from narrows.adapters.bundled_indexes import bound_index, index_files  # small apps need no faiss

        def load() -> VectorIndex:
            for file in index_files(name):
                self._checked(file)
            return bound_index(self._directory, name, rows)

        return self.attempt(f"{name}.{ABOUT_FILE}", load)

    def _checked(self, file: str) -> Path:
        path = self._directory / file
        if self._verify and self.manifest is not None:
            with path.open("rb") as content:
                found = hashlib.file_digest(content, "sha256").hexdigest()
            if found != self.manifest.files[file]:
                raise BundleError(f"{path} differs from its manifest; copy the bundle again")
        return path


def _snapshot(app: App, directory: Path | None, verify: bool, problems: dict[str, str]) -> ItemSnapshot:
    try:
        if directory is not None:
            return open_snapshot(directory, verify=verify)
        problems["snapshot"] = ABSENT
    except SnapshotError as error:
        problems["snapshot"] = type(error).__name__
    return snapshot_of(app.static_items, "static")


def _sources(app: App, snapshot: ItemSnapshot, bundle: _Bundle | None) -> dict[str, SignallingSource]:
    """Those of the bundle; one that is not in it is missed only where a surface asks for it."""
    sources: dict[str, SignallingSource] = {}
    reading = bundle.attempt(TEXT_ENCODER, lambda: text_encoder(app.text_vectors)) if bundle else None
    asked = {quota.name for surface in app.surfaces.values() for quota in surface.sources}
    for name, module in SOURCES.items() if bundle else ():
        if bundle is None or not (name in asked or bundle.holds(module.FILE)):
            continue
        source = bundle.load(module.FILE, partial(_bound, module.load, snapshot, reading, bundle, name))
        if source is not None:
            sources[name] = source
    return sources


def _bound(
    load: Callable[[Path], Any],
    snapshot: ItemSnapshot,
    reading: TextEncoder | None,
    bundle: _Bundle,
    name: str,
    path: Path,
) -> Any:
    """What a file holds over the snapshot's rows; with lines for later ones where it can make use of them.

    Where an index lies beside it, searches go through that; a damaged one is named, and all is compared.
    """
    model = load(path)
    places = hasattr(model, "reading")
    model = model.reading(reading) if places else model
    source = model.bind(snapshot.rows, snapshot.capacity if places else snapshot.size)
    if not bundle.holds(f"{name}.{ABOUT_FILE}"):
        return source
    index = bundle.index(name, snapshot.rows(model.item_ids.tolist()))
    return source if index is None else source.searching(by_region(index, snapshot))


def _ranker(
    app: App,
    snapshot: ItemSnapshot,
    sources: Mapping[str, SignallingSource],
    bundle: _Bundle,
    library: Path | None,
) -> Ranker | None:
    manifest = bundle.manifest
    table = bundle.load(
        statistics.FILE, lambda path: statistics.load(path).bind(snapshot.rows, snapshot.size)
    )
    scorer = bundle.load(RANKER_FILE, lambda path: load_scorer(path, library=library))
    if manifest is None or table is None or scorer is None:
        return None
    return bundle.attempt(
        RANKER_FILE,
        lambda: EmbeddedRanker(
            snapshot,
            table,
            sources,
            scorer,
            VectorSpec.from_json(manifest.spec),
            fingerprint=manifest.fingerprint,
            version=manifest.version,
            features=FeatureSet(app.features),
        ),
    )


def _segments(snapshot: ItemSnapshot, bundle: _Bundle) -> dict[str, Rows]:
    slates = bundle.load(SEGMENTS_FILE, lambda path: json.loads(path.read_text("utf-8"))) or {}
    return {
        segment: rows[rows >= 0]
        for segment, rows in ((segment, snapshot.rows(ids)) for segment, ids in slates.items())
    }
