"""Two stacks over the same requests: what each finds, what it brings, and which is better, in words.

All numbers are over the same held-out requests, so differences are paired. What cannot be known is nan, and
its reason stands under the same name in `undefined`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from narrows.evaluation.funnel import StageChange
from narrows.evaluation.leave_one_out import NEW_AT_MOST, Cases
from narrows.evaluation.metrics import Ranks, Values, gain_at, hit_at, interval, mean
from narrows.simulator import Worth

RECALL_AT = (10, 100, 300)
HEAD_SHARE = 0.5
NEW_ITEM_S = 7 * 86_400.0
FEWEST_OF_A_GROUP = 30
"""Of fewer requests a group says nothing about what would change the verdict."""
SOONER_S = 1.0
"""By less than this nobody sees a new item sooner."""
A_THOUSAND = 1000.0
NO_CREATION = "the catalogue has no creation times"
NO_TRUTH = "only a simulated market knows what a slate is truly worth; the data were imported"

Flags = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Group:
    """A part of the requests: which of them bool[n], and by what rule."""

    chosen: Flags
    meaning: str


def groups_of(held: Cases, popularity: NDArray[np.int64], created: NDArray[np.float64]) -> dict[str, Group]:
    """The groups that requests are told apart by; of items it counts which one the visitor chose next.

    `popularity` int64[item_count] are the events that the sources were fitted on; `created` epoch seconds,
    nan where it is not known.
    """
    wanted = held.log.items[held.positions]
    head = _head(popularity)[wanted]
    age = held.log.times[held.positions] - created[wanted]
    visitors = held.segments()
    whole = np.ones(len(held), bool)
    share, days = f"{HEAD_SHARE:.0%}", f"{NEW_ITEM_S / 86_400:.0f}"
    return {
        "overall": Group(whole, "every request"),
        "head": Group(head, f"the item is one of the fewest that have {share} of all events"),
        "tail": Group(~head, "the item is any other"),
        "new_items": Group(age <= NEW_ITEM_S, f"the item was created at most {days} days before"),
        "new_visitors": Group(visitors["new"], f"the visitor has at most {NEW_AT_MOST} events"),
        "anonymous": Group(visitors["anonymous"], "the visitor has no account"),
    }


def _head(popularity: NDArray[np.int64]) -> Flags:
    order = np.argsort(-popularity, kind="stable")
    before = np.cumsum(popularity[order]) - popularity[order]
    head = np.zeros(len(popularity), bool)
    head[order] = before < HEAD_SHARE * popularity.sum()
    return head


@dataclass(frozen=True, eq=False)
class Answers:
    """What one stack answered to n requests: int64[n] where the chosen item stood, from 0, -1 for nowhere.

    `retrieved` among the fused candidates, `ranked` in the ranker's order, `shown` in the slate; `worth` is
    what the slates bring, None where nobody knows.
    """

    retrieved: Ranks
    ranked: Ranks
    shown: Ranks
    worth: Worth | None

    def stages(self, retrieved_at: int, shown_at: int) -> dict[str, Values]:
        """The numbers of the funnel; retrieved counts among as many as are ranked, ranked as are shown."""
        found = {
            "retrieved": hit_at(self.retrieved, retrieved_at),
            "ranked": hit_at(self.ranked, shown_at),
            "shown": hit_at(self.shown, shown_at),
        }
        if self.worth:
            more = {"clicked": self.worth.clicks, "converted": self.worth.conversions}
            found |= {**more, "margin": self.worth.margin}
        return found

    def decisive(self) -> Values:
        """What a verdict goes by: margin where it is known, else the gain of the ranked order."""
        return self.worth.margin if self.worth else gain_at(self.ranked, 10)


def recall_of(ranks: Ranks, groups: Mapping[str, Group]) -> dict[str, dict[str, float]]:
    """The share of each group's requests whose item is among the first k, by group and k; nan of nobody."""
    return {
        name: {f"recall_at_{k}": mean(hit_at(ranks[group.chosen], k)) for k in RECALL_AT}
        for name, group in groups.items()
    }


def gain_of(ranks: Ranks, groups: Mapping[str, Group]) -> dict[str, float]:
    """NDCG@10 of each group; nan of nobody."""
    return {name: mean(gain_at(ranks[group.chosen], 10)) for name, group in groups.items()}


def business_of(worth: Worth | None, generator: np.random.Generator) -> dict[str, dict[str, float]]:
    """Mean and 95% interval of what a thousand slates bring; nan where nobody knows."""
    nothing = np.empty(0)
    found = {}
    for name in (one.name for one in fields(Worth)):
        values = getattr(worth, name) * A_THOUSAND if worth else nothing
        low, high = interval(values, generator)
        found[name] = {"mean": mean(values), "low": low, "high": high}
    return found


def held_bytes(*objects: Any) -> int:
    """The bytes of all arrays that these objects hold, each buffer once; text and numbers do not count.

    Dataclasses, mappings, lists and tuples are looked into.
    """
    buffers: dict[int, int] = {}
    for array in _arrays(objects):
        while isinstance(array.base, np.ndarray):
            array = array.base  # a view holds the whole of what it looks at
        buffers[id(array)] = array.nbytes
    return sum(buffers.values())


def _arrays(value: Any) -> Iterable[NDArray[Any]]:
    if isinstance(value, np.ndarray):
        yield value
        return
    if is_dataclass(value) and not isinstance(value, type):
        value = [getattr(value, one.name) for one in fields(value)]
    if isinstance(value, Mapping):
        value = list(value.values())
    for one in value if isinstance(value, list | tuple) else ():
        yield from _arrays(one)


