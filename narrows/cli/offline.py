"""A slate from files alone: the trained bundle, the imported history, and the pipeline that serves."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from narrows.adapters.bundle import load_serving, stages_of
from narrows.adapters.imported_data import history_of, last_time
from narrows.cli.places import Places
from narrows.cli.train import current_bundle, imported, snapshot_folder
from narrows.events import session_key, user_key
from narrows.features.registry import FeatureSet
from narrows.features.state import Arrival, VisitorState, fold
from narrows.pipeline import Request, recommend
from narrows.settings import App
from narrows.visitor import Visitor

BUDGET_S = 5.0
SHARD = "import"


@dataclass(frozen=True)
class ImportedVisitors:
    """Knows one user's imported history and nobody else."""

    state: VisitorState | None

    def read(
        self,
        user_key: str | None,
        session_key: str | None,  # noqa: ARG002  # a session has no history in files
        surface: str,  # noqa: ARG002
        *,
        now: float,  # noqa: ARG002
        timeout_s: float,  # noqa: ARG002
    ) -> Visitor:
        """The user's state, for a request that names a user."""
        return Visitor(user=self.state if user_key else None)


def recommend_from_files(
    places: Places, app: App, surface: str, arguments: argparse.Namespace
) -> Mapping[str, Any]:
    """The answer to the command line, in the shape of the API's; the present is the data's last moment."""
    data, bundle = imported(places, app.name), current_bundle(places, app.name)
    now = last_time(data) + 1.0
    serving = load_serving(app, bundle, snapshot_folder(places, app.name, bundle.name))
    visitors = ImportedVisitors(_state(app, history_of(data, arguments.user)) if arguments.user else None)
    with ThreadPoolExecutor(4) as executor:
        stages = stages_of(app, serving, visitors=visitors, executor=executor, clock=time.monotonic)
        stages = replace(stages, policy=stages.policy.apply((), 0, now))  # files hold no changes to wait for
        request = Request(
            surface=surface,
            limit=arguments.limit or app.surfaces[surface].limit,
            now=now,
            deadline=time.monotonic() + BUDGET_S,
            recommendation_id=f"files-{bundle.name}",
            user_key=user_key(arguments.user) if arguments.user else None,
            session_key=session_key(arguments.session) if arguments.session else None,
            item_ids=tuple(arguments.item),
        )
        return recommend(request, stages).content()


def _state(app: App, events: list[Any]) -> VisitorState | None:
    if not events:
        return None
    arrivals = [Arrival(SHARD, number, event) for number, event in enumerate(events)]
    return fold(VisitorState(), arrivals, FeatureSet(app.features).scoped("visitor", "user"))
