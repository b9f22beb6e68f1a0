"""POST /api/events, with API Gateway's payloads, on moto."""

from __future__ import annotations

import json
import time

import pytest

from tests.functions.deployed_collector import Deployed, click
from tests.functions.doorways import call, http_event
from tests.servers import Aws


@pytest.fixture
def deployed(moto: Aws, monkeypatch: pytest.MonkeyPatch) -> Deployed:
    return Deployed(moto, monkeypatch)


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
        ('{"events": [' + "[" * 100_000 + "]}", 400, "body"),
        ('{"events": [{"position": ' + "9" * 5_000 + "]}", 400, "body"),
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


def nested(levels: int, kind: str = "{}") -> str:
    """JSON that lies so deep in objects or lists; its innermost text holds brackets and an escaped quote."""
    opening, closing = ('{"a":', "}") if kind == "{}" else ("[", "]")
    return opening * levels + '"[{\\"[{"' + closing * levels


LIST, NINES = nested(60_000, "[]"), "9" * 5_000


@pytest.mark.parametrize(
    ("part", "field"),
    [
        (f'"properties": {{"a": {nested(40)}}}', "properties.a"),
        (f'"properties": {{"a": {nested(5_000)}}}', "properties.a"),
        (f'"properties": {{"a": {LIST}}}', "properties.a"),
        (f'"user_id": {nested(960)}', "user_id"),
        (f'"colour": {nested(40)}', "colour"),
        (f'"impression": ["i1", {nested(40)}]', "impression[1]"),
        (f'"event_value": {NINES}', "event_value"),
        (f'"event_value": -{NINES}', "event_value"),
        (f'"position": {NINES}', "position"),
        (f'"schema_version": {NINES}', "schema_version"),
        (f'"sent_at": {NINES}', "sent_at"),
        (f'"properties": {{"a": {NINES}}}', "properties.a"),
    ],
    ids=lambda value: value[:30],
)
def test_what_no_field_takes_harms_its_own_event_alone(deployed: Deployed, part: str, field: str) -> None:
    """However deep or long: a verdict that names it, a place in quarantine, and the others are stored."""
    good = [json.dumps(click(item_id=f"i{n}")) for n in range(2)]
    plain = {name: value for name, value in click().items() if name not in part}
    bad = json.dumps(plain)[:-1] + f", {part}}}"
    status, answer = deployed.send('{"events": [' + ", ".join((good[0], bad, good[1])) + "]}")
    assert (status, [one["status"] for one in answer["verdicts"]]) == (
        200,
        ["accepted", "rejected", "accepted"],
    )
    assert answer["verdicts"][1]["field"] == field
    assert answer["verdicts"][1]["remedy"]
    assert [one["field"] for one in deployed.quarantined()] == [field]
    assert [one["item_id"] for one in deployed.stored()] == ["i0", "i1"]


def test_an_event_that_is_a_deep_list_has_its_verdict(deployed: Deployed) -> None:
    """It is no event, at whatever depth."""
    status, answer = deployed.send(f'{{"events": [{LIST}, {json.dumps(click())}]}}')
    assert (status, [one["status"] for one in answer["verdicts"]]) == (200, ["rejected", "accepted"])
    assert answer["verdicts"][0]["field"] == "event"


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


def counted(printed: str) -> list[dict[str, object]]:
    """What the function counted in its log, with the dimensions."""
    lines = [json.loads(line) for line in printed.splitlines() if '"_aws"' in line]
    return [{name: value for name, value in line.items() if name != "_aws"} for line in lines]


