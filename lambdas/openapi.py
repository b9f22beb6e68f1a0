"""The API, described once: served as GET /openapi.json, written as docs/api.md."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lambdas.collect_events.contract import BYTES_A_BATCH, EVENTS_A_BATCH
from lambdas.freshen_catalogue.contract import BYTES_A_BATCH as BYTES_OF_ITEMS
from lambdas.freshen_catalogue.contract import ITEMS_A_BATCH
from lambdas.recommend.contract import BYTES_A_REQUEST, CONTEXT_CHARACTERS, CONTEXT_ITEMS, ID_CHARACTERS
from lambdas.update_policy.contract import BYTES_AT_ONCE, CHANGES_AT_ONCE, KINDS
from narrows.envelope import LIMITS, SCHEMA_VERSIONS
from narrows.events import EXCLUDING_TYPES, LARGEST
from narrows.item_upsert import DELETED, LATEST_VERSION, TEXT_CHARACTERS, WORD_CHARACTERS, WORDS
from narrows.item_upsert import VERSION as ITEM_VERSION
from narrows.settings import LARGEST_LIMIT, Catalogue

Schema = dict[str, Any]
A_CATALOGUE = Catalogue(
    id="item_id", text=("title",), categories="category", brand="brand", price="price", time="created_at",
    regions="regions", stock="stock", seller="seller",
)  # fmt: skip
"""Whose columns the page shows; an app's own document has the app's."""

VERSION = "1.0.0"
RUNGS = {
    "full": "retrieved, ranked by the model, re-ranked",
    "remembered": "the candidates of an earlier request, ranked by the model now",
    "in_process": "retrieved, ranked without a model by fused ranks",
    "last_slate": "what the visitor was shown last",
    "segment": "what is popular in the visitor's segment; also when the visitor's state cannot be read",
    "static": "the list that ships with the code",
    "none_eligible": "the rules leave nothing: an empty list, status 200",
}
ERRORS = {
    "400": "A field is wrong; the error names it, its value and what to send instead",
    "404": "No such surface",
    "413": "The body, or the number of things in it, is over the limit",
    "503": "A store that this answer cannot do without did not answer; try again",
}


def document(
    surfaces: Sequence[str], event_types: Sequence[str], catalogue: Catalogue = A_CATALOGUE
) -> dict[str, Any]:
    """The OpenAPI 3.1 document of an app with these surfaces, event types and columns of items."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Narrows",
            "version": VERSION,
            "description": "Recommendations, events and policy.",
        },
        "paths": {
            "/api/recommendations/{surface}": {"post": _recommendations(surfaces)},
            "/api/events": {"post": _events(event_types)},
            "/events": {"post": _put_events()},
            "/api/items": {"post": _items(catalogue)},
            "/api/policy/changes": {"post": _policy()},
            "/api/health": {"get": _health()},
            "/openapi.json": {"get": _operation("openapi", "This document", {"type": "object"}, ())},
        },
        "components": {"schemas": {"Error": _error()}},
    }


def _recommendations(surfaces: Sequence[str]) -> dict[str, Any]:
    operation = _operation(
        "recommend",
        "Recommendations for a visitor on a surface",
        _slate(),
        ("400", "404", "413"),
        request=_visitor(),
        limit=f"{BYTES_A_REQUEST} bytes",
    )
    place = {"name": "surface", "in": "path", "required": True}
    operation["parameters"] = [{**place, "schema": {"type": "string", "enum": list(surfaces)}}]
    return operation


