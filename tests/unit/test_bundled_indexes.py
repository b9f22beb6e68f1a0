"""Large sources search an index that lies beside them; what they find is what comparing all would find."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from narrows import networks
from narrows.adapters.bundle import Serving, load_serving
from narrows.adapters.bundled_indexes import RECALL, bound_index, index_files, write_indexes
from narrows.adapters.faiss import FaissVectorIndex
from narrows.adapters.memory_vectors import MemoryVectorIndex
from narrows.adapters.placing import with_newest, with_regions
from narrows.features.registry import FeatureSet
from narrows.ranking import ModelManifest, write_manifest
from narrows.retrieval import Floats, Query, Rows
from narrows.settings import App, load_app
from narrows.snapshot import ItemSnapshot, open_base, write_base, write_delta
from narrows.sources import als, content, covisitation, session, two_tower
from narrows.text_vectors import fit_hashed_words, text_marks
from narrows.vector_index import Where
from tests.unit.test_sources_learned import query

APPS = Path(__file__).parents[2] / "apps"
ITEMS, DIMENSION = 2000, 8
IDS = np.asarray([f"i{item:04}" for item in range(ITEMS)])
LARGE = 500


def vectors(seed: int) -> Floats:
    """Around forty centres, as trained ones are."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(40, DIMENSION))
    return (centres[np.arange(ITEMS) % 40] + 0.3 * rng.normal(size=(ITEMS, DIMENSION))).astype(np.float32)


def write_sources(folder: Path) -> None:
    """The four sources that compare vectors, over two thousand items."""
    rng = np.random.default_rng(0)
    words = fit_hashed_words(["red shoes", "green tea"] * 3, rng, dimension=2)
    shape = {"dimension": DIMENSION, "history": 3, "hidden": 6}
    towers = networks.two_tower_weights(rng, content=words.dimension, **shape)
    none, names = np.zeros((0, DIMENSION), np.float32), np.asarray([], "<U1")
    params = two_tower.Params(**shape)
    unread = np.full(ITEMS, np.nan)
    model = two_tower.TwoTower(
        IDS, vectors(1), vectors(1).astype(np.float16), unread, names, none, towers, words, params
    )
    model.save(folder / two_tower.FILE)
    als.Als(IDS, vectors(2), als.Params(dimension=DIMENSION)).save(folder / als.FILE)
    of_session = session.Params(dimension=DIMENSION, blocks=1, heads=2, window=10)
    weights = networks.session_weights(rng, dimension=DIMENSION, blocks=1, heads=2, window=10)
    session.Session(IDS, vectors(3), weights, of_session).save(folder / session.FILE)
    texts = vectors(4)[:, :2] / np.linalg.norm(vectors(4)[:, :2], axis=1, keepdims=True)
    content.Content(IDS, texts, unread, words, content.Params()).save(folder / content.FILE)


