"""Two towers: a network that reads a visitor's history meets item vectors by inner product.

The user network reads the vectors of the last items and what segment the visitor is of, never a user's id, so
that whoever came a click ago is served like anyone. The item network reads an id and what is written about
the item, so that an item of today has a vector without training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from narrows.networks import Weights, item_vectors, user_vectors
from narrows.retrieval import Floats, Query, Retrieved, Rows
from narrows.sources.rows import (
    NOTHING,
    RowsOf,
    fill_missing,
    load_arrays,
    look_up,
    nearest,
    save_arrays,
    scatter,
)
from narrows.text_vectors import TextEncoder, encoder_arrays, found_encoder, kept_encoder
from narrows.vector_index import VectorIndex

FILE = "two_tower.npz"
SIGNALS = ("score", "last")
WEIGHT = "weight:"


@dataclass(frozen=True)
class Params:
    """The shape of the networks: vectors of `dimension`, of the last `history` items, `hidden` units."""

    dimension: int = 128
    history: int = 5
    hidden: int = 256


@dataclass(frozen=True, eq=False)
class TwoTower:
    """`vectors` float32[items, d] are the item network's, zero rows for items it knows nothing about.

    `segments` float32[s, d] stand for the visitors of `segment_names`; `encoder` reads what is written about
    items that come later.
    """

    item_ids: NDArray[Any]
    vectors: Floats
    segment_names: NDArray[Any]
    segments: Floats
    weights: Mapping[str, Floats]
    encoder: TextEncoder
    params: Params

    def save(self, path: Path) -> None:
        """Write one `.npz`."""
        arrays = {
            "item_ids": self.item_ids,
            "vectors": self.vectors,
            "segment_names": self.segment_names,
            "segments": self.segments,
        }
        named = {f"{WEIGHT}{name}": values for name, values in self.weights.items()}
        save_arrays(path, {**arrays, **encoder_arrays(self.encoder), **named}, self.params)

    def embed(self, texts: Sequence[str]) -> Floats:
        """float32[n, d]: the vectors of items that were not trained on, from what is written about them."""
        return _embedded(self.weights, self.encoder, texts)

    def reading(self, configured: TextEncoder | None) -> TwoTower:
        """The same with the app's encoder, where it is the one that made the vectors."""
        return replace(self, encoder=found_encoder(self.encoder, configured))

    def bind(self, rows_of: RowsOf, size: int) -> TwoTowerSource:
        """The source that serves it over a snapshot of `size` rows, comparing every item."""
        rows = rows_of(self.item_ids.tolist())
        placed = np.abs(self.vectors).sum(axis=1) > 0
        table = scatter(np.where(placed, rows, -1), self.vectors, size, np.nan)
        names = self.segment_names.tolist()
        segments = dict(zip(names, self.segments, strict=True))
        return TwoTowerSource(table, segments, self.weights, self.encoder, self.params)


def _embedded(weights: Weights, encoder: TextEncoder, texts: Sequence[str]) -> Floats:
    content = encoder.encode(texts)
    ids = np.zeros((len(texts), weights["item.content"].shape[1]), np.float32)
    return np.asarray(item_vectors(weights, ids, content), np.float32)


def load(path: Path) -> TwoTower:
    """Read what `save` wrote."""
    names = ("item_ids", "vectors", "segment_names", "segments")
    arrays, params = load_arrays(path, (*names, f"{WEIGHT}user.places", f"{WEIGHT}item.content"))
    weights = {
        name.removeprefix(WEIGHT): values for name, values in arrays.items() if name.startswith(WEIGHT)
    }
    encoder = kept_encoder(arrays, path)
    items, vectors, segment_names, segments = (arrays[name] for name in names)
    return TwoTower(items, vectors, segment_names, segments, weights, encoder, Params(**params))


@dataclass(frozen=True, eq=False)
class TwoTowerSource:
    """Serves whoever has a history or is of a known segment.

    `vectors` float32[size, d], nan where a row has none. Without an `index` every row is compared; an index
    holds the same vectors by row.
    """

    vectors: Floats
    segments: Mapping[str, Floats]
    weights: Weights
    encoder: TextEncoder
    params: Params
    index: VectorIndex | None = None
    name: str = "two_tower"
    signal_names: tuple[str, ...] = SIGNALS

    def searching(self, index: VectorIndex) -> TwoTowerSource:
        """The same over an index that holds its vectors."""
        return replace(self, index=index)

    def place(self, rows: Rows, texts: Sequence[str]) -> None:
        """Give each row without a vector the one that its text says; the index gets it too."""
        fill_missing(self.vectors, rows, texts, partial(_embedded, self.weights, self.encoder), self.index)

    def retrieve(self, query: Query, quota: int) -> Retrieved:
        """The rows with the highest inner products with the visitor's vector."""
        visitor = self.visitor(query)
        if visitor is None:
            return NOTHING
        return nearest(self.vectors, visitor, quota, query, self.index)

    def score(self, query: Query, rows: Rows) -> Floats:
        """The inner products for given rows; nan for unknown rows, or where the visitor is unknown."""
        return np.ascontiguousarray(self.signals(query, rows)[:, 0])

    def signals(self, query: Query, rows: Rows) -> Floats:
        """float32[n, 2]: the score, and the cosine to the last item."""
        out = np.full((len(rows), len(SIGNALS)), np.nan, np.float32)
        visitor = self.visitor(query)
        if visitor is None:
            return out
        vectors = look_up(self.vectors, rows, np.nan)
        out[:, 0] = vectors @ visitor
        recent = self._recent(query)
        if len(recent):
            last = recent[-1] / max(float(np.linalg.norm(recent[-1])), 1e-9)
            out[:, 1] = vectors @ last / np.maximum(np.linalg.norm(vectors, axis=1), 1e-9)
        return out

    def visitor(self, query: Query) -> Floats | None:
        """The visitor's vector float32[d]; None without a known item in the history and a known segment."""
        recent, profile = self._recent(query), self.segments.get(query.segment)
        if not len(recent) and profile is None:
            return None
        padded = np.zeros((self.params.history, self.params.dimension), np.float32)
        if len(recent):
            padded[-len(recent) :] = recent
        if profile is None:
            profile = np.zeros(self.params.dimension, np.float32)
        return np.asarray(user_vectors(self.weights, padded, profile, np), np.float32)

    def _recent(self, query: Query) -> Floats:
        """The vectors of the last items that have one, the newest last; seeds stand after the history."""
        items = np.concatenate([query.history, query.seeds])[-2 * self.params.history :]
        vectors: Floats = look_up(self.vectors, items, np.nan)
        return vectors[~np.isnan(vectors[:, 0])][-self.params.history :]
