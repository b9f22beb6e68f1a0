"""recommend(): every rung of the ladder, the deadline, and a gate that is last on every path."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrows.decision import DecisionRecord
from narrows.errors import InvalidInput, UnknownSurface
from narrows.events import Event
from narrows.features.registry import FeatureSet
from narrows.features.state import VisitorState
from narrows.pipeline import Recommendation, Request, Stages, recommend
from narrows.policy import Change, PolicyState
from narrows.ranking import FusionRanker, Ranked, RankRequest
from narrows.retrieval import Candidates, Floats, Query, Retrieved, Rows
from narrows.settings import App, Exploration, SourceQuota, load_app
from narrows.snapshot import ItemSnapshot, open_base, write_base
from narrows.visitor import Remembered, Visitor

APPS = Path(__file__).parents[2] / "apps"
NOW = 1_700_000_000.0
ITEMS = [f"item-{number:02d}" for number in range(40)]


class Inline(Executor):
    """Runs what it is given at once, so that time passes only where a test says so."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001  # an executor keeps whatever was raised
            future.set_exception(error)
        return future


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Fixed:
    """A source that always offers the same rows, after `takes_s` of the clock's time."""

    name: str
    offered: list[int]
    clock: Clock
    takes_s: float = 0.0
    error: Exception | None = None
    asked: list[Query] = field(default_factory=list)

    def retrieve(self, query: Query, quota: int) -> Retrieved:
        self.asked.append(query)
        self.clock.now += self.takes_s
        if self.error:
            raise self.error
        rows = np.array(self.offered[:quota], np.int32)
        return Retrieved(rows, -np.arange(len(rows), dtype=np.float32))

    def score(self, query: Query, rows: Rows) -> Floats:
        return np.full(len(rows), np.nan, np.float32)


@dataclass
class HighestRow:
    """A model that likes higher rows better."""

    snapshot: ItemSnapshot
    version: str = "m1"
    error: Exception | None = None
    asked: list[RankRequest] = field(default_factory=list)

    def rank(self, request: RankRequest, candidates: Candidates, limit: int) -> Ranked:
        self.asked.append(request)
        if self.error:
            raise self.error
        rows = np.sort(candidates.rows)[::-1][:limit]
        return Ranked(rows, rows.astype(np.float32), self.snapshot.take(rows, ["category", "brand"]))


@dataclass
class Visitors:
    """A reader that gives what a test put there."""

    visitor: Visitor = field(default_factory=Visitor)
    timeouts: list[float] = field(default_factory=list)

    def read(
        self, user_key: str | None, session_key: str | None, surface: str, *, now: float, timeout_s: float
    ) -> Visitor:
        self.timeouts.append(timeout_s)
        return self.visitor


@pytest.fixture(scope="module")
def app() -> App:
    """Megashop, with every source of the homepage given half of the deadline."""
    shop = load_app(APPS / "megashop")
    homepage = shop.surfaces["homepage"]
    names = ("als", "covisitation", "popular", "fresh")
    sources = tuple(SourceQuota(name, 30, 0.5) for name in names)
    diversity = replace(homepage.diversity, method="none", caps={})
    surfaces = {**shop.surfaces, "homepage": replace(homepage, sources=sources, diversity=diversity)}
    return replace(shop, surfaces=surfaces)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> ItemSnapshot:
    """Forty items of four categories and two brands."""
    directory = tmp_path_factory.mktemp("snapshot")
    categories = [["abcd"[number % 4]] for number in range(len(ITEMS))]
    brands = ["xy"[number % 2] for number in range(len(ITEMS))]
    write_base(directory, ITEMS, {"category": categories, "brand": brands}, version="s1", spare=0)
    return open_base(directory)


@pytest.fixture
def stages(app: App, snapshot: ItemSnapshot) -> Stages:
    """Stages of which every part works."""
    return whole(app, snapshot)


