"""Ranking metrics of held-out items; the mean over nobody is nan, not zero."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ranks = NDArray[np.int64]
Values = NDArray[np.float64]
GAIN = "normalized_discounted_cumulative_gain_at_{}"
MAIN = GAIN.format(10)


def hit_at(ranks: Ranks, k: int) -> Values:
    """1 where the one relevant item stands among the first `k`; ranks count from 0, -1 is not found."""
    return ((ranks >= 0) & (ranks < k)).astype(np.float64)


def gain_at(ranks: Ranks, k: int) -> Values:
    """The normalised discounted cumulative gain with one relevant item: 1 / log2(rank + 2), 0 past `k`."""
    return hit_at(ranks, k) / np.log2(np.maximum(ranks, 0) + 2.0)


def reciprocal_rank_at(ranks: Ranks, k: int) -> Values:
    """1 over the rank from 1, 0 past `k`."""
    return hit_at(ranks, k) / (np.maximum(ranks, 0) + 1.0)


def mean(values: Values) -> float:
    """The mean; nan over nobody."""
    return float(values.mean()) if len(values) else float("nan")


def coverage(slates: Sequence[NDArray[np.int32]], items: int, k: int = 10) -> float:
    """The share of the catalogue that stands among the first `k` of somebody; nan for an empty catalogue."""
    if not items:
        return float("nan")
    shown = np.unique(np.concatenate([np.empty(0, np.int32), *(slate[:k] for slate in slates)]))
    return len(shown) / items


def interval(values: Values, generator: np.random.Generator, *, samples: int = 500) -> tuple[float, float]:
    """The 95% bootstrap interval of the mean over users; nan over nobody."""
    if not len(values):
        return float("nan"), float("nan")
    means = [values[generator.integers(0, len(values), len(values))].mean() for _ in range(samples)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def summary(ranks: Ranks) -> dict[str, float]:
    """Every metric by its long name, means over the users."""
    found = {f"hit_at_{k}": mean(hit_at(ranks, k)) for k in (5, 10, 25, 100)}
    found |= {GAIN.format(k): mean(gain_at(ranks, k)) for k in (5, 10, 25)}
    found["mean_reciprocal_rank_at_25"] = mean(reciprocal_rank_at(ranks, 25))
    found |= {f"precision_at_{k}": mean(hit_at(ranks, k) / k) for k in (5, 10, 25)}
    return found


def report(
    ranks: Ranks, slates: Sequence[NDArray[np.int32]], items: int, generator: np.random.Generator
) -> dict[str, object]:
    """The summary with coverage and the interval of the main metric; what cannot be computed is None."""
    low, high = interval(gain_at(ranks, 10), generator)
    numbers = {**summary(ranks), "coverage": coverage(slates, items)}
    return {
        **finite(numbers),
        "users": len(ranks),
        f"{MAIN}_interval": finite([low, high]),
    }


def finite(value: Any) -> Any:
    """The value, a number or mappings and lists of them, None for nan and infinities: JSON has neither."""
    if isinstance(value, Mapping):
        return {str(key): finite(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [finite(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
