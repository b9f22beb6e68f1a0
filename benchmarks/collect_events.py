"""Collecting and landing in one process, without a network: events a second on one core.

    python benchmarks/collect_events.py [--events 100000] [--out collect_events.json]

A simulated market's events, as the demo sends them, in batches of 500: judged, marked, given pseudonyms and
put into a stream in memory; then the stream's records are judged again and written as landing files.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from narrows.adapters.memory import MemoryEventStream, MemoryObjects
from narrows.collecting import collect
from narrows.events import to_record
from narrows.features.stream import StreamRecord
from narrows.landing import EVENTS, landing_files
from narrows.settings import load_app
from narrows.simulator import Market

NOW, DAY_S, BATCH, LANDED = 1_800_000_000.0, 86_400.0, 500, 5_000
APP = load_app(Path(__file__).resolve().parents[1] / "apps" / "megashop")


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    market = Market(7, as_of=NOW)
    events = list(market.events(arguments.events, NOW - 20 * DAY_S, NOW - 60.0))
    result = measured(events)
    for name, value in result.items():
        print(f"{name:<28}{value:>14,.0f}")
    if arguments.out:
        arguments.out.write_text(json.dumps(result))


def measured(events: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Events a second of both steps, and what became of the events."""
    stream, quarantine = MemoryEventStream(), MemoryObjects()
    began = time.process_time()
    accepted = sum(
        _accepted(events[at : at + BATCH], stream, quarantine) for at in range(0, len(events), BATCH)
    )
    collecting_s = time.process_time() - began
    records = [
        StreamRecord("shardId-0", str(number), json.dumps(to_record(event)).encode())
        for number, event in enumerate(stream.events)
    ]
    began = time.process_time()
    for at in range(0, len(records), LANDED):
        landing_files(records[at : at + LANDED], EVENTS, NOW)
    landing_s = time.process_time() - began
    return {
        "events": len(events),
        "accepted": accepted,
        "marked": sum(bool(event.marks) for event in stream.events),
        "collected a second": len(events) / collecting_s,
        "landed a second": len(records) / landing_s,
    }


def _accepted(batch: Sequence[object], stream: MemoryEventStream, quarantine: MemoryObjects) -> int:
    return collect(
        batch, types=APP.events, now=NOW, key=b"a key", stream=stream, quarantine=quarantine
    ).accepted


if __name__ == "__main__":
    main()