def whole(app: App, snapshot: ItemSnapshot) -> Stages:
    """Everything works: als offers 0-9, covisitation 5-14, popular 20-29, fresh 30-34."""
    clock = Clock()
    offers = {
        "als": range(10),
        "covisitation": range(5, 15),
        "popular": range(20, 30),
        "fresh": range(30, 35),
    }
    return Stages(
        app=app,
        features=FeatureSet(app.features),
        snapshot=snapshot,
        visitors=Visitors(),
        sources={name: Fixed(name, list(rows), clock) for name, rows in offers.items()},
        ranker=HighestRow(snapshot),
        fusion=FusionRanker(snapshot),
        policy=PolicyState.over(snapshot).apply([], 0, NOW),
        segment_slates={"": np.array([20, 21, 22], np.int32), "DE": np.array([23, 24], np.int32)},
        static_rows=np.array([38, 39], np.int32),
        executor=Inline(),
        clock=clock,
        model_version="m1",
    )


def ask(stages: Stages, surface: str = "homepage", limit: int = 5, **more: Any) -> Recommendation:
    """A request of a known user, 80 ms before its deadline."""
    fields: dict[str, Any] = {"user_key": "u#1", "recommendation_id": "r1", "now": NOW, **more}
    return recommend(Request(surface=surface, limit=limit, deadline=stages.clock() + 0.08, **fields), stages)


def rows_of(recommendation: Recommendation) -> list[int]:
    """The slate as rows."""
    return [item.row for item in recommendation.slate]


def event(kind: str, item: int, at: float) -> Event:
    """An event on an item."""
    return Event(
        event_id=f"{kind}-{item}-{at}", event_type=kind, time=at, received_at=at, item_id=ITEMS[item]
    )


def state_after(stages: Stages, *events: Event, hidden: tuple[int, ...] = ()) -> VisitorState:
    """A visitor's state after these events."""
    features = stages.features.add_all(stages.features.zero(), events)
    return VisitorState(features=features, do_not_show={ITEMS[item]: NOW for item in hidden})


def with_visitor(stages: Stages, visitor: Visitor) -> Stages:
    """The same stages for this visitor."""
    return replace(stages, visitors=Visitors(visitor))


def test_full(stages: Stages) -> None:
    """All sources, the model's order, positions from 1, the reason of the source that offered highest."""
    answer = ask(stages)
    assert (answer.fallback, answer.degraded) == ("full", {})
    assert rows_of(answer) == [34, 33, 32, 31, 30]
    assert [item.position for item in answer.slate] == [1, 2, 3, 4, 5]
    assert {item.reason for item in answer.slate} == {"New in"}
    assert (answer.model_version, answer.policy_version) == ("m1", 0)
    wide = ask(stages, limit=30)
    by_row = {item.row: item.source for item in wide.slate}
    assert (by_row[9], by_row[5], by_row[0], by_row[29]) == ("covisitation", "covisitation", "als", "popular")


class WithAges(HighestRow):
    """Rows 0 to 4 were created an hour ago, the others a year ago."""

    def rank(self, request: RankRequest, candidates: Candidates, limit: int) -> Ranked:
        ranked = super().rank(request, candidates, limit)
        created = np.where(ranked.rows < 5, NOW - 3600.0, NOW - 365 * 86_400.0)
        return replace(ranked, columns={**ranked.columns, "created_at": created})


def test_new_items_come_by_draws_that_the_record_can_tell(stages: Stages, snapshot: ItemSnapshot) -> None:
    """Two of twenty here: who they are follows from the request's id, how likely they were is recorded."""
    homepage = stages.app.surfaces["homepage"]
    surface = replace(homepage, exploration=Exploration("softmax", slots=2))
    app = replace(stages.app, surfaces={**stages.app.surfaces, "homepage": surface})
    exploring = replace(stages, app=app, ranker=WithAges(snapshot))
    answer = ask(exploring, limit=20)
    drawn = [item for item in answer.record.slate if item.row < 5]
    assert answer.record.counts["explored"] == len(drawn) == 2
    assert 0.0 < float(np.prod([item.propensity for item in drawn])) < 1.0
    assert {item.propensity for item in answer.record.slate if item.row >= 5} == {1.0}
    assert rows_of(ask(exploring, limit=20)) == rows_of(answer)
    others = {tuple(rows_of(ask(exploring, limit=20, recommendation_id=f"r{n}"))) for n in range(20)}
    assert len(others) > 1


