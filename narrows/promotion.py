"""A candidate model against the live one: the gate's verdict, and the one pointer it moves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from narrows.control import ControlTable, Pointer, model_pointer
from narrows.errors import BundleError, Conflict, InvalidInput
from narrows.evaluation.gate import decide
from narrows.ranking import read_manifest
from narrows.settings import App


@dataclass(frozen=True)
class Promotion:
    """Whether `version` is live now, and why, in a sentence."""

    promoted: bool
    reason: str
    version: str


class ModelFolders(Protocol):
    """Where candidates come from and where models are kept."""

    def fetch(self, uri: str, directory: Path) -> None:
        """Copy the candidate's files into the directory, unpacked."""

    def keep(self, directory: Path, version: str) -> str:
        """Store the files as the model `version`; returns its prefix."""


class Preparation(Protocol):
    """What serving needs of a model elsewhere than in its files: the index of its vectors."""

    def lacks(self, version: str) -> bool:
        """Whether there is nothing of it."""

    def build(self, directory: Path, version: str) -> object:
        """Make it, from the model's files. Twice is once."""

    def keep(self, live: str, previous: str) -> object:
        """`live` is live now, and `previous` ("" for none) the one to go back to: drop all others'."""

    def undo(self, version: str, live: str) -> object:
        """`version` does not come to be live, `live` is: drop what was made for it."""


def promote(
    candidate: str,
    evaluation: Mapping[str, Any],
    version: str,
    *,
    app: App,
    control: ControlTable,
    folders: ModelFolders,
    directory: Path,
    now: float,
    preparation: Preparation,
) -> Promotion:
    """Move the app's model pointer to the candidate if the gate says so.

    `candidate` is an address that `folders` understands; `evaluation` is {"candidate": ..., "current": ... or
    None}, or the candidate's alone. The files are verified before the pointer moves, and by then the
    preparation is made. Twice is once; where the model is live and its preparation gone, that is made again.
    """
    ours, theirs = _sides(evaluation)
    live = control.read(model_pointer(app.name))
    if live is not None and live.version == version:
        damage = ""
        if preparation.lacks(version) and not (damage := _fetched(candidate, app, folders, directory)):
            preparation.build(directory, version)
        preparation.keep(version, live.previous)
        return _already(version, damage)
    verdict = decide(ours, theirs, app.training.gate)
    if not verdict.promote:
        return Promotion(False, verdict.reason, version)
    damage = _fetched(candidate, app, folders, directory)
    if damage:
        return Promotion(False, damage, version)
    prefix = folders.keep(directory, version)
    preparation.build(directory, version)
    pointer = Pointer(version, prefix, now, previous=live.version if live else "")
    try:
        control.move(model_pointer(app.name), pointer, expected=live.version if live else None)
    except Conflict:
        return _lost(version, control.read(model_pointer(app.name)), preparation)
    preparation.keep(version, pointer.previous)
    return Promotion(True, verdict.reason, version)


def _fetched(candidate: str, app: App, folders: ModelFolders, directory: Path) -> str:
    """Copy the candidate's files; what is wrong with them, "" for nothing."""
    folders.fetch(candidate, directory)
    try:
        manifest = read_manifest(directory)
    except BundleError as error:
        return f"the candidate is damaged: {error}"
    if manifest.app != app.name:
        return f"the candidate was trained for {manifest.app!r}, not {app.name!r}"
    return ""


def _already(version: str, damage: str) -> Promotion:
    without = f"; its index is gone, and cannot be made again: {damage}" if damage else ""
    return Promotion(True, f"model {version} is live already{without}", version)


def _lost(version: str, live: Pointer | None, preparation: Preparation) -> Promotion:
    """Somebody else moved the pointer: to another model, or to this one by the same step, tried twice."""
    if live is not None and live.version == version:
        return _already(version, "")
    preparation.undo(version, live.version if live else "")
    return Promotion(False, "another model was promoted meanwhile; evaluate against that one", version)


def _sides(evaluation: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any] | None]:
    if isinstance(evaluation.get("candidate"), Mapping):
        return evaluation["candidate"], evaluation.get("current")
    if isinstance(evaluation.get("reports"), Mapping):
        return evaluation, None
    raise InvalidInput("metrics", sorted(evaluation), "an evaluation has 'candidate' or 'reports'")
