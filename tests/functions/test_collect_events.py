"""POST /api/events, with API Gateway's payloads, on moto."""

from __future__ import annotations

import gzip
import json
import time
from types import ModuleType
from typing import Any

import pytest

from tests.contract.tables import create_bucket, create_stream, read_stream
from tests.functions.doorways import call, cold_start, http_event
from tests.servers import Aws

PATH = "/api/events"


class Deployed:
    """The function and what it is deployed with."""

    def __init__(self, aws: Aws, monkeypatch: pytest.MonkeyPatch) -> None:
        self.kinesis, self.s3 = aws.client("kinesis"), aws.client("s3")
        self.stream, self.bucket = create_stream(self.kinesis, "events"), create_bucket(self.s3)
        aws.client("secretsmanager").create_secret(Name="pseudonyms", SecretString="a secret of the test")
        self.module: ModuleType = cold_start(
            "collect_events",
            monkeypatch,
            {
                "APP": "media",
                "EVENTS_STREAM": self.stream,
                "BUCKET": self.bucket,
                "PSEUDONYM_SECRET": "pseudonyms",
            },
        )

    def send(self, body: object, **how: Any) -> tuple[int, Any]:
        return call(self.module, http_event("POST", PATH, body, **how))

    def stored(self) -> list[dict[str, Any]]:
        return [json.loads(record["Data"]) for record in read_stream(self.kinesis, self.stream)]

    def quarantined(self) -> list[dict[str, Any]]:
        listing = self.s3.list_objects_v2(Bucket=self.bucket, Prefix="quarantine/events/dt=")
        files = [
            gzip.decompress(self.s3.get_object(Bucket=self.bucket, Key=one["Key"])["Body"].read())
            for one in listing.get("Contents", [])
        ]
        return [json.loads(line) for file in files for line in file.splitlines()]


@pytest.fixture
def deployed(moto: Aws, monkeypatch: pytest.MonkeyPatch) -> Deployed:
    return Deployed(moto, monkeypatch)


def click(**changes: Any) -> dict[str, Any]:
    event = {"event_type": "click", "user_id": "alice", "session_id": "s-1", "item_id": "i1"}
    return {**event, "sent_at": time.time() - 1, **changes}


def test_each_event_has_its_own_verdict(deployed: Deployed) -> None:
    """Bad events among good ones are answered by index, and the good ones are stored."""
    bad = [click(event_type="clik"), click(event_value=float("nan")), "nonsense", click(user_id="u" * 257)]
    status, answer = deployed.send({"events": [click(), bad[0], click(item_id="i2"), *bad[1:]]})
    assert (status, answer["accepted"], answer["rejected"]) == (200, 2, 4)
    assert [one["index"] for one in answer["verdicts"]] == list(range(6))
    assert [one["status"] for one in answer["verdicts"]][:3] == ["accepted", "rejected", "accepted"]
    assert answer["verdicts"][1]["field"] == "event_type"
    assert "'click'" in answer["verdicts"][1]["remedy"]
    assert answer["verdicts"][3]["field"] == "event_value"
    assert {one["item_id"] for one in deployed.stored()} == {"i1", "i2"}


def test_nothing_is_stored_under_the_visitors_own_identifiers(deployed: Deployed) -> None:
    """Neither in the stream nor in quarantine, not even in a field that the producer misspelt."""
    rejected = click(event_type="clik", session_id="cookie-9")
    misspelt = {"event_type": "click", "userid": "alice", "session_id": "cookie-9"}
    deployed.send({"events": [click(), rejected, misspelt]})
    kept = json.dumps([deployed.stored(), deployed.quarantined()])
    assert len(deployed.quarantined()) == 2
    assert "alice" not in kept
    assert "cookie-9" not in kept
    stored, quarantined = deployed.stored()[0], deployed.quarantined()[0]
    assert stored["user_id"] == quarantined["event"]["user_id"]


def test_a_batch_of_rejected_events_is_answered_200(deployed: Deployed) -> None:
    """The envelope was fine; each event's verdict tells the rest, and each is kept with its reason."""
    status, answer = deployed.send({"events": [click(sent_at=1.0), {}]})
    assert (status, answer["accepted"], answer["rejected"]) == (200, 0, 2)
    kept = deployed.quarantined()
    assert [one["field"] for one in kept] == ["sent_at", "event_type"]
    assert "30 days" in kept[0]["remedy"]


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        (None, 400, "body"),
        ("", 400, "body"),
        ("{", 400, "body"),
        ("[" * 100_000, 400, "body"),
        ('{"events": [' + "[" * 960 + "]" * 960 + "]}", 400, "body"),
        ('{"events": [{"user_id": ' + '{"a":' * 960 + "1" + "}" * 960 + "}]}", 400, "body"),
        ([click()], 400, "body"),
        ({}, 400, "events"),
        ({"events": click()}, 400, "events"),
        ({"event": []}, 400, "event"),
        (b"\xff\xfe", 400, "body"),
        ({"events": [{}] * 501}, 413, "events"),
        ({"events": ["x" * 1_000_001]}, 413, "body"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_wrong_envelope_is_refused_as_a_whole(
    deployed: Deployed, body: object, status: int, field: str
) -> None:
    """With the error object of the API."""
    answered, content = deployed.send(body)
    assert answered == status
    assert content["error"]["field"] == field
    assert content["error"]["remedy"]
    assert deployed.stored() == []


def test_a_base64_body_is_read_like_any_other(deployed: Deployed) -> None:
    """API Gateway encodes bodies whose content type it does not know."""
    status, answer = deployed.send({"events": [click()]}, encoded=True)
    assert (status, answer["accepted"]) == (200, 1)


def test_500_events_are_stored(deployed: Deployed) -> None:
    """The largest batch goes through, in the producer's order for each visitor."""
    status, answer = deployed.send({"events": [click(item_id=f"i{n}") for n in range(500)]})
    assert (status, answer["accepted"]) == (200, 500)
    assert [one["item_id"] for one in deployed.stored()] == [f"i{n}" for n in range(500)]


def test_events_that_the_stream_refuses_are_to_be_sent_again(deployed: Deployed) -> None:
    """Without the stream nothing is accepted, and each verdict says what to do."""
    deployed.kinesis.delete_stream(StreamName=deployed.stream)
    status, answer = deployed.send({"events": [click()]})
    assert (status, answer["accepted"]) == (200, 0)
    assert "again" in answer["verdicts"][0]["remedy"]


def test_a_lost_quarantine_does_not_lose_the_good_events(deployed: Deployed) -> None:
    """Rejected events are answered as ever; only their copy is missing."""
    deployed.s3.delete_bucket(Bucket=deployed.bucket)
    status, answer = deployed.send({"events": [click(), {}]})
    assert (status, answer["accepted"], answer["rejected"]) == (200, 1, 1)


def test_without_the_key_nothing_is_stored(
    moto: Aws, monkeypatch: pytest.MonkeyPatch, deployed: Deployed
) -> None:
    """503 rather than an event under its real identifiers."""
    moto.client("secretsmanager").delete_secret(SecretId="pseudonyms", ForceDeleteWithoutRecovery=True)
    status, content = deployed.send({"events": [click()]})
    assert (status, content["error"]["type"]) == (503, "StoreUnavailable")
    assert deployed.stored() == []


def test_another_path_is_not_found(deployed: Deployed) -> None:
    """With the error object of the API."""
    status, content = call(deployed.module, http_event("POST", "/api/event", {}))
    assert (status, content["error"]["field"]) == (404, "path")