def test_without_a_model_it_is_in_process(stages: Stages) -> None:
    """Fusion ranks, and what is missing is named."""
    answer = ask(replace(stages, ranker=None, model_version=None))
    assert (answer.fallback, answer.degraded) == ("in_process", {"rank": "no_model"})
    assert set(rows_of(answer)) <= {*range(15), *range(20, 35)}
    assert len(answer.slate) == 5


def test_a_failing_model_is_in_process(stages: Stages, snapshot: ItemSnapshot) -> None:
    """Whatever the model raises, fusion answers and the class of the error is told."""
    answer = ask(replace(stages, ranker=HighestRow(snapshot, error=MemoryError("no"))))
    assert (answer.fallback, answer.degraded) == ("in_process", {"rank": "MemoryError"})


def test_sources_that_fail_are_named_and_the_others_answer(stages: Stages) -> None:
    """A broken source, a late one and an absent one leave the fourth."""
    clock = stages.clock
    assert isinstance(clock, Clock)
    sources = {
        "als": Fixed("als", [1], clock, error=ValueError("broken")),
        "covisitation": Fixed("covisitation", [2, 3], clock),
        "popular": Fixed("popular", [4], clock, takes_s=0.041),
    }
    answer = ask(replace(stages, sources=sources))
    assert answer.fallback == "full"
    assert answer.degraded == {
        "retrieve.als": "ValueError",
        "retrieve.popular": "timeout",
        "retrieve.fresh": "absent",
    }
    assert rows_of(answer) == [3, 2, 20, 21, 22]
    assert answer.record.counts["filled"] == 3


REMEMBERED = Remembered(
    slate=("item-10", "item-11"), candidates=("item-12", "item-16", "item-17", "gone"), at=NOW
)


def test_without_sources_remembered_candidates_are_ranked(stages: Stages) -> None:
    """What was retrieved last time is ranked as things are now; unknown ids fall out."""
    answer = ask(with_visitor(replace(stages, sources={}), Visitor(remembered=REMEMBERED)), limit=3)
    assert answer.fallback == "remembered"
    assert rows_of(answer) == [17, 16, 12]
    assert {item.reason for item in answer.slate} == {"Picked for you earlier"}
    absent = {f"retrieve.{name}": "absent" for name in ("als", "covisitation", "popular", "fresh")}
    assert answer.degraded == {**absent, "retrieve": "too_few_sources"}


def with_small_fresh(app: App) -> App:
    """The app, asking less than a quarter of its candidates of `fresh`."""
    homepage = app.surfaces["homepage"]
    sources = tuple(replace(one, quota=5) if one.name == "fresh" else one for one in homepage.sources)
    return replace(app, surfaces={**app.surfaces, "homepage": replace(homepage, sources=sources)})


def test_newest_items_alone_are_no_retrieval(stages: Stages) -> None:
    """Where only a small source answers, what is remembered is better; a stranger gets the segment's."""
    few = replace(stages, sources={"fresh": stages.sources["fresh"]}, app=with_small_fresh(stages.app))
    answer = ask(with_visitor(few, Visitor(remembered=REMEMBERED)))
    assert (answer.fallback, answer.degraded["retrieve"]) == ("remembered", "too_few_sources")
    assert ask(few).fallback == "segment"


def test_newest_items_alone_are_better_than_nothing(stages: Stages) -> None:
    """Before the first model, and without a static list, the catalogue's newest items are shown."""
    few = replace(stages, sources={"fresh": stages.sources["fresh"]}, app=with_small_fresh(stages.app))
    bare = replace(few, ranker=None, segment_slates={}, static_rows=np.empty(0, np.int32))
    answer = ask(bare)
    assert (answer.fallback, rows_of(answer)) == ("in_process", [30, 31, 32, 33, 34])


