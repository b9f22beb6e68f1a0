"""Declarations become kinds: the set of features that one visitor's state holds, and what is refused."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from narrows.errors import SettingsError
from narrows.events import Event
from narrows.features.checks import check
from narrows.features.computed import ComputedFeatures
from narrows.features.declarations import FeatureDeclaration, canonical, meaning
from narrows.features.kinds import Count, DecayedCount, Kind, LastN, Selection, SmoothedRate, State

VISITOR_SCOPES = frozenset({"visitor", "user", "session"})
MISSING_SUFFIX = "_missing"
IMPLICIT_HISTORY = LastN(Selection(frozenset()), keep=50)
"""What a state remembers of an app that declares no `last_n`: the newest items of every event type."""

Features = Mapping[str, State]


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
        self.computed = ComputedFeatures(declarations)
        folded = [one for one in declarations if one.scope in VISITOR_SCOPES]
        self.features = tuple(Feature(one, kind_of(one), _key(one)) for one in folded)
        lists = [(one.key, one.kind) for one in self.features if isinstance(one.kind, LastN)]
        self._folds: list[tuple[str, Kind]] = [(one.key, one.kind) for one in self.features]
        self._history_keys = [key for key, _ in lists] or ["history"]
        if not lists:
            self._folds.append(("history", IMPLICIT_HISTORY))

    def scoped(self, *scopes: str) -> FeatureSet:
        """A view of the features of these scopes alone; the implicit history belongs to `visitor`."""
        view = copy.copy(self)
        view.declarations = tuple(one for one in self.declarations if one.scope.split(" ")[0] in scopes)
        names = {one.name for one in view.declarations}
        view.features = tuple(one for one in self.features if one.name in names)
        kept = {one.key for one in view.features} | ({"history"} if "visitor" in scopes else set())
        view._folds = [one for one in self._folds if one[0] in kept]
        view._history_keys = [one for one in self._history_keys if one in kept]
        return view

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

    def lists(self, state: Features, now: float) -> dict[str, list[str]]:
        """The item ids of each list feature, from the oldest to the newest."""
        found = {}
        for feature in self.features:
            if isinstance(feature.kind, LastN):
                found[feature.name] = feature.kind.read(state.get(feature.key, ()), now) or []
        return found

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


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


def _types(value: object) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value) if isinstance(value, tuple | list) else ()


def _key(declaration: FeatureDeclaration) -> str:
    kept = {name: value for name, value in meaning(declaration).items() if name != "default"}
    return f"{declaration.name}:{hashlib.sha256(canonical(kept)).hexdigest()[:6]}"
