"""The vector indexes of a compared stack, where its app would have them, and what each took."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from narrows.adapters.faiss import EXACT_BELOW, FaissVectorIndex
from narrows.errors import NarrowsError
from narrows.evaluation.comparison import NO_INDEX
from narrows.sources import SignallingSource
from narrows.sources.two_tower import TwoTowerSource
from sagemaker_jobs.compare.tiers import Node, Tier

EMBEDDED = "an embedded index"
NO_WORK = "the node did not tell how long it worked on searches"
NO_GRAPHS = "the node keeps none apart, as with Lucene's engine, which reads graphs from the index's files"
ON_NODES = ("retrieval_ms", "build_s.index", "node_bytes", "new_item", "cost_per_million_usd")
"""The figures of a report that nobody has without a node."""
NAN = float("nan")

Sources = Mapping[str, SignallingSource]


@dataclass(frozen=True, eq=False)
class Built:
    """What a stack searches, in words `on`: None where that cannot be had, for the `reason`.

    It took `seconds` of wall time to build; `held_bytes` of it are in this process, the rest on the `node`.
    """

    on: str | None = NO_INDEX
    seconds: float = 0.0
    held_bytes: int = 0
    node: Node | None = None
    reason: str = ""

    @property
    def note(self) -> str:
        """What else one should know of it; "" where there is nothing."""
        return self.node.note if self.node else ""

    @property
    def unmeasured(self) -> dict[str, str]:
        """Why each figure is not known that takes a node."""
        return {} if self.on else dict.fromkeys(ON_NODES, f"no OpenSearch node: {self.reason}")

    def apart(self, sources: Sources) -> Sources:
        """The same sources over connections of their own, since a process and its forks can share none."""
        if self.node is None:
            return sources
        index = self.node.opened()
        return {
            name: source.searching(index) if isinstance(source, TwoTowerSource) else source
            for name, source in sources.items()
        }

    def busy_ms(self) -> float:
        """How long the node has worked on searches so far; nan where nobody tells."""
        if self.node is None:
            return NAN if self.on is None else 0.0
        try:
            return self.node.figures.busy_ms()
        except NarrowsError:
            return NAN

    def node_bytes(self) -> tuple[dict[str, float], dict[str, str]]:
        """(what the index takes on the node: `files`, `graphs` in memory; why one is nan)."""
        if self.node is None:
            return dict.fromkeys(("files", "graphs"), NAN if self.on is None else 0.0), {}
        try:
            files, graphs = self.node.figures.store_bytes(), self.node.figures.graph_bytes()
        except NarrowsError as error:
            return {"files": NAN, "graphs": NAN}, {"node_bytes": str(error)}
        why = {"node_bytes.graphs": NO_GRAPHS} if math.isnan(graphs) else {}
        return {"files": files, "graphs": graphs}, why


def indexed(sources: Sources, scratch: Path, tier: Tier) -> tuple[Sources, Built]:
    """The sources over indexes where an app would have them, and what was built.

    That is for the two towers, in the app's tier, and in the process for any other source that can search an
    index and has many items. On nodes there is no other index in place of one that cannot be had: every item
    is compared then.
    """
    chosen, built = dict(sources), Built()
    for name, source in sources.items():
        if tier.on_nodes and isinstance(source, TwoTowerSource):
            chosen[name], built = _on_node(source, tier)
        elif _searches(source):
            chosen[name], built = _embedded(source, scratch / name, built)
    return chosen, built


def _on_node(source: TwoTowerSource, tier: Tier) -> tuple[TwoTowerSource, Built]:
    if tier.node is None:
        return source, Built(None, NAN, reason=tier.reason)
    began = time.perf_counter()
    try:
        index = tier.node.build(source.vectors)
    except NarrowsError as error:
        return source, Built(None, NAN, reason=str(error))
    return source.searching(index), Built(tier.node.on, time.perf_counter() - began, node=tier.node)


def _embedded(source: Any, folder: Path, before: Built) -> tuple[Any, Built]:
    began = time.perf_counter()
    rows = np.flatnonzero(~np.isnan(source.vectors[:, 0])).astype(np.int32)
    index = FaissVectorIndex("compared", source.vectors.shape[1], filters=())
    index.upsert(rows, np.ascontiguousarray(source.vectors[rows]))
    index.save(folder)
    seconds = time.perf_counter() - began
    held = sum(path.stat().st_size for path in folder.iterdir())
    built = replace(
        before, on=EMBEDDED, seconds=before.seconds + seconds, held_bytes=before.held_bytes + held
    )
    return source.searching(index), built


def _searches(source: Any) -> bool:
    return isinstance(source, TwoTowerSource) or (
        hasattr(source, "searching") and np.count_nonzero(~np.isnan(source.vectors[:, 0])) >= EXACT_BELOW
    )