def test_a_lost_quarantine_does_not_lose_the_good_events(
    deployed: Deployed, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rejected events are answered as ever; only their copy is missing, and an alarm can count it."""
    deployed.send({"events": [click(), {}]})
    assert counted(capsys.readouterr().out) == []
    deployed.s3.delete_objects(
        Bucket=deployed.bucket,
        Delete={
            "Objects": [
                {"Key": one["Key"]} for one in deployed.s3.list_objects_v2(Bucket=deployed.bucket)["Contents"]
            ]
        },
    )
    deployed.s3.delete_bucket(Bucket=deployed.bucket)
    status, answer = deployed.send({"events": [click(), {}, {}]})
    assert (status, answer["accepted"], answer["rejected"]) == (200, 1, 2)
    assert counted(capsys.readouterr().out) == [{"QuarantineLost": [2.0], "FunctionName": "narrows"}]


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


REFUSED = {
    "malformed": ({"position": "first"}, "position"),
    "oversized": (
        {"impression": ["i" * 250] * 200, "properties": {f"p{n}": "x" * 1000 for n in range(20)}},
        "event",
    ),
    "future": ({"sent_at": 4_000_000_000.0}, "sent_at"),
    "in milliseconds": ({"sent_at": 1_800_000_000_000}, "sent_at"),
    "ancient": ({"sent_at": 1_000_000_000.0}, "sent_at"),
    "unknown version": ({"schema_version": 9}, "schema_version"),
    "unknown type": ({"event_type": "teleport"}, "event_type"),
    "unknown field": ({"colour": "red"}, "colour"),
}


@pytest.mark.parametrize(("changes", "field"), REFUSED.values(), ids=REFUSED)
def test_each_kind_of_bad_event_is_answered_and_kept_with_its_reason(
    deployed: Deployed, changes: dict[str, object], field: str
) -> None:
    """Field, value and remedy in the verdict, and the same in quarantine beside the event itself."""
    status, answer = deployed.send({"events": [click(), click(**changes)]})
    assert (status, answer["accepted"], answer["rejected"]) == (200, 1, 1)
    verdict = answer["verdicts"][1]
    assert verdict["field"] == field
    assert verdict["value"]
    assert verdict["remedy"]
    (kept,) = deployed.quarantined()
    assert (kept["index"], kept["field"], kept["remedy"]) == (1, field, verdict["remedy"])
    assert kept["value"] if field == "colour" else kept["value"] == verdict["value"]
    assert kept["event"]["item_id"] == "i1"


def test_a_refused_identifier_is_kept_as_a_pseudonym(deployed: Deployed) -> None:
    """The value in quarantine explains the refusal; it must not tell who it was about."""
    secret = "alice@example.com"
    bad = [click(user_id=secret + "x" * 300), click(mail=secret), secret, click(event=secret)]
    _, answer = deployed.send({"events": bad})
    assert answer["rejected"] == 4
    kept = deployed.quarantined()
    assert len(kept) == 4
    assert "alice" not in json.dumps(kept)


def test_both_versions_are_stored_alike(deployed: Deployed) -> None:
    """What was sent as version 1 lies in the stream as version 2, like what was sent as that."""
    said = {"device": "phone", "location": "DE"}
    old = click(event_id="a", sent_at=time.time(), schema_version=1, properties={**said, "price": 2.5})
    new = {**old, "event_id": "b", "schema_version": 2, "context": said, "properties": {"price": 2.5}}
    _, answer = deployed.send({"events": [old, new]})
    assert answer["accepted"] == 2
    one, two = deployed.stored()
    assert {**one, "event_id": "b"} == two
    assert two["properties"] == {"price": 2.5, "device": "phone", "location": "DE"}
    assert two["schema_version"] == 2


def test_a_bots_events_are_accepted_and_marked(deployed: Deployed) -> None:
    """By the header of the request; what the event itself says of its visitor goes before."""
    person = {"user_agent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"}
    told = click(item_id="i2", schema_version=2, context=person)
    _, answer = deployed.send({"events": [click(), told]}, agent="Mozilla/5.0 (compatible; Googlebot/2.1)")
    assert answer["accepted"] == 2
    assert [one.get("marks") for one in deployed.stored()] == [["bot:user_agent"], None]
    deployed.send({"events": [click(item_id="i3")]}, agent="Boto3/1.43.11")
    assert "marks" not in deployed.stored()[2]


def test_one_event_of_a_megabyte_is_refused_and_kept(deployed: Deployed) -> None:
    """A body at the limit whose only event is far over its own; the good event beside it is stored."""
    giant = click(query="q" * 998_000)
    status, answer = deployed.send({"events": [click(), giant]})
    assert (status, answer["accepted"], answer["verdicts"][1]["field"]) == (200, 1, "query")
    assert len(json.dumps(answer)) < 2_000
    assert deployed.quarantined()[0]["event"]["query"] == "q" * 998_000


def test_a_repeated_event_is_accepted_each_time(deployed: Deployed) -> None:
    """A retry is answered as the first delivery was, under the same id, by which it counts once."""
    event = click(event_id="e1")
    _, first = deployed.send({"events": [event, event]})
    _, second = deployed.send({"events": [event]})
    verdicts = [*first["verdicts"], *second["verdicts"]]
    assert {(one["status"], one["event_id"]) for one in verdicts} == {("accepted", "e1")}


def test_a_slightly_wrong_clock_is_forgiven(deployed: Deployed) -> None:
    """Five minutes ahead are taken as they are sent, six are not; the verdict tells the clock's error."""
    now = time.time()
    _, answer = deployed.send({"events": [click(sent_at=now + 290), click(sent_at=now + 360)]})
    assert [one["status"] for one in answer["verdicts"]] == ["accepted", "rejected"]
    assert "300 seconds ahead" in answer["verdicts"][1]["remedy"]


def test_each_event_that_the_stream_refuses_is_told(
    deployed: Deployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are stored and accepted: sending all again stores nothing twice."""
    stream = deployed.module.COLLECTOR._stream
    put = stream.put

    def refuse_one(events: list[object]) -> dict[int, str]:
        return {**put([events[0], *events[2:]]), 1: "ProvisionedThroughputExceededException"}

    monkeypatch.setattr(stream, "put", refuse_one)
    batch = [click(item_id="i0"), {}, click(item_id="i1"), click(item_id="i2")]
    _, answer = deployed.send({"events": batch})
    assert [one["status"] for one in answer["verdicts"]] == ["accepted", "rejected", "rejected", "accepted"]
    assert answer["verdicts"][2]["value"] == "ProvisionedThroughputExceededException"
    assert "send it again" in answer["verdicts"][2]["remedy"]
    assert [one["item_id"] for one in deployed.stored()] == ["i0", "i2"]
