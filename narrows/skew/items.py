"""How far the values of items are from the exact ones: approximate by day, exact by night."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from narrows.skew.comparing import alike


@dataclass(frozen=True)
class Item:
    """An item's values as of a moment in epoch seconds; None where it has none."""

    item_id: str
    at: float
    values: Mapping[str, float | None]


def errors(pairs: Sequence[tuple[Item, Mapping[str, float | None]]]) -> dict[str, Any]:
    """Beside the exact values: how many agree, and the mean and largest errors of those that are numbers.

    A relative error is a share of the exact value. Null where there was nothing to compare.
    """
    compared = [(value, exact.get(name)) for item, exact in pairs for name, value in item.values.items()]
    agreeing = sum(alike(left, right, exact=False) for left, right in compared)
    apart = [
        (abs(left - right), abs(right)) for left, right in compared if left is not None and right is not None
    ]
    relative = [error / size for error, size in apart if size > 0.0]
    return {
        "items": len(pairs),
        "values": len(compared),
        "exact_share": agreeing / len(compared) if compared else None,
        "mean_abs_error": math.fsum(error for error, _ in apart) / len(apart) if apart else None,
        "max_abs_error": max((error for error, _ in apart), default=None),
        "max_relative_error": max(relative, default=None),
    }
