"""A shop that serves while its events come in: what lands of both, with states folded as in the cloud."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from narrows.adapters.memory import MemoryDeadLetters, MemoryStateStore
from narrows.decision import DecisionRecord
from narrows.envelope import parse_event
from narrows.events import Event, parse_moment, pseudonymise, session_key, to_record, user_key
from narrows.features.login import StateFeatures
from narrows.features.registry import FeatureSet
from narrows.features.ring import digest_of
from narrows.features.stream import StreamRecord, update_features
from narrows.landing import landing_files
from narrows.settings import App
from narrows.visitor import Visitor, as_one
from tests.stream_model import Inline

KEY = b"pseudonyms of a test"
FIRST = 49_668_000_000_000_000_000_000_000_000_000_000_000_000_000_000_000_000_000
SHARDS = 2
BATCH = 100
Reader = Callable[[FeatureSet, Mapping[str, Any], float], dict[str, float]]


@dataclass
class Served:
    """Where events and decisions have landed, and how many decisions there are."""

    landing: Path
    decisions: int = 0


def events_of(raws: Iterable[Mapping[str, object]], app: App) -> Iterator[Event]:
    """What clients send, as it is stored: in the order of arrival, by a clock that never goes back."""
    now = 0.0
    for raw in raws:
        now = max(now, parse_moment("sent_at", raw["sent_at"]))
        yield pseudonymise(parse_event(raw, types=app.events, now=now + 0.5), KEY)


def serve(
    events: Iterable[Event],
    features: FeatureSet,
    folder: Path,
    *,
    every: int = 20,
    read: Reader = FeatureSet.read,
) -> Served:
    """Fold the events batch by batch and serve in between; `read` is how serving reads a state."""
    served, store, rng = Served(folder), MemoryStateStore(clock=lambda: 0.0), np.random.default_rng(3)
    stateful = StateFeatures.of(features)
    batch: list[tuple[str, StreamRecord, Event]] = []
    for number, event in enumerate(events):
        lane = int.from_bytes(digest_of(event.partition_key), "little") % SHARDS
        shard = f"shardId-{lane:012d}"
        data = json.dumps(to_record(event)).encode()
        batch.append((shard, StreamRecord(shard, str(FIRST + 7 * number), data), event))
        if len(batch) == BATCH:
            _take(batch, store, stateful, folder)
            seen = [one for _, _, one in batch if one.consent and not one.marks]
            for place in rng.choice(len(seen), size=min(BATCH // every, len(seen)), replace=False):
                now = batch[-1][2].received_at + float(rng.random())
                _decide(seen[int(place)], now, store, features, served, read)
            batch = []
    return served


def _take(
    batch: list[tuple[str, StreamRecord, Event]],
    store: MemoryStateStore,
    features: StateFeatures,
    folder: Path,
) -> None:
    for shard in sorted({one for one, _, _ in batch}):
        records = [record for at, record, _ in batch if at == shard]
        outcome = update_features(
            records, store, features, dead_letters=MemoryDeadLetters(), executor=Inline()
        )
        assert not outcome.failures
        _land(records, "events", batch[0][2].received_at, folder)


def _decide(
    about: Event, now: float, store: MemoryStateStore, features: FeatureSet, served: Served, read: Reader
) -> None:
    """A request of the visitor of this event, with the session or, seldom, without."""
    user = user_key(about.user_id) if about.user_id else None
    session = (
        session_key(about.session_id) if about.session_id and (not user or served.decisions % 5) else None
    )
    states = store.get_many([key for key in (user, session) if key])
    visitor = Visitor(states.get(user or ""), states.get(session or ""))
    reading = as_one(visitor, user, session, features)
    values = read(features, reading.state.features, now)
    context = {"device": "mobile" if served.decisions % 2 else "desktop"}
    record = DecisionRecord(
        *(
            f"rec-{served.decisions:05d}",
            "megashop",
            "homepage",
            now,
            10,
            user,
            session,
            "full",
            "s1",
            None,
            1,
        ),
        context=context,
        visitor_features=values,
        visitor_lists={name: tuple(ids) for name, ids in features.lists(reading.state.features, now).items()},
        applied=reading.applied,
        request_features=features.computed.request_values(now, context, values),
        feature_fingerprint=features.fingerprint(),
    )
    line = StreamRecord("shardId-d", str(FIRST + served.decisions), record.to_json().encode())
    _land([line], "decisions", now, served.landing)
    served.decisions += 1


def _land(records: list[StreamRecord], kind: str, now: float, folder: Path) -> None:
    for file in landing_files(records, kind, now):
        path = folder / file.key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.data)
