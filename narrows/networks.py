"""Forward passes of the learned models: pure functions over arrays, with the array module as an argument.

jax.numpy trains them in `sagemaker_jobs/`, numpy serves them from an `.npz`: what was trained is what is
served. `xp` is either module; `drop` stands where training drops values at random, and by default does
nothing. Arrays are float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from narrows.retrieval import Floats

Array = Any
Weights = Mapping[str, Array]
Drop = Callable[[Array], Array]

SMALL = 1e-6
FAR_BELOW = -1e9


def keep(values: Array) -> Array:
    """Drops nothing: what serving does where training drops."""
    return values


def item_vectors(weights: Weights, ids: Array, content: Array) -> Array:
    """The item network, [..., d]: of id embeddings [..., d] and content vectors [..., c].

    An item that was not trained on has an embedding of zeros; its content alone places it.
    """
    return ids + content @ weights["item.content"]


def user_vectors(weights: Weights, recent: Array, profile: Array, xp: Any, drop: Drop = keep) -> Array:
    """The user network, [..., d]: what a visitor is matched with, by inner product with item vectors.

    `recent` [..., h, d] holds the vectors of the last items, the newest last, zeros where there are fewer;
    `profile` [..., d] what is known of the visitor besides, zeros for nothing.
    """
    pooled = (drop(recent) * weights["user.places"]).sum(axis=-2)
    known = xp.concatenate([pooled, recent[..., -1, :], profile], axis=-1)
    hidden = drop(gelu(known @ weights["user.w1"] + weights["user.b1"], xp))
    return pooled + hidden @ weights["user.w2"] + weights["user.b2"]


def two_tower_weights(
    generator: np.random.Generator, *, dimension: int, content: int, history: int, hidden: int
) -> dict[str, Floats]:
    """A start for training; `history` items count, the newest most."""
    slope = np.linspace(1.0 / history, 1.0, history)[:, None]
    return {
        "item.content": _normal(generator, content, dimension),
        "user.places": (slope * np.ones((1, dimension))).astype(np.float32),
        "user.w1": _normal(generator, 3 * dimension, hidden),
        "user.b1": np.zeros(hidden, np.float32),
        "user.w2": _normal(generator, hidden, dimension),
        "user.b2": np.zeros(dimension, np.float32),
    }


def session_states(weights: Weights, items: Array, xp: Any, drop: Drop = keep) -> Array:
    """The session transformer, [..., t, d]: after each of the items [..., t, d], what may come next.

    Blocks of causal self-attention as in SASRec (Kang and McAuley, 2018), normalised first, with a learned
    bias for each distance in place of positions; `t` is at most the window that it was trained with. Rows
    that stand after a history as padding change nothing before them.
    """
    states = drop(items)
    for block in range(block_count(weights)):
        states = _block(weights, f"block{block}", states, states, xp, drop)
    return _normalised(states, weights["last.norm"], xp)


def session_state(weights: Weights, items: Array, xp: Any) -> Array:
    """The last row of `session_states`, [..., d], without computing the others where nothing needs them."""
    states, last = items, block_count(weights) - 1
    for block in range(last):
        states = _block(weights, f"block{block}", states, states, xp, keep)
    newest = _block(weights, f"block{last}", states[..., -1:, :], states, xp, keep)
    return _normalised(newest, weights["last.norm"], xp)[..., 0, :]


def session_weights(
    generator: np.random.Generator, *, dimension: int, blocks: int, heads: int, window: int
) -> dict[str, Floats]:
    """A start for training; `heads` divides `dimension`."""
    weights: dict[str, Floats] = {"last.norm": _plain_norm(dimension)}
    for block in range(blocks):
        weights |= {
            f"block{block}.norm1": _plain_norm(dimension),
            f"block{block}.query": _normal(generator, dimension, dimension),
            f"block{block}.both": _normal(generator, dimension, 2 * dimension),
            f"block{block}.distance": np.zeros((heads, window), np.float32),
            f"block{block}.out": _normal(generator, dimension, dimension),
            f"block{block}.norm2": _plain_norm(dimension),
            f"block{block}.w1": _normal(generator, dimension, 4 * dimension),
            f"block{block}.b1": np.zeros(4 * dimension, np.float32),
            f"block{block}.w2": _normal(generator, 4 * dimension, dimension),
            f"block{block}.b2": np.zeros(dimension, np.float32),
        }
    return weights


def block_count(weights: Weights) -> int:
    """How many blocks a session transformer has."""
    return sum(name.endswith(".distance") for name in weights)


def gelu(values: Array, xp: Any) -> Array:
    """The Gaussian error linear unit by its tanh form (Hendrycks and Gimpel, 2016)."""
    half = 0.5 * values
    return half + half * xp.tanh(values * (0.7978845608 + 0.0356774081 * (values * values)))


def _block(weights: Weights, name: str, newest: Array, states: Array, xp: Any, drop: Drop) -> Array:
    """One block for the last rows, `newest`, of `states`."""
    asked = _normalised(states, weights[f"{name}.norm1"], xp)
    newest = newest + drop(_attention(weights, name, asked[..., -newest.shape[-2] :, :], asked, xp))
    hidden = gelu(
        _normalised(newest, weights[f"{name}.norm2"], xp) @ weights[f"{name}.w1"] + weights[f"{name}.b1"], xp
    )
    return newest + drop(hidden @ weights[f"{name}.w2"] + weights[f"{name}.b2"])


def _attention(weights: Weights, name: str, asking: Array, asked: Array, xp: Any) -> Array:
    """Each of the `q` last rows [..., q, d] attends to the rows [..., t, d] up to itself."""
    heads, width = len(weights[f"{name}.distance"]), asked.shape[-1]
    query = _by_head(asking @ weights[f"{name}.query"], heads, xp)
    both = asked @ weights[f"{name}.both"]
    key, value = (_by_head(part, heads, xp) for part in (both[..., :width], both[..., width:]))
    bias = _bias(weights, name, asking.shape[-2], asked.shape[-2], xp)
    logits = query @ xp.swapaxes(key, -1, -2) * float((width // heads) ** -0.5) + bias
    raised = xp.exp(logits - logits.max(axis=-1, keepdims=True))
    found = (raised / raised.sum(axis=-1, keepdims=True)) @ value
    joined = xp.swapaxes(found, -2, -3).reshape(*asking.shape[:-1], width)
    return joined @ weights[f"{name}.out"]


def with_biases(weights: Weights, xp: Any) -> dict[str, Array]:
    """The same network, with what every distance of a window adds worked out once for all requests."""
    found = dict(weights)
    for block in range(block_count(weights)):
        window = weights[f"block{block}.distance"].shape[1]
        found[f"block{block}.bias"] = _bias(weights, f"block{block}", window, window, xp)
    return found


def _bias(weights: Weights, name: str, count: int, length: int, xp: Any) -> Array:
    """[heads, q, t]: what the distance adds between each of the `q` last of `t` rows and those up to it."""
    by_distance, worked_out = weights[f"{name}.distance"], weights.get(f"{name}.bias")
    if count == 1:
        return by_distance[:, None, :length][..., ::-1]
    if worked_out is not None:
        return worked_out[:, length - count : length, :length]
    distance, behind = _distances(count, length)
    by_pair = xp.take(by_distance, distance, axis=1)  # a third of the time of indexing
    return xp.where(behind, by_pair, FAR_BELOW)


@cache
def _distances(count: int, length: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """How far each row stands before each of the `count` last, 0 where after it; and whether it does."""
    distance = np.arange(length - count, length)[:, None] - np.arange(length)
    return np.maximum(distance, 0), distance >= 0


def _by_head(values: Array, heads: int, xp: Any) -> Array:
    """[..., t, d] as [..., heads, t, d / heads]."""
    return xp.swapaxes(values.reshape(*values.shape[:-1], heads, -1), -2, -3)


def _normalised(values: Array, norm: Array, xp: Any) -> Array:
    """Layer normalisation; `norm` [2, d] scales and shifts."""
    shares = _shares(values.shape[-1])
    centred = values - values @ shares
    return centred * (norm[0] / xp.sqrt((centred * centred) @ shares + SMALL)) + norm[1]


@cache
def _shares(width: int) -> Floats:
    """By which a product gives means; numpy's own take twice as long."""
    return np.full((width, 1), 1.0 / width, np.float32)


def _plain_norm(dimension: int) -> Floats:
    return np.stack([np.ones(dimension), np.zeros(dimension)]).astype(np.float32)


def _normal(generator: np.random.Generator, rows: int, columns: int) -> Floats:
    """float32[rows, columns], scaled so that a row of ones comes out with variance one."""
    return generator.normal(0.0, max(rows, 1) ** -0.5, (rows, columns)).astype(np.float32)
