"""Ranking: best first, refused on another fingerprint, and never without an answer for a new item."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from narrows.errors import BundleError, FingerprintMismatch
from narrows.features import statistics
from narrows.features.vectors import VectorSpec
from narrows.interactions import interactions_of
from narrows.ranking import (
    EmbeddedRanker,
    FusionRanker,
    ModelManifest,
    RankRequest,
    read_manifest,
    write_manifest,
)
from narrows.retrieval import Candidates, Query, fuse, merge
from narrows.sources import popular


class Items:
    """Five items with prices."""

    columns: ClassVar[dict[str, np.ndarray[Any, Any]]] = {"price": np.asarray([5, 4, 3, 2, 1], np.float32)}

    def take(self, rows: np.ndarray, names: tuple[str, ...]) -> dict[str, np.ndarray[Any, Any]]:
        """Columns by row."""
        return {name: self.columns[name][rows] for name in names}


class Column:
    """A model that returns one column of its input."""

    def __init__(self, spec: VectorSpec, name: str) -> None:
        self.at, self.feature_count = spec.names.index(name), len(spec.names)

    def predict(self, features: np.ndarray) -> np.ndarray:
        """The column."""
        return features[:, self.at].astype(np.float64)


def rows_by_number(ids: list[str]) -> np.ndarray:
    """Items are named by their row."""
    return np.asarray([int(one) for one in ids], np.int32)


LOG = interactions_of(["a", "a", "b", "b", "c"], ["0", "1", "0", "2", "0"], range(5), catalogue=list("01234"))
SOURCES = {"popular": popular.fit(LOG, popular.Params()).bind(rows_by_number, 5)}
STATISTICS = statistics.fit(LOG, statistics.Params()).bind(rows_by_number, 5)
SPEC = VectorSpec.over(SOURCES, Items())
NOTHING = np.empty(0, np.int32)
QUERY = Query(NOTHING, np.empty(0), np.empty(0, np.float32), NOTHING, 1e6, "feed")
REQUEST = RankRequest({}, {}, QUERY)


def candidates(rows: list[int]) -> Candidates:
    """What `popular` found, in this order."""
    count = len(rows)
    order = np.argsort(rows)
    ranks = np.arange(count, dtype=np.int32)[order]
    return Candidates(
        np.sort(np.asarray(rows, np.int32)), ("popular",), ranks[:, None], np.ones((count, 1), np.float32)
    )


def ranker(name: str = "price.value", fingerprint: str = SPEC.fingerprint()) -> EmbeddedRanker:
    """One that ranks by a column."""
    return EmbeddedRanker(
        Items(), STATISTICS, SOURCES, Column(SPEC, name), SPEC, fingerprint=fingerprint, version="v1"
    )


def test_the_best_come_first_with_their_columns_and_vectors() -> None:
    """Rows, scores, columns and vectors are aligned, in the order of the score."""
    ranked = ranker().rank(REQUEST, candidates([3, 1, 4]), 10)
    assert ranked.rows.tolist() == [1, 3, 4]
    assert ranked.scores.tolist() == [4.0, 2.0, 1.0]
    assert ranked.columns["price"].tolist() == [4.0, 2.0, 1.0]
    assert ranked.features is not None
    assert ranked.features[:, SPEC.names.index("price.value")].tolist() == [4.0, 2.0, 1.0]


def test_only_the_best_fused_candidates_are_scored() -> None:
    """Of more candidates than the limit the ranker scores those that the sources rank highest."""
    ranked = ranker().rank(REQUEST, candidates([4, 3, 0]), 2)
    assert ranked.rows.tolist() == [3, 4]


def test_ties_go_to_the_better_fused_rank_then_the_lower_row() -> None:
    """Equal scores have one order: that of the sources, and without one that of the rows."""
    ranked = ranker("time.hour").rank(REQUEST, candidates([4, 0, 2]), 10)
    assert ranked.rows.tolist() == [4, 0, 2]
    alike = replace(candidates([4, 0, 2]), ranks=np.zeros((3, 1), np.int32))
    assert ranker("time.hour").rank(REQUEST, alike, 10).rows.tolist() == [0, 2, 4]


def test_new_items_and_empty_requests_rank() -> None:
    """An item without statistics is ranked; no candidates give an empty answer."""
    assert ranker().rank(REQUEST, candidates([3, 4]), 10).rows.tolist() == [3, 4]
    assert len(ranker().rank(REQUEST, candidates([]), 10).rows) == 0


def test_another_fingerprint_is_refused() -> None:
    """A model trained on other columns never serves."""
    with pytest.raises(FingerprintMismatch, match="train it again"):
        ranker(fingerprint="0" * 16)


def test_another_width_is_refused() -> None:
    """So is one that reads another number of columns."""
    model = Column(SPEC, "price.value")
    model.feature_count += 1
    with pytest.raises(FingerprintMismatch):
        EmbeddedRanker(Items(), STATISTICS, SOURCES, model, SPEC, fingerprint=SPEC.fingerprint())


def test_a_source_with_other_signals_is_refused() -> None:
    """A source whose signals changed since training would shift the columns."""
    changed = {"popular": replace(SOURCES["popular"], signal_names=("score", "more"))}
    with pytest.raises(FingerprintMismatch, match="popular"):
        EmbeddedRanker(
            Items(), STATISTICS, changed, Column(SPEC, "price.value"), SPEC, fingerprint=SPEC.fingerprint()
        )


def test_fusion_needs_no_model() -> None:
    """Without a model the order is that of the reciprocal ranks."""
    found = merge([("popular", SOURCES["popular"].retrieve(QUERY, 5))])
    ranked = FusionRanker(Items()).rank(REQUEST, found, 2)
    assert ranked.rows.tolist() == fuse(found, 2).rows.tolist() == [0, 1]
    assert ranked.columns["price"].tolist() == [5.0, 4.0]


MANIFEST = ModelManifest("v1", "media", 1.0, SPEC.names, SPEC.fingerprint(), SPEC.to_json())


def test_a_manifest_vouches_for_its_files(tmp_path: Path) -> None:
    """What was written reads back; a changed or missing file is refused."""
    (tmp_path / "als.npz").write_bytes(b"one")
    written = write_manifest(tmp_path, MANIFEST)
    assert read_manifest(tmp_path).files == written.files
    assert VectorSpec.from_json(read_manifest(tmp_path).spec) == SPEC
    (tmp_path / "als.npz").write_bytes(b"two")
    with pytest.raises(BundleError, match=r"als\.npz"):
        read_manifest(tmp_path)
    assert read_manifest(tmp_path, verify=False).version == "v1"


def test_a_missing_manifest_is_named(tmp_path: Path) -> None:
    """A folder without one is no bundle."""
    with pytest.raises(BundleError, match=r"manifest\.json"):
        read_manifest(tmp_path)
