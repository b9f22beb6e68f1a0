"""Which versions of its vectors an app has in OpenSearch, and which of them is live.

The vectors of one embedding version lie in two OpenSearch indexes, one for each part. A version is live where
an alias of the app stands over both of them; the alias moves in one step, so that no request finds none.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from opensearchpy import OpenSearch

from narrows.adapters.opensearch import (
    CHANGE_S,
    FRESH,
    MAIN,
    PATIENT,
    SEARCH_S,
    OpenSearchVectorIndex,
    asking,
    connect,
    mapping,
)
from narrows.errors import InvalidInput
from narrows.index_settings import Engine, IndexSettings
from narrows.vector_index import HALF_BUILT, IS_LIVE, IS_WHOLE, LIVE, WHOLE, VectorIndex, absent

FRESH_REFRESH, MAIN_REFRESH, NO_REFRESH = "1s", "5s", "-1"
OPENING_S = 3.0
"""A process that refreshes what it serves opens its index as it goes, and must not wait for a dead server."""


def index_versions(
    settings: IndexSettings,
    url: str,
    name: str,
    engine: str,
    region: str = "",
    *,
    search_s: float = SEARCH_S,
) -> OpenSearchIndexVersions:
    """The indexes of an app, where the variables SEARCH_URL, SEARCH_NAME and SEARCH_ENGINE say."""
    client = connect(url, timeout_s=search_s, region=region)
    return OpenSearchIndexVersions(
        client, name, settings.on(cast(Engine, engine)) if engine else settings, search_s=search_s
    )


class OpenSearchIndexVersions:
    """The indexes of one app in one cluster, told from others by `name`."""

    def __init__(
        self, client: OpenSearch, name: str, settings: IndexSettings, *, search_s: float = SEARCH_S
    ) -> None:
        self._client, self._name, self._settings, self._search_s = client, name, settings, search_s

    def create(self, version: str, dimension: int) -> VectorIndex:
        state = self._there().states.get(version)
        if state in (WHOLE, LIVE):
            raise InvalidInput("version", version, IS_WHOLE)
        if state:
            self._delete(version)
        index = OpenSearchVectorIndex(
            self._client,
            self._name,
            self._base(version),
            version,
            dimension,
            self._settings,
            False,
            None,
            self._search_s,
        )
        with asking(version):
            for part in (MAIN, FRESH):
                name = f"{index.base}-{part}"
                self._client.indices.create(name, body=self._body(index, part), params=PATIENT)
        return index

    def promote(self, version: str) -> None:
        there = self._there()
        if version not in there.states:
            raise absent(version, there.states)
        index = self._index(there.meta[version])
        index.refresh()
        index.whole = True
        index.write_meta()
        alias = f"{self._name}-live"
        parts = [f"{index.base}-{part}" for part in (MAIN, FRESH)]
        actions = [
            {"remove": {"index": f"{self._base(other)}-*", "alias": alias}}
            for other, state in there.states.items()
            if state == LIVE
        ]
        actions += [{"add": {"index": part, "alias": alias}} for part in parts]
        often = {"index": {"refresh_interval": MAIN_REFRESH}}
        with asking(version):
            self._client.indices.put_settings(index=parts[0], body=often, params=PATIENT)
            self._client.indices.update_aliases(body={"actions": actions}, params=PATIENT)

    def open(self, version: str | None = None) -> OpenSearchVectorIndex:
        there = self._there(OPENING_S)
        named = {name for name, state in there.states.items() if state == LIVE}
        wanted = next(iter(named), None) if version is None else version
        if wanted is None or there.states.get(wanted, HALF_BUILT) == HALF_BUILT:
            raise absent(version, there.states)
        return self._index(there.meta[wanted])

    def states(self) -> Mapping[str, str]:
        return self._there().states

    def drop(self, version: str) -> None:
        states = self._there().states
        if states.get(version) == LIVE:
            raise InvalidInput("version", version, IS_LIVE)
        if version in states:
            self._delete(version)

    def discard(self) -> None:
        for version in self._there().states:
            self._delete(version)

    def _there(self, timeout_s: float = CHANGE_S) -> _There:
        """What the cluster holds under our name, in one round trip."""
        with asking(None):
            found = self._client.indices.get(
                index=f"{self._name}-vectors-*",
                params={
                    "request_timeout": timeout_s,
                    "filter_path": "*.aliases,*.mappings._meta",
                    "expand_wildcards": "all",
                },
            )
        states: dict[str, str] = {}
        described: dict[str, Mapping[str, Any]] = {}
        parts: Counter[str] = Counter()
        for one in found.values():
            meta = one.get("mappings", {}).get("_meta", {})
            if meta.get("name") != self._name:
                continue
            version = meta["version"]
            parts[version] += 1
            described[version] = meta
            live = f"{self._name}-live" in one.get("aliases", {})
            states[version] = LIVE if live else WHOLE if meta["whole"] else HALF_BUILT
        broken = {version: HALF_BUILT for version, count in parts.items() if count < 2}
        return _There(states | broken, described)

    def _index(self, meta: Mapping[str, Any]) -> OpenSearchVectorIndex:
        """As it was made; only how wide a search looks is a matter of today's settings."""
        made = {**meta["settings"], "filters": tuple(meta["settings"]["filters"])}
        return OpenSearchVectorIndex(
            self._client,
            self._name,
            self._base(meta["version"]),
            meta["version"],
            meta["dimension"],
            IndexSettings(**{**made, "ef_search": self._settings.ef_search}),
            meta["whole"],
            meta["scale"],
            self._search_s,
        )

    def _body(self, index: OpenSearchVectorIndex, part: str) -> dict[str, Any]:
        return {
            "settings": {
                "index": {
                    "knn": True,
                    "number_of_shards": self._settings.shards if part == MAIN else 1,
                    "number_of_replicas": self._settings.replicas,
                    "refresh_interval": FRESH_REFRESH if part == FRESH else NO_REFRESH,
                }
            },
            "mappings": mapping(self._settings, index.dimension, index.meta()),
            "aliases": {f"{index.base}-{part}-write": {}},
        }

    def _base(self, version: str) -> str:
        """The name of a version's indexes: OpenSearch knows no capitals and few signs."""
        digest = hashlib.sha256(version.encode()).hexdigest()[:8]
        readable = re.sub(r"[^a-z0-9]+", "-", version.lower())[:80].strip("-")
        return f"{self._name}-vectors-{readable}-{digest}"

    def _delete(self, version: str) -> None:
        with asking(version):
            self._client.indices.delete(
                index=f"{self._base(version)}-*", params=PATIENT | {"ignore_unavailable": "true"}
            )


@dataclass(frozen=True)
class _There:
    """By version its state, and what its mapping says of it."""

    states: Mapping[str, str]
    meta: Mapping[str, Mapping[str, Any]]
