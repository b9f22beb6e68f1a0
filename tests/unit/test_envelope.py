"""What a producer may send, and the verdict on everything else."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrows.envelope import FIELDS, Limits, parse_event, upgrade
from narrows.errors import InvalidInput
from narrows.events import from_record, pseudonymise, to_record
from narrows.features.registry import FeatureSet
from narrows.settings import load_app

APPS = Path(__file__).parents[2] / "apps"
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
        context={"device": "phone", "location": "DE"},
        properties={"fraction": 0.5},
        schema_version=2,
        consent=True,
    )
    assert (event.event_id, event.time, event.received_at) == ("e1", NOW - 5, NOW)
    assert (event.value, event.position, event.surface) == (0.5, 3, "feed")
    assert event.impression == ("i1", "i2")
    assert event.properties == {"fraction": 0.5, "device": "phone", "location": "DE"}
    assert event.visitor_key == "u#u1"


TALKATIVE = {f"note-{n}": "x" * 1024 for n in range(15)}
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
    ({"event_value": 1e308}, "event_value", "from -1e+15 to 1e+15"),
    ({"event_value": -1.5e308}, "event_value", "from -1e+15 to 1e+15"),
    ({"event_value": 10**16}, "event_value", "from -1e+15 to 1e+15"),
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
    ({"properties": {"a": 1e300}}, "properties.a", "from -1e+15 to 1e+15"),
    ({"properties": {"a": -(10**16)}}, "properties.a", "from -1e+15 to 1e+15"),
    ({"properties": {str(i): i for i in range(51)}}, "properties", "at most 50"),
    ({"properties": {"a": "x" * 1025}}, "properties.a", "at most 1024"),
    ({"schema_version": 3}, "schema_version", "known schema versions are 1 and 2"),
    ({"schema_version": 0}, "schema_version", "known schema versions are 1 and 2"),
    ({"schema_version": "1"}, "schema_version", "known schema versions"),
    ({"schema_version": True}, "schema_version", "known schema versions"),
    ({"schema_version": [2]}, "schema_version", "known schema versions"),
    ({"context": {"device": "phone"}}, "context", '"schema_version": 2'),
    ({"context": {"device": "phone"}, "schema_version": 1}, "context", '"schema_version": 2'),
    ({"context": "phone", "schema_version": 2}, "context", "send an object with device, location"),
    ({"context": {"devise": "phone"}, "schema_version": 2}, "context.devise", "did you mean 'device'"),
    ({"context": {"browser": "x"}, "schema_version": 2}, "context.browser", "properties"),
    ({"context": {"device": 3}, "schema_version": 2}, "context.device", "send a string"),
    ({"context": {"location": ""}, "schema_version": 2}, "context.location", "non-empty"),
    ({"context": {"user_agent": "x" * 1025}, "schema_version": 2}, "context.user_agent", "at most 1024"),
    (
        {"context": {"device": "phone"}, "properties": {"device": "tv"}, "schema_version": 2},
        "properties.device",
        "send it once, as context.device",
    ),
    ({"impression": ["i" * 256] * 200, "properties": TALKATIVE}, "event", "at most 64000 in one event"),
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


@given(st.dictionaries(st.sampled_from(FIELDS), json_values))
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


@pytest.mark.parametrize("app", ["adpilot", "megashop", "shopnow"])
def test_no_number_that_is_taken_makes_a_feature_infinite(app: str) -> None:
    """The largest there are, either way, from every type of event: what is known stays finite for good."""
    settings = load_app(APPS / app)
    features = FeatureSet(settings.features)
    numbers = {name for one in settings.features for name in one.reads}
    events = [
        parse_event(
            sent(
                event_type=event_type,
                event_id=f"{event_type}-{place}",
                event_value=number,
                properties=dict.fromkeys(sorted(numbers), number),
            ),
            types=settings.events,
            now=NOW,
        )
        for event_type in settings.events
        for place, number in enumerate((1e15, 1e15, -1e15, -1e15, 1e15))
    ]
    read = features.read(features.add_all(features.zero(), events), NOW)
    assert {name: value for name, value in read.items() if not math.isfinite(value)} == {}
    assert max(read.values()) > 1e12


def test_milliseconds_and_article_numbers_are_numbers_like_others() -> None:
    """Large as they are, they are what properties hold."""
    said = {"clicked_at": 1_800_000_000_000, "gtin": 99_999_999_999_999}
    assert parse(properties=said).properties == said


def test_limits_are_arguments() -> None:
    """A deployment may be stricter than the defaults."""
    with pytest.raises(InvalidInput):
        parse_event(sent(sent_at=NOW - 20), types=TYPES, now=NOW, limits=Limits(behind_s=10))
    with pytest.raises(InvalidInput, match="from -100 to 100"):
        parse_event(sent(event_value=101), types=TYPES, now=NOW, limits=Limits(magnitude=100))


def test_an_event_of_version_1_is_upgraded() -> None:
    """Device and place were properties then; they move to the context, and nothing else changes."""
    old = sent(properties={"device": "phone", "location": "DE", "fraction": 0.5}, schema_version=1)
    assert upgrade(old) == {
        **sent(properties={"fraction": 0.5}),
        "context": {"device": "phone", "location": "DE"},
        "schema_version": 2,
    }
    assert upgrade(upgrade(old)) == upgrade(old)


def test_both_versions_of_an_event_are_one_event() -> None:
    """Whatever is folded, landed or trained on cannot tell in which version an event was sent."""
    said = {"device": "phone", "location": "DE", "user_agent": "curl/8.5.0"}
    old = parse(event_id="e1", properties={**said, "fraction": 0.5}, schema_version=1)
    new = parse(event_id="e1", context=said, properties={"fraction": 0.5}, schema_version=2)
    assert old == new
    assert to_record(new)["properties"] == {"fraction": 0.5, "device": "phone", "location": "DE"}
    assert to_record(new)["schema_version"] == 2


@pytest.mark.parametrize("device", [3, True, "", "  "])
def test_an_upgrade_refuses_nothing_that_version_1_took(device: object) -> None:
    """A property that only shares its name with a field of the context stays a property."""
    if isinstance(device, str) and device:
        with pytest.raises(InvalidInput, match="non-empty"):
            parse(properties={"device": device})
    else:
        assert parse(properties={"device": device}).properties == {"device": device}


def test_an_id_does_not_change_with_the_version_that_reads_it() -> None:
    """A retry after a deployment is still the same event: its id follows from what was sent."""
    raw = sent(properties={"device": "phone"})
    assert parse(properties={"device": "phone"}).event_id == parse_event(raw, types=TYPES, now=NOW).event_id
    assert parse(properties={"device": "phone"}).event_id != parse(context={}, schema_version=2).event_id


def test_a_bot_is_marked_and_its_user_agent_forgotten() -> None:
    """The event is taken like any other; the mark stays, what the program called itself does not."""
    crawler = "Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)"
    event = parse(context={"user_agent": crawler}, schema_version=2)
    assert event.marks == ("bot:user_agent",)
    assert "Googlebot" not in json.dumps(to_record(event))
    assert from_record(to_record(event)) == event
    assert parse_event(sent(), types=TYPES, now=NOW, user_agent=crawler).marks == ("bot:user_agent",)


def test_the_largest_event_fits_into_a_record_of_the_stream() -> None:
    """Even where JSON writes each character in twelve bytes."""
    wide = "\N{GRINNING FACE}"
    event = parse(
        event_id=wide * 256,
        query=wide * 512,
        surface=wide * 256,
        impression=[wide * 256] * 190,
        properties={f"{wide * 200}{n}": wide * 1024 for n in range(12)},
    )
    assert len(json.dumps(to_record(pseudonymise(event, KEY)))) < 1_000_000
