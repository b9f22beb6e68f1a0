"""The loss of retrieval: cross-entropy of what came next against the catalogue, whole or sampled.

A sample is corrected by how often each item is expected in it (logQ: Bengio and Senecal, 2008; Yi et al.,
2019); where it holds a row's own item, that place does not count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from narrows.retrieval import Floats

WHOLE_AT_MOST = 10_000
"""Items; above, a step over the whole catalogue costs more than it teaches."""
SAMPLED = 4_096
POPULARITY = 0.75
FAR_BELOW = -1e9


@dataclass(frozen=True, eq=False)
class Sampler:
    """Draws items in proportion to their popularity to the power of 0.75, with repetition.

    `expected` float32[items]: the logarithm of how often each is expected in a sample.
    """

    cumulative: NDArray[np.float64]
    expected: Floats
    size: int

    def draw(self, generator: np.random.Generator) -> NDArray[np.int32]:
        """int32[size]; none where the whole catalogue is compared."""
        found = np.searchsorted(self.cumulative, generator.random(self.size), side="right")
        return np.minimum(found, len(self.cumulative) - 1).astype(np.int32)


def sampler(counts: NDArray[np.int64], *, whole_at_most: int = WHOLE_AT_MOST, size: int = SAMPLED) -> Sampler:
    """The sampler for items with so many events each."""
    share = (counts + 1.0) ** POPULARITY
    share /= share.sum()
    drawn = size if len(counts) > whole_at_most else 0
    with np.errstate(divide="ignore"):
        expected = np.log(share * drawn)
    return Sampler(np.cumsum(share), expected.astype(np.float32), drawn)


def whole(states: Any, items: Any, targets: Any, worth: Any) -> Any:
    """The mean over rows, weighed by `worth` [m], of -log softmax(states [m, d] @ items [n, d].T)."""
    logits = states @ items.T
    return _mean(jax.nn.logsumexp(logits, axis=-1) - _at(logits, targets), worth)


def sampled(states: Any, own: Any, drawn: Any, targets: Any, ids: Any, expected: Any, worth: Any) -> Any:
    """The same over the drawn items' vectors [s, d] and each row's own [m, d].

    `ids` [s] are the drawn items, `expected` [n] what `Sampler` has. A row's own item is there for certain,
    and needs no correction.
    """
    right = (states * own).sum(axis=-1)
    wrong = states @ drawn.T - expected[ids]
    wrong = jnp.where(targets[:, None] == ids, FAR_BELOW, wrong)
    everything = jnp.concatenate([right[:, None], wrong], axis=-1)
    return _mean(jax.nn.logsumexp(everything, axis=-1) - right, worth)


def _at(logits: Any, targets: Any) -> Any:
    return jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]


def _mean(losses: Any, worth: Any) -> Any:
    return (losses * worth).sum() / jnp.maximum(worth.sum(), 1e-9)
