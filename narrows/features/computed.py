"""Features that no event folds into: computed from the request, from a visitor's values and from an item.

They are declared like all others. `request` features have one value a request; those of `item` and of
`visitor x item` have one for each candidate. Undefined is nan here, and a default with a flag for the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from narrows.features.declarations import FeatureDeclaration, Parameter
from narrows.features.parameters import ParameterRule, one_of, text, texts

Rows = NDArray[np.int32]
Floats = NDArray[np.float32]

DAY_S = 86_400.0
HOUR_S = 3_600.0
MISSING_SUFFIX = "_missing"
NO_VALUES: Mapping[str, float] = MappingProxyType({})
NO_CONTEXT: Mapping[str, str] = MappingProxyType({})
_NO_RULES: Mapping[str, ParameterRule] = MappingProxyType({})


class Items(Protocol):
    """The part of the item snapshot that features read."""

    @property
    def columns(self) -> Mapping[str, NDArray[Any]]:
        """Every column by name."""

    def take(self, rows: Rows, names: tuple[str, ...]) -> dict[str, NDArray[Any]]:
        """These columns of these rows; missing values as nan or -1."""

    def vocabulary(self, name: str) -> tuple[str, ...]:
        """The words of a category column, by code; () for a column of numbers."""


@dataclass(frozen=True)
class Asked:
    """The moment of a request in epoch seconds, what it told of itself, and its visitor's values.

    `visitor` is what `FeatureSet.read` gives: values, `<name>_missing` flags, pairs as `name[value]`.
    """

    now: float
    context: Mapping[str, str] = field(default_factory=lambda: NO_CONTEXT)
    visitor: Mapping[str, float] = field(default_factory=lambda: NO_VALUES)

    def known(self, name: str) -> float:
        """A visitor's value, nan where it is only the default."""
        missing = self.visitor.get(name + MISSING_SUFFIX, 1.0)
        return math.nan if missing else self.visitor.get(name, math.nan)


@dataclass(frozen=True)
class Computed:
    """A computed feature as a model's manifest keeps it."""

    name: str
    kind: str
    default: float
    parameters: Mapping[str, Parameter]

    def text(self, parameter: str) -> str:
        """A parameter that names something, "" where it is not given."""
        return str(self.parameters.get(parameter, ""))

    @staticmethod
    def of(declaration: FeatureDeclaration) -> Computed:
        """What computes it, of a declaration."""
        return Computed(declaration.name, declaration.kind, declaration.default, dict(declaration.parameters))

    @staticmethod
    def from_json(kept: Mapping[str, Any]) -> Computed:
        """What `asdict` gave, after JSON made lists of its tuples."""
        plain = {key: tuple(one) if isinstance(one, list) else one for key, one in kept["parameters"].items()}
        return Computed(kept["name"], kept["kind"], kept["default"], plain)


Value = Callable[[Computed, Asked], float]
Values = Callable[[Computed, Asked, Items, Rows], NDArray[np.float64]]


@dataclass(frozen=True)
class ComputedKind:
    """A way of computing: its scope, its parameters, the kinds that its `of` may name, and its function.

    `value` computes one number for a request, `values` one for each row; nan is undefined. `clock` tells
    whether it changes with time alone.
    """

    name: str
    scope: str
    meaning: str
    parameters: Mapping[str, ParameterRule] = field(default_factory=lambda: _NO_RULES)
    of: str = ""
    value: Value | None = None
    values: Values | None = None
    clock: bool = False


class ComputedFeatures:
    """The computed features of an app, ready to be asked."""

    SCOPES: ClassVar[tuple[str, ...]] = ("request", "item", "visitor x item")

    def __init__(self, declarations: Sequence[FeatureDeclaration]) -> None:
        chosen = [one for one in declarations if one.kind in COMPUTED]
        by_scope = {
            scope: tuple(Computed.of(one) for one in chosen if one.scope == scope) for scope in self.SCOPES
        }
        self.request, self.item, self.cross = (by_scope[scope] for scope in self.SCOPES)

    def request_values(
        self, now: float, context: Mapping[str, str], visitor: Mapping[str, float]
    ) -> dict[str, float]:
        """Every request feature, with `<name>_missing` 1.0 where it is only the declared default."""
        asked = Asked(now, context, visitor)
        values: dict[str, float] = {}
        for one in self.request:
            value = _request_value(one, asked)
            values[one.name] = one.default if math.isnan(value) else value
            values[one.name + MISSING_SUFFIX] = float(math.isnan(value))
        return values