def _visitor() -> Schema:
    usual = "How many; the surface's own number where left out"
    request = _object(
        {
            "user_id": _text(ID_CHARACTERS, "The user; unknown ones are served, never refused"),
            "session_id": _text(ID_CHARACTERS, "The session; one of user_id and session_id is required"),
            "limit": {"type": "integer", "minimum": 1, "maximum": LARGEST_LIMIT, "description": usual},
            "context": _object(
                {
                    "device": _text(CONTEXT_CHARACTERS, "For example mobile, tablet, desktop"),
                    "location": _text(CONTEXT_CHARACTERS, "The region, for rules and segments: DE"),
                    "time": _moment("The client's time, ISO 8601 with a zone or epoch seconds"),
                }
            ),
            "item_id": _text(ID_CHARACTERS, "The item of a product page"),
            "item_ids": _list(_text(ID_CHARACTERS), CONTEXT_ITEMS, "The items of a cart"),
            "explain": {"type": "boolean", "description": "Answer with `trace` as well"},
        }
    )
    return {**request, "anyOf": [{"required": ["user_id"]}, {"required": ["session_id"]}]}


def _slate() -> Schema:
    nullable = {"type": ["string", "null"]}
    reasons = "What went wrong: stage to reason; empty when all went well"
    response = _object(
        {
            "recommendations": {"type": "array", "items": _item(), "description": "Best first"},
            "model_version": {**nullable, "description": "Null before the first model"},
            "experiment_id": nullable,
            "recommendation_id": {"type": "string", "description": "Send it back with events"},
            "fallback": {"type": "string", "enum": list(RUNGS), "description": "The rung that answered"},
            "degraded": {
                "type": "object",
                "additionalProperties": {"type": "string"},
                "description": reasons,
            },
            "policy_version": {"type": "integer", "description": "The rules' version that was heeded"},
            "missing_ids": _list({"type": "string"}, CONTEXT_ITEMS, "Items of the request that are unknown"),
        },
        complete=True,
    )
    response["properties"]["trace"] = {"type": "object", "description": "With explain: how it came about"}
    return response


def _item() -> Schema:
    return _object(
        {
            "product_id": {"type": "string", "description": "Equal to item_id"},
            "item_id": {"type": "string"},
            "score": {"type": ["number", "null"], "description": "Null where the rung does not score"},
            "reason": {"type": "string"},
            "position": {"type": "integer", "description": "From 1"},
        },
        complete=True,
    )


def _events(event_types: Sequence[str]) -> dict[str, Any]:
    verdicts = {"type": "array", "items": _verdict(), "description": "One for each event, in order"}
    counts = {"accepted": {"type": "integer"}, "rejected": {"type": "integer"}}
    batch = _list(_event(sorted({*event_types, *EXCLUDING_TYPES})), EVENTS_A_BATCH)
    return _operation(
        "collectEvents",
        "Events, each judged on its own; 200 also when all are rejected",
        _object({**counts, "verdicts": verdicts}, complete=True),
        ("400", "413", "503"),
        request=_object({"events": batch}, complete=True),
        limit=f"{EVENTS_A_BATCH} events or {BYTES_A_BATCH} bytes",
    )


def _event(event_types: Sequence[str]) -> Schema:
    identifier = _text(LIMITS.id_characters)
    window = f"at most {LIMITS.ahead_s:g} seconds ahead and {LIMITS.behind_s / 86_400:g} days old"
    said = _text(LIMITS.property_characters, "For example mobile, tablet, desktop")
    consent = "False: kept under no identifier, folded into no feature; true where left out"
    event = _object(
        {
            "event_id": _text(
                LIMITS.id_characters, "Removes duplicates; follows from the content if left out"
            ),
            "event_type": {"type": "string", "enum": list(event_types)},
            "event_value": {**_number(), "description": "How strong: a price, a fraction watched"},
            "sent_at": _moment(f"ISO 8601 with a zone or epoch seconds; {window}; now where left out"),
            "user_id": _text(LIMITS.id_characters, "One of user_id and session_id is required"),
            "session_id": identifier,
            "item_id": identifier,
            "recommendation_id": _text(LIMITS.id_characters, "Of the response that showed the item"),
            "position": {"type": "integer", "minimum": 0, "maximum": LIMITS.position},
            "surface": identifier,
            "impression": _list(identifier, LIMITS.impressions, "The items that were shown"),
            "query": _text(LIMITS.query_characters),
            "context": _object(
                {
                    "device": said,
                    "location": _text(LIMITS.property_characters, "As in a request: DE"),
                    "user_agent": _text(
                        LIMITS.property_characters,
                        "The visitor's, where a server passes the event on; tells bots, and is not kept",
                    ),
                }
            ),
            "properties": {
                "type": "object",
                "maxProperties": LIMITS.properties,
                "additionalProperties": {**_number(), "type": ["string", "number", "boolean", "null"]},
            },
            "schema_version": {
                "type": "integer",
                "enum": list(SCHEMA_VERSIONS),
                "description": "1 where left out; it has no `context`: device and location are properties",
            },
            "consent": {"type": "boolean", "description": consent},
            "received_at": {"description": "Ignored; it is set here"},
        }
    )
    return {**event, "required": ["event_type"]}


