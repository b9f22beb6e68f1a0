"""A feature as an app declares it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Parameter = float | int | str | bool | tuple[str, ...]


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
