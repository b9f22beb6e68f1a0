"""A start for item embeddings: what stands near each other in histories, factorised.

The positive pointwise mutual information of near events, as word embeddings are made of it (Levy and
Goldberg, 2014). A network that starts here learns in its first epoch what takes it several from noise.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from narrows.interactions import Interactions
from narrows.retrieval import Floats

NEAR = 5
ITEMS_AT_MOST = 10_000
"""Of more, the square table would not fit; they start from noise."""
SPARE_DIRECTIONS, ITERATIONS = 10, 4


def start_vectors(
    events: Interactions,
    codes: NDArray[np.int32],
    items: int,
    dimension: int,
    generator: np.random.Generator,
    *,
    spread: float,
) -> Floats:
    """float32[items, dimension] with the standard deviation `spread`; `codes` gives an item's line.

    A drawn rotation leaves no direction more important than another.
    """
    noise = generator.normal(0.0, spread, (items, dimension)).astype(np.float32)
    if not dimension < items <= ITEMS_AT_MOST:
        return noise
    information = _information(events, codes, items)
    span = generator.normal(size=(items, min(dimension + SPARE_DIRECTIONS, items))).astype(np.float32)
    for _ in range(ITERATIONS):
        span, _ = np.linalg.qr(information @ span)
    _, strengths, directions = np.linalg.svd(span.T @ information, full_matrices=False)
    vectors = directions[:dimension].T * np.sqrt(strengths[:dimension])
    rotation, _ = np.linalg.qr(generator.normal(size=(dimension, dimension)))
    vectors = vectors @ rotation
    known = np.abs(vectors).sum(axis=1, keepdims=True) > 1e-6
    scaled = vectors * (spread / max(float(vectors.std()), 1e-12))
    return np.asarray(np.where(known, scaled, noise), np.float32)


def _information(events: Interactions, codes: NDArray[np.int32], items: int) -> Floats:
    """float32[items, items], symmetric: max(0, log(p(a, b) / p(a) p(b))) of events at most NEAR apart."""
    counts = np.zeros(items * items)
    line = codes[events.items].astype(np.int64)
    for apart in range(1, min(NEAR, len(events) - 1) + 1):
        alike = (events.users[:-apart] == events.users[apart:]) & (line[:-apart] != line[apart:])
        pairs = line[:-apart][alike] * items + line[apart:][alike]
        counts += np.bincount(pairs, minlength=items * items) / apart
    table = counts.reshape(items, items)
    table = table + table.T
    alone = table.sum(axis=1)
    chance = np.maximum(alone[:, None] * alone[None, :], 1e-12)
    return np.asarray(np.log(np.maximum(table * (table.sum() / chance), 1.0)), np.float32)
