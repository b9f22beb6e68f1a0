"""Replays past requests: the candidates and vectors that serving would have made at those moments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from narrows.adapters.feature_tables import PassedOver
from narrows.evaluation.leave_one_out import Cases
from narrows.features import statistics
from narrows.features.statistics import StatisticsTable
from narrows.features.vectors import VectorInputs, VectorSpec, assemble
from narrows.ranking import Ranker, RankRequest
from narrows.retrieval import Candidates, Floats, Query, Rows, fuse, merge
from narrows.settings import SourceQuota
from narrows.sources import SignallingSource, load_sources
from sagemaker_jobs.declared import Declared
from sagemaker_jobs.training_set import TableItems, TrainingSet
from sagemaker_jobs.workers import in_parts

VALIDATED = 8
FEWEST_KEPT = 20

Group = tuple[Floats, NDArray[np.bool_], Floats, int]
"""The vectors of one request's candidates, which one is relevant, the weight of each, and the user."""
NOTHING: Mapping[tuple[str, float], PassedOver] = MappingProxyType({})


@dataclass(frozen=True, eq=False)
class Funnel:
    """The sources of one fitted folder over the item numbers of a log, asked with a surface's quotas."""

    sources: Mapping[str, SignallingSource]
    statistics: StatisticsTable
    items: TableItems
    quotas: Sequence[SourceQuota]
    rank_at_most: int
    declared: Declared

    def candidates(self, query: Query) -> Candidates:
        """The union that `gather` makes when every source is in time."""
        asked = [quota for quota in self.quotas if quota.name in self.sources]
        answers = [(one.name, self.sources[one.name].retrieve(query, one.quota)) for one in asked]
        return merge(answers, exclude=query.exclude)

    def pre_ranked(self, query: Query) -> Candidates:
        """Those of them that the ranker would score."""
        found = self.candidates(query)
        return fuse(found, self.rank_at_most) if len(found) > self.rank_at_most else found

    def vectors(self, spec: VectorSpec, request: RankRequest, candidates: Candidates) -> Floats:
        """The ranker's input for them."""
        inputs = VectorInputs(request.visitor, request.request, request.query)
        return assemble(spec, inputs, candidates, self.items, self.statistics, self.sources)

    def ranked(self, ranker: Ranker, held: Cases, case: int) -> Rows:
        """Both stages, for a held-out event."""
        request = self.declared.request(held, case)
        return ranker.rank(request, self.candidates(request.query), self.rank_at_most).rows


def funnel_of(
    folder: Path,
    data: TrainingSet,
    quotas: Sequence[SourceQuota],
    rank_at_most: int,
    declared: Declared,
) -> Funnel:
    """The funnel of the models in a folder, over item features as they were known at each moment."""
    size = data.log.item_count
    created = data.items.columns.get("created_at")
    sources = load_sources(folder, data.rows_of, size, created=created)
    known = replace(statistics.load(folder / statistics.FILE), declared=declared.items)
    return Funnel(sources, known.bind(data.rows_of, size), data.items, quotas, rank_at_most, declared)


@dataclass(frozen=True, eq=False)
class Groups:
    """Requests with a found label: `lengths` candidates each, one of them relevant; `asked` counts all.

    `weights` is one a candidate: what the label is worth, less where a candidate may still be chosen.
    """

    features: Floats
    relevant: NDArray[np.int8]
    lengths: NDArray[np.int64]
    weights: Floats
    users: NDArray[np.int32]
    asked: int

    @property
    def validated(self) -> NDArray[np.bool_]:
        """The groups of every eighth user, which judge and are not learned from."""
        return np.asarray(self.users % VALIDATED == 0)

    @staticmethod
    def joined(parts: Sequence[Groups]) -> Groups:
        """The groups of all parts, in order."""
        names = ("features", "relevant", "lengths", "weights", "users")
        arrays = (np.concatenate([getattr(part, name) for part in parts]) for name in names)
        return Groups(*arrays, asked=sum(part.asked for part in parts))

    def take(self, chosen: NDArray[np.bool_]) -> Groups:
        """The chosen groups."""
        rows = np.repeat(chosen, self.lengths)
        return Groups(
            self.features[rows],
            self.relevant[rows],
            self.lengths[chosen],
            self.weights[rows],
            self.users[chosen],
            int(chosen.sum()),
        )


