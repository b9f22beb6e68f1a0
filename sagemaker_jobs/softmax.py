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
FLOAT_BYTES = 4
CACHED_BYTES = 4 * 2**20
"""What is worked on at once, in bytes: about what a core has of its processor's cache."""


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
    share = worth / jnp.maximum(worth.sum(), 1e-9)
    right = (states * items[targets]).sum(axis=-1)
    return _normaliser(states, items, share) - (right * share).sum()


@jax.custom_vjp
def _normaliser(states: Any, items: Any, share: Any) -> Any:
    """The sum over rows, weighed by `share` [m], of log sum exp(states @ items.T).

    A block of rows at a time is multiplied, exponentiated and turned into slopes while it is in the
    processor's cache, so that nothing as large as [m, n] is ever kept: a step takes half as long.
    """
    return _by_blocks(states, items, share)[0]


def _by_blocks(states: Any, items: Any, share: Any) -> tuple[Any, Any]:
    """(the sum, its slopes by each argument)."""
    rows, width = states.shape
    blocks = _block_count(rows, len(items))

    def one(so_far: Any, block: Any) -> Any:
        total, by_items = so_far
        ours, weight = block
        logits = ours @ items.T
        highest = logits.max(axis=-1, keepdims=True)
        raised = jnp.exp(logits - highest)
        mass = raised.sum(axis=-1, keepdims=True)
        found = (highest + jnp.log(mass))[:, 0]
        each = weight[:, None] / mass
        so_far = total + (weight * found).sum(), by_items + raised.T @ (ours * each)
        return so_far, ((raised @ items) * each, found)

    shaped = (states.reshape(blocks, -1, width), share.reshape(blocks, -1))
    nothing = jnp.zeros(()), jnp.zeros_like(items)
    (total, by_items), (by_states, found) = jax.lax.scan(one, nothing, shaped)
    return total, (by_states.reshape(rows, width), by_items, found.reshape(rows))


def _block_count(rows: int, items: int) -> int:
    """How many equal blocks keep each one's logits in the cache."""
    least = -(-rows * items * FLOAT_BYTES // CACHED_BYTES)
    return next(count for count in range(min(least, rows), rows + 1) if rows % count == 0)


def _slopes(slopes: tuple[Any, Any, Any], above: Any) -> tuple[Any, Any, Any]:
    by_states, by_items, by_share = slopes
    return above * by_states, above * by_items, by_share


_normaliser.defvjp(_by_blocks, _slopes)


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


def _mean(losses: Any, worth: Any) -> Any:
    return (losses * worth).sum() / jnp.maximum(worth.sum(), 1e-9)
