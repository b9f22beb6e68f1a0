"""Every kind is a commutative fold: order, chunks and merges change nothing, and the numbers are right."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from narrows.events import Event
from narrows.features.columns import Entries, EventColumns
from narrows.features.declarations import FeatureDeclaration
from narrows.features.groups import Members
from narrows.features.kinds import (
    KINDS,
    Count,
    DecayedCount,
    DecayedSum,
    DistinctCount,
    Entropy,
    FirstSeen,
    Kind,
    LastN,
    LastSeen,
    LastValue,
    PerValue,
    RecentCount,
    Selection,
    SmoothedRate,
    State,
    ValueStatistics,
)
from narrows.features.moments import STATISTICS
from narrows.features.registry import FeatureSet

CLICKS = Selection(frozenset({"click"}))
VIEWS = Selection(frozenset({"view"}))
T0 = 1_800_000_000.0

PRICES = Selection(frozenset({"click"}), value="amount")
COLOURS = Selection(frozenset({"click", "view"}), value="colour")

EVERY_KIND = [
    Count(CLICKS),
    Count(PRICES),
    DecayedCount(CLICKS, half_life_s=3600.0),
    DecayedCount(CLICKS, half_life_s=1.0),
    DecayedSum(PRICES, half_life_s=3600.0),
    SmoothedRate(CLICKS, VIEWS, 1.0, 50.0, half_life_s=3600.0),
    SmoothedRate(CLICKS, VIEWS, 1.0, 50.0),
    RecentCount(CLICKS, window_s=3600.0),
    RecentCount(PRICES, window_s=600.0, buckets=4),
    LastN(Selection(), keep=3),
    LastN(CLICKS, keep=5),
    LastValue(PRICES),
    LastValue(COLOURS, texts=("red", "blue")),
    DistinctCount(COLOURS, keep=3),
    DistinctCount(Selection(value="item_id"), keep=64),
    FirstSeen(CLICKS),
    LastSeen(CLICKS),
    *(ValueStatistics(PRICES, statistic) for statistic in STATISTICS),
    Entropy(COLOURS),
    Entropy(COLOURS, keep=2),
    Members(PRICES, "colour", keep=2),
    Members(PRICES, "colour", keep=2, window=RecentCount(PRICES, window_s=600.0)),
    Members(COLOURS, "item_id", keep=3, of_text=True),
    PerValue(Count(CLICKS), "colour"),
    PerValue(DecayedSum(PRICES, half_life_s=600.0), "item_id", keep=2),
    PerValue(RecentCount(VIEWS, window_s=3600.0), "colour", keep=3),
    PerValue(SmoothedRate(CLICKS, VIEWS, 1.0, 20.0), "hour"),
]


def happened(
    name: str, at: float, event_type: str = "click", item_id: str | None = "i", **properties: Any
) -> Event:
    return Event(name, event_type, at, at, user_id="u", item_id=item_id, properties=properties)


@st.composite
def many_events(draw: st.DrawFn) -> list[Event]:
    parts = st.tuples(
        st.integers(0, 40),
        st.sampled_from(["click", "view"]),
        st.sampled_from(["i1", "i2", "i3", None]),
        st.sampled_from(["red", "blue", "grün", "紫", ""]),
    )
    return [
        happened(f"e{number}", T0 + 600 * at, event_type, item, amount=at, colour=colour)
        for number, (at, event_type, item, colour) in enumerate(draw(st.lists(parts, max_size=25)))
    ]


def folded(kind: Kind, events: list[Event]) -> State:
    state = kind.zero()
    for event in events:
        state = kind.add(state, event)
    return state


def same(left: Any, right: Any) -> bool:
    """Texts, integers and their order exactly, floats to rounding."""
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, tuple):
        return len(left) == len(right) and all(same(a, b) for a, b in zip(left, right, strict=True))
    return left == right if not isinstance(left, float) else left == pytest.approx(right, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("kind", EVERY_KIND, ids=lambda kind: type(kind).__name__)
@settings(max_examples=40)
@given(events=many_events(), seed=st.integers(0, 1000))
def test_the_order_of_arrival_does_not_matter(kind: Kind, events: list[Event], seed: int) -> None:
    """Events that arrive late or shuffled give the state that they would have given in order."""
    shuffled = random.Random(seed).sample(events, len(events))
    assert same(folded(kind, events), folded(kind, shuffled))


@pytest.mark.parametrize("kind", EVERY_KIND, ids=lambda kind: type(kind).__name__)
@settings(max_examples=40)
@given(events=many_events(), cuts=st.lists(st.integers(0, 25), max_size=4))
def test_merging_chunks_is_adding_all(kind: Kind, events: list[Event], cuts: list[int]) -> None:
    """However the events are cut into chunks, the merged states are the state of all events."""
    edges = [0, *sorted(min(cut, len(events)) for cut in cuts), len(events)]
    merged = kind.zero()
    for start, end in itertools.pairwise(edges):
        merged = kind.merge(folded(kind, events[start:end]), merged)
    assert same(merged, folded(kind, events))


@pytest.mark.parametrize("kind", EVERY_KIND, ids=lambda kind: type(kind).__name__)
@settings(max_examples=40)
@given(events=many_events(), seed=st.integers(0, 1000), later=st.floats(-300.0, 1e5))
def test_arrays_give_what_events_one_by_one_give(
    kind: Any, events: list[Event], seed: int, later: float
) -> None:
    """Two keys' events in any order, read at any moment, also one that a client's clock is ahead of."""
    rng = random.Random(seed)
    owners = [rng.randrange(2) for _ in events]
    as_of = [T0 + 24_000.0 + later, T0 + 24_000.0]
    order = rng.sample(range(len(events)), len(events))
    columns = EventColumns.of(events).take(np.array(order, np.int64))
    groups = np.array([owners[place] for place in order], np.int64)
    found = kind.values(columns, groups, 3, np.array([*as_of, T0]))
    for owner in (0, 1):
        state = folded(kind, [event for event, whose in zip(events, owners, strict=True) if whose == owner])
        assert same(defined(value(found, owner)), defined(kind.read(state, as_of[owner])))
    assert defined(value(found, 2)) is None


def value(found: Any, group: int) -> Any:
    """What arrays hold of one group."""
    if isinstance(found, Entries):
        return found.objects()[group] if found.known[group] else None
    return found[group]


def defined(value: Any) -> Any:
    """None for what is undefined, however it is written; one type for each number and list."""
    if value is None or isinstance(value, list | dict):
        return tuple(value) if isinstance(value, list) else value
    return None if np.isnan(value) else float(value)


def test_every_kind_is_tested() -> None:
    """A new kind has to join the list above."""
    assert {type(kind) for kind in EVERY_KIND} == {*KINDS.values(), PerValue, Members}


def test_an_event_one_half_life_ago_weighs_one_half() -> None:
    """1 now, 1 an hour ago and 1 two hours ago make 1.75 at a half-life of an hour."""
    kind = DecayedCount(CLICKS, half_life_s=3600)
    state = folded(kind, [happened(str(n), T0 - 3600 * n) for n in range(3)])
    assert kind.read(state, T0) == pytest.approx(1.75)
    assert kind.read(state, T0 + 3600) == pytest.approx(0.875)


def test_a_rate_starts_at_its_prior_and_moves_with_the_evidence() -> None:
    """2 clicks of 10 views with a prior of 1 in 50 is 3 of 60."""
    kind = SmoothedRate(CLICKS, VIEWS, 1.0, 50.0)
    events = [happened(f"v{n}", T0, "view") for n in range(10)] + [happened(f"c{n}", T0) for n in range(2)]
    assert kind.read(folded(kind, events), T0) == pytest.approx(3 / 60)
    decayed = SmoothedRate(CLICKS, VIEWS, 1.0, 50.0, half_life_s=60)
    assert decayed.read(folded(decayed, events), T0 + 1e6) == pytest.approx(1 / 50)


def test_an_impression_of_many_items_is_many_trials() -> None:
    """One click on a list of ten is a rate of one in ten, not of one."""
    kind = SmoothedRate(CLICKS, VIEWS, 0.0, 1e-9)
    shown = Event("v", "view", T0, T0, user_id="u", impression=tuple("abcdefghij"))
    assert kind.read(folded(kind, [shown, happened("c", T0)]), T0) == pytest.approx(0.1)


def test_a_sum_takes_the_property_and_leaves_out_what_is_no_number() -> None:
    """An event without the amount is not an event of amount zero: it is not counted."""
    kind = Count(Selection(frozenset({"click"}), value="amount"))
    events = [happened("a", T0, amount=2.5), happened("b", T0, amount="much"), happened("c", T0)]
    assert folded(kind, events) == (1, 2.5)


def test_an_equality_filter_chooses_events() -> None:
    """Only events with the wanted property count."""
    kind = Count(Selection(frozenset({"click"}), where={"device": "phone"}))
    events = [happened("a", T0, device="phone"), happened("b", T0, device="desktop"), happened("c", T0)]
    assert folded(kind, events)[0] == 1


def test_ties_in_time_go_by_event_id() -> None:
    """Of events at one moment, those with the highest ids are the newest."""
    kind = LastN(CLICKS, keep=2)
    state = folded(kind, [happened(name, T0, item_id=name) for name in ("b", "c", "a")])
    assert kind.read(state, T0) == ["b", "c"]


def declared(name: str = "clicks_7d", kind: str = "decayed_count", **changes: Any) -> FeatureDeclaration:
    given = {
        "name": name, "kind": kind, "scope": "user", "events": ("click",), "owner": "team",
        "description": "", "default": 0.0, "parameters": {"half_life_s": 604_800.0}, "value": None,
        "where": {}, "freshness_s": None,
    }  # fmt: skip
    return FeatureDeclaration(**{**given, **changes})  # type: ignore[arg-type]


RATE = {"per": ("view",), "prior_successes": 1.0, "prior_trials": 50.0}
LAST = declared("last_items", "last_n", parameters={"keep": 3}, events=("click", "view"))


def test_a_missing_feature_reads_as_its_default_with_a_flag() -> None:
    """Unknown is not zero: the flag tells a default from a value that happens to be equal to it."""
    features = FeatureSet([declared(), declared("ctr", "smoothed_rate", parameters=RATE, default=0.02)])
    assert features.read(features.zero(), T0) == {
        "clicks_7d": 0.0, "clicks_7d_missing": 1.0, "ctr": 0.02, "ctr_missing": 1.0,
    }  # fmt: skip
    state = features.add_all(features.zero(), [happened("e", T0)])
    assert features.read(state, T0)["clicks_7d"] == 1.0
    assert features.read(state, T0)["clicks_7d_missing"] == 0.0


def test_the_history_runs_from_the_oldest_to_the_newest() -> None:
    """An app without a list feature still has one; one with a list feature has what it declares."""
    events = [happened(str(n), T0 + n, item_id=f"i{n}") for n in range(5)]
    implicit, explicit = FeatureSet([declared()]), FeatureSet([LAST])
    assert implicit.history(implicit.add_all({}, events)) == [(T0 + n, f"i{n}", "click") for n in range(5)]
    assert [item for _, item, _ in explicit.history(explicit.add_all({}, events))] == ["i2", "i3", "i4"]


def test_features_that_fold_alike_share_one_state() -> None:
    """A mean and a deviation of the same prices cost one fold and one place in what is stored."""
    mean, deviation = (
        declared(one, "value_statistics", parameters={"statistic": one}, value="amount")
        for one in ("mean", "std")
    )
    features = FeatureSet([mean, deviation]).scoped("user")
    state = features.add_all({}, [happened("a", T0, amount=1.0), happened("b", T0 + 1, amount=3.0)])
    assert len(state) == 1
    read = features.read(state, T0)
    assert (read["mean"], read["std"]) == (2.0, 1.0)
    assert features.read(features.merge(state, {}), T0) == read


def test_a_new_name_or_prior_goes_on_from_the_same_state() -> None:
    """Only what decides how a state is read has changed; the events stay where they were counted."""
    before = FeatureSet([declared("ctr", "smoothed_rate", parameters={**RATE, "half_life_s": 60.0})])
    priors = {"per": ("view",), "prior_successes": 0.0, "prior_trials": 1.0}
    after = FeatureSet([declared("rate", "smoothed_rate", parameters={**priors, "half_life_s": 60.0})])
    state = before.add_all({}, [happened("e", T0)])
    assert after.read(state, T0) == {"rate": 1.0, "rate_missing": 0.0}
    assert before.fingerprint() != after.fingerprint()


def test_a_changed_definition_does_not_read_the_old_state() -> None:
    """A half-life of a day must not go on from a value that decayed by the week."""
    week, day = FeatureSet([declared()]), FeatureSet([declared(parameters={"half_life_s": 86_400.0})])
    state = week.add_all(week.zero(), [happened("e", T0)])
    assert day.read(state, T0)["clicks_7d_missing"] == 1.0
    assert week.fingerprint() != day.fingerprint()
    assert week.fingerprint() == FeatureSet([declared(owner="another team")]).fingerprint()
