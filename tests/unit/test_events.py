"""What a producer may send, and the verdict on everything else."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrows.errors import InvalidInput
from narrows.events import Limits, from_record, parse_event, pseudonym, pseudonymise, to_record

NOW = 1_800_000_000.0
TYPES = ("impression", "click", "watch")
KEY = b"a key of the test"


def sent(**changes: Any) -> dict[str, Any]:
    event = {"event_type": "click", "user_id": "u1", "session_id": "s1", "item_id": "i1", "sent_at": NOW - 5}
    return {name: value for name, value in {**event, **changes}.items() if value is not ...}


def parse(**changes: Any) -> Any:
    return parse_event(sent(**changes), types=TYPES, now=NOW)


def test_a_complete_event_keeps_every_field() -> None:
    """Nothing that the envelope names is lost on the way in."""
    event = parse(
        event_id="e1",
        event_value=0.5,
        recommendation_id="r1",
        position=3,
        surface="feed",
        impression=["i1", "i2"],
        query="red shoes",
        properties={"fraction": 0.5, "device": "phone"},
        schema_version=1,
        consent=True,
    )
    assert (event.event_id, event.time, event.received_at) == ("e1", NOW - 5, NOW)
    assert (event.value, event.position, event.surface) == (0.5, 3, "feed")
    assert event.impression == ("i1", "i2")
    assert event.properties == {"fraction": 0.5, "device": "phone"}
    assert event.visitor_key == "u#u1"


MALFORMED = [
    ({"event_type": ...}, "event_type", "send one of"),
    ({"event_type": ""}, "event_type", "non-empty"),
    ({"event_type": "clik"}, "event_type", "did you mean 'click'"),
    ({"event_type": 7}, "event_type", "send a string"),
    ({"user_id": ..., "session_id": ...}, "user_id", "send user_id or session_id"),
    ({"user_id": None, "session_id": None}, "user_id", "send user_id or session_id"),
    ({"user_id": ""}, "user_id", "non-empty"),
    ({"user_id": "u" * 257}, "user_id", "at most 256"),
    ({"user_id": 42}, "user_id", "send a string"),
    ({"item_id": ["i1"]}, "item_id", "send a string"),
    ({"item_id": "i" * 257}, "item_id", "at most 256"),
    ({"item_id": "\ud800"}, "item_id", "valid Unicode"),
    ({"event_id": "e" * 257}, "event_id", "at most 256"),
    ({"sent_at": NOW + 301}, "sent_at", "ahead of our clock"),
    ({"sent_at": NOW * 1000}, "sent_at", "not milliseconds"),
    ({"sent_at": NOW - 31 * 86_400}, "sent_at", "30 days"),
    ({"sent_at": math.nan}, "sent_at", "epoch seconds"),
    ({"sent_at": "yesterday"}, "sent_at", "ISO 8601"),
    ({"sent_at": "2027-01-15T08:00:00"}, "sent_at", "time zone"),
    ({"sent_at": True}, "sent_at", "epoch seconds"),
    ({"sent_at": "0001-01-01T00:00:00+14:00"}, "sent_at", "30 days"),
    ({"event_value": math.nan}, "event_value", "finite"),
    ({"event_value": math.inf}, "event_value", "finite"),
    ({"event_value": "0.5"}, "event_value", "finite number"),
    ({"event_value": 10**400}, "event_value", "finite"),
    ({"position": -1}, "position", "integer from 0"),
    ({"position": 1.5}, "position", "integer from 0"),
    ({"position": True}, "position", "integer from 0"),
    ({"impression": ["i"] * 201}, "impression", "at most 200"),
    ({"impression": "i1"}, "impression", "list"),
    ({"impression": ["i1", 2]}, "impression[1]", "send a string"),
    ({"query": "q" * 513}, "query", "at most 512"),
    ({"properties": [1]}, "properties", "object"),
    ({"properties": {"a": {"b": 1}}}, "properties.a", "nesting"),
    ({"properties": {"a": math.inf}}, "properties.a", "finite"),
    ({"properties": {str(i): i for i in range(51)}}, "properties", "at most 50"),
    ({"properties": {"a": "x" * 1025}}, "properties.a", "at most 1024"),
    ({"schema_version": 2}, "schema_version", "known schema versions: 1"),
    ({"schema_version": "1"}, "schema_version", "known schema versions"),
    ({"schema_version": True}, "schema_version", "known schema versions"),
    ({"consent": "yes"}, "consent", "true or false"),
    ({"userid": "u1"}, "userid", "did you mean 'user_id'"),
    ({"price": 3}, "price", "properties"),
    ({"event_type": "do_not_show", "item_id": ...}, "item_id", "needs the item"),
]


@pytest.mark.parametrize(("changes", "field", "remedy"), MALFORMED)
def test_a_malformed_event_names_field_value_and_remedy(
    changes: dict[str, Any], field: str, remedy: str
) -> None:
    """Whoever sent it learns which field to change and how."""
    with pytest.raises(InvalidInput) as refusal:
        parse(**changes)
    assert refusal.value.field == field
    assert remedy in refusal.value.remedy


@pytest.mark.parametrize("raw", [None, 3, "click", [sent()], math.nan])
def test_something_else_than_an_object_is_refused(raw: object) -> None:
    """A list or a string in place of an event is a verdict, not a crash."""
    with pytest.raises(InvalidInput) as refusal:
        parse_event(raw, types=TYPES, now=NOW)
    assert refusal.value.field == "event"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(sorted(sent(event_value=1, position=1, properties={}))), json_values))
def test_any_json_gets_an_event_or_a_verdict(raw: dict[str, Any]) -> None:
    """No value raises anything but `InvalidInput`; what passes can be stored and read back."""
    try:
        event = parse_event({**sent(), **raw}, types=TYPES, now=NOW)
    except InvalidInput:
        return
    assert from_record(json.loads(json.dumps(to_record(event)))) == event


def test_times_are_read_as_iso_8601_or_epoch_seconds() -> None:
    """Both ways of writing one moment give the same number of seconds."""
    assert parse(sent_at="2027-01-15T08:00:00Z").time == NOW
    assert parse(sent_at="2027-01-15T09:00:00+01:00").time == NOW
    assert parse(sent_at=NOW).time == NOW
    assert parse(sent_at=NOW + 299).time == NOW + 299


def test_a_retry_of_the_same_event_has_the_same_id() -> None:
    """An id follows from the content, however the fields are ordered and whenever the retry arrives."""
    first = parse()
    retry = parse_event(dict(reversed(sent().items())), types=TYPES, now=NOW + 60)
    other = parse(item_id="i2")
    assert first.event_id == retry.event_id != other.event_id


def test_without_a_time_two_equal_events_are_two_events() -> None:
    """Nothing tells a retry from a second click then, so both count."""
    one = parse_event(sent(sent_at=...), types=TYPES, now=NOW)
    two = parse_event(sent(sent_at=...), types=TYPES, now=NOW + 1)
    assert one.time == NOW
    assert one.event_id != two.event_id


def test_pseudonyms_are_keyed_and_stable() -> None:
    """The same identifier has one pseudonym under a key, and another under another key."""
    assert pseudonym("u1", KEY) == pseudonym("u1", KEY)
    assert pseudonym("u1", KEY) != pseudonym("u1", b"another")
    assert len(pseudonym("u1", KEY)) == 32


def test_a_stored_event_holds_no_identifier() -> None:
    """Neither the ids nor a hash that would confirm a guessed id is left in the record."""
    event = parse(user_id="alice@example.com", session_id="cookie-1")
    stored = json.dumps(to_record(pseudonymise(event, KEY)))
    assert "alice" not in stored
    assert "cookie-1" not in stored
    assert event.event_id not in stored


def test_without_consent_an_event_belongs_to_nobody() -> None:
    """It keeps its content, but no other event of the same visitor carries the same identifiers."""
    one = pseudonymise(parse(consent=False), KEY)
    two = pseudonymise(parse(consent=False, item_id="i2"), KEY)
    assert one.user_id is None
    assert one.session_id != two.session_id
    assert one.session_id != pseudonym("s1", KEY)


@pytest.mark.parametrize(
    "record",
    [
        None,
        [],
        {},
        {"event_id": "e"},
        {**to_record(parse()), "sent_at": None},
        {**to_record(parse()), "user_id": 3},
    ],
)
def test_a_damaged_record_is_refused(record: object) -> None:
    """A consumer learns that a record is poison by class, before it touches any state."""
    with pytest.raises(InvalidInput):
        from_record(record)


def test_limits_are_arguments() -> None:
    """A deployment may be stricter than the defaults."""
    with pytest.raises(InvalidInput):
        parse_event(sent(sent_at=NOW - 20), types=TYPES, now=NOW, limits=Limits(behind_s=10))
