"""Columns of values as arrays: numbers stay, words become codes into a vocabulary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

CODES_KEPT = 4

Array = NDArray[Any]
Codes = NDArray[np.int32]
Values = Sequence[Any] | Array
Form = Literal["number", "category", "categories"]


def encoded(name: str, values: Values, known: tuple[str, ...]) -> tuple[dict[str, Array], tuple[str, ...]]:
    """The stored arrays of a column, and its words, which begin with the `known` ones."""
    form = _form(values)
    if form == "number":
        return {name: _numbers(values)}, ()
    if form == "category":
        codes, words = _codes(list(values), known)
        return {name: codes}, words
    flat = [word for several in values for word in (several or ())]
    codes, words = _codes(flat, known)
    lengths = np.fromiter((min(len(several or ()), CODES_KEPT) for several in values), np.int64, len(values))
    starts = np.cumsum([0, *(len(several or ()) for several in values)])[:-1]
    every = np.full((len(values), CODES_KEPT), -1, np.int32)
    for place in range(CODES_KEPT):
        has = np.flatnonzero(lengths > place)
        every[has, place] = codes[starts[has] + place]
    return {name: every[:, 0].copy(), f"{name}_all": every}, words


def _form(values: Values) -> Form:
    if isinstance(values, np.ndarray) and values.dtype.kind in "biufS":
        return "number"
    first = next((one for one in values if one is not None), None)
    if isinstance(first, str):
        return "category"
    return "number" if first is None or isinstance(first, int | float | np.number) else "categories"


def _numbers(values: Values) -> Array:
    if isinstance(values, np.ndarray) and values.dtype.kind in "biufS":
        return values
    return np.array([np.nan if one is None else one for one in values], np.float64)


def _codes(words: list[str | None], known: tuple[str, ...]) -> tuple[Codes, tuple[str, ...]]:
    """The code of each word, -1 for None and ""; new words follow the known ones in alphabetical order."""
    vocabulary = (*known, *sorted({word for word in words if word} - set(known)))
    code_of: dict[str | None, int] = {word: code for code, word in enumerate(vocabulary)}
    return np.fromiter((code_of.get(word, -1) for word in words), np.int32, len(words)), vocabulary


def recoded(codes: Array, words: tuple[str, ...], known: tuple[str, ...]) -> tuple[Array, tuple[str, ...]]:
    """Codes into `words` as codes into the known words, which new ones follow."""
    new_codes, vocabulary = _codes(list(words), known)
    return np.append(new_codes, np.int32(-1))[codes], vocabulary


def missing(dtype: np.dtype[Any]) -> float | int | bytes:
    return np.nan if dtype.kind == "f" else -1 if dtype.kind == "i" else b"" if dtype.kind == "S" else 0


def padded(array: Array, capacity: int) -> Array:
    padded = np.full((capacity, *array.shape[1:]), missing(array.dtype), array.dtype)
    padded[: len(array)] = array
    return padded