def rows_of(ids: Sequence[str]) -> Rows:
    """The model's own item numbers."""
    return np.asarray([int(one[1:]) for one in ids], np.int32)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with indexes, and a snapshot in which the items stand the other way round, ten of them not."""
    folder = tmp_path_factory.mktemp("bundle")
    (folder / "model").mkdir()
    write_sources(folder / "model")
    asked = [query(list(range(at, at + 200, 40))) for at in range(200)]
    assert write_indexes(folder / "model", rows_of, ITEMS, asked, at_least=LARGE) == [
        "two_tower", "als", "session", "content",
    ]  # fmt: skip
    features = FeatureSet(load_app(APPS / "media").features)
    write_manifest(folder / "model", ModelManifest("m1", "media", 0.0, (), features.fingerprint()))
    ids = IDS[::-1][10:].tolist()
    columns = {"title": np.asarray([b""] * len(ids))}
    write_base(folder / "snapshot", ids, columns, version="s1", spare=5)
    return folder


@pytest.fixture(scope="module")
def app() -> App:
    return load_app(APPS / "media")


@pytest.fixture(scope="module")
def serving(app: App, made: Path) -> Serving:
    return load_serving(app, made / "model", made / "snapshot")


def visitor(snapshot: ItemSnapshot, at: int) -> Query:
    """Somebody who likes one of the centres."""
    ids = [f"i{item:04}" for item in range(at, at + 240, 40)]
    rows = snapshot.rows(ids)
    return query(rows.tolist(), exclude=tuple(rows.tolist()))


@pytest.mark.parametrize("name", ["two_tower", "als", "session", "content"])
def test_what_is_found_is_what_comparing_all_finds(serving: Serving, name: str) -> None:
    """Nearly all of it, with the same scores, over the snapshot's rows; what it lacks is not offered."""
    assert not [one for one in serving.problems if "index" in one or "about" in one]
    source: Any = serving.sources[name]
    assert isinstance(source.index, FaissVectorIndex)
    exact = replace(source, index=None, **({"_newest": []} if name == "session" else {}))
    shares = []
    for at in range(60):
        asked = visitor(serving.snapshot, at)
        found, wanted = source.retrieve(asked, 50), exact.retrieve(replace(asked), 50)
        assert not np.isin(found.rows, asked.exclude).any()
        assert (found.rows < serving.snapshot.size).all()
        assert (found.rows >= 0).all()
        shares.append(len(np.intersect1d(found.rows, wanted.rows)) / len(wanted.rows))
        known = dict(zip(wanted.rows.tolist(), wanted.scores.tolist(), strict=True))
        both = [
            (score, known[row])
            for row, score in zip(found.rows.tolist(), found.scores, strict=True)
            if row in known
        ]
        assert np.ptp(np.asarray(both), axis=1).max() < 0.1
    assert np.mean(shares) >= RECALL


def test_likelihoods_of_a_session_are_estimated_closely(serving: Serving) -> None:
    """For any rows: exact sums over the likeliest, a sample for all others."""
    source: Any = serving.sources["session"]
    exact = replace(source, index=None, _newest=[])
    rows = np.arange(0, serving.snapshot.size, 37, dtype=np.int32)
    for at in range(20):
        asked = visitor(serving.snapshot, at)
        assert source.score(asked, rows) == pytest.approx(exact.score(replace(asked), rows), abs=0.1)
        again = replace(asked)
        offered = source.retrieve(again, 30)
        assert source.score(again, offered.rows) == pytest.approx(offered.scores, abs=0.02)


def test_a_small_source_has_no_index(tmp_path: Path) -> None:
    """It stays exact."""
    write_sources(tmp_path)
    assert write_indexes(tmp_path, rows_of, ITEMS, [], at_least=ITEMS + 1) == []
    assert {path.suffix for path in tmp_path.iterdir()} == {".npz"}


@pytest.mark.parametrize("file", index_files("als"))
@pytest.mark.parametrize("how", ["damaged", "absent"])
def test_a_damaged_index_is_named_and_all_is_compared(
    app: App, made: Path, tmp_path: Path, file: str, how: str
) -> None:
    """The source and all others serve on."""
    folder = Path(shutil.copytree(made, tmp_path / "copy"))
    path = folder / "model" / file
    path.write_bytes(path.read_bytes()[:-1]) if how == "damaged" else path.unlink()
    serving = load_serving(app, folder / "model", folder / "snapshot")
    assert "als.about.json" in serving.problems
    sources: dict[str, Any] = dict(serving.sources)
    assert sources["als"].index is None
    assert sources["two_tower"].index is not None
    assert len(sources["als"].retrieve(visitor(serving.snapshot, 3), 20).rows) == 20


def test_an_item_that_comes_later_is_found_by_the_index(app: App, made: Path, tmp_path: Path) -> None:
    """Its vector is made of its text, and goes into the index of the process."""
    ids, folder = [*IDS.tolist(), "new"], tmp_path / "later"
    columns = {"title": np.asarray([b""] * ITEMS + [b"red shoes"])}
    write_base(folder, ids, columns, version="s2", spare=0)
    serving = load_serving(app, made / "model", open_base(folder))
    source: Any = serving.sources["content"]
    found = source.index.search(source.vectors[ITEMS], 1)
    assert found.rows.tolist() == [[ITEMS]] or found.scores[0, 0] == pytest.approx(1.0, abs=1e-3)
    assert len(source.index) == ITEMS + 1


