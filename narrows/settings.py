"""What an app is: the frozen settings that every stage reads, loaded from `apps/<app>/`."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal, cast

from narrows.catalogue_settings import Catalogue as Catalogue
from narrows.catalogue_settings import read_catalogue
from narrows.environment import environment as environment
from narrows.errors import Problem, SettingsError
from narrows.features.checks import check
from narrows.features.declarations import FeatureDeclaration
from narrows.features.feature_file import read_features
from narrows.index_settings import IndexSettings, read_index
from narrows.quality import Quality, read_quality
from narrows.text_settings import TextSettings, read_text_vectors
from narrows.toml_reading import Table, choose, read_json_texts, read_toml

Seed = Literal["history", "item", "cart"]
After = Literal["closed", "open"]

SOURCE_NAMES = (
    "als",
    "covisitation",
    "popular",
    "fresh",
    "two_tower",
    "session",
    "bought_together",
    "content",
    "trending",
)
LEARNED_SOURCES = ("two_tower", "session")
RUNGS = ("full", "remembered", "in_process", "last_slate", "segment", "static")
RULE_NAMES = ("stock", "region", "do_not_show", "blocked")
LARGEST_LIMIT = 100
METRICS = re.compile(
    r"(normalized_discounted_cumulative_gain|ndcg|precision|recall|hit|map|mean_reciprocal_rank|average_rewards)"
    r"_at_\d+|coverage|catalog_coverage"
)


@dataclass(frozen=True)
class EventType:
    """`label`: worth in training, 0 for context only; `value`: the property that tells its strength."""

    label: float = 0.0
    value: str | None = None
    matures_after_s: float = 0.0


@dataclass(frozen=True)
class SourceQuota:
    """`quota` candidates are asked of the source, inside `share` of the surface's deadline."""

    name: str
    quota: int
    share: float


@dataclass(frozen=True)
class Diversity:
    """`lambda_` 1 keeps the ranker's order, 0 seeks variety; `caps`: most items per value of a column."""

    method: Literal["mmr", "none"] = "none"
    lambda_: float = 1.0
    caps: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Exploration:
    """`slots` places of a slate are kept for items created within `new_for_s`; the hotter the `temperature`,
    the less their scores decide which."""

    method: Literal["softmax", "none"] = "none"
    slots: int = 0
    new_for_s: float = 7 * 86400.0
    temperature: float = 0.5


@dataclass(frozen=True)
class Surface:
    """One place where recommendations are shown, and how they are made there.

    `exclude_seen` leaves out the items of the visitor's events with the app's highest label: bought, watched.
    """

    name: str
    deadline_ms: float
    limit: int
    sources: tuple[SourceQuota, ...]
    rank_at_most: int
    diversity: Diversity
    exploration: Exploration
    value: Mapping[str, float]
    ladder: tuple[str, ...]
    seed: Seed
    exclude_seen: bool


@dataclass(frozen=True)
class Rule:
    """A rule of the gate; over data older than `max_age_s`, "closed" drops the item, "open" lets it pass."""

    name: str
    after: After
    max_age_s: float | None


@dataclass(frozen=True)
class Freshness:
    """How stale the copies in a process may be, in seconds."""

    snapshot_delta_s: float
    policy_poll_s: float
    max_age_s: Mapping[str, float]


@dataclass(frozen=True)
class PromotionGate:
    """A candidate model must beat the current one's `metric` by `margin`; no segment may lose more than its
    own margin."""

    metric: str
    margin: float
    segments: Mapping[str, float]


NEVER = "never"
EVERY_S: Mapping[str, float] = MappingProxyType({"hourly": 3600.0, "daily": 86_400.0, "weekly": 7 * 86_400.0})


@dataclass(frozen=True)
class Training:
    """`schedule`: model -> how often ("daily"); `gate`: what a candidate model must reach."""

    schedule: Mapping[str, str]
    gate: PromotionGate

    def interval_s(self, model: str) -> float:
        """Seconds from one training of the model to the next; nan where none is scheduled."""
        return EVERY_S.get(self.schedule.get(model, NEVER), float("nan"))

    @property
    def learned(self) -> tuple[str, ...]:
        """The learned sources that are to be trained; the app serves without the others."""
        return tuple(name for name in LEARNED_SOURCES if self.schedule.get(name, NEVER) != NEVER)


@dataclass(frozen=True)
class Bots:
    """A visitor with more than `events_per_minute` different events in one minute is a program."""

    events_per_minute: float = 120.0


