"""The batches that the session transformer learns from: windows of histories, each event predicted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from narrows.interactions import Interactions
from sagemaker_jobs.optimiser import Batch
from sagemaker_jobs.softmax import Sampler

SHORTEST = 4


@dataclass(frozen=True, eq=False)
class Windows:
    """The histories of `log` over items coded by `codes` int32[item_count], cut after `length` events."""

    log: Interactions
    codes: NDArray[np.int32]
    length: int
    sampler: Sampler

    def epoch(self, number: int, *, positions: int, seed: int) -> Iterator[Batch]:
        """Every event once, in a drawn order: items [w, t], targets [w, t], worth [w, t], drawn [s].

        `w * t` is at most `positions`, but for a single window. Where a long history is cut is drawn anew in
        each epoch, so that no event always stands at the beginning of a window. Padding is worth nothing.
        """
        generator = np.random.default_rng([seed, number])
        begins, ends = self.cut(generator)
        batches = []
        lengths = self.lengths()
        bucket = np.searchsorted(lengths, ends - begins)
        for place, length in enumerate(lengths):
            chosen = generator.permutation(np.flatnonzero(bucket == place))
            rows = max(1, positions // length)
            batches += [(chosen[at : at + rows], length, rows) for at in range(0, len(chosen), rows)]
        for place in generator.permutation(len(batches)):
            chosen, length, rows = batches[place]
            yield self._batch(begins[chosen], ends[chosen], length, rows, generator)

    def lengths(self) -> list[int]:
        """The lengths that batches have, ascending: one for all, and the shorter that spares most padding.

        They are few because each is compiled, which takes seconds.
        """
        counts = np.maximum(np.diff(self.log.per_user()) - 1, 0)
        short = counts[counts <= self.length]
        longest = self.length if (counts > self.length).any() else int(short.max(initial=1))
        halves = [longest // 2**power for power in range(1, 12) if longest // 2**power >= SHORTEST]
        spared = [int((short <= half).sum()) * (longest - half) for half in halves]
        return [halves[int(np.argmax(spared))], longest] if max(spared, default=0) else [longest]

    def cut(self, generator: np.random.Generator) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(begins, ends) of windows over the events that have a successor in their history."""
        offsets = self.log.per_user()
        counts = np.maximum(np.diff(offsets) - 1, 0)
        first = np.where(counts > self.length, generator.integers(1, self.length + 1, len(counts)), counts)
        pieces = np.where(counts > 0, 1 + -(-(counts - first) // self.length), 0)
        owner = np.repeat(np.arange(len(counts)), pieces)
        piece = np.arange(len(owner)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        begins = offsets[owner] + np.where(piece > 0, first[owner] + (piece - 1) * self.length, 0)
        ends = np.minimum(offsets[owner] + first[owner] + piece * self.length, offsets[owner] + counts[owner])
        return begins, ends

    def _batch(
        self,
        begins: NDArray[np.int64],
        ends: NDArray[np.int64],
        length: int,
        rows: int,
        generator: np.random.Generator,
    ) -> Batch:
        at = begins[:, None] + np.arange(length)
        there = at < ends[:, None]
        at = np.where(there, at, 0)
        items = np.where(there, self.codes[self.log.items[at]], 0)
        targets = np.where(there, self.codes[self.log.items[np.where(there, at + 1, 0)]], 0)
        worth = np.where(there, self.log.weights[np.where(there, at + 1, 0)] / self.log.weights.mean(), 0.0)
        missing = [(0, rows - len(begins)), (0, 0)]
        arrays = (items.astype(np.int32), targets.astype(np.int32), worth.astype(np.float32))
        return (*(np.pad(one, missing) for one in arrays), self.sampler.draw(generator))
