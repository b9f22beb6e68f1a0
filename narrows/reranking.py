"""The order in which ranked items are shown: relevance against variety, under caps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from narrows.ranking import Ranked
from narrows.settings import Diversity

TRAITS = ("category_all", "category", "brand")
"""The columns by which two items may be alike; `category` counts only where `category_all` is absent."""

Positions = NDArray[np.intp]
Floats = NDArray[np.float32]
NO_POSITIONS: Positions = np.empty(0, np.intp)


@dataclass(frozen=True, eq=False)
class Diversified:
    """`order`: positions in what was ranked; `relaxed`: the last so many are there in spite of a cap."""

    order: Positions
    relaxed: int


def diversify(ranked: Ranked, diversity: Diversity, limit: int) -> Diversified:
    """Choose `limit` of the ranked, one after the other, by maximal marginal relevance.

    Each choice maximises lambda * score - (1 - lambda) * the highest likeness to what is chosen already, with
    scores scaled to 0..1 (Carbonell, Goldstein 1998); ties keep the ranker's order. Caps bound the items per
    value of a column; where they leave the slate short they are lifted for the rest of it.
    """
    count = min(limit, len(ranked.rows))
    caps = Caps.of(ranked.columns, diversity.caps)
    if count == 0 or (diversity.method == "none" and not caps):
        return Diversified(np.arange(count), 0)
    lambda_ = diversity.lambda_ if diversity.method == "mmr" else 1.0
    traits = _traits(ranked.columns) if lambda_ < 1.0 else np.zeros((len(ranked.rows), 0), np.float32)
    relevance = _scaled(ranked.scores) * np.float32(lambda_)
    return _choose(relevance, traits, np.float32(1.0 - lambda_), caps, count)


def _choose(relevance: Floats, traits: Floats, weight: np.float32, caps: Caps, count: int) -> Diversified:
    chosen: list[int] = []
    taken = np.zeros(len(relevance), np.bool_)
    closest = np.zeros(len(relevance), np.float32)
    value, relaxed = relevance.copy(), 0
    while len(chosen) < count:
        best = int(value.argmax())
        if value[best] == -np.inf:  # only what a cap holds back is left
            relaxed = count - len(chosen)
            caps, value = Caps(()), relevance - weight * closest
            value[taken] = -np.inf
            continue
        chosen.append(best)
        taken[best] = True
        if traits.shape[1]:
            np.maximum(closest, traits @ traits[best], out=closest)
            held_back = value == -np.inf
            value = relevance - weight * closest
            value[held_back] = -np.inf
        value[best] = -np.inf
        caps.count(best, value)
    return Diversified(np.array(chosen, np.intp), relaxed)


class Caps:
    """Counts the chosen items by value of each capped column, and rules out the rest of a full one."""

    def __init__(self, capped: Sequence[tuple[NDArray[Any], int]]) -> None:
        self._capped = [(codes, most, dict[int, int]()) for codes, most in capped]

    @staticmethod
    def of(columns: Mapping[str, NDArray[Any]], caps: Mapping[str, int]) -> Caps:
        """The caps on such of the columns as there are."""
        return Caps([(columns[name], most) for name, most in caps.items() if name in columns])

    def __bool__(self) -> bool:
        return bool(self._capped)

    def count(self, chosen: int, value: NDArray[Any] | None = None) -> None:
        """Count an item; where that fills a cap, the `value` of all under it becomes -inf."""
        for codes, most, counts in self._capped:
            code = int(codes[chosen])
            if code >= 0:
                counts[code] = counts.get(code, 0) + 1
                if value is not None and counts[code] >= most:
                    value[codes == code] = -np.inf

    def full(self, position: int) -> bool:
        """Whether an item is ruled out by what was counted."""
        return any(counts.get(int(codes[position]), 0) >= most for codes, most, counts in self._capped)


def _scaled(scores: Floats) -> Floats:
    """0..1 from the lowest to the highest score; a score that is not finite counts as the lowest."""
    finite = np.isfinite(scores)
    if not finite.any():
        return np.zeros(len(scores), np.float32)
    low, high = scores[finite].min(), scores[finite].max()
    spread = high - low
    scaled = (np.where(finite, scores, low) - low) / spread if spread > 0 else np.zeros(len(scores))
    return np.asarray(scaled, np.float32)


def _traits(columns: Mapping[str, NDArray[Any]]) -> Floats:
    """float32[n, t] of unit lines, of which a product of two is their likeness, 0 for nothing in common.

    Categories and brand weigh the same; within the categories likeness is the cosine of the two sets.
    """
    used: Sequence[str] = [name for name in TRAITS if name in columns]
    if "category_all" in used:
        used = [name for name in used if name != "category"]
    blocks = [_unit(_one_hot(columns[name])) for name in used]
    if not blocks:
        return np.zeros((len(next(iter(columns.values()), ())), 0), np.float32)
    return np.concatenate(blocks, axis=1) / np.float32(np.sqrt(len(blocks)))


def _one_hot(codes: NDArray[np.int32]) -> Floats:
    wide = codes.reshape(len(codes), -1)
    values, places = np.unique(wide, return_inverse=True)
    hot = np.zeros((len(wide), len(values)), np.float32)
    hot[np.arange(len(wide))[:, None], places.reshape(wide.shape)] = 1.0
    return hot[:, values >= 0]


def _unit(lines: Floats) -> Floats:
    lengths = np.sqrt(lines.sum(axis=1, keepdims=True))
    return np.asarray(lines / np.maximum(lengths, 1.0), np.float32)
