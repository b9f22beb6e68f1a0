"""Fits the ranker to replayed groups, and keeps it only if it beats every order that needs no ranker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import lightgbm
import numpy as np

from narrows.evaluation.metrics import MAIN, gain_at, mean
from narrows.features.vectors import VectorSpec
from sagemaker_jobs.container import Progress
from sagemaker_jobs.replay import VALIDATED, Groups
from sagemaker_jobs.tuning import Tuned, descend

FEWEST_GROUPS = 30
FEW_GROUPS = 3000
FOLDS = 5
PARAMS: Mapping[str, Any] = {
    "objective": "lambdarank",
    "metric": "ndcg",
    "eval_at": [10],
    "learning_rate": 0.1,
    "feature_fraction": 0.5,
    "feature_pre_filter": False,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}
AXES = {"least_in_leaf": (200, 20), "truncation": (10, 100), "leaves": (15,)}
BUDGET_S = 75.0
PATIENCE = 50
ROUNDS = 300
"""As many trees as are scored in less than two milliseconds for 300 candidates."""
CAUTIOUS: Mapping[str, Any] = {"learning_rate": 0.05, "num_leaves": 7}
CAUTIOUS_ROUNDS = 50
ONE_ORDER: Mapping[str, Any] = {
    "objective": "regression",
    "learning_rate": 1.0,
    "num_leaves": 1000,
    "max_bin": 1000,
    "min_data_in_bin": 1,
    "min_data_in_leaf": 1,
    "min_sum_hessian_in_leaf": 0.0,
    "deterministic": True,
    "force_row_wise": True,
    "verbosity": -1,
}
FUSED = "reciprocal_rank"
RISING = ("score", "scaled", "last", "long", "best", "links", "recent", FUSED, "found_by")
FALLING = ("rank", "place")


@dataclass(frozen=True)
class Shape:
    """What is tuned of the trees; pairs of candidates count where one is among the best `truncation`."""

    least_in_leaf: int = 50
    truncation: int = 30
    leaves: int = 31

    @property
    def params(self) -> dict[str, Any]:
        """In LightGBM's words."""
        return {
            "min_data_in_leaf": self.least_in_leaf,
            "lambdarank_truncation_level": self.truncation,
            "num_leaves": self.leaves,
        }


@dataclass(frozen=True)
class Trained:
    """The booster as text, "" where fused ranks serve better, and what was measured on the way."""

    text: str
    metrics: Mapping[str, Any]


def fit(
    groups: Groups,
    spec: VectorSpec,
    seed: int,
    progress: Progress,
    *,
    budget_s: float = 0.0,
    patience: int = PATIENCE,
) -> Trained:
    """A LambdaMART, or the order of one source, or none: whichever ranks unseen users' labels best.

    `budget_s` is for the choice of the trees' shape, which takes many groups. `metrics` tells the gain of
    each order among the groups, whose labels all are candidates, and what was chosen.
    """
    found: dict[str, Any] = {
        "groups": len(groups.lengths),
        "requests": groups.asked,
        "rows": len(groups.features),
        "candidate_recall": len(groups.lengths) / groups.asked if groups.asked else None,
    }
    if len(groups.lengths) < FEWEST_GROUPS or len(np.unique(groups.users % VALIDATED)) < VALIDATED:
        reason = f"{len(groups.lengths)} groups to learn from, too few: fused ranks serve"
        progress.say(reason)
        return Trained("", {**found, "reason": reason})
    if len(groups.lengths) < FEW_GROUPS:
        judged = groups
        booster, gain = _cautious(groups, spec, seed)
    else:
        judged = groups.take(groups.validated)
        tuned, trees = _tuned(groups, judged, spec, seed, progress, budget_s=budget_s, patience=patience)
        booster, gain = _train(_dataset(groups, spec), tuned.params, seed, trees), tuned.score
        found |= {"params": asdict(tuned.params), "trials": tuned.trials, "out_of_time": tuned.out_of_time}
    gains = {"lambdamart": gain, **_single_orders(judged, spec)}
    chosen = max(gains, key=lambda name: gains[name])
    progress.say(f"{chosen} of { ({name: round(one, 4) for name, one in gains.items()}) }")
    found |= {"gains": gains, "chosen": chosen, f"validation_{MAIN}": gains[chosen]}
    if chosen == FUSED:
        return Trained("", {**found, "reason": "no ranker beats fused ranks: they serve"})
    if chosen != "lambdamart":
        booster = _one_order(groups, spec, chosen)
        found["reason"] = f"no ranker beats the order of {chosen}, which the model repeats"
    found |= {"trees": booster.num_trees(), "importance": _importance(booster, spec)}
    return Trained(booster.model_to_string(), found)


def directions(spec: VectorSpec) -> list[int]:
    """For each column 1, -1 or 0: whether the model's score may only rise with it, only fall, or do both."""
    found = []
    for name in spec.names:
        owner, _, last = name.rpartition(".")
        by_source = (owner in spec.sources and owner != "fresh") or not owner
        found.append((last in RISING) - (last in FALLING) if by_source else 0)
    return found


