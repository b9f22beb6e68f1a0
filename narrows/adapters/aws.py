"""AWS clients with bounded patience, and AWS's errors as Narrows's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from narrows.errors import Conflict, StoreUnavailable

_LOST_RACES = frozenset({"ConditionalCheckFailed", "TransactionConflict"})
_REFUSED_CONDITIONS = frozenset({"ConditionalCheckFailedException", "TransactionConflictException"})


def client(
    service: str,
    *,
    read_timeout_s: float,
    connect_timeout_s: float = 0.05,
    attempts: int = 1,
    connections: int = 16,
) -> Any:
    """A client that gives up after `attempts` tries of at most these timeouts; threads may share it.

    It leaves checking parameters to AWS and names itself by a fixed text: both took a fifth of a call's time.
    """
    config = Config(
        parameter_validation=False,
        user_agent="narrows",
        connect_timeout=connect_timeout_s,
        read_timeout=read_timeout_s,
        retries={"total_max_attempts": attempts, "mode": "standard"},
        max_pool_connections=connections,
        tcp_keepalive=True,
        s3={"addressing_style": "path"},
    )
    return boto3.client(service, config=config)


@contextmanager
def translated(action: str) -> Iterator[None]:
    """Raise Conflict for a lost conditional write and StoreUnavailable for every other refusal or silence.

    A Conflict of a transaction says which of its writes were lost.
    """
    try:
        yield
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        reasons = enumerate(error.response.get("CancellationReasons", ()))
        lost = [place for place, one in reasons if one.get("Code") in _LOST_RACES]
        if code in _REFUSED_CONDITIONS or lost:
            raise Conflict(f"{action}: somebody else wrote first", lost) from error
        raise StoreUnavailable(f"{action}: {code or type(error).__name__}") from error
    except BotoCoreError as error:
        raise StoreUnavailable(f"{action}: {type(error).__name__}") from error
