"""What the rules forbid takes no place from what may be shown, however new or popular it is."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrows.adapters.bundle import by_region
from narrows.adapters.faiss import FaissVectorIndex
from narrows.features.registry import FeatureSet
from narrows.pipeline import Recommendation, Request, Stages, recommend
from narrows.policy import Change, GateContext, PolicyState, gate, passing
from narrows.ranking import FusionRanker
from narrows.retrieval import Query
from narrows.settings import App, Rule, SourceQuota, load_app
from narrows.snapshot import ItemSnapshot, open_base, write_base
from narrows.sources import SignallingSource, als
from narrows.sources.fresh import fresh
from narrows.sources.popular import Params, Popular
from narrows.sources.rows import LOOKED_AT, first
from narrows.vector_index import VectorIndex
from narrows.visitor import Visitor
from tests.unit.test_indexing import network as towers_of_four
from tests.unit.test_sources_popular import query

NOW = 1_700_000_000.0
SIZE, BARRED = 1000, 900
IDS = [f"item-{row:04d}" for row in range(SIZE)]
QUOTA = 20


class Nobody:
    """A reader of strangers."""

    def read(
        self, user_key: str | None, session_key: str | None, surface: str, *, now: float, timeout_s: float
    ) -> Visitor:
        return Visitor()


@pytest.fixture(scope="module")
def app() -> App:
    """Megashop, whose homepage asks these three sources alone, for 20 items each."""
    shop = load_app(Path(__file__).parents[2] / "apps" / "megashop")
    sources = tuple(SourceQuota(name, QUOTA, 0.5) for name in ("popular", "trending", "fresh"))
    homepage = replace(shop.surfaces["homepage"], sources=sources, ladder=("in_process",))
    return replace(shop, surfaces={"homepage": homepage})


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> ItemSnapshot:
    """A thousand items: row 0 is the newest, 999 the oldest."""
    folder = tmp_path_factory.mktemp("snapshot")
    columns = {"created_at": NOW - 60.0 * np.arange(SIZE), "category": [["a"]] * SIZE}
    write_base(folder, IDS, columns, version="s1", spare=0)
    return open_base(folder)


def stages_of(app: App, snapshot: ItemSnapshot, name: str, changes: list[Change], **more: Any) -> Stages:
    """Stages with this source alone, in which row 0 comes first, after these changes of the rules' facts."""
    shares = np.linspace(1.0, 0.1, SIZE, dtype=np.float32)[None]
    counted = Popular(np.asarray(IDS), ("",), shares, Params()).bind(snapshot.rows, SIZE)
    known = {
        "fresh": fresh(snapshot.columns["created_at"]),
        "popular": counted,
        "trending": replace(counted, name="trending"),
    }
    numbered = [replace(one, version=at, at=NOW) for at, one in enumerate(changes, start=1)]
    return Stages(
        app=app,
        features=FeatureSet(app.features),
        snapshot=snapshot,
        visitors=Nobody(),
        sources={name: known[name]},
        ranker=None,
        fusion=FusionRanker(snapshot),
        policy=PolicyState.over(snapshot).apply(numbered, len(numbered), NOW),
        segment_slates={},
        static_rows=np.empty(0, np.int32),
        executor=ThreadPoolExecutor(1),
        clock=lambda: 0.0,
        **more,
    )


def ask(stages: Stages) -> Recommendation:
    """A stranger in Germany."""
    context = MappingProxyType({"location": "DE"})
    request = Request("homepage", 10, NOW, stages.clock() + 1.0, "r1", session_key="s#1", context=context)
    return recommend(request, stages)


BARS = {
    "sold out": lambda item: Change("stock", item, False),
    "blocked": lambda item: Change("block", item, True),
    "not for this region": lambda item: Change("region", item, ("DE",)),
    "deleted": lambda item: Change("deleted", item, True),
}


@pytest.mark.parametrize("bar", BARS)
@pytest.mark.parametrize("source", ["fresh", "popular", "trending"])
def test_hundreds_that_come_first_and_may_not_be_shown_take_no_place(
    app: App, snapshot: ItemSnapshot, source: str, bar: str
) -> None:
    """The whole quota is of the best that may be shown, which stand at place 901 and behind."""
    stages = stages_of(app, snapshot, source, [BARS[bar](item) for item in IDS[:BARRED]])
    answer = ask(stages)
    assert answer.fallback == "in_process"
    assert answer.record.counts["candidates"] == QUOTA
    assert sorted(answer.eligible.tolist()) == list(range(BARRED, BARRED + QUOTA))
    assert [item.row for item in answer.slate] == list(range(BARRED, BARRED + 10))


