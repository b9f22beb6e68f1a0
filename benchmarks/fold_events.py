"""Events into visitors' states in one process: what one core of the function folds, with an app's whole set.

    python benchmarks/fold_events.py --events 200000 --visitors 20000 --out fold_events.json

The events come in batches as from the stream; in a batch each visitor's are folded together. "features" is
the feature set alone, "states" with sequence numbers, rings and the visitor's do-not-show list, "items" what
items see of the same events. No store, no codec. Rates are per second of this process' CPU time,
with the garbage collector as the function sets it.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from lambdas.stream import collecting_afterwards
from narrows.events import Event
from narrows.features.items import item_events, streamed
from narrows.features.registry import FeatureSet
from narrows.features.state import Arrival, VisitorState, fold
from narrows.settings import load_app

APPS = Path(__file__).parents[1] / "apps"
NOW = 1_763_600_000.0
TARGET = 50_000
SHARES = {
    "impression": 0.2, "view": 0.4, "click": 0.22, "add_to_cart": 0.1, "remove_from_cart": 0.02,
    "purchase": 0.05, "refund": 0.01,
}  # fmt: skip


def happened(count: int, visitors: int, rng: np.random.Generator) -> list[Event]:
    """Events of few busy and many quiet visitors, in the order of time."""
    types = rng.choice(list(SHARES), count, p=list(SHARES.values()))
    who = (visitors * rng.random(count) ** 2).astype(int)
    items = (20_000 * rng.random((count, 10)) ** 2).astype(int)
    prices = np.round(rng.lognormal(3.0, 1.0, count), 2)
    words = rng.integers(0, (24, 150, 3, 12), (count, 4))
    return [
        _event(place, str(types[place]), int(who[place]), items[place], float(prices[place]), words[place])
        for place in range(count)
    ]


def _event(place: int, kind: str, who: int, items: Any, price: float, words: Any) -> Event:
    shown = tuple(f"item-{one}" for one in items) if kind == "impression" else ()
    category, brand, device, location = words.tolist()
    properties: dict[str, str | float] = {
        "category": f"category {category}", "brand": f"brand {brand}", "price": price,
        "device": ("mobile", "desktop", "tablet")[device], "location": f"L{location}", "dwell_s": price,
    }  # fmt: skip
    return Event(
        event_id=f"{place:032x}",
        event_type=kind,
        time=NOW + place * 0.05,
        received_at=NOW + place * 0.05 + 1.0,
        user_id=f"{who:032x}",
        session_id=f"{who:032x}",
        item_id=None if shown else f"item-{items[0]}",
        value=price if kind in ("purchase", "refund") else None,
        position=int(items[1]) % 20 if kind == "click" else None,
        impression=shown,
        properties=properties,
    )


def by_key(keyed: Sequence[tuple[str, Event]], batch: int) -> list[list[tuple[str, list[Event]]]]:
    """Batches of the stream; in each a key's events together."""
    batches, rest = [], iter(keyed)
    while part := list(islice(rest, batch)):
        of_key: dict[str, list[Event]] = defaultdict(list)
        for key, event in part:
            of_key[key].append(event)
        batches.append(list(of_key.items()))
    return batches


def rate(events: int, run: Callable[[], None]) -> float:
    """Events per second of CPU time, the better of two runs."""
    times = []
    for _ in range(2):
        start = time.process_time()
        with collecting_afterwards():
            run()
        times.append(time.process_time() - start)
    return events / min(times)


def features_alone(view: FeatureSet, batches: list[list[tuple[str, list[Event]]]]) -> Callable[[], None]:
    def run() -> None:
        states: dict[str, Any] = {}
        for batch in batches:
            for key, events in batch:
                states[key] = view.add_all(states.get(key, {}), events)

    return run


def whole_states(view: FeatureSet, batches: list[list[tuple[str, list[Event]]]]) -> Callable[[], None]:
    arrivals = [
        [(key, [Arrival("shard-0", int(one.event_id, 16), one) for one in events]) for key, events in batch]
        for batch in batches
    ]

    def run() -> None:
        states: dict[str, VisitorState] = {}
        for batch in arrivals:
            for key, records in batch:
                states[key] = fold(states.get(key) or VisitorState(), records, view)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--app", default="megashop")
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--visitors", type=int, default=20_000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    features = FeatureSet(load_app(APPS / options.app).features)
    visitor, item = features.scoped("visitor", "user"), streamed(features)
    events = happened(options.events, options.visitors, np.random.default_rng(7))
    mine = [(event.visitor_key, event) for event in events]
    shown = [(one.item_id or "", replace(one)) for event in events[::10] for one in item_events(event)]
    table = []
    for batch in (100, 1_000, 5_000):
        batches = by_key(mine, batch)
        table.append(
            {
                "batch": batch,
                "features": round(rate(len(mine), features_alone(visitor, batches))),
                "states": round(rate(len(mine), whole_states(visitor, batches))),
                "items": round(rate(len(shown), features_alone(item, by_key(shown, batch)))),
            }
        )
    kinds = f"{len(visitor.features)} visitor and {len(item.features)} streamed item features"
    print(f"{options.app}: {kinds}, {len(events):,} events, {platform.machine()}, Python "
          f"{platform.python_version()}; the aim is {TARGET:,} events/s on one core")  # fmt: skip
    print(f"{'batch':>8} {'features/s':>12} {'states/s':>12} {'item events/s':>14}")
    for row in table:
        print(f"{row['batch']:>8,} {row['features']:>12,} {row['states']:>12,} {row['items']:>14,}")
    if options.out:
        options.out.write_text(json.dumps({"aim": TARGET, "rows": table}, indent=2))


if __name__ == "__main__":
    main()