@dataclass(frozen=True)
class App:
    """A product, as its folder under `apps/` describes it."""

    name: str
    catalogue: Catalogue
    events: Mapping[str, EventType]
    tiers: Mapping[str, str]
    surfaces: Mapping[str, Surface]
    features: tuple[FeatureDeclaration, ...]
    rules: tuple[Rule, ...]
    reasons: Mapping[str, str]
    freshness: Freshness
    training: Training
    static_items: tuple[str, ...]
    bots: Bots
    quality: Quality
    index: IndexSettings
    text_vectors: TextSettings


def load_app(path: Path, *, sources: Collection[str] = SOURCE_NAMES) -> App:
    """Read the app in this folder; SettingsError lists every mistake of every file at once."""
    problems: list[Problem] = []
    app = read_toml(path / "app.toml", problems)
    name = app.text("name", known=(path.resolve().name,))
    catalogue, events = read_catalogue(app.table("catalogue")), _events(app.table("events"))
    tiers = _tiers(app.table("tiers", required=False))
    surfaces = _surfaces(app.table("surfaces"), events, sources)
    freshness = _freshness(app.table("freshness"))
    training = _training(app.table("training"))
    bots = _bots(app.table("bots", required=False))
    quality = read_quality(app.table("quality", required=False))
    index = read_index(app.table("index", required=False), catalogue)
    text_vectors = read_text_vectors(app.table("text_vectors", required=False), path)
    for surface in surfaces.values():
        if surface.exploration.slots and not catalogue.time:
            remedy = "name the column of creation times in [catalogue] time: without one nothing is new"
            app.problem(f"surfaces.{surface.name}.exploration", surface.exploration.slots, remedy)
    app.finish()
    features = read_features(read_toml(path / "features.toml", problems), events)
    rules = _rules(read_toml(path / "rules.toml", problems), freshness)
    reasons = _reasons(read_toml(path / "reasons.toml", problems), surfaces, sources)
    static_items = read_json_texts(path / "static.json", problems)
    problems += check(features)
    if problems:
        raise SettingsError(problems)
    return App(
        name=name,
        catalogue=catalogue,
        events=events,
        tiers=tiers,
        surfaces=surfaces,
        features=features,
        rules=rules,
        reasons=reasons,
        freshness=freshness,
        training=training,
        static_items=static_items,
        bots=bots,
        quality=quality,
        index=index,
        text_vectors=text_vectors,
    )


def _events(table: Table) -> dict[str, EventType]:
    return {name: _event(one) for name, one in table.children().items()}


def _event(table: Table) -> EventType:
    event = EventType(
        label=table.number("label", 0.0, low=0.0),
        value=table.text("value", "") or None,
        matures_after_s=table.duration_s("matures_after", 0.0),
    )
    table.finish()
    return event


def _tiers(table: Table) -> dict[str, str]:
    tiers = {
        "vectors": table.text("vectors", "embedded", known=("embedded", "opensearch")),
        "ranker": table.text("ranker", "embedded", known=("embedded", "endpoint")),
    }
    table.finish()
    return tiers


def _surfaces(table: Table, events: Collection[str], sources: Collection[str]) -> dict[str, Surface]:
    if not table.content:
        table.problem("", None, "declare at least one surface, as [surfaces.homepage]")
    surfaces = {name: _surface(name, one, events, sources) for name, one in table.children().items()}
    alike: dict[str, str] = {}
    for name in surfaces:
        if not re.fullmatch(r"[a-z][a-z0-9_-]*", name):
            table.problem(name, name, "name a surface in lower-case letters, digits, - and _")
        other = alike.setdefault(name.lower().replace("-", "_"), name)
        if other != name:
            table.problem(name, name, f"it is the same surface as '{other}'; keep one")
    return surfaces


def _surface(name: str, table: Table, events: Collection[str], sources: Collection[str]) -> Surface:
    limit = table.whole("limit", low=1, high=LARGEST_LIMIT)
    surface = Surface(
        name=name,
        deadline_ms=table.number("deadline_ms", low=1.0),
        limit=limit,
        sources=_quotas(table, sources),
        rank_at_most=table.whole("rank_at_most", 500, low=limit),
        diversity=_diversity(table.table("diversity", required=False)),
        exploration=_exploration(table.table("exploration", required=False), limit),
        value=_numbers(table.table("value", required=False), events),
        ladder=table.texts("ladder", RUNGS, known=RUNGS),
        seed=cast(Seed, table.text("seed", "history", known=("history", "item", "cart"))),
        exclude_seen=table.flag("exclude_seen", False),
    )
    table.finish()
    return surface


