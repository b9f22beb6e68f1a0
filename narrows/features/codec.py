"""A visitor's state as bytes, behind a header that names the format."""

from __future__ import annotations

import json
import struct
import zlib
from base64 import b85decode
from typing import Any

from narrows.errors import NarrowsError
from narrows.features.packing import Damaged, pack, unpack
from narrows.features.ring import SIZE, length
from narrows.features.state import VisitorState

HEADER = b"NV2"
JSON_HEADER = b"NV1"
_START = struct.Struct("<3sHHI")


class UnreadableState(NarrowsError):
    """Stored bytes are not a visitor's state of a version that this code reads."""


def encode(state: VisitorState) -> bytes:
    """Header, numbers of digests in both rings, checksum of all that follows; the digests as they are; the
    rest packed in columns."""
    content = (
        dict(state.features),
        dict(state.applied),
        dict(state.do_not_show),
        state.updated_at,
        state.version,
        state.merged_into,
        state.merged,
    )
    body = state.ring + state.ring_through + pack(content)
    return _START.pack(HEADER, length(state.ring), length(state.ring_through), zlib.crc32(body)) + body


def decode(data: bytes) -> VisitorState:
    """The state that `encode` wrote, now or as NV1; `UnreadableState` for anything else."""
    header = bytes(data[: len(HEADER)])
    if header not in (HEADER, JSON_HEADER):
        raise UnreadableState(f"visitor state starts with {header!r}, this code reads {HEADER!r} and NV1")
    try:
        return _unpacked(bytes(data)) if header == HEADER else _from_json(data)
    except (zlib.error, struct.error, Damaged, ValueError, TypeError, AttributeError) as error:
        raise UnreadableState(f"visitor state of {len(data)} bytes is damaged: {error}") from error


def _unpacked(data: bytes) -> VisitorState:
    _, own, through, checksum = _START.unpack_from(data)
    body = data[_START.size :]
    if zlib.crc32(body) != checksum:
        raise Damaged("its checksum is another one")
    between, end = SIZE * own, SIZE * (own + through)
    if len(body) < end:
        raise Damaged("its rings are cut short")
    ring, ring_through = body[:between], body[between:end]
    features, applied, hidden, updated_at, version, into, merged = unpack(body[end:])
    return VisitorState(features, applied, ring, hidden, updated_at, version, into, merged, ring_through)


def _from_json(data: bytes) -> VisitorState:
    """NV1: JSON, deflated; digests in base 85."""
    features, applied, ring, hidden, updated_at, version = json.loads(zlib.decompress(data[len(HEADER) :]))
    states = {key: _frozen(value) for key, value in features.items()}
    digests = b"".join(b85decode(one)[::-1] for one in ring)
    return VisitorState(states, applied, digests, hidden, updated_at, version)


def _frozen(value: list[Any]) -> tuple[Any, ...]:
    return tuple(tuple(one) if isinstance(one, list) else one for one in value)
