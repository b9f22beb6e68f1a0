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
SHARES = (
    *("most_unknown_types", "most_without_item", "most_malformed", "most_duplicates", "most_marked"),
    *("most_future", "most_ancient", "volume_share"),
)
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

    `volume_share` is of the median of `volume_days` days.
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
    """What a lake holds: counts of events, the newest arrival in epoch seconds, and the events of each day.

    `without_item` are those of a labelled type, which train on their item. `lines`, `malformed` and
    `duplicates` are counts of landed lines since the lake began.
    """

    events: int
    unknown_types: Mapping[str, int] = field(default_factory=dict)
    without_item: int = 0
    marked: int = 0
    future: int = 0
    ancient: int = 0
    newest_at: float = math.nan
    by_day: Mapping[date, int] = field(default_factory=dict)
    lines: int = 0
    malformed: int = 0
    duplicates: int = 0


@dataclass(frozen=True)
class Check:
    """One check: `value` must not be past `threshold`; it is nan where nothing could be measured: skipped."""

    name: str
    value: float
    threshold: float
    verdict: Verdict
    remedy: str

    @property
    def reason(self) -> str:
        """Why the check failed, in one line for whoever is woken by it."""
        return f"{self.name} is {self.value:.6g}, the threshold is {self.threshold:.6g}: {self.remedy}"

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
    counts = {
        "unknown_types": (sum(found.unknown_types.values()), found.events),
        "without_item": (found.without_item, found.events),
        "malformed": (found.malformed, found.lines),
        "duplicates": (found.duplicates, found.lines),
        "marked": (found.marked, found.events),
        "future": (found.future, found.events),
        "ancient": (found.ancient, found.events),
    }
    shares = [
        _at_most(name, count / of if of else math.nan, getattr(quality, f"most_{name}"))
        for name, (count, of) in counts.items()
    ]
    return [
        _at_least("events", float(found.events), quality.least_events),
        *shares,
        _at_most("age_of_newest_s", as_of - found.newest_at, quality.freshest_within_s),
        _at_least("volume", _volume(found.by_day, quality.volume_days, as_of), quality.volume_share),
    ]


def failed(checks: Sequence[Check]) -> list[Check]:
    """The checks that stop what would train on these data."""
    return [check for check in checks if check.verdict == "failed"]


def _at_most(name: str, value: float, most: float) -> Check:
    verdict: Verdict = "skipped" if math.isnan(value) else "passed" if value <= most else "failed"
    return Check(name, value, most, verdict, REMEDIES[name])


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
