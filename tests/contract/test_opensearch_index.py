"""What is OpenSearch's own: its mapping, its two parts, its refusals, its death and return."""

from __future__ import annotations

import itertools
import re
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from opensearchpy import OpenSearch

from narrows.adapters.memory_vectors import MemoryVectorIndex
from narrows.adapters.opensearch import connect, mapping
from narrows.adapters.opensearch_figures import OpenSearchFigures
from narrows.adapters.opensearch_versions import OpenSearchIndexVersions
from narrows.errors import InvalidInput, StoreUnavailable
from narrows.index_settings import Engine, IndexSettings
from narrows.retrieval import Floats, Rows
from narrows.vector_index import IndexGone, VectorIndex, Where
from tests.servers import OpenSearchNode, free_port

DIMENSION = 16
NUMBERS = itertools.count()
SMALL = IndexSettings(engine="lucene", replicas=0)
ONE = np.asarray([1], np.int32)
SHOES = Where({"category": frozenset({"shoes"})})


def unit(count: int, seed: int = 0) -> Floats:
    """Directions, drawn once and for all."""
    drawn = np.random.default_rng(seed).standard_normal((count, DIMENSION))
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True), np.float32)


def numbers(*rows: int) -> Rows:
    return np.asarray(rows, np.int32)


@pytest.fixture
def client(opensearch: OpenSearchNode) -> Iterator[OpenSearch]:
    one = connect(opensearch.url, timeout_s=20.0)
    yield one
    one.close()


@pytest.fixture
def name(client: OpenSearch) -> Iterator[str]:
    """The name of an app that no other test knows; its indexes are deleted afterwards."""
    one = f"own-{next(NUMBERS)}"
    yield one
    client.indices.delete(index=f"{one}-*")


def opened(client: OpenSearch, name: str, settings: IndexSettings = SMALL) -> VectorIndex:
    """An empty live index."""
    versions = OpenSearchIndexVersions(client, name, settings, search_s=20.0)
    versions.create("v1", DIMENSION)
    versions.promote("v1")
    return versions.open("v1")


@pytest.mark.parametrize(
    ("settings", "data_type", "parameters"),
    [
        (IndexSettings(), "float", {"m": 16, "ef_construction": 128}),
        (IndexSettings(numbers="byte", m=24), "byte", {"m": 24, "ef_construction": 128}),
        (
            IndexSettings(numbers="fp16", ef_construction=64),
            "float",
            {
                "m": 16,
                "ef_construction": 64,
                "encoder": {"name": "sq", "parameters": {"type": "fp16"}},
            },
        ),
        (IndexSettings(numbers="fp16").on("lucene"), "float", {"m": 16, "ef_construction": 128}),
    ],
)
def test_a_mapping_names_its_engine(settings: IndexSettings, data_type: str, parameters: Any) -> None:
    """Never the plugin's default; space, numbers and the graph's parameters are the settings'."""
    vector = mapping(settings, 64, {})["properties"]["vector"]
    assert vector == {
        "type": "knn_vector",
        "dimension": 64,
        "data_type": data_type,
        "method": {
            "name": "hnsw",
            "engine": settings.engine,
            "space_type": "innerproduct",
            "parameters": parameters,
        },
    }


@pytest.mark.local
@pytest.mark.parametrize("settings", [SMALL, IndexSettings("lucene", "innerproduct", "byte", replicas=0)])
def test_it_finds_what_the_oracle_finds(client: OpenSearch, name: str, settings: IndexSettings) -> None:
    """Of 2,000 vectors of different lengths, unfiltered and filtered; bytes lose a little, and no more."""
    rng = np.random.default_rng(5)
    vectors = unit(2000) * rng.uniform(0.5, 3.0, (2000, 1)).astype(np.float32)
    rows = np.arange(2000, dtype=np.int32)
    attributes = {"category": [(str(row % 4),) for row in range(2000)]}
    oracle, index = MemoryVectorIndex("v1", DIMENSION), opened(client, name, settings)
    for one in (oracle, index):
        assert one.upsert(rows, vectors, attributes) == {}
        one.refresh()
    for where in (Where(), Where({"category": frozenset({"1"})})):
        expected, found = oracle.search(unit(20, 9), 50, where), index.search(unit(20, 9), 50, where)
        pairs = zip(expected.rows, found.rows, strict=True)
        shared = [len(np.intersect1d(ours, theirs)) / 50 for ours, theirs in pairs]
        assert np.mean(shared) >= (0.99 if settings.numbers == "float" else 0.95)
        assert np.allclose(found.scores[:, 0], expected.scores[:, 0], rtol=0.03)