@dataclass(frozen=True)
class Terms:
    """What else a verdict tells of a stack; seconds, milliseconds, dollars a million requests.

    `recall` is that of the candidates which the ranker gets.
    """

    name: str
    recall: float
    retrieval_p99_ms: float
    time_allowed_ms: float
    new_item_s: float
    cost_per_million: float


def verdict(decided: StageChange, baseline: Terms, variant: Terms, *, simulated: bool) -> str:
    """Which stack is better by the decisive number, in one or two sentences; honest where none is."""
    what = "margin of a slate, by the market's truth" if simulated else "NDCG@10 behind the same ranker"
    numbers = (
        f"{baseline.name} {decided.baseline:.4f}, {variant.name} {decided.variant:.4f}; {decided.said()}"
    )
    if decided.requests == 0 or not np.isfinite([decided.low, decided.high]).all():
        return f"No verdict: {what} is not known ({decided.reason or 'no requests'})."
    if decided.rose or decided.fell:
        winner, other = (variant, baseline) if decided.rose else (baseline, variant)
        said = f"{winner.name} is better: {what}: {numbers}, over {decided.requests:,} visitors."
        favour = _favour(other, winner)
        return f"{said} For {other.name} speaks {favour}." if favour else said
    cheap, dear = sorted((baseline, variant), key=lambda one: one.cost_per_million)
    return (
        f"Neither is better by what {decided.requests:,} visitors show: {what}: {numbers}. "
        f"{cheap.name} costs {_dollars(dear.cost_per_million - cheap.cost_per_million)} less "
        "a million requests."
    )


def _favour(one: Terms, other: Terms) -> str:
    """Where the first is ahead all the same; "" where it is nowhere."""
    found = []
    if one.recall > other.recall:
        found.append(f"recall ({one.recall:.4f} against {other.recall:.4f})")
    if one.new_item_s < other.new_item_s - SOONER_S:
        found.append(f"new items ({one.new_item_s:,.0f} s against {other.new_item_s:,.0f} s)")
    if one.cost_per_million < other.cost_per_million:
        less = _dollars(other.cost_per_million - one.cost_per_million)
        found.append(f"cost ({less} less a million requests)")
    return ", ".join(found)


def would_change(
    decided: StageChange,
    baseline: Terms,
    variant: Terms,
    values: tuple[Values, Values],
    groups: Mapping[str, Group],
    *,
    simulated: bool,
) -> list[str]:
    """What would turn the verdict, each with the threshold that these numbers give.

    `values` float64[n] are the decisive number of each request under the baseline and the variant; money
    where `simulated`.
    """
    difference = values[1] - values[0]
    found = []
    if not (decided.rose or decided.fell) and decided.requests and mean(difference):
        half = (decided.high - decided.low) / 2
        wanted = decided.requests * (half / abs(mean(difference))) ** 2
        found.append(f"more visitors: about {wanted:,.0f} would tell a difference of this size from none")
    for name, group in groups.items():
        if said := _turned_by(name, group, difference, (baseline.name, variant.name)):
            found.append(said)
    found.append(_price(baseline, variant, mean(difference) if simulated else None))
    slow, quick = sorted((variant, baseline), key=lambda one: -one.new_item_s)
    if slow.new_item_s > quick.new_item_s + SOONER_S:
        found.append(
            f"new items: whoever needs them counted for a visitor in less than {slow.new_item_s:,.0f} s "
            f"cannot have {slow.name} alone; {quick.name} needs {quick.new_item_s:,.0f} s"
        )
    for one in (baseline, variant):
        if one.retrieval_p99_ms > 0:
            times = one.time_allowed_ms / one.retrieval_p99_ms
            found.append(
                f"time: {one.name} retrieves in {one.retrieval_p99_ms:.2f} ms (p99) of "
                f"{one.time_allowed_ms:.0f} ms allowed; {times:,.1f} times as slow and it is dropped"
            )
    return found


def _turned_by(name: str, group: Group, difference: Values, names: Sequence[str]) -> str:
    """At what share of requests in the group the two are even; "" where no share makes them so."""
    inside, outside = difference[group.chosen], difference[~group.chosen]
    if min(len(inside), len(outside)) < FEWEST_OF_A_GROUP:
        return ""
    there, elsewhere = mean(inside), mean(outside)
    if there * elsewhere >= 0.0:
        return ""
    even = elsewhere / (elsewhere - there)
    ahead = names[1] if there > 0 else names[0]
    now = len(inside) / len(difference)
    word = "above" if even > now else "below"
    turned = "ahead" if even > now else "behind"
    return (
        f"{name}: {now:.0%} of requests today; {word} {even:.0%}, {ahead}, which is better there, is {turned}"
    )


def _price(baseline: Terms, variant: Terms, gained: float | None) -> str:
    more = variant.cost_per_million - baseline.cost_per_million
    dear, cheap = (variant, baseline) if more > 0 else (baseline, variant)
    said = (
        f"price: {dear.name} costs {_dollars(abs(more))} more a million requests than {cheap.name}; it pays "
        f"as soon as a request brings ${abs(more) / 1e6:.2g} more"
    )
    if gained is None or not np.isfinite(gained):
        return said
    brings = gained if more > 0 else -gained
    return f"{said}, and these bring {'-' if brings < 0 else ''}${abs(brings):.2g} more"


def _dollars(amount: float) -> str:
    return f"${amount:.4f}" if amount < 0.01 else f"${amount:.2f}"
