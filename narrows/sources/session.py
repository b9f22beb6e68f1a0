"""A transformer over the visitor's last items: what comes next in a session like this."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from narrows.networks import Weights, session_state, with_biases
from narrows.retrieval import Floats, Passes, Query, Retrieved, Rows, among
from narrows.sources.rows import (
    NOTHING,
    RowsOf,
    allowed,
    best_allowed,
    crowded,
    judging,
    known,
    load_arrays,
    look_up,
    save_arrays,
    scatter,
    searched,
)
from narrows.vector_index import VectorIndex

FILE = "session.npz"
SIGNALS = ("score",)
WEIGHT = "weight:"
SAMPLED = 1024
"""Items by which the sum over all items is estimated, where an index finds the likeliest."""
LIKELIEST = 100


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
        weights = with_biases(self.weights, np)
        return SessionSource(self.items[held], rows[held], places, weights, self.params)


def load(path: Path) -> Session:
    """Read what `save` wrote."""
    arrays, params = load_arrays(path, ("item_ids", "items", f"{WEIGHT}last.norm"))
    weights = {
        name.removeprefix(WEIGHT): values for name, values in arrays.items() if name.startswith(WEIGHT)
    }
    return Session(arrays["item_ids"], arrays["items"], weights, Params(**params))


@dataclass(frozen=True, eq=False)
class _Asked:
    """A request's state, and its logarithm of the sum of all items' exponentials.

    `logits` float32[items] without an index; with one `found`, the rows with the highest.
    """

    query: Query
    state: Floats
    total: float
    logits: Floats | None = None
    found: Retrieved = NOTHING


@dataclass(frozen=True, eq=False)
class SessionSource:
    """Serves whoever has an item in the history that the model knows.

    `rows` int32[items] has the row of each of the model's items, `places` int32[size] the item of each row,
    -1 for none. With an `index`, which holds the items by row, likelihoods are estimated: their sum is that
    of the likeliest items, and for the others what a sample lets expect: `sampled`, every `step`-th item.
    """

    items: Floats
    rows: Rows
    places: Rows
    weights: Weights
    params: Params
    index: VectorIndex | None = None
    step: int = 1
    sampled: Floats = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    name: str = "session"
    signal_names: tuple[str, ...] = SIGNALS
    _newest: list[_Asked] = field(default_factory=list)

    def searching(self, index: VectorIndex) -> SessionSource:
        """The same over an index that holds its items."""
        step = max(1, len(self.items) // SAMPLED)
        sampled = np.ascontiguousarray(self.items[::step])
        return replace(self, index=index, step=step, sampled=sampled, _newest=[])

    def retrieve(self, query: Query, quota: int) -> Retrieved:
        """The likeliest next items, with the logarithms of their likelihoods."""
        asked = self._asked(query, quota)
        if asked is None:
            return NOTHING
        passes = judging(query)
        if asked.logits is None:
            found = self._allowed(query, asked, quota, passes)
            return Retrieved(found.rows, _log_likelihood(found.scores, asked))
        by_place = partial(_passing, passes, self.rows) if passes else None
        excluded = self.places[known(query.exclude, len(self.places))]
        found = best_allowed(asked.logits.copy(), quota, excluded, by_place)
        return Retrieved(self.rows[found.rows], _log_likelihood(found.scores, asked))

    def _allowed(self, query: Query, asked: _Asked, quota: int, passes: Passes | None) -> Retrieved:
        """Of what was found for the sum of all likelihoods; where most of it may not be shown, of others."""
        assert self.index is not None
        kept = np.flatnonzero(~among(asked.found.rows, query.exclude))[:quota]
        found = Retrieved(asked.found.rows[kept], asked.found.scores[kept])
        if passes is None or not crowded(found.rows, passes):
            return found
        return allowed(self.index, asked.state, quota, query)

    def score(self, query: Query, rows: Rows) -> Floats:
        """The same for given rows; nan for unknown rows and for a visitor without a known item."""
        asked = self._asked(query, LIKELIEST)
        if asked is None:
            return np.full(len(rows), np.nan, np.float32)
        places = look_up(self.places, rows, -1)
        logits = (
            self.items.take(places, axis=0) @ asked.state if asked.logits is None else asked.logits[places]
        )
        return np.where(places >= 0, _log_likelihood(logits, asked), np.nan).astype(np.float32)

    def signals(self, query: Query, rows: Rows) -> Floats:
        """float32[n, 1]: the score."""
        return self.score(query, rows)[:, None]

    def visitor(self, query: Query) -> Floats | None:
        """The state after the history, float32[d]; None without an item that the model knows."""
        history = np.concatenate([query.history, query.seeds])[-self.params.window :]
        places = look_up(self.places, history, -1)
        places = places[places >= 0]
        if not len(places):
            return None
        return np.asarray(session_state(self.weights, self.items.take(places, axis=0), np), np.float32)

    def _asked(self, query: Query, quota: int) -> _Asked | None:
        """What the model says of a request; the seeds stand after the history.

        A request asks twice, as a source and for the ranker: the newest answer is kept for the second time.
        """
        for asked in self._newest[:1]:
            if asked.query is query:
                return asked
        state = self.visitor(query)
        if state is None:
            return None
        asked = self._compared(query, state) if self.index is None else self._searched(query, state, quota)
        self._newest[:1] = [asked]
        return asked

    def _compared(self, query: Query, state: Floats) -> _Asked:
        logits = np.asarray(self.items @ state, np.float32)
        top = float(logits.max())
        return _Asked(query, state, top + float(np.log(np.exp(logits - top).sum())), logits)

    def _searched(self, query: Query, state: Floats, quota: int) -> _Asked:
        """All that were not found are summed up by those of the sample that were not."""
        assert self.index is not None
        found = searched(self.index, state, max(quota, LIKELIEST) + len(query.exclude), NOTHING.rows)
        if not len(found.rows):
            return _Asked(query, state, 0.0, found=found)
        top = found.scores[0]
        drawn, places = np.exp(self.sampled @ state - top), self.places.take(found.rows)
        twice = places[places % self.step == 0] // self.step
        drawn[twice] = 0.0
        others = len(drawn) - len(twice)
        rest = float(drawn.sum()) / others * (len(self.items) - len(places)) if others else 0.0
        total = float(np.exp(found.scores - top).sum() + rest)
        return _Asked(query, state, float(top) + float(np.log(total)), found=found)


def _passing(passes: Passes, rows: Rows, places: Rows) -> NDArray[np.bool_]:
    return passes(rows[places])


def _log_likelihood(logits: Floats, asked: _Asked) -> Floats:
    return np.asarray(logits - np.float32(asked.total), np.float32)
