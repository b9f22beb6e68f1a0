"""Items as they change: a verdict for each that is sent, and the one write that everything else follows.

The table is the truth about items. A row of the snapshot is given to an item in the transaction that stores
it first, and what the rules must know at once (sold out, deleted) goes into the policy log in that same
transaction; the table's stream feeds the snapshot and the vector index.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Protocol

import numpy as np

from narrows.errors import (
    BundleError,
    Conflict,
    EncoderUnavailable,
    InvalidInput,
    SnapshotError,
    StoreUnavailable,
)
from narrows.item_upsert import VERSION, ItemUpsert, parse_item, sent_id
from narrows.policy import Change
from narrows.retrieval import Floats
from narrows.settings import App, Catalogue
from narrows.snapshot import ItemSnapshot
from narrows.text_vectors import documents

ITEMS_A_WRITE = 80
"""DynamoDB's transactions hold 100 writes; 18 are the policy log's and the counter's."""
ATTEMPTS = 6
SEND_AGAIN = "the item was not stored; send it again"
UNKNOWN_WORDS = "UnknownWords"
"""Why an item has no vector of whose words the live model has read none."""
Status = Literal["accepted", "unchanged", "stale", "rejected"]
Published = Callable[[], ItemSnapshot | None]


@dataclass(frozen=True)
class ItemEntry:
    """An item as it is stored; a deleted one keeps its row for good.

    `first_at` is since when there is the item, in epoch seconds: when it was stored first, or what the
    catalogue said that was published before, None for nothing. `vector` holds float32 as bytes, b"" where no
    network has seen it, and `vector_version` the version of the network.
    """

    item_id: str
    row: int
    version: int
    values: Mapping[str, Any] = field(default_factory=dict)
    deleted: bool = False
    first_at: float | None = None
    vector: bytes = b""
    vector_version: str = ""


@dataclass(frozen=True)
class ItemWrite:
    """An entry that takes the place of the version `replaces`, None for none."""

    entry: ItemEntry
    replaces: int | None


@dataclass(frozen=True)
class RowBlock:
    """The next row that an item gets moves from `expected`, None where there was none, to `next_row`."""

    expected: int | None
    next_row: int


class ItemTable(Protocol):
    """Items by id, and the next row."""

    def read(self, item_ids: Sequence[str]) -> Mapping[str, ItemEntry]:
        """The stored ones of these; StoreUnavailable when it cannot tell."""

    def next_row(self) -> int | None:
        """The row that the next new item gets; None before the first."""

    def write(
        self, writes: Sequence[ItemWrite], block: RowBlock | None, changes: Sequence[Change], *, now: float
    ) -> None:
        """Store all of them and append the changes to the policy log, or nothing.

        Conflict where an item, the block or the log was moved by somebody else; at most `ITEMS_A_WRITE`.
        """


class ItemEncoder(Protocol):
    """The item network that is live: ids of items and what is written about them -> their vectors."""

    @property
    def version(self) -> str:
        """The version of the network, which the vectors must share with the visitors' network."""

    def embed(self, item_ids: Sequence[str], texts: Sequence[str]) -> Floats:
        """float32[n, d]; zeros for an item that it was not trained on and whose text says nothing to it.

        EncoderUnavailable where what reads the texts does not answer, or is not the one of the network;
        BundleError or StoreUnavailable where the network itself cannot be read.
        """


