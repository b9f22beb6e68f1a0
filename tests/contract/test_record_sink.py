"""What every sink of decision records does, and how Kinesis' one stays off the request's time."""

from __future__ import annotations

import json
import queue
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from narrows.adapters.kinesis import DecisionStream, LambdaExtension
from narrows.adapters.memory import MemoryRecordSink
from narrows.decision import DecisionRecord, RecordSink
from narrows.errors import StoreUnavailable
from tests.contract.tables import create_stream, read_stream
from tests.servers import AWS, free_port, on

Read = Callable[[], list[DecisionRecord]]


def decided(number: int, **changes: Any) -> DecisionRecord:
    values = {
        "recommendation_id": f"r{number}", "app": "media", "surface": "feed", "at": 1.8e9, "limit": 3,
        "user_key": "u#a", "session_key": None, "rung": "full", "snapshot_version": "1", "model_version": "m",
        "policy_version": 7,
    }  # fmt: skip
    return DecisionRecord(**{**values, **changes})


class RecordSinkContract:
    """Subscribed to by every adapter."""

    def test_what_is_appended_can_be_read_after_a_flush(self, sink: tuple[RecordSink, Read]) -> None:
        """Every record, whole, in a visitor's order."""
        records = [decided(number) for number in range(600)]
        for record in records:
            sink[0].append(record)
        sink[0].flush()
        assert sink[1]() == records

    def test_a_flush_without_records_does_nothing(self, sink: tuple[RecordSink, Read]) -> None:
        """It may come at any time."""
        sink[0].flush()
        assert sink[1]() == []


class TestMemoryRecordSink(RecordSinkContract):
    @pytest.fixture
    def sink(self) -> tuple[RecordSink, Read]:
        sink = MemoryRecordSink()
        return sink, lambda: sink.records


class TestDecisionStream(RecordSinkContract):
    @pytest.fixture(params=AWS)
    def sink(self, request: pytest.FixtureRequest) -> tuple[RecordSink, Read]:
        client = on(request).client("kinesis")
        name = create_stream(client, "decisions")
        return (
            DecisionStream(client, name),
            lambda: [DecisionRecord.from_json(record["Data"]) for record in read_stream(client, name)],
        )


class Kinesis:
    """Takes records, or refuses all of them; `took` tells when."""

    def __init__(self, *, refuses: bool = False) -> None:
        self.refuses = refuses
        self.taken: list[str] = []
        self.took: queue.Queue[int] = queue.Queue()

    def put_records(self, StreamName: str, Records: list[dict[str, Any]]) -> Any:  # noqa: N803
        if self.refuses:
            return {"Records": [{"ErrorCode": "InternalFailure"} for _ in Records]}
        self.taken += [json.loads(record["Data"])["recommendation_id"] for record in Records]
        self.took.put(len(Records))
        return {"Records": [{"SequenceNumber": "1"} for _ in Records]}


def test_a_full_buffer_counts_what_it_cannot_take() -> None:
    """Memory is bounded, and what is lost is known."""
    stream = DecisionStream(Kinesis(), "decisions", capacity=3)
    for number in range(5):
        stream.append(decided(number))
    stream.flush()
    assert (stream.sent, stream.lost) == (3, {"full": 2})


def test_records_that_cannot_be_written_or_stored_are_counted() -> None:
    """Neither raises; the request has long been answered."""
    refusing = DecisionStream(Kinesis(refuses=True), "decisions")
    refusing.append(decided(1))
    refusing.flush()
    assert (refusing.sent, refusing.lost) == (0, {"InternalFailure": 1})
    strange = DecisionStream(Kinesis(), "decisions")
    strange.append(decided(1, stage_ms={"total": float("nan")}))
    strange.append(decided(2))
    strange.flush()
    assert (strange.sent, strange.lost) == (1, {"unwritable": 1})


def test_a_flush_survives_whatever_the_client_raises() -> None:
    """The thread that flushes must live: Lambda waits for it before it takes the next invocation."""

    class Broken:
        def put_records(self, **_: Any) -> Any:
            raise RuntimeError("not an error of AWS")

    stream = DecisionStream(Broken(), "decisions")
    stream.append(decided(1))
    stream.flush()
    assert (stream.sent, stream.lost) == (0, {"RuntimeError": 1})


