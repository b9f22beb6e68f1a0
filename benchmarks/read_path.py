"""The read path in one process: `recommend()` over a loaded bundle, stage by stage.

    python benchmarks/read_path.py --items 50000 --requests 2000 --out read_path.json

Everything is real but the stores: a memory-mapped snapshot, fitted sources, a LightGBM model over the app's
declared features through its C library, a visitor with fifty events. Times are milliseconds on this machine;
the decision record's JSON is measured apart.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import lightgbm
import numpy as np

from narrows.adapters.bundle import load_serving, stages_of
from narrows.events import Event
from narrows.features import statistics
from narrows.features.registry import FeatureSet
from narrows.features.state import VisitorState
from narrows.features.vectors import VectorSpec
from narrows.interactions import interactions_of
from narrows.pipeline import Request, Stages, recommend
from narrows.policy import Change
from narrows.ranking import ModelManifest, write_manifest
from narrows.settings import App, load_app
from narrows.snapshot import ItemSnapshot, open_base, write_base
from narrows.sources import als, covisitation, load_sources, popular
from narrows.visitor import Remembered, Visitor

NOW = 1_700_000_000.0
DAY_S = 86_400.0


class OneVisitor:
    """A store that answers at once, always with the same visitor."""

    def __init__(self, visitor: Visitor) -> None:
        self.visitor = visitor

    def read(self, *_: object, **__: object) -> Visitor:
        """Whoever is asked for."""
        return self.visitor


def write_catalogue(directory: Path, items: int, rng: np.random.Generator) -> ItemSnapshot:
    """A catalogue of 40 categories and 200 brands."""
    columns = {
        "category": [[f"category-{code}"] for code in rng.integers(0, 40, items)],
        "brand": [f"brand-{code}" for code in rng.integers(0, 200, items)],
        "price": rng.lognormal(3.0, 1.0, items).astype(np.float32),
        "created_at": NOW - rng.random(items) * 365 * DAY_S,
    }
    ids = [f"item-{number:07d}" for number in range(items)]
    write_base(directory, ids, columns, version="bench", spare=1024)
    return open_base(directory)


def write_bundle(
    directory: Path, app: App, snapshot: ItemSnapshot, events: int, trees: int, rng: np.random.Generator
) -> None:
    """Sources fitted on a popularity-skewed log, and a model of `trees` trees of 31 leaves."""
    directory.mkdir()
    items = snapshot.size
    chosen = (items * rng.random(events) ** 2).astype(int)
    users = rng.integers(0, max(events // 20, 1), events)
    ids = np.array(snapshot.ids(np.arange(items, dtype=np.int32)))
    moments = NOW - rng.random(events) * 90 * DAY_S
    log = interactions_of([f"user-{user}" for user in users], ids[chosen].tolist(), moments, np.ones(events))
    als.fit(log, als.Params(), rng).save(directory / als.FILE)
    covisitation.fit(log, covisitation.Params()).save(directory / covisitation.FILE)
    shares = popular.fit(log, popular.Params())
    shares.save(directory / popular.FILE)
    statistics.fit(log, statistics.Params()).save(directory / statistics.FILE)
    (directory / "segments.json").write_text(json.dumps(shares.slates(100)))
    sources = load_sources(directory, snapshot.rows, items, created=snapshot.columns["created_at"])
    spec = VectorSpec.over(sources, snapshot, FeatureSet(app.features))
    matrix = rng.random((5000, len(spec.names)))
    parameters = {"objective": "binary", "num_leaves": 31, "verbosity": -1, "num_threads": 1}
    labels = (matrix @ rng.normal(size=matrix.shape[1]) + rng.normal(size=5000) > 0).astype(int)
    booster = lightgbm.train(parameters, lightgbm.Dataset(matrix, label=labels), num_boost_round=trees)
    booster.save_model(directory / "ranker.txt")
    manifest = ModelManifest("bench", app.name, NOW, spec.names, spec.fingerprint(), spec.to_json())
    write_manifest(directory, manifest)


def visitor_of(stages: Stages, rng: np.random.Generator) -> Visitor:
    """Somebody with fifty events, a remembered slate, and one item they do not want."""
    rows = rng.integers(0, stages.snapshot.size, 50).astype(np.int32)
    events = [
        Event(
            event_id=f"e{number}",
            event_type="view",
            time=NOW - 3600.0 * (50 - number),
            received_at=NOW,
            item_id=item_id,
            properties={
                "category": f"category-{number % 40}",
                "brand": f"brand-{number}",
                "price": 10.0 + number,
                "device": "mobile",
                "location": "DE",
                "dwell_s": 20.0,
            },
        )
        for number, item_id in enumerate(stages.snapshot.ids(rows))
    ]
    state = VisitorState(
        features=stages.features.add_all(stages.features.zero(), events),
        do_not_show={stages.snapshot.ids([0])[0]: NOW},
    )
    shown = tuple(stages.snapshot.ids(np.arange(100, dtype=np.int32)))
    return Visitor(user=state, remembered=Remembered(shown[:20], shown, NOW - 60.0))


def measure(stages: Stages, requests: int, rng: np.random.Generator) -> dict[str, list[float]]:
    """Milliseconds by stage; half of the visitors are known."""
    known, unknown = stages.visitors, OneVisitor(Visitor())
    times: dict[str, list[float]] = defaultdict(list)
    for number in range(requests + 50):
        visitors = known if rng.random() < 0.5 else unknown
        request = Request(
            surface="homepage",
            limit=20,
            now=NOW,
            deadline=stages.clock() + 0.08,
            recommendation_id=str(number),
            user_key="u#1",
        )
        started = time.perf_counter()
        answer = recommend(request, replace(stages, visitors=visitors))
        done = time.perf_counter()
        text = answer.record.to_json()
        if number < 50:
            continue
        times["recommend"].append((done - started) * 1e3)
        times["record to JSON"].append((time.perf_counter() - done) * 1e3)
        times["record bytes"].append(float(len(text)))
        times[f"rung {answer.fallback}"].append(1.0)
        for stage, ms in answer.record.stage_ms.items():
            times[stage].append(ms)
        for stage, why in answer.degraded.items():
            times[f"degraded {stage} {why}"].append(1.0)
    return times


def main() -> None:
    """Build, measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--items", type=int, default=5_000)
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--trees", type=int, default=300)
    parser.add_argument("--requests", type=int, default=2_000)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    app = load_app(Path(__file__).parents[1] / "apps" / "megashop")
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(given.threads) as executor:
        snapshot = write_catalogue(Path(scratch) / "snapshot", given.items, rng)
        write_bundle(Path(scratch) / "model", app, snapshot, given.events, given.trees, rng)
        serving = load_serving(app, Path(scratch) / "model", Path(scratch) / "snapshot")
        stages = stages_of(
            app, serving, visitors=OneVisitor(Visitor()), executor=executor, clock=time.perf_counter
        )
        blocked = [Change("block", one, True, 1) for one in snapshot.ids([1, 2, 3])]
        stages = replace(stages, policy=stages.policy.apply(blocked, 1, NOW))
        stages = replace(stages, visitors=OneVisitor(visitor_of(stages, rng)))
        times = measure(stages, given.requests, rng)
    report(given, times)


def report(given: argparse.Namespace, times: dict[str, list[float]]) -> None:
    """Print and keep the percentiles."""
    counts = {name: len(values) for name, values in times.items() if name.startswith(("rung", "degraded"))}
    rows = {
        name: {f"p{part}": round(float(np.percentile(values, part)), 3) for part in (50, 90, 99)}
        for name, values in times.items()
        if name not in counts
    }
    machine = f"{platform.machine()}, Python {platform.python_version()}"
    print(f"{given.items} items, {given.requests} requests, {machine}")
    print(f"{'':24}{'p50':>10}{'p90':>10}{'p99':>10}")
    for name, row in rows.items():
        print(f"{name:24}" + "".join(f"{value:>10.3f}" for value in row.values()))
    print(counts)
    if given.out:
        settings = {name: value for name, value in vars(given).items() if name != "out"}
        content = {"settings": settings, "ms": rows, "counts": counts}
        given.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
