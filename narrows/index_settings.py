"""How an app's vectors lie in OpenSearch, as `[index]` in app.toml says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal, cast

from narrows.catalogue_settings import Catalogue
from narrows.toml_reading import Table

Engine = Literal["faiss", "lucene"]
Space = Literal["innerproduct", "cosinesimil"]
Numbers = Literal["float", "fp16", "byte"]


@dataclass(frozen=True)
class FilledBy:
    """Where the values of a filter come from: a part of `[catalogue]`, and the snapshot's column of it."""

    part: str
    column: str


FILLED_BY: Mapping[str, FilledBy] = MappingProxyType(
    {
        "region": FilledBy("regions", "regions"),
        "category": FilledBy("categories", "category_all"),
        "seller": FilledBy("seller", "seller"),
    }
)
FILTERS = tuple(FILLED_BY)
"""What changes seldom enough to be filtered inside the search; stock does not, and is the gate's."""


@dataclass(frozen=True)
class IndexSettings:
    """The graph's parameters by their names in OpenSearch; `numbers` is what a vector is stored as.

    A search looks at `ef_search` vectors of each segment, or at as many as it is asked for, if that is more.
    Under `cosinesimil` scores are cosines. Bytes are scaled to the first vectors that come.
    """

    engine: Engine = "faiss"
    space: Space = "innerproduct"
    numbers: Numbers = "float"
    m: int = 16
    ef_construction: int = 128
    ef_search: int = 256
    shards: int = 1
    replicas: int = 1
    filters: tuple[str, ...] = FILTERS

    def on(self, engine: Engine) -> IndexSettings:
        """The same on another engine; lucene has no half-precision numbers, and gets whole ones."""
        numbers = "float" if engine == "lucene" and self.numbers == "fp16" else self.numbers
        return replace(self, engine=engine, numbers=numbers)


def read_index(table: Table, catalogue: Catalogue) -> IndexSettings:
    """The settings of a table; by default searches filter by all that the catalogue has a part for."""
    filled = tuple(name for name, one in FILLED_BY.items() if getattr(catalogue, one.part))
    kept = IndexSettings(filters=filled)
    settings = IndexSettings(
        engine=cast(Engine, table.text("engine", kept.engine, known=("faiss", "lucene"))),
        space=cast(Space, table.text("space", kept.space, known=("innerproduct", "cosinesimil"))),
        numbers=cast(Numbers, table.text("numbers", kept.numbers, known=("float", "fp16", "byte"))),
        m=table.whole("m", kept.m, low=2, high=100),
        ef_construction=table.whole("ef_construction", kept.ef_construction, low=2, high=4096),
        ef_search=table.whole("ef_search", kept.ef_search, low=1, high=10_000),
        shards=table.whole("shards", kept.shards, low=1, high=1024),
        replicas=table.whole("replicas", kept.replicas, low=0, high=10),
        filters=table.texts("filters", kept.filters, known=FILTERS),
    )
    for one in settings.filters:
        if one in FILLED_BY and one not in filled:
            part = FILLED_BY[one].part
            remedy = f"nothing fills it: name the column in [catalogue] {part}, or leave the filter out"
            table.problem("filters", one, remedy)
    if settings.engine == "lucene" and settings.numbers == "fp16":
        table.problem("numbers", "fp16", "engine lucene has float and byte; choose one, or engine faiss")
    if (settings.engine, settings.numbers, settings.space) == ("faiss", "byte", "cosinesimil"):
        table.problem("space", "cosinesimil", "engine faiss compares bytes by innerproduct alone")
    table.finish()
    return settings
