"""Where a comparison searches the two towers' vectors: in its own process, or on a node of OpenSearch.

What cannot be had on a node is not measured elsewhere in its place: then there is a reason and no figure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from narrows.adapters.opensearch import connect
from narrows.adapters.opensearch_figures import IndexFigures, OpenSearchFigures
from narrows.adapters.opensearch_versions import index_versions
from narrows.errors import NarrowsError
from narrows.index_building import ROWS_AT_ONCE
from narrows.retrieval import Floats
from narrows.settings import App
from narrows.vector_index import IndexVersions, VectorIndex
from sagemaker_jobs.container import Progress

VERSION = "compared"
PATIENCE_S = 20.0
"""A slow search is measured, not given up: a request would have given up long before."""
NO_NODE = "the comparison was given no OpenSearch node"


@dataclass(frozen=True, eq=False)
class Node:
    """A node that holds the compared vectors, in indexes under a name of their own.

    `on` says in words what it is, `note` what else one should know of it. Each call of `connected` opens
    connections anew, since a process and its forks cannot share any.
    """

    on: str
    connected: Callable[[], IndexVersions]
    figures: IndexFigures
    note: str = ""

    def build(self, vectors: Floats) -> VectorIndex:
        """The index of float32[size, d], nan where a row has none: whole, and live."""
        versions = self.connected()
        index = versions.create(VERSION, vectors.shape[1])
        rows = np.flatnonzero(~np.isnan(vectors[:, 0])).astype(np.int32)
        for start in range(0, len(rows), ROWS_AT_ONCE):
            part = rows[start : start + ROWS_AT_ONCE]
            index.upsert(part, np.ascontiguousarray(vectors[part]))
        versions.promote(VERSION)
        return versions.open(VERSION)

    def opened(self) -> VectorIndex:
        """The index, over connections of its own."""
        return self.connected().open(VERSION)


@dataclass(frozen=True, eq=False)
class Tier:
    """The embedded one, unless the app's vectors lie `on_nodes`; without a `node` there is a `reason`."""

    on_nodes: bool = False
    node: Node | None = None
    reason: str = ""


@contextmanager
def searching(app: App, search: Mapping[str, str], progress: Progress) -> Iterator[Tier]:
    """The tier of an app's vectors; what was built on a node is gone afterwards.

    `search` has the node's `url`, the `name` of the indexes, and `engine` and `region` where the node has its
    own; or why there is no node, as `missing`.
    """
    if app.tiers["vectors"] != "opensearch":
        yield Tier()
        return
    tier = _on_nodes(app, search)
    progress.say(f"vectors: {tier.node.on if tier.node else tier.reason}")
    try:
        yield tier
    finally:
        if tier.node:
            try:
                tier.node.connected().discard()
            except NarrowsError as error:
                progress.say(f"the indexes '{search['name']}-*' are left on the node: {error}")


def _on_nodes(app: App, search: Mapping[str, str]) -> Tier:
    if "url" not in search:
        return Tier(on_nodes=True, reason=search.get("missing", NO_NODE))
    try:
        return Tier(on_nodes=True, node=_node(app, **search))
    except NarrowsError as error:
        return Tier(on_nodes=True, reason=str(error))


def _node(app: App, url: str, name: str, engine: str = "", region: str = "") -> Node:
    figures = OpenSearchFigures(connect(url, timeout_s=PATIENCE_S, region=region), name)
    has = engine or app.index.engine
    return Node(
        f"{figures.server()}, {has} hnsw",
        lambda: index_versions(app.index, url, name, engine, region, search_s=PATIENCE_S),
        figures,
        "" if has == app.index.engine else f"{app.name}'s own engine is {app.index.engine}",
    )
