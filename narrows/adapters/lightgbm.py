"""LightGBM's scoring through its C library alone: small enough for a function's bundle."""

from __future__ import annotations

import ctypes
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from narrows.errors import BundleError, InvalidInput, NarrowsError

LIBRARY = "lib_lightgbm.so"
FLOAT32 = 0
RAW_SCORE = 1
ROW_MAJOR = 1
PARAMETERS = b"num_threads=1 predict_disable_shape_check=false"


class LibraryUnavailable(NarrowsError):
    """LightGBM's shared library, or one that it needs, is not on this machine."""


class LightGbmScorer:
    """A trained booster; may be asked from several threads at once, each call runs on its caller's thread."""

    def __init__(self, model: str, library: ctypes.CDLL) -> None:
        self._library = library
        self._handle = ctypes.c_void_p()
        iterations = ctypes.c_int(0)
        self._call(
            "LGBM_BoosterLoadModelFromString",
            ctypes.c_char_p(model.encode()),
            ctypes.byref(iterations),
            ctypes.byref(self._handle),
        )
        count = ctypes.c_int(0)
        self._call("LGBM_BoosterGetNumFeature", self._handle, ctypes.byref(count))
        self.tree_count = iterations.value
        self.feature_count = count.value

    def predict(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """float64[n] raw scores for float32[n, feature_count]; nan is a missing value."""
        matrix = np.ascontiguousarray(features, np.float32)
        if matrix.ndim != 2 or matrix.shape[1] != self.feature_count:
            raise InvalidInput("features", matrix.shape, f"give a matrix with {self.feature_count} columns")
        scores = np.empty(len(matrix), np.float64)
        if not len(matrix):
            return scores
        length = ctypes.c_int64(0)
        self._call(
            "LGBM_BoosterPredictForMat",
            self._handle,
            matrix.ctypes.data_as(ctypes.c_void_p),
            ctypes.c_int(FLOAT32),
            ctypes.c_int32(matrix.shape[0]),
            ctypes.c_int32(matrix.shape[1]),
            ctypes.c_int(ROW_MAJOR),
            ctypes.c_int(RAW_SCORE),
            ctypes.c_int(0),
            ctypes.c_int(-1),
            ctypes.c_char_p(PARAMETERS),
            ctypes.byref(length),
            scores.ctypes.data_as(ctypes.POINTER(ctypes.c_double)),
        )
        return scores

    def __del__(self) -> None:
        if getattr(self, "_handle", None):
            self._library.LGBM_BoosterFree(self._handle)

    def _call(self, function: str, *arguments: Any) -> None:
        if getattr(self._library, function)(*arguments) != 0:
            reason = self._library.LGBM_GetLastError().decode(errors="replace")
            raise BundleError(f"LightGBM refused ({function}): {reason}; train the ranker again")


def load_scorer(path: Path, *, library: Path | None = None) -> LightGbmScorer:
    """The booster that LightGBM saved as text at `path`.

    `library` is the shared library, by default the one inside the installed `lightgbm` package, which is
    found but not imported.
    """
    try:
        model = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{path} cannot be read ({error}); copy the bundle again") from error
    if not model.startswith("tree") or "end of trees" not in model:
        raise BundleError(f"{path} is not a complete LightGBM model; copy the bundle again")
    return LightGbmScorer(model, open_library(library or find_library()))


def find_library() -> Path:
    """Where the installed `lightgbm` package keeps its shared library."""
    spec = importlib.util.find_spec("lightgbm")
    for root in (spec.submodule_search_locations or []) if spec else []:
        for folder in ("lib", "bin", "."):
            path = Path(root) / folder / LIBRARY
            if path.is_file():
                return path
    raise LibraryUnavailable(
        f"{LIBRARY} was not found: install the 'lightgbm' package, or pass the path of the library"
    )


def open_library(path: Path) -> ctypes.CDLL:
    """The C library; LibraryUnavailable says what it lacks, usually libgomp."""
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise LibraryUnavailable(
            f"{path} cannot be loaded ({error}); it needs libgomp.so.1: install libgomp (apt: libgomp1, "
            "dnf: libgomp) or put libgomp.so.1 into a folder of LD_LIBRARY_PATH"
        ) from error
    library.LGBM_GetLastError.restype = ctypes.c_char_p
    library.LGBM_BoosterFree.argtypes = [ctypes.c_void_p]
    return library
