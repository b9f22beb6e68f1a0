"""The container contract of SageMaker: where a job finds its input and leaves its results."""

from __future__ import annotations

import json
import os
import sys
import tarfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from narrows.errors import InvalidInput, NarrowsError

ROOT = Path("/opt/ml")
ARCHIVE = "model.tar.gz"


@dataclass(frozen=True)
class Container:
    """One job's folders and its hyperparameters, which arrive as text or as JSON values.

    What lies in `checkpoints` outlives an interruption; None where the job was started without such a folder.
    """

    inputs: Path
    model: Path
    output: Path
    output_data: Path
    channels: Mapping[str, Path]
    hyperparameters: Mapping[str, Any]
    checkpoints: Path | None = None

    def channel(self, name: str) -> Path:
        """The folder of an input; InvalidInput where the job was started without it."""
        path = self.channels.get(name, self.inputs / name)
        if not path.is_dir():
            raise InvalidInput(f"channel.{name}", str(path), "start the job with this input channel")
        return path

    def has(self, name: str) -> bool:
        """Whether the job was started with this input, and it holds anything."""
        path = self.channels.get(name, self.inputs / name)
        return path.is_dir() and any(path.iterdir())

    def text(self, name: str, default: str = "") -> str:
        """A hyperparameter as text."""
        value = self.hyperparameters.get(name, default)
        return value if isinstance(value, str) else json.dumps(value)

    def number(self, name: str, default: float) -> float:
        """A hyperparameter as a number; InvalidInput for other text."""
        value = self.hyperparameters.get(name, default)
        try:
            return float(value)
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"hyperparameters.{name}", value, "give a number") from error

    def mapping(self, name: str) -> dict[str, Any]:
        """A hyperparameter that is a JSON object; {} where it is not given."""
        value = self.hyperparameters.get(name, {})
        try:
            found = json.loads(value) if isinstance(value, str) else value
        except ValueError as error:
            raise InvalidInput(f"hyperparameters.{name}", value, "give a JSON object") from error
        if not isinstance(found, dict):
            raise InvalidInput(f"hyperparameters.{name}", value, "give a JSON object")
        return found


def container_of(environ: Mapping[str, str]) -> Container:
    """The container that the variables of SageMaker's toolkit describe, or its fixed folders without them."""
    channels = {
        name.removeprefix("SM_CHANNEL_").lower(): Path(path)
        for name, path in environ.items()
        if name.startswith("SM_CHANNEL_")
    }
    inputs = Path(environ.get("SM_INPUT_DIR", ROOT / "input"))
    output = Path(environ.get("SM_OUTPUT_DIR", ROOT / "output"))
    return Container(
        inputs=inputs / "data",
        model=Path(environ.get("SM_MODEL_DIR", ROOT / "model")),
        output=output,
        output_data=Path(environ.get("SM_OUTPUT_DATA_DIR", output / "data")),
        channels=channels,
        hyperparameters=_hyperparameters(environ, inputs),
        checkpoints=_checkpoints(environ),
    )


def _checkpoints(environ: Mapping[str, str]) -> Path | None:
    """SageMaker makes its fixed folder only for a job that was started with a CheckpointConfig."""
    given = environ.get("SM_CHECKPOINT_DIR")
    folder = Path(given) if given else ROOT / "checkpoints"
    return folder if given or folder.is_dir() else None


def _hyperparameters(environ: Mapping[str, str], inputs: Path) -> dict[str, Any]:
    if "SM_HPS" in environ:
        text = environ["SM_HPS"]
    else:
        path = inputs / "config" / "hyperparameters.json"
        text = path.read_text(encoding="utf-8") if path.is_file() else "{}"
    try:
        found: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise InvalidInput("hyperparameters", text, "give one JSON object") from error
    return found


def run(job: Callable[[Container], None]) -> int:
    """Run a job under the contract; a failure is told in `failure` and by the exit status."""
    output = Path(os.environ.get("SM_OUTPUT_DIR", ROOT / "output"))
    try:
        container = container_of(os.environ)
        for folder in (container.model, container.output_data):
            folder.mkdir(parents=True, exist_ok=True)
        job(container)
    except Exception as error:  # noqa: BLE001  # whatever went wrong, the contract wants its reason in a file
        reason = str(error) if isinstance(error, NarrowsError) else f"{type(error).__name__}: {error}"
        output.mkdir(parents=True, exist_ok=True)
        (output / "failure").write_text(reason + "\n", encoding="utf-8")
        traceback.print_exc()
        return 1
    return 0


class Progress:
    """Lines for people on stderr, each with the seconds since the job began."""

    def __init__(self, job: str) -> None:
        self._job, self._begun = job, time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the job began."""
        return time.monotonic() - self._begun

    def say(self, text: str) -> None:
        """Write one line."""
        sys.stderr.write(f"[{self._job} {self.seconds:6.1f} s] {text}\n")
        sys.stderr.flush()


def unpacked(folder: Path, scratch: Path) -> Path:
    """The folder itself, or one where every `model.tar.gz` below it has been extracted side by side."""
    archives = sorted(folder.rglob("*.tar.gz"))
    if not archives:
        return folder
    scratch.mkdir(parents=True, exist_ok=True)
    for archive in archives:
        with tarfile.open(archive) as members:
            members.extractall(scratch, filter="data")
    return scratch


def write_json(path: Path, value: object) -> None:
    """Write a value as indented JSON; refuses nan, which JSON has not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")