def _put_events() -> dict[str, Any]:
    """Amazon Personalize's PutEvents: its names, and its errors."""
    identifier, attribution = _text(LIMITS.id_characters), "Kept as the property event_attribution_source"
    event = _object(
        {
            "eventType": _text(LIMITS.id_characters, "A type of the app, however it is capitalised: Watch"),
            "sentAt": {"type": "number", "description": "Epoch seconds"},
            "eventId": _text(LIMITS.id_characters, "Follows from the content where left out"),
            "eventValue": _number(),
            "itemId": identifier,
            "properties": {"type": "string", "description": "A JSON object of plain values"},
            "recommendationId": identifier,
            "impression": _list(identifier, LIMITS.impressions),
            "metricAttribution": {"type": "object", "description": attribution},
        }
    )
    call = _object(
        {
            "trackingId": _text(LIMITS.id_characters, "Any"),
            "userId": identifier,
            "sessionId": identifier,
            "eventList": _list({**event, "required": ["eventType", "sentAt"]}, EVENTS_A_BATCH),
        }
    )
    error = _object({"__type": {"type": "string"}, "message": {"type": "string"}}, complete=True)
    content = {"application/json": {"schema": error}}
    operation = _operation(
        "putEvents",
        "The same for clients of Amazon Personalize: `boto3.client('personalize-events', endpoint_url=...)`",
        {"type": "object"},
        (),
        request={**call, "required": ["trackingId", "sessionId", "eventList"]},
        limit=f"{EVENTS_A_BATCH} events or {BYTES_A_BATCH} bytes",
    )
    operation["responses"] |= {
        "400": {"description": "InvalidInputException, naming each refused event; the others are stored"},
        "503": {"description": "ServiceUnavailableException; send all of them again, each counts once"},
    }
    for status in ("400", "503"):
        operation["responses"][status]["content"] = content
    return operation


def _verdict() -> Schema:
    return _object(
        {
            "index": {"type": "integer", "description": "Of the event in the batch, from 0"},
            "event_id": {"type": "string"},
            "status": {"type": "string", "enum": ["accepted", "rejected"]},
            "field": {"type": "string", "description": "Of a rejected event: what is wrong"},
            "value": {"type": "string"},
            "remedy": {"type": "string", "description": "What to send instead"},
        }
    )


def _items(catalogue: Catalogue) -> dict[str, Any]:
    unread = (
        "Stored without a vector of their text: the text encoder did not answer, the model is not readable, "
        "or it has read none of the words"
    )
    counts: Schema = {"accepted": {"type": "integer"}, "rejected": {"type": "integer"}}
    counts["no_vector"] = {"type": "integer", "description": unread}
    verdicts = {"type": "array", "items": _item_verdict(), "description": "One for each item, in order"}
    return _operation(
        "changeItems",
        "Items that are new, changed or gone, each judged on its own; 200 also when all are rejected",
        _object({**counts, "verdicts": verdicts}, complete=True),
        ("400", "413", "503"),
        request=_object({"items": _list(_sent_item(catalogue), ITEMS_A_BATCH)}, complete=True),
        limit=f"{ITEMS_A_BATCH} items or {BYTES_OF_ITEMS} bytes",
    )


