"""What folding costs the state table on the demo's traffic, and how far streamed item values are off.

    python benchmarks/fold_writes.py --events 50000 --out fold_writes.json

The simulated market's events go through the function's own code into a store in memory, in batches as the
stream cuts them. A unit is what DynamoDB bills: 1 KiB written, twice in a transaction. Streamed item values
are compared with those of all events, each once, also where one batch in twenty comes again, cut elsewhere.
The last table has the stored users' states against the same content as JSON, deflated.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import random
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from narrows.adapters.memory import MemoryDeadLetters, MemoryStateStore
from narrows.envelope import parse_event
from narrows.events import Event, pseudonymise, to_record
from narrows.features.codec import decode, encode
from narrows.features.items import item_events, item_states
from narrows.features.login import StateFeatures
from narrows.features.registry import FeatureSet
from narrows.features.state import VisitorState, Write, counts
from narrows.features.stream import StreamRecord, update_features
from narrows.settings import load_app
from narrows.simulator import Market

NOW = 1_763_600_000.0
DAYS = 28
SHARDS = 2
KINDS = {"u#": "users", "s#": "sessions", "i#": "item partials"}


class MeteredStore(MemoryStateStore):
    """Counts writes by kind of key, and the units that they would be billed."""

    def __init__(self) -> None:
        super().__init__(clock=lambda: NOW)
        self.writes: Counter[str] = Counter()
        self.units = 0
        self.sizes: dict[str, int] = {}

    def put_all(self, writes: Sequence[Write]) -> None:
        super().put_all(writes)
        for one in writes:
            size = len(self._rows[one.key][1]) + len(one.key) + 30
            self.sizes[one.key] = size
            self.units += math.ceil(size / 1024) * (2 if len(writes) > 1 else 1)
            self.writes[KINDS[one.key[:2]]] += 1


def demo_records(count: int) -> tuple[list[Event], list[StreamRecord]]:
    """The demo's events as the stream holds them: pseudonymised, each visitor's in one shard."""
    app = load_app(Path(__file__).parents[1] / "apps" / "megashop")
    sent = Market(7, as_of=NOW).events(count, NOW - DAYS * 86_400.0, NOW - 60.0)
    events, records = [], []
    for number, raw in enumerate(sent):
        event = pseudonymise(parse_event(raw, types=app.events, now=NOW), b"benchmark")
        shard = f"shardId-{zlib.crc32(event.partition_key.encode()) % SHARDS:012d}"
        events.append(event)
        sequence = str(49_590_338_271_490_256_608_559_692_538_361 * 10**24 + number)
        records.append(StreamRecord(shard, sequence, json.dumps(to_record(event)).encode()))
    return events, records


def run(
    records: Sequence[StreamRecord], batch: int, features: StateFeatures, again: float
) -> tuple[MeteredStore, float]:
    """Each shard in batches; returns the store and the seconds that it took."""
    store, rng, start = MeteredStore(), random.Random(3), time.perf_counter()
    with ThreadPoolExecutor(2) as executor:
        for shard in sorted({one.shard for one in records}):
            of_shard = [one for one in records if one.shard == shard]
            at = 0
            while at < len(of_shard):
                part = of_shard[at : at + batch]
                outcome = update_features(
                    part, store, features, dead_letters=MemoryDeadLetters(), executor=executor
                )
                if outcome.failures:
                    raise RuntimeError(f"a store in memory refused: {outcome.failures[0]}")
                at += len(part) if rng.random() >= again else rng.randrange(len(part))
    return store, time.perf_counter() - start


def item_errors(store: MeteredStore, events: Sequence[Event], features: StateFeatures) -> dict[str, Any]:
    """The streamed values of every item against those of all events, each once."""
    view, distinct = features.item, {one.event_id: one for one in reversed(events)}
    of_item: dict[str, list[Event]] = {}
    for event in distinct.values():
        if counts(event):
            for one in item_events(event):
                of_item.setdefault(one.item_id or "", []).append(one)
    shards = [f"shardId-{number:012d}" for number in range(SHARDS)]
    streamed = item_states(store, list(of_item), shards=shards, since=NOW, now=NOW, feature_set=view)
    errors = []
    for item_id, own in of_item.items():
        exact = view.read(view.add_all({}, own), NOW)
        found = view.read(streamed[item_id], NOW)
        errors += [abs(found[name] - exact[name]) / max(abs(exact[name]), 1e-12) for name in view.names]
    errors.sort()
    return {
        "items": len(of_item),
        "values": len(errors),
        "off": sum(one >= 1e-9 for one in errors),
        "mean": sum(errors) / len(errors),
        "p99": errors[int(len(errors) * 0.99)],
        "worst": errors[-1],
    }


def deflated_json(state: VisitorState) -> bytes:
    """What the format before was: JSON, deflated."""
    content = [
        state.features,
        state.applied,
        state.ring.hex(),
        state.do_not_show,
        state.updated_at,
        state.version,
    ]
    return zlib.compress(json.dumps(content, separators=(",", ":"), default=dict).encode(), level=3)


def codec_rows(store: MeteredStore) -> list[dict[str, Any]]:
    """Bytes and microseconds of small, middling and large states, as the run left them."""
    keys = sorted((key for key in store.sizes if key.startswith("u#")), key=store.sizes.__getitem__)
    rows = []
    for name, part in (("smallest tenth", 0.0), ("middle", 0.45), ("largest tenth", 0.9)):
        chosen = keys[int(len(keys) * part) : int(len(keys) * (part + 0.1))][:200]
        states = list(store.get_many(chosen).values())
        packed, texts = [encode(one) for one in states], [deflated_json(one) for one in states]
        rows.append(
            {
                "states": name,
                "json_bytes": round(sum(map(len, texts)) / len(states)),
                "bytes": round(sum(map(len, packed)) / len(states)),
                "json_us": microseconds(deflated_json, states),
                "encode_us": microseconds(encode, states),
                "decode_us": microseconds(decode, packed),
            }
        )
    return rows


def microseconds(call: Callable[[Any], Any], each: Sequence[Any]) -> int:
    """The best of five rounds, for one."""
    rounds = []
    for _ in range(5):
        start = time.perf_counter()
        for one in each:
            call(one)
        rounds.append((time.perf_counter() - start) / len(each) * 1e6)
    return round(min(rounds))


def writes_row(events: int, store: MeteredStore, batch: int, took: float) -> dict[str, Any]:
    """What one batch size cost, per event."""
    return {
        "batch": batch,
        "writes_per_event": round(sum(store.writes.values()) / events, 3),
        **{name: round(store.writes[name] / events, 3) for name in KINDS.values()},
        "units_per_event": round(store.units / events, 3),
        "us_per_event": round(took / events * 1e6),
    }


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Rows of equal columns as a table."""
    widths = {name: max(len(name), 8) for name in rows[0]}
    print("  ".join(f"{name:>{width}}" for name, width in widths.items()))
    for row in rows:
        print("  ".join(f"{row[name]:>{width}}" for name, width in widths.items()))


