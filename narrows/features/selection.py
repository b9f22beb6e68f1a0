"""Which events a feature takes and what each gives it: a number, a text, or one."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from types import MappingProxyType
from typing import TypeVar

from narrows.events import Event, Scalar
from narrows.features.declarations import FeatureDeclaration

Reader = Callable[[Event], Scalar | None]
EVERYWHERE: Mapping[str, Scalar] = MappingProxyType({})
HOUR_S = 3600.0
HOURS = tuple(str(hour) for hour in range(24))
HASH_RANGE = 1 << 60
T = TypeVar("T")

FIELDS: Mapping[str, Reader] = MappingProxyType(
    {
        "event_value": lambda event: event.value,
        "position": lambda event: event.position,
        "impressions": lambda event: max(1, len(event.impression)),
        "event_type": lambda event: event.event_type,
        "item_id": lambda event: event.item_id,
        "surface": lambda event: event.surface,
        "query": lambda event: event.query,
        "user_id": lambda event: event.user_id,
        "session_id": lambda event: event.session_id,
        "hour": lambda event: HOURS[math.floor(event.time / HOUR_S) % 24],
    }
)
"""What `value`, `where` and `by` may name besides an event's properties; `hour` is "0" to "23" in UTC."""
NUMBER_FIELDS = frozenset({"event_value", "position", "impressions"})


def reader(name: str) -> Reader:
    """Reads a field, or else the property of that name."""
    return FIELDS.get(name) or (lambda event: event.properties.get(name))


@dataclass(frozen=True)
class Selection:
    """The events that a feature takes, and what it reads of each.

    `types` empty takes every type. `where` asks for equal fields or properties. `value` names what is read;
    an event without it is not taken, nor one with a text where a number is needed or the other way round.
    """

    types: frozenset[str] = frozenset()
    where: Mapping[str, Scalar] = field(default_factory=lambda: EVERYWHERE)
    value: str | None = None

    @cached_property
    def key(self) -> Hashable:
        """The same for selections that take the same of every event."""
        return (self.types, tuple(sorted(self.where.items(), key=lambda one: one[0])), self.value)

    @cached_property
    def takes(self) -> Callable[[Event], bool]:
        """Whether type and `where` fit an event; `value` is not looked at."""
        types, wanted = self.types, [(reader(name), one) for name, one in self.where.items()]
        fits = _fitting(wanted)
        if not types:
            return fits
        if not wanted:
            return lambda event: event.event_type in types
        return lambda event: event.event_type in types and fits(event)

    @cached_property
    def amount(self) -> Callable[[Event], float | None]:
        """The number that an event adds, 1 without `value`; None when the selection does not take it."""
        return self._filtered(unit if self.value is None else _number_reader(self.value))

    @cached_property
    def text(self) -> Callable[[Event], str | None]:
        """The text that `value` names; None when the selection does not take the event."""
        return self._filtered(_text_reader(self.value or ""))

    def narrowed(self, event_type: str) -> Selection:
        """The same for events of this type, without looking at their type again."""
        if not self.types:
            return self
        return replace(self, types=frozenset()) if event_type in self.types else NEVER

    def _filtered(self, read: Callable[[Event], T | None]) -> Callable[[Event], T | None]:
        if not self.types and not self.where:
            return read
        if self.types == NEVER.types:
            return _nothing
        if not self.types and len(self.where) == 1:
            [(name, wanted)] = self.where.items()
            if name not in FIELDS:
                return lambda event: read(event) if event.properties.get(name) == wanted else None
        takes = self.takes
        return lambda event: read(event) if takes(event) else None


NEVER = Selection(frozenset({""}))
"""Takes no event: no event's type is empty."""


def _nothing(event: Event) -> None:  # noqa: ARG001  # whatever the event is
    return None


def unit(event: Event) -> float:  # noqa: ARG001  # whatever the event is
    return 1.0


def _fitting(wanted: Sequence[tuple[Reader, Scalar]]) -> Callable[[Event], bool]:
    """Whether every field and property is as wanted; one of them alone is the usual case, and quick."""
    if not wanted:
        return lambda event: True  # noqa: ARG005  # whatever the event is
    (read, value), *others = wanted
    if not others:
        return lambda event: read(event) == value
    rest = _fitting(others)
    return lambda event: read(event) == value and rest(event)


def _number_reader(name: str) -> Callable[[Event], float | None]:
    """Properties, which most features read, without a call for each."""
    read, finite = FIELDS.get(name), math.isfinite

    def field(event: Event) -> float | None:
        amount = read(event) if read else None
        return None if amount is None or isinstance(amount, str) or not finite(amount) else float(amount)

    def one_of_properties(event: Event) -> float | None:
        amount = event.properties.get(name)
        return None if amount is None or isinstance(amount, str) or not finite(amount) else float(amount)

    return field if read else one_of_properties


def _text_reader(name: str) -> Callable[[Event], str | None]:
    """Properties, which most features read, without a call for each."""
    read = FIELDS.get(name)

    def field(event: Event) -> str | None:
        found = read(event) if read else None
        return found if found and isinstance(found, str) else None

    def one_of_properties(event: Event) -> str | None:
        found = event.properties.get(name)
        return found if found and isinstance(found, str) else None

    return field if read else one_of_properties


def selection_of(declaration: FeatureDeclaration) -> Selection:
    """The events that the declaration names."""
    return Selection(frozenset(declaration.events), dict(declaration.where), declaration.value)


@lru_cache(maxsize=65_536)
def text_hash(text: str) -> int:
    """The first 15 hexadecimal digits of MD5 as a number below 2^60: the same in every rendering."""
    digest = hashlib.md5(text.encode("utf-8", "replace"), usedforsecurity=False)
    return int(digest.hexdigest()[:15], 16)
