"""Vectors of what is written about items: the encoder's protocol, and one that needs nothing but numpy.

The default hashes words into buckets, weighs them by rarity and keeps the strongest directions (latent
semantic analysis: Deerwester et al., 1990; the decomposition: Halko, Martinsson and Tropp, 2011). It is
fitted on an app's own catalogue and saved with the model; nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from narrows.errors import BundleError, EncoderMismatch
from narrows.retrieval import Floats
from narrows.settings import Catalogue

WORD = re.compile(r"\w+")
MOST_WORDS = 512
"""Of one text; what stands behind is not read."""
MOST_CHARACTERS = 20_000
TEXT_BYTES = 256
"""Of what is written about an item, as UTF-8: the snapshot keeps no more, so training may not read more."""
SPARE_DIRECTIONS = 10
ITERATIONS = 4


class TextEncoder(Protocol):
    """Turns texts into vectors; safe to call from several threads at once."""

    @property
    def dimension(self) -> int:
        """The length of every vector."""

    @property
    def fingerprint(self) -> str:
        """What tells it from all others: vectors of two fingerprints never meet."""

    def encode(self, texts: Sequence[str]) -> Floats:
        """float32[n, dimension], of length one; zeros for a text that says nothing to it.

        EncoderUnavailable where it lies elsewhere and does not answer.
        """


@dataclass(frozen=True, eq=False)
class HashedWords:
    """Words by hash: `rarity` float32[buckets] weighs them, `directions` float32[buckets, dimension]."""

    rarity: Floats
    directions: Floats

    @property
    def dimension(self) -> int:
        return int(self.directions.shape[1])

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256(np.ascontiguousarray(self.rarity).tobytes())
        digest.update(np.ascontiguousarray(self.directions).tobytes())
        return f"words:{digest.hexdigest()[:32]}"

    def encode(self, texts: Sequence[str]) -> Floats:
        found = np.zeros((len(texts), self.dimension), np.float32)
        for row, text in enumerate(texts):
            buckets, counts = _counted(text, len(self.rarity))
            if len(buckets):
                weights = _weights(counts) * self.rarity[buckets]
                found[row] = weights @ self.directions[buckets]
        return _unit(found)


@dataclass(frozen=True)
class Elsewhere:
    """An encoder that a model was trained with, and that is not in the model's file."""

    fingerprint: str
    dimension: int

    def encode(self, texts: Sequence[str]) -> Floats:
        """Always EncoderMismatch: no other encoder may stand in."""
        raise EncoderMismatch(
            f"{len(texts)} texts need the text encoder {self.fingerprint!r} ({self.dimension} numbers), "
            "which made the model's vectors, and [text_vectors] in app.toml names another; set it back, or "
            "train again"
        )


def encoder_arrays(encoder: TextEncoder) -> dict[str, NDArray[Any]]:
    """What a model's file keeps of its encoder: a fitted one whole, of another what it is known by."""
    if isinstance(encoder, HashedWords):
        return {"rarity": encoder.rarity, "directions": encoder.directions}
    return {
        "encoder_fingerprint": np.asarray(encoder.fingerprint),
        "encoder_dimension": np.asarray(encoder.dimension),
    }


def kept_encoder(arrays: Mapping[str, NDArray[Any]], file: object) -> TextEncoder:
    """The encoder of a model's file; BundleError where it says nothing of one."""
    if "rarity" in arrays and "directions" in arrays:
        return HashedWords(arrays["rarity"], arrays["directions"])
    if "encoder_fingerprint" in arrays and "encoder_dimension" in arrays:
        return Elsewhere(str(arrays["encoder_fingerprint"]), int(arrays["encoder_dimension"]))
    raise BundleError(f"{file} does not say which text encoder it was trained with; train again")


def found_encoder(kept: TextEncoder, configured: TextEncoder | None) -> TextEncoder:
    """The encoder of a model's vectors: its own, or the app's if it is the very one, else one that refuses.

    A model that carries its encoder goes on with it, whatever the app has been told since.
    """
    if not isinstance(kept, Elsewhere) or configured is None:
        return kept
    same = (configured.fingerprint, configured.dimension) == (kept.fingerprint, kept.dimension)
    return configured if same else kept


def fit_hashed_words(
    texts: Sequence[str], generator: np.random.Generator, *, dimension: int = 64, buckets: int = 1 << 14
) -> HashedWords:
    """The encoder of a catalogue; fewer directions than asked for where the texts do not span as many."""
    counted = [_counted(text, buckets) for text in texts]
    table = _Table.of(counted, buckets)
    rarity = table.rarity()
    table = table.weighed(rarity)
    directions = np.zeros((buckets, dimension), np.float32)
    found = _directions(table, dimension, generator)
    directions[table.used, : found.shape[1]] = found
    return HashedWords(rarity, directions)


def documents(table: Mapping[str, Sequence[Any]], catalogue: Catalogue) -> list[str]:
    """What is written about each item of a table: its text columns, categories and brand."""
    present = [name for name in document_names(catalogue) if name in table]
    count = len(next(iter(table.values()), ()))
    parts = [[_written(value, name == catalogue.categories) for value in table[name]] for name in present]
    return [cut(" ".join(part[row] for part in parts), TEXT_BYTES) for row in range(count)]


