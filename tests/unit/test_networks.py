"""The forward passes: numpy serves exactly what jax trains, and the parts do what their names say."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from narrows import networks
from narrows.retrieval import Floats

LENGTHS = (1, 5, 50)


def drawn(weights: dict[str, Floats], generator: np.random.Generator) -> dict[str, Floats]:
    """Weights as after some training: nothing is zero, nothing is one."""
    return {
        name: (values + generator.normal(0.0, 0.1, values.shape)).astype(np.float32)
        for name, values in weights.items()
    }


@pytest.fixture(scope="module")
def session() -> dict[str, Floats]:
    """A session transformer of the size that is trained by default."""
    generator = np.random.default_rng(1)
    return drawn(networks.session_weights(generator, dimension=64, blocks=2, heads=2, window=100), generator)


@pytest.mark.parametrize("length", LENGTHS)
def test_user_vectors_in_numpy_and_jax_agree(length: int) -> None:
    """To 2e-6, for histories that fill the network's places in part, exactly and by far."""
    generator = np.random.default_rng(length)
    weights = drawn(
        networks.two_tower_weights(generator, dimension=64, content=32, history=50, hidden=128), generator
    )
    recent = np.zeros((50, 64), np.float32)
    recent[-length:] = 0.3 * generator.normal(size=(length, 64))
    profile = 0.3 * generator.normal(size=64).astype(np.float32)
    ours = networks.user_vectors(weights, recent, profile, np)
    theirs = networks.user_vectors(weights, jnp.asarray(recent), jnp.asarray(profile), jnp)
    assert ours.dtype == np.float32
    assert np.abs(ours - np.asarray(theirs)).max() <= 2e-6 * np.abs(ours).max()


@pytest.mark.parametrize("length", LENGTHS)
def test_session_states_in_numpy_and_jax_agree(session: dict[str, Floats], length: int) -> None:
    """To 1e-5, at every event of the history; and the short way to the last event gives the last one."""
    items = 0.3 * np.random.default_rng(length).normal(size=(length, 64)).astype(np.float32)
    ours = networks.session_states(session, items, np)
    theirs = networks.session_states(session, jnp.asarray(items), jnp)
    assert ours.dtype == np.float32
    assert np.abs(ours - np.asarray(theirs)).max() <= 1e-5
    assert np.abs(networks.session_state(session, items, np) - ours[-1]).max() <= 1e-5


def test_a_batch_gives_what_its_rows_give(session: dict[str, Floats]) -> None:
    """One history alone, and the same among others behind which there is padding."""
    items = np.random.default_rng(3).normal(size=(4, 20, 64)).astype(np.float32)
    together = networks.session_states(session, items, np)
    for row in range(4):
        assert together[row, :12] == pytest.approx(
            networks.session_states(session, items[row, :12], np), abs=2e-5
        )


def test_what_comes_later_changes_nothing_before(session: dict[str, Floats]) -> None:
    """Attention looks back only."""
    items = np.random.default_rng(4).normal(size=(10, 64)).astype(np.float32)
    changed = items.copy()
    changed[7:] = 9.0
    before, after = (networks.session_states(session, one, np) for one in (items, changed))
    assert np.array_equal(before[:7], after[:7])
    assert np.abs(before[7:] - after[7:]).max() > 0.1


def test_the_bias_of_a_distance_moves_attention(session: dict[str, Floats]) -> None:
    """With a huge bias for the item just before, the state is as if only that and the last one counted."""
    weights = {**session, "block0.distance": np.full_like(session["block0.distance"], -1e4)}
    weights["block0.distance"][:, 1] = 0.0
    weights = {name: values for name, values in weights.items() if not name.startswith("block1")}
    items = np.random.default_rng(5).normal(size=(10, 64)).astype(np.float32)
    changed = items.copy()
    changed[:8] = 1.0
    states = [networks.session_state(weights, one, np) for one in (items, changed)]
    assert states[0] == pytest.approx(states[1], abs=1e-6)


def test_content_places_an_item_that_has_no_id() -> None:
    """The item network is linear: the id's embedding and what the content says, added."""
    generator = np.random.default_rng(6)
    weights = networks.two_tower_weights(generator, dimension=3, content=2, history=4, hidden=5)
    ids = generator.normal(size=(2, 3)).astype(np.float32)
    content = np.asarray([[1.0, 0.0], [0.0, 2.0]], np.float32)
    both = networks.item_vectors(weights, ids, content)
    alone = networks.item_vectors(weights, np.zeros_like(ids), content)
    assert alone == pytest.approx(weights["item.content"] * [[1.0], [2.0]])
    assert both == pytest.approx(ids + alone)


def test_an_empty_place_of_a_history_adds_nothing() -> None:
    """The vector of a visitor with one item does not depend on how much places before it would weigh."""
    generator = np.random.default_rng(7)
    weights = networks.two_tower_weights(generator, dimension=4, content=2, history=3, hidden=5)
    recent = np.zeros((3, 4), np.float32)
    recent[-1] = generator.normal(size=4)
    heavier = {**weights, "user.places": weights["user.places"] * np.asarray([[9.0], [9.0], [1.0]])}
    nothing = np.zeros(4, np.float32)
    found = [networks.user_vectors(one, recent, nothing, np) for one in (weights, heavier)]
    assert found[0] == pytest.approx(found[1])


def test_the_last_item_counts_by_a_place_of_its_own() -> None:
    """Where all places weigh the same, which item came last tells two histories apart, and nothing else."""
    generator = np.random.default_rng(9)
    weights = networks.two_tower_weights(generator, dimension=4, content=2, history=3, hidden=5)
    weights["user.places"] = np.ones((3, 4), np.float32)
    recent, profile = generator.normal(size=(3, 4)).astype(np.float32), np.zeros(4, np.float32)
    as_it_was, first_swapped, last_swapped = (
        networks.user_vectors(weights, recent[order], profile, np)
        for order in ([0, 1, 2], [1, 0, 2], [0, 2, 1])
    )
    assert first_swapped == pytest.approx(as_it_was, abs=1e-5)
    assert np.abs(last_swapped - as_it_was).max() > 0.1


def test_dropping_happens_in_training_only() -> None:
    """`drop` is asked for the history and the hidden layer; by default nothing is dropped."""
    generator = np.random.default_rng(8)
    weights = networks.two_tower_weights(generator, dimension=4, content=2, history=3, hidden=5)
    recent, nothing = np.ones((2, 3, 4), np.float32), np.zeros((2, 4), np.float32)
    shapes = []

    def drop(values: Floats) -> Floats:
        shapes.append(values.shape)
        return values

    kept = networks.user_vectors(weights, recent, nothing, np)
    assert np.array_equal(kept, networks.user_vectors(weights, recent, nothing, np, drop))
    assert shapes == [(2, 3, 4), (2, 5)]
