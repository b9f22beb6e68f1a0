"""What a request asks, from what could be read of its visitor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from narrows.errors import InvalidInput, UnknownSurface
from narrows.features.registry import FeatureSet
from narrows.features.state import VisitorState
from narrows.policy import GateContext
from narrows.retrieval import NO_ROWS, Query, Rows
from narrows.settings import LARGEST_LIMIT, App, Surface
from narrows.snapshot import ItemSnapshot
from narrows.visitor import Reading, Visitor, as_one


@dataclass(frozen=True)
class Request:
    """A visitor on a surface; `now` is in epoch seconds, `deadline` a moment of the stages' clock in seconds.

    `item_ids` are the product page's item or the cart's items. `context` may tell `device` and `location`,
    the region for rules and segments.
    """

    surface: str
    limit: int
    now: float
    deadline: float
    recommendation_id: str
    user_key: str | None = None
    session_key: str | None = None
    item_ids: tuple[str, ...] = ()
    context: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Question:
    """What the visitor is asked about: `readable` is False when the visitor's own state could not be read.

    `reading` is what was read of it, `visitor_lists` the items of the features that are lists.
    """

    visitor: Visitor
    reading: Reading
    readable: bool
    query: Query
    history: tuple[tuple[str, float], ...]
    visitor_values: Mapping[str, float]
    visitor_lists: Mapping[str, Sequence[str]]
    request_values: Mapping[str, float]
    context: GateContext
    missing_ids: tuple[str, ...]


def surface_of(request: Request, app: App) -> Surface:
    if request.surface not in app.surfaces:
        raise UnknownSurface("surface", request.surface, f"use one of {', '.join(app.surfaces)}")
    if not 1 <= request.limit <= LARGEST_LIMIT:
        raise InvalidInput("limit", request.limit, f"send an integer from 1 to {LARGEST_LIMIT}")
    return app.surfaces[request.surface]


def own_state(request: Request) -> str:
    """Which of the visitor's states a request stands on: the user's, or the session's of an anonymous one."""
    return "user" if request.user_key else "session"


def ask(
    request: Request,
    surface: Surface,
    visitor: Visitor,
    *,
    app: App,
    features: FeatureSet,
    snapshot: ItemSnapshot,
) -> Question:
    """The query and all values of the request; of a visitor that could not be read, the defaults."""
    reading = as_one(visitor, request.user_key, request.session_key, features)
    state = reading.state
    readable = own_state(request) not in visitor.failures
    known = state.features if readable else features.zero()
    values = features.read(known, request.now)
    history = _known(features.history(state.features), app, snapshot)
    context_rows = snapshot.rows(request.item_ids)
    seeds = context_rows[context_rows >= 0] if surface.seed != "history" else NO_ROWS
    seen = _finished(history, app) if surface.exclude_seen else NO_ROWS
    query = Query(
        history=history.rows,
        history_times=np.array(history.times, np.float64),
        history_weights=np.array(history.labels, np.float32),
        seeds=seeds,
        now=request.now,
        surface=request.surface,
        segment=request.context.get("location", ""),
        exclude=np.union1d(seeds, seen).astype(np.int32),
    )
    return Question(
        visitor=visitor,
        reading=reading,
        readable=readable,
        query=query,
        history=tuple(zip(history.ids, history.times, strict=True)),
        visitor_values=values,
        visitor_lists=features.lists(known, request.now),
        request_values=features.computed.request_values(request.now, request.context, values),
        context=GateContext(query.segment, _hidden(state, visitor, snapshot)),
        missing_ids=_missing(request.item_ids, context_rows),
    )


@dataclass(frozen=True, eq=False)
class _History:
    ids: Sequence[str]
    rows: Rows
    times: Sequence[float]
    labels: Sequence[float]


def _known(entries: Sequence[tuple[float, str, str]], app: App, snapshot: ItemSnapshot) -> _History:
    """The events on items of the catalogue whose type is worth something, oldest first."""
    rows = snapshot.rows([item_id for _, item_id, _ in entries])
    labels = [app.events[kind].label if kind in app.events else 0.0 for _, _, kind in entries]
    kept = [place for place in range(len(entries)) if rows[place] >= 0 and labels[place] > 0.0]
    return _History(
        ids=[entries[place][1] for place in kept],
        rows=rows[kept],
        times=[entries[place][0] for place in kept],
        labels=[labels[place] for place in kept],
    )


def _finished(history: _History, app: App) -> Rows:
    """The items that the visitor is through with: those of the event types with the app's highest label."""
    highest = max(event.label for event in app.events.values())
    return history.rows[np.array(history.labels) >= highest]


def _hidden(state: VisitorState, visitor: Visitor, snapshot: ItemSnapshot) -> Rows | None:
    """The rows on the visitor's do-not-show list; None where a part of it could not be read."""
    if {"user", "session"} & visitor.failures.keys():
        return None
    rows = snapshot.rows(list(state.do_not_show))
    return np.asarray(rows[rows >= 0], np.int32)


def _missing(item_ids: Sequence[str], rows: Rows) -> tuple[str, ...]:
    return tuple(item_id for item_id, row in zip(item_ids, rows, strict=True) if row < 0)
