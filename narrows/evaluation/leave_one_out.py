"""Leave-one-out: who is asked, with what history, and at which rank each source puts what came next."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from narrows.evaluation.metrics import hit_at, mean, report
from narrows.features.registry import IMPLICIT_HISTORY
from narrows.interactions import Interactions
from narrows.retrieval import NO_ROWS, CandidateSource, Query, Rows

PROTOCOL = (
    "leave-one-out: each user's events in order of time, the last one held out, everything before it fitted; "
    "every item is ranked, what the user has seen is masked"
)
LENGTH = 100
CANDIDATES = 300
MERGED = "merged"
NEW_AT_MOST = 5
MOST_LABELS = 8
LEAST_KEPT = 0.8
ANONYMOUS_PREFIX = "s#"
REMEMBERED = IMPLICIT_HISTORY.keep
"""A history is no longer here than the one that serving reads from a visitor's state."""

Retrieve = Callable[[Query], Rows]


@dataclass(frozen=True, eq=False)
class Cases:
    """Held-out events: positions int64[n] in `log`, one a user, with the reasons why others are not asked."""

    log: Interactions
    positions: NDArray[np.int64]
    excluded: Mapping[str, int]
    mask_seen: bool = True

    def __len__(self) -> int:
        return len(self.positions)

    def target(self, case: int) -> int:
        """The item that came next."""
        return int(self.log.items[self.positions[case]])

    def query(self, case: int) -> Query:
        """What would have been known at that moment; masked is also what lies further back."""
        at = int(self.positions[case])
        begin = int(np.searchsorted(self.log.users, self.log.users[at]))
        known = slice(max(begin, at - REMEMBERED), at)
        return Query(
            history=self.log.items[known],
            history_times=self.log.times[known],
            history_weights=self.log.weights[known],
            seeds=NO_ROWS,
            now=float(self.log.times[at]),
            surface="",
            segment=self.log.segment(int(self.log.users[at])),
            exclude=np.unique(self.log.items[begin:at]) if self.mask_seen else NO_ROWS,
        )

    def part(self, numbers: range) -> Cases:
        """Those of consecutive numbers."""
        positions = self.positions[numbers.start : numbers.stop]
        return Cases(self.log, positions, self.excluded, self.mask_seen)

    def sample(self, most: int, generator: np.random.Generator) -> Cases:
        """At most `most` of them, drawn without replacement, in order."""
        if len(self) <= most:
            return self
        chosen = np.sort(generator.choice(len(self), most, replace=False))
        return Cases(self.log, self.positions[chosen], self.excluded, self.mask_seen)

    def shuffled(self, generator: np.random.Generator) -> Cases:
        """All of them in a drawn order, for who may not get to the end: users stand in order of their ids."""
        return Cases(self.log, generator.permutation(self.positions), self.excluded, self.mask_seen)

    def segments(self) -> dict[str, NDArray[np.bool_]]:
        """Which cases are of short histories ("new") and of visitors without an account ("anonymous")."""
        starts = self.log.per_user()[:-1]
        users = self.log.users[self.positions]
        names = self.log.user_ids[users].astype(str)
        new = self.positions - starts[users] <= NEW_AT_MOST
        return {"new": new, "anonymous": np.char.startswith(names, ANONYMOUS_PREFIX)}


def cases(log: Interactions, back: int = 0, *, mask_seen: bool = True) -> Cases:
    """Each user's event `back` places before the last, where at least one event precedes it.

    Under `mask_seen` users whose held-out item is already in their history are left out, and counted.
    """
    held = np.flatnonzero(log.places_from_end() == back)
    starts = log.per_user()[:-1][log.users[held]]
    enough = held > starts
    active = len(np.unique(log.users))
    held = held[enough]
    seen = _seen_before(log)[held] if mask_seen else np.zeros(len(held), bool)
    excluded = {"too_few_events": active - len(held), "already_seen": int(seen.sum())}
    return Cases(log, held[~seen], excluded, mask_seen)


def _seen_before(log: Interactions) -> NDArray[np.bool_]:
    """Whether the user of each event met its item at an earlier event."""
    keys = log.users.astype(np.int64) * max(log.item_count, 1) + log.items
    _, first = np.unique(keys, return_index=True)
    again = np.ones(len(log), bool)
    again[first] = False
    return again


def labels_to_hold(lengths: NDArray[np.int64], visitors: NDArray[np.int64]) -> int:
    """How many labels of a visitor, besides the last event, a ranker may learn from.

    `lengths` are histories' numbers of events, `visitors` how many have that many. As many as leave sources
    fitted without the labels most of the events that those fitted without the last one have.
    """

    def left(held: int) -> int:
        return int(np.dot(np.maximum(lengths - held, 1), visitors))

    enough = [labels for labels in range(1, MOST_LABELS + 1) if left(1 + labels) >= LEAST_KEPT * left(1)]
    return max(enough, default=1)


def first_hundred(source: CandidateSource, query: Query) -> Rows:
    """What a source alone would recommend."""
    return source.retrieve(query, LENGTH).rows


@dataclass(frozen=True, eq=False)
class Found:
    """Where one source put each case's item (-1: nowhere), and the slates it gave."""

    ranks: NDArray[np.int64]
    slates: Sequence[Rows]

    @staticmethod
    def joined(parts: Sequence[Found]) -> Found:
        """What was found for the cases of all parts, in order."""
        return Found(
            np.concatenate([part.ranks for part in parts]),
            [rows for part in parts for rows in part.slates],
        )


def find(held: Cases, retrieve: Retrieve) -> Found:
    """Ask for every case, once each."""
    return find_cases(held, lambda case: retrieve(held.query(case)))


def find_cases(held: Cases, retrieve: Callable[[int], Rows], length: int = LENGTH) -> Found:
    """Ask for every case by its number, where more than its query decides the answer."""
    ranks, slates = np.full(len(held), -1, np.int64), []
    for case in range(len(held)):
        rows = retrieve(case)[:length]
        at = np.flatnonzero(rows == held.target(case))
        ranks[case] = at[0] if len(at) else -1
        slates.append(rows)
    return Found(ranks, slates)


def reports(
    held: Cases, found: Mapping[str, Found], generator: np.random.Generator
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(metrics by source, segment -> users and metrics by source); segments without users are left out."""
    everyone = np.ones(len(held), bool)
    overall = {name: _report(held, name, one, everyone, generator) for name, one in found.items()}
    by_segment = {}
    for segment, chosen in held.segments().items():
        if chosen.any():
            by_segment[segment] = {
                "users": int(chosen.sum()),
                "reports": {name: _report(held, name, one, chosen, generator) for name, one in found.items()},
            }
    return overall, by_segment


def _report(
    held: Cases, name: str, found: Found, chosen: NDArray[np.bool_], generator: np.random.Generator
) -> dict[str, object]:
    """The metrics of one source over the chosen cases; of merged candidates also how many hold the item."""
    slates = [found.slates[at] for at in np.flatnonzero(chosen).tolist()]
    ranks = found.ranks[chosen]
    content = report(ranks, slates, held.log.item_count, generator)
    if name == MERGED:
        content[f"recall_at_{CANDIDATES}"] = mean(hit_at(ranks, CANDIDATES)) if len(ranks) else None
    return content
