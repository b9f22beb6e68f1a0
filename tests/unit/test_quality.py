"""The checks of a lake: each value against its threshold, and what the settings may say."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

import pytest

from narrows.errors import Problem
from narrows.quality import Measured, Quality, failed, judge, newest_days, read_quality
from narrows.toml_reading import Table

AS_OF = datetime(2026, 11, 21, 9, tzinfo=UTC).timestamp()
DAYS = {date(2026, 11, 10) + timedelta(days=back): 1000 for back in range(12)}
LAST = date(2026, 11, 21)
A_DAY = {"events": 1000, "lines": 1050, "malformed": 1, "duplicates": 49}
GOOD = Measured(
    events=12_000,
    newest_at=AS_OF - 60.0,
    by_day=DAYS,
    arrived=dict.fromkeys(newest_days(LAST, 7), A_DAY),
)


def test_a_healthy_lake_passes_every_check() -> None:
    """All ten checks are made, and none fails."""
    checks = judge(GOOD, Quality(), AS_OF)
    assert [one.name for one in checks] == [
        *(
            "events",
            "unknown_types",
            "without_item",
            "malformed",
            "duplicates",
            "marked",
            "future",
            "ancient",
        ),
        *("age_of_newest_s", "volume"),
    ]
    assert {one.verdict for one in checks} == {"passed"}


@pytest.mark.parametrize(
    ("name", "bad", "value"),
    [
        ("events", {"events": 0}, 0.0),
        ("unknown_types", {"unknown_types": 100}, 0.1),
        ("without_item", {"without_item": 20}, 0.02),
        ("malformed", {"malformed": 210}, 0.2),
        ("duplicates", {"duplicates": 420}, 0.4),
        ("marked", {"marked": 750}, 0.75),
        ("future", {"future": 50}, 0.05),
        ("ancient", {"ancient": 100}, 0.1),
        ("age_of_newest_s", {"newest_at": AS_OF - 3 * 86_400.0}, 259_200.0),
        ("volume", {"by_day": {**DAYS, date(2026, 11, 20): 100}}, 0.1),
    ],
)
def test_each_way_to_go_bad_fails_its_own_check(name: str, bad: dict[str, object], value: float) -> None:
    """The value is the one that was counted, and the reason names check, value, day, threshold and remedy."""
    of_lake = {key: one for key, one in bad.items() if key in ("events", "newest_at", "by_day")}
    of_a_day = {key: one for key, one in bad.items() if key not in of_lake}
    arrived = {**GOOD.arrived, LAST: {**A_DAY, **of_a_day}}
    wrong = failed(judge(replace(GOOD, arrived=arrived, **of_lake), Quality(), AS_OF))  # type: ignore[arg-type]
    assert [(one.name, one.value) for one in wrong] == [(name, pytest.approx(value))]
    assert wrong[0].day == ("2026-11-21" if of_a_day else None)
    on = " on 2026-11-21" if of_a_day else ""
    assert wrong[0].reason.startswith(f"{name} is {value:.6g}{on}, the threshold is ")
    assert wrong[0].remedy in wrong[0].reason


def test_days_of_few_events_are_judged_together() -> None:
    """Two odd events of a hundred are no reason to stop; as many on every day are."""
    few = {day: {"events": 100} for day in newest_days(LAST, 7)}
    one_bad = {**few, LAST: {"events": 100, "future": 2}}
    assert failed(judge(replace(GOOD, arrived=one_bad), Quality(), AS_OF)) == []
    all_bad = {day: {"events": 100, "future": 2} for day in few}
    assert [
        (one.name, one.value, one.day)
        for one in failed(judge(replace(GOOD, arrived=all_bad), Quality(), AS_OF))
    ] == [("future", 0.02, None)]


def test_what_cannot_be_measured_is_skipped_and_fails_nothing() -> None:
    """An empty lake may be allowed; its shares, ages and volumes are undefined, not zero."""
    checks = judge(Measured(events=0), Quality(least_events=0), AS_OF)
    assert {one.verdict for one in checks if one.name != "events"} == {"skipped"}
    assert failed(checks) == []
    assert {one.to_json()["value"] for one in checks} == {0.0, None}


@pytest.mark.parametrize("by_day", [{date(2026, 11, 20): 5}, dict.fromkeys(DAYS, 20)])
def test_a_volume_needs_something_to_be_compared_with(by_day: dict[date, int]) -> None:
    """A lake's first days, and a trickle of events, have no usual volume."""
    volume = judge(replace(GOOD, by_day=by_day), Quality(), AS_OF)[-1]
    assert (volume.name, volume.verdict) == ("volume", "skipped")


def test_a_silent_day_is_counted_as_zero() -> None:
    """No events at all on the last whole day is the worst volume, not a missing one."""
    volume = judge(replace(GOOD, by_day=dict.fromkeys(list(DAYS)[:-2], 900)), Quality(), AS_OF)[-1]
    assert (volume.value, volume.verdict) == (0.0, "failed")


def test_every_mistake_in_the_thresholds_is_reported() -> None:
    """A share above one, a wrong duration and an unknown key, together."""
    problems: list[Problem] = []
    content = {"most_future": 1.5, "freshest_within": "soon", "most_futre": 0.1, "volume_days": 14}
    quality = read_quality(Table(content, "app.toml", "quality", problems))
    assert [one.path for one in problems] == [
        "quality.most_future", "quality.freshest_within", "quality.most_futre"
    ]  # fmt: skip
    assert "did you mean 'most_future'" in problems[2].remedy
    assert quality.volume_days == 14


def test_without_the_table_the_defaults_hold() -> None:
    """An app need not say anything."""
    assert read_quality(Table({}, "app.toml", "quality", [])) == Quality()
