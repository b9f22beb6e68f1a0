"""A feature as an app declares it, and what it is made from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from narrows.features.scopes import scope_of

Parameter = float | int | str | bool | tuple[str, ...]

CLASSES = ("public", "internal", "aggregate_only", "sensitive")
"""How freely a source may be used, the freest first; `sensitive` builds nothing at all."""
DEFAULT_CLASS = "internal"
_NOT_THE_MEANING = frozenset({"owner", "description", "freshness_s", "sensitivity", "unit", "sources"})


@dataclass(frozen=True)
class SourceDeclaration:
    """A property of events, or a column of the catalogue, and who may make what from it."""

    name: str
    sensitivity: str = DEFAULT_CLASS
    owner: str = ""
    description: str = ""


@dataclass(frozen=True)
class FeatureDeclaration:
    """A feature as data; its kind tells how events fold into it, or how it is computed.

    `parameters` holds every key of the declaration that is not a field here, in the types of TOML. A duration
    is given in seconds under its name with `_s`: `half_life = "7d"` becomes `half_life_s: 604800.0`. What a
    kind takes, its class says. `sources` are those of `[source.<name>]` that the feature reads.
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
    sensitivity: str = DEFAULT_CLASS
    unit: str = ""
    sources: tuple[SourceDeclaration, ...] = ()

    @property
    def of(self) -> str | None:
        """The feature that this one is computed from."""
        name = self.parameters.get("of")
        return name if isinstance(name, str) else None

    @property
    def reads(self) -> tuple[str, ...]:
        """The properties of events, and columns of items, that decide its value; without those of `of`."""
        scope = scope_of(self.scope)
        named: list[object] = [self.value, *self.where, scope.by if scope else ""]
        named += [self.parameters.get(name) for name in ("distinct", "item", "column", "within", "context")]
        return tuple(dict.fromkeys(name for name in named if isinstance(name, str) and name))

    def from_sources(self, known: Mapping[str, SourceDeclaration]) -> FeatureDeclaration:
        """The declaration with what is declared of the sources that it reads."""
        return replace(self, sources=tuple(known[name] for name in self.reads if name in known))


def lineage(declaration: FeatureDeclaration, known: Mapping[str, FeatureDeclaration]) -> tuple[str, ...]:
    """The names of the features that it is computed from, nearest first; a cycle is walked once."""
    names: list[str] = []
    at = declaration.of
    while at is not None and at not in names and at in known:
        names.append(at)
        at = known[at].of
    return tuple(names)


def definitions(declarations: Sequence[FeatureDeclaration]) -> dict[str, str]:
    """Of each feature a digest that changes exactly when its values do, also by what it is computed from."""
    known = {one.name: one for one in declarations}
    return {
        name: hashlib.sha256(
            canonical([meaning(one), *(meaning(known[source]) for source in lineage(one, known))])
        ).hexdigest()[:16]
        for name, one in known.items()
    }


def meaning(declaration: FeatureDeclaration) -> dict[str, Any]:
    """What decides the values; descriptions and owners do not, nor does the order of the events."""
    fields = {name: getattr(declaration, name) for name in declaration.__dataclass_fields__}
    kept = {name: value for name, value in fields.items() if name not in _NOT_THE_MEANING}
    plain = {name: dict(value) if isinstance(value, Mapping) else value for name, value in kept.items()}
    return {**plain, "events": sorted(declaration.events)}


def canonical(value: object) -> bytes:
    """The same bytes for the same content, whatever the order of its keys."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
