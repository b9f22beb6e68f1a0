"""What a process serves: loaded from a model bundle and an item snapshot, refreshed in the background."""

from __future__ import annotations

import hashlib
import json
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np

from narrows.adapters.lightgbm import load_scorer
from narrows.adapters.snapshots import SnapshotCopy
from narrows.control import Pointer
from narrows.errors import BundleError, NarrowsError, SnapshotError
from narrows.features import statistics
from narrows.features.registry import FeatureSet
from narrows.features.vectors import VectorSpec
from narrows.item_details import written
from narrows.pipeline import Stages
from narrows.policy import PolicyLog, PolicyState
from narrows.ranking import MANIFEST, EmbeddedRanker, FusionRanker, ModelManifest, Ranker, read_manifest
from narrows.retrieval import Floats, Rows
from narrows.settings import App
from narrows.snapshot import ItemSnapshot, open_snapshot, snapshot_of
from narrows.sources import SOURCES, SignallingSource
from narrows.sources.fresh import fresh
from narrows.sources.two_tower import TwoTowerSource
from narrows.vector_index import IndexVersions, VectorIndex
from narrows.visitor import VisitorReader

RANKER_FILE = "ranker.txt"
SEGMENTS_FILE = "segments.json"
ABSENT = "absent"
TWO_TOWER = "two_tower"
POINTERS_EVERY_S = 3.0
SLOWEST_RETRY_S = 60.0
DELTAS_WITHIN_S = 10.0
"""A refresh that fetches longer gives up; the next one goes on with what is here."""

PLACED_AT_ONCE = 20_000
"""Of the items without a vector, the newest so many get one in a refresh."""

FROZEN_S = 2.0
"""A poll that is so late was not kept waiting by its store, whose answers take a second at most."""

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
    sources = _sources(app, snapshot, bundle)
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
        **_parts(serving),
    )


def _parts(serving: Serving) -> dict[str, Any]:
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
    asked = {quota.name for surface in app.surfaces.values() for quota in surface.sources}
    for name, module in SOURCES.items() if bundle else ():
        if bundle is None or not (name in asked or bundle.holds(module.FILE)):
            continue
        source = bundle.load(module.FILE, partial(_bound, module.load, snapshot))
        if source is not None:
            sources[name] = source
    return _with_newest(sources, snapshot)


def _with_newest(
    sources: Mapping[str, SignallingSource], snapshot: ItemSnapshot
) -> dict[str, SignallingSource]:
    """The sources, of which those that can know the items that came after the training."""
    for source in sources.values():
        if isinstance(source, Placing):
            _place(source, snapshot)
    created = snapshot.columns.get("created_at")
    newest = {"fresh": fresh(created)} if created is not None and np.isfinite(created).any() else {}
    return {**sources, **newest}


@runtime_checkable
class Placing(Protocol):
    """A source that makes its own vectors of items that it was not trained on."""

    @property
    def vectors(self) -> Floats:
        """float32[capacity, d] by row, nan where a row has none."""

    def place(self, rows: Rows, texts: Sequence[str]) -> None:
        """Give each of these rows without a vector the one that its text says."""


def _place(source: Placing, snapshot: ItemSnapshot) -> None:
    """Vectors for the newest rows that have an item and no vector."""
    rows = np.flatnonzero(np.isnan(source.vectors[: snapshot.size, 0])).astype(np.int32)
    rows = rows[-PLACED_AT_ONCE:]
    rows = rows[snapshot.holds(rows)]
    if len(rows):
        source.place(rows, written(snapshot, rows.tolist()))


def _bound(load: Callable[[Path], Any], snapshot: ItemSnapshot, path: Path) -> Any:
    """What a file holds over the snapshot's rows; with lines for later ones where it can make use of them."""
    model = load(path)
    source = model.bind(snapshot.rows, snapshot.size)
    return model.bind(snapshot.rows, snapshot.capacity) if isinstance(source, Placing) else source


def _ranker(
    app: App,
    snapshot: ItemSnapshot,
    sources: Mapping[str, SignallingSource],
    bundle: _Bundle,
    library: Path | None,
) -> Ranker | None:
    manifest = bundle.manifest
    table = bundle.load(statistics.FILE, partial(_bound, statistics.load, snapshot))
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


