"""One scan of the lake for every scope: what it reads, and what each scope's rows are made of.

The scan is text of Spark SQL over the lake's columns. What it reads becomes columns of arrays, in which the
events of one key lie in one place; the arrays give the values.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from narrows.features.columns import Entries, EventColumns, Floats, names_read
from narrows.features.kinds import LastN, LastValue
from narrows.features.registry import VISITOR_SCOPES, Feature, FeatureSet
from narrows.features.sql import COUNTS, SHOWN, key_sql
from narrows.features.sql_rows import number_sql, text_sql

_OF_ITEM = {"item_id"}, {"impressions"}
"""What an item's events say of themselves: its own id as text, and one impression each as number."""


@dataclass(frozen=True)
class ScopeFeatures:
    """The features that events fold into under one sort of key, such as `visitor` or `by:brand`."""

    name: str
    features: tuple[Feature, ...]

    @property
    def key(self) -> str:
        """The column of the scan that says whose an event is; of `item` where the event names one."""
        if self.name == "item":
            return text_column("item_id")
        return text_column(self.name[3:]) if self.name.startswith("by:") else key_column(self.name)

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
        """The columns of the scan that the features are made from."""
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
    """Where the scan has a field or property as text."""
    return f"text_{name}"


def number_column(name: str) -> str:
    """Where the scan has a field or property as number."""
    return f"number_{name}"


def key_column(scope: str) -> str:
    """Where the scan has the key of the visitor, user or session."""
    return f"key_{scope}"


def seat_column(scope: str) -> str:
    """Where the scan has the seat of a visitor's, user's or session's key: equal keys sit together."""
    return f"seat_{scope}"


def scan_sql(scopes: Iterable[ScopeFeatures], events: str, as_of: float, seats: int) -> str:
    """One SELECT over the lake's events up to a moment: the keys of each with their seats, and what is read.

    `counts` says whether an event may be folded at all. One that may not is there where it tells that a
    session logged in.
    """
    chosen = list(scopes)
    columns = {"counts": COUNTS, **_reads(chosen)}
    logins = any(one.name == "visitor" for one in chosen)
    for name in {one.name for one in chosen if one.name in VISITOR_SCOPES} | (
        {"session"} if logins else set()
    ):
        key = key_sql(name)
        columns[key_column(name)] = key
        columns[seat_column(name)] = f"cast(pmod(xxhash64({key}), {seats}) AS int)"
    for one in chosen:
        if one.name == "item":
            columns |= {one.key: text_sql("item_id"), "shown": SHOWN}
        elif one.name not in VISITOR_SCOPES:
            columns[one.key] = key_sql(one.name)
    wanted = f"({COUNTS}){' OR user_id IS NOT NULL AND session_id IS NOT NULL' if logins else ''}"
    named = ", ".join(f"{text} AS `{name}`" for name, text in columns.items())
    return f"SELECT {named} FROM {events} WHERE time <= {as_of!r}D AND ({wanted})"  # noqa: S608  # checked


def _reads(scopes: Sequence[ScopeFeatures]) -> Mapping[str, str]:
    """The columns that features are made from, each once."""
    columns = {"event_type": "event_type", "time": "time"}
    for one in scopes:
        texts, numbers = one.reads
        if one.in_order:
            columns["event_id"] = "event_id"
        columns |= {text_column(name): text_sql(name) for name in texts}
        columns |= {number_column(name): number_sql(name) for name in numbers}
    return columns