def _quotas(surface: Table, sources: Collection[str]) -> tuple[SourceQuota, ...]:
    quotas: list[SourceQuota] = []
    for table in surface.tables("sources"):
        quota = SourceQuota(
            table.text("name", known=sources), table.whole("quota", low=1), table.share("share")
        )
        table.finish()
        if quota.name in {one.name for one in quotas}:
            table.problem("name", quota.name, "a surface asks a source once; give it one quota")
        quotas.append(quota)
    return tuple(quotas)


def _diversity(table: Table) -> Diversity:
    method = table.text("method", "none", known=("mmr", "none"))
    lambda_ = table.number("lambda", 1.0, low=0.0, high=1.0)
    caps = table.table("caps", required=False)
    diversity = Diversity(
        cast(Literal["mmr", "none"], method),
        lambda_,
        {column: caps.whole(column, low=1) for column in caps.content},
    )
    table.finish()
    return diversity


def _exploration(table: Table, limit: int) -> Exploration:
    default = Exploration()
    method = table.text("method", "none", known=("softmax", "none"))
    exploration = Exploration(
        cast(Literal["softmax", "none"], method),
        slots=table.whole("slots", int(method != "none"), low=int(method != "none"), high=max(1, limit - 1)),
        new_for_s=table.duration_s("new_for", default.new_for_s),
        temperature=table.number("temperature", default.temperature, low=0.01),
    )
    if method == "none" and exploration.slots:
        table.problem("method", method, 'write method = "softmax", or leave exploration out')
    table.finish()
    return exploration


def _numbers(table: Table, known: Collection[str], low: float = 0.0) -> dict[str, float]:
    for name in table.content:
        if known and name not in known:
            table.problem(name, name, choose(name, known))
    return {name: table.number(name, low=low) for name in table.content}


def _freshness(table: Table) -> Freshness:
    ages = table.table("max_age", required=False)
    freshness = Freshness(
        snapshot_delta_s=table.duration_s("snapshot_delta"),
        policy_poll_s=table.duration_s("policy_poll"),
        max_age_s={name: ages.duration_s(name) for name in ages.content},
    )
    table.finish()
    return freshness


def _bots(table: Table) -> Bots:
    bots = Bots(table.number("events_per_minute", Bots.events_per_minute, low=1.0))
    table.finish()
    return bots


def _training(table: Table) -> Training:
    schedule, gate = table.table("schedule", required=False), table.table("gate")
    metric = gate.text("metric")
    if metric and not METRICS.fullmatch(metric):
        gate.problem("metric", metric, "name a metric such as normalized_discounted_cumulative_gain_at_10")
    training = Training(
        schedule={name: schedule.text(name, known=(*EVERY_S, NEVER)) for name in schedule.content},
        gate=PromotionGate(
            metric,
            gate.number("margin", 0.0, low=-1.0, high=1.0),
            _numbers(gate.table("segments", required=False), ()),
        ),
    )
    gate.finish()
    table.finish()
    return training


def _rules(file: Table, freshness: Freshness) -> tuple[Rule, ...]:
    rules = []
    for name, table in file.children().items():
        if name not in RULE_NAMES:
            file.problem(name, name, choose(name, RULE_NAMES))
        after = table.text("after", known=("closed", "open"))
        if "max_age" in table.content and name in freshness.max_age_s:
            table.problem(
                "max_age", table.content["max_age"], "app.toml's freshness.max_age has it too; keep one"
            )
        age_s = table.duration_s("max_age", freshness.max_age_s.get(name))
        rules.append(Rule(name, cast(After, after), None if math.isnan(age_s) else age_s))
        table.finish()
    return tuple(rules)


def _reasons(file: Table, surfaces: Mapping[str, Surface], sources: Collection[str]) -> dict[str, str]:
    known = {*sources, *RUNGS}
    for name in file.content:
        if name not in known:
            file.problem(name, file.content[name], f"unknown key; {choose(name, known)}")
    needed = {
        quota.name for surface in surfaces.values() for quota in surface.sources if quota.name in sources
    }
    needed |= {"last_slate", "segment", "static"}
    names = sorted(needed | (known & file.content.keys()))
    return {name: file.text(name) for name in names}
