"""The batches that the two towers learn from: each event of a history, and the items just before it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from narrows.interactions import Interactions
from sagemaker_jobs.optimiser import Batch
from sagemaker_jobs.softmax import Sampler

UNKNOWN_SEGMENT = 0.5
"""How often a visitor's segment is left out, so that those of whom it is not known are served as well."""


@dataclass(frozen=True, eq=False)
class Positions:
    """The events of `log` that something came before, over items coded from 0 to `items`.

    `codes` int32[item_count] gives an item's code; `segments` int32[user_count] a user's, with
    `segment_count` for none.
    """

    log: Interactions
    codes: NDArray[np.int32]
    items: int
    segments: NDArray[np.int32]
    segment_count: int
    history: int
    sampler: Sampler

    def epoch(self, number: int, *, size: int, seed: int) -> Iterator[Batch]:
        """Every event once, in a drawn order: recent [b, h], targets [b], segments [b], worth [b], drawn [s].

        Places without an item have the code `items`; rows that fill up the last batch are worth nothing.
        """
        generator = np.random.default_rng([seed, number])
        starts = self.log.per_user()[:-1]
        order = generator.permutation(np.flatnonzero(np.arange(len(self.log)) > starts[self.log.users]))
        for begin in range(0, len(order), size):
            yield self._batch(order[begin : begin + size], starts, size, generator)

    def _batch(
        self, at: NDArray[np.int64], starts: NDArray[np.int64], size: int, generator: np.random.Generator
    ) -> Batch:
        users = self.log.users[at]
        before = at[:, None] - np.arange(self.history, 0, -1)
        there = before >= starts[users][:, None]
        recent = np.where(there, self.codes[self.log.items[np.maximum(before, 0)]], self.items)
        told = generator.random(len(at)) >= UNKNOWN_SEGMENT
        segments = np.where(told, self.segments[users], self.segment_count)
        worth = self.log.weights[at] / self.log.weights.mean()
        rows = (recent.astype(np.int32), self.codes[self.log.items[at]], segments.astype(np.int32), worth)
        missing = size - len(at)
        padded = (np.pad(one, [(0, missing)] + [(0, 0)] * (one.ndim - 1)) for one in rows)
        return (*padded, self.sampler.draw(generator))
