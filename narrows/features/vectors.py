"""The ranker's input matrix: one assembly, used to train the model and to serve it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from narrows.features.checks import for_a_model
from narrows.features.computed import Asked, Computed, row_values, with_flags
from narrows.features.computed import Items as Items
from narrows.features.declarations import definitions
from narrows.features.registry import FeatureSet
from narrows.features.statistics import NAMES as STATISTICS
from narrows.features.statistics import StatisticsTable
from narrows.retrieval import Candidates, Floats, Query, Rows, reciprocal_ranks
from narrows.sources import SignallingSource

VERSION = 2
HISTORY = 20
HISTORY_DECAY = 0.85
DAY_S = 86400.0
TIME_FEATURES = ("history_length", "days_since_last", "history_days", "hour", "weekday")
FUSION_FEATURES = ("found_by", "reciprocal_rank")


@dataclass(frozen=True)
class VectorSpec:
    """What the columns of the matrix are, and so what a model was trained on.

    `sources` maps each source to its signals; `categories`, `numbers` name item columns. The others are
    declared features, each with its flag `<name>_missing`: of `visitor` and `request` the values arrive,
    those of `statistics` lie beside the snapshot, those of `item` and `cross` are computed for each row.
    `definitions` has a digest of each declared feature's definition.
    """

    sources: Mapping[str, tuple[str, ...]]
    visitor: tuple[str, ...] = ()
    request: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    statistics: tuple[str, ...] = ()
    item: tuple[Computed, ...] = ()
    cross: tuple[Computed, ...] = ()
    definitions: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """The columns in order."""
        names: list[str] = []
        for source, signals in self.sources.items():
            names += [f"{source}.{signal}" for signal in signals]
            names += [f"{source}.rank", f"{source}.scaled", f"{source}.place"]
        names += FUSION_FEATURES
        names += [f"item.{name}" for name in STATISTICS] + ["item.missing", "history.popularity_step"]
        for column in self.categories:
            names += [f"{column}.affinity", f"{column}.last"]
        for column in self.numbers:
            names += [f"{column}.value", f"{column}.step", f"{column}.distance"]
        names += [f"item.{name}" for name in self.statistics]
        names += [f"item.{name}" for name in with_flags([one.name for one in self.item])]
        names += [f"cross.{name}" for name in with_flags([one.name for one in self.cross])]
        names += ["history.times_seen", *(f"time.{name}" for name in TIME_FEATURES)]
        names += [f"visitor.{name}" for name in self.visitor]
        return (*names, *(f"request.{name}" for name in self.request))

    def fingerprint(self) -> str:
        """Changes whenever the meaning of a column changes."""
        meaning = [VERSION, HISTORY, HISTORY_DECAY, self.names, sorted(self.definitions.items())]
        return hashlib.sha256(json.dumps(meaning, separators=(",", ":")).encode()).hexdigest()[:16]

    def changed(self, features: FeatureSet) -> list[str]:
        """The declared features that this process would serve with another meaning, or not at all."""
        present = definitions(features.declarations)
        return sorted(name for name, digest in self.definitions.items() if present.get(name) != digest)

    def to_json(self) -> dict[str, Any]:
        """What a manifest keeps of it."""
        return asdict(self)

    @staticmethod
    def from_json(kept: Mapping[str, Any]) -> VectorSpec:
        """The specification that `to_json` gave."""
        sources = {name: tuple(signals) for name, signals in kept["sources"].items()}
        texts = ("visitor", "request", "categories", "numbers", "statistics")
        rest: dict[str, Any] = {name: tuple(kept.get(name, ())) for name in texts}
        for name in ("item", "cross"):
            rest[name] = tuple(Computed.from_json(one) for one in kept.get(name, ()))
        return VectorSpec(sources, definitions=dict(kept.get("definitions", {})), **rest)

    @staticmethod
    def over(
        sources: Mapping[str, SignallingSource],
        items: Items,
        features: FeatureSet | None = None,
        statistics: StatisticsTable | None = None,
    ) -> VectorSpec:
        """Everything that these sources, item columns and declared features offer.

        `features` are given where their values are there to train on.
        """
        columns = items.columns
        categories = [name for name in ("category", "brand") if name in columns]
        numbers = [name for name in ("price", "created_at") if name in columns]
        signals = {name: source.signal_names for name, source in sorted(sources.items())}
        spec = VectorSpec(signals, categories=tuple(categories), numbers=tuple(numbers))
        declared = statistics.declared if statistics else ()
        return spec.with_features(features, declared, columns) if features else spec

    def with_features(
        self, features: FeatureSet, statistics: tuple[str, ...], columns: Collection[str]
    ) -> VectorSpec:
        """This, and the declared features, of which those that read the catalogue need its column."""
        computed = features.computed
        item = tuple(one for one in computed.item if one.text("column") in columns)
        cross = tuple(one for one in computed.cross if one.text("item") in columns)
        visitor = tuple(one.name for one in features.declarations if for_a_model(one))
        request = tuple(one.name for one in computed.request)
        used = {*visitor, *request, *(one.name for one in (*item, *cross)), *statistics}
        known = definitions(features.declarations)
        return replace(
            self,
            visitor=with_flags(visitor),
            request=with_flags(request),
            statistics=statistics,
            item=item,
            cross=cross,
            definitions={name: known[name] for name in known if name in used},
        )


@dataclass(frozen=True, eq=False)
class VectorInputs:
    """What one request brings: declared visitor and request values, and the query the sources were asked."""

    visitor: Mapping[str, float]
    request: Mapping[str, float]
    query: Query


def assemble(
    spec: VectorSpec,
    inputs: VectorInputs,
    candidates: Candidates,
    items: Items,
    statistics: StatisticsTable,
    sources: Mapping[str, SignallingSource],
) -> Floats:
    """float32[n, len(spec.names)]; a source that is absent or failed leaves its columns nan."""
    query = inputs.query
    history = query.history[-HISTORY:]
    blocks = [
        _source_block(name, signals, candidates, sources.get(name), query)
        for name, signals in spec.sources.items()
    ]
    found = (candidates.ranks >= 0).sum(axis=1)
    blocks += [found[:, None], reciprocal_ranks(candidates)[:, None]]
    weights = (HISTORY_DECAY ** np.arange(len(history))[::-1]).astype(np.float32)
    blocks += _item_blocks(spec, candidates.rows, history, weights, items, statistics)
    blocks += _declared_blocks(spec, inputs, candidates.rows, items, statistics)
    blocks.append(_times_seen(candidates.rows, query.history)[:, None])
    values = np.asarray(
        [
            *_time_values(query),
            *(inputs.visitor.get(name, np.nan) for name in spec.visitor),
            *(inputs.request.get(name, np.nan) for name in spec.request),
        ],
        np.float32,
    )
    blocks.append(np.broadcast_to(values, (len(candidates), len(values))))
    return np.concatenate(blocks, axis=1, dtype=np.float32)


def _source_block(
    name: str,
    signal_names: tuple[str, ...],
    candidates: Candidates,
    source: SignallingSource | None,
    query: Query,
) -> Floats:
    """float32[n, signals + 3]: the signals, the retrieval rank, the score over the best, its place from 0."""
    block = np.full((len(candidates), len(signal_names) + 3), np.nan, np.float32)
    if source is None or not len(candidates):
        return block
    block[:, :-3] = source.signals(query, candidates.rows)
    if name in candidates.source_names:
        ranks = candidates.ranks[:, candidates.source_names.index(name)]
        block[:, -3] = np.where(ranks >= 0, ranks, np.nan)
    score = block[:, 0]
    known = ~np.isnan(score)
    if known.any():
        top = np.abs(score[known]).max()
        block[:, -2] = score / (top if top > 0 else 1.0)
        order = np.argsort(-score, kind="stable")  # nan sorts last
        block[order, -1] = np.arange(len(order))
        block[~known, -1] = np.nan
    return block


def _item_blocks(
    spec: VectorSpec,
    rows: Rows,
    history: Rows,
    weights: Floats,
    items: Items,
    statistics: StatisticsTable,
) -> list[NDArray[Any]]:
    both = np.concatenate([history, rows])
    read = statistics.read(both)
    step = read[len(history) :, 0] - _weighted_mean(read[: len(history), 0], weights)
    blocks = [read[len(history) :], step[:, None]]
    wide = {name: f"{name}_all" if f"{name}_all" in items.columns else name for name in spec.categories}
    present = tuple(name for name in (*wide.values(), *spec.numbers) if name in items.columns)
    taken = items.take(both, present)
    for name in spec.categories:
        codes = taken.get(wide[name], np.full(len(both), -1, np.int32))
        codes = codes[:, None] if codes.ndim == 1 else codes
        blocks.append(_affinity(codes[: len(history)], codes[len(history) :], weights))
    for name in spec.numbers:
        values = taken.get(name, np.full(len(both), np.nan)).astype(np.float64)
        blocks.append(_number_block(values[: len(history)], values[len(history) :], weights))
    return blocks


def _declared_blocks(
    spec: VectorSpec, inputs: VectorInputs, rows: Rows, items: Items, statistics: StatisticsTable
) -> list[Floats]:
    """What the declared features say of each row; the table may hold more than the model was trained on."""
    asked = Asked(inputs.query.now, visitor=inputs.visitor)
    blocks = [column[:, None] for column in row_values((*spec.item, *spec.cross), asked, items, rows)]
    if not spec.statistics:
        return blocks
    held = statistics.read_declared(rows, inputs.query.now)
    place = {name: number for number, name in enumerate(statistics.declared)}
    chosen = [
        held[:, place[name]] if name in place else np.full(len(rows), np.nan, np.float32)
        for name in spec.statistics
    ]
    return [np.stack(chosen, axis=1), *blocks]


def _affinity(history: NDArray[np.int32], rows: NDArray[np.int32], weights: Floats) -> Floats:
    """float32[n, 2]: the share of the recency-weighted history in a category of the row; of the last item."""
    out = np.full((len(rows), 2), np.nan, np.float32)
    if not len(history):
        return out
    top = max(int(history.max(initial=-1)), int(rows.max(initial=-1))) + 2
    shares, last = np.zeros(top, np.float32), np.zeros(top, np.float32)
    np.add.at(shares, history, weights[:, None] / weights.sum())
    last[history[-1]] = 1.0
    shares[-1] = last[-1] = 0.0  # code -1, no category, is counted in the spare last cell
    counts = np.maximum((rows >= 0).sum(axis=1), 1)
    out[:, 0] = shares[rows].sum(axis=1) / counts
    out[:, 1] = last[rows].sum(axis=1) / counts
    return out


def _number_block(history: NDArray[np.float64], rows: NDArray[np.float64], weights: Floats) -> Floats:
    """float32[n, 3]: the value, its step from the last item, its distance from the history's mean."""
    last = history[-1] if len(history) else np.nan
    mean = _weighted_mean(history, weights)
    return np.stack([rows, rows - last, np.abs(rows - mean)], axis=1).astype(np.float32)


def _weighted_mean(values: NDArray[Any], weights: Floats) -> float:
    known = ~np.isnan(values)
    total = weights[known].sum()
    return float((values[known] * weights[known]).sum() / total) if total > 0 else float("nan")


def _times_seen(rows: Rows, history: Rows) -> NDArray[Any]:
    if not len(history):
        return np.zeros(len(rows), np.float32)
    ordered = np.sort(history)
    return np.searchsorted(ordered, rows, "right") - np.searchsorted(ordered, rows, "left")


def _time_values(query: Query) -> list[float]:
    times = query.history_times
    since = (query.now - times[-1]) / DAY_S if len(times) else np.nan
    span = (times[-1] - times[0]) / DAY_S if len(times) else np.nan
    hour = query.now % DAY_S / 3600.0
    return [float(len(query.history)), since, span, hour, float(query.now // DAY_S % 7)]