@dataclass(frozen=True)
class Live:
    """What the control table points at; None before the first one."""

    model: Pointer | None = None
    snapshot: Pointer | None = None


class Cellar:
    """Copies what is live into a local folder and loads it; keeps only what is in use."""

    def __init__(
        self,
        app: App,
        copy: SnapshotCopy,
        *,
        library: Path | None = None,
        versions: IndexVersions | None = None,
    ) -> None:
        """`library` is LightGBM's, by default the one of the installed package; `versions` hold the vectors
        of an app that has them in an index of its own."""
        self._app = app
        self._copy = copy
        self._library = library
        self._versions = versions

    def load(self, live: Live) -> Serving:
        """Load the live model and snapshot, copying what is not here yet; SnapshotError for a damaged one."""
        model = self._copy.folder("model", live.model.prefix) if live.model else None
        items = self._copy.open(live.snapshot) if live.snapshot else None
        serving = load_serving(self._app, model, items, library=self._library)
        kept = {self._copy.folder("snapshot", live.snapshot.prefix)} if live.snapshot else set()
        self._copy.keep_only(kept | ({model} if model else set()))
        return self._with_index(serving)

    def _with_index(self, serving: Serving) -> Serving:
        """The index of the model's own version; without it every item is compared, and the reason is told."""
        if self._versions is None or TWO_TOWER not in serving.sources:
            return serving
        try:
            return replace(serving, index=self._versions.open(serving.model_version))
        except NarrowsError as error:
            return replace(serving, problems={**serving.problems, "index": type(error).__name__})

    def follow(self, serving: Serving, pointer: Pointer) -> Serving:
        """What is served, with the items of a later version of the same base; the models stay as they are.

        SnapshotError where the version does not descend from the one that is served.
        """
        snapshot = self._copy.follow(serving.snapshot, pointer, within_s=DELTAS_WITHIN_S)
        sources = _with_newest(serving.sources, snapshot)
        static_rows = snapshot.rows(self._app.static_items)
        return replace(
            serving,
            snapshot=snapshot,
            sources=sources,
            ranker=serving.ranker.over(snapshot, sources) if serving.ranker else None,
            fusion=serving.fusion.over(snapshot, sources),
            static_rows=static_rows[static_rows >= 0],
        )


def _damaged(serving: Serving) -> bool:
    """Whether there is a model that cannot be used; a bundle that comes without one is not damaged."""
    needed = (MANIFEST, RANKER_FILE, statistics.FILE)
    return any(serving.problems.get(file, ABSENT) != ABSENT for file in needed)


