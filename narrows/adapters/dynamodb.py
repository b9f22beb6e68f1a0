"""DynamoDB: visitors' states, remembered slates and the policy log."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from narrows.adapters.aws import translated
from narrows.errors import Conflict, StoreUnavailable, TooLarge
from narrows.features.codec import decode, encode
from narrows.features.state import ITEM_PREFIX, ITEM_RETENTION_S, VisitorState, Write
from narrows.policy import Change
from narrows.visitor import Remembered

KEYS_A_READ = 100
READ_ROUNDS = 5
RETENTION_S = 90 * 86_400.0
REPLICAS = 16
APPEND_ATTEMPTS = 8
APPEND_BYTES = 200_000
"""One append is written to 16 replicas in one transaction, which DynamoDB limits to 4 MB."""

Sleep = Callable[[float], None]


class DynamoStateStore:
    """Visitors' states: key `pk`, version `v`, bytes `b`, and `ttl` after which a state is absent."""

    def __init__(
        self,
        client: Any,
        table: str,
        *,
        clock: Callable[[], float],
        retention_s: float = RETENTION_S,
        consistent: bool = False,
        sleep: Sleep = time.sleep,
    ) -> None:
        self._client = client
        self._table = table
        self._clock = clock
        self._retention_s = retention_s
        self._consistent = consistent
        self._sleep = sleep

    def get_many(self, keys: Sequence[str]) -> Mapping[str, VisitorState]:
        distinct = list(dict.fromkeys(keys))
        if len(distinct) == 1:
            rows = self._read_one(distinct[0])
        else:
            chunks = (distinct[at : at + KEYS_A_READ] for at in range(0, len(distinct), KEYS_A_READ))
            rows = [row for chunk in chunks for row in self._read_chunk(chunk)]
        now = self._clock()
        return {row["pk"]["S"]: _state(row) for row in rows if float(row["ttl"]["N"]) > now}

    def put(self, key: str, state: VisitorState, expected_version: int) -> None:
        with translated(f"write state to {self._table}"):
            self._client.put_item(**self._put(Write(key, state, expected_version)))

    def put_all(self, writes: Sequence[Write]) -> None:
        with translated(f"write {len(writes)} states to {self._table}"):
            self._client.transact_write_items(TransactItems=[{"Put": self._put(write)} for write in writes])

    def _put(self, write: Write) -> dict[str, Any]:
        """A conditional put, alone or in a transaction."""
        now, expected = self._clock(), write.expected_version
        retention_s = ITEM_RETENTION_S if write.key.startswith(ITEM_PREFIX) else self._retention_s
        put: dict[str, Any] = {
            "TableName": self._table,
            "Item": {
                "pk": {"S": write.key},
                "v": {"N": str(expected + 1)},
                "b": {"B": encode(write.state._replace(version=expected + 1))},
                "ttl": {"N": str(int(now + retention_s))},
            },
        }
        if expected:
            condition = {"ConditionExpression": "v = :x"}
            return put | condition | {"ExpressionAttributeValues": {":x": {"N": str(expected)}}}
        return put | {
            "ConditionExpression": "attribute_not_exists(pk) OR #t <= :x",
            "ExpressionAttributeNames": {"#t": "ttl"},
            "ExpressionAttributeValues": {":x": {"N": str(int(now))}},
        }

    def _read_one(self, key: str) -> list[dict[str, Any]]:
        with translated(f"read state from {self._table}"):
            answer = self._client.get_item(
                TableName=self._table, Key={"pk": {"S": key}}, ConsistentRead=self._consistent
            )
        return [answer["Item"]] if "Item" in answer else []

    def _read_chunk(self, keys: Sequence[str]) -> list[dict[str, Any]]:
        wanted: Any = {
            self._table: {"Keys": [{"pk": {"S": key}} for key in keys], "ConsistentRead": self._consistent}
        }
        rows: list[dict[str, Any]] = []
        for attempt in range(READ_ROUNDS):
            if attempt:
                self._sleep(0.02 * 2**attempt)
            with translated(f"read states from {self._table}"):
                answer = self._client.batch_get_item(RequestItems=wanted)
            rows += answer["Responses"].get(self._table, [])
            wanted = answer.get("UnprocessedKeys")
            if not wanted:
                return rows
        raise StoreUnavailable(f"read states from {self._table}: keys left over after {READ_ROUNDS} rounds")


def _state(row: Mapping[str, Any]) -> VisitorState:
    return decode(row["b"]["B"])._replace(version=int(row["v"]["N"]))


