"""What every index of item vectors does; the one in memory is exact, and the oracle of the others."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from importlib import metadata

import numpy as np
import pytest

from narrows.adapters.faiss import FaissVectorIndex
from narrows.adapters.memory_vectors import MemoryIndexVersions, MemoryVectorIndex
from narrows.adapters.opensearch import connect
from narrows.adapters.opensearch_versions import OpenSearchIndexVersions
from narrows.errors import InvalidInput
from narrows.index_settings import IndexSettings
from narrows.retrieval import Floats, Rows
from narrows.vector_index import IndexGone, IndexVersions, VectorIndex, Where
from tests import servers
from tests.servers import OpenSearchNode

DIMENSION = 8
NUMBERS = itertools.count()
ALL_THREE = {"region": "DE", "category": "tea", "seller": "s2"}
FAISS = f"faiss {metadata.version('faiss-cpu')}"


def unit(count: int, seed: int = 0, dimension: int = DIMENSION) -> Floats:
    """Directions, drawn once and for all."""
    drawn = np.random.default_rng(seed).standard_normal((count, dimension))
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True), np.float32)


def rows(*numbers: int) -> Rows:
    return np.asarray(numbers, np.int32)


class VectorIndexContract:
    """Subscribed to by every adapter."""

    def test_an_empty_index_finds_nothing(self, index: VectorIndex) -> None:
        """No rows are -1, and their scores nan."""
        found = index.search(unit(2), 3)
        assert found.rows.tolist() == [[-1] * 3] * 2
        assert np.isnan(found.scores).all()
        assert len(index) == 0

    def test_the_nearest_come_first_with_their_inner_products(self, index: VectorIndex) -> None:
        """The whole order of twenty vectors, and their scores, for two questions at once."""
        vectors = unit(20)
        index.upsert(np.arange(20, dtype=np.int32), vectors)
        index.refresh()
        questions = unit(2, seed=1)
        found = index.search(questions, 20)
        products = questions @ vectors.T
        assert found.rows.tolist() == np.argsort(-products, axis=1).tolist()
        assert np.allclose(found.scores, -np.sort(-products, axis=1), atol=2e-3)
        assert found.rows.dtype == np.int32

    def test_fewer_than_asked_for_are_filled_up(self, index: VectorIndex) -> None:
        """Three rows for a question for five."""
        index.upsert(rows(4, 7, 9), unit(3))
        index.refresh()
        found = index.search(unit(1), 5)
        assert set(found.rows[0].tolist()) == {4, 7, 9, -1}
        assert np.isnan(found.scores[0, 3:]).all()

    def test_a_row_that_comes_again_replaces_itself(self, index: VectorIndex) -> None:
        """Its old vector is not found any more, and it is counted once."""
        there, elsewhere = unit(2)
        index.upsert(rows(1), there[None])
        index.refresh()
        index.upsert(rows(1), elsewhere[None])
        index.refresh()
        assert len(index) == 1
        assert index.search(there, 2).scores[0, 0] == pytest.approx(float(there @ elsewhere), abs=2e-3)

    def test_a_deleted_row_is_gone(self, index: VectorIndex) -> None:
        """Deleting what is not there changes nothing."""
        index.upsert(rows(1, 2), unit(2))
        index.refresh()
        index.delete(rows(1, 99))
        index.refresh()
        assert index.search(unit(1), 2).rows.tolist() == [[2, -1]]
        assert len(index) == 1

    def test_filters_hold_inside_the_search(self, index: VectorIndex) -> None:
        """Ten of a thousand pass, and all ten are found though 990 others are nearer or not."""
        vectors = unit(1000)
        regions = [("DE", "AT") if row % 100 == 3 else ("US",) for row in range(1000)]
        sellers = [("blue",) if row % 200 == 3 else ("red",) for row in range(1000)]
        index.upsert(np.arange(1000, dtype=np.int32), vectors, {"region": regions, "seller": sellers})
        index.refresh()
        question = unit(1, seed=5)[0]
        passing = np.arange(3, 1000, 100)
        best = passing[np.argsort(-(vectors[passing] @ question))]
        assert index.search(question, 10, where("region", "AT")).rows[0].tolist() == best.tolist()
        both = Where({"region": frozenset({"DE", "FR"}), "seller": frozenset({"blue"})})
        assert index.search(question, 10, both).rows[0, :5].tolist() == [
            row for row in best if row % 200 == 3
        ]
        assert index.search(question, 2, where("region", "JP")).rows.tolist() == [[-1, -1]]

    def test_each_filter_finds_what_has_its_value(self, index: VectorIndex) -> None:
        """By region, by category of which an item has several, by seller; and by all of them at once."""
        attributes = {
            "region": [("DE",), ("DE", "US"), ("US",), ()],
            "category": [("tea", "gift"), ("tea",), ("gift", "toy"), ("toy",)],
            "seller": [("Smith | Co",), ("s2",), ("s2",), ()],
        }
        index.upsert(rows(1, 2, 3, 4), unit(4), attributes)
        index.refresh()
        question = unit(1, seed=5)[0]
        for asked, expected in (
            (where("region", "DE"), {1, 2}),
            (where("category", "tea"), {1, 2}),
            (where("category", "toy", "tea"), {1, 2, 3, 4}),
            (where("seller", "s2"), {2, 3}),
            (where("seller", "Smith | Co"), {1}),
            (where("seller", "Smith"), set()),
            (Where({name: frozenset({value}) for name, value in ALL_THREE.items()}), {2}),
        ):
            assert set(index.search(question, 4, asked).rows[0].tolist()) - {-1} == expected

    def test_what_has_no_value_may_pass_too(self, index: VectorIndex) -> None:
        """Sold in the region asked for, or in no region in particular, which is everywhere."""
        regions: list[tuple[str, ...]] = [("DE",), (), ("US",), ("US", "DE"), ("US",), ()]
        vectors = unit(7)
        index.upsert(np.arange(6, dtype=np.int32), vectors[:6], {"region": regions})
        index.upsert(rows(6), vectors[6:])
        index.refresh()
        question = unit(1, seed=5)[0]
        assert set(index.search(question, 7, sold_in("DE")).rows[0].tolist()) == {0, 1, 3, 5, 6, -1}
        assert set(index.search(question, 7, sold_in("JP")).rows[0].tolist()) == {1, 5, 6, -1}
        both = Where({"region": frozenset({"US"}), "category": frozenset({"tea"})}, frozenset({"region"}))
        assert index.search(question, 1, both).rows.tolist() == [[-1]]
        assert set(index.search(question, 7, where("region", "DE")).rows[0].tolist()) == {0, 3, -1}

    def test_an_unknown_filter_is_refused(self, index: VectorIndex) -> None:
        """In a search and in a change, by name, with the names that there are."""
        with pytest.raises(InvalidInput, match=r"'colour'.*region, category, seller"):
            index.search(unit(1), 2, where("colour", "green"))
        with pytest.raises(InvalidInput, match=r"'colour'.*region, category, seller"):
            index.upsert(rows(1), unit(1), {"colour": [("green",)]})
        assert len(index) == 0

    def test_attributes_change_with_their_row(self, index: VectorIndex) -> None:
        """A row that moves to another region is found there and nowhere else."""
        index.upsert(rows(5), unit(1), {"region": [("US",)]})
        index.refresh()
        index.upsert(rows(5), unit(1), {"region": [("DE",)]})
        index.refresh()
        assert index.search(unit(1), 1, where("region", "US")).rows[0, 0] == -1
        assert index.search(unit(1), 1, where("region", "DE")).rows[0, 0] == 5

    def test_a_bad_vector_harms_only_itself(self, index: VectorIndex) -> None:
        """nan, infinity, a row below 0 and a row given twice are refused by position; the others are in."""
        vectors = unit(6)
        vectors[1, 0], vectors[2, 3] = np.nan, np.inf
        refused = index.upsert(rows(10, 11, 12, -1, 14, 14), vectors)
        index.refresh()
        assert set(refused) == {1, 2, 3, 4}
        assert "nan" in str(refused[1])
        assert set(index.search(vectors[0], 9).rows[0].tolist()) == {10, 14, -1}
        assert index.search(vectors[5], 1).scores[0, 0] == pytest.approx(1.0, abs=2e-3)

    def test_vectors_of_another_size_are_refused(self, index: VectorIndex) -> None:
        """Both in changes and in questions, by name and remedy; nothing of the batch is in."""
        with pytest.raises(InvalidInput, match=r"vectors.*float32\[n, 8\]"):
            index.upsert(rows(1), unit(1, dimension=9))
        with pytest.raises(InvalidInput, match="vectors"):
            index.search(unit(1, dimension=7), 1)
        with pytest.raises(InvalidInput, match="rows"):
            index.upsert(rows(1, 2), unit(1))
        with pytest.raises(InvalidInput, match="region"):
            index.upsert(rows(1), unit(1), {"region": []})
        with pytest.raises(InvalidInput, match="'k'"):
            index.search(unit(1), 0)
        assert len(index) == 0

    def test_searches_go_on_while_it_changes(self, index: VectorIndex) -> None:
        """A row that stays is found by every search beside a hundred changes."""
        index.upsert(rows(0), unit(1))
        index.refresh()
        stop, misses = threading.Event(), []

        def ask() -> None:
            while not stop.is_set():
                if index.search(unit(1), 1).rows[0, 0] != 0:
                    misses.append(1)

        asking = threading.Thread(target=ask)
        asking.start()
        for row in range(1, 101):
            index.upsert(rows(row), unit(1, seed=row))
        index.delete(np.arange(50, 101, dtype=np.int32))
        index.refresh()
        stop.set()
        asking.join()
        assert not misses
        assert len(index) == 50


def sold_in(region: str) -> Where:
    return Where({"region": frozenset({region})}, or_none=frozenset({"region"}))


def where(name: str, *values: str) -> Where:
    return Where({name: frozenset(values)})


class IndexVersionsContract:
    """Subscribed to by every adapter."""

    def test_before_the_first_promotion_there_is_none(self, versions: IndexVersions) -> None:
        """Neither a live one nor one by name; what is half built is said."""
        with pytest.raises(IndexGone, match="there is none"):
            versions.open()
        versions.create("v1", DIMENSION)
        with pytest.raises(IndexGone, match=r"'v1' \(half built\).*build it"):
            versions.open()
        with pytest.raises(IndexGone, match=r"version 'v1'.*half built"):
            versions.open("v1")
        with pytest.raises(IndexGone, match="version 'v2'"):
            versions.promote("v2")

    def test_an_index_opens_by_the_version_of_its_vectors(self, versions: IndexVersions) -> None:
        """The live one without a name; the one before it until it is dropped; never one for another."""
        fill(versions, "v1", 1)
        fill(versions, "v2", 2)
        assert versions.open().version == "v2"
        assert versions.open("v1").search(unit(1), 1).rows.tolist() == [[1]]
        assert versions.open("v2").search(unit(1), 1).rows.tolist() == [[2]]
        with pytest.raises(IndexGone, match=r"'v3'.*'v1' \(whole\), 'v2' \(live\)"):
            versions.open("v3")
        with pytest.raises(InvalidInput, match="promote another"):
            versions.drop("v2")
        versions.drop("v1")
        versions.drop("v1")
        with pytest.raises(IndexGone, match="'v1'"):
            versions.open("v1")

    def test_it_tells_which_there_are(self, versions: IndexVersions) -> None:
        """The live one, those from before, and those that nobody finished."""
        assert dict(versions.states()) == {}
        fill(versions, "v1", 1)
        fill(versions, "v2", 2)
        versions.create("v3", DIMENSION)
        assert dict(versions.states()) == {"v1": "whole", "v2": "live", "v3": "half built"}
        versions.promote("v1")
        versions.drop("v3")
        assert dict(versions.states()) == {"v1": "live", "v2": "whole"}

    def test_all_can_be_discarded(self, versions: IndexVersions) -> None:
        """The live one too; what comes later under the same name knows nothing of them."""
        fill(versions, "v1", 1)
        fill(versions, "v2", 2)
        versions.create("v3", DIMENSION)
        versions.discard()
        assert dict(versions.states()) == {}
        with pytest.raises(IndexGone, match="there is none"):
            versions.open()
        fill(versions, "v1", 4)
        assert versions.open().search(unit(1), 2).rows.tolist() == [[4, -1]]
        versions.discard()
        versions.discard()

    def test_a_finished_index_is_not_begun_again(self, versions: IndexVersions) -> None:
        """An unfinished one is, and nothing of its first beginning is left."""
        versions.create("v1", DIMENSION).upsert(rows(7), unit(1))
        fill(versions, "v1", 1)
        assert versions.open().search(unit(1), 2).rows.tolist() == [[1, -1]]
        with pytest.raises(InvalidInput, match=r"'v1'.*upsert and delete"):
            versions.create("v1", DIMENSION)

    def test_the_next_takes_over_with_no_empty_moment(self, versions: IndexVersions) -> None:
        """Whoever asks without pause finds the old answer or the new one, through five promotions."""
        fill(versions, "v0", 0)
        stop, found = threading.Event(), []

        def ask() -> None:
            while not stop.is_set():
                index = versions.open()
                found.append((index.version, index.search(unit(1), 1).rows[0, 0]))

        asking = threading.Thread(target=ask)
        asking.start()
        for number in range(1, 6):
            fill(versions, f"v{number}", number)
        stop.set()
        asking.join()
        assert {(version, f"v{row}") for version, row in found} == {
            (version, version) for version, _ in found
        }
        assert versions.open().version == "v5"


def fill(versions: IndexVersions, version: str, row: int) -> None:
    """Make and promote an index that holds this row alone."""
    index = versions.create(version, DIMENSION)
    index.upsert(rows(row), unit(1))
    index.refresh()
    versions.promote(version)


class TestMemory(VectorIndexContract):
    @pytest.fixture
    def index(self) -> VectorIndex:
        servers.in_process("memory vector index", "exact, the oracle")
        return MemoryVectorIndex("v1", DIMENSION)


class TestMemoryVersions(IndexVersionsContract):
    @pytest.fixture
    def versions(self) -> IndexVersions:
        return MemoryIndexVersions()


class TestEmbeddedVersions(IndexVersionsContract):
    @pytest.fixture
    def versions(self) -> IndexVersions:
        return MemoryIndexVersions(FaissVectorIndex)


class TestEmbeddedExact(VectorIndexContract):
    @pytest.fixture
    def index(self) -> VectorIndex:
        servers.in_process("embedded vector index", FAISS)
        return FaissVectorIndex("v1", DIMENSION)


class TestEmbeddedLists(VectorIndexContract):
    """Everything in inverted lists, whose recall is wanted whole."""

    @pytest.fixture
    def index(self) -> VectorIndex:
        servers.in_process("embedded vector index", FAISS)
        return FaissVectorIndex("v1", DIMENSION, exact_below=16, fresh_at_most=4, recall=1.0)


@pytest.fixture
def of_opensearch(opensearch: OpenSearchNode) -> Iterator[OpenSearchIndexVersions]:
    """The versions of an app that no other test knows, in the real server; they are deleted afterwards."""
    client = connect(opensearch.url, timeout_s=20.0)
    name = f"contract-{next(NUMBERS)}"
    settings = IndexSettings(replicas=0).on(opensearch.engine)
    yield OpenSearchIndexVersions(client, name, settings, search_s=20.0)
    client.indices.delete(index=f"{name}-*")
    client.close()


@pytest.mark.local
class TestOpenSearchHalfBuilt(VectorIndexContract):
    """A build fills the main part."""

    @pytest.fixture
    def index(self, of_opensearch: OpenSearchIndexVersions) -> VectorIndex:
        return of_opensearch.create("v1", DIMENSION)


@pytest.mark.local
class TestOpenSearchLive(VectorIndexContract):
    """Changes go to the fresh part."""

    @pytest.fixture
    def index(self, of_opensearch: OpenSearchIndexVersions) -> VectorIndex:
        of_opensearch.create("v1", DIMENSION)
        of_opensearch.promote("v1")
        return of_opensearch.open("v1")


@pytest.mark.local
class TestOpenSearchVersions(IndexVersionsContract):
    @pytest.fixture
    def versions(self, of_opensearch: OpenSearchIndexVersions) -> IndexVersions:
        return of_opensearch
