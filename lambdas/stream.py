"""A Kinesis batch as the library's records, and its failures as Lambda's partial batch response."""

from __future__ import annotations

import base64
import gc
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from narrows.features.stream import StreamRecord


def records_of(event: Mapping[str, Any]) -> list[StreamRecord]:
    """The batch's records; `eventID` is "<shard>:<sequence number>"."""
    return [
        StreamRecord(
            shard=record["eventID"].partition(":")[0],
            sequence=record["kinesis"]["sequenceNumber"],
            data=base64.b64decode(record["kinesis"]["data"]),
        )
        for record in event["Records"]
    ]


def partial_failure(sequences: Iterable[str]) -> dict[str, Any]:
    """What Lambda reads to retry from the first of these on; empty for a batch that went well."""
    return {"batchItemFailures": [{"itemIdentifier": sequence} for sequence in sequences]}


@contextmanager
def collecting_afterwards() -> Iterator[None]:
    """Look for cycles of dead objects after the batch: it makes many objects that live, and hardly a cycle.

    Python looks after every 700 new ones, and that takes a third of the fold's time.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
