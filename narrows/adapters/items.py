"""The items table on DynamoDB, and its change stream."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from narrows.adapters.aws import translated
from narrows.adapters.dynamodb import DynamoPolicyLog
from narrows.errors import StoreUnavailable
from narrows.freshening import ItemEntry, ItemWrite, RowBlock
from narrows.policy import Change

PREFIX = "item#"
COUNTER = "rows"
"""The key of the next row; it shares the table with the items so that one transaction covers both."""
KEYS_A_READ = 100
READ_ROUNDS = 5


class DynamoItemTable:
    """Items under `item#<id>`: `row`, version `v`, JSON in `c`, `d` where deleted, vector `e` of `ev`."""

    def __init__(
        self,
        client: Any,
        table: str,
        policy: DynamoPolicyLog,
        *,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._client = client
        self._table = table
        self._policy = policy
        self._sleep = sleep

    def read(self, item_ids: Sequence[str]) -> Mapping[str, ItemEntry]:
        keys = [PREFIX + one for one in dict.fromkeys(item_ids)]
        chunks = (keys[at : at + KEYS_A_READ] for at in range(0, len(keys), KEYS_A_READ))
        entries = [entry_of(row) for chunk in chunks for row in self._read_chunk(chunk)]
        return {entry.item_id: entry for entry in entries}

    def next_row(self) -> int | None:
        with translated(f"read the next row from {self._table}"):
            answer = self._client.get_item(
                TableName=self._table, Key={"pk": {"S": COUNTER}}, ConsistentRead=True
            )
        return int(answer["Item"]["next"]["N"]) if "Item" in answer else None

    def write(
        self, writes: Sequence[ItemWrite], block: RowBlock | None, changes: Sequence[Change], *, now: float
    ) -> None:
        puts = [{"Put": self._put(one)} for one in writes]
        if block is not None:
            puts.append({"Put": self._moved(block)})
        puts += self._policy.puts(changes, now=now)
        with translated(f"write {len(writes)} items to {self._table}"):
            self._client.transact_write_items(TransactItems=puts)

    def _put(self, write: ItemWrite) -> dict[str, Any]:
        item = {"pk": {"S": PREFIX + write.entry.item_id}, **_attributes(write.entry)}
        return _conditional({"TableName": self._table, "Item": item}, "v", write.replaces)

    def _moved(self, block: RowBlock) -> dict[str, Any]:
        item = {"pk": {"S": COUNTER}, "next": {"N": str(block.next_row)}}
        return _conditional({"TableName": self._table, "Item": item}, "next", block.expected)

    def _read_chunk(self, keys: Sequence[str]) -> list[dict[str, Any]]:
        wanted: Any = {self._table: {"Keys": [{"pk": {"S": key}} for key in keys], "ConsistentRead": True}}
        rows: list[dict[str, Any]] = []
        for attempt in range(READ_ROUNDS):
            if attempt:
                self._sleep(0.02 * 2**attempt)
            with translated(f"read items from {self._table}"):
                answer = self._client.batch_get_item(RequestItems=wanted)
            rows += answer["Responses"].get(self._table, [])
            wanted = answer.get("UnprocessedKeys")
            if not wanted:
                return rows
        raise StoreUnavailable(f"read items from {self._table}: keys left over after {READ_ROUNDS} rounds")


def _conditional(put: dict[str, Any], name: str, expected: int | None) -> dict[str, Any]:
    """The put, refused unless `name` stands at `expected`, or, for None, where anything is there already."""
    if expected is None:
        return put | {"ConditionExpression": "attribute_not_exists(pk)"}
    return put | {
        "ConditionExpression": "#n = :x",
        "ExpressionAttributeNames": {"#n": name},
        "ExpressionAttributeValues": {":x": {"N": str(expected)}},
    }


def _attributes(entry: ItemEntry) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "row": {"N": str(entry.row)},
        "v": {"N": str(entry.version)},
        "c": {"S": json.dumps(entry.values, separators=(",", ":"), ensure_ascii=False)},
        "d": {"BOOL": entry.deleted},
    }
    if entry.first_at is not None:
        attributes["t"] = {"N": repr(entry.first_at)}
    if entry.vector:
        attributes |= {"e": {"B": entry.vector}, "ev": {"S": entry.vector_version}}
    return attributes


def entry_of(image: Mapping[str, Any]) -> ItemEntry:
    """The item of a stored row, or of a stream's record, where bytes are base64."""
    vector = image.get("e", {}).get("B", b"")
    return ItemEntry(
        item_id=image["pk"]["S"].removeprefix(PREFIX),
        row=int(image["row"]["N"]),
        version=int(image["v"]["N"]),
        values=json.loads(image["c"]["S"]),
        deleted=image["d"]["BOOL"],
        first_at=float(image["t"]["N"]) if "t" in image else None,
        vector=base64.b64decode(vector) if isinstance(vector, str) else bytes(vector),
        vector_version=image.get("ev", {}).get("S", ""),
    )


def entries_of(event: Mapping[str, Any]) -> list[ItemEntry]:
    """The items that a batch of the table's stream tells of, in the order of their changes."""
    return [entry_of(image) for image in _images(event)]


def readable_entries_of(event: Mapping[str, Any]) -> tuple[list[ItemEntry], dict[str, str]]:
    """As `entries_of`, without the rows that cannot be read: key -> why."""
    entries: list[ItemEntry] = []
    unreadable: dict[str, str] = {}
    for image in _images(event):
        try:
            entries.append(entry_of(image))
        except (KeyError, TypeError, ValueError) as error:
            unreadable[image["pk"]["S"]] = f"{type(error).__name__}: {error}"
    return entries, unreadable


def _images(event: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    images = [one["dynamodb"].get("NewImage", {}) for one in event["Records"]]
    return [image for image in images if image.get("pk", {}).get("S", "").startswith(PREFIX)]
