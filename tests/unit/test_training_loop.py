"""Gradient descent as the learned sources are trained by it: loss, samples, end and checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from narrows.interactions import Interactions, interactions_of
from sagemaker_jobs.container import Progress
from sagemaker_jobs.cooccurrence import start_vectors
from sagemaker_jobs.optimiser import FEWEST_STEPS, Batch, Course, Descent, Recipe
from sagemaker_jobs.softmax import sampled, sampler, whole
from sagemaker_jobs.train_session.windows import Windows
from sagemaker_jobs.train_two_tower.positions import Positions

RECIPE = Recipe(learning_rate=0.05, weight_decay=0.0, warm_up=5, most_epochs=4, patience=2)
AIM = np.asarray([3.0, -2.0], np.float32)
START = {"at": np.zeros(2, np.float32)}


def distance(weights, batch: Batch, key):
    """A loss with a known minimum, pulled about a little by the batch."""
    return ((weights["at"] - AIM - 0.01 * batch[0]) ** 2).sum()


def epoch(number: int) -> Iterator[Batch]:
    """Twenty batches that depend on the number alone."""
    generator = np.random.default_rng(number)
    for _ in range(20):
        yield (generator.normal(size=2).astype(np.float32),)


def nearness(weights) -> float:
    """The higher the better."""
    return -float(np.abs(weights["at"] - AIM).sum())


def descent(recipe: Recipe = RECIPE, folder: Path | None = None, seed: int = 0) -> Descent:
    """Of the known loss."""
    return Descent(distance, recipe, seed, Progress("test"), checkpoints=folder)


def test_it_comes_to_the_minimum_and_decays_nearer() -> None:
    """The level part goes there, the decay settles."""
    one = descent(replace(RECIPE, most_epochs=20))
    course = one.level(START, epoch, nearness, 60.0)
    settled = one.decay(course, "everything", epoch, 60.0)
    assert nearness(settled) > -0.05
    assert settled["at"].dtype == np.float32
    assert not course.out_of_time


def test_it_stops_when_it_gets_no_better_and_keeps_the_best() -> None:
    """Two epochs without a better score after the second end it; the decay goes on from the second."""
    scores = iter([1.0, 2.0, 1.5, 1.9, 9.0])
    course = descent(replace(RECIPE, most_epochs=50)).level(START, epoch, lambda _: next(scores), 60.0)
    assert course.scores == (1.0, 2.0, 1.5, 1.9)
    assert (course.best_epoch, course.best_steps, course.steps) == (1, 40, 80)


def test_without_time_it_takes_the_fewest_steps() -> None:
    """A budget of nothing gives a model that was trained a little, and says so."""
    one = descent()
    course = one.level(START, epoch, nearness, 0.0)
    assert course.out_of_time
    assert course.steps == FEWEST_STEPS
    assert nearness(one.decay(course, "everything", epoch, 0.0)) > nearness(START)


def test_the_same_seed_gives_the_same_weights() -> None:
    """Bit for bit, where time does not cut it short."""
    found = []
    for _ in range(2):
        one = descent()
        found.append(one.decay(one.level(START, epoch, nearness, 60.0), "p", epoch, 60.0)["at"])
    assert np.array_equal(*found)


def test_an_interrupted_training_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    """Interrupted in the third epoch, then between decays; the weights are those of one that was not."""
    straight = descent()
    wanted = straight.decay(straight.level(START, epoch, nearness, 60.0), "holdout", epoch, 60.0)
    begun = count()

    def breaking(number: int) -> Iterator[Batch]:
        for at, batch in enumerate(epoch(number)):
            if number == 2 and at == 7 and next(begun) == 0:
                raise KeyboardInterrupt
            yield batch

    with pytest.raises(KeyboardInterrupt):
        descent(folder=tmp_path).level(START, breaking, nearness, 60.0)
    again = descent(folder=tmp_path)
    course = again.level(START, breaking, nearness, 60.0)
    assert len(course.scores) == 4
    assert np.array_equal(again.decay(course, "holdout", epoch, 60.0)["at"], wanted["at"])

    def never(number: int) -> Iterator[Batch]:
        raise AssertionError(f"epoch {number} was done already")

    third = descent(folder=tmp_path)
    kept = third.decay(third.level(START, never, nearness, 60.0), "holdout", never, 60.0)
    assert np.array_equal(kept["at"], wanted["at"])


def test_the_checkpoint_of_another_training_is_not_used(tmp_path: Path) -> None:
    """Another seed begins anew."""
    descent(folder=tmp_path).level(START, epoch, nearness, 60.0)
    begun = []

    def noted(number: int) -> Iterator[Batch]:
        begun.append(number)
        return epoch(number)

    descent(folder=tmp_path, seed=1).level(START, noted, nearness, 60.0)
    assert begun == [0, 1, 2, 3]


def test_the_whole_softmax_by_hand() -> None:
    """Two rows over three items, one of them worth three times the other."""
    states = np.asarray([[1.0, 0.0], [0.0, 2.0]])
    items = np.asarray([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    first = -np.log(np.exp(1.0) / (np.exp(1.0) + 2.0))
    second = -np.log(1.0 / (np.exp(2.0) + 2.0))
    found = whole(jnp.asarray(states), jnp.asarray(items), jnp.asarray([0, 2]), jnp.asarray([3.0, 1.0]))
    assert float(found) == pytest.approx((3.0 * first + second) / 4.0, rel=1e-5)


def test_slopes_by_blocks_are_those_of_the_loss() -> None:
    """Rows enough for several blocks: value and every slope as jax itself derives them from the formula."""
    generator = np.random.default_rng(3)
    states, items = (jnp.asarray(generator.normal(size=(rows, 4)), jnp.float32) for rows in (1500, 1000))
    targets, worth = generator.integers(0, 1000, 1500), jnp.asarray(generator.random(1500), jnp.float32)

    def plain(states, items, worth):
        logits = states @ items.T
        right = jnp.take_along_axis(logits, targets[:, None], axis=-1)[:, 0]
        return ((jax.nn.logsumexp(logits, axis=-1) - right) * worth).sum() / worth.sum()

    def ours(states, items, worth):
        return whole(states, items, targets, worth)

    found, wanted = (jax.value_and_grad(one, (0, 1, 2))(states, items, worth) for one in (ours, plain))
    assert float(found[0]) == pytest.approx(float(wanted[0]), rel=1e-6)
    for slopes, expected in zip(found[1], wanted[1], strict=True):
        assert np.asarray(slopes) == pytest.approx(np.asarray(expected), rel=1e-3, abs=1e-8)


def test_rows_worth_nothing_do_not_count() -> None:
    """Padding changes neither loss."""
    generator = np.random.default_rng(0)
    states, items = (jnp.asarray(generator.normal(size=(4, 3))) for _ in range(2))
    targets, worth = jnp.asarray([0, 1, 2, 3]), jnp.asarray([1.0, 1.0, 0.0, 0.0])
    assert float(whole(states, items, targets, worth)) == pytest.approx(
        float(whole(states[:2], items, targets[:2], worth[:2])), rel=1e-6
    )
    assert float(whole(states, items, targets, jnp.zeros(4))) == 0.0


def test_the_corrected_sample_stands_for_the_whole() -> None:
    """Over many draws the sampled loss comes near the whole one; uncorrected it would not."""
    generator = np.random.default_rng(1)
    counts = np.asarray([1000, 300, 100, 30, 10, 3, 1, 0] * 5)
    items = generator.normal(size=(40, 3)).astype(np.float32)
    states, targets = generator.normal(size=(6, 3)).astype(np.float32), np.arange(6)
    drawer = sampler(counts, whole_at_most=10, size=100_000)
    ones = np.ones(6, np.float32)
    drawn = drawer.draw(generator)
    found = [
        float(sampled(jnp.asarray(states), items[targets], items[drawn], targets, drawn, expected, ones))
        for expected in (drawer.expected, np.zeros(40, np.float32))
    ]
    wanted = float(whole(jnp.asarray(states), items, targets, ones))
    assert found[0] == pytest.approx(wanted, abs=0.05)
    assert abs(found[1] - wanted) > 1.0


def test_a_rows_own_item_in_the_sample_does_not_count_against_it() -> None:
    """With nothing drawn but the target, nothing is lost."""
    states, items = jnp.ones((1, 2)), jnp.ones((3, 2))
    drawn = np.asarray([1, 1, 1])
    found = sampled(
        states, items[:1], items[drawn], np.asarray([1]), drawn, np.zeros(3, np.float32), jnp.ones(1)
    )
    assert float(found) == pytest.approx(0.0, abs=1e-6)


def test_a_sampler_draws_by_popularity_and_only_where_the_catalogue_is_large() -> None:
    """An item with sixteen times the events comes eight times as often."""
    small = sampler(np.asarray([1, 2, 3]))
    assert len(small.draw(np.random.default_rng(0))) == 0
    drawer = sampler(np.asarray([159, 9]), whole_at_most=1, size=90_000)
    drawn = np.bincount(drawer.draw(np.random.default_rng(0)))
    assert drawn[0] / drawn[1] == pytest.approx(8.0, rel=0.05)
    assert np.exp(drawer.expected) == pytest.approx([80_000, 10_000], rel=1e-4)


def test_positions_are_each_event_with_what_came_before() -> None:
    """Two users, items coded in reverse; the first events are no targets; every other comes once an epoch."""
    log = interactions_of(["a"] * 4 + ["b"] * 2, ["0", "1", "2", "3", "2", "0"], range(6), [1, 1, 1, 1, 1, 4])
    positions = Positions(
        log,
        codes=np.asarray([3, 2, 1, 0], np.int32),
        items=4,
        segments=np.asarray([0, 1], np.int32),
        segment_count=2,
        history=3,
        sampler=sampler(np.ones(4)),
    )
    rows = {}
    for recent, targets, segments, worth, drawn in positions.epoch(0, size=3, seed=0):
        assert (len(recent), len(drawn)) == (3, 0)
        for at in range(3):
            if worth[at] > 0:
                rows[tuple(recent[at].tolist()), int(targets[at])] = (int(segments[at]), float(worth[at]))
    assert set(rows) == {((4, 4, 3), 2), ((4, 3, 2), 1), ((3, 2, 1), 0), ((4, 4, 1), 3)}
    assert rows[(4, 4, 1), 3][1] == pytest.approx(4.0 / 1.5)
    assert {segment for segment, _ in rows.values()} <= {0, 1, 2}
    assert rows[(4, 4, 1), 3][0] in (1, 2)
    twice = [[batch[1].tolist() for batch in positions.epoch(1, size=3, seed=0)] for _ in range(2)]
    assert twice[0] == twice[1]


def test_a_course_before_any_epoch_has_its_start() -> None:
    """Nothing was scored yet."""
    assert Course(None, 0, None, 0).best_epoch == 0


def histories(*lengths: int) -> Interactions:
    """A history of each length, over as many items."""
    users = np.repeat(np.arange(len(lengths)), lengths)
    places = np.concatenate([np.arange(length) for length in lengths])
    return interactions_of([f"{user:02}" for user in users], [f"{at:03}" for at in places], range(len(users)))


def test_windows_predict_every_event_once() -> None:
    """Whatever the lengths, and wherever a long history is cut; an item predicts the one after it."""
    log = histories(1, 2, 5, 11, 60)
    windows = Windows(log, np.arange(log.item_count, dtype=np.int32), 10, sampler(np.ones(60)))
    for number in range(3):
        seen: list[int] = []
        for items, targets, worth, drawn in windows.epoch(number, positions=20, seed=0):
            assert items.shape == targets.shape == worth.shape
            assert items.size <= 20
            assert items.shape[1] in windows.lengths()
            assert len(drawn) == 0
            seen += targets[worth > 0].tolist()
            assert (targets[worth > 0] == items[worth > 0] + 1).all()
        wanted = np.concatenate([np.arange(1, length) for length in (1, 2, 5, 11, 60)])
        assert sorted(seen) == sorted(wanted.tolist())


def test_windows_are_cut_elsewhere_in_each_epoch() -> None:
    """So that no event is always the first of a window; the same epoch is cut alike."""
    log = histories(100)
    windows = Windows(log, np.arange(100, dtype=np.int32), 10, sampler(np.ones(100)))
    begins = [windows.cut(np.random.default_rng(number))[0].tolist() for number in (0, 0, 1)]
    assert begins[0] == begins[1] != begins[2]


def test_short_histories_are_not_padded_to_the_longest() -> None:
    """The second length is the one that spares most; alike histories need only one."""
    codes = np.arange(200, dtype=np.int32)
    draws = sampler(np.ones(200))
    assert Windows(histories(*[6] * 500, 150), codes, 100, draws).lengths() == [6, 100]
    assert Windows(histories(9, 9, 9), codes, 100, draws).lengths() == [8]
    assert Windows(histories(1), codes, 100, draws).lengths() == [1]


def test_embeddings_start_from_what_stands_near() -> None:
    """Two worlds that never meet in a history: items of one world are alike, those of the other are not."""
    generator = np.random.default_rng(0)
    users, items = (
        np.repeat(np.arange(60), 10),
        generator.integers(0, 20, 600) * 2 + np.repeat(np.arange(60), 10) % 2,
    )
    log = interactions_of([f"{u:02}" for u in users], [f"{i:02}" for i in items], range(600))
    codes = np.arange(40, dtype=np.int32)
    found = start_vectors(log, codes, 40, 4, np.random.default_rng(1), spread=0.05)
    assert found.std() == pytest.approx(0.05, rel=0.01)
    unit = found / np.linalg.norm(found, axis=1, keepdims=True)
    alike = unit @ unit.T
    worlds = np.arange(40)[:, None] % 2 == np.arange(40) % 2
    assert alike[worlds].mean() > alike[~worlds].mean() + 0.3


def test_few_items_and_unseen_ones_start_from_noise() -> None:
    """Fewer items than directions, and an item without neighbours, have small numbers all the same."""
    log = histories(6, 6)
    codes = np.arange(10, dtype=np.int32)
    few = start_vectors(log, codes, 3, 8, np.random.default_rng(0), spread=0.05)
    assert few.shape == (3, 8)
    found = start_vectors(log, codes, 10, 2, np.random.default_rng(0), spread=0.05)
    assert np.abs(found).sum(axis=1).min() > 0.0
    assert np.isfinite(found).all()
