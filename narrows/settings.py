"""What an app is: the frozen settings that every stage reads, loaded from `apps/<app>/`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

Seed = Literal["history", "item", "cart"]
After = Literal["closed", "open"]
Parameter = float | int | str | bool | tuple[str, ...]


@dataclass(frozen=True)
class Catalogue:
    """Which item columns play which part; "" and () where the catalogue has no such column."""

    id: str
    text: tuple[str, ...] = ()
    categories: str = ""
    brand: str = ""
    price: str = ""
    time: str = ""
    regions: str = ""
    attributes: tuple[str, ...] = ()


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
class Surface:
    """One place where recommendations are shown, and how they are made there."""

    name: str
    deadline_ms: float
    limit: int
    sources: tuple[SourceQuota, ...]
    rank_at_most: int
    diversity: Diversity
    value: Mapping[str, float]
    ladder: tuple[str, ...]
    seed: Seed
    exclude_seen: bool


@dataclass(frozen=True)
class FeatureDeclaration:
    """A feature as data; the registry turns it into a kind.

    `parameters` holds every key of the declaration that is not a field here. A duration there is given in
    seconds under its name with `_s`: `half_life = "7d"` becomes `half_life_s: 604800.0`. By kind: `count`
    none; `decayed_count` half_life_s; `smoothed_rate` per (event types of the denominator), prior_successes,
    prior_trials and, where it decays, half_life_s; `last_n` keep.
    """

    name: str
    kind: str
    scope: str
    events: tuple[str, ...]
    owner: str
    description: str
    default: float
    parameters: Mapping[str, Parameter]
    value: str | None
    where: Mapping[str, str | float | bool]
    freshness_s: float | None
    sensitivity: str


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


@dataclass(frozen=True)
class Training:
    """`schedule`: model -> how often ("daily"); `gate`: what a candidate model must reach."""

    schedule: Mapping[str, str]
    gate: PromotionGate


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
