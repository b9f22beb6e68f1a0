"""Which of two stacks is better, in words, and what would turn that, with thresholds from the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from narrows.evaluation.comparison import NO_INDEX, Answers, Group
from narrows.evaluation.funnel import StageChange, widest
from narrows.evaluation.metrics import Values, interval, mean

Trials = Sequence[Answers]
"""One stack's answers to the same requests, behind one ranker after the other."""
FEWEST_OF_A_GROUP = 30
"""Fewer requests of a group say nothing about what would turn the verdict."""
NORMAL_95 = 1.96
SOONER_S = 1.0
"""By less than this nobody sees a new item sooner."""


@dataclass(frozen=True)
class Terms:
    """What else a verdict tells of a stack; seconds, milliseconds, dollars a million requests.

    `recall` is that of the candidates which the ranker gets; `index` says what its vectors are searched in,
    None where that could not be had and every item was compared. What was not measured is nan.
    """

    name: str
    recall: float
    retrieval_p99_ms: float
    time_allowed_ms: float
    new_item_s: float
    cost_per_million: float
    index: str | None = NO_INDEX


@dataclass(frozen=True, eq=False)
class Decision:
    """The number that decides: margin, where the market is `simulated`, else NDCG@10.

    `same` is its difference behind one ranker, `own` where each stack's ranker reads that stack's scores too;
    `gained` float64[n] is the first for each request.
    """

    same: StageChange
    own: StageChange
    gained: Values
    simulated: bool

    @staticmethod
    def of(same: Sequence[Trials], own: Sequence[Trials], generator: np.random.Generator) -> Decision:
        """Of the baseline's and the variant's answers to the same requests, trial by trial."""
        gained = np.mean(
            [after.decisive() - before.decisive() for before, after in zip(*same, strict=True)], 0
        )
        simulated = same[0][0].worth is not None
        return Decision(_change(same, generator), _change(own, generator), gained, simulated)

    @property
    def what(self) -> str:
        """The decisive number in words."""
        return "margin of a slate, by the market's truth" if self.simulated else "NDCG@10"


def _change(sides: Sequence[Trials], generator: np.random.Generator) -> StageChange:
    found = []
    for one, other in zip(*sides, strict=True):
        before, after = one.decisive(), other.decisive()
        low, high = interval(after - before, generator)
        found.append([StageChange("difference", mean(before), mean(after), low, high, len(before))])
    return widest(found)[0]


def verdict(decision: Decision, baseline: Terms, variant: Terms) -> str:
    """Which stack is better behind the same ranker, with the numbers; what speaks for the other one.

    Where neither is, that is said, and which costs less; so is it where rankers with scores of their own
    come to something else.
    """
    decided = decision.same
    if decided.requests == 0 or not np.isfinite([decided.low, decided.high]).all():
        return f"No verdict: {decision.what} is not known ({decided.reason or 'no requests'})."
    numbers = (
        f"{baseline.name} {decided.baseline:.4f}, {variant.name} {decided.variant:.4f}; {decided.said()}"
    )
    winner = _better(decided, baseline, variant)
    head = f"{winner.name} is better" if winner else "Neither is better"
    said = [
        f"{head} behind the same ranker: {decision.what}: {numbers}, over {decided.requests:,} visitors.",
        *_favours(winner, baseline, variant),
    ]
    if not _same_way(decided, decision.own):
        said.append(
            f"Behind rankers that read each stack's own scores {_own_said(decision, baseline, variant)}."
        )
    return " ".join([*said, *_measured_on(baseline), *_measured_on(variant)])


def _measured_on(one: Terms) -> list[str]:
    if one.index == NO_INDEX:
        return []
    if one.index is None:
        without = "it compared every item, and its time and cost are not known"
        return [f"{one.name} was measured without its index: {without}."]
    return [f"{one.name} was measured on {one.index}."]


def _better(change: StageChange, baseline: Terms, variant: Terms) -> Terms | None:
    return variant if change.rose else baseline if change.fell else None


def _same_way(one: StageChange, other: StageChange) -> bool:
    return (one.rose, one.fell) == (other.rose, other.fell)


def _own_said(decision: Decision, baseline: Terms, variant: Terms) -> str:
    better = _better(decision.own, baseline, variant)
    return f"{better.name if better else 'neither'} is better: {decision.own.said()}"


def _favours(winner: Terms | None, baseline: Terms, variant: Terms) -> list[str]:
    """A sentence for each stack but the winner that is ahead in something all the same."""
    found = []
    for one, other in ((baseline, variant), (variant, baseline)):
        ahead = _ahead(one, other)
        if one is not winner and ahead:
            found.append(f"For {one.name} speaks {', '.join(ahead)}.")
    return found


