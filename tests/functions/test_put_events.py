"""Amazon Personalize's PutEvents, from unmodified boto3 over HTTP through the local front, on moto."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import boto3
import pytest
import uvicorn
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.exceptions import ClientError
from botocore.session import Session

from localcloud.functions import Function
from localcloud.gateway import Api, Route
from localcloud.http import Deployed as Served
from localcloud.http import Front
from tests.functions.deployed_collector import Deployed
from tests.servers import REGION, Aws, free_port

NAME = "collect_events"


@pytest.fixture
def deployed(moto: Aws, monkeypatch: pytest.MonkeyPatch) -> Deployed:
    return Deployed(moto, monkeypatch)


@pytest.fixture
def endpoint(deployed: Deployed) -> Iterator[str]:
    """The local front with the one route, on a real socket."""
    function = Function(NAME, f"arn:aws:lambda:{REGION}:000000000000:function:{NAME}", "", timeout_s=10.0)
    front = Front(Api((Route("POST /events", NAME),)), {NAME: Served(function, deployed.module.handler)})
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(front, port=port, lifespan="off", ws="none", log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


@pytest.fixture
def personalize(endpoint: str) -> Any:
    """A client as a shop has it; only its endpoint is ours."""
    once = Config(retries={"total_max_attempts": 1})
    return boto3.client("personalize-events", region_name=REGION, endpoint_url=endpoint, config=once)


def sent(**changes: Any) -> dict[str, Any]:
    event = {"eventType": "Watch", "sentAt": datetime.now(UTC), "itemId": "i1"}
    return {name: value for name, value in {**event, **changes}.items() if value is not None}


def call(personalize: Any, *events: dict[str, Any], **who: Any) -> Any:
    return personalize.put_events(trackingId="tracker", sessionId="s-1", eventList=list(events), **who)


def test_unmodified_boto3_stores_an_event(deployed: Deployed, personalize: Any) -> None:
    """Every member of the call arrives under our name, and its visitor under a pseudonym."""
    moment = datetime.now(UTC).replace(microsecond=0)
    answer = call(
        personalize,
        sent(
            eventId="e1",
            sentAt=moment,
            eventValue=0.75,
            properties=json.dumps({"device": "phone", "fraction": 0.75}),
            recommendationId="r1",
            impression=["i1", "i2"],
            metricAttribution={"eventAttributionSource": "newsletter"},
        ),
        userId="alice",
    )
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 200
    (stored,) = deployed.stored()
    assert "alice" not in json.dumps(stored)
    assert len(stored.pop("user_id")) == len(stored.pop("session_id")) == 32
    del stored["received_at"]
    assert stored == {
        "event_id": "e1",
        "event_type": "watch",
        "event_value": 0.75,
        "sent_at": moment.timestamp(),
        "item_id": "i1",
        "recommendation_id": "r1",
        "impression": ["i1", "i2"],
        "properties": {"device": "phone", "fraction": 0.75, "event_attribution_source": "newsletter"},
        "schema_version": 2,
        "consent": True,
    }


def test_the_endpoint_of_the_environment_is_enough(
    deployed: Deployed, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No line of a shop's code changes: the variable that its SDK reads points to us."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_PERSONALIZE_EVENTS", endpoint)
    call(boto3.client("personalize-events", region_name=REGION), sent(), sent(itemId="i2"))
    assert [one["item_id"] for one in deployed.stored()] == ["i1", "i2"]
    assert all("user_id" not in one for one in deployed.stored())


def test_a_bad_event_is_named_in_the_error_and_the_others_are_stored(
    deployed: Deployed, personalize: Any
) -> None:
    """Under the names of the call; what cannot be told for each event is told in the message."""
    events = [sent(itemId="i1"), sent(eventType="Teleport"), sent(properties="no JSON"), sent(itemId="i4")]
    with pytest.raises(personalize.exceptions.InvalidInputException) as refusal:
        call(personalize, *events)
    error = refusal.value.response["Error"]
    assert error["Code"] == "InvalidInputException"
    assert "eventList[1].eventType: 'teleport' is not allowed" in error["Message"]
    assert "eventList[2].properties" in error["Message"]
    assert "2 of 4 events were stored" in error["Message"]
    assert [one["item_id"] for one in deployed.stored()] == ["i1", "i4"]
    assert [one["field"] for one in deployed.quarantined()] == ["event_type", "properties"]


def test_a_number_beyond_the_limit_is_named(deployed: Deployed, personalize: Any) -> None:
    """As its value, and in the text of its properties."""
    events = [sent(eventValue=1e30), sent(properties=json.dumps({"price": 1e308})), sent(eventValue=2.5)]
    with pytest.raises(personalize.exceptions.InvalidInputException) as refusal:
        call(personalize, *events)
    message = refusal.value.response["Error"]["Message"]
    assert "eventList[0].eventValue" in message
    assert (
        "eventList[1].properties.price: 1e+308 is not allowed; send a finite number, from -1e+15" in message
    )
    assert [one["event_value"] for one in deployed.stored()] == [2.5]


def test_a_stream_that_refuses_is_a_reason_to_try_again(deployed: Deployed, personalize: Any) -> None:
    """503 is what SDKs try again by themselves, also where another event is wrong for good."""
    deployed.kinesis.delete_stream(StreamName=deployed.stream)
    with pytest.raises(ClientError) as refusal:
        call(personalize, sent(), sent(eventType="Teleport"))
    assert "1 of 2 events were not stored; send them again" in str(refusal.value)
    assert refusal.value.response["Error"]["Code"] == "ServiceUnavailableException"
    assert refusal.value.response["ResponseMetadata"]["HTTPStatusCode"] == 503


def test_without_the_key_nothing_is_taken(deployed: Deployed, personalize: Any, moto: Aws) -> None:
    """503 under a name of AWS as well."""
    moto.client("secretsmanager").delete_secret(SecretId="pseudonyms", ForceDeleteWithoutRecovery=True)
    with pytest.raises(ClientError, match="ServiceUnavailableException"):
        call(personalize, sent())
    assert deployed.stored() == []


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ("", "body"),
        ({"sessionId": "s", "eventList": [{}]}, "trackingId"),
        ({"trackingId": "t", "eventList": [{}]}, "sessionId"),
        ({"trackingId": "t", "sessionId": "s", "userId": 7, "eventList": [{}]}, "userId"),
        ({"trackingId": "t", "sessionId": "s"}, "eventList"),
        ({"trackingId": "t", "sessionId": "s", "eventList": []}, "eventList"),
        ({"trackingId": "t", "sessionId": "s", "eventList": [{}] * 501}, "eventList"),
        ({"trackingId": "t", "sessionId": "s", "eventList": [{}], "userID": "u"}, "userID"),
        ({"trackingId": "t", "sessionId": "s", "eventList": [7, {}]}, "eventList[0].event"),
        (
            {
                "trackingId": "t",
                "sessionId": "s",
                "eventList": [{"eventType": "click", "properties": "[" * 900}],
            },
            "eventList[0].properties",
        ),
        (
            {
                "trackingId": "t",
                "sessionId": "s",
                "eventList": [{"eventType": "click", "properties": '{"a":' * 900 + "1" + "}" * 900}],
            },
            "eventList[0].properties",
        ),
        (
            {"trackingId": "t", "sessionId": "s", "eventList": [{"eventType": "click", "properties": "3"}]},
            "eventList[0].properties",
        ),
        (
            '{"trackingId": "t", "sessionId": "s", "eventList": [{"eventType": "click", "properties": {"a": '
            + "[" * 960
            + "]" * 960
            + "}}]}",
            "eventList[0].properties.a",
        ),
        (
            {
                "trackingId": "t",
                "sessionId": "s",
                "eventList": [{"eventType": "click", "properties": '{"price": ' + "9" * 5_000 + "}"}],
            },
            "eventList[0].properties.price",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_call_is_an_invalid_input(deployed: Deployed, body: object, field: str) -> None:
    """What boto3 would not even send is answered under AWS's name too, with the field in the message."""
    status, answer = deployed.send(body, path="/events")
    assert (status, answer["__type"]) == (400, "InvalidInputException")
    assert field in answer["message"]
    assert deployed.stored() == []


