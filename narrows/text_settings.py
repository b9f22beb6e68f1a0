"""What makes vectors of what is written about items, as `[text_vectors]` in app.toml says."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast
from urllib.parse import urlsplit

from narrows.toml_reading import Table

Encoder = Literal["words", "onnx", "endpoint"]
Pooling = Literal["mean", "first"]
ENCODERS = ("words", "onnx", "endpoint")
MOST_DIMENSIONS = 4096


@dataclass(frozen=True)
class TextSettings:
    """Which encoder; "words" is fitted on the catalogue by every training, and needs nothing else.

    "onnx" runs the files `model` and `tokenizer` in the process: `tokens` of a text are read, and a model
    that gives a vector for each token has them averaged, or its first one taken. "endpoint" asks either
    `url`, by HTTP, or the SageMaker endpoint named `sagemaker`, for `timeout_s` at most; `model_version`
    is to change whenever what answers there does, since vectors of two models must never meet.
    """

    encoder: Encoder = "words"
    model: Path | None = None
    tokenizer: Path | None = None
    pooling: Pooling = "mean"
    tokens: int = 256
    url: str = ""
    sagemaker: str = ""
    model_version: str = ""
    dimension: int = 0
    timeout_s: float = 2.0


def read_text_vectors(table: Table, folder: Path) -> TextSettings:
    """The settings of a table; files are named from the app's `folder`, in which they lie."""
    encoder = cast(Encoder, table.text("encoder", "words", known=ENCODERS))
    read = {"onnx": _onnx, "endpoint": _endpoint}.get(encoder)
    settings = read(table, folder) if read else TextSettings()
    if encoder in ENCODERS:  # of a word that names none, what belongs to it cannot be told
        table.finish()
    return settings


def _onnx(table: Table, folder: Path) -> TextSettings:
    return TextSettings(
        encoder="onnx",
        model=_file(table, "model", folder),
        tokenizer=_file(table, "tokenizer", folder),
        pooling=cast(Pooling, table.text("pooling", "mean", known=("mean", "first"))),
        tokens=table.whole("tokens", 256, low=1, high=8192),
    )


def _endpoint(table: Table, folder: Path) -> TextSettings:  # noqa: ARG001  # read as the other kind is
    url, sagemaker = table.text("url", ""), table.text("sagemaker", "")
    if bool(url) == bool(sagemaker):
        value = url or None
        table.problem("url", value, "give either url or sagemaker, the name of a SageMaker endpoint")
    if url and not _is_http(url):
        table.problem("url", url, "write an address that starts with https:// or http://")
    return TextSettings(
        encoder="endpoint",
        url=url,
        sagemaker=sagemaker,
        model_version=table.text("model_version"),
        dimension=table.whole("dimension", low=1, high=MOST_DIMENSIONS),
        timeout_s=table.duration_s("timeout", 2.0),
    )


def _file(table: Table, key: str, folder: Path) -> Path | None:
    name = table.text(key)
    if not name:
        return None
    path = (folder / name).resolve()
    if not path.is_relative_to(folder.resolve()):
        table.problem(key, name, f"keep the file in {folder.name}/, beside app.toml, so that it is deployed")
    elif not path.is_file():
        table.problem(key, name, f"there is no such file in {folder.name}/; put it there")
    return path


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)