@pytest.mark.local
def test_cosines_are_cosines(client: OpenSearch, name: str) -> None:
    """Under that space the length of a vector counts nothing, and a score may be below 0."""
    index = opened(client, name, IndexSettings("lucene", "cosinesimil", replicas=0))
    there = unit(1)[0]
    index.upsert(numbers(1, 2), np.stack([5 * there, -there]))
    index.refresh()
    found = index.search(there, 2)
    assert found.rows.tolist() == [[1, 2]]
    assert found.scores[0].tolist() == pytest.approx([1.0, -1.0], abs=1e-4)


@pytest.mark.local
def test_what_the_server_refuses_is_told_by_position(client: OpenSearch, name: str) -> None:
    """A vector of zeros has no cosine: that one is named with the server's words, the others are in."""
    index = opened(client, name, IndexSettings("lucene", "cosinesimil", replicas=0))
    vectors = unit(3)
    vectors[1] = 0.0
    refused = index.upsert(numbers(7, 8, 9), vectors)
    index.refresh()
    assert set(refused) == {1}
    assert "row" in str(refused[1])
    assert "8" in str(refused[1])
    assert "OpenSearch refused it" in str(refused[1])
    assert len(index) == 2


@pytest.mark.local
def test_a_change_is_found_before_the_main_part_knows(client: OpenSearch, name: str) -> None:
    """Until both parts are refreshed the old vector lies in one and the new in the other: that counts."""
    versions = OpenSearchIndexVersions(client, name, SMALL, search_s=20.0)
    building = versions.create("v1", DIMENSION)
    old, new = unit(2)
    building.upsert(ONE, old[None])
    versions.promote("v1")
    client.indices.put_settings(index=f"{name}-*", body={"index": {"refresh_interval": "-1"}})
    index = versions.open("v1")
    index.upsert(ONE, new[None])
    client.indices.refresh(index=f"{name}-vectors-*-fresh")
    found = index.search(old, 5)
    assert found.rows[0].tolist() == [1, -1, -1, -1, -1]
    assert found.scores[0, 0] == pytest.approx(float(old @ new), abs=1e-3)


@pytest.mark.local
def test_it_tells_which_rows_a_search_can_find(client: OpenSearch, name: str) -> None:
    """Not before the refresh, and no more after it took notice of the deletion; in both parts."""
    versions = OpenSearchIndexVersions(client, name, SMALL, search_s=20.0)
    versions.create("v1", DIMENSION).upsert(numbers(1), unit(1))
    versions.promote("v1")
    index = versions.open("v1")
    client.indices.put_settings(index=f"{name}-*", body={"index": {"refresh_interval": "-1"}})
    hidden = _not_refreshed(index)
    index.upsert(numbers(20), unit(1))
    assert index.finds(numbers(1, hidden, 50)).tolist() == [True, False, False]
    index.refresh()
    assert index.finds(numbers(1, hidden, 20, 50)).tolist() == [True, True, True, False]
    index.delete(numbers(1, hidden))
    index.refresh()
    assert index.finds(numbers(1, hidden, 20, 50)).tolist() == [False, False, True, False]
    assert index.finds(numbers()).tolist() == []


def _not_refreshed(index: VectorIndex) -> int:
    """A row of the index that nothing refreshed yet; when its interval changes the server does so once more,
    in its own time, so the first that we write may be found already.
    """
    for row in range(2, 12):
        index.upsert(numbers(row), unit(1, seed=row))
        if not index.finds(numbers(row))[0]:
            return row
    raise AssertionError("each row was found at once: the index refreshes by itself")


