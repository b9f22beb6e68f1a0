"""How well and how fast the embedded vector index finds the nearest, on one thread, against exact search.

    python benchmarks/vector_index.py [--rows 1000000] [--dimension 64] [--json build/vector_index.json]

Two kinds of vectors: `power_law` have a spectrum that falls as a power and no clusters, the hardest that
trained vectors come to be; `clustered` lie around two thousand centres. Questions are drawn as the vectors
are, and were not among them. Both sets fit no constant of the index: it measures at its build.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import faiss
import numpy as np

from narrows.adapters.faiss import FaissVectorIndex, load
from narrows.retrieval import Floats
from narrows.vector_index import EVERYTHING, Where

K = 100
QUESTIONS = 500
CENTRES = 2_000
FILTERS = {"all": 1.0, "90%": 0.9, "50%": 0.5, "10%": 0.1, "1%": 0.01}
CHANGES = 200


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=64)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    faiss.omp_set_num_threads(1)
    found: dict[str, Any] = {"rows": arguments.rows, "dimension": arguments.dimension, "k": K}
    for name, draw in {"power_law": power_law, "clustered": clustered}.items():
        found[name] = measure(draw(arguments.rows + QUESTIONS, arguments.dimension), arguments.rows)
        report(name, found)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def power_law(count: int, dimension: int) -> Floats:
    """Directions; the k-th coordinate's variance is 1/k of the first's."""
    scale = np.arange(1, dimension + 1, dtype=np.float32) ** -0.5
    return _directions(np.random.default_rng(0).standard_normal((count, dimension), dtype=np.float32) * scale)


def clustered(count: int, dimension: int) -> Floats:
    """Directions around centres, spread by a third of the distance between these."""
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((CENTRES, dimension), dtype=np.float32)
    drawn = rng.standard_normal((count, dimension), dtype=np.float32)
    drawn *= 0.35
    drawn += centres[rng.integers(0, CENTRES, count)]
    return _directions(drawn)


def _directions(drawn: Floats) -> Floats:
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    return drawn


def measure(drawn: Floats, count: int) -> dict[str, Any]:
    """Build, search through each filter, change, save and load; seconds of this process's own time."""
    vectors, questions = drawn[:count], drawn[count:]
    chance = np.random.default_rng(1).random(count)
    regions = [tuple(name for name, share in FILTERS.items() if one < share) for one in chance.tolist()]
    index = FaissVectorIndex("v1", drawn.shape[1])
    began = time.process_time()
    index.upsert(np.arange(count, dtype=np.int32), vectors, {"region": regions})
    built_s = time.process_time() - began
    searches = {}
    for name, share in FILTERS.items():
        where = EVERYTHING if name == "all" else Where({"region": frozenset({name})})
        passing = np.flatnonzero(chance < share)
        searches[name] = _searched(index, questions, where, passing, _exact(vectors, passing, questions))
    found = {
        "build_s": built_s,
        "searches": searches,
        "lists": _lists(index),
        **_changed(index, drawn, count),
    }
    found["searches"]["all, after changes"] = _timed(index, questions, EVERYTHING)
    return {
        **found,
        **_kept(index),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _exact(vectors: Floats, passing: Any, questions: Floats) -> Any:
    """The rows of the true nearest."""
    exact = faiss.IndexFlatIP(vectors.shape[1])
    exact.add(vectors if len(passing) == len(vectors) else vectors[passing])
    return passing[exact.search(questions, K)[1]]


def _searched(
    index: FaissVectorIndex, questions: Floats, where: Where, passing: Any, truth: Any
) -> dict[str, Any]:
    found = index.search(questions[:1], K, where)  # the first use of a filter makes its bitmap
    rows = [index.search(one, K, where).rows[0] for one in questions]
    hits = [len(np.intersect1d(ours, theirs)) for ours, theirs in zip(rows, truth, strict=True)]
    assert np.isin(found.rows, passing).all()
    return {"recall_at_100": float(np.mean(hits)) / K, **_timed(index, questions, where)}


def _timed(index: FaissVectorIndex, questions: Floats, where: Where) -> dict[str, float]:
    """Milliseconds of a search of one question, one after another; `own_ms` is the mean of processor time."""
    began = time.process_time()
    times = _milliseconds(lambda at: index.search(questions[at], K, where), len(questions))
    own = (time.process_time() - began) / len(questions) * 1e3
    return {
        "p50_ms": float(np.quantile(times, 0.5)),
        "p99_ms": float(np.quantile(times, 0.99)),
        "own_ms": own,
    }


def _changed(index: FaissVectorIndex, drawn: Floats, count: int) -> dict[str, float]:
    """Milliseconds of an upsert of one row and of a deletion; rows that are there and rows that are new."""
    rows = np.random.default_rng(2).integers(0, count + CHANGES, CHANGES).astype(np.int32)
    upserts = _milliseconds(lambda at: index.upsert(rows[at : at + 1], drawn[at : at + 1]), CHANGES)
    deletions = _milliseconds(lambda at: index.delete(rows[at : at + 1]), CHANGES)
    return {"upsert_ms": float(np.quantile(upserts, 0.5)), "delete_ms": float(np.quantile(deletions, 0.5))}


def _kept(index: FaissVectorIndex) -> dict[str, float]:
    """The size of the files, and the seconds of loading them."""
    with TemporaryDirectory() as folder:
        index.save(Path(folder))
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
        began = time.process_time()
        load(Path(folder))
        return {"files_mb": size / 2**20, "load_s": time.process_time() - began}


def _lists(index: FaissVectorIndex) -> dict[str, Any]:
    lists = index._state.lists
    if lists is None:
        return {"lists": 0, "visited_for_100": 0}
    return {"lists": len(lists.edges), "visited_for_100": lists.visited[1]}


def _milliseconds(one: Callable[[int], Any], count: int) -> list[float]:
    times = []
    for at in range(count):
        began = time.perf_counter()
        one(at)
        times.append((time.perf_counter() - began) * 1e3)
    return times


def report(name: str, found: dict[str, Any]) -> None:
    """One kind of vectors as a table."""
    one = found[name]
    print(f"{name}: {found['rows']:,} x {found['dimension']}, one thread, {one['lists']['lists']} lists")
    print(f"  {'filter passes':22} {'recall@100':>10} {'p50 ms':>8} {'p99 ms':>8} {'own ms':>8}")
    for share, search in one["searches"].items():
        recall = f"{search['recall_at_100']:10.4f}" if "recall_at_100" in search else f"{'':10}"
        print(
            f"  {share:22} {recall} {search['p50_ms']:8.3f} {search['p99_ms']:8.3f} {search['own_ms']:8.3f}"
        )
    print(
        "  build {build_s:.1f} s, upsert {upsert_ms:.2f} ms, delete {delete_ms:.2f} ms, ".format(**one),
        end="",
    )
    print("files {files_mb:.0f} MB, load {load_s:.2f} s, peak {peak_memory_mb:.0f} MB".format(**one))


if __name__ == "__main__":
    main()
