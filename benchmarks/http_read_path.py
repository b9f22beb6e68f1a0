"""The read path over HTTP, with 1, 8 and 32 clients, against a floor of the raw libraries, in one run.

    python benchmarks/http_read_path.py --items 20000 --seconds 8 --json build/http_read_path.json

The local cloud serves megashop with two workers, from a bundle as `read_path.py` makes it, to visitors whose
events went through the stream. The floor is a request's heavy work and nothing else, in this process, on one
thread: a search of faiss over as many factors, LightGBM's own `predict` for 300 candidates, and maximal
marginal relevance over them with numpy. Clients, workers, stores and streams share the machine's cores; `of
the floor` says how many times the floor's p50 a client waits, and how many of the floor's requests are done.
Times are of answers by the first rung. The emulated table stalls now and then; lower rungs then answer within
a millisecond, and clients wait a moment before they ask again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import threading
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import boto3
import faiss
import lightgbm
import numpy as np
from read_path import write_bundle, write_catalogue

from localcloud import supervisor
from narrows.adapters.control import DynamoControlTable
from narrows.adapters.s3 import S3Objects
from narrows.cli.api_client import Api
from narrows.control import Pointer, model_pointer, snapshot_pointer
from narrows.settings import load_app
from narrows.snapshot import ItemSnapshot
from narrows.sources import als

APP = "megashop"
SURFACE = "homepage"
REGION = "us-east-1"
VERSION = "bench"
CLIENTS = (1, 8, 32)
VISITORS, HISTORY = 64, 20
CANDIDATES, SHOWN = 300, 20
CALM_S = 0.5
FIRST_RUNG, PAUSE_S = "full", 0.05
PATIENCE_S = 90.0
LAMBDA = 0.85


@dataclass
class Answers:
    """What the clients got: milliseconds of each answer of the first rung, and which rung gave how many."""

    ms: list[float] = field(default_factory=list)
    rungs: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def row(self, floor_ms: float) -> dict[str, Any]:
        """Percentiles, throughput and ratio."""
        p50, p99 = (float(one) for one in np.percentile(self.ms, (50, 99)))
        return {
            "p50_ms": p50,
            "p99_ms": p99,
            "requests_a_second": len(self.ms) / self.seconds,
            "of_the_floor": p50 / floor_ms,
            "throughput_of_the_floor": len(self.ms) / self.seconds * floor_ms / 1e3,
            "rungs": dict(self.rungs),
        }


def main() -> None:
    """Serve, ask, measure the floor, print the table, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=20_000)
    parser.add_argument("--trees", type=int, default=300)
    parser.add_argument("--seconds", type=float, default=8.0, help="for each number of clients")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    app = load_app(Path(__file__).parents[1] / "apps" / APP)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        snapshot = write_catalogue(folder / "snapshot", given.items, rng)
        write_bundle(folder / "model", app, snapshot, 10 * given.items, given.trees, rng)
        floor = floor_ms(folder / "model", rng)
        rows = served(folder, snapshot, given.seconds, float(np.median(floor)), rng)
        floor += floor_ms(folder / "model", rng)  # again, since the machine may have become slower meanwhile
    report(given, floor, rows)


def served(
    folder: Path, snapshot: ItemSnapshot, seconds: float, floor: float, rng: np.random.Generator
) -> dict[int, dict[str, Any]]:
    """By number of clients, what the local cloud's API gave them."""
    addresses = supervisor.up(folder / "home", APP, workers=2, prepare=partial(publish, folder))
    try:
        with closing(Api(addresses["api"])) as api:
            until_model(api)
            send_histories(api, snapshot, rng)
        return {clients: calm(addresses["api"], clients, seconds).row(floor) for clients in CLIENTS}
    finally:
        supervisor.down(folder / "home")


def publish(folder: Path, endpoint: str, outputs: dict[str, dict[str, str]]) -> None:
    """Bundle and catalogue into the deployed stacks, before their functions start."""
    keys = {"AWS_ACCESS_KEY_ID": "local", "AWS_SECRET_ACCESS_KEY": "local"}
    os.environ.update({"AWS_ENDPOINT_URL": endpoint, "AWS_DEFAULT_REGION": REGION, **keys})
    flat = {name: value for stack in outputs.values() for name, value in stack.items()}
    objects = S3Objects(boto3.client("s3"), flat["BucketName"])
    control = DynamoControlTable(
        flat["ControlTableName"], region=REGION, connect_timeout_s=1, read_timeout_s=5
    )
    for part, pointer in (("snapshot", snapshot_pointer(APP)), ("model", model_pointer(APP))):
        prefix = f"{part}s/{VERSION}"
        objects.upload(folder / part, prefix)
        control.move(pointer, Pointer(VERSION, prefix, time.time()), expected=None)


def until_model(api: Api) -> None:
    """Until both workers serve the model."""
    _until(lambda: all(api.health()["model_version"] == VERSION for _ in range(8)), "the model is not served")


