"""What a process serves, kept up to date in the background: copies of what is live, deltas, and policy."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from narrows.adapters.bundle import (
    ABSENT,
    RANKER_FILE,
    TWO_TOWER,
    Serving,
    load_serving,
    parts_of,
)
from narrows.adapters.placing import REGIONS, TEXT_ENCODER, with_newest, with_regions
from narrows.adapters.snapshots import SnapshotCopy
from narrows.control import Pointer
from narrows.encoding import Array
from narrows.errors import BundleError, NarrowsError, SnapshotError
from narrows.features import statistics
from narrows.pipeline import Stages
from narrows.policy import PolicyLog
from narrows.ranking import MANIFEST
from narrows.settings import App
from narrows.snapshot import ItemSnapshot
from narrows.vector_index import IndexGone, IndexVersions, WatchedIndex

POINTERS_EVERY_S = 3.0
SLOWEST_RETRY_S = 60.0
DELTAS_WITHIN_S = 10.0
"""A refresh that fetches longer gives up; the next one goes on with what is here."""

INDEX = "index"
MENDED = frozenset({TEXT_ENCODER, INDEX})
"""What is missing while another server is away: each refresh tries again."""

FROZEN_S = 2.0
"""A poll that is so late was not kept waiting by its store, whose answers take a second at most."""


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
            return replace(serving, index=WatchedIndex(self._versions.open(serving.model_version)))
        except NarrowsError as error:
            return _without_index(serving, type(error).__name__)

    def follow(self, serving: Serving, pointer: Pointer) -> Serving:
        """What is served, with the items of a later version of the same base; the models stay as they are.

        SnapshotError where the version does not descend from the one that is served.
        """
        sold = _regions(serving.snapshot)
        snapshot = self._copy.follow(serving.snapshot, pointer, within_s=DELTAS_WITHIN_S)
        sources, unplaced = with_newest(serving.sources, snapshot)
        if not np.array_equal(sold, _regions(snapshot)[: len(sold)]):
            sources = with_regions(sources, snapshot)
        known = {part: why for part, why in serving.problems.items() if part not in MENDED}
        static_rows = snapshot.rows(self._app.static_items)
        followed = replace(
            serving,
            snapshot=snapshot,
            sources=sources,
            ranker=serving.ranker.over(snapshot, sources) if serving.ranker else None,
            fusion=serving.fusion.over(snapshot, sources),
            static_rows=static_rows[static_rows >= 0],
            problems={**known, **unplaced},
        )
        return self._with_index(followed) if serving.index is None else followed


def _regions(snapshot: ItemSnapshot) -> Array:
    """A copy, since the next version of a snapshot changes the lines of this one."""
    return np.array(snapshot.columns.get(REGIONS, ()))


def _without_index(serving: Serving, why: str) -> Serving:
    """Every item is compared, and the reason is told; with each later refresh it is looked for again."""
    return replace(serving, index=None, problems={**serving.problems, INDEX: why})


def _lost_index(serving: Serving) -> bool:
    return isinstance(serving.index, WatchedIndex) and serving.index.gone


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
        if self._serving is not None and _lost_index(self._serving):
            self._serve(_without_index(self._serving, IndexGone.__name__))
        live = self._current()
        if live == self._live and not (live.snapshot and self._waits()):
            return
        serving = self._followed(live)
        if serving is None:
            return
        if live.model and self._stages.ranker is not None and _damaged(serving):
            raise BundleError(f"model {live.model.version} does not load: {dict(serving.problems)}")
        self._serve(serving)
        self._live = live

    def _serve(self, serving: Serving) -> None:
        with self._replacing:
            policy = self._stages.policy.bind(serving.snapshot)
            self._stages = replace(self._stages, policy=policy, **parts_of(serving))
        self._serving = serving

    def _waits(self) -> bool:
        """Whether something is missing that may be there the next time."""
        return self._serving is not None and not MENDED.isdisjoint(self._serving.problems)

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
