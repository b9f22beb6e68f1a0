"""What the training workflow asks of promote_model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from narrows.errors import InvalidInput

_NAMES = {"candidate": "model", "metrics": "evaluation", "version": "run"}
"""Each field, and the name that the workflow knows it by."""


@dataclass(frozen=True)
class Ask:
    """`candidate` and `metrics` are s3:// addresses; `version` names the model's folder."""

    candidate: str
    metrics: str
    version: str


def asked(event: Mapping[str, Any]) -> Ask:
    """The candidate to judge; InvalidInput names what is missing."""
    found: dict[str, str] = {}
    for name, other in _NAMES.items():
        value = event.get(name) or event.get(other)
        if not isinstance(value, str) or not value:
            raise InvalidInput(name, value, f"send a non-empty string, here or as '{other}'")
        found[name] = value
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", found["version"]):
        raise InvalidInput("version", found["version"], "send letters, digits, dots, hyphens; at most 100")
    return Ask(**found)
