"""A resource of ours in CloudFormation: what a function has to answer when a stack asks it to make one."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Mapping
from typing import Any

from narrows.errors import InvalidInput

REASON_CHARACTERS = 1_000
ANSWER_S = 10.0


def answer(event: Mapping[str, Any], resource: str, failure: str = "") -> None:
    """Tell the stack that the resource of this name is as it asked, or why it is not.

    It waits for an hour where nobody does.
    """
    url = str(event["ResponseURL"])
    if not url.startswith(("https://", "http://127.0.0.1:")):
        raise InvalidInput("ResponseURL", url, "it must be the https address that CloudFormation sent")
    said = {
        "Status": "FAILED" if failure else "SUCCESS",
        "Reason": failure[:REASON_CHARACTERS] or "done",
        "PhysicalResourceId": resource,
        **{name: event[name] for name in ("StackId", "RequestId", "LogicalResourceId")},
    }
    asked = urllib.request.Request(  # noqa: S310  # the scheme was looked at above
        url, data=json.dumps(said).encode(), method="PUT", headers={"content-type": ""}
    )
    urllib.request.urlopen(asked, timeout=ANSWER_S).close()  # noqa: S310  # as above
