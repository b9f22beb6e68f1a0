"""Loading a bundle piece by piece, and the thread that keeps a process up to date."""

from __future__ import annotations

import json
import random
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import lightgbm
import numpy as np
import pytest

from narrows.adapters.bundle import Serving, load_serving, stages_of
from narrows.adapters.memory import MemoryPolicyLog
from narrows.adapters.memory_vectors import MemoryIndexVersions, MemoryVectorIndex
from narrows.adapters.refreshing import Cellar, Live, Refresher
from narrows.adapters.snapshots import SnapshotCopy
from narrows.control import Pointer
from narrows.errors import SnapshotError, StoreUnavailable
from narrows.events import Event
from narrows.features import statistics
from narrows.features.registry import FeatureSet
from narrows.features.state import VisitorState
from narrows.features.vectors import VectorSpec
from narrows.interactions import interactions_of
from narrows.pipeline import Request, Stages, recommend
from narrows.policy import Change
from narrows.ranking import EmbeddedRanker, ModelManifest, read_manifest, write_manifest
from narrows.retrieval import Floats
from narrows.settings import App, load_app
from narrows.snapshot import ItemSnapshot, open_base, write_base, write_delta
from narrows.snapshot_versions import delta_file
from narrows.sources import als, covisitation, load_sources, popular, two_tower
from narrows.vector_index import EVERYTHING, IndexGone, Neighbours, VectorIndex, Where, absent
from narrows.visitor import Visitor
from tests.unit.test_indexing import network
from tests.unit.test_sources_learned import query

APPS = Path(__file__).parents[2] / "apps"
NOW = 1_700_000_000.0
ITEMS = [f"item-{number:05d}" for number in range(60)]


class NoVisitors:
    """A reader that knows nobody."""

    def read(
        self, user_key: str | None, session_key: str | None, surface: str, *, now: float, timeout_s: float
    ) -> Visitor:
        return Visitor()


def write_snapshot(directory: Path, version: str) -> ItemSnapshot:
    """Sixty items with everything that sources and ranker read."""
    columns = {
        "category": [["abc"[number % 3]] for number in range(60)],
        "brand": ["xy"[number % 2] for number in range(60)],
        "price": np.linspace(1.0, 60.0, 60),
        "created_at": NOW - np.arange(60) * 86_400.0,
    }
    write_base(directory, ITEMS, columns, version=version, spare=5)
    return open_base(directory)


def write_bundle(
    directory: Path,
    snapshot: ItemSnapshot,
    version: str,
    *,
    app: str = "megashop",
    likes: tuple[str, float] = ("price.value", -1.0),
    features: FeatureSet | None = None,
) -> None:
    """A whole bundle, its model trained to like what the feature tells, with its sign: cheap items."""
    directory.mkdir()
    generator = np.random.default_rng(0)
    users, items = generator.integers(0, 30, 600), generator.integers(0, 60, 600)
    log = interactions_of(
        [f"u{number}" for number in users],
        [ITEMS[number] for number in items],
        NOW - generator.random(600) * 1e6,
        np.ones(600),
    )
    als.fit(log, als.Params(), generator).save(directory / als.FILE)
    covisitation.fit(log, covisitation.Params()).save(directory / covisitation.FILE)
    shares = popular.fit(log, popular.Params())
    shares.save(directory / popular.FILE)
    statistics.fit(log, statistics.Params()).save(directory / statistics.FILE)
    (directory / "segments.json").write_text(json.dumps({**shares.slates(10), "gone": ["nothing"]}))
    sources = load_sources(directory, snapshot.rows, snapshot.size, created=snapshot.columns["created_at"])
    spec = VectorSpec.over(sources, snapshot, features)
    matrix = generator.random((400, len(spec.names)))
    feature, sign = likes
    data = lightgbm.Dataset(matrix, label=sign * matrix[:, spec.names.index(feature)])
    settings = {"objective": "regression", "verbosity": -1, "num_threads": 1, "min_data_in_leaf": 5}
    lightgbm.train(settings, data, num_boost_round=5).save_model(directory / "ranker.txt")
    manifest = ModelManifest(
        version, app, NOW, spec.names, spec.fingerprint(), json.loads(json.dumps(spec.to_json()))
    )
    write_manifest(directory, manifest)


@pytest.fixture(scope="module")
def app() -> App:
    """The shop."""
    return load_app(APPS / "megashop")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with a snapshot and a model, as they lie on S3."""
    store = tmp_path_factory.mktemp("store")
    write_bundle(store / "model", write_snapshot(store / "snapshot", "s1"), "m1")
    return store


@pytest.fixture
def store(made: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may spoil."""
    return Path(shutil.copytree(made, tmp_path / "store"))


