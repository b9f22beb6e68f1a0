"""A transformer over the visitor's last items: what comes next in a session like this."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from narrows.networks import Weights, session_state
from narrows.retrieval import Floats, Query, Retrieved, Rows
from narrows.sources.rows import NOTHING, RowsOf, best, known, load_arrays, look_up, save_arrays, scatter

FILE = "session.npz"
SIGNALS = ("score",)
WEIGHT = "weight:"


@dataclass(frozen=True)
class Params:
    """The shape of the network, which reads the last `window` items at most."""

    dimension: int = 64
    blocks: int = 2
    heads: int = 2
    window: int = 100


@dataclass(frozen=True, eq=False)
class Session:
    """`items` float32[items, d]: what an item is as a part of a history, and as what comes next."""

    item_ids: NDArray[Any]
    items: Floats
    weights: Mapping[str, Floats]
    params: Params

    def save(self, path: Path) -> None:
        """Write one `.npz`."""
        named = {f"{WEIGHT}{name}": values for name, values in self.weights.items()}
        save_arrays(path, {"item_ids": self.item_ids, "items": self.items, **named}, self.params)

    def bind(self, rows_of: RowsOf, size: int) -> SessionSource:
        """The source that serves it over a snapshot of `size` rows; items without a row are not offered."""
        rows = rows_of(self.item_ids.tolist())
        held = np.flatnonzero((rows >= 0) & (rows < size)).astype(np.int32)
        places = scatter(rows[held], np.arange(len(held), dtype=np.int32), size, -1)
        return SessionSource(self.items[held], rows[held], places, self.weights, self.params)


def load(path: Path) -> Session:
    """Read what `save` wrote."""
    arrays, params = load_arrays(path, ("item_ids", "items", f"{WEIGHT}last.norm"))
    weights = {
        name.removeprefix(WEIGHT): values for name, values in arrays.items() if name.startswith(WEIGHT)
    }
    return Session(arrays["item_ids"], arrays["items"], weights, Params(**params))


@dataclass(frozen=True, eq=False)
class SessionSource:
    """Serves whoever has an item in the history that the model knows.

    `rows` int32[items] has the row of each of the model's items, `places` int32[size] the item of each row,
    -1 for none.
    """

    items: Floats
    rows: Rows
    places: Rows
    weights: Weights
    params: Params
    name: str = "session"
    signal_names: tuple[str, ...] = SIGNALS
    _newest: list[tuple[Query, Floats]] = field(default_factory=list)

    def retrieve(self, query: Query, quota: int) -> Retrieved:
        """The likeliest next items, with the logarithms of their likelihoods."""
        scores = self._scores(query)
        if scores is None:
            return NOTHING
        excluded = self.places[known(query.exclude, len(self.places))]
        found = best(scores.copy(), quota, excluded)
        return Retrieved(self.rows[found.rows], found.scores)

    def score(self, query: Query, rows: Rows) -> Floats:
        """The same for given rows; nan for unknown rows and for a visitor without a known item."""
        scores = self._scores(query)
        if scores is None:
            return np.full(len(rows), np.nan, np.float32)
        places = look_up(self.places, rows, -1)
        return np.where(places >= 0, scores[places], np.nan).astype(np.float32)

    def signals(self, query: Query, rows: Rows) -> Floats:
        """float32[n, 1]: the score."""
        return self.score(query, rows)[:, None]

    def _scores(self, query: Query) -> Floats | None:
        """The logarithm of each item's likelihood, float32[items]; the seeds stand after the history.

        A request asks twice, as a source and for the ranker: the newest answer is kept for the second time.
        """
        for asked, scores in self._newest[:1]:
            if asked is query:
                return scores
        history = np.concatenate([query.history, query.seeds])[-self.params.window :]
        places = look_up(self.places, history, -1)
        places = places[places >= 0]
        if not len(places):
            return None
        logits = self.items @ session_state(self.weights, self.items[places], np)
        top = logits.max()
        scores = np.asarray(logits - (top + np.log(np.exp(logits - top).sum())), np.float32)
        self._newest[:1] = [(query, scores)]
        return scores
