"""The distributed tier of the vector index: OpenSearch with its k-NN plugin.

The vectors of one embedding version lie in two OpenSearch indexes behind one search. A build fills `main`;
once it is promoted, changes go to `fresh`, which is small and refreshed every second, and take what they
replace out of `main`. Which version is live is an alias over both, moved in one step.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from typing import Any, NoReturn, cast
from urllib.parse import urlsplit

import boto3
import numpy as np
from numpy.typing import NDArray
from opensearchpy import (
    OpenSearch,
    OpenSearchException,
    TransportError,
    Urllib3AWSV4SignerAuth,
    Urllib3HttpConnection,
)

from narrows.errors import InvalidInput, StoreUnavailable
from narrows.index_settings import Engine, IndexSettings
from narrows.retrieval import Floats, Rows
from narrows.vector_index import (
    EVERYTHING,
    IS_LIVE,
    IS_WHOLE,
    NO_ATTRIBUTES,
    Attributes,
    IndexGone,
    Neighbours,
    VectorIndex,
    Where,
    absent,
    asked,
    checked_vectors,
    refused,
)

SEARCH_S, CHANGE_S = 0.5, 60.0
DOCUMENTS_A_BULK = 1_000
FRESH_REFRESH, MAIN_REFRESH, NO_REFRESH = "1s", "5s", "-1"
CONNECTIONS = 32
LARGEST_BYTE = 127.0
MAIN, FRESH = "main", "fresh"
HALF_BUILT = "half built"
PATIENT = {"request_timeout": CHANGE_S}
ANSWERED = ("responses.hits.hits._index", "responses.hits.hits._score", "responses.hits.hits.fields.row")
FAILED = ("responses.error.type", "responses.error.reason", "responses.status")


def connect(url: str, *, timeout_s: float = SEARCH_S, region: str = "") -> OpenSearch:
    """A client for the server at this address; it never retries, since a deadline is shorter than two tries.

    Requests to a domain of Amazon's in `region` are signed with the credentials of this process.
    """
    logging.getLogger("opensearch").setLevel(logging.CRITICAL)  # it logs a page for each error that we raise
    return OpenSearch(
        hosts=[url],
        http_auth=_signer(url, region),
        connection_class=Urllib3HttpConnection,
        pool_maxsize=CONNECTIONS,
        timeout=timeout_s,
        max_retries=0,
        retry_on_timeout=False,
    )


def index_versions(
    settings: IndexSettings,
    *,
    url: str,
    name: str,
    engine: str,
    region: str = "",
    search_s: float = SEARCH_S,
) -> OpenSearchIndexVersions:
    """The indexes of an app, where the variables SEARCH_URL, SEARCH_NAME and SEARCH_ENGINE say."""
    client = connect(url, timeout_s=search_s, region=region)
    return OpenSearchIndexVersions(
        client, name, settings.on(cast(Engine, engine)) if engine else settings, search_s=search_s
    )


def _signer(url: str, region: str) -> Urllib3AWSV4SignerAuth | None:
    host = urlsplit(url).hostname or ""
    if not host.endswith((".amazonaws.com", ".amazonaws.com.cn", ".on.aws")):
        return None
    return Urllib3AWSV4SignerAuth(boto3.Session().get_credentials(), region, "es")


def mapping(settings: IndexSettings, dimension: int, meta: Mapping[str, Any]) -> dict[str, Any]:
    """The mapping of one part; it always names its engine, since the plugin's default is not everywhere."""
    parameters: dict[str, Any] = {"m": settings.m, "ef_construction": settings.ef_construction}
    if settings.numbers == "fp16":
        parameters["encoder"] = {"name": "sq", "parameters": {"type": "fp16"}}
    vector = {
        "type": "knn_vector",
        "dimension": dimension,
        "data_type": "byte" if settings.numbers == "byte" else "float",
        "method": {
            "name": "hnsw",
            "engine": settings.engine,
            "space_type": settings.space,
            "parameters": parameters,
        },
    }
    return {
        "dynamic": "strict",
        "_meta": dict(meta),
        "_source": {"enabled": False},  # nobody reads it
        "properties": {"vector": vector, "row": {"type": "integer", "index": False}}
        | {name: {"type": "keyword"} for name in settings.filters},
    }


