"""What differs between stages, as data: `-c app=megashop -c stage=dev` chooses, other keys override."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from narrows.settings import App, Problem, SettingsError, load_app

ROOT = Path(__file__).resolve().parent.parent
SOURCE = "cdk context"

Authorization = Literal["none", "iam", "jwt"]
Architecture = Literal["arm64", "x86_64"]


@dataclass(frozen=True)
class Stage:
    """The sizes, switches and names of one deployment; times in seconds, rates in requests a second."""

    name: str
    retain: bool  # keep tables, bucket and key when their stack is deleted, and refuse to delete them
    bundle_dependencies: bool = True  # the local stage runs handlers on this machine's own environment
    architecture: Architecture = "arm64"
    authorization: Authorization = "iam"
    jwt_issuer: str = ""
    jwt_audience: str = ""
    cors_origins: tuple[str, ...] = ()
    throttle_rate: int = 100
    throttle_burst: int = 200
    provisioned_concurrency: int = 0
    provisioned_concurrency_at_most: int = 0  # above the former: scaled by use between the two
    recommend_memory_mb: int = 1769  # one vCPU
    shards: int = 1  # of each stream; 0: on demand
    stream_hours: int = 24
    feature_batch: int = 2000
    feature_window_s: int = 1
    landing_batch: int = 5000
    landing_window_s: int = 60
    item_stream: bool = True  # items may also come through Kinesis, not over HTTP alone
    item_window_s: int = 10  # changes of items that make one delta of the snapshot
    log_days: int = 14
    landing_days: int = 90
    schedule_training: bool = False
    tuning_budget_s: int = 600  # of each training job, for the choice of its parameters
    learned_budget_s: int = 3600  # of each learned source, for all of its training
    ranker_rows: int = 3_500_000  # at most, of replayed candidates that the ranker learns from
    skew_rate: float = 1.0  # the share of two days' decisions whose features a night computes again
    training_instance: str = "ml.m5.xlarge"
    training_image: str = "pytorch-training:2.6.0-cpu-py312-ubuntu22.04-sagemaker"
    training_image_account: str = "763104351884"  # opt-in regions have others: see docs/operations/deploy.md
    glue_workers: int = 2
    search_url: str = ""  # an OpenSearch of one's own, for an app whose vectors lie there; "": a domain
    search_instance: str = "t3.medium.search"
    search_nodes: int = 1
    search_masters: int = 0
    search_master_instance: str = "m7g.medium.search"
    search_volume_gb: int = 20
    alarm_topic_arn: str = ""


STAGES: Mapping[str, Stage] = {
    "local": Stage(
        "local",
        retain=False,
        bundle_dependencies=False,
        authorization="none",
        feature_window_s=0,
        ranker_rows=600_000,
        learned_budget_s=20,
        tuning_budget_s=6,  # a laptop's demo shows the workflow; it is not where parameters are chosen
        landing_batch=2000,
        landing_window_s=2,
        item_window_s=1,
    ),
    "dev": Stage("dev", retain=False),
    "staging": Stage("staging", retain=True, provisioned_concurrency=1, schedule_training=True),
    "prod": Stage(
        "prod",
        retain=True,
        provisioned_concurrency=2,
        provisioned_concurrency_at_most=50,
        throttle_rate=5000,
        throttle_burst=5000,
        shards=0,
        stream_hours=168,
        log_days=90,
        landing_days=400,
        schedule_training=True,
        skew_rate=0.01,
        training_instance="ml.m5.4xlarge",
        glue_workers=10,
        search_instance="r7g.large.search",
        search_nodes=3,
        search_masters=3,
        search_volume_gb=200,
    ),
}


DEPLOYED = {("vectors", "embedded"), ("vectors", "opensearch"), ("ranker", "embedded")}


@dataclass(frozen=True)
class Config:
    """One app on one stage: everything the stacks are built from."""

    app: App
    stage: Stage

    @property
    def prefix(self) -> str:
        """What every stack's name starts with, so that apps and stages live side by side in one account."""
        return f"narrows-{self.app.name}-{self.stage.name}"


def load(context: Mapping[str, Any], apps: Path = ROOT / "apps") -> Config:
    """The configuration that the context asks for; SettingsError lists every problem of context and app."""
    problems: list[Problem] = []
    app = _app(context.get("app"), apps, problems)
    stage = _stage(context, problems)
    if stage is not None:
        problems += _contradictions(stage)
    if app is not None:
        problems += _undeployable(app)
    if problems or app is None or stage is None:
        raise SettingsError(problems)
    return Config(app, stage)


