"""What no feature may be built from, and what only an aggregate over enough sellers or people may."""

from __future__ import annotations

import re
from collections.abc import Iterator

from narrows.features.declarations import CLASSES, DEFAULT_CLASS, FeatureDeclaration, SourceDeclaration
from narrows.features.parameters import is_number
from narrows.features.scopes import scope_of
from narrows.features.selection import FIELDS

Refusal = tuple[str, object, str]
"""The declaration's key, what stands there, and why it is refused."""

SENSITIVE_WORDS = frozenset(
    {"gender", "sex", "sexual", "sexuality", "agegroup", "birth", "birthday", "birthdate", "race", "racial"}
    | {"ethnicity", "ethnic", "religion", "religious", "faith", "nationality", "disability", "disabled"}
    | {"health", "pregnancy", "pregnant", "politics", "political", "income", "marital", "caste", "genetic"}
    | {"biometric", "salary", "wealth", "veteran", "citizenship", "immigration", "pronoun", "pronouns"}
)
_STEMS = ("gender", "ethnic", "religio", "sexual", "pregnan", "disabilit", "nationalit", "biometr")
"""What tells of a sensitive attribute wherever it stands in a word, as in `usergender`."""
_AGE_OF_A_PERSON = re.compile(
    r"^ages?$|\bage (group|band|range|bracket)|(user|visitor|customer|person|member) age\b"
)
_WHO_SELLS = frozenset({"seller", "sellers", "supplier", "vendor", "merchant", "competitor"})
_WHAT_IT_EARNS = frozenset(
    {"price", "prices", "pricing", "cost", "costs", "margin", "revenue", "turnover"}
    | {"fee", "fees", "commission", "payout", "bid", "bids"}
)
_SHOWS_ONE_VALUE = frozenset({"last_value", "last_n", "first_seen", "last_seen"})
_AGES = frozenset({"decayed_count", "decayed_sum"})
_NOT_WHO = FIELDS.keys() - {"user_id"}
_EXTREMES = frozenset({"min", "max"})
LEAST_GROUP = 3
"""Of two, each can take its own value off the sum or the mean, and has the other's."""


def refusals(declaration: FeatureDeclaration) -> list[Refusal]:
    """Every reason why the feature may not be built, by name and by class."""
    return [*_by_name(declaration), *_by_class(declaration), *_outside_an_aggregate(declaration)]


def sensitive_word(name: str) -> str | None:
    """The part of a name that tells of a sensitive attribute: `age_group`, `userGender`; else None."""
    words = _words(name)
    found = next((word for word in words if word in SENSITIVE_WORDS or _has_stem(word)), None)
    return found or ("age" if _AGE_OF_A_PERSON.search(" ".join(words)) else None)


def class_of(declaration: FeatureDeclaration) -> str:
    """The strictest class among its own and those of what it reads."""
    classes = [declaration.sensitivity, *(class_of_source(declaration, one) for one in declaration.reads)]
    return max(classes, key=lambda one: CLASSES.index(one) if one in CLASSES else len(CLASSES))


def class_of_source(declaration: FeatureDeclaration, name: str) -> str:
    """A property's class as declared, at least `aggregate_only` where its name tells what a seller earns."""
    declared = next((one for one in declaration.sources if one.name == name), SourceDeclaration(name))
    words = frozenset(_words(name))
    if declared.sensitivity in ("public", DEFAULT_CLASS) and words & _WHO_SELLS and words & _WHAT_IT_EARNS:
        return "aggregate_only"
    return declared.sensitivity


def _by_name(declaration: FeatureDeclaration) -> Iterator[Refusal]:
    for key, name in [("name", declaration.name), *_named(declaration)]:
        if word := sensitive_word(name):
            yield (key, name, f"'{word}' is a sensitive attribute; no feature may be built from it")


