"""An event as it is stored: under pseudonyms, and read back whole or refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from narrows.errors import InvalidInput
from narrows.events import Event, from_record, pseudonym, pseudonymise, to_record

NOW = 1_800_000_000.0
KEY = b"a key of the test"
EVENT = Event("e1", "click", NOW - 5, NOW, user_id="alice@example.com", session_id="cookie-1", item_id="i1")
RECORD = to_record(EVENT)


def test_pseudonyms_are_keyed_and_stable() -> None:
    """The same identifier has one pseudonym under a key, and another under another key."""
    assert pseudonym("u1", KEY) == pseudonym("u1", KEY)
    assert pseudonym("u1", KEY) != pseudonym("u1", b"another")
    assert len(pseudonym("u1", KEY)) == 32


def test_a_stored_event_holds_no_identifier() -> None:
    """Neither the ids nor a hash that would confirm a guessed id is left in the record."""
    event = replace(EVENT, event_id="sha256:" + "ab" * 20)
    stored = json.dumps(to_record(pseudonymise(event, KEY)))
    assert "alice" not in stored
    assert "cookie-1" not in stored
    assert event.event_id not in stored


def test_without_consent_an_event_belongs_to_nobody() -> None:
    """It keeps its content, but no other event of the same visitor carries the same identifiers."""
    one = pseudonymise(replace(EVENT, consent=False), KEY)
    two = pseudonymise(replace(EVENT, event_id="e2", consent=False), KEY)
    assert one.user_id is None
    assert one.session_id != two.session_id
    assert one.session_id != pseudonym("cookie-1", KEY)


def test_a_record_of_version_1_is_read() -> None:
    """What lies in the stream when this code is deployed, with or without the version's name."""
    old = {**RECORD, "schema_version": 1, "properties": {"device": "phone"}}
    assert from_record(old).properties == {"device": "phone"}
    del old["schema_version"]
    assert from_record(old).item_id == "i1"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"event_id": None}, "event_id"),
        ({"event_type": ""}, "event_type"),
        ({"sent_at": None}, "sent_at"),
        ({"sent_at": "2026-11-21"}, "sent_at"),
        ({"sent_at": True}, "sent_at"),
        ({"sent_at": -1.0}, "sent_at"),
        ({"sent_at": 10**400}, "sent_at"),
        ({"sent_at": NOW * 1000, "received_at": NOW * 1000}, "sent_at"),
        ({"sent_at": NOW + 301}, "sent_at"),
        ({"received_at": 3e11}, "received_at"),
        ({"received_at": float("nan")}, "received_at"),
        ({"event_id": "\ud800"}, "event_id"),
        ({"item_id": "i" * 257}, "item_id"),
        ({"query": "q" * 513}, "query"),
        ({"impression": ["i1", "\udfff"]}, "impression"),
        ({"impression": ["i" * 257]}, "impression"),
        ({"impression": {"i1": 1}}, "impression"),
        ({"properties": {"a": "\ud800"}}, "properties.a"),
        ({"properties": {"\ud800": 1}}, "properties"),
        ({"event_value": True}, "event_value"),
        ({"event_value": 10**400}, "event_value"),
        ({"event_value": 1e16}, "event_value"),
        ({"event_value": -(10**16)}, "event_value"),
        ({"position": 1e300}, "position"),
        ({"user_id": 3}, "user_id"),
        ({"user_id": None, "session_id": None}, "user_id"),
        ({"query": ["red"]}, "query"),
        ({"impression": "i1"}, "impression"),
        ({"impression": ["i1", None]}, "impression"),
        ({"position": "1"}, "position"),
        ({"properties": []}, "properties"),
        ({"properties": {"a": {"b": 1}}}, "properties.a"),
        ({"properties": {"a": 10**400}}, "properties.a"),
        ({"properties": {"a": -1e16}}, "properties.a"),
        ({"marks": "bot"}, "marks"),
        ({"consent": "no"}, "consent"),
        ({"schema_version": 3}, "schema_version"),
        ({"schema_version": "2"}, "schema_version"),
        ({"schema_version": [2]}, "schema_version"),
    ],
)
def test_a_damaged_record_is_refused(changes: dict[str, Any], field: str) -> None:
    """A consumer learns that a record is poison by field, before it touches any state."""
    with pytest.raises(InvalidInput) as refusal:
        from_record({**RECORD, **changes})
    assert refusal.value.field == field


def test_everything_that_a_producer_may_send_is_read_again() -> None:
    """Texts beyond ASCII, the longest ids, a clock that goes ahead as far as it may."""
    most = replace(
        EVENT,
        time=NOW + 300,
        item_id="\N{GRINNING FACE}" * 256,
        query="\N{LATIN SMALL LETTER U WITH DIAERESIS}" * 512,
        impression=("\N{CYRILLIC SMALL LETTER ZHE}", "i" * 256),
        properties={
            "\N{CYRILLIC SMALL LETTER ZHE}": "\N{GRINNING FACE}",
            "n": -1e15,
            "whole": 10**15,
            "b": True,
        },
    )
    assert from_record(json.loads(json.dumps(to_record(most)))) == most


@pytest.mark.parametrize("record", [None, [], "click", {}])
def test_something_else_than_a_record_is_refused(record: object) -> None:
    """JSON that never was an event is poison too."""
    with pytest.raises(InvalidInput):
        from_record(record)
