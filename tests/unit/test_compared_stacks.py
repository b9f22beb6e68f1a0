"""Stacks: which sources they have, where they can be asked, how stale they are, and what they need."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from narrows.errors import InvalidInput
from narrows.evaluation.stacks import Stack, jobs_of, needed_jobs, runs_a_month, stacks_of, staleness
from narrows.settings import App, load_app

ROOT = Path(__file__).parents[2]
BOTH = ("traditional", "two_tower")


@pytest.fixture(scope="module")
def shopnow() -> App:
    """The marketplace's settings."""
    return load_app(ROOT / "apps" / "shopnow")


@pytest.fixture(scope="module")
def media() -> App:
    """The media service's settings."""
    return load_app(ROOT / "apps" / "media")


def test_each_stack_has_its_own_sources_and_the_shared_ones(shopnow: App) -> None:
    """The session model belongs to neither; quotas are those of the surface."""
    surface, (traditional, two_tower) = stacks_of(shopnow, BOTH)
    assert surface.name == "feed"
    assert traditional.own == ("als", "covisitation", "bought_together", "content", "trending")
    assert traditional.sources == (*traditional.own, "popular", "fresh")
    assert two_tower.sources == ("two_tower", "popular", "fresh")
    assert [quota.quota for quota in traditional.quotas] == [150, 150, 50, 50, 30, 100, 80]
    assert [quota.quota for quota in two_tower.quotas] == [430, 100, 80]


def test_no_stack_is_allowed_more_candidates(media: App) -> None:
    """Where the app asks one for fewer, its quotas are scaled up, in their own proportions."""
    _, stacks = stacks_of(media, BOTH)
    own = [sum(quota.quota for quota in stack.quotas if quota.name in stack.own) for stack in stacks]
    assert own == [300, 300]
    assert stacks[0].own == ("als", "covisitation", "bought_together", "content", "trending")


def test_a_surface_can_be_named(shopnow: App) -> None:
    """Also one that starts from an item."""
    surface, stacks = stacks_of(shopnow, BOTH, "product")
    assert surface.name == "product"
    assert [quota.quota for quota in stacks[0].quotas] == [200, 100, 50, 50, 50, 50]
    assert [quota.quota for quota in stacks[1].quotas] == [400, 50, 50]


@pytest.mark.parametrize(
    ("app", "names", "surface", "words"),
    [
        ("megashop", BOTH, "", "'two_tower' is not allowed; ask for one of two_tower in"),
        ("shopnow", BOTH, "nowhere", "shopnow has feed, product"),
        ("shopnow", ("two_tower", "two_tower"), "", "name each stack once"),
    ],
)
def test_what_cannot_be_asked_is_refused(app: str, names: tuple[str, ...], surface: str, words: str) -> None:
    """With what the app would have to say, or has."""
    with pytest.raises(InvalidInput, match=words.replace("[", r"\[")):
        stacks_of(load_app(ROOT / "apps" / app), names, surface)


def test_staleness_follows_from_settings_and_build_times(shopnow: App) -> None:
    """A counted source waits for its next run; a network places the item when the snapshot brings it."""
    _, (traditional, two_tower) = stacks_of(shopnow, BOTH)
    build_s = {"train_als": 100.0, "train_covisitation": 40.0, "train_two_tower": 500.0}
    counted = staleness(traditional, shopnow, build_s, {})
    assert (counted.own_click, counted.new_item_shown) == (60.0, 20.0)
    assert (counted.new_item, counted.learned) == (86_440.0, 86_500.0)
    learned = staleness(two_tower, shopnow, build_s, {"two_tower": 0.5})
    assert (learned.own_click, learned.new_item, learned.learned) == (60.0, 20.5, 7 * 86_400.0 + 500.0)
    assert not counted.undefined
    assert not learned.undefined


def test_staleness_that_nothing_tells_is_undefined(shopnow: App) -> None:
    """Without a schedule, a history feature or the newest items there is a reason, not a number."""
    bare = replace(shopnow, features=(), training=replace(shopnow.training, schedule={}))
    stack = Stack("two_tower", ("two_tower",), ())
    found = staleness(stack, bare, {"train_two_tower": 1.0}, {})
    assert all(
        math.isnan(one) for one in (found.own_click, found.new_item, found.new_item_shown, found.learned)
    )
    assert set(found.undefined) == {"own_click", "new_item", "new_item_shown", "learned"}
    assert "no last_n feature" in found.undefined["own_click"]


def test_runs_follow_the_schedule(shopnow: App) -> None:
    """Per month of thirty days."""
    runs = [runs_a_month(shopnow, f"train_{name}") for name in ("als", "two_tower", "trending")]
    assert runs == pytest.approx([30.0, 30 / 7, 0.0])


def test_jobs_are_counted_in_the_state_machine(shopnow: App) -> None:
    """All but those that train the other stack's sources; counting makes what both have."""
    machine: dict[str, Any] = json.loads((ROOT / "stepfunctions/train_and_promote.asl.json").read_text())
    jobs = jobs_of(machine)
    assert {"CompactEventsJob", "BuildFeaturesJob", "train_session", "train_ranker", "evaluate"} <= set(jobs)
    _, (traditional, two_tower) = stacks_of(shopnow, BOTH)
    trainings = {"train_als", "train_covisitation", "train_two_tower", "train_session"}
    for stack, its in ((traditional, "train_als"), (two_tower, "train_two_tower")):
        needed = needed_jobs(stack, jobs)
        assert set(needed) & trainings == {its, "train_covisitation"}
        assert len(needed) == len(jobs) - 2


def test_a_task_that_starts_no_job_is_none() -> None:
    """Whatever lies how deep: only jobs of Glue and SageMaker count, each once."""
    glue = {"Resource": "arn:aws:states:::glue:startJobRun.sync", "Parameters": {"JobName": "${OneJob}"}}
    table = {"Resource": "arn:aws:states:::dynamodb:getItem", "Parameters": {"TableName": "t"}}
    machine = {"States": {"a": glue, "b": {"Branches": [{"States": {"c": glue, "d": table}}]}}}
    assert jobs_of(machine) == ("OneJob",)
