"""A visitor's state as bytes, behind a header that names the format."""

from __future__ import annotations

import json
import zlib
from base64 import b85decode
from typing import Any

from narrows.errors import NarrowsError
from narrows.features.kinds import State
from narrows.features.state import VisitorState

_HEADER = b"NV1"


class UnreadableState(NarrowsError):
    """Stored bytes are not a visitor's state of a version that this code reads."""


def encode(state: VisitorState) -> bytes:
    """The state in a few hundred bytes, behind a header that names the format."""
    content = [state.features, state.applied, state.ring, state.do_not_show, state.updated_at, state.version]
    content += [state.merged_into, state.merged]
    text = json.dumps(content, separators=(",", ":"), default=dict, ensure_ascii=False, allow_nan=False)
    return _HEADER + zlib.compress(text.encode(), level=3)


def decode(data: bytes) -> VisitorState:
    """The state that `encode` wrote; `UnreadableState` for anything else."""
    if data[: len(_HEADER)] != _HEADER:
        raise UnreadableState(f"visitor state starts with {data[:3]!r}, this code reads {_HEADER!r}")
    try:
        content = json.loads(zlib.decompress(data[3:]))
        features, applied, ring, hidden, updated_at, version, *more = content
        merged_into, merged = more or (None, ())
        states = {key: _frozen(value) for key, value in features.items()}
        digests = tuple(_digest(one) for one in ring)
        return VisitorState(states, applied, digests, hidden, updated_at, version, merged_into, tuple(merged))
    except (zlib.error, ValueError, TypeError, AttributeError) as error:
        raise UnreadableState(f"visitor state of {len(data)} bytes is damaged: {error}") from error


def _digest(written: int | str) -> int:
    return written if isinstance(written, int) else int.from_bytes(b85decode(written), "big")


def _frozen(value: list[Any]) -> State:
    return tuple(tuple(one) if isinstance(one, list) else one for one in value)
