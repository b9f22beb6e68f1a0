"""POST /api/recommendations/{surface}: parse, ask the pipeline, answer; whatever is away, with status 200."""

from __future__ import annotations

import os
import time
import uuid
from typing import Any

from aws_lambda_powertools import Logger
from aws_lambda_powertools.event_handler import Response

from lambdas.http import answer, doorway
from lambdas.openapi import document
from lambdas.recommend.contract import asked, shown
from lambdas.recommend.wiring import Settings, app_folder, wire
from narrows.settings import environment, load_app

SETTINGS = environment(Settings, os.environ)
APP = load_app(app_folder(SETTINGS.app))
LOGGER = Logger(service="recommend")
FRONT = wire(SETTINGS, APP, LOGGER)
OPENAPI = document(list(APP.surfaces), list(APP.events), APP.catalogue)
HTTP = doorway(LOGGER)


@HTTP.post("/api/recommendations/<surface>")
def recommendations(surface: str) -> Response[str]:
    """A slate for the visitor."""
    now = time.time()
    ask = asked(HTTP.current_event.raw_event, surface, app=APP, now=now)
    recommendation = FRONT.recommend(ask, now=now, recommendation_id=uuid.uuid4().hex)
    return answer(shown(recommendation, FRONT.explanation(recommendation) if ask.explain else None))


@HTTP.get("/api/health")
def health() -> Response[str]:
    """What this process serves with."""
    return answer(FRONT.health(now=time.time()))


@HTTP.get("/openapi.json")
def openapi() -> Response[str]:
    """The API's description, with this app's surfaces and event types."""
    return answer(OPENAPI)


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """API Gateway's payload 2.0 in, its response out."""
    try:
        return HTTP.resolve(event, context)
    finally:
        FRONT.finished()