def row_values(features: Sequence[Computed], asked: Asked, items: Items, rows: Rows) -> list[Floats]:
    """For each feature its values and its flags, float32[n] each."""
    blocks: list[Floats] = []
    for one in features:
        function = COMPUTED[one.kind].values
        found = function(one, asked, items, rows) if function else np.full(len(rows), np.nan)
        missing = np.isnan(found)
        blocks += [np.where(missing, one.default, found).astype(np.float32), missing.astype(np.float32)]
    return blocks


def with_flags(names: Sequence[str]) -> tuple[str, ...]:
    """Each name, followed by the name of its flag."""
    return tuple(both for name in names for both in (name, name + MISSING_SUFFIX))


def _request_value(one: Computed, asked: Asked) -> float:
    function = COMPUTED[one.kind].value
    return function(one, asked) if function else math.nan


def _hour_of_day(one: Computed, asked: Asked) -> float:  # noqa: ARG001  # the hour has no parameters
    return asked.now % DAY_S / HOUR_S


def _day_of_week(one: Computed, asked: Asked) -> float:  # noqa: ARG001  # nor has the day
    return float((asked.now // DAY_S + 3) % 7)  # 1 January 1970 was a Thursday


def _context_is(one: Computed, asked: Asked) -> float:
    told = asked.context.get(one.text("context"), "")
    wanted = one.parameters["among"]
    return float(told in wanted) if told and isinstance(wanted, tuple) else math.nan


def _context_code(one: Computed, asked: Asked) -> float:
    told = asked.context.get(one.text("context"), "")
    words = one.parameters["values"]
    if not told or not isinstance(words, tuple):
        return math.nan
    return float(words.index(told)) if told in words else float(len(words))


def _context_number(one: Computed, asked: Asked) -> float:
    try:
        value = float(asked.context.get(one.text("context"), ""))
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def _time_since(one: Computed, asked: Asked) -> float:
    age_s = asked.now - asked.known(one.text("of"))
    return age_s if math.isnan(age_s) else max(0.0, age_s) / DAY_S


def _is_known(one: Computed, asked: Asked) -> float:
    return float(not math.isnan(asked.known(one.text("of"))))


def _at_this_hour(one: Computed, asked: Asked) -> float:
    shares = _pair(one.text("of"), asked.visitor)
    total = sum(shares.values())
    return shares.get(str(int(asked.now % DAY_S // HOUR_S)), 0.0) / total if total > 0 else math.nan


def _affinity(one: Computed, asked: Asked, items: Items, rows: Rows) -> NDArray[np.float64]:
    """The greatest among an item's categories, as a share of all that the visitor has."""
    shares, column = _pair(one.text("of"), asked.visitor), one.text("item")
    total = sum(shares.values())
    wide = f"{column}_all" if f"{column}_all" in items.columns else column
    if total <= 0 or wide not in items.columns:
        return np.full(len(rows), np.nan)
    code_of = _code_of(items.vocabulary(column))
    by_code = np.zeros(len(code_of) + 1)
    for word in shares.keys() & code_of.keys():
        by_code[code_of[word]] = shares[word] / total
    by_code[-1] = np.nan
    codes = items.take(rows, (wide,))[wide]
    codes = codes[:, None] if codes.ndim == 1 else codes
    found = by_code[codes]  # code -1, no category, reads the nan at the end
    return np.where(np.isnan(found).all(axis=1), np.nan, np.fmax.reduce(found, axis=1))


def _distance(one: Computed, asked: Asked, items: Items, rows: Rows) -> NDArray[np.float64]:
    from_, column = asked.known(one.text("of")), one.text("item")
    if math.isnan(from_) or column not in items.columns:
        return np.full(len(rows), np.nan)
    values = items.take(rows, (column,))[column].astype(np.float64)
    if one.text("scale") != "log":
        return np.abs(values - from_)
    positive = np.where(values > 0, values, np.nan)
    return np.abs(np.log(positive / from_)) if from_ > 0 else np.full(len(rows), np.nan)


def _column(one: Computed, asked: Asked, items: Items, rows: Rows) -> NDArray[np.float64]:  # noqa: ARG001
    column = one.text("column")
    if column not in items.columns or items.columns[column].dtype.kind not in "fiu":
        return np.full(len(rows), np.nan)
    return items.take(rows, (column,))[column].astype(np.float64)


def _age(one: Computed, asked: Asked, items: Items, rows: Rows) -> NDArray[np.float64]:
    return np.maximum(0.0, asked.now - _column(one, asked, items, rows)) / DAY_S


@lru_cache(maxsize=16)
def _code_of(vocabulary: tuple[str, ...]) -> Mapping[str, int]:
    return {word: code for code, word in enumerate(vocabulary)}


def _pair(name: str, visitor: Mapping[str, float]) -> dict[str, float]:
    """value of the property -> what the visitor has of it, from `name[value]`."""
    start = f"{name}["
    return {
        key[len(start) : -1]: value
        for key, value in visitor.items()
        if key.startswith(start) and key.endswith("]")
    }


_CONTEXT = text("what the request tells in its `context`", 'name it, as context = "device"')
_OF = text("the feature that it is computed from", "name a declared feature")
_COLUMN = text("a column of numbers of the catalogue", 'name it, as column = "price"')
_CATEGORIES = text("a column of categories of the catalogue", 'name it, as item = "brand"')
_SCALE = one_of("`log` for the logarithm of the ratio", ("absolute", "log"), required=False)
_AMONG = texts("the words that count as yes", 'list them, as among = ["mobile", "tablet"]')
_WORDS = texts(
    "the closed list of words", 'list them in an order that never changes, as values = ["US", "DE"]'
)


def _of_request(
    name: str, meaning: str, value: Value, *, of: str = "", clock: bool = False, **rules: ParameterRule
) -> ComputedKind:
    return ComputedKind(
        name, "request", meaning, {**({"of": _OF} if of else {}), **rules}, of, value, None, clock
    )


def _of_rows(
    scope: str,
    name: str,
    meaning: str,
    values: Values,
    *,
    of: str = "",
    clock: bool = False,
    **rules: ParameterRule,
) -> ComputedKind:
    return ComputedKind(
        name, scope, meaning, {**({"of": _OF} if of else {}), **rules}, of, None, values, clock
    )


_KINDS = (
    _of_request("hour_of_day", "The hour with its fraction, 0 to 24, UTC.", _hour_of_day, clock=True),
    _of_request("day_of_week", "0 for Monday to 6 for Sunday, UTC.", _day_of_week, clock=True),
    _of_request(
        "context_is",
        "1 where the request's context tells one of these words, 0 where it tells another.",
        _context_is,
        context=_CONTEXT,
        among=_AMONG,
    ),
    _of_request(
        "context_code",
        "The place of the context's word in a closed list, the list's length for any other word.",
        _context_code,
        context=_CONTEXT,
        values=_WORDS,
    ),
    _of_request(
        "context_number", "A number that the request tells in its context.", _context_number, context=_CONTEXT
    ),
    _of_request("time_since", "Days since a first or last event.", _time_since, of="moment", clock=True),
    _of_request(
        "is_known", "1 where a visitor's feature has a value, 0 where it is missing.", _is_known, of="visitor"
    ),
    _of_request(
        "at_this_hour",
        "The share of a visitor's activity that falls into the present hour of the day.",
        _at_this_hour,
        of="hours",
        clock=True,
    ),
    _of_rows("item", "column", "A number of the catalogue.", _column, column=_COLUMN),
    _of_rows("item", "age", "Days since a moment in the catalogue.", _age, clock=True, column=_COLUMN),
    _of_rows(
        "visitor x item",
        "affinity",
        "The share that the item's category has in what the visitor did; of several the greatest.",
        _affinity,
        of="pair",
        item=_CATEGORIES,
    ),
    _of_rows(
        "visitor x item",
        "distance",
        "How far the item's number is from the visitor's own.",
        _distance,
        of="number",
        item=_COLUMN,
        scale=_SCALE,
    ),
)
COMPUTED: Mapping[str, ComputedKind] = MappingProxyType({kind.name: kind for kind in _KINDS})
