"""Declarations become kinds: the set of features that one visitor's state holds, and what is refused."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from narrows.errors import SettingsError
from narrows.events import Event
from narrows.features.checks import check
from narrows.features.columns import Entries, EventColumns, Floats, Integers, prefixes
from narrows.features.computed import ComputedFeatures
from narrows.features.declarations import FeatureDeclaration, canonical, meaning
from narrows.features.groups import Members
from narrows.features.kinds import (
    KINDS,
    Kind,
    LastN,
    LastValue,
    PerValue,
    RecentCount,
    Selection,
    State,
    kind_of,
)
from narrows.features.scopes import scope_of
from narrows.features.selection import selection_of

VISITOR_SCOPES = frozenset({"visitor", "user", "session"})
MISSING_SUFFIX = "_missing"
HISTORY = "history"
IMPLICIT_HISTORY = LastN(Selection(frozenset()), keep=50)
"""What a state remembers of an app that declares no `last_n`: the newest items of every event type."""

Features = Mapping[str, State]
_Put = tuple[str, Callable[[], State], Callable[[State, Any, Event], State]]
_Step = tuple[Callable[[Event], Any], tuple[_Put, ...]]


@dataclass(frozen=True)
class Feature:
    """A declaration with its kind; `key` changes with what is folded, so old state is never read as new.

    Features that fold the same events alike, as a mean and a deviation do, have one key and share its state.
    """

    declaration: FeatureDeclaration
    kind: Kind
    key: str

    @property
    def name(self) -> str:
        return self.declaration.name

    @cached_property
    def least(self) -> int:
        """How many different members a group must have for this to be told of it; 0 where no one asks."""
        least, distinct = (self.declaration.parameters.get(one) for one in ("minimum_group", "distinct"))
        return least if isinstance(least, int) and isinstance(distinct, str) else 0

    @property
    def members(self) -> Members:
        """What counts those whose events gave a group its value, of a rate its successes, up to `least`."""
        kind, distinct = self.kind, str(self.declaration.parameters.get("distinct"))
        of_text = KINDS[self.declaration.kind].VALUE == "text" or (isinstance(kind, LastValue) and kind.texts)
        window = kind if isinstance(kind, RecentCount) else None
        return Members(selection_of(self.declaration), distinct, self.least, bool(of_text), window)

    @property
    def members_key(self) -> str:
        """Where a state keeps them."""
        return f"{self.key}:members"

    def is_small(self, state: Features, now: float) -> bool:
        """Whether a state is that of a group of fewer than `least`."""
        return (self.members.read(state.get(self.members_key, {}), now) or 0.0) < self.least

    def values(self, events: EventColumns, groups: Integers, size: int, as_of: Floats) -> Floats | Entries:
        """The kind's values of groups, and nothing of those that are too small to be told of."""
        mine, own_groups = events, groups
        if self.kind.types:
            rows, mine = events.of_types(self.kind.types)
            own_groups = groups.take(rows)
        found: Floats | Entries = self.kind.values(mine, own_groups, size, as_of)
        if not self.least:
            return found
        enough = self.members.values(events, groups, size, as_of) >= self.least
        return found.only(enough) if isinstance(found, Entries) else np.where(enough, found, np.nan)


