"""The function that the small stack deploys: it keeps or refuses what a workflow hands it."""

import os

import boto3


class NothingToPromote(Exception):
    """Says so under its own name, which a workflow can catch."""


def handler(event: dict, context: object) -> dict:
    """Write the event's model into the table, where there is one."""
    if not event.get("model"):
        raise NothingToPromote("no model was given")
    table = boto3.resource("dynamodb").Table(os.environ["TABLE"])
    table.put_item(Item={"pk": "model", "uri": event["model"]})
    return {"promoted": event.get("better", True), "model": event["model"]}