@dataclass(frozen=True)
class ItemVerdict:
    """What became of the item at `index`; a rejected one names field, value and remedy.

    "unchanged": it is stored like this already. "stale": a newer version is. `no_vector` says why
    the text of a stored item has no vector: the class of the text encoder's error, or the model's, or
    `UNKNOWN_WORDS`.
    """

    index: int
    item_id: str | None
    status: Status
    field: str | None = None
    value: str | None = None
    remedy: str | None = None
    no_vector: str | None = None

    def shown(self) -> dict[str, Any]:
        """For the response: only what is known."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def freshen(
    sent: Sequence[object],
    *,
    app: App,
    table: ItemTable,
    published: Published,
    encoder: ItemEncoder | None,
    now: float,
) -> list[ItemVerdict]:
    """Judge each item on its own and store the good ones; a verdict for each, in order.

    `published` gives the live snapshot, None before the first: items that were published before the table
    knew them keep their rows. Without an encoder items have no vector. An older version than the stored one
    changes nothing; the same again changes nothing either; an id that comes twice in one batch counts once.
    A table that did not answer is not asked again: what is left is to be sent again as well.
    """
    verdicts: dict[int, ItemVerdict] = {}
    good: dict[str, tuple[int, ItemUpsert]] = {}
    for index, raw in enumerate(sent):
        try:
            upsert = parse_item(raw, app.catalogue)
            if upsert.item_id in good:
                remedy = "it came before in this batch; send an item once in a batch"
                raise InvalidInput(app.catalogue.id, upsert.item_id, remedy)
            good[upsert.item_id] = (index, upsert)
        except InvalidInput as error:
            verdicts[index] = _rejected(index, sent_id(raw, app.catalogue), error)
    placed, away = list(good.values()), ""
    for start in range(0, len(placed), ITEMS_A_WRITE):
        chunk = placed[start : start + ITEMS_A_WRITE]
        batch = _Batch([one for _, one in chunk], app.catalogue, table, published, encoder, now)
        try:
            stored = batch.lost(away) if away else batch.store()
        except StoreUnavailable as error:
            stored = batch.lost(away := str(error) or type(error).__name__)
        for (index, _), verdict in zip(chunk, stored, strict=True):
            verdicts[index] = replace(verdict, index=index)
    return [verdicts[index] for index in sorted(verdicts)]


@dataclass(frozen=True)
class _Batch:
    """Items that are stored together; distinct ids."""

    upserts: Sequence[ItemUpsert]
    catalogue: Catalogue
    table: ItemTable
    published: Published
    encoder: ItemEncoder | None
    now: float

    def store(self) -> list[ItemVerdict]:
        """A verdict for each; what races with others is judged again by what they wrote.

        StoreUnavailable where the table does not answer.
        """
        for _ in range(ATTEMPTS):
            stored = self.table.read([one.item_id for one in self.upserts])
            snapshot, why_not = self._snapshot(stored)
            verdicts = [
                self._lost(one, why_not)
                if why_not and one.item_id not in stored
                else self._judge(one, stored.get(one.item_id))
                for one in self.upserts
            ]
            wanted = [self.upserts[at] for at, one in enumerate(verdicts) if one.status == "accepted"]
            unread = self._written(wanted, stored, snapshot) if wanted else {}
            if unread is not None:
                return [replace(one, no_vector=unread.get(one.item_id or "")) for one in verdicts]
        return self.lost("others changed these items at the same time")

    def lost(self, reason: str) -> list[ItemVerdict]:
        """The verdict for each where none could be stored."""
        return [self._lost(one, reason) for one in self.upserts]

    def _snapshot(self, stored: Mapping[str, ItemEntry]) -> tuple[ItemSnapshot | None, str]:
        """(what is published, where an item may have a row there, why that cannot be read).

        Items that the table knows do not wait for it: what is sold out must go.
        """
        if all(one.item_id in stored for one in self.upserts):
            return None, ""
        try:
            return self.published(), ""
        except (SnapshotError, StoreUnavailable) as error:
            return None, str(error)

    def _judge(self, upsert: ItemUpsert, stored: ItemEntry | None) -> ItemVerdict:
        accepted = ItemVerdict(0, upsert.item_id, "accepted")
        if stored is None:
            return accepted
        same = (stored.deleted, stored.values) == (upsert.deleted, upsert.values)
        version = self._version(upsert, stored)
        if same and upsert.version in (None, stored.version):
            return replace(accepted, status="unchanged")
        if version > stored.version:
            return accepted
        if upsert.version is not None and version < stored.version:
            return replace(accepted, status="stale")
        remedy = f"version {stored.version} is stored with other content; send a higher version"
        return _rejected(0, upsert.item_id, InvalidInput(VERSION, upsert.version, remedy))

    def _version(self, upsert: ItemUpsert, stored: ItemEntry | None) -> int:
        """By default its arrival, in milliseconds; of those at once the one that is written last counts."""
        if upsert.version is not None:
            return upsert.version
        return max(int(self.now * 1000), stored.version + 1 if stored else 0)

    def _written(
        self, wanted: Sequence[ItemUpsert], stored: Mapping[str, ItemEntry], published: ItemSnapshot | None
    ) -> Mapping[str, str] | None:
        """Stored, but without a vector: item id -> why; None where somebody else wrote first."""
        rows, new, block = self._rows([one.item_id for one in wanted], stored, published)
        created = {} if published is None else _created(published, rows)
        vectors, unread = self._vectors(wanted, stored)
        writes: list[ItemWrite] = []
        changes: list[Change] = []
        for upsert in wanted:
            before = stored.get(upsert.item_id)
            first_at = before.first_at if before else created.get(upsert.item_id, self.now)
            vector, vector_version = vectors.get(upsert.item_id, (b"", ""))
            entry = ItemEntry(
                item_id=upsert.item_id,
                row=rows[upsert.item_id],
                version=self._version(upsert, before),
                values=upsert.values,
                deleted=upsert.deleted,
                first_at=first_at,
                vector=vector,
                vector_version=vector_version,
            )
            writes.append(ItemWrite(entry, before.version if before else None))
            changes += rule_changes(entry, before, self.catalogue, is_new=upsert.item_id in new)
        try:
            self.table.write(writes, block, changes, now=self.now)
        except Conflict:
            return None
        return unread

    def _rows(
        self, item_ids: Sequence[str], stored: Mapping[str, ItemEntry], published: ItemSnapshot | None
    ) -> tuple[dict[str, int], set[str], RowBlock | None]:
        """The row of each item, which of them get one now, and the block that these come from."""
        rows = {item_id: stored[item_id].row for item_id in item_ids if item_id in stored}
        unknown = [item_id for item_id in item_ids if item_id not in rows]
        if not unknown:
            return rows, set(), None
        there = published.rows(unknown).tolist() if published else [-1] * len(unknown)
        rows |= {item_id: row for item_id, row in zip(unknown, there, strict=True) if row >= 0}
        new = [item_id for item_id in unknown if item_id not in rows]
        if not new:
            return rows, set(), None
        expected = self.table.next_row()
        first = (published.size if published else 0) if expected is None else expected
        rows |= {item_id: first + place for place, item_id in enumerate(new)}
        return rows, set(new), RowBlock(expected, first + len(new))

    def _vectors(
        self, upserts: Sequence[ItemUpsert], stored: Mapping[str, ItemEntry]
    ) -> tuple[dict[str, tuple[bytes, str]], dict[str, str]]:
        """(item id -> its vector and that one's version, why there is none of what is written about it).

        While the network cannot be asked, an item of the same text keeps the vector that it has.
        """
        there = [one for one in upserts if not one.deleted]
        if self.encoder is None or not there:
            return {}, {}
        texts = item_texts([one.values for one in there], self.catalogue)
        ids = [one.item_id for one in there]
        said = [item_id for item_id, text in zip(ids, texts, strict=True) if text.strip()]
        try:
            vectors = np.asarray(self.encoder.embed(ids, texts), np.float32)
        except (BundleError, EncoderUnavailable, StoreUnavailable) as error:  # an item does not wait for it
            kept = self._kept(there, texts, stored)
            return kept, {item_id: type(error).__name__ for item_id in said if item_id not in kept}
        found = zip(ids, vectors, strict=True)
        placed = {item_id: (one.tobytes(), self.encoder.version) for item_id, one in found if one.any()}
        return placed, {item_id: UNKNOWN_WORDS for item_id in said if item_id not in placed}

    def _kept(
        self, upserts: Sequence[ItemUpsert], texts: Sequence[str], stored: Mapping[str, ItemEntry]
    ) -> dict[str, tuple[bytes, str]]:
        before = [stored.get(one.item_id) for one in upserts]
        read = item_texts([one.values if one else {} for one in before], self.catalogue)
        return {
            one.item_id: (one.vector, one.vector_version)
            for one, said, text in zip(before, read, texts, strict=True)
            if one and one.vector and said.split() == text.split()
        }

    def _lost(self, upsert: ItemUpsert, reason: str) -> ItemVerdict:
        return ItemVerdict(0, upsert.item_id, "rejected", "item", reason, SEND_AGAIN)


def _created(published: ItemSnapshot, rows: Mapping[str, int]) -> dict[str, float | None]:
    """Since when there are those of these items that were published, None where that is not known."""
    there = {item_id: row for item_id, row in rows.items() if row < published.size}
    times = published.columns.get("created_at", np.full(published.size, np.nan))
    found = {item_id: float(times[row]) for item_id, row in there.items()}
    return {item_id: None if np.isnan(time) else time for item_id, time in found.items()}


def item_texts(items: Sequence[Mapping[str, Any]], catalogue: Catalogue) -> list[str]:
    """What is written about each item, given its values; "" for one about which nothing is."""
    names = {name for values in items for name in values}
    table = {name: [values.get(name) for values in items] for name in names}
    return documents(table, catalogue) if table else [""] * len(items)


def rule_changes(
    entry: ItemEntry, before: ItemEntry | None, catalogue: Catalogue, *, is_new: bool
) -> list[Change]:
    """What the rules must know of an item from now on: whether it is in stock, and whether it is there.

    Of an item that is new nothing is known but what stands against it; of one that was published before the
    table knew it, or that had no stock so far, anything may have been said, so that all is said again. One
    that was sold out and has no stock any more, being deleted for instance, is not sold out.
    """
    changes: list[Change] = []
    if entry.deleted or (before.deleted if before else not is_new):
        changes.append(Change("deleted", entry.item_id, entry.deleted))
    stock = entry.values.get(catalogue.stock) if catalogue.stock else None
    had = before.values.get(catalogue.stock) if before and catalogue.stock else None
    unsaid = had is None and stock is not None and (before is not None or not is_new)
    if stock == 0 or had == 0 or unsaid:
        changes.append(Change("stock", entry.item_id, stock != 0))
    return changes


def _rejected(index: int, item_id: str | None, error: InvalidInput) -> ItemVerdict:
    return ItemVerdict(index, item_id, "rejected", error.field, error.value, error.remedy)