def test_the_thread_flushes_by_age_and_by_number() -> None:
    """One record is sent when it is old enough, many as soon as they are many."""
    kinesis = Kinesis()
    stream = DecisionStream(kinesis, "decisions", flush_at=5, max_age_s=0.05)
    thread = stream.start()
    stream.append(decided(0))
    assert kinesis.took.get(timeout=5) == 1
    patient = DecisionStream(kinesis, "decisions", flush_at=5, max_age_s=3600)
    other = patient.start()
    for number in range(5):
        patient.append(decided(number))
    assert kinesis.took.get(timeout=5) == 5
    patient.append(decided(9))
    for one in (stream, patient):
        one.close()
    for one in (thread, other):
        one.join(5)
        assert not one.is_alive()
    assert kinesis.taken[-1] == "r9"


class RuntimeApi:
    """The part of Lambda's Runtime API that an extension speaks to, over HTTP."""

    def __init__(self) -> None:
        self.registered: list[tuple[str, Any]] = []
        self.invocations: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.asked: queue.Queue[str] = queue.Queue()
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                api.registered.append((self.headers["Lambda-Extension-Name"], body))
                self.respond({}, {"Lambda-Extension-Identifier": "identifier-1"})

            def do_GET(self) -> None:
                api.asked.put(self.headers["Lambda-Extension-Identifier"])
                invocation = api.invocations.get()
                if invocation is None:
                    self.send_error(500)
                else:
                    self.respond(invocation, {})

            def respond(self, content: dict[str, Any], headers: dict[str, str]) -> None:
                data = json.dumps(content).encode()
                self.send_response(200)
                for name, value in {**headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def log_message(self, *_: object) -> None:
                """Silent."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def invoke(self) -> None:
        self.invocations.put({"eventType": "INVOKE", "deadlineMs": (time.time() + 5) * 1e3})

    def close(self) -> None:
        self.invocations.put(None)
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def api() -> Iterator[RuntimeApi]:
    runtime = RuntimeApi()
    yield runtime
    runtime.close()


def test_the_extension_flushes_between_the_response_and_the_freeze(api: RuntimeApi) -> None:
    """It asks for the next invocation only when the records of this one are away."""
    kinesis = Kinesis()
    stream = DecisionStream(kinesis, "decisions", max_age_s=0.0)
    extension = LambdaExtension(api.address, stream)
    thread = extension.start()
    assert api.registered == [("narrows-decisions", {"events": ["INVOKE"]})]
    assert api.asked.get(timeout=5) == "identifier-1"
    for number in range(3):
        api.invoke()
        time.sleep(0.02)
        assert api.asked.empty()
        stream.append(decided(number))
        assert len(kinesis.taken) == number
        extension.invocation_finished()
        assert api.asked.get(timeout=5) == "identifier-1"
        assert kinesis.taken == [f"r{one}" for one in range(number + 1)]
    api.invocations.put(None)
    thread.join(5)
    assert not thread.is_alive()


def test_young_records_wait_for_company(api: RuntimeApi) -> None:
    """Under steady traffic one call a second carries all records, not one call a request."""
    kinesis = Kinesis()
    stream = DecisionStream(kinesis, "decisions", max_age_s=3600)
    extension = LambdaExtension(api.address, stream)
    extension.start()
    api.asked.get(timeout=5)
    api.invoke()
    stream.append(decided(1))
    extension.invocation_finished()
    api.asked.get(timeout=5)
    assert kinesis.taken == []
    stream.close()
    assert kinesis.taken == ["r1"]


def test_without_a_runtime_api_there_is_no_extension() -> None:
    """It says so at the start; the caller decides."""
    extension = LambdaExtension(f"127.0.0.1:{free_port()}", DecisionStream(Kinesis(), "decisions"))
    with pytest.raises(StoreUnavailable):
        extension.start()