def text_marks(texts: Sequence[str]) -> NDArray[np.float64]:
    """float64[n]: a number that tells each text from others, nan for one that says nothing.

    Blanks between words tell nothing: a table with an empty column more has another number of them.
    """
    return np.asarray([_mark(one) for one in texts], np.float64)


def _mark(text: str) -> float:
    words = text.rstrip("\0").split()  # arrays of bytes do not keep the last zeros
    digest = hashlib.blake2b(" ".join(words).encode(), digest_size=6).digest()
    return float(int.from_bytes(digest)) if words else float("nan")


def document_names(catalogue: Catalogue) -> list[str]:
    """The columns in which it stands what is written about an item, each once."""
    return [name for name in dict.fromkeys((*catalogue.text, catalogue.categories, catalogue.brand)) if name]


def cut(text: str, size: int) -> str:
    """As many of its characters as fit into so many bytes of UTF-8."""
    return text[:size].encode(errors="ignore")[:size].decode(errors="ignore")


def _written(value: Any, several: bool = False) -> str:
    if value is None or (isinstance(value, float) and np.isnan(value)):
        return ""
    if isinstance(value, str):
        return value[:MOST_CHARACTERS].replace("|", " ") if several else value[:MOST_CHARACTERS]
    try:
        return " ".join(str(part) for part in list(value)[:MOST_WORDS] if part is not None)
    except TypeError:
        return str(value)


def _counted(text: str, buckets: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(buckets in use, how often each) of a text; the hash is the same on every machine."""
    words = WORD.findall(text[:MOST_CHARACTERS].lower())[:MOST_WORDS]
    hashed = np.asarray([zlib.crc32(word.encode()) % buckets for word in words], np.int64)
    return np.unique(hashed, return_counts=True)


def _weights(counts: NDArray[np.int64]) -> Floats:
    return (1.0 + np.log(counts)).astype(np.float32)


def _unit(vectors: Floats) -> Floats:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.where(lengths > 0, lengths, 1.0), np.float32)


@dataclass(frozen=True, eq=False)
class _Table:
    """Texts by words: `values` at (`rows`, `columns`), in order of rows; column `c` is bucket `used[c]`."""

    rows: NDArray[np.int64]
    columns: NDArray[np.int64]
    values: Floats
    used: NDArray[np.int64]
    texts: int
    buckets: int

    @staticmethod
    def of(counted: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]], buckets: int) -> _Table:
        empty = np.empty(0, np.int64)
        every = np.concatenate([empty, *(found for found, _ in counted)])
        counts = np.concatenate([empty, *(counts for _, counts in counted)])
        used, columns = np.unique(every, return_inverse=True)
        rows = np.repeat(np.arange(len(counted)), [len(found) for found, _ in counted])
        return _Table(rows, columns, _weights(counts), used, len(counted), buckets)

    def rarity(self) -> Floats:
        """float32[buckets]: the logarithm of one in how many texts a word stands, smoothed."""
        held = np.zeros(self.buckets)
        held[self.used] = np.bincount(self.columns, minlength=len(self.used))
        return (np.log((1.0 + self.texts) / (1.0 + held)) + 1.0).astype(np.float32)

    def weighed(self, rarity: Floats) -> _Table:
        values = self.values * rarity[self.used[self.columns]]
        lengths = np.sqrt(np.bincount(self.rows, values * values, self.texts))
        return _Table(
            self.rows,
            self.columns,
            (values / lengths[self.rows]).astype(np.float32),
            self.used,
            self.texts,
            self.buckets,
        )

    def times(self, right: Floats) -> Floats:
        """[texts, k] of [columns, k]."""
        return _summed(self.rows, self.values[:, None] * right[self.columns], self.texts)

    def turned_times(self, right: Floats) -> Floats:
        """[columns, k] of [texts, k]."""
        order = np.argsort(self.columns, kind="stable")
        parts = self.values[order, None] * right[self.rows[order]]
        return _summed(self.columns[order], parts, len(self.used))


def _summed(groups: NDArray[np.int64], parts: Floats, size: int) -> Floats:
    """The sums of consecutive rows of the same group."""
    found = np.zeros((size, parts.shape[1]), np.float32)
    if len(groups):
        begins = np.flatnonzero(np.diff(groups, prepend=-1))
        found[groups[begins]] = np.add.reduceat(parts, begins, axis=0)
    return found


def _directions(table: _Table, dimension: int, generator: np.random.Generator) -> Floats:
    """[columns, at most `dimension`]: the strongest right singular vectors."""
    width = min(dimension + SPARE_DIRECTIONS, table.texts, len(table.used))
    if not width:
        return np.zeros((len(table.used), 0), np.float32)
    span = generator.normal(size=(len(table.used), width)).astype(np.float32)
    for _ in range(ITERATIONS):
        left, _ = np.linalg.qr(table.times(span))
        span, _ = np.linalg.qr(table.turned_times(left))
    _, strengths, right = np.linalg.svd(table.times(span), full_matrices=False)
    strong = int((strengths > 1e-4 * max(float(strengths[0]), 1e-12)).sum())
    return np.asarray(span @ right.T[:, : min(dimension, strong)], np.float32)