def test_without_sources_and_model_the_last_slate_is_shown(stages: Stages) -> None:
    """Nothing to rank with: what was shown last time, in its order, filled from the segment."""
    bare = replace(stages, sources={}, ranker=None, model_version=None)
    answer = ask(with_visitor(bare, Visitor(remembered=REMEMBERED)), limit=4)
    assert answer.fallback == "last_slate"
    assert rows_of(answer) == [10, 11, 20, 21]
    assert [item.reason for item in answer.slate] == ["From your last visit"] * 2 + [
        "Popular with shoppers like you"
    ] * 2
    assert [item.score for item in answer.slate] == [None] * 4


@pytest.mark.parametrize("location", ["DE", "", "Atlantis"])
def test_without_anything_personal_the_segment_answers(stages: Stages, location: str) -> None:
    """The slate of the visitor's region, or everybody's; then the static list."""
    context = {"location": location} if location else {}
    answer = ask(replace(stages, sources={}), limit=5, context=context)
    assert answer.fallback == "segment"
    assert rows_of(answer) == ([23, 24, 38, 39] if location == "DE" else [20, 21, 22, 38, 39])


def test_without_files_the_static_list_answers(stages: Stages) -> None:
    """The first deploy: no sources, no model, no segments."""
    answer = ask(replace(stages, sources={}, ranker=None, model_version=None, segment_slates={}))
    assert (answer.fallback, rows_of(answer), answer.model_version) == ("static", [38, 39], None)
    assert answer.slate[0].reason == "Best sellers"


def test_before_the_policy_log_answers_only_the_static_list_is_shown(stages: Stages) -> None:
    """Its items were allowed when it was built; nothing else can be judged yet, not even as filling."""
    unheard = PolicyState.over(stages.snapshot)
    answer = ask(replace(stages, policy=unheard), limit=5)
    assert (answer.fallback, rows_of(answer)) == ("static", [38, 39])


def test_where_the_rules_leave_nothing_the_slate_is_empty(stages: Stages) -> None:
    """Everything is blocked on every rung: an empty list, named, with a record."""
    changes = [Change("block", item, True, number) for number, item in enumerate(ITEMS, start=1)]
    policy = stages.policy.apply(changes, len(ITEMS), NOW)
    answer = ask(with_visitor(replace(stages, policy=policy), Visitor(remembered=REMEMBERED)))
    assert (answer.slate, answer.fallback) == ((), "none_eligible")
    assert answer.record.rung == "none_eligible"
    assert answer.record.gate["blocked"] >= 35
    assert answer.policy_version == len(ITEMS)


@pytest.mark.parametrize("reason", ["timeout", "StoreUnavailable", "circuit_open"])
def test_an_unreadable_visitor_gets_the_segment(stages: Stages, reason: str) -> None:
    """Who cannot be told apart is not given somebody's personal list."""
    visitor = Visitor(remembered=REMEMBERED, failures={"user": reason})
    answer = ask(with_visitor(stages, visitor))
    assert (answer.fallback, answer.degraded) == ("segment", {"visitor": reason})
    assert rows_of(answer)[:3] == [20, 21, 22]


def test_a_part_that_cannot_be_read_is_named_and_the_rest_serves(stages: Stages) -> None:
    """Without the session or the slates a known user still gets the full ladder."""
    answer = ask(with_visitor(stages, Visitor(failures={"session": "timeout", "slates": "timeout"})))
    assert (answer.fallback, answer.degraded) == ("full", {"session": "timeout", "slates": "timeout"})


def test_an_anonymous_session_stands_on_its_own_state(stages: Stages) -> None:
    """Its history comes from the session, and an unreadable session is an unreadable visitor."""
    state = state_after(stages, event("view", 3, NOW - 60))
    ask(with_visitor(stages, Visitor(session=state)), user_key=None, session_key="s#1")
    assert asked(stages).history.tolist() == [3]
    unread = with_visitor(stages, Visitor(failures={"session": "timeout"}))
    assert ask(unread, user_key=None, session_key="s#1").fallback == "segment"


