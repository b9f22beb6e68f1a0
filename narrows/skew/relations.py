"""What two columns of numbers tell of each other: overflow, a filled gap, or a change of scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence

from narrows.features.registry import MISSING_SUFFIX
from narrows.skew.comparing import Cell, Row, Value, Values, numbers

WORDS = (16, 32, 64)
FEWEST_POINTS = 4
FIT = 1e-6


def overflowed(left: Value, right: Value) -> bool:
    """Whether one number is what an integer of 16, 32 or 64 bits makes of the other: wrapped or cut off.

    >>> overflowed(3_000_000_000.0, -1_294_967_296.0), overflowed(2_147_483_647.0, 3e9), overflowed(7.0, 9.0)
    (True, True, False)
    """
    if not isinstance(left, float) or not isinstance(right, float) or left == right:
        return False
    small, big = sorted((left, right), key=abs)
    return any(_wrapped(small, big, bits) or _cut_off(small, big, bits) for bits in WORDS)


def _wrapped(small: float, big: float, bits: int) -> bool:
    """Within one of a multiple of 2^bits: an integer drops the fraction as well."""
    size = 2.0**bits
    difference = abs(big - small)
    turns = round(difference / size)
    slack = max(1.0, 1e-12 * abs(big))
    fits = abs(small) < size and abs(big) >= size / 2
    return turns >= 1 and fits and abs(difference - turns * size) < slack


def _cut_off(small: float, big: float, bits: int) -> bool:
    limit = 2.0 ** (bits - 1)
    return small in (limit - 1.0, limit, -limit) and abs(big) > limit and (small > 0) == (big > 0)


def overflows(value: Value) -> bool:
    """Whether a number is beyond a signed integer of 32 bits.

    >>> overflows(2_147_483_648.0)
    True
    """
    return isinstance(value, float) and not -(2.0**31) <= value < 2.0**31


def filled(cases: Sequence[tuple[Row, Values]], cells: Collection[Cell]) -> set[Cell]:
    """The cells where one side has a number in place of a missing value, the same one in every row.

    `cases` are the diverging rows with what the events honestly give. A side that takes a true zero for
    missing counts too.
    """
    fills: dict[str, dict[int, float | None]] = {}
    for number, name in cells:
        base = name.removesuffix(MISSING_SUFFIX)
        row, honest = cases[number]
        fills.setdefault(base, {})[number] = _fill(row, honest, base)
    constant = {
        base for base, found in fills.items() if len(set(found.values())) == 1 and None not in found.values()
    }
    return {cell for cell in cells if cell[1].removesuffix(MISSING_SUFFIX) in constant}


def _fill(row: Row, honest: Values, base: str) -> float | None:
    """The number that stands for a missing value, None where that is not what happened."""
    names = (base, base + MISSING_SUFFIX)
    for true, odd in ((row.served, row.recomputed), (row.recomputed, row.served)):
        value, given = honest.get(base), odd.get(base)
        if any(true.get(name) != honest.get(name) for name in names):
            continue
        if is_missing(honest, base):
            return given if isinstance(given, float) else None
        if is_missing(odd, base) and isinstance(value, float):
            return value if value in (0.0, given) else None
    return None


def is_missing(values: Values, name: str) -> bool:
    """Whether a value is only a default, or undefined."""
    flag = values.get(name + MISSING_SUFFIX)
    return values.get(name) is None if flag is None else flag == 1.0


def rescaled(rows: Sequence[Row], name: str) -> str | None:
    """The one formula that turns every served number of a feature into its recomputed one; None for none.

    A shift without a factor is not taken for a normalisation, nor are fewer than four rows.
    """
    points = [(served, again) for _, served, again in numbers(rows, name)]
    if len(points) < FEWEST_POINTS:
        return None
    for left, right, flip in (("served", "recomputed", False), ("recomputed", "served", True)):
        xs, ys = zip(*((y, x) if flip else (x, y) for x, y in points), strict=True)
        for text, of in _FORMS.items():
            fit = _line([of(x) for x in xs], ys)
            if fit and not (text == "{}" and abs(fit[0] - 1.0) < FIT):
                return f"{right} = {fit[0]:.6g} x {text.format(left)} {fit[1]:+.6g}"
    return None


def _log1p(value: float) -> float:
    return math.log1p(value) if value > -1.0 else math.nan


_FORMS: dict[str, Callable[[float], float]] = {"{}": float, "log(1 + {})": _log1p}


def _line(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float] | None:
    """Factor and offset of the line through all the points, None when they lie on none."""
    if any(math.isnan(x) for x in xs) or len(set(xs)) < 3 or len(set(ys)) < 3:
        return None
    (low, at_low), (high, at_high) = _ends(zip(xs, ys, strict=True))
    factor = (at_high - at_low) / (high - low)
    offset = at_low - factor * low
    slack = FIT * (max(ys) - min(ys))
    fits = all(abs(y - (factor * x + offset)) <= slack for x, y in zip(xs, ys, strict=True))
    return (factor, offset) if fits else None


def _ends(points: Iterable[tuple[float, float]]) -> tuple[tuple[float, float], tuple[float, float]]:
    ordered = sorted(points)
    return ordered[0], ordered[-1]
