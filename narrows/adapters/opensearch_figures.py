"""What an OpenSearch server says of itself and of the indexes under a name: what they take, what they did."""

from __future__ import annotations

from typing import Protocol

from opensearchpy import OpenSearch

from narrows.adapters.opensearch import PATIENT, asking

KIB = 1024.0


class IndexFigures(Protocol):
    """What a server that holds an app's vectors tells of them; StoreUnavailable where it does not tell."""

    def store_bytes(self) -> float:
        """The size of the indexes' files, all copies together."""

    def graph_bytes(self) -> float:
        """What their graphs take of the memory that the server keeps for graphs; nan where none are there.

        Those of engine faiss are from the first search on; Lucene reads its graphs from the files.
        """

    def busy_ms(self) -> float:
        """How long threads of the server have worked on searches of them, since they were made."""


class OpenSearchFigures:
    """Of the indexes whose names begin with `name`, as `OpenSearchIndexVersions` makes them."""

    def __init__(self, client: OpenSearch, name: str) -> None:
        self._client, self._name = client, name
        self._indexes, self._wide = f"{name}-vectors-*", {**PATIENT, "expand_wildcards": "all"}

    def server(self) -> str:
        """Which server it is: "OpenSearch 2.19.1"."""
        with asking(None):
            return f"OpenSearch {self._client.info(params=PATIENT)['version']['number']}"

    def store_bytes(self) -> float:
        with asking(None):  # by segments, since the sum that the server keeps is up to ten seconds old
            told = self._client.indices.segments(index=self._indexes, params=self._wide)
        return float(
            sum(
                segment["size_in_bytes"]
                for index in told["indices"].values()
                for copies in index["shards"].values()
                for copy in copies
                for segment in copy["segments"].values()
            )
        )

    def graph_bytes(self) -> float:
        with asking(None):
            told = self._client.transport.perform_request("GET", "/_plugins/_knn/stats", params=dict(PATIENT))
        kept = [
            float(one["graph_memory_usage"])
            for node in told["nodes"].values()
            for index, one in node.get("indices_in_cache", {}).items()
            if index.startswith(f"{self._name}-vectors-")
        ]
        return KIB * sum(kept) if kept else float("nan")

    def busy_ms(self) -> float:
        with asking(None):
            answer = self._client.indices.stats(index=self._indexes, metric="search", params=self._wide)
        told = answer["_all"]["total"].get("search", {})  # absent where there is no index yet
        return float(sum(told.get(f"{part}_time_in_millis", 0) for part in ("query", "fetch")))
