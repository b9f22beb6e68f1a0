"""What an app's features are, for people: where each comes from, its class, its owner, who reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from narrows.features.checks import LISTS, MOMENTS, for_a_model, parameters_of
from narrows.features.computed import COMPUTED
from narrows.features.declarations import FeatureDeclaration, Parameter, definitions, lineage
from narrows.features.kinds import KINDS
from narrows.features.parameters import as_texts
from narrows.features.scopes import scope_of
from narrows.features.sensitivity import class_of, class_of_source

DAYS = ((86_400.0, "d"), (3_600.0, "h"), (60.0, "m"), (1.0, "s"))
PREFIXES: Mapping[str, str] = {"request": "request", "item": "item", "cross": "cross"}


@dataclass(frozen=True)
class AuditedFeature:
    """One line of the audit; `sources` are events with the properties read of them, `lineage` features."""

    name: str
    owner: str
    sources: str
    sensitivity: str
    freshness: str
    lineage: str
    scope: str
    kind: str
    default: float
    unit: str
    description: str


def audit(declarations: Sequence[FeatureDeclaration]) -> list[AuditedFeature]:
    """Every feature in the order of its declaration."""
    known = {one.name: one for one in declarations}
    return [
        AuditedFeature(
            name=one.name,
            owner=one.owner,
            sources=_all_sources(one, known),
            sensitivity=_class(one, known),
            freshness=shown_duration(one.freshness_s) if one.freshness_s else _freshness(one),
            lineage=" <- ".join(lineage(one, known)),
            scope=one.scope,
            kind=one.kind,
            default=one.default,
            unit=one.unit,
            description=one.description,
        )
        for one in declarations
    ]


def explanation(name: str, declarations: Sequence[FeatureDeclaration]) -> dict[str, object]:
    """All there is to say about one feature; KeyError for a name that is not declared."""
    known = {one.name: one for one in declarations}
    one = known[name]
    audited = next(line for line in audit(declarations) if line.name == name)
    rules = parameters_of(one.kind, scope_of(one.scope))
    return {
        **asdict(audited),
        "kind_does": meaning_of(one.kind),
        "parameters": {key.removesuffix("_s"): shown(key, value) for key, value in one.parameters.items()},
        "defaults_of_parameters": sorted(
            key.removesuffix("_s") for key in rules if key not in one.parameters
        ),
        "events": list(one.events),
        "value": one.value,
        "where": dict(one.where),
        "sources_declared": [
            {"name": key, "class": class_of_source(one, key), "owner": _owner(one, key)} for key in one.reads
        ],
        "read_by": sorted(other.name for other in declarations if name in lineage(other, known)),
        "columns": columns(one),
        "definition": definitions(declarations)[name],
    }


def columns(declaration: FeatureDeclaration) -> list[str]:
    """The columns of the ranker's input that hold it; none for lists, pairs, moments and groups."""
    scope = scope_of(declaration.scope)
    if scope is None or scope.base == "by" or declaration.kind in LISTS | MOMENTS:
        return []
    if scope.of_visitor and not for_a_model(declaration):
        return []
    prefix = PREFIXES.get(scope.base, "visitor")
    return [f"{prefix}.{declaration.name}", f"{prefix}.{declaration.name}_missing"]


def meaning_of(kind: str) -> str:
    """The first sentence of what a kind does."""
    if kind in COMPUTED:
        return COMPUTED[kind].meaning
    return (KINDS[kind].__doc__ or "").split("; state")[0].split("\n")[0].rstrip(".") + "."


def shown(name: str, value: Parameter) -> str:
    """A parameter as it is written in the file, durations with their unit."""
    if name.endswith("_s") and isinstance(value, int | float):
        return shown_duration(float(value))
    return ", ".join(as_texts(value)) if isinstance(value, tuple) else str(value)


def shown_duration(seconds: float) -> str:
    """Seconds in the largest unit that divides them.

    >>> shown_duration(604800.0)
    '7d'
    """
    for length, unit in DAYS:
        if seconds >= length and seconds % length == 0:
            return f"{seconds / length:g}{unit}"
    return f"{seconds:g}s"


def _all_sources(one: FeatureDeclaration, known: Mapping[str, FeatureDeclaration]) -> str:
    """Its own, and those of the feature that it is computed from in the end."""
    above = lineage(one, known)
    return "; ".join(
        text for text in (_sources(one), *(_sources(known[name]) for name in above[-1:])) if text
    )


def _sources(one: FeatureDeclaration) -> str:
    events, per = "/".join(one.events) or "every event", "/".join(as_texts(one.parameters.get("per")))
    read = ", ".join(_read(one))
    if one.kind in COMPUTED:
        return ", ".join(filter(None, ("the clock" if COMPUTED[one.kind].clock else "", read)))
    return (f"{events} per {per}" if per else events) + (f": {read}" if read else "")


def _read(one: FeatureDeclaration) -> list[str]:
    """The properties and columns it reads, filters with what they ask for."""
    named = [name for name in one.reads if name not in one.where]
    prefix = {"item": "catalogue.", "column": "catalogue.", "within": "catalogue.", "context": "context."}
    places = {one.parameters[key]: start for key, start in prefix.items() if key in one.parameters}
    shown_names = [f"{places.get(name, '')}{name}" for name in named]
    return [*shown_names, *(f"{name}={wanted}" for name, wanted in one.where.items())]


def _class(one: FeatureDeclaration, known: Mapping[str, FeatureDeclaration]) -> str:
    """The strictest class among its own sources and those of the features that it is computed from."""
    from_all = [class_of(one), *(class_of(known[name]) for name in lineage(one, known))]
    return max(from_all, key=lambda name: ("public", "internal", "aggregate_only", "sensitive").index(name))


def _freshness(one: FeatureDeclaration) -> str:
    scope = scope_of(one.scope)
    if one.kind in COMPUTED:
        return "at the request"
    return "streaming" if scope and scope.of_visitor else "nightly"


def _owner(one: FeatureDeclaration, name: str) -> str:
    return next((source.owner for source in one.sources if source.name == name), "") or one.owner
