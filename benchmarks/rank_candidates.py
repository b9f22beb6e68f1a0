"""How long ranking 300 candidates takes on one thread: whole, in parts, and by LightGBM's Python package.

    python benchmarks/rank_candidates.py [--rows 300] [--items 10000] [--json build/rank_candidates.json]

It trains a model of 120 trees on noise, of the shape that training makes, over a made-up catalogue.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import lightgbm
import numpy as np

from narrows.adapters.lightgbm import load_scorer
from narrows.features import statistics
from narrows.features.vectors import VectorSpec
from narrows.interactions import interactions_of
from narrows.ranking import EmbeddedRanker, RankRequest
from narrows.retrieval import Query, fuse, merge
from narrows.snapshot import open_base, write_base
from narrows.sources import als, covisitation, popular
from narrows.sources.fresh import fresh

TREES, LEAVES = 120, 31
HISTORY = 20
NOW = 1.7e9


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=400)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with TemporaryDirectory() as folder:
        found = measure(Path(folder), arguments.rows, arguments.items, arguments.repeats)
    print(f"{arguments.rows} candidates of {arguments.items:,} items, {TREES} trees, one thread")
    print(f"{'':34} {'p50 ms':>8} {'p99 ms':>8}")
    for name, times in found["milliseconds"].items():
        print(f"{name:34} {times['p50']:8.3f} {times['p99']:8.3f}")
    print(f"scoring takes {found['ratio_to_python_package']:.2f} of the Python package's time")
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def measure(folder: Path, rows: int, items: int, repeats: int) -> dict[str, Any]:
    """Times of each part, interleaved so that all meet the same machine."""
    generator = np.random.default_rng(0)
    ranker, booster = _ranker(folder, items, generator)
    history = generator.integers(0, items, HISTORY).astype(np.int32)
    query = Query(
        history,
        NOW - 60.0 * np.arange(HISTORY)[::-1],
        np.ones(HISTORY, np.float32),
        np.empty(0, np.int32),
        NOW,
        "feed",
        exclude=np.unique(history),
    )
    request = RankRequest({}, {}, query)
    found = merge(
        [(name, one.retrieve(query, rows)) for name, one in ranker.sources.items()], exclude=query.exclude
    )
    candidates = fuse(found, rows)
    matrix = ranker.vectors(request, candidates)
    parts: dict[str, Callable[[], Any]] = {
        "EmbeddedRanker.rank, whole": lambda: ranker.rank(request, candidates, rows),
        "assembling the vectors": lambda: ranker.vectors(request, candidates),
        "scoring by the C library": lambda: ranker.scorer.predict(matrix),
        "scoring by the Python package": lambda: booster.predict(matrix, num_threads=1),
        **{f"{name}.retrieve, {rows}": _asked(one, query, rows) for name, one in ranker.sources.items()},
    }
    times = _interleaved(parts, repeats)
    table = {
        name: {"p50": float(np.quantile(each, 0.5)), "p99": float(np.quantile(each, 0.99))}
        for name, each in times.items()
    }
    difference = np.abs(ranker.scorer.predict(matrix) - booster.predict(matrix)).max()
    return {
        "rows": len(candidates),
        "items": items,
        "features": matrix.shape[1],
        "trees": TREES,
        "milliseconds": table,
        "ratio_to_python_package": table["scoring by the C library"]["p50"]
        / table["scoring by the Python package"]["p50"],
        "largest_difference": float(difference),
    }


def _asked(source: Any, query: Query, rows: int) -> Callable[[], Any]:
    return lambda: source.retrieve(query, rows)


def _interleaved(parts: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in parts}
    for turn in range(repeats + 10):
        for name, part in parts.items():
            begun = time.perf_counter()
            part()
            if turn >= 10:
                times[name].append((time.perf_counter() - begun) * 1e3)
    return times


def _ranker(
    folder: Path, items: int, generator: np.random.Generator
) -> tuple[EmbeddedRanker, lightgbm.Booster]:
    ids = [f"item-{one}" for one in range(items)]
    columns = {
        "category": [[f"c{one % 40}", f"d{one % 7}"] for one in range(items)],
        "brand": [f"b{one % 300}" for one in range(items)],
        "price": generator.lognormal(3, 1, items),
        "created_at": NOW - generator.random(items) * 1e8,
    }
    write_base(folder / "snapshot", ids, columns, version="1", spare=0)
    snapshot = open_base(folder / "snapshot")
    events = 40 * items
    log = interactions_of(
        generator.integers(0, items // 2, events).astype(str),
        np.asarray(ids)[(items * generator.random(events) ** 3).astype(int)],
        NOW - generator.random(events) * 1e7,
    )
    models = {
        "als": als.fit(log, als.Params(dimension=64, sweeps=1), generator),
        "covisitation": covisitation.fit(log, covisitation.Params()),
        "popular": popular.fit(log, popular.Params()),
    }
    sources: dict[str, Any] = {name: one.bind(snapshot.rows, items) for name, one in models.items()}
    sources["fresh"] = fresh(np.asarray(snapshot.columns["created_at"]))
    table = statistics.fit(log, statistics.Params()).bind(snapshot.rows, items)
    spec = VectorSpec.over(sources, snapshot)
    booster = _booster(len(spec.names), generator)
    booster.save_model(folder / "ranker.txt")
    scorer = load_scorer(folder / "ranker.txt")
    return EmbeddedRanker(snapshot, table, sources, scorer, spec, fingerprint=spec.fingerprint()), booster


def _booster(features: int, generator: np.random.Generator) -> lightgbm.Booster:
    matrix = generator.normal(size=(20_000, features)).astype(np.float32)
    labels = (matrix[:, :8].sum(axis=1) + generator.normal(size=20_000) > 4).astype(int)
    settings = {"objective": "lambdarank", "num_leaves": LEAVES, "num_threads": 1, "verbosity": -1, "seed": 0}
    return lightgbm.train(settings, lightgbm.Dataset(matrix, label=labels, group=[100] * 200), TREES)


if __name__ == "__main__":
    main()