def learned(snapshot: ItemSnapshot, name: str, index: VectorIndex | None) -> SignallingSource:
    """A source for which who looks at the last item is nearest to row 0, next nearest to row 1, and so on."""
    shares = np.linspace(1.0, 0.1, SIZE, dtype=np.float32)[:, None]
    ids = np.asarray(IDS)
    source: Any
    if name == "als":
        vectors = np.hstack([shares, np.zeros_like(shares)])
        source = als.Als(ids, vectors, als.Params(dimension=2)).bind(snapshot.rows, SIZE)
    else:
        vectors, unread = np.ones((SIZE, 3), np.float32), np.full(SIZE, np.nan)
        towers = replace(towers_of_four(), item_ids=ids, vectors=vectors, marks=unread)
        source = towers.bind(snapshot.rows, SIZE)
        visitor = source.visitor(replace(query(), seeds=np.asarray([SIZE - 1], np.int32)))
        source.vectors[:-1] = (shares * visitor)[:-1]
    if index is None:
        return source  # type: ignore[no-any-return]
    index.upsert(np.arange(SIZE, dtype=np.int32), source.vectors)
    return source.searching(by_region(index, snapshot))  # type: ignore[no-any-return]


def answer_of(
    app: App, snapshot: ItemSnapshot, name: str, changes: list[Change], index: VectorIndex | None = None
) -> Recommendation:
    """What a visitor from Germany who looks at the last item is answered by this source alone."""
    page = replace(
        app.surfaces["homepage"], sources=(SourceQuota(name, QUOTA, 0.5),), seed="item", exclude_seen=False
    )
    stages = stages_of(replace(app, surfaces={"homepage": page}), snapshot, "popular", changes)
    stages = replace(stages, sources={name: learned(snapshot, name, index)})
    context = MappingProxyType({"location": "DE"})
    request = Request(
        "homepage", 10, NOW, stages.clock() + 1.0, "r1", session_key="s#1", item_ids=IDS[-1:], context=context
    )
    return recommend(request, stages)


@pytest.mark.parametrize("bar", BARS)
@pytest.mark.parametrize("source", ["als", "two_tower"])
def test_a_learned_source_goes_on_behind_what_may_not_be_shown(
    app: App, snapshot: ItemSnapshot, source: str, bar: str
) -> None:
    """All are compared anyway: the quota is of the best that may be shown."""
    answer = answer_of(app, snapshot, source, [BARS[bar](item) for item in IDS[:BARRED]])
    assert sorted(answer.eligible.tolist()) == list(range(BARRED, BARRED + QUOTA))


@pytest.mark.parametrize(("source", "width"), [("als", 2), ("two_tower", 3)])
def test_an_index_is_asked_for_what_is_sold_where_the_visitor_is(
    app: App, tmp_path: Path, source: str, width: int
) -> None:
    """Nine of ten are sold elsewhere; of the others some are sold everywhere, and some in several regions."""
    elsewhere, somewhere = [[0, -1], [0, 1]], [[2, -1], [-1, -1], [0, 2]]
    regions = np.asarray([*(elsewhere * SIZE)[:BARRED], *(somewhere * SIZE)[: SIZE - BARRED]], np.int32)
    columns = {"regions": regions, "category": [["a"]] * SIZE, "created_at": np.zeros(SIZE)}
    words = {"regions": ("US", "AT", "DE")}
    write_base(tmp_path, IDS, columns, version="s1", spare=0, vocabularies=words)
    index = FaissVectorIndex("v1", width, filters=())
    answer = answer_of(app, open_base(tmp_path), source, [], index)
    assert sorted(answer.eligible.tolist()) == list(range(BARRED, BARRED + QUOTA))


