"""The item network of the live model bundle, for items that come between two trainings."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from narrows.control import ControlTable, Pointer, model_pointer
from narrows.errors import BundleError
from narrows.ranking import MANIFEST, read_manifest
from narrows.retrieval import Floats
from narrows.sources import two_tower
from narrows.text_vectors import TextEncoder


@dataclass(frozen=True, eq=False)
class BundleEncoder:
    """The item network of one bundle, whose version its vectors have."""

    version: str
    network: two_tower.TwoTower

    def embed(self, texts: Sequence[str]) -> Floats:
        """float32[n, d] from what is written about items; EncoderUnavailable where that cannot be read."""
        return self.network.embed(texts)


class LiveEncoder:
    """The encoder of the live bundle, loaded again when another one is promoted."""

    def __init__(
        self,
        app: str,
        control: ControlTable,
        get: Callable[[str], bytes | None],
        text_encoder: TextEncoder | None = None,
    ) -> None:
        """`text_encoder` is the one that the app asks for, if not for words."""
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

    def _loaded(self, pointer: Pointer) -> BundleEncoder | None:
        with tempfile.TemporaryDirectory() as scratch:
            manifest = self._copied(pointer, MANIFEST, Path(scratch))
            files = read_manifest(manifest.parent, verify=False).files
            if two_tower.FILE not in files:
                return None
            network = self._copied(pointer, two_tower.FILE, Path(scratch))
            if hashlib.sha256(network.read_bytes()).hexdigest() != files[two_tower.FILE]:
                raise BundleError(
                    f"{pointer.prefix}/{two_tower.FILE} differs from its manifest; promote again"
                )
            return BundleEncoder(pointer.version, two_tower.load(network).reading(self._text_encoder))

    def _copied(self, pointer: Pointer, file: str, folder: Path) -> Path:
        data = self._get(f"{pointer.prefix}/{file}")
        if data is None:
            raise BundleError(f"{pointer.prefix}/{file} is not there; promote the model again")
        (folder / file).write_bytes(data)
        return folder / file