def test_a_whole_bundle_serves(app: App, store: Path) -> None:
    """Four sources, the model, slates by segment and the static list over the snapshot's rows."""
    serving = load_serving(app, store / "model", store / "snapshot")
    assert serving.problems == {}
    assert set(serving.sources) == {"als", "covisitation", "popular", "fresh"}
    assert isinstance(serving.ranker, EmbeddedRanker)
    assert (serving.model_version, serving.snapshot.version) == ("m1", "s1")
    assert len(serving.segment_slates[""]) == 10
    assert len(serving.segment_slates["gone"]) == 0
    assert serving.static_rows.tolist() == list(range(50))


@pytest.mark.parametrize("file", ["als.npz", "covisitation.npz", "popular.npz", "segments.json"])
def test_a_damaged_part_is_refused_and_the_rest_serves(app: App, store: Path, file: str) -> None:
    """One flipped byte: that file is named and not used, everything else is."""
    content = bytearray((store / "model" / file).read_bytes())
    content[len(content) // 2] ^= 1
    (store / "model" / file).write_bytes(content)
    serving = load_serving(app, store / "model", store / "snapshot")
    assert serving.problems == {file: "BundleError"}
    assert file.removesuffix(".npz") not in serving.sources
    assert serving.ranker is not None
    assert len(serving.sources) + len(serving.segment_slates) > 3


@pytest.mark.parametrize("file", ["ranker.txt", "item_stats.npz"])
@pytest.mark.parametrize("how", ["absent", "BundleError"])
def test_without_a_usable_model_there_is_no_ranker(app: App, store: Path, file: str, how: str) -> None:
    """Missing or cut short, the model and its statistics are named and the sources go on."""
    path = store / "model" / file
    path.unlink() if how == "absent" else path.write_bytes(path.read_bytes()[:50])
    serving = load_serving(app, store / "model", store / "snapshot")
    assert (serving.ranker, serving.problems) == (None, {file: how})
    assert len(serving.sources) == 4


def test_a_model_of_other_features_is_refused(app: App, store: Path) -> None:
    """A fingerprint that this code does not compute is a mismatch, not a guess."""
    manifest = json.loads((store / "model" / "manifest.json").read_text())
    (store / "model" / "manifest.json").write_text(json.dumps({**manifest, "fingerprint": "0" * 16}))
    serving = load_serving(app, store / "model", store / "snapshot")
    assert (serving.ranker, serving.problems) == (None, {"ranker.txt": "FingerprintMismatch"})


@pytest.fixture
def taught(app: App, tmp_path: Path) -> Path:
    """A store whose model has the shop's declared features, and likes the brands that the visitor likes."""
    snapshot = write_snapshot(tmp_path / "snapshot", "s1")
    likes = ("cross.brand_affinity", 1.0)
    write_bundle(tmp_path / "model", snapshot, "m1", likes=likes, features=FeatureSet(app.features))
    return tmp_path


def test_a_model_is_served_the_features_that_it_was_trained_on(app: App, taught: Path) -> None:
    """After views of brand y, items of brand y lead; the record holds the values that the model read."""

    class Likes(NoVisitors):
        """Knows a user who looked at one brand."""

        def __init__(self, brand: str) -> None:
            features = FeatureSet(app.features)
            seen = [
                Event(
                    str(n), "view", NOW - 60, NOW, user_id="1", item_id=ITEMS[n], properties={"brand": brand}
                )
                for n in range(5)
            ]
            self.visitor = Visitor(user=VisitorState(features.add_all(features.zero(), seen)))

        def read(self, *_: object, **__: object) -> Visitor:  # type: ignore[override]
            return self.visitor

    serving = load_serving(app, taught / "model", taught / "snapshot")
    assert serving.problems == {}
    brands = {}
    for brand in "xy":
        stages = heard(stages_of(app, serving, **{**parts(), "visitors": Likes(brand)}))
        asked = Request("homepage", 5, NOW, stages.clock() + 5.0, "r1", user_key="u#1")
        answer = recommend(asked, replace(stages, app=without_variety(app)))
        assert (answer.fallback, answer.degraded) == ("full", {})
        brands[brand] = {"xy"[int(item.item_id[-5:]) % 2] for item in answer.slate}
        assert answer.record.visitor_features[f"brand_interest[{brand}]"] == pytest.approx(5.0, rel=1e-3)
        assert answer.record.request_features["days_since_last_visit"] == pytest.approx(60 / 86_400)
    assert brands == {"x": {"x"}, "y": {"y"}}


def without_variety(app: App) -> App:
    """The shop with a homepage in the ranker's own order."""
    homepage = app.surfaces["homepage"]
    plain = replace(homepage, diversity=replace(homepage.diversity, method="none", caps={}))
    return replace(app, surfaces={**app.surfaces, "homepage": plain})


def test_a_model_is_refused_where_a_definition_has_changed(app: App, taught: Path) -> None:
    """Another half-life of a feature that it reads is another feature; of one that it does not, nothing."""

    def changed(name: str) -> App:
        features = tuple(
            replace(one, parameters={**one.parameters, "half_life_s": 60.0}) if one.name == name else one
            for one in app.features
        )
        return replace(app, features=features)

    serving = load_serving(changed("brand_interest"), taught / "model", taught / "snapshot")
    assert (serving.ranker, serving.problems) == (None, {"ranker.txt": "FingerprintMismatch"})
    assert load_serving(changed("item_click_rate"), taught / "model", taught / "snapshot").ranker is not None


def test_without_a_manifest_nothing_of_the_model_is_trusted(app: App, store: Path) -> None:
    """What cannot be checked is not used; fresh needs no file."""
    (store / "model" / "manifest.json").unlink()
    serving = load_serving(app, store / "model", store / "snapshot")
    assert serving.problems == {"manifest.json": "BundleError"}
    assert (set(serving.sources), serving.ranker, serving.model_version) == ({"fresh"}, None, None)


def test_another_apps_bundle_is_refused(app: App, store: Path) -> None:
    """A pointer that was moved to the wrong app's model changes nothing for the visitors."""
    serving = load_serving(replace(app, name="media"), store / "model", store / "snapshot")
    assert serving.problems == {"manifest.json": "BundleError"}


def test_before_the_first_catalogue_the_static_list_serves(app: App, tmp_path: Path) -> None:
    """The first deploy has no files: the shipped list answers."""
    stages = heard(stages_of(app, load_serving(app, None, None), **parts()))
    answer = recommend(Request("homepage", 5, NOW, stages.clock() + 1.0, "r1", user_key="u#1"), stages)
    assert (answer.fallback, answer.model_version) == ("static", None)
    assert [item.item_id for item in answer.slate] == list(app.static_items[:5])
    assert answer.degraded["load.snapshot"] == "absent"
    damaged = load_serving(app, None, tmp_path)
    assert damaged.problems == {"snapshot": "SnapshotError"}


def test_a_day_0_account_of_adpilot_gets_a_good_way_to_start() -> None:
    """On each of its surfaces, before there is any file, and the features of the request are served."""
    app = load_app(APPS / "adpilot")
    stages = heard(stages_of(app, load_serving(app, None, None), **parts()))
    for surface, asked in app.surfaces.items():
        request = Request(
            surface, asked.limit, NOW, stages.clock() + 1.0, "r1", user_key="u#1", context={"location": "DE"}
        )
        answer = recommend(request, stages)
        assert (answer.fallback, len(answer.slate)) == ("static", asked.limit)
        assert {item.reason for item in answer.slate} == {"A good way to start"}
        values = answer.record.request_features
        assert (values["request_region"], values["days_since_signup_missing"]) == (1.0, 1.0)
        assert answer.record.visitor_features["industry_missing"] == 1.0


def parts() -> dict[str, object]:
    """What stages need besides files."""
    return {"visitors": NoVisitors(), "executor": ThreadPoolExecutor(4), "clock": time.perf_counter}


def heard(stages: Stages) -> Stages:
    """The stages after their policy log answered."""
    return replace(stages, policy=stages.policy.apply([], 0, NOW))


def test_the_whole_path_in_one_process(app: App, store: Path) -> None:
    """A loaded bundle answers in full, and the model's taste shows: the cheap before the dear."""
    stages = heard(stages_of(app, load_serving(app, store / "model", store / "snapshot"), **parts()))
    answer = recommend(Request("homepage", 60, NOW, stages.clock() + 5.0, "r1", user_key="u#1"), stages)
    assert (answer.fallback, answer.degraded, answer.model_version) == ("full", {}, "m1")
    considered = [one.row for one in answer.record.considered]
    assert np.mean(considered[:10]) < np.mean(considered[-10:])


class Control:
    """A pointer that a test moves, a store that can go away, and time that passes when it says so."""

    def __init__(self, app: App, store: Path, cellar: Path) -> None:
        self.live = Live()
        self.time = NOW
        self.error: Exception | None = None
        self.hold: threading.Event | None = None
        self.log = MemoryPolicyLog()
        self.asked: list[float] = []
        self.loads: list[Live] = []
        self.cellar = Cellar(app, SnapshotCopy(cellar, self.download, self.get))
        self.store = store

    def download(self, prefix: str, folder: Path) -> None:
        shutil.copytree(self.store / prefix, folder, dirs_exist_ok=True)

    def get(self, key: str) -> bytes | None:
        path = self.store / key
        return path.read_bytes() if path.exists() else None

    def current(self) -> Live:
        self._fail()
        return self.live

    def load(self, live: Live) -> Serving:
        self.loads.append(live)
        return self.cellar.load(live)

    def read(self, since: int) -> Sequence[Change]:
        self.asked.append(self.time)
        if self.hold:
            self.hold.wait(10.0)
        self._fail()
        return self.log.read(since)

    def append(self, changes: Sequence[Change], *, now: float) -> int:
        return self.log.append(changes, now=now)

    def point(self, model: str | None, snapshot: str | None) -> None:
        """Move the pointers to these prefixes."""
        self.live = Live(
            Pointer(model, model, NOW) if model else None,
            Pointer(snapshot, snapshot, NOW) if snapshot else None,
        )

    def _fail(self) -> None:
        if self.error:
            raise self.error


@pytest.fixture
def control(app: App, store: Path, tmp_path: Path) -> Control:
    """Nothing is live yet."""
    return Control(app, store, tmp_path / "cellar")


def refresher(app: App, control: Control, sleep: Callable[[float], object] | None = None) -> Refresher:
    """A refresher over an empty process."""
    return Refresher(
        stages_of(app, load_serving(app, None, None), **parts()),
        policy_log=control,
        current=control.current,
        load=control.load,
        follow=control.cellar.follow,
        now=lambda: control.time,
        jitter=random.Random(0),
        sleep=sleep,
    )


def test_a_moved_pointer_is_followed_as_a_whole(app: App, control: Control) -> None:
    """Model and snapshot change together; a request keeps the stages it took; nothing loads twice."""
    fresh = refresher(app, control)
    fresh.tick()
    before = fresh.stages
    assert before.model_version is None
    control.point("model", "snapshot")
    control.time += 3.0
    fresh.tick()
    assert (fresh.stages.model_version, fresh.stages.snapshot.version) == ("m1", "s1")
    assert (before.model_version, before.snapshot.version) == (None, "static")
    for _ in range(5):
        control.time += 3.0
        fresh.tick()
    assert len(control.loads) == 1
    assert fresh.last_error is None


def extend(control: Control, number: int, ids: Sequence[str], **columns: Sequence[object]) -> None:
    """Publish the next delta of the live snapshot, and move the pointer to it."""
    folder, before = control.store / "snapshot", open_base(control.store / "snapshot")
    versions = sorted(path.name for path in folder.glob("delta-*.npz"))
    for name in versions:
        before = before.apply(folder / name)
    version = f"s1+{number:06d}-abc"
    write_delta(folder / delta_file(version), before, ids, columns, version=version)
    control.live = replace(control.live, snapshot=Pointer(version, "snapshot", NOW))


def test_a_delta_brings_new_items_without_loading_anything_again(app: App, control: Control) -> None:
    """The newest item is offered as fresh and ranked; what was known of it by its id holds; models stay."""
    refreshed = refresher(app, control)
    control.point("model", "snapshot")
    refreshed.tick()
    before = refreshed.stages
    control.append([Change("block", "late-1", True)], now=NOW)
    extend(control, 1, ["late-0", "late-1"], created_at=[NOW + 1, NOW + 2], price=[0.5, 0.5])
    for _ in range(2):  # the pointers' turn, and the policy's
        control.time += 3.0
        refreshed.tick()
    after = refreshed.stages
    assert (after.snapshot.version, after.snapshot.size) == ("s1+000001-abc", 62)
    assert len(control.loads) == 1
    assert after.sources["als"] is before.sources["als"]
    request = Request("homepage", 20, NOW + 10, after.clock() + 5.0, "r1", user_key="u#1")
    answer = recommend(request, after)
    assert (answer.fallback, answer.degraded) == ("full", {})
    assert "late-0" in [item.item_id for item in answer.slate]
    assert "late-1" not in [item.item_id for item in answer.slate]
    assert "late-0" not in [item.item_id for item in recommend(request, heard(before)).slate]


def test_deltas_are_fetched_at_most_once_in_the_apps_interval(app: App, control: Control) -> None:
    """However often the pointer moves; the first comes at once, and none is left out."""
    refreshed = refresher(app, control)
    control.point("model", "snapshot")
    refreshed.tick()
    every_s, seen = app.freshness.snapshot_delta_s, []
    for number in range(1, 6):
        extend(control, number, [f"late-{number}"] if number < 5 else ["item-00000"], price=[1.0])
        control.time += 3.0
        refreshed.tick()
        seen.append(refreshed.stages.snapshot.version)
    assert seen[0] == "s1+000001-abc"
    assert len(set(seen)) <= 1 + 12.0 / (every_s / 2)
    control.time += every_s
    refreshed.tick()
    assert refreshed.stages.snapshot.version == "s1+000005-abc"
    assert refreshed.stages.snapshot.size == 64
    assert refreshed.last_error is None


def fetched_at(app: App, control: Control, seed: int) -> list[float]:
    """When a process fetches deltas within five minutes, while every poll finds another version."""
    moments: list[float] = []

    def follow(serving: Serving, pointer: Pointer) -> Serving:
        moments.append(control.time)
        return serving

    fresh = Refresher(
        stages_of(app, load_serving(app, None, None), **parts()),
        policy_log=control,
        current=control.current,
        load=control.load,
        follow=follow,
        now=lambda: control.time,
        jitter=random.Random(seed),
        pointers_every_s=0.1,
    )
    control.point("model", "snapshot")
    fresh.tick()
    for number in range(3000):
        control.time += 0.1
        control.live = replace(control.live, snapshot=Pointer(f"s1+{number:06d}-abc", "snapshot", NOW))
        fresh.tick()
    return moments


def test_processes_fetch_deltas_each_at_moments_of_its_own(app: App, control: Control) -> None:
    """Half of the app's interval after the last at the soonest, the whole at the latest, drawn each time."""
    every_s, moments = app.freshness.snapshot_delta_s, [fetched_at(app, control, seed) for seed in (1, 2)]
    gaps = np.concatenate([np.diff(one) for one in moments])
    assert len(gaps) >= 2 * 300 / every_s - 2
    assert every_s / 2 <= gaps.min() < 0.6 * every_s
    assert 0.9 * every_s < gaps.max() <= every_s + 0.3
    first, second = (np.asarray(one[:10]) - one[0] for one in moments)
    assert np.abs(first - second)[1:].min() > 0.5


def test_a_refresh_gives_up_on_deltas_that_take_long_and_the_next_goes_on(app: App, control: Control) -> None:
    """S3 takes four seconds for each of five: three a refresh, and what was served serves until all came."""
    fetched: list[str] = []

    def slow(key: str) -> bytes | None:
        control.time += 4.0
        fetched.append(key)
        return control.get(key)

    copy = SnapshotCopy(control.store / "cellar", control.download, slow, clock=lambda: control.time)
    control.cellar = Cellar(app, copy)
    refreshed = refresher(app, control)
    control.point("model", "snapshot")
    refreshed.tick()
    for number in range(1, 6):
        extend(control, number, ["item-00000"], price=[100.0 + number])
    control.time += 3.0
    refreshed.tick()
    assert len(fetched) == 3
    assert "the next refresh goes on" in (refreshed.last_error or "")
    assert refreshed.stages.snapshot.version == "s1"
    control.time += 120.0
    refreshed.tick()
    assert len(fetched) == len(set(fetched)) == 5
    assert (refreshed.stages.snapshot.version, refreshed.last_error) == ("s1+000005-abc", None)
    assert refreshed.stages.snapshot.columns["price"][0] == 105.0


def test_a_delta_that_is_not_there_yet_is_asked_for_again(app: App, control: Control) -> None:
    """What is served stays, the failure is told, and the file is found when it comes."""
    refreshed = refresher(app, control)
    control.point("model", "snapshot")
    refreshed.tick()
    extend(control, 1, ["late"], price=[1.0])
    path = control.store / "snapshot" / delta_file("s1+000001-abc")
    kept = path.read_bytes()
    path.unlink()
    control.time += 3.0
    refreshed.tick()
    assert refreshed.stages.snapshot.version == "s1"
    assert "is not there yet" in (refreshed.last_error or "")
    path.write_bytes(kept)
    control.time += 120.0
    refreshed.tick()
    assert (refreshed.stages.snapshot.size, refreshed.last_error) == (61, None)


def test_a_damaged_delta_is_read_again_from_the_base(app: App, control: Control) -> None:
    """It is never applied; once it is whole, the snapshot is opened anew with it."""
    refreshed = refresher(app, control)
    control.point("model", "snapshot")
    refreshed.tick()
    extend(control, 1, ["late"], price=[1.0])
    path = control.store / "snapshot" / delta_file("s1+000001-abc")
    kept = path.read_bytes()
    path.write_bytes(kept[:-30])
    control.time += 3.0
    refreshed.tick()
    assert refreshed.stages.snapshot.version == "s1"
    assert "SnapshotError" in (refreshed.last_error or "")
    path.write_bytes(kept)
    control.time += 120.0
    refreshed.tick()
    assert (refreshed.stages.snapshot.size, refreshed.last_error) == (61, None)


def with_towers(folder: Path) -> None:
    """Put two towers into a bundle, over the first two items; the manifest says so."""
    towers = replace(network(), item_ids=np.asarray(ITEMS[:2]))
    towers.save(folder / two_tower.FILE)
    write_manifest(folder, read_manifest(folder, verify=False))


def test_the_two_towers_search_the_index_of_their_own_version(app: App, control: Control) -> None:
    """Where the app has one; a later item is placed by its text in this process, and never written there."""
    with_towers(control.store / "model")
    versions = MemoryIndexVersions()
    cellar = Cellar(
        app, SnapshotCopy(control.store / "cellar", control.download, control.get), versions=versions
    )
    control.point("model", "snapshot")
    absent = cellar.load(control.live)
    assert (absent.index, absent.problems["index"]) == (None, "IndexGone")
    assert stages_of(app, absent, **parts()).sources["two_tower"].index is None  # type: ignore[attr-defined]
    index = versions.create("m1", 3)
    index.upsert(np.asarray([0, 1], np.int32), np.eye(3, dtype=np.float32)[:2])
    versions.promote("m1")
    serving = cellar.load(control.live)
    assert "index" not in serving.problems
    searched = stages_of(app, serving, **parts()).sources["two_tower"].index  # type: ignore[attr-defined]
    assert searched.index is index
    extend(control, 1, ["late"], category=[["a"]], brand=["x"])
    later = cellar.follow(serving, Pointer("s1+000001-abc", "snapshot", NOW))
    vectors = later.sources["two_tower"].vectors  # type: ignore[attr-defined]
    assert later.snapshot.rows(["late"]).tolist() == [60]
    assert len(vectors) == later.snapshot.capacity
    assert later.index is serving.index
    assert len(index) == 2


class AwayVersions(MemoryIndexVersions):
    """Indexes on a server that is away until somebody brings it back."""

    away = True

    def open(self, version: str | None = None) -> VectorIndex:
        if self.away:
            raise StoreUnavailable("the server of the indexes does not answer")
        return super().open(version)


def test_a_process_that_started_without_its_index_finds_it_later(app: App, control: Control) -> None:
    """Its server was away when all was loaded: all is compared and the reason told, until it is back."""
    with_towers(control.store / "model")
    versions = AwayVersions()
    versions.create("m1", 3)
    versions.promote("m1")
    copy = SnapshotCopy(control.store / "cellar", control.download, control.get)
    control.cellar = Cellar(app, copy, versions=versions)
    fresh = refresher(app, control)
    control.live = Live(Pointer("m1", "model", NOW), Pointer("s1", "snapshot", NOW))
    fresh.tick()
    assert fresh.stages.problems["index"] == "StoreUnavailable"
    control.time += 120.0
    fresh.tick()
    assert fresh.stages.problems["index"] == "StoreUnavailable"
    versions.away = False
    control.time += 120.0
    fresh.tick()
    assert "index" not in fresh.stages.problems
    assert fresh.stages.sources["two_tower"].index.index is versions.open("m1")  # type: ignore[attr-defined]
    assert len(control.loads) == 1


def test_an_index_that_goes_is_done_without_until_it_is_back(app: App, control: Control) -> None:
    """A search that finds it gone is the last one: the next poll compares all, and looks for it seldom."""
    with_towers(control.store / "model")
    versions = GoingVersions()
    versions.create("m1", 3)
    versions.promote("m1")
    copy = SnapshotCopy(control.store / "cellar", control.download, control.get)
    control.cellar = Cellar(app, copy, versions=versions)
    fresh = refresher(app, control)
    control.live = Live(Pointer("m1", "model", NOW), Pointer("s1", "snapshot", NOW))
    fresh.tick()
    source = fresh.stages.sources["two_tower"]
    assert "index" not in fresh.stages.problems
    versions.gone = True
    with pytest.raises(IndexGone):
        source.retrieve(query([0]), 5)
    control.time += 3.0
    fresh.tick()
    assert fresh.stages.problems["index"] == "IndexGone"
    assert fresh.stages.sources["two_tower"].index is None  # type: ignore[attr-defined]
    assert len(fresh.stages.sources["two_tower"].retrieve(query([0]), 5).rows)
    versions.gone = False
    control.time += 120.0
    fresh.tick()
    assert "index" not in fresh.stages.problems
    assert fresh.stages.sources["two_tower"].index is not None  # type: ignore[attr-defined]
    assert len(control.loads) == 1


class GoingVersions(MemoryIndexVersions):
    """Indexes that somebody deletes while they are open."""

    gone = False

    def __init__(self) -> None:
        super().__init__(self._made)

    def _made(self, version: str, dimension: int) -> VectorIndex:
        index = MemoryVectorIndex(version, dimension)
        search = index.search

        def searched(vectors: Floats, k: int, where: Where = EVERYTHING) -> Neighbours:
            if self.gone:
                raise absent(version, {})
            return search(vectors, k, where)

        index.search = searched  # type: ignore[method-assign]
        return index

    def open(self, version: str | None = None) -> VectorIndex:
        if self.gone:
            raise absent(version, {})
        return super().open(version)


def test_policy_changes_arrive_within_the_poll(app: App, control: Control) -> None:
    """A block that is in the log is in the state two seconds later, also after another snapshot came."""
    fresh = refresher(app, control)
    control.point("model", "snapshot")
    fresh.tick()
    control.append([Change("block", "item-00003", True)], now=NOW)
    control.time += 2.0
    fresh.tick()
    assert fresh.stages.policy.version == 1
    assert fresh.stages.policy.refreshed_at == NOW + 2.0
    row = int(fresh.stages.snapshot.rows(["item-00003"])[0])
    assert fresh.stages.policy.blocked[row]
    write_snapshot(control.store / "snapshot-2", "s2")
    control.point("model", "snapshot-2")
    control.time += 3.0
    fresh.tick()
    assert fresh.stages.snapshot.version == "s2"
    assert fresh.stages.policy.blocked[row]


def test_what_was_read_last_serves_while_stores_are_away(app: App, control: Control) -> None:
    """Every failure is counted and told, nothing stops, and the first success clears it."""
    fresh = refresher(app, control)
    control.point("model", "snapshot")
    fresh.tick()
    control.error = StoreUnavailable("the table does not answer")
    for _ in range(4):
        control.time += 3.0
        fresh.tick()
    assert fresh.errors >= 5
    assert fresh.last_error is not None
    assert "StoreUnavailable: the table does not answer" in fresh.last_error
    assert fresh.stages.model_version == "m1"
    assert fresh.stages.policy.refreshed_at == NOW
    control.error = None
    control.time += 60.0
    fresh.tick()
    assert fresh.last_error is None
    assert fresh.stages.policy.refreshed_at == control.time


def test_a_damaged_snapshot_does_not_replace_a_good_one(app: App, control: Control) -> None:
    """It is refused and fetched again, until it is whole."""
    fresh = refresher(app, control)
    control.point("model", "snapshot")
    fresh.tick()
    write_snapshot(control.store / "snapshot-2", "s2")
    whole = (control.store / "snapshot-2" / "price.npy").read_bytes()
    (control.store / "snapshot-2" / "price.npy").write_bytes(whole[:-8])
    control.point("model", "snapshot-2")
    control.time += 3.0
    fresh.tick()
    assert fresh.stages.snapshot.version == "s1"
    assert "SnapshotError" in (fresh.last_error or "")
    (control.store / "snapshot-2" / "price.npy").write_bytes(whole)
    control.time += 60.0
    fresh.tick()
    assert fresh.stages.snapshot.version == "s2"


def test_a_model_that_does_not_load_does_not_replace_one_that_does(app: App, control: Control) -> None:
    """Its pointer is followed no further than its checksum."""
    fresh = refresher(app, control)
    control.point("model", "snapshot")
    fresh.tick()
    shutil.copytree(control.store / "model", control.store / "model-2")
    (control.store / "model-2" / "ranker.txt").write_text("tree")
    control.point("model-2", "snapshot")
    control.time += 3.0
    fresh.tick()
    assert fresh.stages.model_version == "m1"
    assert "model-2 does not load" in (fresh.last_error or "")


def test_a_bundle_that_comes_without_a_model_is_followed(app: App, control: Control) -> None:
    """Who promotes sources alone gets them: without a model, but not with yesterday's."""
    fresh = refresher(app, control)
    control.point("model", "snapshot")
    fresh.tick()
    shutil.copytree(control.store / "model", control.store / "model-2")
    (control.store / "model-2" / "ranker.txt").unlink()
    control.point("model-2", "snapshot")
    control.time += 3.0
    fresh.tick()
    assert fresh.stages.ranker is None
    assert fresh.stages.problems == {"ranker.txt": "absent"}
    assert fresh.last_error is None


def test_the_cellar_keeps_only_what_is_live(app: App, control: Control, tmp_path: Path) -> None:
    """After a switch the old folders are gone, and the mapped snapshot is readable all the same."""
    control.point("model", "snapshot")
    old = control.load(control.live)
    write_snapshot(control.store / "snapshot-2", "s2")
    control.point("model", "snapshot-2")
    control.load(control.live)
    assert len(list((tmp_path / "cellar").iterdir())) == 2
    assert old.snapshot.columns["price"].sum() == pytest.approx(1830.0)


def test_polls_are_jittered_and_never_later_than_declared(app: App, control: Control) -> None:
    """Processes that start together drift apart, inside half and whole of the interval."""
    fresh = refresher(app, control)
    for _ in range(2000):
        fresh.tick()
        control.time += 0.05
    gaps = np.diff(control.asked)
    assert 1.0 <= gaps.min() < 1.2
    assert 1.8 < gaps.max() <= 2.06
    assert len(np.unique(gaps.round(2))) > 5


def test_the_thread_goes_on_until_it_is_stopped(app: App, control: Control) -> None:
    """It survives whatever is raised, sleeps as it is told, and ends on request."""
    turns = threading.Event()
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        control.time += seconds + 0.001
        if len(slept) >= 20:
            turns.set()
        time.sleep(0.001)

    control.error = RuntimeError("a bug")
    fresh = refresher(app, control, sleep)
    fresh.start()
    assert turns.wait(10.0)
    fresh.stop()
    assert fresh.errors > 10
    assert max(slept) <= 60.0


def test_a_process_that_was_frozen_hears_of_the_rules_first(app: App, control: Control) -> None:
    """Ten minutes went by between two requests, and no thread ran; in time nothing is asked."""
    fresh = refresher(app, control)
    fresh.tick()
    control.append([Change("block", "item-00003", True)], now=NOW)
    fresh.catch_up(10.0)
    assert len(control.asked) == 1
    control.time += 600.0
    fresh.catch_up(10.0)
    assert fresh.stages.policy.version == 1
    assert fresh.stages.policy.refreshed_at == control.time
    fresh.catch_up(10.0)
    assert len(control.asked) == 2


def test_catching_up_waits_as_long_as_it_is_told_and_once(app: App, control: Control) -> None:
    """A log that hangs takes one thread and one wait, not one of each for every request."""
    fresh = refresher(app, control)
    fresh.tick()
    control.time += 600.0
    answer = threading.Event()
    control.hold = answer
    fresh.catch_up(0.01)
    fresh.catch_up(3600.0)
    assert len(control.asked) <= 2
    answer.set()
    assert until(lambda: fresh.stages.policy.refreshed_at == control.time)


def test_no_rule_waits_for_a_model_that_loads(app: App, control: Control) -> None:
    """A block arrives while a snapshot is copied, and is bound to it when it is there."""
    copying, copied = threading.Event(), threading.Event()

    def slow(live: Live) -> Serving:
        if live.snapshot:
            copying.set()
            assert copied.wait(10.0)
        return control.load(live)

    fresh = Refresher(
        stages_of(app, load_serving(app, None, None), **parts()),
        policy_log=control,
        current=control.current,
        load=slow,
        follow=control.cellar.follow,
        now=time.time,
        jitter=random.Random(0),
        pointers_every_s=0.01,
    )
    fresh.start()
    control.point("model", "snapshot")
    assert copying.wait(10.0)
    control.append([Change("block", "item-00003", True)], now=NOW)
    assert until(lambda: fresh.stages.policy.version == 1)
    assert fresh.stages.model_version is None
    copied.set()
    assert until(lambda: fresh.stages.model_version == "m1")
    fresh.stop()
    assert fresh.stages.policy.blocked[fresh.stages.snapshot.rows(["item-00003"])[0]]


def until(holds: Callable[[], bool]) -> bool:
    """Whether it holds within ten seconds."""
    end = time.monotonic() + 10.0
    while not holds() and time.monotonic() < end:
        time.sleep(0.01)
    return holds()


def test_a_damaged_snapshot_of_a_first_start_is_an_error(app: App, control: Control) -> None:
    """With nothing to fall back on, the process serves the static list and says why."""
    shutil.rmtree(control.store / "snapshot")
    (control.store / "snapshot").mkdir()
    control.point("model", "snapshot")
    with pytest.raises(SnapshotError, match="copied again"):
        control.load(control.live)
    fresh = refresher(app, control)
    fresh.tick()
    assert fresh.stages.snapshot.version == "static"
    assert fresh.stages.policy.refreshed_at == NOW
