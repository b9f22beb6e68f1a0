"""The item network of the live model bundle, for items that come between two trainings."""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from narrows.control import ControlTable, Pointer, model_pointer, model_prefix
from narrows.errors import BundleError, NarrowsError, StoreUnavailable
from narrows.freshening import ItemEncoder
from narrows.ranking import MANIFEST, read_manifest
from narrows.retrieval import Floats, Rows
from narrows.sources import two_tower
from narrows.sources.rows import look_up
from narrows.text_vectors import TextEncoder

Get = Callable[[str], bytes | None]
RETRY_S = 30.0
MOST_KEPT = 3
"""The live one's, its predecessor's, and one that is about to be live."""


@dataclass(frozen=True, eq=False)
class BundleEncoder:
    """The item network of one bundle, whose version its vectors have.

    `trained` has the ids of the items that it was trained on, sorted, and `numbers` its numbers of them.
    """

    version: str
    network: two_tower.ItemNetwork
    trained: NDArray[np.str_]
    numbers: Rows

    @classmethod
    def of(cls, version: str, item_ids: NDArray[np.str_], network: two_tower.ItemNetwork) -> BundleEncoder:
        """Of the network's items by number."""
        order = np.argsort(item_ids).astype(np.int32)
        return cls(version, network, item_ids[order], order)

    def embed(self, item_ids: Sequence[str], texts: Sequence[str]) -> Floats:
        """float32[n, d] of ids and what is written; EncoderUnavailable where that cannot be read."""
        at = np.searchsorted(self.trained, np.asarray(item_ids, str))
        found = look_up(self.trained, at, "") == np.asarray(item_ids, str)
        return self.network.embed(np.where(found, look_up(self.numbers, at, -1), -1), texts)


@dataclass(frozen=True)
class Unread:
    """In place of an encoder that cannot be read: items are stored, and told why they have no vector."""

    error: NarrowsError
    version: str = ""

    def embed(self, item_ids: Sequence[str], texts: Sequence[str]) -> Floats:  # noqa: ARG002  # whatever they say
        """The error."""
        raise self.error


class LiveEncoder:
    """The encoder of the live bundle, loaded again when another one is promoted."""

    def __init__(
        self,
        app: str,
        control: ControlTable,
        get: Get,
        text_encoder: TextEncoder | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`text_encoder` is the one that the app asks for, if not for words; `clock` is in seconds."""
        self._clock = clock
        self._unread: tuple[float, NarrowsError] | None = None
        self._text_encoder = text_encoder
        self._name = model_pointer(app)
        self._control = control
        self._get = get
        self._pointer: Pointer | None = None
        self._encoder: BundleEncoder | None = None

    def current(self) -> BundleEncoder | None:
        """None before the first model, and where the live one has no item network."""
        pointer = self._control.read(self._name)
        if pointer != self._pointer:
            self._encoder = self._loaded(pointer) if pointer else None
            self._pointer = pointer
        return self._encoder

    def at_hand(self) -> ItemEncoder | None:
        """`current`; while that cannot be read the one before, or without any one that says why.

        For whoever cannot wait for a model. It is tried again every `RETRY_S`.
        """
        if self._unread is None or self._clock() >= self._unread[0]:
            try:
                found, self._unread = self.current(), None
                return found
            except (BundleError, StoreUnavailable) as error:
                self._unread = (self._clock() + RETRY_S, error)
        return self._encoder or Unread(self._unread[1])

    def _loaded(self, pointer: Pointer) -> BundleEncoder | None:
        return _loaded(pointer.version, pointer.prefix, self._get, self._text_encoder)


class KeptEncoders:
    """The encoders of promoted models by version, each loaded once."""

    def __init__(self, get: Get, text_encoder: TextEncoder | None = None) -> None:
        self._get = get
        self._text_encoder = text_encoder
        self._encoders: dict[str, BundleEncoder | None] = {}

    def of(self, version: str) -> BundleEncoder | None:
        """None where the model has no item network; BundleError where there is none, or a damaged one."""
        if version not in self._encoders:
            found = _loaded(version, model_prefix(version), self._get, self._text_encoder)
            newest = list(self._encoders.items())[1 - MOST_KEPT :]
            self._encoders = {**dict(newest), version: found}
        return self._encoders[version]


def _loaded(version: str, prefix: str, get: Get, text_encoder: TextEncoder | None) -> BundleEncoder | None:
    with tempfile.TemporaryDirectory() as scratch:
        manifest = _copied(prefix, MANIFEST, get, Path(scratch))
        files = read_manifest(manifest.parent, verify=False).files
        if two_tower.FILE not in files:
            return None
        network = _copied(prefix, two_tower.FILE, get, Path(scratch))
        with network.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != files[two_tower.FILE]:
            raise BundleError(f"{prefix}/{two_tower.FILE} differs from its manifest; promote again")
        item_ids, items = two_tower.load_items(network)
        return BundleEncoder.of(version, item_ids, items.reading(text_encoder))


def _copied(prefix: str, file: str, get: Get, folder: Path) -> Path:
    data = get(f"{prefix}/{file}")
    if data is None:
        raise BundleError(f"{prefix}/{file} is not there; promote the model again")
    (folder / file).write_bytes(data)
    return folder / file