@pytest.mark.parametrize("name", ["two_tower", "content"])
def test_an_item_about_which_something_else_is_written_moves(
    app: App, made: Path, tmp_path: Path, name: str
) -> None:
    """By the next delta, in the table and in the index of the process; where it is sold stays known."""
    columns = {
        "text": np.asarray([b""] * ITEMS, "S9"),
        "text_mark": np.full(ITEMS, np.nan),
        "regions": np.ones((ITEMS, 1), np.int32),
    }
    words = {"regions": ("US", "DE")}
    write_base(tmp_path / "s", IDS.tolist(), columns, version="s", spare=1, vocabularies=words)
    serving = load_serving(app, made / "model", tmp_path / "s")
    before: Any = serving.sources[name]
    old = before.vectors[[7, 8]].copy()
    new = {**columns, "text": [b"red shoes"], "text_mark": text_marks(["red shoes"])}
    delta = {**new, "text": np.asarray(new["text"]), "regions": np.ones((1, 1), np.int32)}
    write_delta(tmp_path / "d.npz", serving.snapshot, ["i0007"], delta, version="t", vocabularies=words)
    sources, problems = with_newest(serving.sources, serving.snapshot.apply(tmp_path / "d.npz"))
    source: Any = sources[name]
    assert problems == {}
    assert np.array_equal(source.vectors[8], old[1])
    assert np.abs(source.vectors[7] - old[0]).max() > 0.01
    if name == "two_tower":
        assert source.vectors[7] - old[0] == pytest.approx(
            source.network.embed(np.asarray([-1]), ["red shoes"])[0], abs=0.01
        )
    for region, there in (("DE", True), ("US", False)):
        found = source.index.search(source.vectors[7], 3, Where({"region": frozenset({region})}))
        assert (7 in found.rows[0].tolist()) is there
    exact = source.index.search(source.vectors[7], 300)
    assert exact.scores[0][exact.rows[0] == 7] == pytest.approx(
        source.vectors[7] @ source.vectors[7], abs=0.02
    )


@pytest.mark.parametrize("name", ["two_tower", "content"])
def test_a_deleted_item_is_found_no_more_until_it_is_back(
    app: App, made: Path, tmp_path: Path, name: str
) -> None:
    """In the index of the process; whoever chose it is still known by it."""
    columns = {
        "text": np.asarray([b""] * ITEMS, "S9"),
        "text_mark": np.full(ITEMS, np.nan),
        "deleted": np.zeros(ITEMS, np.bool_),
    }
    write_base(tmp_path / "s", IDS.tolist(), columns, version="s", spare=1)
    serving = load_serving(app, made / "model", tmp_path / "s")
    source: Any = serving.sources[name]
    vector = source.vectors[7].copy()
    assert 7 in source.index.search(vector, 300).rows[0]

    def change(version: str, text: str, *, gone: bool) -> None:
        nonlocal serving
        said = {
            "text": np.asarray([text.encode()]),
            "text_mark": text_marks([text]),
            "deleted": np.asarray([gone]),
        }
        write_delta(tmp_path / f"{version}.npz", serving.snapshot, ["i0007"], said, version=version)
        snapshot = serving.snapshot.apply(tmp_path / f"{version}.npz")
        sources, _ = with_newest(serving.sources, snapshot)
        serving = replace(serving, snapshot=snapshot, sources=sources)

    change("t", "", gone=True)
    assert 7 not in source.index.search(vector, 300).rows[0]
    assert np.array_equal(source.vectors[7], vector)
    exact = replace(source, index=None)
    assert 7 not in exact.retrieve(query([7]), ITEMS).rows
    assert 8 in exact.retrieve(query([7]), ITEMS).rows
    again = load_serving(app, made / "model", serving.snapshot).sources[name]
    assert 7 not in again.index.search(vector, 300).rows[0]  # type: ignore[attr-defined]
    change("u", "red shoes", gone=False)
    assert 7 in source.index.search(source.vectors[7], 3).rows[0]
    assert 7 in exact.retrieve(query([7]), ITEMS).rows


