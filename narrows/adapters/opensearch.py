"""The distributed tier of the vector index: OpenSearch with its k-NN plugin.

The vectors of one embedding version lie in two OpenSearch indexes behind one search. A build fills `main`;
once it is promoted, changes go to `fresh`, which is small and refreshed every second, and take what they
replace out of `main`. `opensearch_versions` has which versions there are.
"""

from __future__ import annotations

import itertools
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from typing import Any, NoReturn
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

from narrows.errors import InvalidInput, RequestRefused, StoreUnavailable
from narrows.index_settings import IndexSettings
from narrows.retrieval import Floats, Rows
from narrows.vector_index import (
    EVERYTHING,
    NO_ATTRIBUTES,
    Attributes,
    IndexGone,
    Neighbours,
    Where,
    asked,
    checked_vectors,
    refused,
)

SEARCH_S, CHANGE_S = 0.5, 60.0
REFUSALS = (HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
DOCUMENTS_A_BULK = 1_000
CONNECTIONS = 32
LARGEST_BYTE = 127.0
MAIN, FRESH = "main", "fresh"
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
            raise RequestRefused(f"OpenSearch did not delete row {row}: {reason}")

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

    def finds(self, rows: Rows) -> NDArray[np.bool_]:
        """bool[n]: which of the rows a search can find: those put in since the last refresh not yet."""
        body = {
            "size": len(rows),
            "query": {"ids": {"values": [str(row) for row in rows.tolist()]}},
            "stored_fields": "_none_",
            "docvalue_fields": ["row"],
        }
        with asking(self.version):
            answer = self.client.search(index=self._parts(), body=body, params=PATIENT)
        found = [int(hit["fields"]["row"][0]) for hit in answer["hits"]["hits"]]
        return np.isin(rows, found)

    def meta(self) -> dict[str, Any]:
        """What its mappings say of it, by which it is opened again as it was made."""
        return {
            "name": self.name,
            "version": self.version,
            "dimension": self.dimension,
            "whole": self.whole,
            "scale": self.scale,
            "settings": asdict(self.settings),
        }

    def write_meta(self) -> None:
        """Let the mappings of both parts say what is true of it now."""
        with asking(self.version):
            self.client.indices.put_mapping(index=self._parts(), body={"_meta": self.meta()}, params=PATIENT)

    def _parts(self) -> str:
        return f"{self.base}-{MAIN},{self.base}-{FRESH}"

    def _query(self, vector: Sequence[float], k: int, where: Where) -> dict[str, Any]:
        knn: dict[str, Any] = {"vector": vector, "k": k}
        knn["method_parameters"] = {"ef_search": max(k, self.settings.ef_search)}
        if where.any_of:
            filters = [_filter(name, where) for name in sorted(where.any_of)]
            knn["filter"] = {"bool": {"filter": filters}}
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
        self.write_meta()
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


def _filter(name: str, where: Where) -> dict[str, Any]:
    terms = {"terms": {name: sorted(where.any_of[name])}}
    if name not in where.or_none:
        return terms
    none = {"bool": {"must_not": {"exists": {"field": name}}}}
    return {"bool": {"should": [terms, none], "minimum_should_match": 1}}


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
    kind = RequestRefused if status in REFUSALS else StoreUnavailable
    raise kind(f"OpenSearch answered with status {status or 'none'}, {said}") from cause
