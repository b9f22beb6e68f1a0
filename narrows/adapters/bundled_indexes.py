"""Indexes of a bundle's large sources: made once when it is written, bound to rows when it is loaded.

A source of many items does not compare them all. Its index lies beside its file, over the model's own item
numbers, so that it serves over every snapshot. Small sources have none, and stay exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from narrows.adapters.faiss import ABOUT_FILE, EXACT_BELOW, INDEX_FILE, PARTS_FILE, FaissVectorIndex, load
from narrows.retrieval import Query, Rows
from narrows.sources import SOURCES
from narrows.sources.rows import RowsOf

INDEXED = ("two_tower", "als", "session", "content")
RECALL = 0.82
"""Of what comparing all items would find. 0.98 would cost twice as much, and what one source misses another
one mostly has: of the 300 best merged candidates 93 in a hundred are there, and of the 50 best 98."""


def index_files(name: str) -> tuple[str, ...]:
    """The files of a source's index."""
    return tuple(f"{name}.{file}" for file in (ABOUT_FILE, PARTS_FILE, INDEX_FILE))


def write_indexes(
    bundle: Path, rows_of: RowsOf, size: int, asked: Sequence[Query], *, at_least: int = EXACT_BELOW
) -> list[str]:
    """Write an index beside each source of the bundle that has so many items or more; the names of these.

    How deep each is searched is measured by what these visitors would be compared with; their queries are
    over rows as `rows_of` gives them, below `size`.
    """
    written = []
    for name in INDEXED:
        path = bundle / SOURCES[name].FILE
        if not path.is_file():
            continue
        model: Any = SOURCES[name].load(path)
        vectors = model.items if name == "session" else model.vectors
        held = np.flatnonzero(vectors.any(axis=1)).astype(np.int32)
        if len(held) < at_least:
            continue
        source = model.bind(rows_of, size)
        found = [one for one in map(source.visitor, asked) if one is not None]
        questions = np.stack(found) if found else None
        index = FaissVectorIndex(
            name,
            vectors.shape[1],
            filters=(),
            exact_below=at_least,
            recall=RECALL,
            questions=questions,
        )
        index.upsert(held, vectors[held])
        index.save(bundle, f"{name}.")
        written.append(name)
    return written


def bound_index(bundle: Path, name: str, rows: Rows | Sequence[int]) -> FaissVectorIndex:
    """The index of a source by the snapshot's rows: the model's item `i` has row `rows[i]`, -1 for none."""
    return load(bundle, f"{name}.").renumbered(np.asarray(rows, np.int32))