def ranks(scores: np.ndarray, groups: Groups, spec: VectorSpec) -> np.ndarray:
    """Of each group's relevant candidate, from 0; equal scores are ordered as serving does, by fused rank."""
    fused = groups.features[:, spec.names.index(FUSED)]
    ends = np.cumsum(groups.lengths)
    found = []
    for begin, end in zip(ends - groups.lengths, ends, strict=True):
        ours, theirs = scores[begin:end], fused[begin:end]
        at = int(np.argmax(groups.relevant[begin:end]))
        found.append(int(((ours > ours[at]) | ((ours == ours[at]) & (theirs > theirs[at]))).sum()))
    return np.asarray(found, np.int64)


def _gain(scores: np.ndarray, groups: Groups, spec: VectorSpec) -> float:
    return mean(gain_at(ranks(scores, groups, spec), 10))


def _tuned(
    groups: Groups,
    judged: Groups,
    spec: VectorSpec,
    seed: int,
    progress: Progress,
    *,
    budget_s: float,
    patience: int,
) -> tuple[Tuned, int]:
    """(shape, number of trees) that rank the labels of validated users best, learned from all others."""
    learning = _dataset(groups.take(~groups.validated), spec)
    judging = _dataset(judged, spec, reference=learning)
    trees: dict[Shape, int] = {}

    def score(shape: Shape) -> float:
        stop = lightgbm.early_stopping(patience, verbose=False)
        booster = _train(learning, shape, seed, ROUNDS, valid_sets=[judging], callbacks=[stop])
        trees[shape] = booster.best_iteration
        scores = np.asarray(booster.predict(judged.features, num_iteration=booster.best_iteration))
        return _gain(scores, judged, spec)

    tuned = descend(Shape(), AXES, score, rounds=1, budget_s=budget_s, progress=progress)
    return tuned, trees[tuned.params]


def _train(dataset: Any, shape: Shape, seed: int, trees: int, **more: Any) -> Any:
    return lightgbm.train({**PARAMS, **shape.params, "seed": seed}, dataset, trees, **more)


def _cautious(groups: Groups, spec: VectorSpec, seed: int) -> tuple[Any, float]:
    """(booster, gain) for few groups: small trees that may not turn a source around, judged in five folds."""
    least = max(5, min(50, len(groups.features) // 1000))
    params = {**PARAMS, **Shape().params, **CAUTIOUS, "seed": seed, "min_data_in_leaf": least}
    params["monotone_constraints"] = directions(spec)
    whole = _dataset(groups, spec)
    scores = np.zeros(len(groups.features))
    for fold in range(FOLDS):
        held = groups.users % FOLDS == fold
        rows = np.repeat(held, groups.lengths)
        if held.any() and not held.all():
            others = _dataset(groups.take(~held), spec, reference=whole)
            booster = lightgbm.train(params, others, CAUTIOUS_ROUNDS)
            scores[rows] = booster.predict(groups.features[rows])
    booster = lightgbm.train(params, whole, CAUTIOUS_ROUNDS)
    return booster, _gain(scores, groups, spec)


def _single_orders(groups: Groups, spec: VectorSpec) -> dict[str, float]:
    """The gain of each source's own order, and of the fused one."""
    gains = {FUSED: _gain(np.zeros(len(groups.features)), groups, spec)}
    for name in spec.sources:
        gains[name] = _gain(_order_of(groups, spec, name), groups, spec)
    return gains


def _order_of(groups: Groups, spec: VectorSpec, source: str) -> np.ndarray:
    """Higher is better; what the source does not know comes last."""
    place = groups.features[:, spec.names.index(f"{source}.place")]
    return -np.where(np.isnan(place), np.inf, place)


def _one_order(groups: Groups, spec: VectorSpec, source: str) -> Any:
    """A model of one tree that repeats the order of a source, of the same shape as any other model."""
    at = spec.names.index(f"{source}.place")
    places = np.arange(int(np.nanmax(groups.features[:, at])) + 2, dtype=np.float32)
    features = np.zeros((len(places), len(spec.names)), np.float32)
    features[:, at] = places
    features[-1, at] = np.nan
    data = lightgbm.Dataset(features, label=-places, feature_name=list(spec.names))
    return lightgbm.train(dict(ONE_ORDER), data, 1)


def _importance(booster: Any, spec: VectorSpec) -> dict[str, float]:
    gain = booster.feature_importance("gain")
    return {spec.names[at]: round(float(gain[at]), 1) for at in np.argsort(-gain)[:20]}


def _dataset(groups: Groups, spec: VectorSpec, reference: Any = None) -> Any:
    weights = groups.weights / max(float(groups.weights.mean()), 1e-9)
    return lightgbm.Dataset(
        groups.features,
        label=groups.relevant,
        group=groups.lengths,
        weight=None if np.ptp(weights) == 0 else weights,
        feature_name=list(spec.names),
        reference=reference,
        params={"feature_pre_filter": False},
    )
