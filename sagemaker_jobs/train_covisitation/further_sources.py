"""The counted sources that are fitted only where a surface of the app asks for them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from narrows.evaluation.leave_one_out import Cases, find, first_hundred
from narrows.evaluation.metrics import gain_at, hit_at, mean
from narrows.interactions import Interactions
from narrows.retrieval import CandidateSource
from narrows.sources import bought_together, content, trending
from narrows.text_vectors import text_marks
from sagemaker_jobs.training_set import TrainingSet

LATELY = (1 / 16, 1 / 64, 1 / 256)
"""Half-lives of what is trending, as shares of the time that the log spans."""
SUPPORTS = (3, 2, 5, 10)


@dataclass(frozen=True, eq=False)
class Tuned:
    """A source with the parameters that it is to have."""

    params: Any
    fit: Callable[[Interactions], Any]


def further_sources(asked: Collection[str], data: TrainingSet, held: Cases, seed: int) -> dict[str, Tuned]:
    """Those asked for by name, tuned on validation events."""
    known = {"bought_together": _bought_together, "trending": _trending}
    found = {name: tune(data, held) for name, tune in known.items() if name in asked}
    return {**found, "content": _content(data, seed)} if "content" in asked else found


def best_of(tried: Sequence[Any], fit: Callable[[Any], Any], data: TrainingSet, held: Cases) -> Any:
    """The parameters whose model finds most of the validation events; the first of equals."""

    def score(params: Any) -> float:
        source: CandidateSource = fit(params).bind(data.rows_of, data.log.item_count)
        ranks = find(held, partial(first_hundred, source)).ranks
        return mean(hit_at(ranks, 100)) + mean(gain_at(ranks, 10)) if len(ranks) else 0.0

    return max(tried, key=score)


def span(events: Interactions) -> float:
    """Seconds from the first event to the last."""
    return float(events.times.max() - events.times.min()) if len(events) else 0.0


def _bought_together(data: TrainingSet, held: Cases) -> Tuned:
    tried = [bought_together.Params(support=support) for support in SUPPORTS]
    pairs = bought_together.count_pairs(data.replay, tried[0])
    params = best_of(tried, partial(bought_together.weigh, data.replay, pairs), data, held)
    return Tuned(params, lambda events: bought_together.fit(events, params))


def _trending(data: TrainingSet, held: Cases) -> Tuned:
    tried = [trending.Params(half_life_s=max(share * span(data.replay), 1.0)) for share in LATELY]
    params = best_of(tried, partial(trending.fit, data.replay), data, held)
    return Tuned(params, lambda events: trending.fit(events, params))


def _content(data: TrainingSet, seed: int) -> Tuned:
    """The same for all events: it looks at none."""
    encoder = data.encoder(seed)
    model = content.Content(
        data.log.item_ids,
        encoder.encode(data.texts),
        text_marks(data.texts),
        encoder,
        content.Params(),
    )
    return Tuned(model.params, lambda _: model)
