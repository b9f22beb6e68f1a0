"""What is known of an item between two nights: a partial for each shard and day, merged when it is read.

Events on one item come through every shard and from every visitor, so no mark can say what is in. A partial
is approximate by declaration: a ring of event ids keeps a batch that comes again from counting again, as long
as no more than the ring's events on that item lie between. The night puts exact values in its place.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import product

from narrows.events import EXCLUDING_TYPES, Event
from narrows.features.registry import Features, FeatureSet
from narrows.features.ring import digest_of, grown, knows
from narrows.features.state import ITEM_PREFIX, Arrival, StateStore, VisitorState, counts

DAY_S = 86_400.0


def streamed(feature_set: FeatureSet) -> FeatureSet:
    """The item features that promise to be fresher than a day; the others wait for the night."""
    items = feature_set.scoped("item")
    fresh = [one for one in items.declarations if one.freshness_s and one.freshness_s < DAY_S]
    return FeatureSet(fresh).scoped("item")


def item_events(event: Event) -> list[Event]:
    """The event as each item sees it: an impression without an item is one of every item that it showed."""
    if event.item_id is not None:
        return [replace(event, impression=())]
    return [replace(event, item_id=one, impression=()) for one in dict.fromkeys(event.impression)]


def partial_key(item_id: str, shard: str, day: str) -> str:
    """The key of what arrived on one UTC day, as 2026-11-21, through one shard."""
    return f"{ITEM_PREFIX}{item_id}#{shard}#{day}"


def partials(arrivals: Iterable[Arrival], feature_set: FeatureSet) -> dict[str, list[Arrival]]:
    """The events that the features take, by the key of the partial that they go to."""
    types = [one.kind.types for one in feature_set.features]
    every, taken = not all(types), frozenset[str]().union(*types)
    found: dict[str, list[Arrival]] = defaultdict(list)
    for one in arrivals:
        event_type = one.event.event_type
        if not counts(one.event) or event_type in EXCLUDING_TYPES or not (every or event_type in taken):
            continue
        day = day_of(one.event.received_at)
        for event in item_events(one.event):
            found[partial_key(event.item_id or "", one.shard, day)].append(
                Arrival(one.shard, one.sequence, event)
            )
    return found


def fold_item(state: VisitorState, arrivals: Sequence[Arrival], feature_set: FeatureSet) -> VisitorState:
    """The partial after these events; what its ring knows changes nothing."""
    named = [(digest_of(one.event.event_id), one.event) for one in arrivals]
    fresh = {digest: event for digest, event in reversed(named) if not knows(state.ring, digest)}
    if not fresh:
        return state
    return state._replace(
        features=feature_set.add_all(state.features, list(fresh.values())),
        ring=grown(state.ring, fresh),
        updated_at=max([state.updated_at, *(one.received_at for one in fresh.values())]),
    )


def item_states(
    store: StateStore,
    item_ids: Sequence[str],
    *,
    shards: Sequence[str],
    since: float,
    now: float,
    feature_set: FeatureSet,
) -> Mapping[str, Features]:
    """What the stream counted of each item in what arrived from the UTC day of `since` on, up to `now`."""
    days = days_between(since, now)
    keys = {partial_key(*one): one[0] for one in product(item_ids, shards, days)}
    merged: dict[str, Features] = {item_id: feature_set.zero() for item_id in item_ids}
    for key, state in store.get_many(list(keys)).items():
        merged[keys[key]] = feature_set.merge(merged[keys[key]], state.features)
    return merged


def days_between(since: float, now: float) -> list[str]:
    """Every UTC day from the one of `since` to the one of `now`."""
    first, last = (datetime.fromtimestamp(one, UTC).date() for one in (since, now))
    return [(first + timedelta(days=number)).isoformat() for number in range((last - first).days + 1)]


def day_of(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).date().isoformat()
