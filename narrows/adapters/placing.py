"""Items that came or changed after a training: sources that can place them by what is written, do so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from narrows.errors import EncoderUnavailable
from narrows.item_details import deleted, rewritten, written
from narrows.retrieval import Rows
from narrows.snapshot import ItemSnapshot
from narrows.sources import SignallingSource
from narrows.sources.fresh import fresh
from narrows.sources.rows import REGION, PlacedVectors
from narrows.text_vectors import HashedWords, TextEncoder
from narrows.vector_index import VectorIndex

PLACED_AT_ONCE = 20_000
"""Of the items whose text has not been read, the newest so many are in a refresh."""
READ_AT_ONCE = 512
"""As many of them where a sentence encoder reads the texts, which takes it milliseconds each."""
TEXT_ENCODER = "text_encoder"
REGIONS = "regions"
BEHIND = "behind"


@runtime_checkable
class Tagging(Protocol):
    """An index whose vectors can be given what searches choose by after it was made."""

    def tagged(self, name: str, words: Sequence[str], codes: NDArray[np.int32]) -> VectorIndex:
        """The same with an attribute: row `i` has the words of `codes[i]`, int32[k] with -1 for none."""


@runtime_checkable
class Placing(Protocol):
    """A source that makes its own vectors of items, and of items that it was not trained on."""

    @property
    def placed(self) -> PlacedVectors:
        """The vectors by row, and what they were made from."""

    @property
    def encoder(self) -> TextEncoder:
        """What reads the texts."""

    def place(self, rows: Rows, texts: Sequence[str]) -> None:
        """Give each of these rows the vector that its text says.

        EncoderUnavailable where the texts cannot be read now.
        """

    def take_out(self, rows: Rows) -> None:
        """Offer these no more."""


def with_newest(
    sources: Mapping[str, SignallingSource], snapshot: ItemSnapshot
) -> tuple[dict[str, SignallingSource], dict[str, str]]:
    """The sources, of which some come to know what is newer than they, and what was in the way.

    A text encoder that does not answer, or is not the one of the model, leaves items with the vectors that
    they had, if any, and is named; so is one that has more to read than fits into a refresh. The next refresh
    goes on. Deleted items are offered no more.
    """
    problems: dict[str, str] = {}
    found = dict(sources)
    for name, source in sources.items():
        if not isinstance(source, Placing):
            continue
        source.take_out(_gone(snapshot, source.placed))
        if len(rows := rewritten(snapshot, source.placed)):
            problems |= _placed(source, rows, snapshot)
            found[name] = _regional(source, snapshot)
    created = snapshot.columns.get("created_at")
    newest = {"fresh": fresh(created)} if created is not None and np.isfinite(created).any() else {}
    return {**found, **newest}, problems


def with_regions(
    sources: Mapping[str, SignallingSource], snapshot: ItemSnapshot
) -> dict[str, SignallingSource]:
    """The sources, whose indexes know where the snapshot says that items are sold."""
    return {name: _regional(source, snapshot) for name, source in sources.items()}


def _regional(source: Any, snapshot: ItemSnapshot) -> Any:
    index = getattr(source, "index", None)
    return source if index is None else source.searching(by_region(index, snapshot))


def by_region(index: VectorIndex, snapshot: ItemSnapshot) -> VectorIndex:
    """An index of this process lets a search choose by region, where the catalogue has any."""
    codes = snapshot.columns.get(REGIONS)
    if codes is None or not snapshot.size or not isinstance(index, Tagging):
        return index
    return index.tagged(REGION, snapshot.vocabulary(REGIONS), codes.reshape(snapshot.size, -1))


def _gone(snapshot: ItemSnapshot, placed: PlacedVectors) -> Rows:
    """The rows of deleted items that a search may still find."""
    findable = ~placed.taken_out()[: snapshot.size]
    return np.flatnonzero(findable & deleted(snapshot)[: len(findable)]).astype(np.int32)


def _placed(source: Placing, rows: Rows, snapshot: ItemSnapshot) -> dict[str, str]:
    """Vectors for the newest of these rows, of which something else is written than the source has read."""
    most = PLACED_AT_ONCE if isinstance(source.encoder, HashedWords) else READ_AT_ONCE
    try:
        source.place(rows[-most:], written(snapshot, rows[-most:].tolist()))
    except EncoderUnavailable as error:
        return {TEXT_ENCODER: type(error).__name__}
    return {TEXT_ENCODER: BEHIND} if len(rows) > most else {}