def _app(name: object, apps: Path, problems: list[Problem]) -> App | None:
    known = sorted(path.parent.name for path in apps.glob("*/app.toml"))
    if name not in known:
        problems.append(_problem("app", name, f"choose an app with -c app=NAME: {', '.join(known)}"))
        return None
    try:
        return load_app(apps / str(name))
    except SettingsError as error:
        problems += error.problems
        return None


def _stage(context: Mapping[str, Any], problems: list[Problem]) -> Stage | None:
    name = context.get("stage")
    stage = STAGES.get(str(name))
    if stage is None:
        problems.append(_problem("stage", name, f"choose a stage with -c stage=NAME: {', '.join(STAGES)}"))
        return None
    overrides = {}
    for field in fields(Stage):
        if field.name != "name" and context.get(field.name) is not None:
            value = _converted(field.name, context[field.name], getattr(stage, field.name), problems)
            overrides[field.name] = value
    return replace(stage, **overrides)


def _converted(name: str, value: Any, default: object, problems: list[Problem]) -> Any:
    """`value` as the type of the setting's default: the command line knows texts only."""
    if isinstance(default, bool):
        if str(value).lower() in ("true", "false"):
            return str(value).lower() == "true"
        problems.append(_problem(name, value, "write true or false"))
    elif isinstance(default, int):
        if re.fullmatch(r"\d+", str(value)):
            return int(value)
        problems.append(_problem(name, value, "write a whole number, 0 or more"))
    elif isinstance(default, float):
        if re.fullmatch(r"\d*\.?\d+", str(value)):
            return float(value)
        problems.append(_problem(name, value, "write a number, as 0.01"))
    elif isinstance(default, tuple):
        return tuple(one.strip() for one in str(value).split(",") if one.strip())
    else:
        return str(value)
    return default


def _contradictions(stage: Stage) -> list[Problem]:
    """What each value alone allows but the services, or the promises of Narrows, do not."""
    allowed = {"authorization": ("none", "iam", "jwt"), "architecture": ("arm64", "x86_64")}
    problems = [
        _problem(name, getattr(stage, name), f"choose one of {', '.join(choices)}")
        for name, choices in allowed.items()
        if getattr(stage, name) not in choices
    ]
    if stage.authorization == "none" and stage.retain:
        remedy = (
            f"stage {stage.name} holds real visitors; choose iam, or jwt with jwt_issuer and jwt_audience"
        )
        problems.append(_problem("authorization", "none", remedy))
    if stage.authorization == "jwt" and not (stage.jwt_issuer and stage.jwt_audience):
        problems.append(_problem("authorization", "jwt", "also give jwt_issuer and jwt_audience"))
    if stage.feature_window_s > 1:
        remedy = "at most 1: three clicks change the next slate within three seconds"
        problems.append(_problem("feature_window_s", stage.feature_window_s, remedy))
    for name, most in (
        ("feature_batch", 2000),
        ("landing_batch", 10_000),
        ("landing_window_s", 300),
        ("item_window_s", 300),
        ("skew_rate", 1),
    ):
        if getattr(stage, name) > most:
            problems.append(_problem(name, getattr(stage, name), f"at most {most}"))
    if stage.search_url and not re.match(r"https?://", stage.search_url):
        problems.append(
            _problem("search_url", stage.search_url, "write an address, as https://search.example")
        )
    for name, few in (("search_nodes", (1, 2)), ("search_masters", (0,))):
        count = getattr(stage, name)
        if count not in few and (count == 0 or count % 3):
            remedy = f"{' or '.join(map(str, few))}, or a multiple of 3, one for each availability zone"
            problems.append(_problem(name, count, remedy))
    if 0 < stage.provisioned_concurrency_at_most < stage.provisioned_concurrency:
        remedy = f"at least provisioned_concurrency ({stage.provisioned_concurrency}), or 0 for no scaling"
        problems.append(
            _problem("provisioned_concurrency_at_most", stage.provisioned_concurrency_at_most, remedy)
        )
    return problems


def _undeployable(app: App) -> list[Problem]:
    return [
        Problem(f"apps/{app.name}/app.toml", f"tiers.{name}", tier, "the stacks deploy the embedded tier")
        for name, tier in app.tiers.items()
        if (name, tier) not in DEPLOYED
    ]


def _problem(name: str, value: object, remedy: str) -> Problem:
    return Problem(SOURCE, name, value, remedy)
