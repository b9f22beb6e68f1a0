"""Places of a slate that are kept for items nobody knows yet, so that they can earn their standing."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from narrows.ranking import Ranked
from narrows.reranking import NO_POSITIONS, Caps, Positions, diversify
from narrows.settings import Exploration, Surface

Chances = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Arranged:
    """The slate: `order`, positions in what was ranked, and the propensity of each.

    `explored` of them were drawn, `relaxed` are there in spite of a cap. A propensity is the chance of that
    draw given those before it, and 1 for what was not drawn: their product is the chance of the whole slate.
    """

    order: Positions
    propensities: Chances
    explored: int
    relaxed: int


def arrange(ranked: Ranked, surface: Surface, limit: int, *, now: float, seed: str) -> Arranged:
    """Choose for relevance and variety; some of them give way to drawn new items, which are spread evenly.

    What is in the slate by merit is not drawn. A slate of fewer items than the surface shows has fewer such
    places, in proportion. The same `seed`, which is the identity of the request, draws the same items again.
    """
    count = min(limit, len(ranked.rows))
    merit = diversify(ranked, surface.diversity, count)
    slots = surface.exploration.slots * count // surface.limit
    strength = _strength(ranked, surface.exploration, now) if slots else np.empty(0)
    strength[merit.order if slots else NO_POSITIONS] = -np.inf
    if not np.isfinite(strength).any():
        return Arranged(merit.order, np.ones(count), 0, merit.relaxed)
    caps, head = Caps.of(ranked.columns, surface.diversity.caps), merit.order[:1]
    drawn, chances = _drawn(strength, head, slots, caps, seed)
    others, relaxed = _beside(merit.order, head, count - len(drawn), caps)
    at = (np.arange(len(drawn)) + 1) * count // (len(drawn) + 1) - np.arange(len(drawn))
    propensities = np.insert(np.ones(len(others)), at, chances)
    return Arranged(np.insert(others, at, drawn), propensities, len(drawn), relaxed)


def _beside(merit: Positions, head: Positions, count: int, caps: Caps) -> tuple[Positions, int]:
    """(`count` of those by merit, in their order, how many in spite of a cap); the head stays whole."""
    taken: list[int] = head.tolist()
    held_back: list[int] = []
    for position in merit[len(head) :].tolist():
        if caps.full(position):
            held_back.append(position)
        else:
            caps.count(position)
            taken.append(position)
    relaxed = max(0, count - len(taken))
    return np.asarray(taken[: count - relaxed] + held_back[:relaxed], np.intp), relaxed


def _strength(ranked: Ranked, exploration: Exploration, now: float) -> Chances:
    """float64[n]: scores in standard deviations of all new items', over the temperature; -inf for the others.

    New is what was created within `new_for_s`; an item whose time of creation is not known is not.
    """
    strength = np.full(len(ranked.rows), -np.inf)
    if "created_at" in ranked.columns:
        age = now - ranked.columns["created_at"]
        new = np.flatnonzero((age >= 0.0) & (age <= exploration.new_for_s) & np.isfinite(ranked.scores))
        strength[new] = _standard(ranked.scores[new]) / exploration.temperature
    return strength


def _drawn(
    strength: Chances, head: Positions, slots: int, caps: Caps, seed: str
) -> tuple[Positions, Chances]:
    """Up to so many positions, without replacement, each with its chance at its draw.

    That is in proportion to exp(strength) (Boltzmann exploration; Gumbel noise makes the draw). `caps` counts
    the head, which comes before, and what is drawn.
    """
    left, noise = strength.copy(), _random(seed).gumbel(size=len(strength))
    for position in head.tolist():
        caps.count(position, left)
    chosen: list[int] = []
    chances: list[float] = []
    while len(chosen) < slots and np.isfinite(left).any():
        weights = np.exp(left - left.max())
        best = int((left + noise).argmax())
        chosen.append(best)
        chances.append(float(weights[best] / weights.sum()))
        left[best] = -np.inf
        caps.count(best, left)
    return np.asarray(chosen, np.intp), np.asarray(chances, np.float64)


def _standard(scores: NDArray[np.float32]) -> Chances:
    values = scores.astype(np.float64)
    return np.asarray((values - values.mean()) / (values.std() or 1.0)) if len(values) else values


def _random(seed: str) -> np.random.Generator:
    digest = hashlib.blake2b(seed.encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))