def _by_class(declaration: FeatureDeclaration) -> Iterator[Refusal]:
    if declaration.sensitivity == "sensitive":
        remedy = "features of this class are refused; build the feature from behaviour instead"
        yield ("sensitivity", declaration.sensitivity, remedy)
    for key, name in _named(declaration):
        if class_of_source(declaration, name) == "sensitive":
            remedy = f"[source.{name}] is of class sensitive; no feature may be built from it"
            yield (key, name, remedy)


def _outside_an_aggregate(declaration: FeatureDeclaration) -> Iterator[Refusal]:
    """Restricted values leave only as aggregates over groups, and no group, filter or extreme shows one."""
    restricted = [
        (key, name)
        for key, name in _named(declaration)
        if class_of_source(declaration, name) == "aggregate_only"
    ]
    if not restricted and declaration.sensitivity != "aggregate_only":
        yield from _half_a_minimum(declaration)
        return
    scope = scope_of(declaration.scope)
    if scope is None or scope.base != "by":
        key, name = restricted[0] if restricted else ("sensitivity", declaration.sensitivity)
        remedy = (
            f"'{name}' is of class aggregate_only: it may only be aggregated by a group; write scope = "
            '"by:<property>" with minimum_group and distinct'
        )
        yield (key, name, remedy)
        return
    for key, name in restricted:
        if key != "value":
            yield (
                key,
                name,
                f"'{name}' is of class aggregate_only: a group or filter would show single values",
            )
    yield from _of_a_group_too_small(declaration)


def _half_a_minimum(declaration: FeatureDeclaration) -> Iterator[Refusal]:
    minimum = {"minimum_group", "distinct"}
    if len(minimum & declaration.parameters.keys()) == 1:
        [key] = minimum - declaration.parameters.keys()
        yield (key, None, "minimum_group and distinct say together when a group is shown; give both")


def _of_a_group_too_small(declaration: FeatureDeclaration) -> Iterator[Refusal]:
    parameters, scope = declaration.parameters, scope_of(declaration.scope)
    if not is_number(parameters.get("minimum_group"), LEAST_GROUP):
        remedy = (
            f"say from how many different {parameters.get('distinct', 'sellers')} on a group may be shown"
        )
        yield ("minimum_group", parameters.get("minimum_group"), f"{remedy}: {LEAST_GROUP} or more")
    if "distinct" not in parameters:
        yield ("distinct", None, "name the property of which minimum_group different values are needed")
    elif scope and parameters["distinct"] == scope.by:
        yield ("distinct", parameters["distinct"], "every group has one of it; name who must be several")
    elif parameters["distinct"] in _NOT_WHO:
        remedy = "one and the same can have many of it; name who must be several, such as user_id"
        yield ("distinct", parameters["distinct"], remedy)
    if declaration.kind in _AGES or "half_life_s" in parameters:
        remedy = "once the others are old it shows the newest value alone; take one that does not age"
        yield ("kind" if declaration.kind in _AGES else "half_life", declaration.kind, remedy)
    shown = declaration.kind in _SHOWS_ONE_VALUE or parameters.get("statistic") in _EXTREMES
    if shown:
        remedy = "it shows a single value of a class aggregate_only; take a mean, a sum or a count"
        key = "statistic" if parameters.get("statistic") in _EXTREMES else "kind"
        yield (key, parameters.get("statistic", declaration.kind), remedy)


def _named(declaration: FeatureDeclaration) -> Iterator[tuple[str, str]]:
    """(the declaration's key, the property or column that is named there)."""
    scope, parameters = scope_of(declaration.scope), declaration.parameters
    if declaration.value:
        yield ("value", declaration.value)
    yield from ((f"where.{name}", name) for name in declaration.where)
    if scope and scope.by:
        yield ("scope", scope.by)
    for key in ("item", "column", "within", "context", "distinct"):
        name = parameters.get(key)
        if isinstance(name, str):
            yield (key, name)


def _words(name: str) -> list[str]:
    return re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())


def _has_stem(word: str) -> bool:
    return any(stem in word for stem in _STEMS)
