"""The closed set of feature kinds: commutative folds over events, each with zero, add, merge and read.

Adding events in any order and any chunking, and merging the chunks, gives the same state: integers and lists
exactly, floats to rounding. Every kind has its three renderings side by side in its class.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import cast

from narrows.features.counts import Count, DecayedCount, DecayedSum, RecentCount, SmoothedRate
from narrows.features.declarations import FeatureDeclaration
from narrows.features.folding import Additive, DeclaredKind, Kind, State, decay
from narrows.features.moments import FirstSeen, LastSeen, ValueStatistics
from narrows.features.newest import LastN, LastValue
from narrows.features.scopes import scope_of
from narrows.features.selection import Selection
from narrows.features.tallies import DistinctCount, Entropy, PerValue

__all__ = [
    "KINDS",
    "Count",
    "DecayedCount",
    "DecayedSum",
    "DistinctCount",
    "Entropy",
    "FirstSeen",
    "Kind",
    "LastN",
    "LastSeen",
    "LastValue",
    "PerValue",
    "RecentCount",
    "Selection",
    "SmoothedRate",
    "State",
    "ValueStatistics",
    "decay",
    "kind_of",
]

_CLASSES: tuple[type[DeclaredKind], ...] = (
    *(Count, DecayedCount, DecayedSum, SmoothedRate, RecentCount, LastN, LastValue),
    *(DistinctCount, FirstSeen, LastSeen, ValueStatistics, Entropy),
)
KINDS: Mapping[str, type[DeclaredKind]] = MappingProxyType({kind.name: kind for kind in _CLASSES})


def kind_of(declaration: FeatureDeclaration) -> Kind:
    """The kind with its parameters, wrapped into a pair where the scope is one."""
    kind: Kind = KINDS[declaration.kind].declared(declaration)
    scope = scope_of(declaration.scope)
    return PerValue.over(cast(Additive, kind), scope.by, declaration) if scope and scope.pair else kind
