"""A compared stack: indexes where an app has them, in its tier, and what a process holds of it."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from narrows.adapters.memory_vectors import MemoryIndexVersions
from narrows.errors import StoreUnavailable
from narrows.evaluation.comparison import NO_INDEX, held_bytes
from narrows.evaluation.leave_one_out import Cases, cases
from narrows.evaluation.stacks import Stack
from narrows.features import statistics
from narrows.interactions import interactions_of
from narrows.networks import two_tower_weights
from narrows.retrieval import NO_ROWS, Query, Retrieved
from narrows.settings import App, SourceQuota, load_app
from narrows.sources.als import AlsSource, Params, gram
from narrows.sources.rows import PlacedVectors
from narrows.sources.two_tower import ItemNetwork, TwoTowerSource
from narrows.sources.two_tower import Params as Shape
from narrows.text_vectors import HashedWords
from sagemaker_jobs.compare import indexes, tiers
from sagemaker_jobs.compare.indexes import EMBEDDED, NO_GRAPHS, ON_NODES
from sagemaker_jobs.compare.running import TIMED, Running, missing_sources
from sagemaker_jobs.compare.tiers import NO_NODE, VERSION, Node, Tier, searching
from sagemaker_jobs.container import Progress
from sagemaker_jobs.declared import Declared
from sagemaker_jobs.replay import Funnel
from sagemaker_jobs.training_set import TableItems
from tests.servers import free_port

ROOT = Path(__file__).parents[2]
ITEMS, WIDTH = 60, 8
STACK = Stack("traditional", ("als",), (SourceQuota("als", 20, 0.5),))
TOWERS = Stack("two_tower", ("two_tower",), (SourceQuota("two_tower", 20, 0.5),))
LOG = interactions_of(["a", "a", "a"], ["i", "j", "k"], [1.0, 2.0, 3.0])


@dataclass
class Told:
    """A node that says it works 3 ms for each look at it, keeps files, and of graphs what it is told to."""

    graphs: float = math.nan
    looked: int = 0

    def store_bytes(self) -> float:
        return 5000.0

    def graph_bytes(self) -> float:
        return self.graphs

    def busy_ms(self) -> float:
        self.looked += 1
        return 3.0 * self.looked


class Mute(Told):
    """A node that tells nothing."""

    def store_bytes(self) -> float:
        raise StoreUnavailable("OpenSearch answered with status 403")

    def busy_ms(self) -> float:
        raise StoreUnavailable("OpenSearch answered with status 403")


class Sleeping:
    """A source that waits for somebody else."""

    name = "two_tower"
    signal_names: tuple[str, ...] = ()

    def retrieve(self, query: Query, quota: int) -> Retrieved:
        time.sleep(0.002)
        return Retrieved(NO_ROWS, np.empty(0, np.float32))


def node(versions: MemoryIndexVersions, figures: Told | None = None) -> Node:
    """A node that holds its vectors in this process."""
    return Node("a memory", lambda: versions, figures or Told())


def vectors() -> np.ndarray:
    """Of every item but the last, which has none."""
    drawn = np.random.default_rng(0).normal(size=(ITEMS, WIDTH)).astype(np.float32)
    drawn[-1] = np.nan
    return drawn


@pytest.fixture
def funnel() -> Funnel:
    """Two sources over sixty items."""
    table = statistics.fit(LOG, statistics.Params()).bind(lambda ids: np.arange(len(ids), dtype=np.int32), 1)
    drawn = np.nan_to_num(vectors(), nan=0.5)
    als = AlsSource(drawn, gram(drawn), ITEMS, Params(dimension=WIDTH))
    generator = np.random.default_rng(1)
    weights = two_tower_weights(generator, dimension=WIDTH, content=4, history=5, hidden=4)
    words = HashedWords(np.ones(64, np.float32), generator.normal(size=(64, 4)).astype(np.float32))
    shape = Shape(dimension=WIDTH, history=5, hidden=4)
    network = ItemNetwork(np.zeros((ITEMS, WIDTH), np.float16), weights, words)
    placed = PlacedVectors(vectors(), np.full(ITEMS, np.nan))
    towers = TwoTowerSource(placed, network, np.arange(ITEMS, dtype=np.int32), {}, shape)
    sources = {"als": als, "two_tower": towers}
    return Funnel(sources, table, TableItems({}, {}), (), 20, Declared())


@pytest.fixture
def held() -> Cases:
    """One request."""
    return cases(LOG)


def found(one: Running) -> list[int]:
    """What it offers to somebody with two items."""
    history = np.array([3, 7], np.int32)
    query = Query(history, np.zeros(2), np.ones(2, np.float32), NO_ROWS, 1.0, "", exclude=history)
    rows: list[int] = one.funnel.candidates(query).rows.tolist()
    return rows


def test_a_large_source_is_compared_over_an_index(
    funnel: Funnel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It finds the same, takes time to build, and is held beside the vectors, whatever the app's tier."""
    plain = Running.of(STACK, funnel, tmp_path / "plain", Tier())
    assert (plain.built.on, plain.built.seconds, plain.built.held_bytes) == (NO_INDEX, 0.0, 0)
    assert plain.bytes_held == held_bytes(funnel.sources["als"])
    monkeypatch.setattr(indexes, "EXACT_BELOW", ITEMS)
    for tier in (Tier(), Tier(on_nodes=True, reason="no Java")):
        indexed = Running.of(STACK, funnel, tmp_path / str(tier.on_nodes), tier)
        assert found(indexed) == found(plain)
        assert (indexed.built.on, indexed.built.node) == (EMBEDDED, None)
        assert indexed.built.seconds > 0.0
        assert indexed.bytes_held == plain.bytes_held + indexed.built.held_bytes > plain.bytes_held