@pytest.mark.parametrize("name", ["Watch", "watch", "WATCH"])
def test_types_are_found_however_they_are_written(deployed: Deployed, personalize: Any, name: str) -> None:
    """Personalize's own domain types begin with a capital letter; ours are lower case."""
    call(personalize, sent(eventType=name))
    assert [one["event_type"] for one in deployed.stored()] == ["watch"]


def test_a_client_can_sign_for_the_api(deployed: Deployed, personalize: Any) -> None:
    """With the one handler of docs/operations/events.md the signature is one that API Gateway's IAM verifies.

    It is computed again from what went over the wire, as API Gateway does, for its own service's name.
    """
    sent_out: list[Any] = []

    def for_the_api(request: Any, **_: Any) -> None:
        request.context.setdefault("signing", {})["signing_name"] = "execute-api"

    personalize.meta.events.register(
        "before-send.personalize-events.*", lambda request, **_: sent_out.append(request)
    )
    call(personalize, sent())
    personalize.meta.events.register("before-sign.personalize-events.*", for_the_api)
    call(personalize, sent())
    as_it_was, signed_for_us = sent_out
    assert not verifies(as_it_was)
    assert verifies(signed_for_us)
    assert len(deployed.stored()) == 2


def verifies(request: Any) -> bool:
    """Whether the signature of a request on the wire is right for execute-api in this region."""
    headers = {
        name: text.decode() if isinstance(text, bytes) else text for name, text in request.headers.items()
    }
    scope, signed, given = re.findall(
        r"(?:Credential|SignedHeaders|Signature)=([^,]+)", headers["Authorization"]
    )
    chosen = {name: value for name, value in headers.items() if name.lower() in signed.split(";")}
    again = AWSRequest(request.method, request.url, headers=chosen, data=request.body)
    again.context["timestamp"] = headers["X-Amz-Date"]
    auth = SigV4Auth(Session().get_credentials(), "execute-api", REGION)
    text = auth.string_to_sign(again, auth.canonical_request(again))
    return (
        scope.split("/")[2:] == [REGION, "execute-api", "aws4_request"]
        and auth.signature(text, again) == given
    )
