"""Places of a slate that are kept for items nobody knows yet, so that they can earn their standing."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from narrows.ranking import Ranked
from narrows.reranking import Caps, Positions, diversify
from narrows.settings import Exploration, Surface

Chances = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Explored:
    """`chosen`: positions in what was ranked; `propensities`: the chance of each when it was drawn."""

    chosen: Positions
    propensities: Chances


@dataclass(frozen=True, eq=False)
class Arranged:
    """The slate: `order`, positions in what was ranked, and the propensity of each.

    `explored` of them were drawn, `relaxed` are there in spite of a cap. The propensity of an item that was
    not drawn is 1: given the drawn ones, it stands where it stands.
    """

    order: Positions
    propensities: Chances
    explored: int
    relaxed: int


def arrange(ranked: Ranked, surface: Surface, limit: int, *, now: float, seed: str) -> Arranged:
    """Draw the explored items, choose the others for relevance and variety beside them, spread them evenly.

    A request for fewer items than the surface shows has fewer slots, in proportion. The same `seed`, which is
    the identity of the request, draws the same items again.
    """
    count = min(limit, len(ranked.rows))
    slots = min(surface.exploration.slots * limit // surface.limit, count)
    caps = Caps.of(ranked.columns, surface.diversity.caps)
    explored = explore(ranked, surface.exploration, slots, caps=caps, now=now, seed=seed)
    others = diversify(ranked, surface.diversity, count - len(explored.chosen), beside=explored.chosen)
    drawn = len(explored.chosen)
    places = (np.arange(drawn) + 1) * count // (drawn + 1) - np.arange(drawn)
    chances = np.insert(np.ones(len(others.order)), places, explored.propensities)
    return Arranged(np.insert(others.order, places, explored.chosen), chances, drawn, others.relaxed)


def explore(
    ranked: Ranked, exploration: Exploration, slots: int, *, caps: Caps, now: float, seed: str
) -> Explored:
    """Draw up to `slots` items no older than `new_for_s`, without replacement, the better ones more often.

    The chance of each is in proportion to exp(score / temperature), with the scores in standard deviations of
    those of all new items (Boltzmann exploration; Gumbel noise makes the draw). `caps` counts what is
    drawn. An item whose time of creation is not known is not new.
    """
    strength = np.full(len(ranked.rows), -np.inf)
    if slots > 0 and exploration.method == "softmax" and "created_at" in ranked.columns:
        age = now - ranked.columns["created_at"]
        new = np.flatnonzero((age >= 0.0) & (age <= exploration.new_for_s) & np.isfinite(ranked.scores))
        strength[new] = _standard(ranked.scores[new]) / exploration.temperature
    return _drawn(strength, slots, caps, seed)


def _drawn(strength: Chances, slots: int, caps: Caps, seed: str) -> Explored:
    chosen: list[int] = []
    chances: list[float] = []
    if np.isfinite(strength).any():
        noise = _random(seed).gumbel(size=len(strength))
        while len(chosen) < slots and np.isfinite(strength).any():
            weights = np.exp(strength - strength.max())
            best = int((strength + noise).argmax())
            chosen.append(best)
            chances.append(float(weights[best] / weights.sum()))
            strength[best] = -np.inf
            caps.count(best, strength)
    return Explored(np.asarray(chosen, np.intp), np.asarray(chances, np.float64))


def _standard(scores: NDArray[np.float32]) -> Chances:
    if not len(scores):
        return np.empty(0)
    values = scores.astype(np.float64)
    return np.asarray((values - values.mean()) / (values.std() or 1.0))


def _random(seed: str) -> np.random.Generator:
    digest = hashlib.blake2b(seed.encode(), digest_size=8).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))
