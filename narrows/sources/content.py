"""Content: items that are written about like those that the visitor chose last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

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

FILE = "content.npz"
SIGNALS = ("score", "last")


@dataclass(frozen=True)
class Params:
    """A query asks for the mean of its last `history` items, the k-th last weighing `history_decay**k`."""

    history: int = 10
    history_decay: float = 0.8


@dataclass(frozen=True, eq=False)
class Content:
    """`vectors` float32[items, c] of length one, zero rows for items of which nothing is written.

    `marks` float64[items] are those of the texts that were read.
    """

    item_ids: NDArray[Any]
    vectors: Floats
    marks: NDArray[np.float64]
    encoder: TextEncoder
    params: Params

    def save(self, path: Path) -> None:
        """Write one `.npz`."""
        arrays = {"item_ids": self.item_ids, "vectors": self.vectors, "marks": self.marks}
        save_arrays(path, {**arrays, **encoder_arrays(self.encoder)}, self.params)

    def reading(self, configured: TextEncoder | None) -> Content:
        """The same with the app's encoder, where it is the one that made the vectors."""
        return replace(self, encoder=found_encoder(self.encoder, configured))

    def bind(self, rows_of: RowsOf, size: int) -> ContentSource:
        """The source that serves it over a snapshot of `size` rows, comparing every item."""
        rows = rows_of(self.item_ids.tolist())
        said = np.abs(self.vectors).sum(axis=1) > 0
        table = scatter(np.where(said, rows, -1), self.vectors, size, np.nan)
        marks = scatter(rows, self.marks, size, np.nan)
        return ContentSource(PlacedVectors(table, marks), self.encoder, self.params)


def load(path: Path) -> Content:
    """Read what `save` wrote."""
    arrays, params = load_arrays(path, ("item_ids", "vectors", "marks"))
    encoder = kept_encoder(arrays, path)
    return Content(arrays["item_ids"], arrays["vectors"], arrays["marks"], encoder, Params(**params))


@dataclass(frozen=True, eq=False)
class ContentSource:
    """Serves whoever chose something of which something is written; needs no event of an item."""

    placed: PlacedVectors
    encoder: TextEncoder
    params: Params
    index: VectorIndex | None = None
    name: str = "content"
    signal_names: tuple[str, ...] = SIGNALS

    def searching(self, index: VectorIndex) -> ContentSource:
        """The same over an index that holds its vectors."""
        return replace(self, index=index)

    @property
    def vectors(self) -> Floats:
        """float32[size, c], nan where a row has none."""
        return self.placed.vectors

    def place(self, rows: Rows, texts: Sequence[str]) -> None:
        """Give each row the vector that its text says, or none where it says nothing."""
        self.placed.write(rows, texts, lambda _, said: self.encoder.encode(said), self.index)

    def take_out(self, rows: Rows) -> None:
        """Offer these no more; who chose one is still known by it."""
        self.placed.take_out(rows, self.index)

    def retrieve(self, query: Query, quota: int) -> Retrieved:
        """The rows that are written about most alike."""
        taste = self.visitor(query)
        if taste is None:
            return NOTHING
        return nearest(self.vectors, taste, quota, query, self.index, out=self.placed.taken_out)

    def score(self, query: Query, rows: Rows) -> Floats:
        """The cosine to the mean of the last items."""
        return np.ascontiguousarray(self.signals(query, rows)[:, 0])

    def signals(self, query: Query, rows: Rows) -> Floats:
        """float32[n, 2]: the score, and the cosine to the last item; nan where nothing is written."""
        out = np.full((len(rows), len(SIGNALS)), np.nan, np.float32)
        taste = self.visitor(query)
        if taste is not None:
            vectors = look_up(self.vectors, rows, np.nan)
            out[:, 0] = vectors @ taste
            out[:, 1] = vectors @ self._recent(query)[-1]
        return out

    def visitor(self, query: Query) -> Floats | None:
        """The mean of the last items float32[c], of length one; None where nothing is written about them."""
        recent = self._recent(query)
        if not len(recent):
            return None
        weights = self.params.history_decay ** np.arange(len(recent))[::-1]
        mean = weights @ recent
        return np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-9), np.float32)

    def _recent(self, query: Query) -> Floats:
        items = np.concatenate([query.history, query.seeds])[-self.params.history :]
        vectors: Floats = look_up(self.vectors, items, np.nan)
        return vectors[~np.isnan(vectors[:, 0])]
