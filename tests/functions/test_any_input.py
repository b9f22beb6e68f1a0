"""Whatever JSON a client sends, it gets an answer or a refusal that names a field; nothing crashes."""

from __future__ import annotations

import gzip
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambdas.collect_events.contract import sent_events, shown
from lambdas.collect_events.put_events import FIELDS as PUT_FIELDS
from lambdas.collect_events.put_events import RENAMED, answer_to
from lambdas.recommend.contract import CONTEXT_FIELDS, FIELDS, asked
from lambdas.update_policy.contract import CHANGE_FIELDS, sent_changes
from narrows.adapters.memory import MemoryEventStream, MemoryObjects
from narrows.collecting import Collected, collect
from narrows.envelope import FIELDS as EVENT_FIELDS
from narrows.errors import InvalidInput
from narrows.features.stream import StreamRecord
from narrows.landing import landing_files
from narrows.settings import load_app
from tests.functions.doorways import http_event

NOW = 1_800_000_000.0
APP = load_app(Path(__file__).resolve().parents[2] / "apps" / "media")
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


STORED = {"event_id": "e", "event_type": "click", "sent_at": NOW, "user_id": "u", "properties": {"a": 1}}


def objects(names: tuple[str, ...]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from(names) | st.text(max_size=3), values, max_size=4)


def posted(body: object) -> dict[str, Any]:
    return http_event("POST", "/", json.dumps(body))


@given(objects(FIELDS), objects(CONTEXT_FIELDS) | st.none())
def test_any_request_is_read_or_refused(body: dict[str, Any], context: Any) -> None:
    """A request for recommendations raises nothing but `InvalidInput`."""
    content = {"user_id": "alice", **body} if context is None else {**body, "context": context}
    try:
        ask = asked(posted(content), "feed", app=APP, now=NOW)
    except InvalidInput:
        return
    assert 1 <= ask.limit <= 100
    assert ask.user_id or ask.session_id


@given(st.lists(objects(EVENT_FIELDS) | values, max_size=4))
def test_any_batch_gets_a_verdict_for_each_event(events: list[Any]) -> None:
    """One for each event, in order, that JSON in ASCII can carry; no identifier is kept."""
    stream, quarantine = MemoryEventStream(), MemoryObjects()
    sent = sent_events(posted({"events": events}))
    collected = collect(sent, types=APP.events, now=NOW, key=b"key", stream=stream, quarantine=quarantine)
    answer = json.loads(json.dumps(shown(collected)))
    assert [one["index"] for one in answer["verdicts"]] == list(range(len(events)))
    assert answer["accepted"] == len(stream.events)
    assert bool(answer["rejected"]) == bool(quarantine.files)


@given(st.lists(objects(tuple(RENAMED)) | values, max_size=4) | values, objects(PUT_FIELDS))
def test_any_call_of_put_events_is_taken_or_refused_by_a_name_of_aws(events: Any, body: Any) -> None:
    """Success, or an error whose class SDKs know; each event is stored, or kept with its reason."""
    stream, quarantine = MemoryEventStream(), MemoryObjects()

    def collected(sent: list[object]) -> Collected:
        return collect(sent, types=APP.events, now=NOW, key=b"key", stream=stream, quarantine=quarantine)

    call = {"trackingId": "t", "sessionId": "s", **body, "eventList": events}
    answer = answer_to(posted(call), collected)
    assert answer.status_code in (200, 400)
    assert (answer.status_code == 200) == (not quarantine.files and bool(stream.events))
    if answer.status_code == 400:
        assert json.loads(str(answer.body))["__type"] == "InvalidInputException"


@given(st.lists(objects(EVENT_FIELDS) | values | st.just(STORED), max_size=4))
def test_any_record_lands_or_lies_in_quarantine(contents: list[Any]) -> None:
    """Each record of a batch is one line of one of the two files; none is lost, none fails the batch."""
    records = [
        StreamRecord("shard", str(number), json.dumps(content).encode())
        for number, content in enumerate(contents)
    ]
    files = landing_files(records, "events", NOW)
    lines = [json.loads(line) for file in files for line in gzip.decompress(file.data).splitlines()]
    assert sorted(one["sequence"] for one in lines) == [str(number) for number in range(len(contents))]
    for line in lines:
        assert "properties" not in line
        assert ("remedy" in line) != ("event_id" in line)


@given(st.lists(objects(CHANGE_FIELDS) | values, max_size=3) | values)
def test_any_change_is_read_or_refused(changes: Any) -> None:
    """A policy change raises nothing but `InvalidInput`, by HTTP or directly."""
    for event in (posted({"changes": changes}), {"changes": changes}):
        with suppress(InvalidInput):
            assert sent_changes(event)


def test_half_a_surrogate_pair_is_refused_and_answered() -> None:
    """It can be sent as JSON, so the answer must be able to show it."""
    events = [{"event_type": "click", "user_id": "a", "event_id": "\ud800"}, {"\ud800": 1}]
    collected = collect(
        events, types=APP.events, now=NOW, key=b"key", stream=MemoryEventStream(), quarantine=MemoryObjects()
    )
    assert collected.accepted == 0
    assert json.dumps(shown(collected)).encode()


def test_a_name_of_the_clients_own_is_cut_in_the_answer() -> None:
    """An unknown field's name may be as long as a body; what is answered stays short."""
    events = [{"n" * 900_000: 1}]
    collected = collect(
        events, types=APP.events, now=NOW, key=b"key", stream=MemoryEventStream(), quarantine=MemoryObjects()
    )
    assert len(json.dumps(shown(collected))) < 1_000
    with pytest.raises(InvalidInput) as refused:
        asked(posted({"user_id": "alice", "n" * 10_000: 1}), "feed", app=APP, now=NOW)
    assert len(str(refused.value)) < 1_000
