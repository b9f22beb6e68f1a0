"""Amazon Personalize's PutEvents as it comes over the wire, so that its clients send events unchanged.

The names are those of its API: `eventList` of `eventType`, `sentAt`, `itemId`, `properties` as JSON in a
string. What our envelope has beyond them, such as `consent`, can be sent beside them under our name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

from aws_lambda_powertools.event_handler import Response

from lambdas.collect_events.contract import BYTES_A_BATCH, EVENTS_A_BATCH
from lambdas.http import JSON, decoded, json_object
from narrows.collecting import SEND_AGAIN, Collected, Verdict
from narrows.envelope import LIMITS
from narrows.errors import InvalidInput, StoreUnavailable, TooLarge
from narrows.events import checked_text

FIELDS = ("trackingId", "userId", "sessionId", "eventList")
RENAMED = {
    "eventId": "event_id",
    "eventType": "event_type",
    "eventValue": "event_value",
    "itemId": "item_id",
    "properties": "properties",
    "recommendationId": "recommendation_id",
    "impression": "impression",
    "sentAt": "sent_at",
    "metricAttribution": "metricAttribution",
}
ATTRIBUTION = "event_attribution_source"
INVALID, UNAVAILABLE = "InvalidInputException", "ServiceUnavailableException"
SHOWN = 5


def answer_to(event: Mapping[str, Any], collect: Callable[[list[object]], Collected]) -> Response[str]:
    """The call's events collected, and what its client understands of the outcome."""
    try:
        return _answered(collect(_sent_events(event)))
    except InvalidInput as error:
        return _error(HTTPStatus.BAD_REQUEST, INVALID, str(error))
    except StoreUnavailable as error:  # nothing was taken; the client tries again by itself
        return _error(HTTPStatus.SERVICE_UNAVAILABLE, UNAVAILABLE, str(error))


def _sent_events(event: Mapping[str, Any]) -> list[object]:
    """The events of the call in our envelope, not judged yet; an error here refuses the whole call."""
    body = json_object(event, limit_bytes=BYTES_A_BATCH, fields=FIELDS, finite=False)
    checked_text("trackingId", body.get("trackingId"), LIMITS.id_characters, needed=True)
    session_id = checked_text("sessionId", body.get("sessionId"), LIMITS.id_characters, needed=True)
    who = {"session_id": session_id}
    if body.get("userId") is not None:
        who["user_id"] = checked_text("userId", body["userId"], LIMITS.id_characters)
    events = body.get("eventList")
    if not isinstance(events, list) or not events:
        raise InvalidInput("eventList", events, "send a list of at least one event")
    if len(events) > EVENTS_A_BATCH:
        raise TooLarge("eventList", f"{len(events)} events", f"send at most {EVENTS_A_BATCH} events at once")
    return [_renamed(one, who) if isinstance(one, Mapping) else one for one in events]


def _answered(collected: Collected) -> Response[str]:
    """Success only where every event was taken: the protocol has no verdict for one event.

    An error names the events that were not taken; the others are stored. Sending all of them again is safe,
    since an event counts once.
    """
    refused = [one for one in collected.verdicts if one.status == "rejected"]
    if not refused:
        return Response(status_code=HTTPStatus.OK, content_type=JSON, body="")
    lost = [one for one in refused if one.remedy == SEND_AGAIN]
    if lost:  # before what is wrong: clients try again by themselves, and then hear of that
        reason = f"{len(lost)} of {len(collected.verdicts)} events were not stored; send them again"
        return _error(HTTPStatus.SERVICE_UNAVAILABLE, UNAVAILABLE, reason)
    named = "; ".join(_named(one) for one in refused[:SHOWN])
    more = f"; and {len(refused) - SHOWN} more" if len(refused) > SHOWN else ""
    stored = f"{collected.accepted} of {len(collected.verdicts)} events were stored"
    return _error(HTTPStatus.BAD_REQUEST, INVALID, f"{named}{more} ({stored})")


def _renamed(sent: Mapping[str, Any], who: Mapping[str, str]) -> dict[str, Any]:
    event: dict[str, Any] = {RENAMED.get(name, name): value for name, value in sent.items()}
    if isinstance(event.get("event_type"), str):
        event["event_type"] = _snake_case(event["event_type"])
    if "properties" in event:
        event["properties"] = _object_in(event["properties"])
    attribution = event.pop("metricAttribution", None)
    if isinstance(attribution, Mapping) and isinstance(event.get("properties", {}), Mapping):
        source = attribution.get("eventAttributionSource")
        event["properties"] = {**event.get("properties", {}), ATTRIBUTION: source}
    return {**event, **who}


def _snake_case(name: str) -> str:
    """`AddToCart`, `Add-to-cart` and `add_to_cart` are one type."""
    return re.sub(r"[^a-z0-9]+", "_", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower())


def _object_in(value: object) -> object:
    """The object in the string; anything else stays as it is, for its verdict."""
    if not isinstance(value, str):
        return value
    try:
        found = decoded(value)
    except ValueError:
        return value
    return found if isinstance(found, dict) else value


def _named(verdict: Verdict) -> str:
    """The verdict under the names that the client sent."""
    theirs = {ours: name for name, ours in RENAMED.items()}
    root, rest = re.fullmatch(r"(\w*)(.*)", verdict.field or "", re.DOTALL).groups()  # type: ignore[union-attr]
    field = f"eventList[{verdict.index}].{theirs.get(root, root)}{rest}"
    return f"{field}: {verdict.value} is not allowed; {verdict.remedy}"


def _error(status: HTTPStatus, kind: str, message: str) -> Response[str]:
    return Response(
        status_code=int(status),
        content_type=JSON,
        headers={"x-amzn-ErrorType": kind},
        body=json.dumps({"__type": kind, "message": message}),
    )