def test_embedded_two_towers_take_a_processors_time(funnel: Funnel, tmp_path: Path, held: Cases) -> None:
    """An index in the process, of which no node knows anything."""
    one = Running.of(TOWERS, funnel, tmp_path, Tier())
    assert (one.built.on, one.wall) == (EMBEDDED, False)
    assert one.built.node_bytes() == ({"files": 0.0, "graphs": 0.0}, {})
    assert one.times(held).search == 0.0
    assert one.built.apart(one.funnel.sources) is one.funnel.sources


def test_two_towers_are_built_on_the_node(funnel: Funnel, tmp_path: Path, held: Cases) -> None:
    """Whole and live there, and searched there: nothing of the index is in this process."""
    versions = MemoryIndexVersions()
    one = Running.of(TOWERS, funnel, tmp_path, Tier(on_nodes=True, node=node(versions)))
    assert dict(versions.states()) == {VERSION: "live"}
    assert len(versions.open()) == ITEMS - 1
    assert (one.built.on, one.wall, one.built.held_bytes) == ("a memory", True, 0)
    assert one.built.seconds > 0.0
    assert one.bytes_held == held_bytes(funnel.sources["two_tower"])
    assert found(one) == found(Running.of(TOWERS, funnel, tmp_path, Tier()))
    times = one.times(held)
    assert (len(times.retrieval), times.search) == (1, 3.0)
    versions.open().delete(np.arange(ITEMS, dtype=np.int32))
    assert found(one) == []


def test_a_part_of_the_work_has_connections_of_its_own(funnel: Funnel, tmp_path: Path) -> None:
    """A fork would read the answers to another one's questions."""
    opened: list[MemoryIndexVersions] = []
    versions = MemoryIndexVersions()

    def connected() -> MemoryIndexVersions:
        opened.append(versions)
        return versions

    one = Running.of(TOWERS, funnel, tmp_path, Tier(True, Node("a memory", connected, Told())))
    before = len(opened)
    one.built.apart(one.funnel.sources)
    one.built.apart(one.funnel.sources)
    assert len(opened) == before + 2


def test_times_are_of_the_requests_after_the_first(funnel: Funnel, tmp_path: Path) -> None:
    """Wall time where a node is asked: what it waits counts, which no processor spends."""
    many = interactions_of(
        [f"v{n}" for n in range(30) for _ in range(2)], ["i", "j"] * 30, np.arange(60.0).tolist()
    )
    one = Running.of(TOWERS, funnel, tmp_path, Tier(True, node(MemoryIndexVersions())))
    times = one.times(cases(many))
    assert len(times.retrieval) == 10 < TIMED
    assert times.search == pytest.approx(0.3)
    slow = replace(one, funnel=replace(one.funnel, sources={"two_tower": Sleeping()}))
    assert slow.times(cases(many)).retrieval.min() >= 2.0
    assert replace(slow, wall=False).times(cases(many)).retrieval.max() < 2.0