def _sent_item(catalogue: Catalogue) -> Schema:
    """An item under the app's own names; what is left out is missing from then on."""
    word, number = _text(WORD_CHARACTERS), _number()
    words = {"oneOf": [_list(word, WORDS), {**word, "description": "Several between bars: a|b"}]}
    rising = "Rises with every change of the item: an older one changes nothing; its arrival where left out"
    parts: list[tuple[str, Schema]] = [
        (catalogue.id, _text(ID_CHARACTERS)),
        *((name, {"type": "string", "maxLength": TEXT_CHARACTERS}) for name in catalogue.text),
        (catalogue.categories, words),
        (catalogue.brand, word),
        (catalogue.seller, {**word, "description": "Who sells it"}),
        (catalogue.price, {**number, "minimum": 0}),
        (
            catalogue.time,
            _moment("When it came to be, 1800 to 2100; when it was stored first where left out"),
        ),
        (catalogue.regions, {**words, "description": "Where it is sold; everywhere where left out"}),
        *((name, number) for name in catalogue.attributes),
        (catalogue.stock, {**number, "minimum": 0, "description": "Pieces; 0 is not shown from now on"}),
        (ITEM_VERSION, {"type": "integer", "minimum": 0, "maximum": LATEST_VERSION, "description": rising}),
        (DELETED, {"type": "boolean", "description": "True: it is gone, and not shown from now on"}),
    ]
    return {**_object({name: schema for name, schema in parts if name}), "required": [catalogue.id]}


def _item_verdict() -> Schema:
    became = "unchanged: it is stored like this already; stale: a newer version is"
    return _object(
        {
            "index": {"type": "integer", "description": "Of the item in the batch, from 0"},
            "item_id": {"type": "string"},
            "status": {
                "type": "string",
                "enum": ["accepted", "unchanged", "stale", "rejected"],
                "description": became,
            },
            "field": {"type": "string", "description": "Of a rejected item: what is wrong"},
            "value": {"type": "string"},
            "remedy": {"type": "string", "description": "What to send instead"},
            "no_vector": {
                "type": "string",
                "description": "Of an item that is counted there: the error, or UnknownWords",
            },
        }
    )


def _policy() -> dict[str, Any]:
    value = {
        "description": "stock: true for in stock; block: true for blocked; region: where it may not be shown",
        "oneOf": [{"type": "boolean"}, {"type": "array", "items": {"type": "string"}}],
    }
    kind = {"type": "string", "enum": list(KINDS)}
    change = _object({"kind": kind, "item_id": _text(ID_CHARACTERS), "value": value}, complete=True)
    changes = {"type": "array", "minItems": 1, "maxItems": CHANGES_AT_ONCE, "items": change}
    version = {"type": "integer", "description": "Responses with this policy_version or a later one heed it"}
    return _operation(
        "changePolicy",
        "Facts that the gate must know; all of them are taken, or none",
        _object({"version": version}, complete=True),
        ("400", "413", "503"),
        request=_object({"changes": changes}, complete=True),
        limit=f"{CHANGES_AT_ONCE} changes or {BYTES_AT_ONCE} bytes",
    )


def _health() -> dict[str, Any]:
    response = _object(
        {
            "app": {"type": "string"},
            "model_version": {"type": ["string", "null"]},
            "snapshot_version": {"type": "string"},
            "policy_version": {"type": "integer"},
            "policy_age_s": {"type": ["number", "null"], "description": "Null: the log never answered"},
            "rungs": {"type": "object", "description": "Answers of this process by rung"},
            "problems": {"type": "object", "description": "Parts that could not be loaded, and why"},
            "decisions": {"type": "object", "description": "Decision records sent, and lost by reason"},
        },
        complete=True,
    )
    return _operation("health", "What this process serves with", response, ())


