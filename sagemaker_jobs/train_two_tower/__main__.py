"""Trains two towers: `two_tower.npz`, and the same without the last events in `holdout/` and `replay/`."""

from __future__ import annotations

import sagemaker_jobs  # noqa: F401  # first: it sets how many threads numpy takes

# isort: split
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from narrows.interactions import Interactions
from narrows.networks import Drop, Weights, item_vectors, two_tower_weights, user_vectors
from narrows.retrieval import Floats
from narrows.sources.two_tower import Params, TwoTower
from narrows.text_vectors import TextEncoder, text_marks
from sagemaker_jobs.container import Container, run
from sagemaker_jobs.cooccurrence import start_vectors
from sagemaker_jobs.learned import Catalogue, batch_size, train_learned
from sagemaker_jobs.optimiser import Batch, Epoch, Recipe
from sagemaker_jobs.softmax import Sampler, sampled, sampler, whole
from sagemaker_jobs.train_two_tower.positions import Positions
from sagemaker_jobs.training_set import TrainingSet

BATCH = 1024
DROPPED = 0.1
UNKNOWN_ID = 0.05
"""How often an item has to do without its id, so that its content learns to speak for it."""
START = 0.05
SEGMENT_USERS = 10


@dataclass(frozen=True, eq=False)
class Towers:
    """Items with their content, and users' segments.

    `content` float32[item_count, c] was made from texts of these `marks` float64[item_count].
    """

    log: Interactions
    catalogue: Catalogue
    encoder: TextEncoder
    content: Floats
    marks: NDArray[np.float64]
    segment_names: NDArray[Any]
    segments: NDArray[np.int32]
    sampler: Sampler
    params: Params

    def start(self, events: Interactions, generator: np.random.Generator) -> dict[str, Floats]:
        """What stands near each other, small numbers, and segments that say nothing yet."""
        params = self.params
        shape = {"dimension": params.dimension, "history": params.history, "hidden": params.hidden}
        weights = two_tower_weights(generator, content=self.encoder.dimension, **shape)
        codes, count = self.catalogue.codes, len(self.catalogue)
        weights["ids"] = start_vectors(events, codes, count, params.dimension, generator, spread=START)
        weights["segments"] = np.zeros((len(self.segment_names), params.dimension), np.float32)
        weights["item.content"] *= np.float32(START)
        return weights

    def epochs(self, events: Interactions, seed: int) -> Epoch:
        """Every event with the items before it."""
        positions = Positions(
            events,
            self.catalogue.codes,
            len(self.catalogue),
            self.segments,
            len(self.segment_names),
            self.params.history,
            self.sampler,
        )
        return partial(positions.epoch, size=batch_size(len(self.log), BATCH), seed=seed)

    def loss(self, weights: Weights, batch: Batch, key: Any) -> Any:
        """The softmax loss of a batch of `Positions`, with dropped items, units and ids."""
        recent, targets, segments, worth, drawn = batch
        content = jnp.asarray(self.content[self.catalogue.items])
        id_key, *keys = jax.random.split(key, 3)
        nothing = jnp.zeros((1, self.params.dimension))
        profile = jnp.concatenate([weights["segments"], nothing])[segments]
        known = jax.random.bernoulli(id_key, 1.0 - UNKNOWN_ID, (len(content), 1))

        def vectors(places: Any) -> Any:
            return item_vectors(weights, weights["ids"][places] * known[places], content[places])

        if len(drawn):
            there = (recent < len(content))[..., None]
            history = vectors(jnp.minimum(recent, len(content) - 1)) * there
            users = user_vectors(weights, history, profile, jnp, _dropping(keys))
            expected = jnp.asarray(self.sampler.expected)
            return sampled(users, vectors(targets), vectors(drawn), targets, drawn, expected, worth)
        items = item_vectors(weights, weights["ids"] * known, content)
        history = jnp.concatenate([items, nothing])[recent]
        return whole(user_vectors(weights, history, profile, jnp, _dropping(keys)), items, targets, worth)

    def model(self, weights: Mapping[str, Floats], events: Interactions) -> TwoTower:
        """An item without events here has what its content says, whatever its id learned."""
        ids = np.zeros((self.log.item_count, self.params.dimension), np.float32)
        seen = self.catalogue.counts(events) > 0
        ids[self.catalogue.items[seen]] = weights["ids"][seen]
        kept = ids.astype(np.float16)
        network = {name: values for name, values in weights.items() if name not in ("ids", "segments")}
        return TwoTower(
            self.log.item_ids,
            np.asarray(item_vectors(network, kept.astype(np.float32), self.content), np.float32),
            kept,
            self.marks,
            self.segment_names,
            weights["segments"],
            network,
            self.encoder,
            self.params,
        )


def towers(data: TrainingSet, seed: int) -> Towers:
    """Code items and segments, and fit the encoder of what is written about items."""
    catalogue = Catalogue.of(data.log)
    encoder = data.encoder(seed)
    names, segments = _segments(data.log)
    counts = catalogue.counts(data.log)
    content = encoder.encode(data.texts)
    marks = text_marks(data.texts)
    return Towers(data.log, catalogue, encoder, content, marks, names, segments, sampler(counts), Params())


def _segments(log: Interactions) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """The segments of at least `SEGMENT_USERS` users, and that of each user, one behind them for none."""
    each = np.zeros(log.user_count, "U1") if log.segments is None else log.segments
    names = log.common_segments(SEGMENT_USERS)
    at = np.minimum(np.searchsorted(names, each), max(len(names) - 1, 0))
    known = names[at] == each if len(names) else np.zeros(len(each), np.bool_)
    return names, np.where(known, at, len(names)).astype(np.int32)


def _dropping(keys: list[Any]) -> Drop:
    """Drops whole items of a history [b, h, d], and single units of a layer [b, u]."""
    waiting = iter(keys)

    def drop(values: Any) -> Any:
        shape = (*values.shape[:2], 1) if values.ndim == 3 else values.shape
        return values * jax.random.bernoulli(next(waiting), 1.0 - DROPPED, shape) / (1.0 - DROPPED)

    return drop


def train(container: Container) -> None:
    """The job."""
    train_learned(container, "two_tower", towers, Recipe())


if __name__ == "__main__":
    sys.exit(run(train))