def test_without_a_node_nothing_is_measured_in_its_place(funnel: Funnel, tmp_path: Path, held: Cases) -> None:
    """Neither time nor size, and no word of an embedded index; candidates come from comparing all."""
    one = Running.of(TOWERS, funnel, tmp_path, Tier(on_nodes=True, reason="no Java"))
    assert one.built.on is None
    assert one.built.unmeasured == dict.fromkeys(ON_NODES, "no OpenSearch node: no Java")
    assert math.isnan(one.built.seconds)
    assert all(math.isnan(value) for value in one.built.node_bytes()[0].values())
    times = one.times(held)
    assert len(times.retrieval) == 0
    assert math.isnan(times.search)
    assert math.isnan(one.placing(["a title"])[0]["two_tower"])
    assert not list(tmp_path.iterdir())
    assert found(one) == found(Running.of(TOWERS, funnel, tmp_path, Tier()))


def test_a_node_that_fails_leaves_a_reason(funnel: Funnel, tmp_path: Path) -> None:
    """Whether it does not take the vectors or does not tell of them."""

    class Full(MemoryIndexVersions):
        def promote(self, version: str) -> None:
            raise StoreUnavailable(f"no room for {version}")

    one = Running.of(TOWERS, funnel, tmp_path, Tier(True, node(Full())))
    assert one.built.unmeasured["retrieval_ms"] == f"no OpenSearch node: no room for {VERSION}"
    mute = Running.of(TOWERS, funnel, tmp_path, Tier(True, node(MemoryIndexVersions(), Mute())))
    sizes, why = mute.built.node_bytes()
    assert all(math.isnan(value) for value in sizes.values())
    assert why == {"node_bytes": "OpenSearch answered with status 403"}
    assert math.isnan(mute.built.busy_ms())


@pytest.mark.parametrize(("graphs", "why"), [(math.nan, {"node_bytes.graphs": NO_GRAPHS}), (700.0, {})])
def test_sizes_are_what_the_node_says(
    funnel: Funnel, tmp_path: Path, graphs: float, why: dict[str, str]
) -> None:
    """Graphs only where the engine keeps them in memory."""
    tier = Tier(True, node(MemoryIndexVersions(), Told(graphs)))
    sizes, reasons = Running.of(TOWERS, funnel, tmp_path, tier).built.node_bytes()
    assert sizes == pytest.approx({"files": 5000.0, "graphs": graphs}, nan_ok=True)
    assert reasons == why


def test_what_was_built_is_gone_afterwards(funnel: Funnel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the comparison failed; another tier or a missing node has nothing to tidy."""
    versions = MemoryIndexVersions()
    given: list[dict[str, str]] = []

    def made(_app: App, **search: str) -> Node:
        given.append(search)
        return node(versions)

    monkeypatch.setattr(tiers, "_node", made)
    shopnow, search = load_app(ROOT / "apps" / "shopnow"), {"url": "http://127.0.0.1:9", "name": "x"}

    def failing() -> None:
        with searching(shopnow, search, Progress("test")) as tier:
            assert tier.node
            tier.node.build(funnel.sources["two_tower"].vectors)  # type: ignore[attr-defined]
            assert dict(versions.states()) == {VERSION: "live"}
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing()
    assert dict(versions.states()) == {}
    assert given == [search]


@pytest.mark.parametrize(
    ("app", "search", "expected"),
    [
        ("media", {}, Tier()),
        ("shopnow", {}, Tier(True, None, NO_NODE)),
        ("shopnow", {"missing": "no Java"}, Tier(True, None, "no Java")),
    ],
)
def test_the_tier_is_the_apps(app: str, search: dict[str, str], expected: Tier) -> None:
    """An embedded one needs no node, and one on nodes never becomes embedded."""
    with searching(load_app(ROOT / "apps" / app), search, Progress("test")) as tier:
        assert (tier.on_nodes, tier.node, tier.reason) == (expected.on_nodes, None, expected.reason)


def test_a_node_that_does_not_answer_is_none() -> None:
    """With the reason that the connection gave."""
    search = {"url": f"http://127.0.0.1:{free_port()}", "name": "compare-x"}
    with searching(load_app(ROOT / "apps" / "shopnow"), search, Progress("test")) as tier:
        assert (tier.on_nodes, tier.node) == (True, None)
        assert "OpenSearch answered with status none" in tier.reason


def test_sources_without_a_model_are_named(funnel: Funnel) -> None:
    """Only the stack's own; what both have may be absent."""
    assert missing_sources(STACK, funnel.sources) == ()
    without = {name: source for name, source in funnel.sources.items() if name != "two_tower"}
    assert missing_sources(TOWERS, without) == ("two_tower",)
