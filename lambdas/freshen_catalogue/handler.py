"""POST /api/items, and the stream of items: each is judged, given its vector, and stored by one write."""

from __future__ import annotations

from typing import Any

from aws_lambda_powertools import Logger
from aws_lambda_powertools.event_handler import Response

from lambdas.freshen_catalogue.contract import sent_items, shown, streamed_item, without_vector
from lambdas.freshen_catalogue.wiring import Freshener
from lambdas.http import answer, doorway
from lambdas.stream import partial_failure, records_of

FRESHENER = Freshener()
LOGGER = Logger(service="freshen_catalogue")
HTTP = doorway(LOGGER)


@HTTP.post("/api/items")
def items() -> Response[str]:
    """A verdict for each item."""
    verdicts = FRESHENER.freshen(sent_items(HTTP.current_event.raw_event))
    warn(without_vector(verdicts))
    return answer(shown(verdicts))


def from_stream(event: dict[str, Any]) -> dict[str, Any]:
    """A Kinesis batch of one item a record; Lambda delivers again from the first that was not stored."""
    records = records_of(event)
    outcome = FRESHENER.freshen_stream([streamed_item(record) for record in records])
    if outcome.refused:
        LOGGER.warning("items were refused", extra={"refused": outcome.refused, "kept": outcome.key})
    warn(outcome.no_vector)
    return partial_failure(record.sequence for record in records[outcome.stored_before :][:1])


def warn(no_vector: int) -> None:
    """Count what the text encoder, or a model that cannot be read, left without a vector."""
    if no_vector:
        LOGGER.warning("items have no vector: their verdicts say why", extra={"items": no_vector})


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """API Gateway's payload 2.0, or a batch of the stream."""
    return from_stream(event) if "Records" in event else HTTP.resolve(event, context)
