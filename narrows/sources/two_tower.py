"""Two towers: a network that reads a visitor's history meets item vectors by inner product.

The user network reads the vectors of the last items and what segment the visitor is of, never a user's id, so
that whoever came a click ago is served like anyone. The item network reads an id and what is written about
the item, so that an item of today has a vector without training.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from narrows.networks import Weights, item_vectors, user_vectors
from narrows.retrieval import Floats, Query, Retrieved, Rows
from narrows.sources.rows import (
    NOTHING,
    PlacedVectors,
    RowsOf,
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
class ItemNetwork:
    """What makes the vectors of items; `ids` float16[items, d] is what it knows of one besides its text."""

    ids: NDArray[np.float16]
    weights: Weights
    encoder: TextEncoder

    def reading(self, configured: TextEncoder | None) -> ItemNetwork:
        """The same with the app's encoder, where it is the one that made the vectors."""
        return replace(self, encoder=found_encoder(self.encoder, configured))

    def embed(self, items: Rows, texts: Sequence[str]) -> Floats:
        """float32[n, d]: the vectors of items by number, from what is written about them now.

        -1 is an item that was not trained on. What is not known at all has a vector of zeros.
        """
        ids = look_up(self.ids, items, 0.0).astype(np.float32)
        return np.asarray(item_vectors(self.weights, ids, self.encoder.encode(texts)), np.float32)


@dataclass(frozen=True, eq=False)
class TwoTower:
    """`vectors` float32[items, d] are the item network's, zero rows for items it knows nothing about.

    They were made of `ids` float16[items, d], and of texts that had the `marks` float64[items]
    (`text_vectors.text_marks`). `segments` float32[s, d] stand for the visitors of `segment_names`; `encoder`
    reads what is written about items that come later.
    """

    item_ids: NDArray[Any]
    vectors: Floats
    ids: NDArray[np.float16]
    marks: NDArray[np.float64]
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
            "ids": self.ids,
            "marks": self.marks,
            "segment_names": self.segment_names,
            "segments": self.segments,
        }
        named = {f"{WEIGHT}{name}": values for name, values in self.weights.items()}
        save_arrays(path, {**arrays, **encoder_arrays(self.encoder), **named}, self.params)

    @property
    def network(self) -> ItemNetwork:
        """The item network alone."""
        return ItemNetwork(self.ids, self.weights, self.encoder)

    def reading(self, configured: TextEncoder | None) -> TwoTower:
        """The same with the app's encoder, where it is the one that made the vectors."""
        return replace(self, encoder=found_encoder(self.encoder, configured))

    def bind(self, rows_of: RowsOf, size: int) -> TwoTowerSource:
        """The source that serves it over a snapshot of `size` rows, comparing every item."""
        rows = rows_of(self.item_ids.tolist())
        held = np.abs(self.vectors).sum(axis=1) > 0
        table = scatter(np.where(held, rows, -1), self.vectors, size, np.nan)
        placed = PlacedVectors(table, scatter(rows, self.marks, size, np.nan))
        items = scatter(rows, np.arange(len(rows), dtype=np.int32), size, -1)
        names = self.segment_names.tolist()
        segments = dict(zip(names, self.segments, strict=True))
        return TwoTowerSource(placed, self.network, items, segments, self.params)


def load(path: Path) -> TwoTower:
    """Read what `save` wrote."""
    names = ("item_ids", "vectors", "ids", "marks", "segment_names", "segments")
    arrays, params = load_arrays(path, (*names, f"{WEIGHT}user.places", f"{WEIGHT}item.content"))
    items, vectors, ids, marks, segment_names, segments = (arrays[name] for name in names)
    of_items = (items, vectors, ids, marks)
    of_texts = (_weights(arrays), kept_encoder(arrays, path))
    return TwoTower(*of_items, segment_names, segments, *of_texts, Params(**params))


def load_items(path: Path) -> tuple[NDArray[Any], ItemNetwork]:
    """(ids of the items by number, their network) of what `save` wrote, without most of it."""
    needed = ("item_ids", "ids", f"{WEIGHT}item.content")
    arrays, _ = load_arrays(path, needed, unread=("vectors", "marks"))
    return arrays["item_ids"], ItemNetwork(arrays["ids"], _weights(arrays), kept_encoder(arrays, path))


def _weights(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Floats]:
    return {name.removeprefix(WEIGHT): values for name, values in arrays.items() if name.startswith(WEIGHT)}


@dataclass(frozen=True, eq=False)
class TwoTowerSource:
    """Serves whoever has a history or is of a known segment.

    `items` int32[size] has the network's number of the item of each row, -1 for none. Without an `index`
    every row is compared; an index holds the same vectors by row.
    """

    placed: PlacedVectors
    network: ItemNetwork
    items: Rows
    segments: Mapping[str, Floats]
    params: Params
    index: VectorIndex | None = None
    name: str = "two_tower"
    signal_names: tuple[str, ...] = SIGNALS

    def searching(self, index: VectorIndex) -> TwoTowerSource:
        """The same over an index that holds its vectors."""
        return replace(self, index=index)

    @property
    def vectors(self) -> Floats:
        """float32[size, d], nan where a row has none."""
        return self.placed.vectors

    @property
    def encoder(self) -> TextEncoder:
        """What reads the texts."""
        return self.network.encoder

    def place(self, rows: Rows, texts: Sequence[str]) -> None:
        """Give each row the vector that its id and its text say; the index gets it too."""
        self.placed.write(
            rows, texts, lambda those, said: self.network.embed(self.items[those], said), self.index
        )

    def take_out(self, rows: Rows) -> None:
        """Offer these no more; who chose one is still known by it."""
        self.placed.take_out(rows, self.index)

    def retrieve(self, query: Query, quota: int) -> Retrieved:
        """The rows with the highest inner products with the visitor's vector."""
        visitor = self.visitor(query)
        if visitor is None:
            return NOTHING
        return nearest(self.vectors, visitor, quota, query, self.index, out=self.placed.taken_out)

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
        return np.asarray(user_vectors(self.network.weights, padded, profile, np), np.float32)

    def _recent(self, query: Query) -> Floats:
        """The vectors of the last items that have one, the newest last; seeds stand after the history."""
        items = np.concatenate([query.history, query.seeds])[-2 * self.params.history :]
        vectors: Floats = look_up(self.vectors, items, np.nan)
        return vectors[~np.isnan(vectors[:, 0])][-self.params.history :]