class Refresher:
    """Keeps the stages of a process up to date in the background, and never lets a failure end that.

    Pointers and policy have a thread each: however long a model takes to load, no rule waits for it. While
    something cannot be read, what was read last goes on serving; `errors` counts the failures.
    """

    def __init__(
        self,
        stages: Stages,
        *,
        policy_log: PolicyLog,
        current: Callable[[], Live],
        load: Callable[[Live], Serving],
        follow: Callable[[Serving, Pointer], Serving],
        now: Callable[[], float],
        jitter: random.Random,
        pointers_every_s: float = POINTERS_EVERY_S,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        """`load` opens what is live, `follow` brings what is served to a later version of the same base.

        `now` is in epoch seconds; `sleep` waits for so many seconds, by default until `stop` at most.
        """
        self.errors = 0
        self._wrong: dict[str, str] = {}
        self._stages = stages
        self._policy_log = policy_log
        self._current = current
        self._load = load
        self._follow = follow
        self._live = Live()
        self._serving: Serving | None = None
        self._deltas_due = float("-inf")
        self._now = now
        self._jitter = jitter
        self._stopped = threading.Event()
        self._sleep = sleep or self._stopped.wait
        policy_poll_s = stages.app.freshness.policy_poll_s
        self._tasks = {
            "pointers": (self._refresh_serving, pointers_every_s, SLOWEST_RETRY_S),
            "policy": (self._refresh_policy, policy_poll_s, policy_poll_s),
        }
        self._failures = dict.fromkeys(self._tasks, 0)
        self._due = dict.fromkeys(self._tasks, float("-inf"))
        self._replacing = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._catching_up: Future[None] | None = None

    @property
    def stages(self) -> Stages:
        """The stages as of the last refresh; a request takes them once and keeps them."""
        return self._stages

    @property
    def last_error(self) -> str | None:
        """What could not be refreshed when it was tried last, None when everything could."""
        return "; ".join(self._wrong.values()) or None

    def start(self) -> None:
        """Refresh once before returning, then go on in the background."""
        self.tick()
        self._threads = [
            threading.Thread(target=self._run, args=(name,), name=f"refresh-{name}", daemon=True)
            for name in self._tasks
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the background threads."""
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def catch_up(self, timeout_s: float) -> None:
        """Where this process was frozen, read the rules before the next answer; wait so many seconds at most.

        Between two invocations a function's environment stands still, and with it the threads that would have
        polled. A store that is away is no reason to wait: it is asked in time, only in vain.
        """
        if self._now() - self._due["policy"] > FROZEN_S and (
            not self._catching_up or self._catching_up.done()
        ):
            self._catching_up = self._stages.executor.submit(self._do_if_due, "policy")
            wait([self._catching_up], timeout_s)

    def tick(self) -> None:
        """Do what is due now, and draw when it is due again: at most its interval later.

        After failures in a row the pointers are asked less often, the policy log is not.
        """
        for name in self._tasks:
            self._do_if_due(name)

    def _run(self, name: str) -> None:
        while not self._stopped.is_set():
            self._sleep(max(0.0, self._due[name] - self._now()))
            self._do_if_due(name)

    def _do_if_due(self, name: str) -> None:
        refresh, every_s, slowest_s = self._tasks[name]
        if self._now() < self._due[name]:
            return
        try:
            refresh()
            self._failures[name] = 0
            self._wrong.pop(name, None)
        except Exception as error:  # noqa: BLE001  # it is counted and shown, and the next round tries again
            with self._replacing:
                self.errors += 1
            self._failures[name] += 1
            self._wrong[name] = f"{name}: {type(error).__name__}: {error}"
        wait_s = min(every_s * 2.0 ** min(self._failures[name], 16), slowest_s)
        self._due[name] = self._now() + wait_s * self._jitter.uniform(0.5, 1.0)

    def _refresh_serving(self) -> None:
        live = self._current()
        if live == self._live:
            return
        serving = self._followed(live)
        if serving is None:
            return
        if live.model and self._stages.ranker is not None and _damaged(serving):
            raise BundleError(f"model {live.model.version} does not load: {dict(serving.problems)}")
        with self._replacing:
            policy = self._stages.policy.bind(serving.snapshot)
            self._stages = replace(self._stages, policy=policy, **_parts(serving))
        self._live, self._serving = live, serving

    def _followed(self, live: Live) -> Serving | None:
        """What is to be served; None where only deltas came and it is too early for the next.

        Thousands of processes would otherwise fetch each delta at the same moment; so each waits for a part
        of the app's interval that it draws itself.
        """
        before, pointer = self._live.snapshot, live.snapshot
        same_base = before is not None and pointer is not None and before.prefix == pointer.prefix
        if self._serving is None or pointer is None or not same_base or live.model != self._live.model:
            return self._load(live)
        if self._now() < self._deltas_due:
            return None
        every_s = self._stages.app.freshness.snapshot_delta_s
        self._deltas_due = self._now() + every_s * self._jitter.uniform(0.5, 1.0)
        try:
            return self._follow(self._serving, pointer)
        except SnapshotError:  # a damaged delta, or one of another line: opened from the base, all is checked
            return self._load(live)

    def _refresh_policy(self) -> None:
        asked_at, known = self._now(), self._stages.policy.version
        changes = self._policy_log.read(known)
        version = max([known, *(change.version for change in changes)])
        with self._replacing:
            policy = self._stages.policy.apply(changes, version, asked_at)
            self._stages = replace(self._stages, policy=policy)
