"""Handlers for the stream tests: each writes what it was given to the file named by its SEEN variable."""

import base64
import json
import os
from pathlib import Path
from typing import Any

SEEN = Path(os.environ["SEEN"])


def record(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Append each record's payload and identity; fails on a payload that says so, before or after a mark."""
    failures = []
    with SEEN.open("a") as seen:
        for each in event["Records"]:
            payload = json.loads(base64.b64decode(each["kinesis"]["data"]))
            if payload.get("poison"):
                raise ValueError("poison")
            if payload.get("bad"):
                failures.append({"itemIdentifier": each["kinesis"]["sequenceNumber"]})
                break
            seen.write(json.dumps([payload, each["eventID"], context.aws_request_id]) + "\n")
    return {"batchItemFailures": failures}


def whole(event: dict[str, Any], context: Any) -> None:
    """Write the event as it came."""
    with SEEN.open("a") as seen:
        seen.write(json.dumps(event) + "\n")