def asked(stages: Stages, source: str = "als") -> Query:
    """The last query that a source saw."""
    found = stages.sources[source]
    assert isinstance(found, Fixed)
    return found.asked[-1]


def test_user_and_session_histories_merge_by_time(stages: Stages) -> None:
    """The query holds both, oldest first, with the labels of the event types as weights."""
    user = state_after(stages, event("click", 1, NOW - 300), event("purchase", 2, NOW - 100))
    session = state_after(stages, event("view", 3, NOW - 200), event("view", 4, NOW - 50))
    answer = ask(with_visitor(stages, Visitor(user, session)), session_key="s#1")
    query = asked(stages)
    assert query.history.tolist() == [1, 3, 2, 4]
    assert query.history_times.tolist() == [NOW - 300, NOW - 200, NOW - 100, NOW - 50]
    assert query.history_weights.tolist() == [1.0, 0.5, 6.0, 0.5]
    assert answer.record.history == (
        ("item-01", NOW - 300),
        ("item-03", NOW - 200),
        ("item-02", NOW - 100),
        ("item-04", NOW - 50),
    )
    assert answer.record.visitor_features["purchases"] == 1.0


def test_what_was_bought_is_not_offered_again(stages: Stages) -> None:
    """The homepage leaves out purchases, not views."""
    state = state_after(stages, event("purchase", 34, NOW - 60), event("view", 33, NOW - 50))
    assert rows_of(ask(with_visitor(stages, Visitor(state)), limit=3)) == [33, 32, 31]
    assert asked(stages).exclude.tolist() == [34]


def test_context_items_are_seeds_and_never_recommended(stages: Stages) -> None:
    """The product page's item starts the search and is not in its slate; an unknown one is named."""
    answer = ask(stages, "product", 40, item_ids=("item-12", "item-13", "nothing"))
    assert asked(stages).seeds.tolist() == [12, 13]
    assert not {12, 13} & set(rows_of(answer))
    assert answer.missing_ids == ("nothing",)
    assert answer.record.context_items == ("item-12", "item-13", "nothing")
    ask(stages, "homepage", item_ids=("item-12",))
    assert asked(stages).seeds.tolist() == []


