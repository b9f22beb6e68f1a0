"""Reads features.toml: what a feature is made from, and the declarations, with every mistake noted."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

from narrows.features.declarations import (
    CLASSES,
    DEFAULT_CLASS,
    FeatureDeclaration,
    Parameter,
    SourceDeclaration,
)
from narrows.toml_reading import Table, duration_s


def read_features(file: Table, events: Collection[str]) -> tuple[FeatureDeclaration, ...]:
    """The declarations of an app whose events have these types; `narrows.features.checks` judges them."""
    sources = {
        name: _source(name, table) for name, table in file.table("source", required=False).children().items()
    }
    features = tuple(_feature(table, events, sources) for table in file.tables("feature", required=False))
    file.finish()
    return features


def _source(name: str, table: Table) -> SourceDeclaration:
    source = SourceDeclaration(
        name=name,
        sensitivity=table.text("class", DEFAULT_CLASS, known=CLASSES),
        owner=table.text("owner", ""),
        description=table.text("description", ""),
    )
    table.finish()
    return source


def _feature(
    table: Table, events: Collection[str], sources: Mapping[str, SourceDeclaration]
) -> FeatureDeclaration:
    fresh_s = table.duration_s("freshness", None)
    declared = FeatureDeclaration(
        name=table.text("name"),
        kind=table.text("kind"),
        scope=table.text("scope", "visitor"),
        events=table.texts("events", (), known=events),
        owner=table.text("owner"),
        description=table.text("description"),
        default=table.number("default", 0.0, low=float("-inf")),
        value=table.text("value", "") or None,
        where=dict(table.table("where", required=False).content),
        freshness_s=None if math.isnan(fresh_s) else fresh_s,
        sensitivity=table.text("sensitivity", DEFAULT_CLASS),
        unit=table.text("unit", ""),
        parameters=_parameters(table, events),
    )
    return declared.from_sources(sources)


def _parameters(table: Table, events: Collection[str]) -> dict[str, Parameter]:
    """Every other key: durations in seconds under their name with `_s`, the rest as it stands."""
    per = {"per": table.texts("per", known=events)} if "per" in table.content else {}
    parameters: dict[str, Parameter] = dict(per)
    for name, value in table.rest().items():
        seconds = duration_s(value)
        if name.endswith("_s"):
            table.problem(name, value, f'write it with its unit, as {name.removesuffix("_s")} = "7d"')
        elif seconds is not None:
            parameters[f"{name}_s"] = seconds
        else:
            parameters[name] = tuple(value) if isinstance(value, list) else value
    return parameters