def sold(folder: Path, codes: Sequence[int]) -> ItemSnapshot:
    """The catalogue in which item `i` is sold in the region of that code, -1 for everywhere."""
    columns = {"title": np.asarray([b""] * ITEMS), "regions": np.asarray(codes, np.int32)[:, None]}
    words = {"regions": ("US", "DE")}
    write_base(folder, IDS.tolist(), columns, version=folder.name, spare=0, vocabularies=words)
    return open_base(folder)


@pytest.mark.parametrize("name", ["two_tower", "als", "session", "content"])
def test_what_is_sold_in_one_region_of_ten_is_found_there(
    app: App, made: Path, tmp_path: Path, name: str
) -> None:
    """The whole quota, by chance here and there at first, then in a part of the clusters alone."""
    items, drawn = np.arange(ITEMS), np.random.default_rng(6).random(ITEMS)
    before = np.where(drawn < 0.05, -1, np.where(drawn < 0.1, 1, 0))
    after = np.where(items % 10 == 3, 1, 0)
    sources = load_serving(app, made / "model", sold(tmp_path / "s1", before.tolist())).sources
    later = sold(tmp_path / "s2", after.tolist())
    for theirs, codes in ((sources, before), (with_regions(sources, later), after)):
        source: Any = theirs[name]
        exact = replace(source, index=None, **({"_newest": []} if name == "session" else {}))
        inside = codes != 0
        found = 0
        for at in range(20):
            asked = replace(visitor(later, at), sold_in="DE", passes=lambda rows, of=inside: of[rows])
            ours, best = source.retrieve(asked, 30), exact.retrieve(replace(asked), ITEMS)
            wanted = best.rows[inside[best.rows]][:30]
            assert len(ours.rows) == len(wanted) == 30
            found += len(np.intersect1d(ours.rows, wanted))
        assert found >= (RECALL - 0.03) * 20 * 30  # of twenty visitors only


def test_rows_are_renumbered_and_lost_ones_are_gone(made: Path) -> None:
    """A search gives the new rows; changes afterwards are by the new rows."""
    rows = np.where(np.arange(ITEMS) < 100, -1, np.arange(ITEMS) + 7)
    index = bound_index(made / "model", "als", rows)
    assert len(index) == ITEMS - 100
    wanted = vectors(2)[[500]]
    (best,) = index.search(wanted, 3).rows.tolist()
    exact = MemoryVectorIndex("v", DIMENSION)
    exact.upsert(rows[100:].astype(np.int32), vectors(2)[100:])
    assert best == exact.search(wanted, 3).rows[0].tolist()
    index.delete(np.asarray(best[:1], np.int32))
    assert index.search(wanted, 2).rows[0].tolist() == best[1:]
    index.upsert(np.asarray([best[0]], np.int32), wanted * 2)
    assert index.search(wanted, 1).rows[0].tolist() == best[:1]


@pytest.mark.parametrize("seed", range(5))
def test_co_visitation_of_a_large_catalogue_is_that_of_a_small_one(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a number stands for each row or for those alone that occur: the same rows and signals."""
    rng = np.random.default_rng(seed)
    offsets = np.append(0, rng.integers(0, 6, 50).cumsum())
    neighbours = rng.integers(0, 50, offsets[-1]).astype(np.int32)
    strengths = rng.random(offsets[-1]).astype(np.float32)
    links = covisitation.CovisitationSource(offsets, neighbours, strengths, 50, covisitation.Params())
    for _ in range(20):
        history = rng.integers(0, 60, rng.integers(0, 9)).tolist()
        asked = query(history, exclude=tuple(rng.integers(0, 50, 5).tolist()))
        rows = rng.permutation(60)[: rng.integers(0, 30)].astype(np.int32) - 3
        monkeypatch.setattr(covisitation, "SPARSE_ABOVE", 100)
        small, signals = links.retrieve(asked, 7), links.signals(asked, rows)
        monkeypatch.setattr(covisitation, "SPARSE_ABOVE", 10)
        large = links.retrieve(asked, 7)
        assert (small.rows.tolist(), small.scores.tolist()) == (large.rows.tolist(), large.scores.tolist())
        assert np.array_equal(signals, links.signals(asked, rows), equal_nan=True)
