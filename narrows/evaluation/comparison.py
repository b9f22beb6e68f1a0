"""Two stacks over the same requests: what each finds, by group of requests, and what it brings.

All numbers are over the same held-out requests, so differences are paired. What cannot be known is nan, and
its reason stands under the same name in `undefined`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from narrows.evaluation.leave_one_out import NEW_AT_MOST, Cases
from narrows.evaluation.metrics import Ranks, Values, gain_at, hit_at, interval, mean
from narrows.simulator import Worth

RECALL_AT = (10, 100, 300)
HEAD_SHARE = 0.5
NEW_ITEM_S = 7 * 86_400.0
A_THOUSAND = 1000.0
NO_INDEX = "none"
"""What a stack searches whose sources compare every item, since they are few, or no vectors at all."""
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


def gain_of(trials: Sequence[Answers], groups: Mapping[str, Group]) -> dict[str, float]:
    """NDCG@10 of each group behind the ranker of each trial, the mean of them; nan of nobody."""
    gains = mean_gain(trials)
    return {name: mean(gains[group.chosen]) for name, group in groups.items()}


def mean_gain(trials: Sequence[Answers]) -> Values:
    """float64[n]: the gain at 10 of each request, the mean over the trials."""
    return np.asarray(np.mean([gain_at(one.ranked, 10) for one in trials], axis=0), np.float64)


def recall_of(ranks: Ranks, groups: Mapping[str, Group]) -> dict[str, dict[str, float]]:
    """The share of each group's requests whose item is among the first k, by group and k; nan of nobody."""
    return {
        name: {f"recall_at_{k}": mean(hit_at(ranks[group.chosen], k)) for k in RECALL_AT}
        for name, group in groups.items()
    }


def business_of(trials: Sequence[Answers], generator: np.random.Generator) -> dict[str, dict[str, float]]:
    """Mean and 95% interval over visitors of what a thousand slates bring; nan where nobody knows."""
    known = [one.worth for one in trials if one.worth]
    found = {}
    for name in (one.name for one in fields(Worth)):
        each = [getattr(worth, name) for worth in known]
        values = np.mean(each, axis=0) * A_THOUSAND if each else np.empty(0)
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
