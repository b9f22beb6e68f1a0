"""Trains the session transformer: `session.npz`, also without the last events in `holdout/` and `replay/`."""

from __future__ import annotations

import sagemaker_jobs  # noqa: F401  # first: it sets how many threads numpy takes

# isort: split
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from narrows.interactions import Interactions
from narrows.networks import Weights, session_states, session_weights
from narrows.retrieval import Floats
from narrows.sources.session import Params, Session
from sagemaker_jobs.container import Container, run
from sagemaker_jobs.cooccurrence import start_vectors
from sagemaker_jobs.learned import Catalogue, batch_size, train_learned
from sagemaker_jobs.optimiser import Batch, Epoch, Recipe
from sagemaker_jobs.softmax import Sampler, sampled, sampler, whole
from sagemaker_jobs.train_session.windows import Windows
from sagemaker_jobs.training_set import TrainingSet

POSITIONS = 2048
DROPPED = 0.15
START = 0.05


@dataclass(frozen=True, eq=False)
class Sessions:
    """The histories of a log over the items that have events."""

    log: Interactions
    catalogue: Catalogue
    sampler: Sampler
    params: Params

    def start(self, events: Interactions, generator: np.random.Generator) -> dict[str, Floats]:
        """What stands near each other, and a network that looks at every distance alike."""
        codes, count = self.catalogue.codes, len(self.catalogue)
        items = start_vectors(events, codes, count, self.params.dimension, generator, spread=START)
        return {**session_weights(generator, **asdict(self.params)), "items": items}

    def epochs(self, events: Interactions, seed: int) -> Epoch:
        """Windows of every history."""
        windows = Windows(events, self.catalogue.codes, self.params.window, self.sampler)
        return partial(windows.epoch, positions=batch_size(len(self.log), POSITIONS), seed=seed)

    def loss(self, weights: Weights, batch: Batch, key: Any) -> Any:
        """The softmax loss of a batch of `Windows`, with dropped units."""
        items, targets, worth, drawn = batch
        keys = iter(jax.random.split(key, 1 + 2 * self.params.blocks))

        def drop(values: Any) -> Any:
            kept = jax.random.bernoulli(next(keys), 1.0 - DROPPED, values.shape)
            return values * kept / (1.0 - DROPPED)

        table = weights["items"]
        states = session_states(weights, table[items], jnp, drop).reshape(-1, self.params.dimension)
        targets, worth = targets.ravel(), worth.ravel()
        if len(drawn):
            expected = jnp.asarray(self.sampler.expected)
            return sampled(states, table[targets], table[drawn], targets, drawn, expected, worth)
        return whole(states, table, targets, worth)

    def model(self, weights: Mapping[str, Floats], events: Interactions) -> Session:
        """The items that have events here."""
        seen = self.catalogue.counts(events) > 0
        network = {name: values for name, values in weights.items() if name != "items"}
        ids = self.log.item_ids[self.catalogue.items[seen]]
        return Session(ids, weights["items"][seen], network, self.params)


def sessions(data: TrainingSet, _: int) -> Sessions:
    """Code the items."""
    catalogue = Catalogue.of(data.log)
    return Sessions(data.log, catalogue, sampler(catalogue.counts(data.log)), Params())


def train(container: Container) -> None:
    """The job."""
    train_learned(container, "session", sessions, Recipe())


if __name__ == "__main__":
    sys.exit(run(train))
