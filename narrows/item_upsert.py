"""What a catalogue may send of an item, and the verdict on everything else.

An upsert replaces an item whole: a field that is left out is missing from then on. Fields have the names of
the app's own columns, as `[catalogue]` in app.toml lists them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from narrows.errors import InvalidInput, TooLarge
from narrows.events import LARGEST, LATEST, checked_text, nearest, parse_moment
from narrows.ids import encode
from narrows.settings import Catalogue

VERSION, DELETED = "version", "deleted"
LATEST_VERSION = 2**53 - 1
"""Versions are whole numbers that JSON carries exactly everywhere: a counter, or milliseconds."""
TEXT_CHARACTERS = 20_000
WORDS = 100
"""Categories, or regions, of one item."""
WORD_CHARACTERS = 256
ITEM_CHARACTERS = 30_000
SHOWN_CHARACTERS = 256
EARLIEST = -5_364_662_400.0
"""The first second of 1800: a film or a painting is older than the epoch."""


@dataclass(frozen=True)
class ItemUpsert:
    """A valid item: `values` by the app's column names, without those that are missing.

    `version` None: the sender counts none, and the item is as new as its arrival.
    """

    item_id: str
    version: int | None = None
    deleted: bool = False
    values: Mapping[str, Any] = field(default_factory=dict)


def parse_item(raw: object, catalogue: Catalogue) -> ItemUpsert:
    """The item that was sent, or `InvalidInput` naming the field, the value and what to send instead.

    An item without text, category, price or time is fine: it reads as missing there. So is a category that
    the catalogue has not had before.
    """
    if not isinstance(raw, Mapping):
        raise InvalidInput("item", raw, "send a JSON object")
    readers = _readers(catalogue)
    _refuse_unknown(raw, (catalogue.id, VERSION, DELETED, *readers))
    item_id = checked_text(catalogue.id, raw.get(catalogue.id), WORD_CHARACTERS, needed=True)
    encode(item_id)  # the snapshot's limit is in bytes
    deleted = raw.get(DELETED)
    if deleted is not None and not isinstance(deleted, bool):
        raise InvalidInput(DELETED, deleted, "send true for an item that is gone, else false")
    values = checked_values({name: raw[name] for name in readers if raw.get(name) is not None}, catalogue)
    return ItemUpsert(item_id, _version(raw.get(VERSION)), bool(deleted), {} if deleted else values)


def checked_values(said: Mapping[str, Any], catalogue: Catalogue) -> dict[str, Any]:
    """What is said of an item, by the app's column names, as it is stored; `InvalidInput` as `parse_item`."""
    readers = _readers(catalogue)
    read = {name: readers[name](name, value) for name, value in said.items()}
    values = {name: value for name, value in read.items() if value != []}
    length = len(json.dumps(values))
    if length > ITEM_CHARACTERS:
        raise TooLarge("item", f"{length} characters", f"send at most {ITEM_CHARACTERS} for one item")
    return values


def sent_id(raw: object, catalogue: Catalogue) -> str | None:
    """The id of what was sent, if it has one that can be shown."""
    item_id = raw.get(catalogue.id) if isinstance(raw, Mapping) else None
    return item_id[:SHOWN_CHARACTERS] if isinstance(item_id, str) else None


Read = Callable[[str, object], Any]


def _readers(catalogue: Catalogue) -> dict[str, Read]:
    """What judges each column that the app declares; the later entry counts where two parts share one."""
    parts: list[tuple[str, Read]] = [
        *((name, _number) for name in catalogue.attributes),
        *((name, _text) for name in catalogue.text),
        (catalogue.categories, _words),
        (catalogue.brand, _word),
        (catalogue.seller, _word),
        (catalogue.price, _amount),
        (catalogue.time, _moment),
        (catalogue.regions, _words),
        (catalogue.stock, _amount),
    ]
    return {name: read for name, read in parts if name}


def _refuse_unknown(raw: Mapping[Any, Any], known: Collection[str]) -> None:
    for name in raw:
        if name not in known:
            close = nearest(str(name), known)
            hint = f"did you mean '{close}'? " if close else ""
            raise InvalidInput(str(name), raw[name], f"{hint}the app's columns are {', '.join(known)}")


def _version(value: object) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= LATEST_VERSION:
        remedy = f"send a whole number from 0 to {LATEST_VERSION} that rises with every change of the item"
        raise InvalidInput(VERSION, value, remedy)
    return value


def _text(name: str, value: object) -> str:
    if value == "":
        return ""
    return checked_text(name, value, TEXT_CHARACTERS)


def _word(name: str, value: object) -> str:
    return checked_text(name, value, WORD_CHARACTERS)


def _words(name: str, value: object) -> list[str]:
    """A list of words, or one text in which they stand between bars, as imported catalogues have them."""
    words = value.split("|") if isinstance(value, str) else value
    if not isinstance(words, list):
        raise InvalidInput(name, value, "send a list of strings, or one string")
    if len(words) > WORDS:
        raise InvalidInput(name, f"{len(words)} values", f"send at most {WORDS}")
    return [_word(f"{name}[{place}]", one) for place, one in enumerate(words)]


def _moment(name: str, value: object) -> float:
    """What is announced may be ahead of our clock, unlike an event."""
    moment = parse_moment(name, value)
    if not EARLIEST <= moment <= LATEST:
        remedy = "it lies before 1800 or after 2100; send epoch seconds"
        raise InvalidInput(name, value, f"{remedy}, not milliseconds" if moment > LATEST else remedy)
    return moment


def _number(name: str, value: object) -> float:
    return _within(name, value, -LARGEST)


def _amount(name: str, value: object) -> float:
    """What there cannot be less of than nothing: a price, a stock."""
    return _within(name, value, 0.0)


def _within(name: str, value: object, low: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= LARGEST:
        raise InvalidInput(name, value, f"send a finite number from {low:g} to {LARGEST:g}, or leave it out")
    return value
