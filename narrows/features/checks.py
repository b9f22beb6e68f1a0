"""What is wrong with an app's declarations: everything at once, with file, key and remedy."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from narrows.errors import Problem
from narrows.events import USUAL, is_usual, nearest
from narrows.features.computed import COMPUTED, MISSING_SUFFIX, ComputedKind
from narrows.features.declarations import CLASSES, FeatureDeclaration, lineage
from narrows.features.kinds import KINDS, PerValue
from narrows.features.parameters import ParameterRule, text, whole
from narrows.features.scopes import FORMS, Scope, scope_of
from narrows.features.sensitivity import LEAST_GROUP, refusals

FILE = "features.toml"
OF_A_GROUP: Mapping[str, ParameterRule] = {
    "minimum_group": whole(
        "how many different values of `distinct` a group needs to be shown",
        LEAST_GROUP,
        1_000_000,
        required=False,
    ),
    "distinct": text("the property whose different values are counted", "name a property", required=False),
}
LISTS = frozenset({"last_n"})
MOMENTS = frozenset({"first_seen", "last_seen"})
"""Kinds that read as a moment in epoch seconds, which no model may see: it would learn the date."""

_SUFFIX = "_s"


def check(declarations: Sequence[FeatureDeclaration]) -> list[Problem]:
    """Every mistake in the declarations, together; empty when they can be used."""
    known = {one.name: one for one in declarations}
    times = Counter(one.name for one in declarations)
    problems: list[Problem] = []
    for declaration in declarations:
        if times[declaration.name] > 1:
            times[declaration.name] = 0  # said once, however many there are
            remedy = "another feature has this name; give each its own"
            problems.append(_problem(declaration, "name", declaration.name, remedy))
        problems += [*_check_words(declaration), *_check_kind(declaration), *_check_of(declaration, known)]
        problems += [_problem(declaration, key, value, why) for key, value, why in refusals(declaration)]
    return problems + _check_cycles(known)


def parameters_of(kind: str, scope: Scope | None) -> Mapping[str, ParameterRule]:
    """All parameters that a declaration of this kind and scope may have; {} for an unknown kind."""
    own: Mapping[str, ParameterRule] = {}
    if kind in COMPUTED:
        own = COMPUTED[kind].parameters
    elif kind in KINDS:
        own = KINDS[kind].PARAMETERS
    more: dict[str, ParameterRule] = {}
    if scope and scope.pair:
        more |= PerValue.PARAMETERS
    elif scope and scope.base == "by":
        more |= OF_A_GROUP
    return {**own, **more}


def for_a_model(declaration: FeatureDeclaration) -> bool:
    """Whether a visitor's one number of it can be a column: no list, no pair, and no moment."""
    scope = scope_of(declaration.scope)
    single = bool(scope and scope.of_visitor and not scope.pair)
    return single and declaration.kind not in LISTS | MOMENTS


def _check_words(declaration: FeatureDeclaration) -> Iterator[Problem]:
    name = declaration.name
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name.endswith(MISSING_SUFFIX):
        remedy = f"use lower-case letters, digits and underscores, not ending in {MISSING_SUFFIX}"
        yield _problem(declaration, "name", name, remedy)
    if not math.isfinite(declaration.default):
        yield _problem(declaration, "default", declaration.default, "give a finite number")
    if declaration.sensitivity not in CLASSES:
        remedy = _choose(declaration.sensitivity, CLASSES)
        yield _problem(declaration, "sensitivity", declaration.sensitivity, remedy)
    for key, wanted in declaration.where.items():
        if not isinstance(wanted, str | int | float):
            yield _problem(declaration, f"where.{key}", wanted, "give one text, number, true or false")
        elif not isinstance(wanted, str) and not is_usual(wanted):
            yield _problem(declaration, f"where.{key}", wanted, f"no event holds it; give a number {USUAL}")


def _check_kind(declaration: FeatureDeclaration) -> Iterator[Problem]:
    kind, scope = declaration.kind, scope_of(declaration.scope)
    if scope is None or (scope.pair and scope.by == "item"):
        yield _problem(declaration, "scope", declaration.scope, _choose(declaration.scope, FORMS))
    if kind not in KINDS and kind not in COMPUTED:
        yield _problem(declaration, "kind", kind, _choose(kind, {*KINDS, *COMPUTED}))
        return
    yield from _check_parameters(declaration, parameters_of(kind, scope))
    if kind in COMPUTED:
        yield from _check_computed(declaration, COMPUTED[kind])
    else:
        yield from _check_folded(declaration, scope)


