"""Events into visitors' states in one process: what one core of the function folds, with an app's whole set.

    python benchmarks/fold_events.py --events 200000 --visitors 20000 --out fold_events.json

The events come in batches as from the stream, each made just before it is folded, as the function decodes it;
in a batch each visitor's are folded together. "features" is the feature set alone, "states" with sequence
numbers, rings and the visitor's do-not-show list, "items" what items see of the same events. No store, no
codec: all states stay in memory. Rates are per second of this process' CPU time in the fold, with the garbage
collector as the function sets it.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
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
REPEATS = 4
"""Minutes of a shared machine differ by a third; the quickest run is the one least disturbed."""
SHARES = {
    "impression": 0.2, "view": 0.4, "click": 0.22, "add_to_cart": 0.1, "remove_from_cart": 0.02,
    "purchase": 0.05, "refund": 0.01,
}  # fmt: skip


class Log:
    """Events of few busy and many quiet visitors, in the order of time; made when they are asked for."""

    def __init__(self, count: int, visitors: int, rng: np.random.Generator) -> None:
        self._types = rng.choice(list(SHARES), count, p=list(SHARES.values()))
        self._who = (visitors * rng.random(count) ** 2).astype(int)
        self._items = (20_000 * rng.random((count, 10)) ** 2).astype(int)
        self._prices = np.round(rng.lognormal(3.0, 1.0, count), 2)
        self._words = rng.integers(0, (24, 150, 3, 12), (count, 4))

    def __len__(self) -> int:
        return len(self._types)

    def batches(self, size: int) -> Iterator[list[Event]]:
        """Each with so many events, the last one with what is left."""
        for start in range(0, len(self), size):
            yield [self._event(place) for place in range(start, min(start + size, len(self)))]

    def _event(self, place: int) -> Event:
        kind, who, price = str(self._types[place]), int(self._who[place]), float(self._prices[place])
        return _event(place, kind, who, self._items[place], price, self._words[place])


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


Keyed = list[tuple[str, list[Event]]]


def by_visitor(batch: Sequence[Event]) -> Keyed:
    """Each visitor's events together."""
    return _grouped((event.visitor_key, event) for event in batch)


def by_item(batch: Sequence[Event]) -> Keyed:
    """What items see of a tenth of the events, each item's together."""
    return _grouped((one.item_id or "", one) for event in batch[::10] for one in item_events(event))


def _grouped(keyed: Iterable[tuple[str, Event]]) -> Keyed:
    of_key: dict[str, list[Event]] = defaultdict(list)
    for key, event in keyed:
        of_key[key].append(event)
    return list(of_key.items())


def rate(batches: Callable[[], Iterator[Any]], new: Callable[[], Callable[[Any], int]]) -> float:
    """Events per second of CPU time in the fold, which tells how many it took; the best of some runs."""
    rates = []
    for _ in range(REPEATS):
        fold_batch, taken, events = new(), 0.0, 0
        with collecting_afterwards():
            for batch in batches():
                start = time.process_time()
                events += fold_batch(batch)
                taken += time.process_time() - start
        rates.append(events / taken)
    return max(rates)


def features_alone(view: FeatureSet) -> Callable[[Keyed], int]:
    states: dict[str, Any] = {}

    def run(batch: Keyed) -> int:
        for key, events in batch:
            states[key] = view.add_all(states.get(key, {}), events)
        return sum(len(events) for _, events in batch)

    return run


def whole_states(view: FeatureSet) -> Callable[[list[tuple[str, list[Arrival]]]], int]:
    states: dict[str, VisitorState] = {}

    def run(batch: list[tuple[str, list[Arrival]]]) -> int:
        for key, records in batch:
            states[key] = fold(states.get(key) or VisitorState(), records, view)
        return sum(len(records) for _, records in batch)

    return run


def arrivals(batch: Keyed) -> list[tuple[str, list[Arrival]]]:
    """The same as the stream delivers it."""
    return [(key, [_arrival(one) for one in events]) for key, events in batch]


def _arrival(event: Event) -> Arrival:
    return Arrival("shard-0", int(event.event_id, 16), event)


def measured(log: Log, size: int, visitor: FeatureSet, item: FeatureSet) -> dict[str, int]:
    """The rates at one batch size."""

    def visitors() -> Iterator[Keyed]:
        return map(by_visitor, log.batches(size))

    def items() -> Iterator[Keyed]:
        return map(by_item, log.batches(size))

    return {
        "batch": size,
        "features": round(rate(visitors, lambda: features_alone(visitor))),
        "states": round(rate(lambda: map(arrivals, visitors()), lambda: whole_states(visitor))),
        "items": round(rate(items, lambda: features_alone(item))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--app", default="megashop")
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--visitors", type=int, default=20_000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    features = FeatureSet(load_app(APPS / options.app).features)
    visitor, item = features.scoped("visitor", "user"), streamed(features)
    log = Log(options.events, options.visitors, np.random.default_rng(7))
    table = [measured(log, size, visitor, item) for size in (100, 1_000, 5_000)]
    kinds = f"{len(visitor.features)} visitor and {len(item.features)} streamed item features"
    print(f"{options.app}: {kinds}, {len(log):,} events, {platform.machine()}, Python "
          f"{platform.python_version()}; the aim is {TARGET:,} events/s on one core")  # fmt: skip
    print(f"{'batch':>8} {'features/s':>12} {'states/s':>12} {'item events/s':>14}")
    for row in table:
        print(f"{row['batch']:>8,} {row['features']:>12,} {row['states']:>12,} {row['items']:>14,}")
    if options.out:
        options.out.write_text(json.dumps({"aim": TARGET, "rows": table}, indent=2))


if __name__ == "__main__":
    main()