def replay(
    held: Sequence[Cases],
    funnel: Funnel,
    spec: VectorSpec,
    *,
    most_rows: int,
    seed: int,
    passed_over: Mapping[tuple[str, float], PassedOver] = NOTHING,
) -> Groups:
    """One group a case whose item is among its candidates, of as many cases as fit into `most_rows` vectors.

    Where not all would fit whole, a group keeps its item, those candidates that its visitor was shown and
    passed over, by (visitor, time of the label), and a drawn part of the others; those of validated users
    stay whole, so that gains on them mean what they mean in serving. What may still be chosen weighs less.
    What is drawn depends on the seed and on the case's number, not on how many cores share the work.
    """
    widest = min(sum(quota.quota for quota in funnel.quotas), funnel.rank_at_most)
    everyone = [(cases, case) for cases in held for case in range(len(cases))]
    users = np.asarray([cases.log.users[cases.positions[case]] for cases, case in everyone], np.int32)
    kept = np.where(users % VALIDATED, kept_rows(max(len(users), 1), widest, most_rows), widest)
    fitting = int(np.searchsorted(np.cumsum(kept), most_rows, "right"))

    def group(number: int) -> Group | None:
        cases, case = everyone[number]
        request = funnel.declared.request(cases, case)
        candidates = funnel.pre_ranked(request.query)
        hit = candidates.rows == cases.target(case)
        if not hit.any() or len(hit) < 2:
            return None
        visitor = str(cases.log.user_ids[users[number]])
        shares = passed_over.get((visitor, request.query.now), PassedOver()).shares(candidates.rows)
        passed = ~np.isnan(shares) & ~hit
        chosen = _drawn(hit, passed, int(kept[number]), np.random.default_rng((seed, number)))
        features = funnel.vectors(spec, request, candidates)[chosen]
        worth = cases.log.weights[cases.positions[case]] * np.where(passed, shares, np.float32(1.0))
        return features, hit[chosen], worth[chosen], int(users[number])

    parts = in_parts(lambda part: _joined([group(number) for number in part], spec), fitting)
    return Groups.joined(parts)


def _joined(found: Sequence[Group | None], spec: VectorSpec) -> Groups:
    groups = [group for group in found if group is not None]
    nothing = np.empty((0, len(spec.names)), np.float32)
    return Groups(
        np.concatenate([nothing, *(features for features, _, _, _ in groups)]),
        np.concatenate([np.empty(0, np.int8), *(hit.astype(np.int8) for _, hit, _, _ in groups)]),
        np.asarray([len(hit) for _, hit, _, _ in groups], np.int64),
        np.concatenate([np.empty(0, np.float32), *(weights for _, _, weights, _ in groups)]),
        np.asarray([user for _, _, _, user in groups], np.int32),
        len(found),
    )


def kept_rows(cases: int, widest: int, most_rows: int) -> int:
    """How many candidates a group may keep so that all cases fit, beside whole ones of validated users."""
    room = most_rows / cases - widest / VALIDATED
    return int(np.clip(room * VALIDATED / (VALIDATED - 1), min(FEWEST_KEPT, widest), widest))


def _drawn(
    hit: NDArray[np.bool_], passed: NDArray[np.bool_], kept: int, generator: np.random.Generator
) -> NDArray[np.intp]:
    """Ascending positions of at most `kept` candidates: the label's, those passed over, then any."""
    if len(hit) <= kept:
        return np.arange(len(hit))
    first = np.flatnonzero(passed)[: kept - 1]
    others = generator.choice(np.flatnonzero(~hit & ~passed), kept - 1 - len(first), replace=False)
    return np.sort(np.concatenate([[np.argmax(hit)], first, others]))
