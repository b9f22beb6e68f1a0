"""What a decision record says of its events: which count in which scope, and what can no longer be told."""

from __future__ import annotations

import pytest

from narrows.events import Event
from narrows.skew.marks import forgotten, keys_of, marks_of, placed, reached

LONG = "49668000000000000000000000000000000000000000000000000000"
APPLIED = {
    "u#ann": {"shard-1": LONG + "7", "shard-2|s#x": "9"},
    "s#x": {"shard-2|s#x": "9", "shard-1|u#ann": LONG + "5"},
}


def _event(user: str | None, session: str | None = None) -> Event:
    return Event("e", "view", 10.0, 11.0, user_id=user, session_id=session)


@pytest.mark.parametrize(
    ("event", "shard", "sequence", "counted"),
    [
        (_event("ann", "y"), "shard-1", LONG + "7", {"visitor", "user"}),
        (_event("ann", "y"), "shard-1", LONG + "8", set()),
        (_event("ann", "y"), "shard-2", "1", set()),
        (_event("ann", "x"), "shard-1", LONG + "5", {"visitor", "user", "session"}),
        (_event("ann", "x"), "shard-1", LONG + "6", {"visitor", "user"}),
        (_event(None, "x"), "shard-2", "9", {"visitor", "session"}),
        (_event(None, "x"), "shard-2", "10", set()),
        (_event(None, "z"), "shard-2", "1", set()),
    ],
)
def test_an_event_counts_up_to_its_mark(event: Event, shard: str, sequence: str, counted: set[str]) -> None:
    """By key, shard and number; those of another session, and those beyond the mark, do not."""
    assert placed(event, shard, sequence, marks_of(APPLIED)).counted == counted


def test_an_event_beyond_its_mark_is_late() -> None:
    """It would count now: it came to the same state after the decision."""
    found = placed(_event(None, "x"), "shard-9", "1", marks_of(APPLIED))
    assert found.counted == set()
    assert found.late == {"visitor", "session"}


def test_an_anonymous_session_counts_for_visitor_and_session() -> None:
    """Its own mark is a plain one, for it was never merged."""
    marks = marks_of({"s#x": {"shard-1": "5"}})
    assert placed(_event(None, "x"), "shard-1", "5", marks).counted == {"visitor", "session"}


def test_a_lake_must_have_been_read_as_far_as_the_marks() -> None:
    """Numbers compare as numbers, however many digits they have; a shard that was never read is behind."""
    assert reached(APPLIED, {"shard-1": LONG + "9", "shard-2": "10"})
    assert not reached(APPLIED, {"shard-1": LONG + "9", "shard-2": "8"})
    assert not reached(APPLIED, {"shard-1": LONG + "9"})
    assert reached({}, {})


def test_a_state_at_its_limit_of_marks_may_have_forgotten_some() -> None:
    """16 shards of its own, or 64 other keys: then not all of its events can be told."""
    assert not forgotten(APPLIED)
    assert forgotten({"u#ann": {f"shard-{number}": "1" for number in range(16)}})
    assert forgotten({"u#ann": {f"shard-1|s#{number}": "1" for number in range(64)}})


def test_all_keys_of_a_record_are_known() -> None:
    """Its states, the keys whose events moved into them, and the request's own."""
    assert keys_of(APPLIED, "u#ann", None, "s#late") == {"u#ann", "s#x", "s#late"}
