"""The columns that kinds aggregate in Spark SQL: each property extracted once, each selection judged once."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from narrows.events import Scalar
from narrows.features.selection import HOUR_S, NUMBER_FIELDS, Selection

_FIELDS: Mapping[str, str] = MappingProxyType(
    {
        "event_value": "value",
        "position": "cast(position AS double)",
        "impressions": "cast(greatest(1, size(impression)) AS double)",
        "event_type": "event_type",
        "item_id": "item_id",
        "surface": "surface",
        "query": "query",
        "user_id": "user_id",
        "session_id": "session_id",
        "hour": f"cast(pmod(cast(floor(time / {HOUR_S!r}D) AS bigint), 24) AS string)",
    }
)
_INFINITE = "double('Infinity')"


class SqlRows:
    """What one pass over the events has to extract, collected while the kinds write their aggregates.

    `extracted` are expressions over the lake's columns, `judged` ones over those; both map text to column.
    The rows also have key, as_of, time and event_id.
    """

    def __init__(self) -> None:
        self.extracted: dict[str, str] = {}
        self.judged: dict[str, str] = {}
        self._types: dict[str, int] = {}

    def number(self, name: str) -> str:
        """A field or property as double, NULL where it is no finite number."""
        column = _add(self.extracted, number_sql(name), "p")
        return f"CASE WHEN abs({column}) < {_INFINITE} THEN {column} END"

    def text(self, name: str) -> str:
        """A field or property as text, NULL where it is empty or no text."""
        return _add(self.extracted, text_sql(name), "p")

    def taken(self, by: Selection) -> str:
        """A condition: whether type and `where` of the selection fit."""
        conditions = [self.is_type(by.types)] if by.types else []
        for name, wanted in sorted(by.where.items()):
            read = self.text(name) if isinstance(wanted, str) else self.number(name)
            conditions.append(f"{read} = {literal(wanted)}")
        return f"({' AND '.join(conditions)})" if conditions else "true"

    def amount(self, of: Selection) -> str:
        """A column: what the event adds, NULL where the selection does not take it."""
        amount = "1D" if of.value is None else self.number(of.value)
        return self.column(f"CASE WHEN {self.taken(of)} THEN {amount} END")

    def word(self, of: Selection) -> str:
        """A column: the text that the event gives, NULL where the selection does not take it."""
        text = self.text(of.value or "")
        return self.column(
            text if not of.types and not of.where else f"CASE WHEN {self.taken(of)} THEN {text} END"
        )

    def weight(self, half_life_s: float) -> str:
        """A column: the weight at `as_of`, one half per half-life; above 1 for what is yet to come."""
        return self.column(f"exp((time - as_of) * {math.log(2.0) / half_life_s!r}D)")

    def column(self, text: str) -> str:
        """A column with this expression over what is extracted."""
        return _add(self.judged, text, "c")

    def event_type(self) -> str:
        """A column: the event's type as a small number."""
        words = " ".join(f"WHEN {literal(name)} THEN {code}" for name, code in self._types.items())
        return f"CASE event_type {words} ELSE -1 END" if words else "-1"

    def is_type(self, types: Iterable[str]) -> str:
        """A condition: whether the event's type is one of these."""
        codes = sorted(self._types.setdefault(name, len(self._types)) for name in sorted(types))
        return f"kind IN ({', '.join(str(code) for code in codes)})"


def number_sql(name: str) -> str:
    """A field or property as double over the lake's columns, NULL where it is text."""
    if name in _FIELDS and name not in NUMBER_FIELDS:
        return "cast(NULL AS double)"
    return _FIELDS.get(name) or f"numbers[{literal(name)}]"


def text_sql(name: str) -> str:
    """A field or property as text over the lake's columns, NULL where it is empty or a number."""
    if name in NUMBER_FIELDS:
        return "cast(NULL AS string)"
    return f"nullif({_FIELDS.get(name) or f'texts[{literal(name)}]'}, '')"


def literal(value: Scalar) -> str:
    """A value as Spark SQL writes it."""
    if isinstance(value, str):
        escaped = value.replace("\\", "\\\\").replace("'", "\\'")
        return f"'{escaped}'"
    return f"{float(value)!r}D"


def mark_of(word: str) -> str:
    """A text's hash, as `narrows.features.selection.text_hash` gives it."""
    return f"cast(conv(substr(md5(cast({word} AS binary)), 1, 15), 16, 10) AS bigint)"


def _add(columns: dict[str, str], text: str, letter: str) -> str:
    return columns.setdefault(text, f"{letter}{len(columns)}")
