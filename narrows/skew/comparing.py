"""Served values against recomputed ones: how many agree, and how far the others are apart."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from narrows.features.declarations import FeatureDeclaration
from narrows.features.registry import MISSING_SUFFIX

RELATIVE = 1e-9
Value = float | tuple[str, ...] | None
Values = Mapping[str, Value]
Cell = tuple[int, str]
"""A value among many vectors: the number of its vector, and its name."""
WHOLE_KINDS = frozenset({"distinct_count", "last_value", "first_seen", "last_seen"})


@dataclass(frozen=True)
class Row:
    """One served vector and what became of it when it was computed again; None is an undefined value.

    `at` is the moment of the decision in epoch seconds; lists are those of `last_n` features.
    """

    recommendation_id: str
    at: float
    served: Values
    recomputed: Values


@dataclass(frozen=True)
class Divergence:
    """A value that was served and does not come out again."""

    recommendation_id: str
    at: float
    feature: str
    served: Value
    recomputed: Value


@dataclass
class Tally:
    """How the values of one feature compare; differences are those between two numbers."""

    values: int = 0
    exact: int = 0
    max_abs_diff: float = 0.0

    def count(self, served: Value, recomputed: Value, same: bool) -> None:
        """Take one value into account."""
        self.values += 1
        self.exact += same
        if isinstance(served, float) and isinstance(recomputed, float):
            self.max_abs_diff = max(self.max_abs_diff, abs(served - recomputed))


@dataclass(frozen=True)
class Comparison:
    """All values of all rows, counted; `divergences` are in the order of time."""

    rows: int
    by_feature: Mapping[str, Tally] = field(default_factory=dict)
    divergences: Sequence[Divergence] = ()

    @property
    def values(self) -> int:
        """How many values were compared."""
        return sum(one.values for one in self.by_feature.values())

    @property
    def exact_share(self) -> float:
        """The share of values that agree; nan where nothing was compared."""
        exact = sum(one.exact for one in self.by_feature.values())
        return exact / self.values if self.values else math.nan

    @property
    def max_abs_diff(self) -> float:
        """The largest difference between a served number and its recomputed one, rounding included."""
        return max((one.max_abs_diff for one in self.by_feature.values()), default=math.nan)

    def table(self) -> dict[str, dict[str, Any]]:
        """Of each declared feature: how many values, which share agrees, and the largest difference."""
        return {
            name: {
                "values": one.values,
                "exact_share": one.exact / one.values,
                "max_abs_diff": one.max_abs_diff,
            }
            for name, one in sorted(self.by_feature.items())
        }


def compare(rows: Sequence[Row], exact: Collection[str]) -> Comparison:
    """Every value that either side has; integers, lists and the features named in `exact` bit for bit.

    Other numbers agree within one part in 10^9. A value that one side lacks does not agree.
    """
    tallies: dict[str, Tally] = {}
    divergences: list[Divergence] = []
    for row in sorted(rows, key=lambda one: (one.at, one.recommendation_id)):
        for name in sorted(row.served.keys() | row.recomputed.keys()):
            served, recomputed = row.served.get(name), row.recomputed.get(name)
            both = name in row.served and name in row.recomputed
            same = both and alike(served, recomputed, exact=is_exact(name, exact))
            tallies.setdefault(declared_name(name), Tally()).count(served, recomputed, same)
            if not same:
                divergences.append(Divergence(row.recommendation_id, row.at, name, served, recomputed))
    return Comparison(len(rows), tallies, divergences)


def alike(left: Value, right: Value, *, exact: bool) -> bool:
    """Whether two values agree; an undefined one agrees only with another undefined one.

    >>> alike(0.1 + 0.2, 0.3, exact=False), alike(0.1 + 0.2, 0.3, exact=True), alike(None, 0.0, exact=False)
    (True, False, False)
    """
    if isinstance(left, float) and isinstance(right, float) and not exact:
        return left == right or math.isclose(left, right, rel_tol=RELATIVE)
    return left == right


def exact_features(declarations: Sequence[FeatureDeclaration]) -> frozenset[str]:
    """The features whose values are whole numbers, codes, moments or lists: nothing is rounded in them."""
    return frozenset(
        one.name
        for one in declarations
        if one.kind in WHOLE_KINDS or (one.kind == "count" and one.value is None)
    )


def is_exact(name: str, exact: Collection[str]) -> bool:
    """Whether the value under this name is compared bit for bit; flags always are."""
    return name.endswith(MISSING_SUFFIX) or declared_name(name) in exact


def declared_name(name: str) -> str:
    """The declared feature of a value's name: of its flag, or of one part of a pair.

    >>> declared_name("affinity[shoes]"), declared_name("views_missing")
    ('affinity', 'views')
    """
    return name.partition("[")[0].removesuffix(MISSING_SUFFIX)


def value_of(raw: object) -> Value:
    """A value as JSON or Spark holds it: numbers become floats, nan and null undefined, lists tuples."""
    if isinstance(raw, list | tuple):
        return tuple(str(one) for one in raw)
    if isinstance(raw, bool | int | float) and not math.isnan(raw):
        return float(raw)
    return None


def values_of(*parts: Mapping[str, Any]) -> dict[str, Value]:
    """The values of several mappings together."""
    return {name: value_of(raw) for part in parts for name, raw in part.items()}


def numbers(rows: Sequence[Row], name: str) -> Iterator[tuple[Row, float, float]]:
    """The rows in which both sides have a number that is not merely the default of a missing value."""
    for row in rows:
        served, recomputed = row.served.get(name), row.recomputed.get(name)
        flag = f"{name}{MISSING_SUFFIX}"
        missing = 1.0 in (row.served.get(flag), row.recomputed.get(flag))
        if isinstance(served, float) and isinstance(recomputed, float) and not missing:
            yield row, served, recomputed
