"""What is live: named pointers to a model or a snapshot, moved by one conditional write."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Pointer:
    """Where the live version is; `previous` is the version to roll back to, "" for none."""

    version: str
    prefix: str
    promoted_at: float
    previous: str = ""


class ControlTable(Protocol):
    """Pointers by name: `model#<app>` and `snapshot#<app>`."""

    def read(self, name: str) -> Pointer | None:
        """The pointer, None before the first promotion; StoreUnavailable when it cannot tell."""

    def move(self, name: str, pointer: Pointer, *, expected: str | None) -> None:
        """Point at something else; Conflict unless the version `expected` stands there, None for none."""


def model_pointer(app: str) -> str:
    """The name of the pointer to an app's live model."""
    return f"model#{app}"


def snapshot_pointer(app: str) -> str:
    """The name of the pointer to an app's live item snapshot."""
    return f"snapshot#{app}"


def model_prefix(version: str) -> str:
    """Where a promoted model is kept."""
    return f"models/{version}"
