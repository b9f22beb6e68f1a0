"""What serving costs: prices, and the cost of a million retrievals.

Prices are AWS's public list prices of us-east-1 in US dollars, without discounts. Lambda (arm64) and
SageMaker: as of August 2026. OpenSearch Service: the Price List API, read on 2026-10-01.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

HOUR_S, MONTH_S = 3600.0, 30 * 86_400.0
MILLION = 1_000_000.0
ONE_PROCESSOR_GB = 1769 / 1024
"""The memory at which Lambda gives a function one whole processor."""
FUNCTION_BASE_GB = 0.5
"""What a function holds besides its models: the interpreter, libraries, the item columns of a small shop."""
BUSY = 0.5
"""How busy the nodes of a search fleet are kept, so that a peak still fits."""


@dataclass(frozen=True)
class Price:
    """US dollars a unit, and what the unit is."""

    usd: float
    unit: str


PRICES: Mapping[str, Price] = MappingProxyType(
    {
        "function": Price(0.0000133334, "GB-second of Lambda on arm64"),
        "search": Price(1.060 / 16, "vCPU-hour of OpenSearch Service, c8g.4xlarge.search"),
        "training": Price(0.23, "hour of SageMaker training, ml.m5.xlarge"),
    }
)


@dataclass(frozen=True)
class Load:
    """What retrieval takes: milliseconds a request, of which `search_ms` on nodes of a search fleet.

    `held_bytes` lie in the process; `training_s` a month are spent on making the sources again, which
    `requests_per_s`, the mean over a month, share.
    """

    retrieval_ms: float
    search_ms: float
    held_bytes: float
    training_s: float
    requests_per_s: float


def cost_per_million(load: Load, prices: Mapping[str, Price] = PRICES) -> dict[str, float]:
    """US dollars for a million requests by part, and `all`; nan where a part of the load is.

    >>> light = Load(retrieval_ms=2.0, search_ms=0.0, held_bytes=0.0, training_s=0.0, requests_per_s=1.0)
    >>> round(cost_per_million(light)["all"], 3)
    0.046
    """
    held_gb = max(ONE_PROCESSOR_GB, FUNCTION_BASE_GB + load.held_bytes / 2**30)
    function_s, search_s = (ms / 1e3 * MILLION for ms in (load.retrieval_ms, load.search_ms))
    millions_a_month = load.requests_per_s * MONTH_S / MILLION
    parts = {
        "function": function_s * held_gb * prices["function"].usd,
        "search": search_s / HOUR_S / BUSY * prices["search"].usd,
        "training": load.training_s / HOUR_S * prices["training"].usd / millions_a_month,
    }
    return {**parts, "all": sum(parts.values())}