def _operation(
    name: str,
    summary: str,
    response: Schema,
    errors: Sequence[str],
    *,
    request: Schema | None = None,
    limit: str = "",
) -> dict[str, Any]:
    content: dict[str, Any] = {"operationId": name, "summary": summary}
    if request is not None:
        body = {"required": True, "content": {"application/json": {"schema": request}}}
        content["requestBody"] = {"description": f"At most {limit}", **body}
    refused = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    content["responses"] = {
        "200": {"description": "OK", "content": {"application/json": {"schema": response}}},
        **{status: {"description": ERRORS[status], "content": refused} for status in errors},
    }
    return content


def _error() -> Schema:
    names = ("type", "message", "field", "value", "remedy")
    fields = {
        name: {"type": "string" if name in ("type", "message") else ["string", "null"]} for name in names
    }
    return _object({"error": _object(fields, complete=True)}, complete=True)


def _object(properties: Mapping[str, Any], *, complete: bool = False) -> Schema:
    schema = {"type": "object", "properties": dict(properties), "additionalProperties": False}
    return {**schema, "required": list(properties)} if complete else schema


def _text(longest: int, description: str = "") -> Schema:
    schema: Schema = {"type": "string", "minLength": 1, "maxLength": longest}
    return {**schema, "description": description} if description else schema


def _number() -> Schema:
    return {"type": "number", "minimum": -LARGEST, "maximum": LARGEST}


def _moment(description: str) -> Schema:
    return {"type": ["string", "number"], "description": description}


def _list(items: Schema, most: int, description: str = "") -> Schema:
    schema: Schema = {"type": "array", "maxItems": most, "items": items}
    return {**schema, "description": description} if description else schema


def markdown(api: Mapping[str, Any]) -> str:
    """The document as a page."""
    lines = ["# API", "", "Written by `python -m lambdas.openapi docs/api.md` from `lambdas/openapi.py`.", ""]
    lines += [
        "The same, for machines: `GET /openapi.json`. What the gateway itself refuses, such as an unknown"
    ]
    lines += ['path, is its `{"message": ...}`; every error of the routes below has one shape:', ""]
    lines += ['`{"error": {"type", "message", "field", "value", "remedy"}}`.', ""]
    for path, methods in api["paths"].items():
        for method, operation in methods.items():
            lines += [f"## {method.upper()} {path}", "", operation["summary"] + ".", ""]
            lines += _page(operation)
    lines += ["## Rungs", "", "`fallback` names the rung of the ladder that answered.", ""]
    lines += ["| rung | what answered |", "| --- | --- |"]
    lines += [f"| `{rung}` | {meaning} |" for rung, meaning in RUNGS.items()]
    return "\n".join(lines) + "\n"


def _page(operation: Mapping[str, Any]) -> list[str]:
    lines: list[str] = []
    if "requestBody" in operation:
        body = operation["requestBody"]
        lines += [f"Request ({body['description'].lower()}):", ""]
        lines += [*_table(body["content"]["application/json"]["schema"]), ""]
    answer = operation["responses"]["200"]["content"]["application/json"]["schema"]
    if "properties" in answer:
        lines += ["Response:", "", *_table(answer), ""]
    errors = [(status, one) for status, one in operation["responses"].items() if status != "200"]
    return lines + [f"- {status}: {one['description']}." for status, one in errors] + ([""] if errors else [])


def _table(schema: Mapping[str, Any]) -> list[str]:
    return ["| field | type | |", "| --- | --- | --- |", *_rows("", schema)]


def _rows(path: str, schema: Mapping[str, Any]) -> list[str]:
    rows: list[str] = []
    for name, one in schema.get("properties", {}).items():
        kinds = one.get("type", "any")
        shown = kinds if isinstance(kinds, str) else " or ".join(kinds)
        choice = ": " + ", ".join(f"`{value}`" for value in one["enum"]) if "enum" in one else ""
        rows.append(f"| `{path}{name}` | {shown}{choice} | {one.get('description', '')} |")
        inner, deeper = (one.get("items", {}), "[].") if kinds == "array" else (one, ".")
        rows += _rows(f"{path}{name}{deeper}", inner)
    return rows


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(markdown(document(["feed"], ["impression", "click", "watch"])))