def _check_parameters(
    declaration: FeatureDeclaration, rules: Mapping[str, ParameterRule]
) -> Iterator[Problem]:
    given, kind = declaration.parameters, declaration.kind
    for name, rule in rules.items():
        key = name.removesuffix(_SUFFIX)
        if rule.required and name not in given and key not in given:
            yield _problem(declaration, key, None, f"a {kind} needs it: {rule.meaning}; {rule.remedy}")
    for name, value in given.items():
        named = rules.get(name) or rules.get(f"{name}{_SUFFIX}")
        if named is None:
            known = {one.removesuffix(_SUFFIX) for one in rules}
            remedy = _choose(name, known) if known else f"a {kind} takes no parameters"
            yield _problem(declaration, name, value, remedy)
        elif name not in rules or not named.accepts(value):
            yield _problem(declaration, name.removesuffix(_SUFFIX), value, named.remedy)
    conflicts = getattr(KINDS.get(kind), "conflicts", None)  # only some kinds have parameters that can
    for name, remedy in conflicts(given) if conflicts else ():
        yield _problem(declaration, name, given.get(name), remedy)


def _check_folded(declaration: FeatureDeclaration, scope: Scope | None) -> Iterator[Problem]:
    kind, takes = declaration.kind, KINDS[declaration.kind].VALUE
    if scope and not scope.folded:
        known = [one.name for one in COMPUTED.values() if one.scope == declaration.scope]
        remedy = f"nothing is folded for {declaration.scope}; choose one of {', '.join(known)}"
        yield _problem(declaration, "kind", kind, remedy)
    if not declaration.events and kind not in LISTS:
        yield _problem(declaration, "events", [], "name the event types that the feature counts")
    if takes == "none" and declaration.value:
        yield _problem(declaration, "value", declaration.value, f"a {kind} takes no value; remove it")
    if takes in ("number", "text", "any") and not declaration.value:
        yield _problem(declaration, "value", None, f"a {kind} needs it: name a property or field of events")
    if scope and kind in LISTS and not scope.of_visitor:
        remedy = "a list is kept of a visitor, a user or a session only"
        yield _problem(declaration, "scope", declaration.scope, remedy)
    if scope and scope.pair and not KINDS[kind].IN_PAIRS:
        pairs = sorted(name for name, one in KINDS.items() if one.IN_PAIRS)
        remedy = f"no pair can hold a {kind}; choose one of {', '.join(pairs)}"
        yield _problem(declaration, "scope", declaration.scope, remedy)


def _check_computed(declaration: FeatureDeclaration, kind: ComputedKind) -> Iterator[Problem]:
    if declaration.scope != kind.scope:
        remedy = f'a {kind.name} is computed for scope = "{kind.scope}"'
        yield _problem(declaration, "scope", declaration.scope, remedy)
    for key, given in (
        ("events", declaration.events),
        ("value", declaration.value),
        ("where", declaration.where),
    ):
        if given:
            yield _problem(declaration, key, given, f"no event folds into a {kind.name}; remove it")


def _check_of(declaration: FeatureDeclaration, known: Mapping[str, FeatureDeclaration]) -> Iterator[Problem]:
    kind, name = COMPUTED.get(declaration.kind), declaration.of
    if kind is None or not kind.of or name is None:
        return
    if name not in known:
        yield _problem(declaration, "of", name, f"no feature has this name; {_choose(name, known)}")
        return
    wanted = _READABLE[kind.of]
    if not wanted[0](known[name]):
        yield _problem(declaration, "of", name, f"a {kind.name} is computed from {wanted[1]}")


def _check_cycles(known: Mapping[str, FeatureDeclaration]) -> list[Problem]:
    """Each cycle once, at the first of its features in the file."""
    problems: list[Problem] = []
    told: set[str] = set()
    for name, declaration in known.items():
        path = lineage(declaration, known)
        if name in path and name not in told:
            cycle = path[: path.index(name) + 1]
            told.update(cycle)
            remedy = f"it is computed from itself: {' -> '.join((name, *cycle))}; break the cycle"
            problems.append(_problem(declaration, "of", declaration.of, remedy))
    return problems


def _is_pair(declaration: FeatureDeclaration) -> bool:
    scope = scope_of(declaration.scope)
    return bool(scope and scope.pair)


_READABLE: Mapping[str, tuple[Any, str]] = {
    "moment": (
        lambda one: one.kind in MOMENTS and one.scope in ("visitor", "user", "session"),
        "a first_seen or last_seen of a visitor",
    ),
    "visitor": (
        lambda one: one.kind not in LISTS and one.scope in ("visitor", "user", "session"),
        "a feature of a visitor that has one value",
    ),
    "number": (for_a_model, "a number of a visitor"),
    "pair": (_is_pair, 'a pair, such as scope = "visitor x category"'),
    "hours": (
        lambda one: _is_pair(one) and one.scope.endswith(" x hour"),
        'a feature of scope "visitor x hour"',
    ),
}


def _choose(value: object, known: Any) -> str:
    close = nearest(str(value), set(known))
    hint = f"did you mean '{close}'? " if close else ""
    return f"{hint}choose one of {', '.join(sorted(known))}"


def _problem(declaration: FeatureDeclaration, path: str, value: object, remedy: str) -> Problem:
    return Problem(FILE, f"{declaration.name}.{path}", value, remedy)
