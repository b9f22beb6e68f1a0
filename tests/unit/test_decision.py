"""The decision record: what is written is what is read, and nothing else is accepted."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narrows.decision import RECORD_VERSION, ConsideredItem, DecisionRecord, ShownItem
from narrows.errors import InvalidInput

numbers = st.floats(allow_nan=False, allow_infinity=False)
words = st.text(st.characters(codec="utf-8"), max_size=20)
shown = st.builds(
    ShownItem,
    item_id=words,
    row=st.integers(-1, 2**31 - 1),
    position=st.integers(1, 100),
    score=st.none() | numbers,
    source=words,
    reason=words,
    propensity=st.floats(0, 1),
)
considered = st.builds(
    ConsideredItem,
    item_id=words,
    row=st.integers(0, 2**31 - 1),
    score=st.none() | numbers,
    sources=st.dictionaries(words, st.integers(0, 500), max_size=4),
)
records = st.builds(
    DecisionRecord,
    recommendation_id=words,
    app=words,
    surface=words,
    at=numbers,
    limit=st.integers(1, 100),
    user_key=st.none() | words,
    session_key=st.none() | words,
    rung=words,
    snapshot_version=words,
    model_version=st.none() | words,
    policy_version=st.integers(0, 2**60),
    context=st.dictionaries(words, words, max_size=3),
    context_items=st.lists(words, max_size=3).map(tuple),
    history=st.lists(st.tuples(words, numbers), max_size=5).map(tuple),
    visitor_features=st.dictionaries(words, st.none() | numbers, max_size=5),
    visitor_lists=st.dictionaries(words, st.lists(words, max_size=3).map(tuple), max_size=2),
    applied=st.dictionaries(words, st.dictionaries(words, st.integers(0, 10**127).map(str)), max_size=3),
    request_features=st.dictionaries(words, st.none() | numbers, max_size=3),
    considered=st.lists(considered, max_size=4).map(tuple),
    slate=st.lists(shown, max_size=4).map(tuple),
    remembered=st.lists(words, max_size=5).map(tuple),
    degraded=st.dictionaries(words, words, max_size=3),
    gate=st.dictionaries(words, st.integers(0, 1000), max_size=3),
    counts=st.dictionaries(words, st.integers(0, 1000), max_size=3),
    stage_ms=st.dictionaries(words, numbers, max_size=3),
)
PLAIN = DecisionRecord("r1", "megashop", "homepage", 1.5, 5, "u#1", None, "full", "s1", "m1", 7)


@given(records)
def test_a_record_reads_back_exactly(record: DecisionRecord) -> None:
    """Any record survives JSON as it was, floats to the last bit, on one line."""
    text = record.to_json()
    assert DecisionRecord.from_json(text) == record
    assert DecisionRecord.from_json(text.encode()) == record
    assert "\n" not in text


def test_a_record_is_versioned_and_compact() -> None:
    """The version is in the line, blanks are not."""
    text = PLAIN.to_json()
    assert json.loads(text)["record_version"] == RECORD_VERSION
    assert ", " not in text
    assert '": ' not in text


def test_a_record_of_version_one_is_still_read() -> None:
    """It tells nothing of the events that it stands on, and all the rest."""
    content = json.loads(PLAIN.to_json()) | {"record_version": 1}
    del content["applied"], content["visitor_lists"]
    read = DecisionRecord.from_json(json.dumps(content))
    assert read == DecisionRecord(**{**vars(PLAIN), "record_version": 1})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_float_without_a_value_is_refused(value: float) -> None:
    """What is not finite has to be null before it is a record."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        DecisionRecord(**{**vars(PLAIN), "stage_ms": {"total": value}}).to_json()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "written by DecisionRecord"),
        ("[]", "written by DecisionRecord"),
        ("{}", "written by DecisionRecord"),
        ('{"record_version": 3}', "this code reads versions"),
        ('{"record_version": 1}', "missing or malformed"),
        (PLAIN.to_json().replace('"slate":[]', '"slate":[{}]'), "missing or malformed"),
        (PLAIN.to_json().replace('"history":[]', '"history":[1]'), "missing or malformed"),
        (b"\xff\xfe", "written by DecisionRecord"),
    ],
)
def test_what_is_no_record_is_refused(text: str, expected: str) -> None:
    """Anything else names what was expected."""
    with pytest.raises(InvalidInput, match=expected):
        DecisionRecord.from_json(text)
