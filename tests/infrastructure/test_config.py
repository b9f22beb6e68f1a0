"""The configuration of a deployment: what the context may say, and how mistakes are told."""

from __future__ import annotations

import pytest

from cdk_app.config import STAGES, load
from narrows.settings import SettingsError


@pytest.mark.parametrize("stage", sorted(STAGES))
def test_every_stage_is_ready_for_every_app(stage: str) -> None:
    """Each stage's own values are free of contradictions, for each app."""
    for app in ("megashop", "media", "adpilot", "shopnow"):
        config = load({"app": app, "stage": stage})
        assert config.prefix == f"narrows-{app}-{stage}"


def test_context_overrides_a_stage() -> None:
    """Texts of the command line become the setting's type: numbers, switches, lists."""
    context = {
        "shards": "4",
        "schedule_training": "true",
        "skew_rate": "0.25",
        "cors_origins": "https://a.example, https://b.example",
    }
    stage = load({"app": "megashop", "stage": "dev", **context}).stage
    assert (stage.shards, stage.schedule_training, stage.skew_rate) == (4, True, 0.25)
    assert stage.cors_origins == ("https://a.example", "https://b.example")


def test_all_problems_are_told_at_once() -> None:
    """Six mistakes give six problems, each with its key and its remedy."""
    context = {
        "app": "nosuch",
        "stage": "prod",
        "shards": "many",
        "authorization": "none",
        "feature_window_s": 5,
        "schedule_training": "perhaps",
        "skew_rate": "1.5",
    }
    with pytest.raises(SettingsError) as caught:
        load(context)
    told = {problem.path for problem in caught.value.problems}
    assert told == {"app", "shards", "authorization", "feature_window_s", "schedule_training", "skew_rate"}
    assert "megashop" in str(caught.value)


def test_an_unknown_stage_is_answered_with_the_known_ones() -> None:
    """A misspelt stage deploys nothing and says what exists."""
    with pytest.raises(SettingsError, match="local, dev, staging, prod"):
        load({"app": "megashop", "stage": "production"})


def test_tokens_need_issuer_and_audience() -> None:
    """authorization=jwt alone would open the API to anybody's token."""
    with pytest.raises(SettingsError, match="jwt_issuer"):
        load({"app": "megashop", "stage": "dev", "authorization": "jwt"})