def test_the_gate_has_the_last_word(stages: Stages, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though an earlier stage let everything through, what is blocked is not in the slate."""
    monkeypatch.setattr("narrows.ladder._eligible", lambda run, question, candidates: candidates)
    policy = stages.policy.apply([Change("block", "item-34", True, 1)], 1, NOW)
    answer = ask(replace(stages, policy=policy), limit=3)
    assert (answer.fallback, rows_of(answer)) == ("full", [33, 32])
    assert answer.record.gate == {"blocked": 1}


def test_do_not_show_holds_on_every_rung(stages: Stages) -> None:
    """An item that the visitor does not want is in no slate, also not in one that was made earlier."""
    hidden = state_after(stages, hidden=(34, 17, 10, 20, 38))
    for variant in variants(stages):
        answer = ask(with_visitor(variant, Visitor(hidden, remembered=REMEMBERED)), limit=40)
        assert not {34, 17, 10, 20, 38} & set(rows_of(answer)), answer.fallback


def variants(stages: Stages) -> list[Stages]:
    """The same stages with more and more of them gone, so that each rung answers."""
    no_model = replace(stages, ranker=None, model_version=None)
    no_sources = replace(stages, sources={})
    nothing = replace(no_model, sources={})
    return [stages, no_model, no_sources, nothing, replace(nothing, segment_slates={})]


def test_a_slate_is_never_longer_than_asked_and_never_holds_an_item_twice(stages: Stages) -> None:
    """Sixteen lengths on every rung."""
    for variant in variants(stages):
        for limit in (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 20, 30, 40, 80, 100):
            answer = ask(with_visitor(variant, Visitor(remembered=REMEMBERED)), limit=limit)
            rows = rows_of(answer)
            assert len(rows) == len(set(rows)) <= limit
            assert [item.item_id for item in answer.slate] == [ITEMS[row] for row in rows]


def test_a_late_model_is_dropped_at_the_deadline(stages: Stages, snapshot: ItemSnapshot) -> None:
    """A model that takes half a second does not hold an answer that is due in 50 ms."""

    class Slow(HighestRow):
        def rank(self, request: RankRequest, candidates: Candidates, limit: int) -> Ranked:
            time.sleep(0.5)
            return super().rank(request, candidates, limit)

    with ThreadPoolExecutor(6) as executor:
        slow = replace(stages, ranker=Slow(snapshot), executor=executor, clock=time.monotonic)
        sources = {name: replace(one, clock=Clock()) for name, one in stages.sources.items()}
        started = time.monotonic()
        request = Request("homepage", 5, NOW, started + 0.05, "r1", user_key="u#1")
        answer = recommend(request, replace(slow, sources=sources))
        assert time.monotonic() - started < 0.3
    assert (answer.fallback, answer.degraded["rank"]) == ("in_process", "timeout")


def test_a_passed_deadline_still_answers(stages: Stages) -> None:
    """Where no time was left from the start, what needs none answers."""

    class Never(Executor):
        def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
            return Future()

    request = Request("homepage", 5, NOW, stages.clock() - 1.0, "r1", user_key="u#1")
    answer = recommend(request, replace(stages, executor=Never()))
    assert answer.fallback == "segment"
    assert set(answer.degraded.values()) == {"timeout", "too_few_sources"}


def test_every_response_has_a_record_that_survives_json(stages: Stages) -> None:
    """On every rung the record tells the rung and the slate, and reads back exactly as it was written."""
    rungs = []
    for variant in variants(stages):
        answer = ask(with_visitor(variant, Visitor(remembered=REMEMBERED)), context={"device": "mobile"})
        record = answer.record
        rungs.append(record.rung)
        assert record.slate == answer.slate
        assert (record.rung, record.snapshot_version) == (answer.fallback, "s1")
        assert (record.request_features["mobile"], record.request_features["mobile_missing"]) == (1.0, 0.0)
        assert record.feature_fingerprint == FeatureSet(stages.app.features).fingerprint()
        assert "total" in record.stage_ms
        assert DecisionRecord.from_json(record.to_json()) == record
    assert rungs == ["full", "in_process", "remembered", "last_slate", "last_slate"]


def test_the_record_tells_what_was_considered(stages: Stages) -> None:
    """The best of the ranked with their sources and ranks, and up to 100 candidates to remember."""
    record = ask(stages, limit=1).record
    assert [one.row for one in record.considered[:2]] == [34, 33]
    assert record.considered[0].sources == {"fresh": 4}
    nine = next(one for one in record.considered if one.row == 9)
    assert nine.sources == {"als": 9, "covisitation": 4}
    assert record.remembered[:2] == ("item-34", "item-33")
    assert record.counts["candidates"] == record.counts["ranked"] == 30
    assert ask(replace(stages, sources={})).record.remembered == ()


def test_problems_of_loading_are_in_every_answer(stages: Stages) -> None:
    """A refused file is named, as are what it leads to."""
    answer = ask(replace(stages, problems={"als.npz": "BundleError"}))
    assert answer.degraded == {"load.als.npz": "BundleError"}


def test_wrong_requests_are_refused(stages: Stages) -> None:
    """An unknown surface and an impossible limit name what to send instead."""
    with pytest.raises(UnknownSurface, match="use one of homepage, product, cart"):
        ask(stages, "homepgae")
    for limit in (0, -1, 101):
        with pytest.raises(InvalidInput, match="integer from 1 to 100"):
            ask(stages, limit=limit)


def test_the_visitor_is_read_within_its_share(stages: Stages) -> None:
    """Two fifths of 80 ms; a visitor without any key is not read at all."""
    ask(stages)
    assert isinstance(stages.visitors, Visitors)
    assert stages.visitors.timeouts == [pytest.approx(0.032)]
    assert ask(stages, user_key=None).fallback == "full"
    assert len(stages.visitors.timeouts) == 1


def test_an_unknown_device_is_missing_not_zero(stages: Stages) -> None:
    """The model and the record read the declared default with its flag."""
    answer = ask(stages)
    ranker = stages.ranker
    assert isinstance(ranker, HighestRow)
    asked = ranker.asked[-1].request
    assert (asked["mobile"], asked["mobile_missing"]) == (0.0, 1.0)
    assert answer.record.request_features == asked


def test_days_since_the_last_visit_are_served_as_they_are_recorded(stages: Stages) -> None:
    """A request feature that reads the visitor's state: three days after a view, 365 for a stranger."""
    seen = Event("e", "view", NOW - 3 * 86_400.0, NOW, user_id="1", item_id="item-00")
    state = VisitorState(stages.features.add_all(stages.features.zero(), [seen]))
    answer = ask(with_visitor(stages, Visitor(user=state)))
    assert answer.record.request_features["days_since_last_visit"] == pytest.approx(3.0)
    assert answer.record.request_features["days_since_purchase_missing"] == 1.0
    stranger = ask(with_visitor(stages, Visitor())).record.request_features
    assert (stranger["days_since_last_visit"], stranger["days_since_last_visit_missing"]) == (365.0, 1.0)


def test_an_unreadable_visitor_is_served_and_recorded_as_unknown(stages: Stages) -> None:
    """What could not be read has its defaults with their flags, not whatever the session alone would say."""
    answer = ask(with_visitor(stages, Visitor(failures={"user": "timeout"})))
    values = answer.record.visitor_features
    assert (values["views"], values["views_missing"]) == (0.0, 1.0)
    assert values["click_rate"] == 0.05
    assert answer.record.applied == {}


def test_equal_requests_get_equal_slates(stages: Stages) -> None:
    """Nothing is random."""
    assert rows_of(ask(stages, limit=30)) == rows_of(ask(stages, limit=30))


steps = st.lists(
    st.one_of(
        st.builds(
            Change,
            kind=st.just("block"),
            item_id=st.sampled_from(ITEMS),
            value=st.booleans(),
        ),
        st.builds(Change, kind=st.just("stock"), item_id=st.sampled_from(ITEMS), value=st.booleans()),
        st.builds(
            Change,
            kind=st.just("region"),
            item_id=st.sampled_from(ITEMS),
            value=st.sampled_from([(), ("DE",), ("FR", "DE"), ("FR",)]),
        ),
        st.tuples(st.integers(0, 4), st.sampled_from(["DE", "FR", ""]), st.booleans()),
    ),
    max_size=60,
)


@given(steps)
def test_no_slate_at_a_version_holds_what_that_version_forbids(
    app: App, snapshot: ItemSnapshot, steps: list[Any]
) -> None:
    """Over any interleaving of changes and requests, on every rung, nothing ineligible is ever shown."""
    stages = whole(app, snapshot)
    facts: dict[tuple[str, str], Any] = {}
    version = 0
    for step in steps:
        if isinstance(step, Change):
            version += 1
            facts[step.kind, step.item_id] = step.value
            change = replace(step, version=version)
            stages = replace(stages, policy=stages.policy.apply([change], version, NOW))
            continue
        rung, region, unreadable = step
        failures: Mapping[str, str] = {"user": "timeout"} if unreadable else {}
        variant = with_visitor(variants(stages)[rung], Visitor(remembered=REMEMBERED, failures=failures))
        answer = ask(variant, limit=40, context={"location": region} if region else {})
        assert answer.policy_version == version
        for item in answer.slate:
            assert facts.get(("block", item.item_id), False) is False
            assert facts.get(("stock", item.item_id), True) is True
            restricted = facts.get(("region", item.item_id), ())
            assert region not in restricted if region else not restricted
