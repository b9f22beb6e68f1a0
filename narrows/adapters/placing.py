"""Items that came after a training: the sources that can place them by what is written about them, do so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from narrows.errors import EncoderUnavailable
from narrows.item_details import written
from narrows.retrieval import Floats, Rows
from narrows.snapshot import ItemSnapshot
from narrows.sources import SignallingSource
from narrows.sources.fresh import fresh
from narrows.text_vectors import HashedWords, TextEncoder

PLACED_AT_ONCE = 20_000
"""Of the items without a vector, the newest so many get one in a refresh."""
READ_AT_ONCE = 512
"""As many of them where a sentence encoder reads the texts, which takes it milliseconds each."""
TEXT_ENCODER = "text_encoder"
BEHIND = "behind"


@runtime_checkable
class Placing(Protocol):
    """A source that makes its own vectors of items that it was not trained on."""

    @property
    def vectors(self) -> Floats:
        """float32[capacity, d] by row, nan where a row has none."""

    @property
    def encoder(self) -> TextEncoder:
        """What reads the texts."""

    def place(self, rows: Rows, texts: Sequence[str]) -> None:
        """Give each of these rows without a vector the one that its text says.

        EncoderUnavailable where the texts cannot be read now.
        """


def with_newest(
    sources: Mapping[str, SignallingSource], snapshot: ItemSnapshot
) -> tuple[dict[str, SignallingSource], dict[str, str]]:
    """The sources, of which some come to know the items that are newer than they, and what was in the way.

    A text encoder that does not answer, or is not the one of the model, leaves items without a vector, and is
    named; so is one that has more to read than fits into a refresh. The next refresh goes on.
    """
    problems: dict[str, str] = {}
    for source in sources.values():
        if isinstance(source, Placing):
            problems |= _placed(source, snapshot)
    created = snapshot.columns.get("created_at")
    newest = {"fresh": fresh(created)} if created is not None and np.isfinite(created).any() else {}
    return {**sources, **newest}, problems


def _placed(source: Placing, snapshot: ItemSnapshot) -> dict[str, str]:
    """Vectors for the newest rows that have an item and no vector."""
    most = PLACED_AT_ONCE if isinstance(source.encoder, HashedWords) else READ_AT_ONCE
    rows = np.flatnonzero(np.isnan(source.vectors[: snapshot.size, 0])).astype(np.int32)[-PLACED_AT_ONCE:]
    rows = rows[snapshot.holds(rows)]
    texts = written(snapshot, rows.tolist())
    said = [place for place, text in enumerate(texts) if text.strip()]
    rows, texts = rows[said], [texts[place] for place in said]
    if not len(rows):
        return {}
    try:
        source.place(rows[-most:], texts[-most:])
    except EncoderUnavailable as error:
        return {TEXT_ENCODER: type(error).__name__}
    return {TEXT_ENCODER: BEHIND} if len(rows) > most else {}