def send_histories(api: Api, snapshot: ItemSnapshot, rng: np.random.Generator) -> None:
    """Twenty views of each visitor through the stream, until the API knows them."""
    now = time.time()
    for visitor in range(VISITORS):
        viewed = snapshot.ids(rng.integers(0, snapshot.size, HISTORY).astype(np.int32))
        events = [
            {
                "event_id": f"v{visitor}-{place}",
                "event_type": "view",
                "user_id": f"visitor-{visitor}",
                "item_id": item_id,
                "sent_at": round(now - 60.0 * (HISTORY - place), 3),
            }
            for place, item_id in enumerate(viewed)
        ]
        verdicts = api.send_events(events)["verdicts"]
        refused = [one for one in verdicts if one["status"] != "accepted"]
        if refused:
            raise SystemExit(f"events were refused, for example {refused[0]}")
    last = {"user_id": f"visitor-{VISITORS - 1}", "explain": True}
    _until(lambda: bool(api.recommend(SURFACE, last)["trace"]["history"]), "the events are not counted")


def _until(holds: Any, complaint: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        if time.monotonic() > deadline:
            raise SystemExit(f"{complaint} after {PATIENCE_S:g} s")
        time.sleep(0.2)


def calm(url: str, clients: int, seconds: float) -> Answers:
    """As `ask`, once a single client is answered by the first rung again: an overload trips the breakers."""

    def full() -> bool:
        return set(ask(url, 1, CALM_S).rungs) == {FIRST_RUNG}

    _until(full, "the first rung does not answer")
    return ask(url, clients, seconds)


def ask(url: str, clients: int, seconds: float) -> Answers:
    """So many clients, each with a connection of its own, one request after the other once all are in."""
    answers, lock = Answers(), threading.Lock()
    connected = threading.Barrier(clients)

    def visit(client: int) -> None:
        ms, rungs, number = [], Counter[str](), client
        with closing(Api(url)) as api:
            api.recommend(SURFACE, {"user_id": f"visitor-{client % VISITORS}"})
            connected.wait()
            began_all = time.perf_counter()
            while time.perf_counter() < began_all + seconds:
                began = time.perf_counter()
                answer = api.recommend(SURFACE, {"user_id": f"visitor-{number % VISITORS}"})
                took = time.perf_counter() - began
                rungs[answer["fallback"]] += 1
                number += clients
                if answer["fallback"] == FIRST_RUNG:
                    ms.append(took * 1e3)
                else:
                    time.sleep(PAUSE_S)
        with lock:
            answers.ms += ms
            answers.rungs += rungs
            answers.seconds = max(answers.seconds, time.perf_counter() - began_all)

    threads = [threading.Thread(target=visit, args=(client,)) for client in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def floor_ms(model: Path, rng: np.random.Generator, requests: int = 300) -> list[float]:
    """Milliseconds of one request's search, scoring and diversification by the libraries alone."""
    factors = np.ascontiguousarray(als.load(model / als.FILE).vectors, np.float32)
    index = faiss.IndexFlatIP(factors.shape[1])
    index.add(factors)
    faiss.omp_set_num_threads(1)
    booster = lightgbm.Booster(model_file=str(model / "ranker.txt"))
    features = rng.random((CANDIDATES, booster.num_feature()))
    times = []
    for request in range(requests + 20):
        asking = factors[request % len(factors)][None]
        began = time.perf_counter()
        _, found = index.search(asking, CANDIDATES)
        scores = np.asarray(booster.predict(features, num_threads=1))
        diversified(scores, factors[found[0]])
        times.append((time.perf_counter() - began) * 1e3)
    return times[20:]


def diversified(scores: np.ndarray, vectors: np.ndarray) -> list[int]:
    """Maximal marginal relevance of the best by cosine, plain."""
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    value, closest, chosen = LAMBDA * scores, np.zeros(len(scores)), list[int]()
    for _ in range(SHOWN):
        best = int(np.argmax(value - (1 - LAMBDA) * closest))
        chosen.append(best)
        value[best] = -np.inf
        np.maximum(closest, unit @ unit[best], out=closest)
    return chosen


def report(given: argparse.Namespace, floor: list[float], rows: dict[int, dict[str, Any]]) -> None:
    """Print the table and keep it."""
    p50, p99 = (float(one) for one in np.percentile(floor, (50, 99)))
    print(f"{APP}, {given.items:,} items, {platform.machine()}, Python {platform.python_version()}")
    print(f"{'':22}{'p50 ms':>9}{'p99 ms':>9}{'of the floor':>14}{'a second':>10}{'of the floor':>14}")
    print(f"{'floor, one thread':22}{p50:>9.2f}{p99:>9.2f}{1.0:>14.1f}{1e3 / p50:>10,.0f}{1.0:>14.2f}")
    for clients, row in rows.items():
        print(
            f"{f'HTTP, {clients} clients':22}{row['p50_ms']:>9.2f}{row['p99_ms']:>9.2f}"
            f"{row['of_the_floor']:>14.1f}{row['requests_a_second']:>10,.0f}"
            f"{row['throughput_of_the_floor']:>14.2f}   {row['rungs']}"
        )
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        content = {"items": given.items, "floor": {"p50_ms": p50, "p99_ms": p99}, "clients": rows}
        given.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