class FeatureSet:
    """The features of one app that events fold into; a state maps a feature's key to its kind's state.

    It folds the visitor's features; `scoped` gives a view that folds those of other scopes, such as `item`.
    Features that are computed from the request or from an item are in `computed`.
    """

    def __init__(self, declarations: Sequence[FeatureDeclaration]) -> None:
        problems = check(declarations)
        if problems:
            raise SettingsError(problems)
        self.declarations = tuple(declarations)
        self.computed = ComputedFeatures(declarations)
        self._every = tuple(
            Feature(one, kind_of(one), _key(one)) for one in declarations if one.kind in KINDS
        )
        self._choose(VISITOR_SCOPES)

    def scoped(self, *scopes: str) -> FeatureSet:
        """A view of the features of these scopes alone: visitor, user and session (pairs too), item, by."""
        view = copy.copy(self)
        view.declarations = tuple(one for one in self.declarations if _base(one) in scopes)
        view._choose(frozenset(scopes))
        return view

    def _choose(self, scopes: frozenset[str]) -> None:
        self.features = tuple(one for one in self._every if _base(one.declaration) in scopes)
        lists = [one.key for one in self._every if isinstance(one.kind, LastN)]
        self._folds: dict[str, Kind] = {one.key: one.kind for one in self.features}
        self._folds |= {one.members_key: one.members for one in self.features if one.least}
        if not lists and "visitor" in scopes:
            self._folds[HISTORY] = IMPLICIT_HISTORY
        self._history_keys = [key for key, kind in self._folds.items() if isinstance(kind, LastN)]
        self._keys = frozenset(self._folds)
        self._plans: dict[str, tuple[_Step, ...]] = {}
        self._fingerprint = ""

    @property
    def item_features(self) -> tuple[Feature, ...]:
        """Those that events on an item fold into."""
        return tuple(one for one in self._every if one.declaration.scope == "item")

    @property
    def group_features(self) -> tuple[Feature, ...]:
        """Those of the values of one property, which only the nightly build computes."""
        return tuple(one for one in self._every if _base(one.declaration) == "by")

    @property
    def names(self) -> tuple[str, ...]:
        """The names that `read` gives one value for, in the order of declaration: no lists and no pairs."""
        return tuple(one.name for one in self.features if not isinstance(one.kind, LastN | PerValue))

    def zero(self) -> Features:
        """The state of a visitor who did nothing yet."""
        return {}

    def only(self, state: Features) -> Features:
        """What the state holds of these features, without those that no longer exist."""
        keys = self._keys
        return state if keys.issuperset(state) else {key: one for key, one in state.items() if key in keys}

    def add_all(self, state: Features, events: Sequence[Event]) -> Features:
        """The state with these events in it; features that no longer exist are dropped from it.

        The state that is given is used up: what it holds is changed in place. Copies of it for each event
        cost more than everything else.
        """
        mine = self.only(state)
        folded = mine if isinstance(mine, dict) else dict(mine)
        plans, held = self._plans, folded.get
        for event in events:
            for read, puts in plans.get(event.event_type) or self._plan(event.event_type):
                taken = read(event)
                if taken is not None:
                    for key, zero, put in puts:
                        before = held(key)
                        folded[key] = put(zero() if before is None else before, taken, event)
        return folded

    def _plan(self, event_type: str) -> tuple[_Step, ...]:
        """What an event of this type can change, worked out once: what is read, and into what it goes."""
        plan = self._plans.get(event_type)
        if plan is None:
            puts: dict[Hashable, list[_Put]] = {}
            reads: dict[Hashable, Callable[[Event], Any]] = {}
            for key, kind in self._folds.items():
                if not kind.types or event_type in kind.types:
                    mine = kind.narrowed(event_type)
                    reads[mine.reading] = mine.taken
                    puts.setdefault(mine.reading, []).append((key, mine.zero, mine.put))
            plan = tuple((read, tuple(puts[reading])) for reading, read in reads.items())
            self._plans[event_type] = plan
        return plan

    def merge(self, left: Features, right: Features) -> Features:
        """One state for the events of both."""
        merged = {**left, **right}
        for key, kind in self._folds.items():
            if key in left and key in right:
                merged[key] = kind.merge(left[key], right[key])
        return merged

    def read(self, state: Features, now: float) -> dict[str, float]:
        """Every value as of `now`, and under `<name>_missing` 1.0 where it is only the declared default.

        A pair gives `name[value]` for each value that the visitor has, and neither default nor flag.
        """
        values: dict[str, float] = {}
        for feature in self.features:
            if isinstance(feature.kind, LastN):
                continue
            value = feature.kind.read(state.get(feature.key, feature.kind.zero()), now)
            if feature.least and feature.is_small(state, now):
                value = None
            if isinstance(feature.kind, PerValue):
                values.update({f"{feature.name}[{text}]": one for text, one in (value or {}).items()})
                continue
            values[feature.name] = feature.declaration.default if value is None else value
            values[feature.name + MISSING_SUFFIX] = float(value is None)
        return values

    def values(self, events: EventColumns, keys: Sequence[str], as_of: Floats) -> dict[str, NDArray[Any]]:
        """Of every request, a key and a moment, the values of the key's events up to that moment.

        Numbers come with their defaults and flags as in `read`. A list feature gives lists of item ids, a
        pair mappings from text to value, both under the feature's name.
        """
        rows, requests = prefixes(events, keys, as_of)
        past = events.take(rows)
        values: dict[str, NDArray[Any]] = {}
        for feature in self.features:
            found = feature.values(past, requests, len(keys), as_of)
            if isinstance(found, Entries):
                values[feature.name] = found.objects()
                continue
            missing = np.isnan(found)
            values[feature.name] = np.where(missing, feature.declaration.default, found)
            values[feature.name + MISSING_SUFFIX] = missing.astype(np.float64)
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
        if not self._fingerprint:
            meanings = [meaning(one) for one in sorted(self.declarations, key=lambda one: one.name)]
            self._fingerprint = hashlib.sha256(canonical(meanings)).hexdigest()[:32]
        return self._fingerprint


def _base(declaration: FeatureDeclaration) -> str:
    scope = scope_of(declaration.scope)
    return scope.base if scope else ""


def _key(declaration: FeatureDeclaration) -> str:
    """Of all that decides what is folded: not of the name, nor of what only decides how a state is read."""
    rules = KINDS[declaration.kind].PARAMETERS
    parameters = {
        name: value
        for name, value in declaration.parameters.items()
        if name not in rules or rules[name].folds
    }
    folded = {**meaning(declaration), "parameters": parameters, "name": "", "default": 0.0}
    return f"{declaration.kind}:{hashlib.sha256(canonical(folded)).hexdigest()[:8]}"
