"""A learned source whose schedule is not due: its finished models are carried over into the new run's bundle.

What a job finished lies in its folder of checkpoints, which is one of the source and outlives its runs. Items
that came since are placed by what is written about them, as after any training.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from narrows.errors import BundleError
from narrows.sources import SOURCES
from sagemaker_jobs.container import Container, write_json
from sagemaker_jobs.optimiser import Recipe
from sagemaker_jobs.training_set import TrainingSet, app_of

FINISHED, ABOUT = "finished", "finished.json"
DUE_AT = 0.9
"""Of the interval: a run of the same hour may begin a little earlier than the last one ended."""


@dataclass(frozen=True, eq=False)
class Finished:
    """What earlier runs finished of one source; `made_by` has to be the same for it to be taken again."""

    name: str
    parts: tuple[str, ...]
    labels: int
    made_by: Mapping[str, Any]
    every_s: float
    folder: Path | None

    @classmethod
    def of(cls, container: Container, name: str, data: TrainingSet, recipe: Recipe) -> Finished:
        """Without an app there is no schedule, without checkpoints nothing is kept: then it is trained."""
        app = app_of(container)
        every_s = app.training.interval_s(name) if app else float("nan")
        made_by = {"app": container.text("app"), "recipe": asdict(recipe), "reading": repr(data.reading)}
        made_by["catalogue"] = repr(app.catalogue) if app else ""
        kept = container.checkpoints / FINISHED if container.checkpoints else None
        return cls(name, tuple(data.parts), data.labels, made_by, every_s, kept)

    def keep(self, model: Path, version: str, now: float) -> None:
        """Keep what the job has just written, and when it was."""
        if self.folder is None:
            return
        shutil.rmtree(self.folder, ignore_errors=True)
        digests = {}
        for part in self.parts:
            target = self._model(self.folder, part)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self._model(model, part), target)
            digests[part] = _digest(target)
        summary = json.loads((model / f"{self.name}.json").read_text(encoding="utf-8"))
        about = {"version": version, "at": now, "made_by": self.made_by, "models": digests}
        write_json(self.folder / ABOUT, {**about, "summary": summary})

    def why_train(self, now: float) -> str:
        """Why the source has to be trained at this moment, "" where what is kept can be taken again.

        Labels that the kept models have seen would leak into the ranker: then it is trained before its time.
        """
        about = self._about()
        if about is None:
            return "nothing is kept of an earlier run"
        if not now - about["at"] < DUE_AT * self.every_s:
            return f"due: trained {_days(now - about['at'])} ago, by schedule every {_days(self.every_s)}"
        if about["made_by"] != json.loads(json.dumps(self.made_by)):
            return f"{about['version']} was trained with other settings"
        if about["summary"]["labels_per_user"] < self.labels:
            return f"{about['version']} was fitted with events that are labels now"
        return self._damage(about)

    def carry(self, model: Path, now: float) -> str:
        """Put the kept models where the job's own would be; returns what was done, in a sentence."""
        about = self._about()
        if about is None or self.folder is None:
            raise BundleError("nothing is kept of an earlier run: train")
        for part in self.parts:
            target = self._model(model, part)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(self._model(self.folder, part), target)
        carried = {"carried_from": about["version"], "trained_at": about["at"]}
        write_json(model / f"{self.name}.json", {**about["summary"], **carried})
        age, every = _days(now - about["at"]), _days(self.every_s)
        return f"not due: carried over from {about['version']}, trained {age} ago, by schedule every {every}"

    def _about(self) -> dict[str, Any] | None:
        path = self.folder / ABOUT if self.folder else None
        return json.loads(path.read_text(encoding="utf-8")) if path and path.is_file() else None

    def _damage(self, about: Mapping[str, Any]) -> str:
        """What is wrong with the kept files, "" for nothing: an interruption may have left a part of them."""
        assert self.folder is not None
        for part in self.parts:
            path = self._model(self.folder, part)
            if not path.is_file() or _digest(path) != about["models"].get(part):
                return f"{about['version']} is not kept whole: {part}/{path.name} differs"
            try:
                SOURCES[self.name].load(path)
            except BundleError as error:
                return str(error)
        return ""

    def _model(self, folder: Path, part: str) -> Path:
        return folder / part / SOURCES[self.name].FILE


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _days(seconds: float) -> str:
    return f"{seconds / 86_400.0:.1f} days"