def _ahead(one: Terms, other: Terms) -> list[str]:
    found = []
    if one.recall > other.recall:
        found.append(f"recall of its candidates ({one.recall:.4f} against {other.recall:.4f})")
    if one.new_item_s < other.new_item_s - SOONER_S:
        found.append(f"new items ({one.new_item_s:,.0f} s against {other.new_item_s:,.0f} s)")
    if one.cost_per_million < other.cost_per_million:
        less = _dollars(other.cost_per_million - one.cost_per_million)
        found.append(f"cost ({less} less a million requests)")
    return found


def would_change(
    decision: Decision, baseline: Terms, variant: Terms, groups: Mapping[str, Group]
) -> list[str]:
    """What would turn the verdict, each with the threshold that these numbers give."""
    found = [*_other_rankers(decision, baseline, variant), *_more_visitors(decision)]
    for name, group in groups.items():
        found += _turned_by(name, group, decision.gained, (baseline.name, variant.name))
    return [
        *found,
        *_price(decision, baseline, variant),
        *_new_items(*sorted((variant, baseline), key=lambda one: -one.new_item_s)),
        *_time(baseline),
        *_time(variant),
    ]


def _other_rankers(decision: Decision, baseline: Terms, variant: Terms) -> list[str]:
    if not decision.own.requests:
        return []
    turns = "leaves" if _same_way(decision.same, decision.own) else "turns"
    own = _own_said(decision, baseline, variant)
    return [
        f"the ranker: where each stack's reads that stack's own scores too, {own}; that {turns} the verdict"
    ]


def _more_visitors(decision: Decision) -> list[str]:
    decided, gained = decision.same, mean(decision.gained)
    if decided.rose or decided.fell or not decided.requests or not gained:
        return []
    half = NORMAL_95 * float(np.std(decision.gained)) / np.sqrt(decided.requests)
    if half < abs(gained):
        return [
            "trainings: visitors are enough for this difference, but the ranker's trainings disagree on it"
        ]
    wanted = decided.requests * (half / abs(gained)) ** 2
    return [f"more visitors: about {wanted:,.0f} would tell a difference of this size from none"]


def _turned_by(name: str, group: Group, gained: Values, names: Sequence[str]) -> list[str]:
    """At what share of requests in the group the two are even, where any share makes them so."""
    inside, outside = gained[group.chosen], gained[~group.chosen]
    if min(len(inside), len(outside)) < FEWEST_OF_A_GROUP:
        return []
    there, elsewhere = mean(inside), mean(outside)
    if there * elsewhere >= 0.0:
        return []
    even, now = elsewhere / (elsewhere - there), len(inside) / len(gained)
    ahead = names[1] if there > 0 else names[0]
    word, turned = ("above", "ahead") if even > now else ("below", "behind")
    return [
        f"{name}: {now:.0%} of requests today; {word} {even:.0%}, {ahead}, which is better there, is {turned}"
    ]


def _price(decision: Decision, baseline: Terms, variant: Terms) -> list[str]:
    more = variant.cost_per_million - baseline.cost_per_million
    if not np.isfinite(more):
        unknown = [one.name for one in (baseline, variant) if not np.isfinite(one.cost_per_million)]
        return [f"price: not known, since that of {' and '.join(unknown)} was not measured"]
    dear, cheap = (variant, baseline) if more > 0 else (baseline, variant)
    said = (
        f"price: {dear.name} costs {_dollars(abs(more))} more a million requests than {cheap.name}; it pays "
        f"as soon as a request brings ${abs(more) / 1e6:.2g} more"
    )
    gained = mean(decision.gained) * (1.0 if more > 0 else -1.0)
    if not decision.simulated or not np.isfinite(gained):
        return [said]
    return [f"{said}, and these bring ${abs(gained):.2g} {'less' if gained < 0 else 'more'}"]


def _new_items(slow: Terms, quick: Terms) -> list[str]:
    if not slow.new_item_s > quick.new_item_s + SOONER_S:
        return []
    return [
        f"new items: whoever needs them counted for a visitor in less than {slow.new_item_s:,.0f} s "
        f"cannot have {slow.name} alone; {quick.name} needs {quick.new_item_s:,.0f} s"
    ]


def _time(one: Terms) -> list[str]:
    if not one.retrieval_p99_ms > 0:
        return []
    times = one.time_allowed_ms / one.retrieval_p99_ms
    return [
        f"time: {one.name} retrieves in {one.retrieval_p99_ms:.2f} ms (p99) of {one.time_allowed_ms:.0f} ms "
        f"allowed; {times:,.1f} times as slow and it is dropped"
    ]


def _dollars(amount: float) -> str:
    return f"${amount:.4f}" if amount < 0.01 else f"${amount:.2f}"
