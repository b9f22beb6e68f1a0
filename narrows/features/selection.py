"""Which events a feature takes and what each gives it: a number, a text, or one."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from types import MappingProxyType

from narrows.events import Event, Scalar
from narrows.features.declarations import FeatureDeclaration

Reader = Callable[[Event], Scalar | None]
EVERYWHERE: Mapping[str, Scalar] = MappingProxyType({})
HOUR_S = 3600.0
HASH_RANGE = 1 << 60

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
        "hour": lambda event: str(int(event.time // HOUR_S % 24)),
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
    def _read(self) -> Reader | None:
        return reader(self.value) if self.value is not None else None

    @cached_property
    def _wanted(self) -> tuple[tuple[Reader, Scalar], ...]:
        return tuple((reader(name), wanted) for name, wanted in self.where.items())

    def takes(self, event: Event) -> bool:
        """Whether type and `where` fit; `value` is not looked at."""
        if self.types and event.event_type not in self.types:
            return False
        return not self._wanted or all(read(event) == wanted for read, wanted in self._wanted)

    def amount(self, event: Event) -> float | None:
        """The number that the event adds, 1 without `value`; None when the selection does not take it."""
        if not self.takes(event):
            return None
        if self._read is None:
            return 1.0
        amount = self._read(event)
        if amount is None or isinstance(amount, str) or not math.isfinite(amount):
            return None
        return float(amount)

    def text(self, event: Event) -> str | None:
        """The text that `value` names; None when the selection does not take the event."""
        if self._read is None or not self.takes(event):
            return None
        text = self._read(event)
        return text if isinstance(text, str) and text else None


def selection_of(declaration: FeatureDeclaration) -> Selection:
    """The events that the declaration names."""
    return Selection(frozenset(declaration.events), dict(declaration.where), declaration.value)


@lru_cache(maxsize=65_536)
def text_hash(text: str) -> int:
    """The first 15 hexadecimal digits of MD5 as a number below 2^60: the same in every rendering."""
    digest = hashlib.md5(text.encode("utf-8", "replace"), usedforsecurity=False)
    return int(digest.hexdigest()[:15], 16)
