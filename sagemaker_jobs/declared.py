"""What a past request knew of its visitor and of the items: declared features as of that moment.

The nightly jobs bring them in `visitor_features/` and `item_features/` of the training data: served values
where a decision record exists, else values recomputed from the lake as of just before. A directory of plain
interactions has neither; then the same declarations are evaluated over its events.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from narrows.adapters.feature_tables import Known, read_item_features, read_visitor_features
from narrows.evaluation.leave_one_out import Cases
from narrows.features.registry import FeatureSet
from narrows.features.statistics import NONE_DECLARED, DeclaredItems
from narrows.ranking import RankRequest
from narrows.settings import App
from sagemaker_jobs.file_features import file_features
from sagemaker_jobs.training_set import TrainingSet


class Visitors(Protocol):
    """What was known of visitors at moments."""

    def at(self, visitor: str, time: float) -> Known | None:
        """None for a moment that was not asked for."""


@dataclass(frozen=True, eq=False)
class Declared:
    """The declared features of one training set; without an app there are none."""

    features: FeatureSet = field(default_factory=lambda: FeatureSet(()))
    visitors: Visitors | None = None
    items: DeclaredItems = NONE_DECLARED

    @property
    def trained_on(self) -> FeatureSet | None:
        """The declarations whose values are there to train on."""
        return self.features if self.visitors else None

    def request(self, held: Cases, case: int) -> RankRequest:
        """The request of a held-out event, with the values of its moment; of an unknown one the defaults."""
        query = held.query(case)
        visitor = str(held.log.user_ids[held.log.users[held.positions[case]]])
        nothing = self.features.read(self.features.zero(), query.now)
        found = self.visitors.at(visitor, query.now) if self.visitors else None
        known = found or Known(nothing, None, {})
        request = known.request
        if request is None:
            request = self.features.computed.request_values(query.now, known.context, known.visitor)
        return RankRequest(known.visitor, request, query)


def declared_features(folder: Path, app: App | None, data: TrainingSet) -> Declared:
    """The features that the app declares, from the tables of the training data or from its events."""
    if app is None or not app.features:
        return Declared()
    features = FeatureSet(app.features)
    visitors = read_visitor_features(folder)
    if visitors is not None:
        defaults = {one.name: one.declaration.default for one in features.item_features}
        return Declared(features, visitors, read_item_features(folder, defaults) or NONE_DECLARED)
    found = file_features(folder, features, data.log, data.labels + 1)
    return Declared(features, *found) if found else Declared()