def test_what_changes_is_found_without_being_asked(client: OpenSearch, name: str) -> None:
    """The fresh part refreshes itself: a new row within two seconds, and nobody called refresh."""
    index = opened(client, name)
    index.upsert(ONE, unit(1))
    until = time.monotonic() + 5.0
    while index.search(unit(1), 1).rows[0, 0] != 1:
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.local
def test_an_index_that_is_dropped_is_gone_and_not_made_again(client: OpenSearch, name: str) -> None:
    """Whoever still holds it is told, by search and by upsert; the server makes none of its own."""
    versions = OpenSearchIndexVersions(client, name, SMALL, search_s=20.0)
    held = opened(client, name)
    versions.create("v2", DIMENSION)
    versions.promote("v2")
    versions.drop("v1")
    with pytest.raises(IndexGone, match=r"'v1' is gone.*build and promote"):
        held.search(unit(1), 1)
    with pytest.raises(IndexGone, match="'v1'"):
        held.upsert(ONE, unit(1))
    with pytest.raises(IndexGone, match="'v1'"):
        held.refresh()
    assert not [one for one in client.indices.get(index=f"{name}-*") if "v1" in one]


@pytest.mark.local
def test_apps_in_one_cluster_do_not_meet(client: OpenSearch, name: str) -> None:
    """Not even where one's name begins with the other's."""
    opened(client, name)
    with pytest.raises(IndexGone, match="there is none"):
        OpenSearchIndexVersions(client, f"{name}-vectors", SMALL).open()
    with pytest.raises(IndexGone, match="there is none"):
        OpenSearchIndexVersions(client, name[:-1] + "x", SMALL).open()


@pytest.mark.local
def test_settings_of_the_build_hold(client: OpenSearch, name: str) -> None:
    """Bytes are read as bytes by a process whose settings say otherwise by now."""
    versions = OpenSearchIndexVersions(client, name, IndexSettings("lucene", numbers="byte", replicas=0))
    versions.create("v1", DIMENSION).upsert(numbers(1, 2), 10 * unit(2))
    versions.promote("v1")
    later = OpenSearchIndexVersions(client, name, IndexSettings(ef_search=99), search_s=20.0).open("v1")
    found = later.search(unit(1), 2)
    assert found.rows[0, 0] == 1
    assert found.scores[0, 0] == pytest.approx(10.0, rel=0.05)


@pytest.mark.parametrize("engine", ["faiss", "lucene"])
@pytest.mark.parametrize(("k", "looked_at"), [(10, 64), (300, 300)])
def test_every_question_says_how_many_vectors_to_look_at(
    monkeypatch: pytest.MonkeyPatch, engine: Engine, k: int, looked_at: int
) -> None:
    """As many as `ef_search` says, or as are wanted, if that is more; 2.19 reads it with both engines."""
    bodies: list[list[dict[str, Any]]] = []

    def msearch(body: list[dict[str, Any]], params: Any) -> dict[str, Any]:
        bodies.append(body)
        return {"responses": [{}, {}]}

    with closing(connect("http://127.0.0.1:1")) as client:
        monkeypatch.setattr(client, "msearch", msearch)
        settings = IndexSettings(engine, ef_search=64)
        versions = OpenSearchIndexVersions(client, "nobody", settings)
        made = {"version": "v1", "dimension": DIMENSION, "whole": True, "scale": None}
        versions._index({**made, "settings": _plain(settings)}).search(unit(2), k, SHOES)
    questions = [line["query"]["knn"]["vector"] for line in bodies[0][1::2]]
    assert [one["method_parameters"] for one in questions] == [{"ef_search": looked_at}] * 2
    assert [one["k"] for one in questions] == [k] * 2


@pytest.mark.local
def test_who_looks_at_more_vectors_finds_more(client: OpenSearch, name: str) -> None:
    """In a poor graph: by what a process has set now, whatever the index was built with."""
    rows, poor = np.arange(2000, dtype=np.int32), IndexSettings("lucene", m=2, ef_construction=2, replicas=0)
    building = OpenSearchIndexVersions(client, name, poor, search_s=20.0)
    index = building.create("v1", DIMENSION)
    index.upsert(rows, unit(2000))
    building.promote("v1")
    products = unit(20, 9) @ unit(2000).T
    nearest = np.argsort(-products, axis=1)[:, :5]
    found = {}
    for ef_search in (5, 500):
        versions = OpenSearchIndexVersions(client, name, replace(poor, ef_search=ef_search), search_s=20.0)
        answer = versions.open("v1").search(unit(20, 9), 5)
        found[ef_search] = np.mean([np.isin(*pair).mean() for pair in zip(nearest, answer.rows, strict=True)])
    assert found[500] > found[5] + 0.1