def main() -> None:
    """Fold, count, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--events", type=int, default=30_000)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    app = load_app(Path(__file__).parents[1] / "apps" / "megashop")
    features = StateFeatures.of(FeatureSet(app.features))
    events, records = demo_records(given.events)
    visitors = len({one.visitor_key for one in events})
    machine = f"{platform.machine()}, Python {platform.python_version()}"
    print(f"{len(events):,} events of the demo's market, {visitors:,} visitors, {SHARDS} shards, {machine}")
    table = []
    for batch in (100, 1_000, 5_000):
        store, took = run(records, batch, features, again=0.0)
        table.append(writes_row(len(events), store, batch, took))
    show(table)
    errors = []
    for name, again in (("once", 0.0), ("1 batch in 20 again", 0.05)):
        store, _ = run(records, 1_000, features, again)
        errors.append({"delivered": name, **item_errors(store, events, features)})
    print("streamed item values against the batch answer, relative errors:")
    show(
        [
            {name: one if isinstance(one, str | int) else f"{one:.1e}" for name, one in row.items()}
            for row in errors
        ]
    )
    sizes = codec_rows(store)
    print("users' states as they are stored, and as deflated JSON:")
    show(sizes)
    if given.out:
        content = {"writes": table, "items": errors, "codec": sizes}
        given.out.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
