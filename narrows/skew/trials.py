"""The ways in which a diverging vector may have been computed, each tried out by folding its events again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

from narrows.events import Event, Scalar
from narrows.features.registry import Features, FeatureSet
from narrows.features.ring import RING
from narrows.features.scopes import VISITOR_SCOPES
from narrows.skew.comparing import Row, Value, values_of

SHIFTS_S = tuple(sign * quarter * 900.0 for quarter in range(1, 57) for sign in (1, -1))
"""What clocks are set wrong by: quarters of an hour up to 14 hours."""
LATENESS_S = (60.0, 3_600.0, 86_400.0)
NOWHERE: frozenset[str] = frozenset()
INT32 = 2.0**31
MOST_REPEATED = 4 * RING


@dataclass(frozen=True)
class Placed:
    """An event of one of the visitor's keys: the scopes in which it counted when the vector was served.

    `late` are those in which it would count now that it has been applied; `own` those of its key alone.
    """

    event: Event
    counted: frozenset[str]
    late: frozenset[str] = NOWHERE
    own: frozenset[str] = NOWHERE

    @property
    def key(self) -> str:
        """The key of the state that the event folds into first."""
        return self.event.visitor_key


@dataclass(frozen=True)
class Case:
    """A diverging vector with all events of its visitor's keys, and what its request told."""

    row: Row
    events: Sequence[Placed]
    context: Mapping[str, str] = field(default_factory=dict)

    @property
    def honest(self) -> Trial:
        """What the events give that had been applied."""
        return Trial([(one.event, one.counted) for one in self.events if one.counted], self.row.at)


class Trial(NamedTuple):
    """Events with the scopes in which they count, and the moment as of which they are read."""

    events: Sequence[tuple[Event, frozenset[str]]]
    now: float

    @property
    def ids(self) -> frozenset[str]:
        """The ids of the events."""
        return frozenset(event.event_id for event, _ in self.events)


Trials = Callable[[Case], Iterable[Trial]]


def rendered(features: FeatureSet, trial: Trial, context: Mapping[str, str]) -> dict[str, Value]:
    """Every value and list that the events give, as a decision would record them."""
    state: dict[str, Any] = {}
    for scope in VISITOR_SCOPES:
        state.update(_folded(features, scope, [event for event, scopes in trial.events if scope in scopes]))
    values = features.read(state, trial.now)
    computed = features.computed.request_values(trial.now, context, values)
    return values_of(values, computed, features.lists(state, trial.now))


def _folded(features: FeatureSet, scope: str, events: Sequence[Event]) -> Features:
    view = features.scoped(scope)
    return view.add_all(view.zero(), events)


def shifted(seconds: float) -> Trials:
    """The clock of the request, or that of the events, was wrong by so much."""

    def trials(case: Case) -> Iterator[Trial]:
        events, now = case.honest
        yield Trial(events, now + seconds)
        yield Trial([(replace(one, time=one.time - seconds), scopes) for one, scopes in events], now)

    return trials


def not_yet_applied(case: Case) -> Iterator[Trial]:
    """Counted by the time at which they happened, not by what the state had applied."""
    late = [one for one in case.events if one.late and not one.counted and one.event.time <= case.row.at]
    if late:
        yield Trial([*case.honest.events, *((one.event, one.late) for one in late)], case.row.at)


def all_there_are(case: Case) -> Iterator[Trial]:
    """Every event that exists by now, also those after the decision."""
    late = [one for one in case.events if one.late and not one.counted]
    if late:
        yield Trial([*case.honest.events, *((one.event, one.late) for one in late)], case.row.at)


def without_stragglers(lateness_s: float) -> Trials:
    """Without the events that arrived so long after they had happened."""

    def trials(case: Case) -> Iterator[Trial]:
        kept = [one for one in case.honest.events if one[0].received_at - one[0].time <= lateness_s]
        if len(kept) < len(case.honest.events):
            yield Trial(kept, case.row.at)

    return trials


def in_day_of_arrival(case: Case) -> Iterator[Trial]:
    """Without the events that arrived on a later day than the one they belong to."""
    kept = [one for one in case.honest.events if _day(one[0].received_at) == _day(one[0].time)]
    if len(kept) < len(case.honest.events):
        yield Trial(kept, case.row.at)


def one_key_only(case: Case) -> Iterator[Trial]:
    """Only the events of one of the visitor's keys, as if the others had never become the same visitor's."""
    keys = sorted({one.key for one in case.events})
    for key in keys:
        chosen = [one for one in case.events if one.key == key and one.event.time <= case.row.at]
        counted = [(one.event, one.counted) for one in chosen if one.counted]
        trial = counted or [(one.event, one.own) for one in chosen]
        if {event.event_id for event, _ in trial} != case.honest.ids:
            yield Trial(trial, case.row.at)


def without_one_key(case: Case) -> Iterator[Trial]:
    """Without the events of one of the visitor's keys."""
    keys = sorted({one.key for one in case.events if one.counted})
    for key in keys if len(keys) > 2 else ():
        yield Trial([one for one in case.honest.events if one[0].visitor_key != key], case.row.at)


def one_session_only(case: Case) -> Iterator[Trial]:
    """Only the events of one session, whoever they belong to by now."""
    sessions = sorted({one.event.session_id or "" for one in case.events} - {""})
    for session in sessions:
        chosen = [one for one in case.events if one.event.session_id == session]
        yield Trial(
            [(one.event, one.counted or one.own) for one in chosen if one.event.time <= case.row.at],
            case.row.at,
        )


def one_key_more(case: Case) -> Iterator[Trial]:
    """With the events of a key that was not the visitor's yet."""
    others = [
        one for one in case.events if not one.counted and not one.late and one.event.time <= case.row.at
    ]
    for key in sorted({one.key for one in others}):
        more = [(one.event, one.own) for one in others if one.key == key]
        yield Trial([*case.honest.events, *more], case.row.at)


def other_keys(case: Case) -> Iterator[Trial]:
    """Every other choice among the keys: one join finds this for one visitor and that for another."""
    for trials in (one_key_only, without_one_key, one_session_only, one_key_more, no_events):
        yield from trials(case)


def no_events(case: Case) -> Iterator[Trial]:
    """A key under which nothing is found."""
    if case.honest.events:
        yield Trial([], case.row.at)


def one_event_twice(case: Case) -> Iterator[Trial]:
    """An event that came again after more others than a state remembers, and counted again."""
    events, now = case.honest
    for one in events if RING < len(events) <= MOST_REPEATED else ():
        yield Trial([*events, one], now)


def cut_to_32_bits(case: Case) -> Iterator[Trial]:
    """The numbers of the events as 32-bit integers."""
    cut = [(_cut(event), scopes) for event, scopes in case.honest.events]
    if any(left is not right for (left, _), (right, _) in zip(cut, case.honest.events, strict=True)):
        yield Trial(cut, case.row.at)


def _cut(event: Event) -> Event:
    numbers = [event.value, *event.properties.values()]
    if not any(isinstance(one, int | float) and abs(one) >= INT32 for one in numbers):
        return event
    properties = {name: _wrapped(one) for name, one in event.properties.items()}
    return replace(
        event, value=None if event.value is None else float(_wrapped(event.value)), properties=properties
    )


def _wrapped(value: Scalar) -> Any:
    if isinstance(value, str | bool) or abs(value) < INT32:
        return value
    return (int(value) + 2**31) % 2**32 - 2**31


def _day(time: float) -> str:
    return datetime.fromtimestamp(time, UTC).date().isoformat()