@pytest.mark.parametrize(("source", "width"), [("als", 2), ("two_tower", 3)])
def test_an_index_is_asked_for_more_where_most_of_it_is_sold_out(
    app: App, snapshot: ItemSnapshot, source: str, width: int
) -> None:
    """It does not know what is in stock; once, and four times as deep at most."""
    index = FaissVectorIndex("v1", width, filters=())
    sold_out = [Change("stock", item, False) for item in IDS[:60]]
    answer = answer_of(app, snapshot, source, sold_out, index)
    assert sorted(answer.eligible.tolist()) == list(range(60, 60 + QUOTA))


def test_a_new_item_is_offered_behind_hundreds_of_newer_ones_that_sold_out(
    app: App, snapshot: ItemSnapshot
) -> None:
    """One single item between them comes through, and goes again when it is sold out as well."""
    barred = [Change("stock", item, False) for item in IDS if item != IDS[640]]
    assert [item.row for item in ask(stages_of(app, snapshot, "fresh", barred)).slate] == [640]
    gone = [*barred, Change("stock", IDS[640], False)]
    assert ask(stages_of(app, snapshot, "fresh", gone)).fallback == "none_eligible"


def test_while_the_rules_are_unheard_of_nothing_is_offered(app: App, snapshot: ItemSnapshot) -> None:
    """Closed rules hold in the sources as they do in the gate."""
    stages = replace(stages_of(app, snapshot, "fresh", []), policy=PolicyState.over(snapshot))
    assert ask(stages).slate == ()


@given(
    ordered=st.lists(st.integers(0, 99), unique=True, max_size=60),
    barred=st.sets(st.integers(0, 99)),
    exclude=st.lists(st.integers(0, 99), max_size=10),
    quota=st.integers(1, 30),
)
def test_first_is_the_list_without_what_may_not_be_shown(
    ordered: list[int], barred: set[int], exclude: list[int], quota: int
) -> None:
    """However the forbidden ones lie in it."""
    asked = with_rules(query(exclude=exclude), barred)
    wanted = [row for row in ordered if row not in barred and row not in exclude][:quota]
    assert first(np.asarray(ordered, np.int32), quota, asked).tolist() == wanted


def test_a_list_is_not_searched_for_ever() -> None:
    """Of a million that are sold out, some ten thousand are looked at."""
    looked = []

    def none(rows: Any) -> Any:
        looked.append(len(rows))
        return np.zeros(len(rows), np.bool_)

    found = first(np.arange(1_000_000, dtype=np.int32), 20, replace(query(), passes=none))
    assert len(found) == 0
    assert LOOKED_AT <= sum(looked) < 5 * LOOKED_AT


def with_rules(asked: Query, barred: set[int]) -> Query:
    """The query under rules that bar these rows."""
    return replace(asked, passes=lambda rows: ~np.isin(rows, list(barred)))


RULES = (Rule("stock", "closed", 900.0), Rule("region", "open", None), Rule("blocked", "closed", None),
         Rule("do_not_show", "closed", None))  # fmt: skip


@given(data=st.data())
def test_passing_says_what_the_gate_says(data: Any) -> None:
    """For whatever facts, ages and visitors."""
    state = PolicyState.empty(lambda ids: np.asarray([int(one) for one in ids], np.int32), 8)
    rows = st.integers(0, 7).map(str)
    changes = data.draw(
        st.lists(
            st.one_of(
                st.builds(Change, st.sampled_from(["stock", "block", "deleted"]), rows, st.booleans()),
                st.builds(Change, st.just("region"), rows, st.sampled_from([("DE",), ("US", "DE"), ()])),
            ),
            max_size=12,
        )
    )
    numbered = [replace(one, version=at) for at, one in enumerate(changes, start=1)]
    if data.draw(st.booleans()):
        state = state.apply(numbered, len(numbered), 100.0)
    hidden = data.draw(st.none() | st.just(np.asarray([2, 5], np.int32)))
    context = GateContext(data.draw(st.sampled_from(["", "DE", "FR"])), hidden)
    given_ = {
        "state": state,
        "rules": RULES,
        "context": context,
        "now": data.draw(st.sampled_from([110.0, 9e9])),
    }
    asked = np.asarray([-1, 0, 1, 2, 3, 4, 5, 6, 7, 8], np.int32)
    assert passing(**given_)(asked).tolist() == gate(asked, **given_).allowed.tolist()
