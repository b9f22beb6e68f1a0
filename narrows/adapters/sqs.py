"""SQS: records that were given up, each with the reason."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any

from narrows.adapters.aws import translated
from narrows.errors import StoreUnavailable
from narrows.features.stream import DeadLetter

MESSAGES_A_CALL = 10
DATA_BYTES = 12_000
"""What a message shows of a record's bytes: ten messages and a long reason each stay below SQS's 256 KiB."""


class SqsDeadLetters:
    """A queue of JSON messages: reason, shard, sequence, size, and the record's first bytes in base64."""

    def __init__(self, client: Any, queue_url: str) -> None:
        self._client = client
        self._queue_url = queue_url

    def put(self, letters: Sequence[DeadLetter]) -> None:
        for at in range(0, len(letters), MESSAGES_A_CALL):
            chunk = letters[at : at + MESSAGES_A_CALL]
            entries = [{"Id": str(n), "MessageBody": _message(letter)} for n, letter in enumerate(chunk)]
            with translated("send dead letters"):
                answer = self._client.send_message_batch(QueueUrl=self._queue_url, Entries=entries)
            if answer.get("Failed"):
                code = answer["Failed"][0].get("Code", "")
                raise StoreUnavailable(f"send dead letters: {len(answer['Failed'])} refused, {code}")


def _message(letter: DeadLetter) -> str:
    record = letter.record
    return json.dumps(
        {
            "reason": letter.reason[:2_000],
            "shard": record.shard,
            "sequence": record.sequence,
            "bytes": len(record.data),
            "data": base64.b64encode(record.data[:DATA_BYTES]).decode(),
        }
    )
