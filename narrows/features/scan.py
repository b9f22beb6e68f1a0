"""What the nightly build reads of the lake for each scope, and the values that arrays of it give.

The events of one key lie in one place; what a feature reads is found by asking its kind.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from narrows.features.columns import Entries, EventColumns, Floats, names_read
from narrows.features.kinds import LastN, LastValue
from narrows.features.registry import VISITOR_SCOPES, Feature, FeatureSet

_OF_ITEM = {"item_id"}, {"impressions"}
"""What an item's events say of themselves: its own id as text, and one impression each as number."""


@dataclass(frozen=True)
class ScopeFeatures:
    """The features that events fold into under one sort of key, such as `visitor` or `by:brand`."""

    name: str
    features: tuple[Feature, ...]

    @cached_property
    def types(self) -> frozenset[str]:
        """The event types that can change anything; empty for every type."""
        each = [one.kind.types for one in self.features]
        return frozenset().union(*each) if all(each) else frozenset()

    @cached_property
    def reads(self) -> tuple[list[str], list[str]]:
        """The fields and properties that the features read: as text, and as number."""
        texts, numbers = names_read(lambda events: self.values(events, 0, 0.0))
        own_texts, own_numbers = _OF_ITEM if self.name == "item" else (set(), set())
        texts = [name for name in texts if name not in {"hour", "event_type", *own_texts}]
        return texts, [name for name in numbers if name not in own_numbers]

    @property
    def in_order(self) -> bool:
        """Whether it matters which event came last; ties in time then go by the event's id."""
        return any(isinstance(one.kind, LastN | LastValue) for one in self.features)

    @property
    def columns(self) -> list[str]:
        """The columns that the features are made from, beside the key."""
        texts, numbers = self.reads
        ids = ["event_id"] if self.in_order else []
        return ["event_type", "time", *ids, *map(text_column, texts), *map(number_column, numbers)]

    def values(self, events: EventColumns, keys: int, as_of: float) -> dict[str, Floats | Entries]:
        """Of every key of the events, of which there are so many, the values as of one moment.

        Missing is nan, or a list or map that is not known.
        """
        moments = np.full(keys, as_of)
        return {one.name: one.values(events, events.key.codes, keys, moments) for one in self.features}


def scopes_of(features: FeatureSet) -> dict[str, ScopeFeatures]:
    """The scopes that events fold into, of those that the app declares anything in."""
    found = {name: features.scoped(name).features for name in (*sorted(VISITOR_SCOPES), "item")}
    for one in features.group_features:
        found[one.declaration.scope] = (*found.get(one.declaration.scope, ()), one)
    return {name: ScopeFeatures(name, chosen) for name, chosen in found.items() if chosen}


def text_column(name: str) -> str:
    """The column of a field or property as text."""
    return f"text_{name}"


def number_column(name: str) -> str:
    """The column of a field or property as number."""
    return f"number_{name}"
