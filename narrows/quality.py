"""Whether a lake is fit to train on: a check for each way in which data go bad, with value and threshold."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from types import MappingProxyType
from typing import Any, Literal

from narrows.toml_reading import Table

Verdict = Literal["passed", "failed", "skipped"]
FEWEST_DAYS = 3
FEWEST_A_DAY = 100
"""With fewer whole days before it, or fewer events on them, a day has nothing to be compared with."""
ENOUGH_FOR_A_SHARE = 1000
"""With fewer events, or lines, a few odd ones are a hundredth of a day: then all days are judged as one."""
SHARE_OF: Mapping[str, str] = MappingProxyType(
    {
        "unknown_types": "events",
        "without_item": "events",
        "malformed": "lines",
        "duplicates": "lines",
        "marked": "events",
        "future": "events",
        "ancient": "events",
    }
)
"""Of what each count is a share."""
SHARES = (*(f"most_{name}" for name in SHARE_OF), "volume_share")
REMEDIES: Mapping[str, str] = MappingProxyType(
    {
        "events": "has anything landed? see the logs of land_events and compact_events",
        "unknown_types": "declare these types under [events] in app.toml, or stop their sender",
        "without_item": "labelled events train on their item; find the sender that leaves item_id out",
        "malformed": "look at the reasons in the lake's table quarantine",
        "duplicates": "a sender repeats itself without end; look at its retries",
        "marked": "so much traffic of bots and copies is unusual; look at the marks in the lake",
        "future": "a sender's clock is ahead; find it by surface and visitor",
        "ancient": "events arrive long after they happened; find the sender that sends its past again",
        "age_of_newest_s": "nothing new has arrived; see the streams, land_events and compact_events",
        "volume": "the last whole day has fewer events than those before; look for a sender that fell silent",
    }
)


@dataclass(frozen=True)
class Quality:
    """The thresholds of an app: the most, or least, that each share of events or landed lines may be.

    Shares are judged of what arrived in the newest `volume_days` days, and of each of those days; the
    `volume_share` is of the median of as many.
    """

    least_events: int = 1
    most_unknown_types: float = 0.01
    most_without_item: float = 0.01
    most_malformed: float = 0.05
    most_duplicates: float = 0.25
    most_marked: float = 0.5
    most_future: float = 0.01
    most_ancient: float = 0.05
    freshest_within_s: float = 2 * 86_400.0
    volume_share: float = 0.3
    volume_days: int = 7


@dataclass(frozen=True)
class Measured:
    """What a lake holds: how many events, the newest arrival in epoch seconds, and the events of each day.

    `arrived` has the counts of the newest days by the day of arrival: `events` and `lines` that landed, and
    of them the counts that `SHARE_OF` names. Those `without_item` are of a labelled type, which trains on its
    item. `unknown_types` are the types of those days that the app does not declare.
    """

    events: int
    newest_at: float = math.nan
    by_day: Mapping[date, int] = field(default_factory=dict)
    arrived: Mapping[date, Mapping[str, int]] = field(default_factory=dict)
    unknown_types: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Check:
    """One check: `value` must not be past `threshold`; it is nan where nothing could be measured: skipped.

    `day` is the one whose value it is, in ISO 8601; None where it is that of all days.
    """

    name: str
    value: float
    threshold: float
    verdict: Verdict
    remedy: str
    day: str | None = None

    @property
    def reason(self) -> str:
        """Why the check failed, in one line for whoever is woken by it."""
        when = f" on {self.day}" if self.day else ""
        return f"{self.name} is {self.value:.6g}{when}, the threshold is {self.threshold:.6g}: {self.remedy}"

    def to_json(self) -> dict[str, Any]:
        """The check as the report keeps it; an undefined value is null."""
        return {**vars(self), "value": None if math.isnan(self.value) else self.value}


def read_quality(table: Table) -> Quality:
    """The table `[quality]` of an app.toml; what it does not say stays as it is by default."""
    shares = {name: table.number(name, getattr(Quality, name), low=0.0, high=1.0) for name in SHARES}
    quality = Quality(
        least_events=table.whole("least_events", Quality.least_events, low=0),
        freshest_within_s=table.duration_s("freshest_within", Quality.freshest_within_s),
        volume_days=table.whole("volume_days", Quality.volume_days, low=FEWEST_DAYS, high=365),
        **shares,
    )
    table.finish()
    return quality


def judge(found: Measured, quality: Quality, as_of: float) -> list[Check]:
    """Every check, whatever the others say; `as_of` is in epoch seconds."""
    return [
        _at_least("events", float(found.events), quality.least_events),
        *(_share(name, found.arrived, getattr(quality, f"most_{name}")) for name in SHARE_OF),
        _at_most("age_of_newest_s", as_of - found.newest_at, quality.freshest_within_s),
        _at_least("volume", _volume(found.by_day, quality.volume_days, as_of), quality.volume_share),
    ]


def failed(checks: Sequence[Check]) -> list[Check]:
    """The checks that stop what would train on these data."""
    return [check for check in checks if check.verdict == "failed"]


def newest_days(newest: date, days: int) -> frozenset[date]:
    """So many days, this one the last: what a bad day among them does is not hidden by a year before."""
    return frozenset(newest - timedelta(days=back) for back in range(days))


def _share(name: str, arrived: Mapping[date, Mapping[str, int]], most: float) -> Check:
    """The worst share among those of all days together and of each day that has enough."""
    counts = {day: (one.get(name, 0), one.get(SHARE_OF[name], 0)) for day, one in arrived.items()}
    count, of = (sum(column) for column in zip((0, 0), *counts.values(), strict=True))
    worst, day = (count / of if of else math.nan), None
    for one, (count, of) in sorted(counts.items()):
        if of >= ENOUGH_FOR_A_SHARE and count / of > worst:
            worst, day = count / of, one.isoformat()
    return _at_most(name, worst, most, day)


def _at_most(name: str, value: float, most: float, day: str | None = None) -> Check:
    verdict: Verdict = "skipped" if math.isnan(value) else "passed" if value <= most else "failed"
    return Check(name, value, most, verdict, REMEDIES[name], day)


def _at_least(name: str, value: float, least: float) -> Check:
    verdict: Verdict = "skipped" if math.isnan(value) else "passed" if value >= least else "failed"
    return Check(name, value, least, verdict, REMEDIES[name])


def _volume(by_day: Mapping[date, int], days: int, as_of: float) -> float:
    """The last whole day as a share of the median of the whole days before it; nan without enough of them."""
    last = datetime.fromtimestamp(as_of, UTC).date() - timedelta(days=1)
    first = min(by_day, default=last)  # it may have begun in the middle
    earlier = [last - timedelta(days=back) for back in range(1, days + 1)]
    counts = [by_day.get(day, 0) for day in earlier if day > first]
    usual = statistics.median(counts) if len(counts) >= FEWEST_DAYS else 0.0
    return by_day.get(last, 0) / usual if usual >= FEWEST_A_DAY else math.nan
