"""Text encoders beside the default one: a sentence encoder as an ONNX file, or behind HTTP or SageMaker.

Each is asked for some texts at a time and gives vectors of length one. Both kinds know themselves by a
fingerprint, which models keep, so that vectors of two encoders never meet.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from narrows.errors import BundleError, EncoderUnavailable, NarrowsError
from narrows.retrieval import Floats
from narrows.text_settings import Pooling, TextSettings
from narrows.text_vectors import MOST_CHARACTERS, TextEncoder

TEXTS_AT_ONCE = 32
ANSWER_BYTES = 16 * 2**20
SHOWN_BYTES = 120

Ask = Callable[[bytes], bytes]


def text_encoder(settings: TextSettings) -> TextEncoder | None:
    """The encoder that an app asks for; None for words, which every model carries itself.

    BundleError for an ONNX file or a tokenizer that cannot be read. An endpoint is not asked here.
    """
    if settings.encoder == "onnx" and settings.model and settings.tokenizer:
        return OnnxEncoder.open(settings.model, settings.tokenizer, settings.pooling, settings.tokens)
    if settings.encoder == "endpoint":
        known_as = f"endpoint:{settings.model_version}"
        return EndpointEncoder(known_as, settings.dimension, _asking(settings))
    return None


@dataclass(frozen=True, eq=False)
class OnnxEncoder:
    """A transformer in this process, by ONNX Runtime, and the tokenizer that it was trained with."""

    fingerprint: str
    dimension: int
    _session: Any
    _tokenizer: Any
    _pooling: Pooling

    @staticmethod
    def open(model: Path, tokenizer: Path, pooling: Pooling, tokens: int) -> OnnxEncoder:
        """Load both files; of a text the first `tokens` tokens are read."""
        onnxruntime, tokenizers = _packages()
        try:
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
            reader = tokenizers.Tokenizer.from_file(str(tokenizer))
            reader.enable_truncation(tokens)
            reader.enable_padding()
            digest = hashlib.sha256(model.read_bytes())
            digest.update(tokenizer.read_bytes())
            digest.update(f"{pooling} {tokens}".encode())
        except Exception as error:  # both libraries raise types of their own, down to a bare Exception
            raise BundleError(
                f"{model.name} with {tokenizer.name} is no text encoder ({error}); give an ONNX model that "
                "takes input_ids and attention_mask, and the tokenizer.json of the same model"
            ) from error
        made = OnnxEncoder("", 0, session, reader, pooling)
        dimension = made._vectors(["dimension"]).shape[1]
        return OnnxEncoder(f"onnx:{digest.hexdigest()[:32]}", dimension, session, reader, pooling)

    def encode(self, texts: Sequence[str]) -> Floats:
        """float32[n, dimension] of length one; zeros for a text of nothing but spaces."""
        return _by_parts(texts, self.dimension, self._vectors)

    def _vectors(self, texts: Sequence[str]) -> Floats:
        read = self._tokenizer.encode_batch(list(texts))
        known = {
            "input_ids": np.array([one.ids for one in read], np.int64),
            "attention_mask": np.array([one.attention_mask for one in read], np.int64),
            "token_type_ids": np.array([one.type_ids for one in read], np.int64),
        }
        try:
            names = [one.name for one in self._session.get_inputs()]
            (found, *_) = self._session.run(None, {name: known[name] for name in names})
        except Exception as error:  # ONNX Runtime has types of its own; a KeyError is an unknown input
            raise EncoderUnavailable(
                f"the ONNX model does not run ({error}); it may ask for input_ids, attention_mask and "
                "token_type_ids"
            ) from error
        return _pooled(np.asarray(found, np.float32), known["attention_mask"], self._pooling)


@dataclass(frozen=True, eq=False)
class EndpointEncoder:
    """A service that is sent {"texts": [...]} and answers {"vectors": [[...], ...]}, one for each text."""

    fingerprint: str
    dimension: int
    _ask: Ask

    def encode(self, texts: Sequence[str]) -> Floats:
        """float32[n, dimension]; EncoderUnavailable where it is late, fails, or answers anything else."""
        return _by_parts(texts, self.dimension, self._vectors)

    def _vectors(self, texts: Sequence[str]) -> Floats:
        answer = self._ask(json.dumps({"texts": list(texts)}).encode())
        try:
            vectors = np.asarray(json.loads(answer)["vectors"], np.float32)
        except (ValueError, TypeError, KeyError) as error:
            shown = answer[:SHOWN_BYTES].decode(errors="replace")
            raise EncoderUnavailable(
                f'the text encoder answered {shown!r}; it has to answer {{"vectors": [[...], ...]}}'
            ) from error
        if vectors.shape != (len(texts), self.dimension):
            raise EncoderUnavailable(
                f"the text encoder gave numbers of shape {vectors.shape} for {len(texts)} texts, and "
                f"[text_vectors] in app.toml says dimension = {self.dimension}: correct it and "
                "model_version, or the endpoint"
            )
        if not np.isfinite(vectors).all():
            raise EncoderUnavailable("the text encoder gave nan or infinity; it has to give finite numbers")
        return vectors


def _packages() -> tuple[Any, Any]:
    try:
        import onnxruntime  # a tenth of a second, and 60 MB, that only this encoder needs
        import tokenizers
    except ImportError as error:
        raise BundleError(f"{error}; install the extra: pip install narrows[text]") from error
    return onnxruntime, tokenizers


def _by_parts(texts: Sequence[str], dimension: int, vectors: Callable[[Sequence[str]], Floats]) -> Floats:
    """The vectors of the texts that say something, `TEXTS_AT_ONCE` at a time, of length one."""
    found = np.zeros((len(texts), dimension), np.float32)
    said = [row for row, text in enumerate(texts) if text.strip()]
    said.sort(key=lambda row: len(texts[row]))  # together with others of its length a text is padded less
    for part in _parts(said):
        found[part] = vectors([texts[row][:MOST_CHARACTERS] for row in part])
    lengths = np.linalg.norm(found, axis=1, keepdims=True)
    return np.asarray(found / np.where(lengths > 0, lengths, 1.0), np.float32)


def _parts(rows: Sequence[int]) -> Iterator[list[int]]:
    for start in range(0, len(rows), TEXTS_AT_ONCE):
        yield list(rows[start : start + TEXTS_AT_ONCE])


def _pooled(found: Floats, mask: Any, pooling: Pooling) -> Floats:
    """A vector for each text [n, d], of a model that gives these, or one for each token [n, t, d]."""
    if found.ndim == 2:
        return found
    if found.ndim != 3:
        raise EncoderUnavailable(f"the ONNX model's first output has shape {found.shape}; give [n, t, d]")
    if pooling == "first":
        return np.asarray(found[:, 0], np.float32)
    weights = mask[..., None].astype(np.float32)
    return np.asarray((found * weights).sum(axis=1) / np.maximum(weights.sum(axis=1), 1.0), np.float32)


def _asking(settings: TextSettings) -> Ask:
    return _by_sagemaker(settings) if settings.sagemaker else _by_http(settings.url, settings.timeout_s)


def _by_http(url: str, timeout_s: float) -> Ask:
    def ask(body: bytes) -> bytes:
        headers = {"content-type": "application/json", "accept": "application/json"}
        request = urllib.request.Request(url, body, headers)  # noqa: S310  # the settings allow http(s) alone
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as answer:  # noqa: S310
                return bytes(answer.read(ANSWER_BYTES))
        except urllib.error.HTTPError as error:
            error.close()
            raise EncoderUnavailable(f"the text encoder at {url} answered {error.code}") from error
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise EncoderUnavailable(
                f"the text encoder at {url} did not answer in {timeout_s:g} s ({reason})"
            ) from error

    return ask


def _by_sagemaker(settings: TextSettings) -> Ask:
    """The client is made at the first call, so that settings can be read where there are no credentials."""
    from narrows.adapters.aws import client, translated  # training on files has no AWS libraries

    made: list[Any] = []
    lock = threading.Lock()

    def runtime() -> Any:
        with lock:
            if not made:
                made.append(
                    client("sagemaker-runtime", read_timeout_s=settings.timeout_s, connect_timeout_s=1.0)
                )
        return made[0]

    def ask(body: bytes) -> bytes:
        try:
            with translated(f"invoke the text encoder's endpoint {settings.sagemaker}"):
                answer = runtime().invoke_endpoint(
                    EndpointName=settings.sagemaker, ContentType="application/json", Body=body
                )
                return bytes(answer["Body"].read(ANSWER_BYTES))
        except NarrowsError as error:
            raise EncoderUnavailable(str(error)) from error

    return ask
