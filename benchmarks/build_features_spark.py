"""The nightly build of megashop's whole feature set by Spark: events a second and memory as the log grows.

    python benchmarks/build_features_spark.py --events 1000000 3000000 10000000 --out spark.json

Without `--events` it stops at 3 million, which `make bench` can wait for. Each size runs in a process of its
own, on the cores that `--cores` gives it: `build_features` reads Parquet files with the lake's columns and
writes every scope. Making the events and starting Spark are not counted; starting its Python workers is.
Java uses both its compilers, as in Glue. Processor time and memory (the most that is resident at once) are
those of the Java process and its Python workers.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from localcloud.spark import spark_environment
from narrows.features.registry import FeatureSet
from narrows.settings import load_app

ROOT = Path(__file__).resolve().parents[1]
NOW, DAY_S = 1_800_000_000.0, 86_400.0
CHUNK = 1_000_000
TYPES = ("impression", "view", "click", "add_to_cart", "purchase")
SHARES = (0.1, 0.57, 0.2, 0.08, 0.05)
ITEMS, CATEGORIES, BRANDS, SHOWN = 50_000, 30, 240, 10
EVENTS_A_USER, ANONYMOUS = 50, 0.3
FIGURES = ("events", "seconds", "events_per_s", "cpu_us_per_event", "peak_mb")
WATCH_S = 0.5


def write_events(folder: Path, count: int) -> int:
    """`count` events of 30 days in the lake's columns; returns how many bytes their files take."""
    for place, begin in enumerate(range(0, count, CHUNK)):
        rng = np.random.default_rng([count, place])
        table = _events(min(CHUNK, count - begin), max(1, count // EVENTS_A_USER), rng)
        pq.write_table(table, folder / f"part-{place:03d}.parquet", row_group_size=250_000)
    return sum(path.stat().st_size for path in folder.iterdir())


def _events(count: int, users: int, rng: np.random.Generator) -> pa.Table:
    kind = rng.choice(len(TYPES), count, p=SHARES)
    shows = kind == 0
    item = np.minimum((rng.pareto(1.1, count) * 200).astype(np.int64), ITEMS - 1)
    user = (users * rng.random(count) ** 1.5).astype(np.int64)
    session = user * 8 + rng.integers(0, 8, count)
    known = rng.random(count) >= ANONYMOUS
    user_ids, session_ids = _named("user", user), _named("session", session)
    visitor = pc.if_else(pa.array(known), _joined("u#", user_ids), _joined("s#", session_ids))
    times = NOW - 30 * DAY_S * rng.random(count)
    sequence = pa.array(np.arange(count)).cast(pa.string())
    no_text = pa.nulls(count, pa.string())
    return pa.table(
        {
            "event_id": _random_ids(count, rng),
            "event_type": pa.array(TYPES).take(pa.array(kind)),
            "time": times,
            "received_at": times + 1.0,
            "visitor": visitor,
            "user_id": pc.if_else(pa.array(known), user_ids, pa.scalar(None, pa.string())),
            "session_id": session_ids,
            "item_id": pc.if_else(pa.array(shows), pa.scalar(None, pa.string()), _named("item", item)),
            "value": pa.array(rng.lognormal(3, 1, count), mask=kind != TYPES.index("purchase")),
            "recommendation_id": no_text,
            "position": pa.array(rng.integers(0, SHOWN, count).astype(np.int32), mask=kind != 2),
            "surface": pa.array(["homepage"]).take(pa.array(np.zeros(count, np.int64))),
            "impression": _shown(shows, rng),
            "query": no_text,
            "texts": _texts(item, shows, rng),
            "numbers": _numbers(item, kind, rng),
            "schema_version": pa.array(np.ones(count, np.int32)),
            "consent": pa.array(np.ones(count, bool)),
            "marks": _lists(np.zeros(count, np.int64), pa.array([], pa.string())),
            "shard": pa.array(["shardId-000000000000"]).take(pa.array(np.zeros(count, np.int64))),
            "sequence": sequence,
            "event_date": pa.array((times // DAY_S).astype(np.int32)).cast(pa.date32()),
        }
    )


def _random_ids(count: int, rng: np.random.Generator) -> pa.Array:
    text = rng.bytes(16 * count).hex().encode()
    offsets = pa.py_buffer(np.arange(0, 32 * count + 1, 32, dtype=np.int32))
    return pa.Array.from_buffers(pa.string(), count, [None, offsets, pa.py_buffer(text)])


def _named(word: str, numbers: NDArray[np.int64]) -> pa.Array:
    """A name of 32 characters for each number, as pseudonyms are long."""
    text = pc.utf8_lpad(pa.array(numbers).cast(pa.string()), 32 - len(word), "0")
    return text if word == "item" else _joined(word, text)


def _joined(start: str, texts: pa.Array) -> pa.Array:
    return pc.binary_join_element_wise(pa.scalar(start), texts, pa.scalar(""))


def _lists(lengths: NDArray[np.int64], values: pa.Array) -> pa.Array:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def _shown(shows: NDArray[np.bool_], rng: np.random.Generator) -> pa.Array:
    lengths = np.where(shows, SHOWN, 0)
    items = np.minimum((rng.pareto(1.1, int(lengths.sum())) * 200).astype(np.int64), ITEMS - 1)
    return _lists(lengths, _named("item", items))


def _texts(item: NDArray[np.int64], shows: NDArray[np.bool_], rng: np.random.Generator) -> pa.Array:
    devices = ("desktop", "mobile", "tablet")
    words = [*(f"Category {n}" for n in range(CATEGORIES)), *(f"Brand {n}" for n in range(BRANDS)), *devices]
    places = ("US", "DE", "FR", "GB", "JP")
    codes = np.stack(
        [
            item % CATEGORIES,
            CATEGORIES + item % BRANDS,
            CATEGORIES + BRANDS + rng.integers(0, len(devices), len(item)),
            len(words) + rng.integers(0, len(places), len(item)),
        ],
        axis=1,
    )
    names = np.tile(np.arange(4), len(item))
    used = np.where(np.repeat(shows, 4), names >= 2, True)  # a slate has a device and a country only
    values = pa.array([*words, *places]).take(pa.array(codes.ravel()[used]))
    keys = pa.array(["category", "brand", "device", "location"]).take(pa.array(names[used]))
    return _maps(np.where(shows, 2, 4), keys, values)


def _numbers(item: NDArray[np.int64], kind: NDArray[np.int64], rng: np.random.Generator) -> pa.Array:
    values = np.stack([5.0 + item % 997, rng.exponential(30.0, len(item))], axis=1)
    used = np.stack([kind > 0, kind == TYPES.index("view")], axis=1)
    keys = pa.array(["price", "dwell_s"]).take(pa.array(np.tile(np.arange(2), len(item))[used.ravel()]))
    return _maps(used.sum(axis=1), keys, pa.array(values.ravel()[used.ravel()]))


def _maps(lengths: NDArray[Any], keys: pa.Array, values: pa.Array) -> pa.Array:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.MapArray.from_arrays(pa.array(offsets), keys, values)


def measure(count: int, folder: Path) -> dict[str, float]:
    """Build once in this process, which starts Spark and its Python workers."""
    from pyspark.sql import SparkSession  # only in the process of one size

    from glue_jobs.event_files import files_in
    from glue_jobs.nightly import SETTINGS, write_night

    features = FeatureSet(load_app(ROOT / "apps" / "megashop").features)
    builder = SparkSession.builder.appName("build_features")
    for name, value in SETTINGS.items():
        builder = builder.config(name, value)
    spark = builder.getOrCreate()
    spark.range(1).count()
    java = int(spark.sparkContext._jvm.java.lang.ProcessHandle.current().pid())  # type: ignore[union-attr]
    with Watched(java) as watched:
        began, cpu_before = time.perf_counter(), watched.cpu_s()
        files = files_in(str(folder / "events"))
        keys = write_night(spark, files, features, NOW, str(folder / "features"))
        took, cpu = time.perf_counter() - began, watched.cpu_s() - cpu_before
    spark.stop()
    figures = {"events": count, "seconds": round(took, 1), "events_per_s": round(count / took)}
    return {
        **figures,
        "cpu_us_per_event": round(cpu / count * 1e6, 2),
        "peak_mb": watched.peak_mb,
        **{scope: number for scope, number in keys.items() if scope not in ("read", "later")},
    }


class Watched:
    """Spark's Java process and the Python workers below it: their processor time and most memory at once."""

    def __init__(self, java: int) -> None:
        self.peak_mb = 0
        self._java = java
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def cpu_s(self) -> float:
        """Seconds of all of them, and of the workers that have ended."""
        ticks = 0
        for pid in (self._java, *_below(self._java)):
            own_and_ended = _fields(f"/proc/{pid}/stat")[11:15]
            ticks += sum(map(int, own_and_ended))
        return ticks / os.sysconf("SC_CLK_TCK")

    def _watch(self) -> None:
        while not self._done.wait(WATCH_S):
            pages = sum(
                int((_fields(f"/proc/{pid}/statm", after="") or [0, 0])[1])
                for pid in (self._java, *_below(self._java))
            )
            self.peak_mb = max(self.peak_mb, pages * os.sysconf("SC_PAGE_SIZE") >> 20)


def _below(pid: int) -> list[int]:
    """The processes that this one has started, and those that they have."""
    children = [
        int(one) for path in Path(f"/proc/{pid}/task").glob("*/children") for one in _fields(str(path), "")
    ]
    return [each for child in children for each in (child, *_below(child))]


def _fields(path: str, after: str = ")") -> list[str]:
    """The words of one of the kernel's lines, behind the process's name; none where it has ended."""
    try:
        text = Path(path).read_text()
    except OSError:
        return []
    return (text.rpartition(after)[2] if after else text).split()


def one_size(count: int, cores: int, memory: str) -> dict[str, float]:
    """Make the events, then measure in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "events").mkdir()
        write_events(folder / "events", count)
        environment = {**os.environ, **spark_environment([ROOT], folder / "spark")}
        settings = environment["PYSPARK_SUBMIT_ARGS"].replace("local[*]", f"local[{cores}]")
        settings = settings.replace("-XX:TieredStopAtLevel=1 ", "")  # a long job earns the second compiler
        environment["PYSPARK_SUBMIT_ARGS"] = settings.replace(
            "--driver-memory 2g", f"--driver-memory {memory}"
        )
        (folder / "spark").mkdir()
        asked = [sys.executable, __file__, "--measure", str(count), "--folder", str(folder)]
        done = subprocess.run(asked, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(done.stderr[-3000:])
        found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(argv: Sequence[str] | None = None) -> None:
    """Print a line for each size as it is done."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, nargs="+", default=[1_000_000, 3_000_000])
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--memory", default="6g", help="of the Java heap")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args(argv)
    if asked.measure:
        print(json.dumps(measure(asked.measure, asked.folder)))
        return
    print(
        f"{'events':>12} {'seconds':>8} {'events/s':>10} {'CPU us/event':>13} {'peak MB':>8}  keys by scope"
    )
    rows = []
    for count in asked.events:
        row = one_size(count, asked.cores, asked.memory)
        rows.append(row)
        keys = {name: one for name, one in row.items() if name not in FIGURES}
        line = f"{count:>12,} {row['seconds']:>8} {row['events_per_s']:>10,} {row['cpu_us_per_event']:>13}"
        line += f" {row['peak_mb']:>8,}  {keys}"
        print(line, flush=True)
    if asked.out:
        machine = {"cores": asked.cores, "machine": platform.machine(), "load": os.getloadavg()[0]}
        asked.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