@dataclass(eq=False)
class OpenSearchVectorIndex:
    """One embedding version; safe to use from several threads.

    A search costs one round trip of at most `search_s` seconds, and is never tried twice. Counts and deleted
    rows are as of the last refresh.
    """

    client: OpenSearch
    name: str
    base: str
    version: str
    dimension: int
    settings: IndexSettings
    whole: bool = True
    scale: float | None = None
    search_s: float = SEARCH_S
    filters: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.filters = self.settings.filters

    def __len__(self) -> int:
        with asking(self.version):
            answer = self.client.count(index=self._parts(), params=PATIENT)
        return int(answer["count"])

    def upsert(
        self, rows: Rows, vectors: Floats, attributes: Attributes = NO_ATTRIBUTES
    ) -> Mapping[int, InvalidInput]:
        checked_vectors(self, rows, vectors, attributes)
        bad = refused(rows, vectors)
        good = [at for at in range(len(rows)) if at not in bad]
        stored = self._stored(np.asarray(vectors, np.float32)[good]) if good else []
        place = {str(rows[at]): at for at in good}
        documents = {
            str(rows[at]): {"row": int(rows[at]), "vector": vector}
            | {name: list(values[at]) for name, values in attributes.items()}
            for at, vector in zip(good, stored, strict=True)
        }
        for row, reason in self._bulk(self._put(documents)):
            remedy = f"OpenSearch refused it: {reason}"
            bad[place[row]] = InvalidInput("row", int(row), remedy)
        return bad

    def delete(self, rows: Rows) -> None:
        parts = (MAIN, FRESH) if self.whole else (MAIN,)
        lines = (self._remove(part, str(row)) for row in rows.tolist() for part in parts)
        for row, reason in self._bulk(lines):
            raise StoreUnavailable(f"OpenSearch did not delete row {row}: {reason}")

    def refresh(self) -> None:
        with asking(self.version):
            self.client.indices.refresh(index=self._parts(), params=PATIENT)

    def search(self, vectors: Floats, k: int, where: Where = EVERYTHING) -> Neighbours:
        wanted = asked(self, vectors, k, where)
        scales, numbers = self._questions(wanted)
        lines: list[Any] = []
        for vector in numbers:
            # of a server that is only just back some parts may answer, and theirs is not the answer
            head = {"index": self._parts(), "allow_partial_search_results": False}
            lines += [head, self._query(vector, k, where)]
        with asking(self.version):
            answer = self.client.msearch(
                body=lines,
                params={
                    "request_timeout": self.search_s,
                    "filter_path": ",".join(ANSWERED + FAILED),
                    "max_concurrent_searches": len(wanted),
                },
            )
        found = Neighbours(
            np.full((len(wanted), k), -1, np.int32), np.full((len(wanted), k), np.nan, np.float32)
        )
        for at, one in enumerate(answer["responses"]):
            self._read(one, found.rows[at], found.scores[at], scales[at])
        return found

    def _parts(self) -> str:
        return f"{self.base}-{MAIN},{self.base}-{FRESH}"

    def _query(self, vector: Sequence[float], k: int, where: Where) -> dict[str, Any]:
        knn: dict[str, Any] = {"vector": vector, "k": k}
        knn["method_parameters"] = {"ef_search": max(k, self.settings.ef_search)}
        if where.any_of:
            terms = [{"terms": {name: sorted(values)}} for name, values in sorted(where.any_of.items())]
            knn["filter"] = {"bool": {"filter": terms}}
        # ids and sources are kept packed, and to unpack them took most of a search's time
        return {
            "size": k,
            "query": {"knn": {"vector": knn}},
            "stored_fields": "_none_",
            "docvalue_fields": ["row"],
        }

    def _read(self, answer: Mapping[str, Any], rows: Rows, scores: Floats, scale: float) -> None:
        """Fill in the hits of one question; of a row in both parts the fresh one counts."""
        if "error" in answer:
            _fail(self.version, int(answer["status"]), answer["error"])
        found: dict[int, tuple[bool, float]] = {}
        for hit in answer.get("hits", {}).get("hits", ()):
            row, fresh = int(hit["fields"]["row"][0]), hit["_index"].endswith(FRESH)
            if fresh or row not in found:
                found[row] = (fresh, hit["_score"])
        best = sorted(found.items(), key=lambda one: (-one[1][1], one[0]))
        rows[: len(best)] = [row for row, _ in best]
        scores[: len(best)] = self._products(np.asarray([score for _, (_, score) in best])) / scale

    def _products(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """What the plugin's scores were made of: they are never below 0, and inner products may be."""
        if self.settings.space == "cosinesimil":
            return 2.0 * scores - 1.0
        return np.where(scores >= 1.0, scores - 1.0, 1.0 - 1.0 / np.maximum(scores, 1e-12))

    def _questions(self, wanted: Floats) -> tuple[list[float], list[Any]]:
        """(what each answer's inner products are to be divided by, the vectors as they are sent)."""
        if self.settings.numbers != "byte":
            return [1.0] * len(wanted), wanted.tolist()
        largest = np.abs(wanted).max(axis=1)
        own = LARGEST_BYTE / np.where(largest > 0.0, largest, 1.0)
        sent = np.rint(wanted * own[:, None]).astype(np.int8).tolist()
        if self.settings.space == "cosinesimil":
            return [1.0] * len(wanted), sent
        return (own * (self.scale or 1.0)).tolist(), sent

    def _stored(self, vectors: Floats) -> list[Any]:
        if self.settings.numbers != "byte":
            return list(vectors.tolist())
        if self.scale is None:
            self.scale = self._found_scale(vectors)
        scaled = np.clip(np.rint(vectors * self.scale), -LARGEST_BYTE, LARGEST_BYTE)
        return list(scaled.astype(np.int8).tolist())

    def _found_scale(self, vectors: Floats) -> float:
        """From the first vectors that come; later ones may be larger by half before they are cut off."""
        self.scale = scale = LARGEST_BYTE / max(1.5 * float(np.abs(vectors).max()), 1e-12)
        with asking(self.version):
            self.client.indices.put_mapping(
                index=self._parts(), body={"_meta": _meta(self.name, self)}, params=PATIENT
            )
        return scale

    def _put(self, documents: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
        part = FRESH if self.whole else MAIN
        for row, document in documents.items():
            action = {"index": {"_index": f"{self.base}-{part}-write", "_id": row}}
            yield row, json.dumps(action), json.dumps(document)
            if self.whole:
                yield self._remove(MAIN, row)

    def _remove(self, part: str, row: str) -> tuple[str, ...]:
        return row, json.dumps({"delete": {"_index": f"{self.base}-{part}-write", "_id": row}})

    def _bulk(self, changes: Iterable[tuple[str, ...]]) -> Iterator[tuple[str, str]]:
        """Send the changes; (row, reason) of those that were refused. IndexGone where there is no index."""
        for batch in _batches(changes, DOCUMENTS_A_BULK):
            body = "\n".join(line for _, *lines in batch for line in lines) + "\n"
            with asking(self.version):
                answer = self.client.bulk(
                    body=body,
                    params=PATIENT
                    | {
                        "require_alias": "true",
                        "filter_path": "errors,items.*.error.type,items.*.error.reason,items.*.status",
                    },
                )
            if answer["errors"]:
                yield from self._refusals(batch, answer["items"])

    def _refusals(
        self, batch: Sequence[tuple[str, ...]], items: Sequence[Mapping[str, Any]]
    ) -> Iterator[tuple[str, str]]:
        for (row, *_), item in zip(batch, items, strict=True):
            (result,) = item.values()
            if "error" not in result:
                continue
            if result["status"] != 400:
                _fail(self.version, result["status"], result["error"])
            yield row, str(result["error"].get("reason"))


class OpenSearchIndexVersions:
    """The indexes of one app in one cluster, told from others by `name`."""

    def __init__(
        self, client: OpenSearch, name: str, settings: IndexSettings, *, search_s: float = SEARCH_S
    ) -> None:
        self._client, self._name, self._settings, self._search_s = client, name, settings, search_s

    def create(self, version: str, dimension: int) -> VectorIndex:
        state = self._there().states.get(version)
        if state in ("whole", "live"):
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
        alias = f"{self._name}-live"
        parts = [f"{index.base}-{part}" for part in (MAIN, FRESH)]
        actions = [
            {"remove": {"index": f"{self._base(other)}-*", "alias": alias}}
            for other, state in there.states.items()
            if state == "live"
        ]
        actions += [{"add": {"index": part, "alias": alias}} for part in parts]
        often = {"index": {"refresh_interval": MAIN_REFRESH}}
        with asking(version):
            self._client.indices.put_mapping(
                index=",".join(parts), body={"_meta": _meta(self._name, index)}, params=PATIENT
            )
            self._client.indices.put_settings(index=parts[0], body=often, params=PATIENT)
            self._client.indices.update_aliases(body={"actions": actions}, params=PATIENT)

    def open(self, version: str | None = None) -> VectorIndex:
        there = self._there()
        named = {name for name, state in there.states.items() if state == "live"}
        wanted = next(iter(named), None) if version is None else version
        if wanted is None or there.states.get(wanted, HALF_BUILT) == HALF_BUILT:
            raise absent(version, there.states)
        return self._index(there.meta[wanted])

    def drop(self, version: str) -> None:
        states = self._there().states
        if states.get(version) == "live":
            raise InvalidInput("version", version, IS_LIVE)
        if version in states:
            self._delete(version)

    def _there(self) -> _There:
        """What the cluster holds under our name, in one round trip."""
        with asking(None):
            found = self._client.indices.get(
                index=f"{self._name}-vectors-*",
                params=PATIENT | {"filter_path": "*.aliases,*.mappings._meta", "expand_wildcards": "all"},
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
            states[version] = "live" if live else "whole" if meta["whole"] else HALF_BUILT
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
            "mappings": mapping(self._settings, index.dimension, _meta(self._name, index)),
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
    """By version: "live", "whole" or "half built", and what its mapping says of it."""

    states: Mapping[str, str]
    meta: Mapping[str, Mapping[str, Any]]


def _meta(name: str, index: OpenSearchVectorIndex) -> dict[str, Any]:
    return {
        "name": name,
        "version": index.version,
        "dimension": index.dimension,
        "whole": index.whole,
        "scale": index.scale,
        "settings": asdict(index.settings),
    }


def _batches(changes: Iterable[tuple[str, ...]], size: int) -> Iterator[list[tuple[str, ...]]]:
    waiting = iter(changes)
    while batch := list(itertools.islice(waiting, size)):
        yield batch


@contextmanager
def asking(version: str | None) -> Iterator[None]:
    """Turn what the client raises into our errors; a question about the index of `version`, if about one."""
    try:
        yield
    except TransportError as error:
        status = error.status_code if isinstance(error.status_code, int) else 0
        _fail(version, status, {"type": error.error, "reason": str(error.info)[:300]}, error)
    except OpenSearchException as error:
        raise StoreUnavailable(f"OpenSearch answered what cannot be read: {error}") from error


def _fail(
    version: str | None, status: int, error: Mapping[str, Any], cause: Exception | None = None
) -> NoReturn:
    if status == HTTPStatus.NOT_FOUND:
        raise IndexGone(
            f"the index of vectors of version '{version}' is gone from OpenSearch; build and promote it again"
        ) from cause
    said = f"{error.get('type')}: {error.get('reason')}"
    raise StoreUnavailable(f"OpenSearch answered with status {status or 'none'}, {said}") from cause