class DynamoSlateStore:
    """The last slate and its candidates: key `pk` (visitor) and `sk` (surface), gone after `ttl`."""

    def __init__(self, client: Any, table: str) -> None:
        self._client = client
        self._table = table

    def read(self, key: str, surface: str, *, now: float) -> Remembered | None:
        with translated(f"read slate from {self._table}"):
            answer = self._client.get_item(
                TableName=self._table, Key={"pk": {"S": key}, "sk": {"S": surface}}
            )
        row = answer.get("Item")
        if row is None or float(row["ttl"]["N"]) <= now:
            return None
        slate, candidates = json.loads(row["slate"]["S"]), json.loads(row["remembered"]["S"])
        return Remembered(tuple(slate), tuple(candidates), float(row["at"]["N"]))

    def write(self, key: str, surface: str, remembered: Remembered, *, expires_at: float) -> None:
        item = {
            "pk": {"S": key},
            "sk": {"S": surface},
            "slate": {"S": _compact(remembered.slate)},
            "remembered": {"S": _compact(remembered.candidates)},
            "at": {"N": repr(remembered.at)},
            "ttl": {"N": str(int(expires_at))},
        }
        try:
            with translated(f"write slate to {self._table}"):
                self._client.put_item(
                    TableName=self._table,
                    Item=item,
                    ConditionExpression="attribute_not_exists(pk) OR #at <= :at",
                    ExpressionAttributeNames={"#at": "at"},
                    ExpressionAttributeValues={":at": {"N": repr(remembered.at)}},
                )
        except Conflict:
            return  # what is there is newer, and stays


class DynamoPolicyLog:
    """The policy log: the same entries under 16 replica keys, so that no key is read by every process.

    An entry is one append: `sk` is its last version, `changes` its changes as JSON. The item `head` holds the
    last version given, and every append moves it in the same transaction.
    """

    def __init__(self, client: Any, table: str, *, replica: int, sleep: Sleep = time.sleep) -> None:
        self._client = client
        self._table = table
        self._replica = f"log#{replica % REPLICAS:02d}"
        self._sleep = sleep

    def read(self, since: int) -> Sequence[Change]:
        changes: list[Change] = []
        start: dict[str, Any] = {}
        while True:
            with translated(f"read policy log from {self._table}"):
                page = self._client.query(
                    TableName=self._table,
                    KeyConditionExpression="pk = :pk AND sk > :since",
                    ExpressionAttributeValues={":pk": {"S": self._replica}, ":since": {"N": str(since)}},
                    **start,
                )
            changes += [change for row in page["Items"] for change in _changes(row)]
            if "LastEvaluatedKey" not in page:
                return _unbroken([change for change in changes if change.version > since], since)
            start = {"ExclusiveStartKey": page["LastEvaluatedKey"]}

    def append(self, changes: Sequence[Change], *, now: float) -> int:
        for attempt in range(APPEND_ATTEMPTS):
            head = self._head()
            if not changes:
                return head
            try:
                self._write(head, changes, now)
            except Conflict:
                self._sleep(0.005 * 2**attempt)
            else:
                return head + len(changes)
        raise StoreUnavailable(f"policy log {self._table}: lost the race {APPEND_ATTEMPTS} times; try again")

    def puts(self, changes: Sequence[Change], *, now: float) -> list[dict[str, Any]]:
        """What appends the changes as a part of somebody's transaction; [] for no changes.

        The transaction is lost, as Conflict, where another append comes first.
        """
        return self._puts(self._head(), changes, now) if changes else []

    def _head(self) -> int:
        with translated(f"read policy head from {self._table}"):
            answer = self._client.get_item(
                TableName=self._table, Key={"pk": {"S": "head"}, "sk": {"N": "0"}}, ConsistentRead=True
            )
        return int(answer["Item"]["version"]["N"]) if "Item" in answer else 0

    def _write(self, head: int, changes: Sequence[Change], now: float) -> None:
        puts = self._puts(head, changes, now)
        with translated(f"append to policy log {self._table}"):
            self._client.transact_write_items(TransactItems=puts)

    def _puts(self, head: int, changes: Sequence[Change], now: float) -> list[dict[str, Any]]:
        last = head + len(changes)
        numbered = enumerate(changes, start=head + 1)
        text = _compact([[one.kind, one.item_id, one.value, version, now] for version, one in numbered])
        if len(text.encode()) > APPEND_BYTES:
            raise TooLarge("changes", f"{len(changes)} changes", "send fewer changes at once")
        move_head: dict[str, Any] = {
            "TableName": self._table,
            "Item": {"pk": {"S": "head"}, "sk": {"N": "0"}, "version": {"N": str(last)}},
            "ConditionExpression": "version = :head" if head else "attribute_not_exists(pk)",
        }
        if head:
            move_head["ExpressionAttributeValues"] = {":head": {"N": str(head)}}
        entry = {"sk": {"N": str(last)}, "changes": {"S": text}}
        copies = [
            {"Put": {"TableName": self._table, "Item": {"pk": {"S": f"log#{replica:02d}"}, **entry}}}
            for replica in range(REPLICAS)
        ]
        return [{"Put": move_head}, *copies]


def _changes(row: Mapping[str, Any]) -> list[Change]:
    return [
        Change(kind, item_id, tuple(value) if isinstance(value, list) else value, version, at)
        for kind, item_id, value, version, at in json.loads(row["changes"]["S"])
    ]


def _unbroken(changes: Sequence[Change], since: int) -> list[Change]:
    """The changes before the first gap.

    An append's items become visible one by one, so the next append may be seen before it; whoever went on
    from there would never read what filled the gap.
    """
    found: list[Change] = []
    for change in changes:
        before = found[-1].version if found else since
        if before and change.version != before + 1:
            break
        found.append(change)
    return found


def _compact(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
