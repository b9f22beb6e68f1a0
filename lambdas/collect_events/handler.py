"""POST /api/events, and /events as Personalize has it: good events go to the stream under pseudonyms."""

from __future__ import annotations

from typing import Any

from aws_lambda_powertools import Logger
from aws_lambda_powertools.event_handler import Response

from lambdas.collect_events.contract import sent_events, shown
from lambdas.collect_events.put_events import answer_to
from lambdas.collect_events.wiring import Collector
from lambdas.http import answer, doorway
from lambdas.metrics import count
from narrows.collecting import Collected

COLLECTOR = Collector()
LOGGER = Logger(service="collect_events")
HTTP = doorway(LOGGER)


def collected(sent: list[object]) -> Collected:
    """Judge and store one batch."""
    batch = COLLECTOR.collect(sent, HTTP.current_event.raw_event["requestContext"]["http"].get("userAgent"))
    if batch.quarantine_failure:
        LOGGER.warning("rejected events were not kept", extra={"reason": batch.quarantine_failure})
    count("QuarantineLost", batch.unkept, HTTP.lambda_context.function_name)
    return batch


@HTTP.post("/api/events")
def collect_events() -> Response[str]:
    """A verdict for each event."""
    return answer(shown(collected(sent_events(HTTP.current_event.raw_event))))


@HTTP.post("/events")
def put_events() -> Response[str]:
    """The same for clients of Amazon Personalize."""
    return answer_to(HTTP.current_event.raw_event, collected)


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """API Gateway's payload 2.0 in, its response out."""
    return HTTP.resolve(event, context)
