"""Declarations become kinds: the set of features that one visitor's state holds, and what is refused."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from narrows.errors import Problem, SettingsError
from narrows.events import Event, nearest
from narrows.features.declarations import FeatureDeclaration, canonical, meaning
from narrows.features.kinds import KINDS, Count, DecayedCount, Kind, LastN, Selection, SmoothedRate, State

FILE = "features.toml"
VISITOR_SCOPES = frozenset({"visitor", "user", "session"})
SCOPES = VISITOR_SCOPES | {"item"}
MISSING_SUFFIX = "_missing"
IMPLICIT_HISTORY = LastN(Selection(frozenset()), keep=50)
"""What a state remembers of an app that declares no `last_n`: the newest items of every event type."""

SENSITIVE_WORDS = frozenset(
    {
        "gender",
        "sex",
        "sexual",
        "sexuality",
        "agegroup",
        "birth",
        "birthday",
        "birthdate",
        "ethnicity",
        "ethnic",
    }
    | {"race", "racial", "religion", "religious", "faith", "nationality", "disability", "disabled", "health"}
    | {"pregnancy", "pregnant", "politics", "political", "income", "marital", "caste", "biometric", "genetic"}
)
_AGE_OF_A_PERSON = re.compile(
    r"^ages?$|\bage (group|band|range|bracket)|(user|visitor|customer|person|member) age\b"
)
SENSITIVE_CLASSES = frozenset({"sensitive", "special", "protected", "restricted"})

Features = Mapping[str, State]
_PARAMETERS = {
    "count": (frozenset[str](), frozenset[str]()),
    "decayed_count": (frozenset({"half_life_s"}), frozenset[str]()),
    "smoothed_rate": (frozenset({"per", "prior_successes", "prior_trials"}), frozenset({"half_life_s"})),
    "last_n": (frozenset({"keep"}), frozenset[str]()),
}


@dataclass(frozen=True)
class Feature:
    """A declaration with its kind; `key` changes with the definition, so old state is never read as new."""

    declaration: FeatureDeclaration
    kind: Kind
    key: str

    @property
    def name(self) -> str:
        return self.declaration.name


class FeatureSet:
    """The visitor features of one app; a state is a mapping from feature key to the kind's state.

    Features of scope `item` are computed in training and are not folded here.
    """

    def __init__(self, declarations: Sequence[FeatureDeclaration]) -> None:
        problems = check(declarations)
        if problems:
            raise SettingsError(problems)
        self.declarations = tuple(declarations)
        folded = [one for one in declarations if one.scope in VISITOR_SCOPES]
        self.features = tuple(Feature(one, kind_of(one), _key(one)) for one in folded)
        lists = [(one.key, one.kind) for one in self.features if isinstance(one.kind, LastN)]
        self._folds: list[tuple[str, Kind]] = [(one.key, one.kind) for one in self.features]
        self._history_keys = [key for key, _ in lists] or ["history"]
        if not lists:
            self._folds.append(("history", IMPLICIT_HISTORY))

    @property
    def names(self) -> tuple[str, ...]:
        """The names that `read` gives a value for, in the order of declaration."""
        return tuple(one.name for one in self.features if not isinstance(one.kind, LastN))

    def zero(self) -> Features:
        """The state of a visitor who did nothing yet."""
        return {}

    def add(self, state: Features, event: Event) -> Features:
        """The state with one more event in it."""
        return self.add_all(state, (event,))

    def add_all(self, state: Features, events: Sequence[Event]) -> Features:
        """The state with these events in it; features that no longer exist are dropped from it."""
        folded: dict[str, State] = {}
        for key, kind in self._folds:
            before = one = state.get(key, kind.zero())
            for event in events:
                one = kind.add(one, event)
            if key in state or one != before:
                folded[key] = one
        return folded

    def merge(self, left: Features, right: Features) -> Features:
        """One state for the events of both."""
        merged = {**left, **right}
        for key, kind in self._folds:
            if key in left and key in right:
                merged[key] = kind.merge(left[key], right[key])
        return merged

    def read(self, state: Features, now: float) -> dict[str, float]:
        """Every value as of `now`, and under `<name>_missing` 1.0 where it is only the declared default."""
        values: dict[str, float] = {}
        for feature in self.features:
            if isinstance(feature.kind, LastN):
                continue
            value = feature.kind.read(state.get(feature.key, feature.kind.zero()), now)
            missing = not isinstance(value, float)
            values[feature.name] = value if isinstance(value, float) else feature.declaration.default
            values[feature.name + MISSING_SUFFIX] = float(missing)
        return values

    def history(self, state: Features) -> list[tuple[float, str, str]]:
        """(time, item id, event type) of each event that a list feature holds, oldest first."""
        entries = {tuple(entry) for key in self._history_keys for entry in state.get(key, ())}
        return [(time, item_id, event_type) for time, _, item_id, event_type in sorted(entries)]

    def fingerprint(self) -> str:
        """Changes exactly when what a served value means changes; descriptions and owners do not count."""
        meanings = [meaning(one) for one in sorted(self.declarations, key=lambda one: one.name)]
        return hashlib.sha256(canonical(meanings)).hexdigest()[:32]


def kind_of(declaration: FeatureDeclaration) -> Kind:
    """The kind with its parameters; the declaration must have passed `check`."""
    of = Selection(frozenset(declaration.events), dict(declaration.where), declaration.value)
    parameters = declaration.parameters
    if declaration.kind == Count.name:
        return Count(of)
    if declaration.kind == DecayedCount.name:
        return DecayedCount(of, _number(parameters["half_life_s"]))
    if declaration.kind == LastN.name:
        return LastN(of, int(_number(parameters["keep"])))
    half_life_s = parameters.get("half_life_s")
    return SmoothedRate(
        of,
        Selection(frozenset(_types(parameters["per"])), dict(declaration.where)),
        _number(parameters["prior_successes"]),
        _number(parameters["prior_trials"]),
        None if half_life_s is None else _number(half_life_s),
    )


def check(declarations: Sequence[FeatureDeclaration]) -> list[Problem]:
    """Every mistake in the declarations, together; empty when they can be used."""
    problems: list[Problem] = []
    seen: set[str] = set()
    for declaration in declarations:
        if declaration.name in seen:
            remedy = "another feature has this name; give each its own"
            problems.append(_problem(declaration, "name", declaration.name, remedy))
        seen.add(declaration.name)
        problems += _check_one(declaration)
    return problems


def _check_one(declaration: FeatureDeclaration) -> list[Problem]:
    problems = _check_name(declaration)
    if declaration.scope not in SCOPES:
        problems.append(_problem(declaration, "scope", declaration.scope, _choose(declaration.scope, SCOPES)))
    if declaration.kind not in KINDS:
        problems.append(_problem(declaration, "kind", declaration.kind, _choose(declaration.kind, KINDS)))
    else:
        problems += _check_parameters(declaration)
    if not declaration.events and declaration.kind != LastN.name:
        problems.append(_problem(declaration, "events", [], "name the event types that the feature counts"))
    return problems


def _check_name(declaration: FeatureDeclaration) -> list[Problem]:
    problems = []
    if not re.fullmatch(r"[a-z][a-z0-9_]*", declaration.name) or declaration.name.endswith(MISSING_SUFFIX):
        remedy = f"use lower-case letters, digits and underscores, not ending in {MISSING_SUFFIX}"
        problems.append(_problem(declaration, "name", declaration.name, remedy))
    sources = [("name", declaration.name), ("value", declaration.value or "")]
    sources += [(f"where.{name}", name) for name in declaration.where]
    for path, text in sources:
        word = sensitive_word(text)
        if word:
            remedy = f"'{word}' is a sensitive attribute; no feature may be built from it"
            problems.append(_problem(declaration, path, text, remedy))
    if declaration.sensitivity in SENSITIVE_CLASSES:
        remedy = "features of this class are refused; build the feature from behaviour instead"
        problems.append(_problem(declaration, "sensitivity", declaration.sensitivity, remedy))
    return problems


def sensitive_word(name: str) -> str | None:
    """The part of a name that tells of a sensitive attribute: `age_group`, `userGender`; else None."""
    words = re.findall(r"[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower())
    found = next((word for word in words if word in SENSITIVE_WORDS), None)
    return found or ("age" if _AGE_OF_A_PERSON.search(" ".join(words)) else None)


def _check_parameters(declaration: FeatureDeclaration) -> list[Problem]:
    required, optional = _PARAMETERS[declaration.kind]
    given = declaration.parameters
    problems = [
        _problem(declaration, name.removesuffix("_s"), None, f"a {declaration.kind} needs it")
        for name in sorted(required - given.keys())
    ]
    for name in given:
        if name not in required | optional:
            known = {one.removesuffix("_s") for one in required | optional}
            remedy = _choose(name, known) if known else f"a {declaration.kind} takes no parameters"
            problems.append(_problem(declaration, name, given[name], remedy))
    for name, (right, remedy) in _RANGES.items():
        if name in given and name in required | optional and not right(given[name]):
            problems.append(_problem(declaration, name.removesuffix("_s"), given[name], remedy))
    return problems + _check_prior(declaration)


def _check_prior(declaration: FeatureDeclaration) -> list[Problem]:
    successes = declaration.parameters.get("prior_successes")
    trials = declaration.parameters.get("prior_trials")
    if _is_number(successes) and _is_number(trials) and _number(successes) > _number(trials):
        remedy = f"it is more than prior_trials ({trials}); a rate is at most 1"
        return [_problem(declaration, "prior_successes", successes, remedy)]
    return []


def _is_number(value: object, low: float = 0.0, high: float = 1e12) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


def _types(value: object) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, tuple | list) else ()


_RANGES: Mapping[str, tuple[Callable[[object], bool], str]] = {
    "half_life_s": (
        lambda value: _is_number(value, 1.0, 3.2e9),
        'give a duration from "1s" to "100y", as "7d"',
    ),
    "keep": (
        lambda value: isinstance(value, int) and _is_number(value, 1, 500),
        "give a whole number from 1 to 500",
    ),
    "prior_trials": (lambda value: _is_number(value, 1e-9), "give a number above 0"),
    "prior_successes": (_is_number, "give a number of 0 or more"),
    "per": (lambda value: bool(_types(value)), "name the event types that count as trials"),
}


def _choose(value: str, known: Mapping[str, Any] | frozenset[str] | set[str]) -> str:
    close = nearest(value, set(known))
    hint = f"did you mean '{close}'? " if close else ""
    return f"{hint}choose one of {', '.join(sorted(known))}"


def _problem(declaration: FeatureDeclaration, path: str, value: object, remedy: str) -> Problem:
    return Problem(FILE, f"{declaration.name}.{path}", value, remedy)


def _key(declaration: FeatureDeclaration) -> str:
    kept = {name: value for name, value in meaning(declaration).items() if name != "default"}
    return f"{declaration.name}:{hashlib.sha256(canonical(kept)).hexdigest()[:6]}"
