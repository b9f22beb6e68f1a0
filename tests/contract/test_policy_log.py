"""What every policy log does."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from narrows.adapters.dynamodb import REPLICAS, DynamoPolicyLog
from narrows.adapters.memory import MemoryPolicyLog
from narrows.errors import TooLarge
from narrows.policy import Change, PolicyLog
from tests.contract.tables import create_table
from tests.servers import DYNAMODB, on

NOW = 1_800_000_000.5


def block(number: int) -> Change:
    return Change("block", f"i{number}", True)


class PolicyLogContract:
    """Subscribed to by every adapter."""

    def test_an_empty_log_stands_at_version_0(self, log: PolicyLog) -> None:
        """Reading it gives nothing, and so does appending nothing."""
        assert list(log.read(0)) == []
        assert log.append([], now=NOW) == 0

    def test_versions_count_the_changes(self, log: PolicyLog) -> None:
        """Each change has the next version, and the time of its append."""
        assert log.append([block(1), Change("stock", "i2", False)], now=NOW) == 2
        assert log.append([Change("region", "i3", ("DE", "FR"))], now=NOW + 1) == 3
        assert list(log.read(0)) == [
            Change("block", "i1", True, 1, NOW),
            Change("stock", "i2", False, 2, NOW),
            Change("region", "i3", ("DE", "FR"), 3, NOW + 1),
        ]

    def test_a_reader_goes_on_where_it_stopped(self, log: PolicyLog) -> None:
        """Also in the middle of an append."""
        log.append([block(n) for n in range(3)], now=NOW)
        log.append([block(9)], now=NOW)
        assert [change.version for change in log.read(2)] == [3, 4]
        assert list(log.read(4)) == []


class TestMemoryPolicyLog(PolicyLogContract):
    @pytest.fixture
    def log(self) -> PolicyLog:
        return MemoryPolicyLog()


class TestDynamoPolicyLog(PolicyLogContract):
    @pytest.fixture(params=DYNAMODB)
    def log(self, request: pytest.FixtureRequest) -> PolicyLog:
        client = on(request).client("dynamodb")
        return DynamoPolicyLog(client, create_table(client, "policy"), replica=3)


@pytest.mark.local
@pytest.mark.parametrize("server", ["ministack", "dynamodb_local"])
def test_writers_at_once_get_distinct_versions(server: str, request: pytest.FixtureRequest) -> None:
    """Nothing is lost and nothing shares a version when four append together (moto is not thread-safe)."""
    client = request.getfixturevalue(server).client("dynamodb")
    log = DynamoPolicyLog(client, create_table(client, "policy"), replica=5)
    with ThreadPoolExecutor(4) as executor:
        versions = list(executor.map(lambda n: log.append([block(n)], now=NOW), range(8)))
    assert sorted(versions) == list(range(1, 9))
    assert {change.item_id for change in log.read(0)} == {f"i{n}" for n in range(8)}


def test_every_replica_holds_the_whole_log(moto: Any) -> None:
    """Whichever of the keys a process follows, it reads the same changes."""
    client = moto.client("dynamodb")
    table = create_table(client, "policy")
    DynamoPolicyLog(client, table, replica=0).append([block(1), block(2)], now=NOW)
    logs = [DynamoPolicyLog(client, table, replica=replica).read(0) for replica in range(REPLICAS)]
    assert all(list(log) == list(logs[0]) for log in logs)
    assert len(logs[0]) == 2


def test_a_long_log_is_read_page_by_page(moto: Any) -> None:
    """DynamoDB's 1 MB a page does not end the log."""
    client = moto.client("dynamodb")
    log = DynamoPolicyLog(client, create_table(client, "policy"), replica=0)
    for start in range(0, 4_500, 500):
        log.append([Change("block", f"{'x' * 200}{start + n}", True) for n in range(500)], now=NOW)
    assert [change.version for change in log.read(0)] == list(range(1, 4_501))


def test_a_reader_waits_for_what_is_missing_in_between(moto: Any) -> None:
    """An append whose entry is not visible yet is read later, and not passed over for good."""
    client = moto.client("dynamodb")
    table = create_table(client, "policy")
    log = DynamoPolicyLog(client, table, replica=0)
    for number in range(4):
        log.append([block(number)], now=NOW)
    entry = {"pk": {"S": "log#00"}, "sk": {"N": "3"}}
    late = client.get_item(TableName=table, Key=entry)["Item"]
    client.delete_item(TableName=table, Key=entry)
    assert [change.version for change in log.read(0)] == [1, 2]
    assert log.read(2) == []
    client.put_item(TableName=table, Item=late)
    assert [change.version for change in log.read(2)] == [3, 4]


def test_an_append_over_the_transactions_limit_is_refused(moto: Any) -> None:
    """It says so before anything is written."""
    client = moto.client("dynamodb")
    log = DynamoPolicyLog(client, create_table(client, "policy"), replica=0)
    with pytest.raises(TooLarge):
        log.append([Change("block", "x" * 250, True)] * 1_000, now=NOW)
    assert list(log.read(0)) == []