def test_a_server_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    """At once, and by our own type."""
    client = connect(f"http://127.0.0.1:{free_port()}", timeout_s=1.0)
    began = time.monotonic()
    with pytest.raises(StoreUnavailable):
        OpenSearchIndexVersions(client, "nobody", SMALL).open()
    assert time.monotonic() - began < 0.5
    client.close()


def test_a_server_that_says_nothing_costs_no_more_than_the_deadline() -> None:
    """It takes the connection and never answers: one try, and then the error."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = connect(f"http://127.0.0.1:{silent.getsockname()[1]}")
        versions = OpenSearchIndexVersions(client, "silent", SMALL, search_s=0.2)
        index = versions._index(
            {"version": "v1", "dimension": DIMENSION, "settings": _plain(SMALL), "whole": True, "scale": None}
        )
        began = time.monotonic()
        with pytest.raises(StoreUnavailable):
            index.search(unit(1), 1)
        assert 0.15 < time.monotonic() - began < 0.4
        client.close()


@pytest.mark.local
def test_killed_and_back_again(opensearch: OpenSearchNode, client: OpenSearch, name: str) -> None:
    """SIGKILL: a typed error within a tenth of a second; the same object answers once the server is back."""
    index = opened(client, name)
    assert index.upsert(numbers(1, 2), unit(2)) == {}
    index.refresh()
    before = index.search(unit(1), 2)
    opensearch.kill()
    try:
        for _ in range(3):
            began = time.monotonic()
            with pytest.raises(StoreUnavailable):
                index.search(unit(1), 2)
            assert time.monotonic() - began < 0.1
        with pytest.raises(StoreUnavailable):
            index.upsert(numbers(3), unit(1))
    finally:
        opensearch.start()
    assert _answer_in_time(index, before.rows.tolist())
    assert index.upsert(numbers(3), unit(1, 4)) == {}
    index.refresh()
    assert len(index) == 3


def _answer_in_time(index: VectorIndex, expected: list[list[int]]) -> bool:
    """Whether the index, whose shards the server reads again first, gives that answer within 20 seconds."""
    until = time.monotonic() + 20.0
    while time.monotonic() < until:
        try:
            return bool(index.search(unit(1), 2).rows.tolist() == expected)
        except (StoreUnavailable, InvalidInput):
            time.sleep(0.1)
    return False


def _plain(settings: IndexSettings) -> dict[str, Any]:
    return {name: getattr(settings, name) for name in IndexSettings.__dataclass_fields__}


@pytest.mark.local
def test_the_server_tells_what_an_index_takes_and_does(client: OpenSearch, name: str) -> None:
    """Files that grow with what is in, work that grows with each search; of other indexes nothing."""
    figures, others = OpenSearchFigures(client, name), OpenSearchFigures(client, f"{name}-other")
    assert re.fullmatch(r"OpenSearch \d+\.\d+\.\d+", figures.server())
    index = opened(client, name)
    empty, idle = figures.store_bytes(), figures.busy_ms()
    index.upsert(np.arange(2000, dtype=np.int32), unit(2000))
    index.refresh()
    for question in unit(200, 3):
        index.search(question, 100)
    assert figures.store_bytes() > empty + 2000 * DIMENSION * 4
    assert 200 * 60_000 > figures.busy_ms() - idle > 0.0
    assert np.isnan(figures.graph_bytes())  # Lucene keeps no graphs apart
    assert (others.store_bytes(), others.busy_ms()) == (0.0, 0.0)


def test_graphs_are_those_of_the_indexes_under_the_name() -> None:
    """On every node, in the plugin's kibibytes; nan where none of them is in memory."""

    class Transport:
        def perform_request(self, _method: str, _path: str, params: Any) -> Any:
            assert params
            one = {"compare-x-vectors-a-main": {"graph_memory_usage": 3}}
            more = {"compare-x-vectors-a-fresh": {"graph_memory_usage": 1}}
            live = {"shop-vectors-a-main": {"graph_memory_usage": 900}}
            return {"nodes": {"n1": {"indices_in_cache": {**one, **live}}, "n2": {"indices_in_cache": more}}}

    client: Any = SimpleNamespace(transport=Transport())
    assert OpenSearchFigures(client, "compare-x").graph_bytes() == 4 * 1024
    assert np.isnan(OpenSearchFigures(client, "compare-y").graph_bytes())
