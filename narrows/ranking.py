"""Scoring candidates: the learned ranker in this process, and fusion where there is no model."""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from narrows.errors import BundleError, FingerprintMismatch
from narrows.features.registry import FeatureSet
from narrows.features.statistics import StatisticsTable
from narrows.features.vectors import Items, VectorInputs, VectorSpec, assemble
from narrows.retrieval import Candidates, Floats, Query, Rows, fuse, reciprocal_ranks
from narrows.sources import SignallingSource

MANIFEST = "manifest.json"
COLUMNS = ("category", "category_all", "brand", "price", "created_at")
MISSING_VALUE = 0.0


@dataclass(frozen=True, eq=False)
class RankRequest:
    """What is known of a request: declared visitor features, request values (hour, device), and its query."""

    visitor: Mapping[str, float]
    request: Mapping[str, float]
    query: Query


@dataclass(frozen=True, eq=False)
class Ranked:
    """The answer, best first; `columns` of the snapshot are aligned with `rows`, `features` with them too."""

    rows: Rows
    scores: Floats
    columns: dict[str, NDArray[Any]]
    features: Floats | None = None


class Ranker(Protocol):
    """Orders candidates; safe to call from several threads at once."""

    @property
    def version(self) -> str:
        """The model that answers, "" for none."""

    def over(self, items: Items, sources: Mapping[str, SignallingSource]) -> Ranker:
        """The same over a later version of the items, and the sources over that."""

    def rank(self, request: RankRequest, candidates: Candidates, limit: int) -> Ranked:
        """The best `limit` candidates, best first; ties go to the better fused rank, then the lower row."""


class Scorer(Protocol):
    """A trained model over assembled vectors."""

    @property
    def feature_count(self) -> int:
        """How many columns it was trained on."""

    def predict(self, features: Floats) -> NDArray[np.float64]:
        """float64[n] for float32[n, feature_count]."""


class EmbeddedRanker:
    """Ranks with a model in this process; the vectors are assembled by the code that trained it."""

    def __init__(
        self,
        items: Items,
        statistics: StatisticsTable,
        sources: Mapping[str, SignallingSource],
        scorer: Scorer,
        spec: VectorSpec,
        *,
        fingerprint: str,
        version: str = "",
        features: FeatureSet | None = None,
    ) -> None:
        """`features` are those that the process serves, where the model reads declared ones."""
        if spec.fingerprint() != fingerprint or scorer.feature_count != len(spec.names):
            raise FingerprintMismatch(
                f"model {version!r} was trained on {scorer.feature_count} features with fingerprint "
                f"{fingerprint!r}, this process assembles {len(spec.names)} with {spec.fingerprint()!r}; "
                "deploy the code the model was trained with, or train it again"
            )
        redefined = spec.changed(features) if features else []
        if redefined:
            raise FingerprintMismatch(
                f"model {version!r} was trained on other definitions of {', '.join(redefined)}; train again"
            )
        changed = {
            name: (signals, sources[name].signal_names)
            for name, signals in spec.sources.items()
            if name in sources and sources[name].signal_names != signals
        }
        if changed:
            raise FingerprintMismatch(f"the signals of {sorted(changed)} changed since training; train again")
        self.items, self.statistics, self.sources = items, statistics, sources
        self.scorer, self.spec, self.version = scorer, spec, version

    def over(self, items: Items, sources: Mapping[str, SignallingSource]) -> EmbeddedRanker:
        """The same model over a later version of the items, and the sources over that."""
        later = copy.copy(self)
        later.items, later.sources = items, sources
        return later

    def rank(self, request: RankRequest, candidates: Candidates, limit: int) -> Ranked:
        """The best by the model's score; of more than `limit` candidates the best fused ones are scored."""
        if not len(candidates):
            return _ranked(self.items, candidates.rows, np.empty(0, np.float32), None)
        if len(candidates) > limit:
            candidates = fuse(candidates, limit)
        features = self.vectors(request, candidates)
        scores = self.scorer.predict(features)
        order = np.lexsort((candidates.rows, -reciprocal_ranks(candidates), -scores))
        return _ranked(self.items, candidates.rows[order], scores[order].astype(np.float32), features[order])

    def vectors(self, request: RankRequest, candidates: Candidates) -> Floats:
        """The matrix that the model reads, float32[n, d], one line a candidate."""
        inputs = VectorInputs(request.visitor, request.request, request.query)
        return assemble(self.spec, inputs, candidates, self.items, self.statistics, self.sources)


class FusionRanker:
    """Ranks without a model, by fused reciprocal ranks."""

    version = ""

    def __init__(self, items: Items) -> None:
        self.items = items

    def over(self, items: Items, sources: Mapping[str, SignallingSource]) -> FusionRanker:  # noqa: ARG002
        """The same over a later version of the items."""
        return FusionRanker(items)

    def rank(self, request: RankRequest, candidates: Candidates, limit: int) -> Ranked:  # noqa: ARG002
        """The best by reciprocal rank fusion; looks at nothing but the candidates' ranks."""
        fused = fuse(candidates, limit)
        return _ranked(self.items, fused.rows, reciprocal_ranks(fused), None)


def _ranked(items: Items, rows: Rows, scores: Floats, features: Floats | None) -> Ranked:
    names = tuple(name for name in COLUMNS if name in items.columns)
    return Ranked(rows, scores, items.take(rows, names), features)


@dataclass(frozen=True)
class ModelManifest:
    """What a bundle says of itself; `files` maps each file to the SHA-256 of its bytes."""

    version: str
    app: str
    created_at: float
    feature_names: tuple[str, ...]
    fingerprint: str
    spec: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)


def write_manifest(directory: Path, manifest: ModelManifest) -> ModelManifest:
    """Write `manifest.json` with the checksums of every file beside it; returns it with those checksums."""
    files = {
        path.name: _sha256(path)
        for path in sorted(directory.iterdir())
        if path.is_file() and path.name != MANIFEST
    }
    complete = ModelManifest(**{**_fields(manifest), "files": files})
    text = json.dumps(asdict(complete), indent=1, sort_keys=True, allow_nan=False)
    (directory / MANIFEST).write_text(text + "\n", encoding="utf-8")
    return complete


def read_manifest(directory: Path, *, verify: bool = True) -> ModelManifest:
    """The manifest of a bundle; BundleError when a file is missing or is not the one that was written."""
    path = directory / MANIFEST
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        manifest = ModelManifest(**{**kept, "feature_names": tuple(kept["feature_names"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path} cannot be read ({error}); copy the bundle again or train again") from error
    for name, expected in manifest.files.items() if verify else ():
        held = directory / name
        if not re.fullmatch(r"[\w.-]+", name) or not held.is_file() or _sha256(held) != expected:
            raise BundleError(f"{held} is missing or differs from its manifest; copy the bundle again")
    return manifest


def _fields(manifest: ModelManifest) -> dict[str, Any]:
    return {name: getattr(manifest, name) for name in manifest.__dataclass_fields__}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
