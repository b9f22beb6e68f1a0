"""Event source mappings: order, batches, failures and restarts, as Lambda's pollers behave."""

import base64
import json
import random
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
from plain_aws import Aws, StreamProcess, plain_aws, wait_for

from localcloud.functions import (
    ConflictingEnvironment,
    Function,
    FunctionError,
    Outcome,
    environment,
    invoke,
    load,
)
from localcloud.mappings import EventSourceMapping
from localcloud.shards import Checkpoints, done_before_failure
from localcloud.sources import (
    IteratorExpired,
    Page,
    Position,
    Record,
    ShardGone,
    ShardInfo,
    SourceUnavailable,
)
from localcloud.streams import Pace, Runner

HERE = Path(__file__).parent
ARN = "arn:aws:kinesis:us-east-1:000000000000:stream/any"


@dataclass
class FakeStream:
    """A stream in memory that splits shards as Kinesis does: a closed one stays readable to its end."""

    arn: str = ARN
    batch_info: str = "KinesisBatchInfo"
    time_resolution_s: float = 0.0
    records: dict[str, list[Record]] = field(default_factory=dict)
    parents: dict[str, tuple[str, ...]] = field(default_factory=dict)
    closed: set[str] = field(default_factory=set)
    troubles: list[Exception] = field(default_factory=list)
    page: int = 1000
    sequence: int = 0

    def put(self, shard: str, *payloads: Any, at: float = 0.0) -> list[str]:
        self.parents.setdefault(shard, ())
        added = []
        for payload in payloads:
            self.sequence += 1
            added.append(f"{self.sequence:020d}")
            self.records.setdefault(shard, []).append(Record(added[-1], at, 100, {"payload": payload}))
        return added

    def split(self, shard: str, *children: str) -> None:
        self.closed.add(shard)
        for child in children:
            self.parents[child] = (shard,)

    def shards(self) -> list[ShardInfo]:
        return [ShardInfo(shard, parents) for shard, parents in self.parents.items()]

    def iterator(self, shard_id: str, position: Position) -> str:
        if shard_id not in self.parents:
            raise ShardGone(shard_id)
        kept = self.records.get(shard_id, [])
        if position.kind == "AFTER_SEQUENCE_NUMBER":
            return f"{shard_id}/{sum(record.sequence <= position.sequence for record in kept)}"
        return f"{shard_id}/0"

    def read(self, iterator: str) -> Page:
        if self.troubles:
            raise self.troubles.pop(0)
        shard, start = iterator.split("/")
        kept = self.records.get(shard, [])
        page = kept[int(start) : int(start) + self.page]
        after = int(start) + len(page)
        ended = shard in self.closed and after == len(kept)
        return Page(page, None if ended else f"{shard}/{after}")

    def event(self, shard_id: str, record: Record) -> dict[str, Any]:
        return {"shard": shard_id, "sequence": record.sequence, "payload": record.raw["payload"]}


class Handler:
    """Remembers its batches; fails as their payloads say: "poison" throws, "bad" is reported."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.heal: set[str] = set()

    def __call__(self, event: Any) -> Outcome:
        payloads = [record["payload"] for record in event["Records"]]
        self.batches.append(payloads)
        if any(payload == "poison" for payload in payloads):
            return Outcome("request", error={"errorType": "ValueError", "errorMessage": "poison"})
        bad = [record for record in event["Records"] if record["payload"] == "bad"][:1]
        return Outcome(
            "request", {"batchItemFailures": [{"itemIdentifier": bad[0]["sequence"]}] if bad else []}
        )

    @property
    def handled(self) -> list[Any]:
        """The payloads that stood before the first failure of their batch, in order."""
        done: list[Any] = []
        for batch in self.batches:
            if "poison" not in batch:
                done += batch[: batch.index("bad")] if "bad" in batch else batch
        return done


@dataclass
class Bench:
    """A runner on a fake stream with a clock that the test moves."""

    stream: FakeStream
    home: Path
    handler: Handler = field(default_factory=Handler)
    sent: list[Any] = field(default_factory=list)
    now: float = 1000.0

    def runner(self, **mapping: Any) -> Runner:
        return Runner(
            EventSourceMapping("uuid", ARN, "arn:aws:lambda:us-east-1:0:function:f", **mapping),
            self.stream,
            self.handler,
            Checkpoints(self.home / "checkpoints"),
            send=self.sent.append,
            pace=Pace(retry_s=0.1),
            wall_clock=lambda: self.now,
        )

    def run(self, runner: Runner, seconds: float = 10.0) -> None:
        until = self.now + seconds
        while self.now < until:
            self.now = max(self.now + 0.001, min(runner.step(self.now), until))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(FakeStream(), tmp_path)


def test_batches_have_the_asked_size_and_keep_the_order(bench: Bench) -> None:
    """250 records at 100 a batch are three invocations, in order."""
    bench.stream.put("s0", *range(250))
    bench.run(bench.runner(batch_size=100))
    assert [len(batch) for batch in bench.handler.batches] == [100, 100, 50]
    assert bench.handler.handled == list(range(250))


def test_a_window_collects_records_until_it_closes(bench: Bench) -> None:
    """With a window of 5 s nothing is handled at 4 s, everything after 5 s, in one batch."""
    bench.stream.put("s0", 1, 2)
    runner = bench.runner(window_s=5.0)
    bench.run(runner, 2.0)
    bench.stream.put("s0", 3)
    bench.run(runner, 2.0)
    assert bench.handler.batches == []
    bench.run(runner, 2.0)
    assert bench.handler.batches == [[1, 2, 3]]


def test_a_full_batch_does_not_wait_for_its_window(bench: Bench) -> None:
    """A window is an upper bound: a batch of the asked size goes at once."""
    bench.stream.put("s0", 1, 2, 3)
    bench.run(bench.runner(window_s=60.0, batch_size=2), 1.0)
    assert bench.handler.batches == [[1, 2]]


def test_a_batch_stays_under_six_megabytes(bench: Bench) -> None:
    """Three records of 2.5 MB make two batches, whatever the batch size."""
    records = [Record(f"{n:020d}", 0.0, 2_500_000, {"payload": n}) for n in range(3)]
    bench.stream.records["s0"], bench.stream.parents["s0"] = records, ()
    bench.run(bench.runner())
    assert bench.handler.batches == [[0, 1], [2]]


def test_a_partial_failure_moves_the_checkpoint_to_the_first_failed_record(bench: Bench) -> None:
    """Records before the reported one are never sent again; it and its followers are."""
    sequences = bench.stream.put("s0", "a", "b", "bad", "c")
    bench.run(bench.runner(partial_failures=True), 0.3)
    assert bench.handler.batches[0] == ["a", "b", "bad", "c"]
    assert all(batch == ["bad", "c"] for batch in bench.handler.batches[1:])
    assert len(bench.handler.batches) > 1
    stored = Checkpoints(bench.home / "checkpoints").read("s0")
    assert stored == Position("AFTER_SEQUENCE_NUMBER", sequences[1])


def test_a_report_is_ignored_where_the_mapping_does_not_ask_for_it(bench: Bench) -> None:
    """Without ReportBatchItemFailures the same answer is a success."""
    bench.stream.put("s0", "a", "bad", "c")
    bench.run(bench.runner())
    assert bench.handler.batches == [["a", "bad", "c"]]


@pytest.mark.parametrize(
    ("answer", "done"),
    [
        (None, 3),
        ({}, 3),
        ({"batchItemFailures": None}, 3),
        ({"batchItemFailures": []}, 3),
        ({"batchItemFailures": [{"itemIdentifier": "2"}]}, 1),
        ({"batchItemFailures": [{"itemIdentifier": "3"}, {"itemIdentifier": "2"}]}, 1),
        ({"batchItemFailures": [{"itemIdentifier": ""}]}, 0),
        ({"batchItemFailures": [{"itemIdentifier": None}]}, 0),
        ({"batchItemFailures": [{"wrongKey": "2"}]}, 0),
        ({"batchItemFailures": [{"itemIdentifier": "9"}]}, 0),
        ({"batchItemFailures": ["2"]}, 0),
        ("text", 3),
    ],
)
def test_answers_count_as_success_and_failure_as_lambda_documents_them(answer: Any, done: int) -> None:
    """An empty report is a success; a report that names no record of the batch fails all of it."""
    records = [Record(sequence, 0.0, 1, {}) for sequence in "123"]
    assert done_before_failure(Outcome("request", answer), records, partial=True) == done


def test_bisection_isolates_one_poison_record(bench: Bench) -> None:
    """Of 100 records with one poison, 99 are handled exactly once and the one is given up on alone."""
    payloads: list[Any] = list(range(100))
    payloads[37] = "poison"
    sequences = bench.stream.put("s0", *payloads)
    runner = bench.runner(bisect=True, retries=2)
    bench.run(runner)
    assert bench.handler.handled == [n for n in range(100) if n != 37]
    assert sum(batch == ["poison"] for batch in bench.handler.batches) == 3
    [report] = bench.sent
    assert report["KinesisBatchInfo"]["startSequenceNumber"] == sequences[37]
    assert report["KinesisBatchInfo"]["endSequenceNumber"] == sequences[37]
    assert report["KinesisBatchInfo"]["batchSize"] == 1
    assert report["requestContext"]["condition"] == "RetryAttemptsExhausted"
    assert report["requestContext"]["approximateInvokeCount"] == 3
    assert report["responseContext"] == {
        "statusCode": 200,
        "executedVersion": "$LATEST",
        "functionError": "Unhandled",
    }
    assert runner.counts.discarded == 1


def test_bisection_with_reports_isolates_the_reported_record(bench: Bench) -> None:
    """The batch is cut where the report says, then halved, until the bad record stands alone."""
    bench.stream.put("s0", *range(10), "bad", *range(11, 20))
    runner = bench.runner(bisect=True, retries=1, partial_failures=True)
    bench.run(runner)
    assert bench.handler.handled == [n for n in range(20) if n != 10]
    assert len(bench.sent) == 1
    assert bench.sent[0]["KinesisBatchInfo"]["batchSize"] == 1
    assert "functionError" not in bench.sent[0]["responseContext"]


def test_retries_are_bounded_and_then_the_whole_batch_is_given_up(bench: Bench) -> None:
    """Without bisection a poison record takes its batch with it after the first try and three retries."""
    bench.stream.put("s0", 1, "poison", 3)
    runner = bench.runner(retries=3)
    bench.run(runner)
    assert bench.handler.batches == [[1, "poison", 3]] * 4
    assert bench.sent[0]["KinesisBatchInfo"]["batchSize"] == 3
    bench.stream.put("s0", 4)
    bench.run(runner)
    assert bench.handler.handled == [4]


def test_no_limit_retries_with_growing_pauses(bench: Bench) -> None:
    """At -1 a failing batch is tried for ever, ever more rarely, and nothing behind it is handled."""
    bench.stream.put("s0", "poison")
    bench.run(bench.runner(), 2.0)
    soon = len(bench.handler.batches)
    bench.run(bench.runner(), 60.0)
    assert 4 <= soon <= 7
    assert len(bench.handler.batches) - soon <= 20
    assert bench.sent == []


def test_records_over_the_age_limit_go_to_the_destination_unhandled(bench: Bench) -> None:
    """Two records of 100 s ago are given up on; the fresh one behind them is handled."""
    bench.stream.put("s0", "old", "older", at=bench.now - 100)
    bench.stream.put("s0", "fresh", at=bench.now)
    bench.run(bench.runner(max_age_s=60.0), 5.0)
    assert bench.handler.batches == [["fresh"]]
    [report] = bench.sent
    assert report["requestContext"]["condition"] == "RecordAgeExceeded"
    assert report["KinesisBatchInfo"]["batchSize"] == 2
    assert report["KinesisBatchInfo"]["approximateArrivalOfFirstRecord"] == "1970-01-01T00:15:00.000Z"


def test_a_restart_goes_on_after_the_checkpoint(bench: Bench) -> None:
    """A second runner on the same checkpoints handles only what came later."""
    bench.stream.put("s0", 1, 2)
    bench.run(bench.runner())
    bench.stream.put("s0", 3)
    bench.run(bench.runner())
    assert bench.handler.batches == [[1, 2], [3]]


def test_latest_skips_the_past_but_nothing_after_the_first_start(bench: Bench) -> None:
    """Records that arrive while the reader is down before it ever saw one are not lost."""
    bench.stream.put("s0", "past", at=bench.now - 5)
    latest = Position("LATEST")
    bench.run(bench.runner(start=latest), 1.0)
    bench.stream.put("s0", "while down", at=bench.now + 1)
    bench.run(bench.runner(start=latest), 5.0)
    assert bench.handler.handled == ["while down"]


def test_children_of_a_split_are_read_after_their_parent(bench: Bench) -> None:
    """A key's records keep their order over a split, also when the parent's rest fails for a while."""
    bench.stream.put("s0", 1, 2)
    runner = bench.runner(batch_size=1)
    bench.run(runner, 1.0)
    bench.stream.put("s0", 3, "poison", 4)
    bench.stream.split("s0", "s1", "s2")
    bench.stream.put("s1", 5)
    bench.stream.put("s2", 6)
    runner = bench.runner(batch_size=1, retries=2)
    bench.run(runner, 20.0)
    assert bench.handler.handled[:4] == [1, 2, 3, 4]
    assert sorted(bench.handler.handled[4:]) == [5, 6]
    assert set(runner.shards) == {"s1", "s2"}


def test_a_finished_parent_is_not_read_again_after_a_restart(bench: Bench) -> None:
    """That a shard was read to its end is part of its checkpoint."""
    bench.stream.put("s0", 1)
    bench.stream.split("s0", "s1")
    bench.stream.put("s1", 2)
    bench.run(bench.runner())
    bench.stream.put("s1", 3)
    bench.run(bench.runner())
    assert bench.handler.handled == [1, 2, 3]


def test_a_failing_shard_does_not_hold_up_another(bench: Bench) -> None:
    """Order is per shard: poison in one leaves the other's records flowing."""
    bench.stream.put("s0", "poison")
    bench.stream.put("s1", *range(500))
    bench.run(bench.runner(), 1.0)
    assert bench.handler.handled == list(range(500))


def test_trouble_in_reading_loses_nothing(bench: Bench) -> None:
    """An expired iterator and an unreachable stream are tried again at the same position."""
    bench.stream.put("s0", *range(10))
    bench.stream.page = 4
    bench.stream.troubles = [SourceUnavailable("no"), IteratorExpired("old"), SourceUnavailable("no")]
    runner = bench.runner(batch_size=3)
    bench.run(runner)
    assert bench.handler.handled == list(range(10))
    assert runner.counts.unreachable == 2


def test_any_mixture_of_failures_keeps_order_and_loses_nothing(tmp_path: Path) -> None:
    """In 30 random histories with restarts the good records are handled in order, the others reported."""
    for seed in range(30):
        rng = random.Random(seed)
        stream = FakeStream(page=rng.randint(1, 9))
        payloads = [rng.choice(["poison", "bad"]) if rng.random() < 0.1 else n for n in range(60)]
        bench = Bench(stream, tmp_path / str(seed))
        stream.put("s0", *payloads)
        size = rng.randint(1, 20)
        for _ in range(5):
            bench.run(bench.runner(batch_size=size, bisect=True, retries=1, partial_failures=True), 0.2)
        bench.run(bench.runner(batch_size=size, bisect=True, retries=1, partial_failures=True), 60.0)
        handled = bench.handler.handled
        assert [n for n, _ in groupby(sorted(handled))] == [n for n in payloads if isinstance(n, int)]
        firsts = list(dict.fromkeys(handled))
        assert firsts == sorted(firsts)
        assert all(report["KinesisBatchInfo"]["batchSize"] == 1 for report in bench.sent)


def test_a_mapping_option_that_is_not_driven_here_is_refused() -> None:
    """Filtering records silently or not at all would both be wrong, so the mapping is refused by name."""
    answer = {"UUID": "u", "EventSourceArn": ARN, "FunctionArn": "f", "FilterCriteria": {"Filters": [{}]}}
    with pytest.raises(FunctionError, match="FilterCriteria"):
        EventSourceMapping.of(answer)


def test_functions_with_different_values_of_a_variable_cannot_share_a_process() -> None:
    """The error names the variable, both values and both functions."""
    one = Function("one", "arn", "a.b", environment={"TABLE": "x"})
    two = Function("two", "arn", "a.b", environment={"TABLE": "y"})
    with pytest.raises(ConflictingEnvironment, match=r"TABLE is 'x' in function 'one' and 'y' in 'two'"):
        environment([one, two], endpoint="http://127.0.0.1:1", inherited={})


def test_a_function_never_inherits_a_real_account() -> None:
    """Profiles and session tokens of the person who starts the local cloud stay outside."""
    inherited = {"AWS_PROFILE": "production", "AWS_SESSION_TOKEN": "secret", "AWS_ACCESS_KEY_ID": "real"}
    merged = environment([], endpoint="http://127.0.0.1:1", inherited=inherited)
    assert "AWS_PROFILE" not in merged
    assert "AWS_SESSION_TOKEN" not in merged
    assert merged["AWS_ACCESS_KEY_ID"] == "local"


def test_an_invocation_has_lambdas_context_and_reports_errors_as_lambda_does() -> None:
    """The handler sees its deadline and identity; an exception becomes errorType and errorMessage."""
    function = Function("f", "arn:aws:lambda:us-east-1:0:function:f", "m.h", timeout_s=2.0)
    seen: list[Any] = []

    def handler(event: Any, context: Any) -> Any:
        seen.append(context)
        raise KeyError("missing")

    outcome = invoke(function, handler, {})
    assert outcome.error is not None
    assert outcome.error["errorType"] == "KeyError"
    assert outcome.error["errorMessage"] == "'missing'"
    assert "raise KeyError" in outcome.error["stackTrace"][-1]
    assert seen[0].invoked_function_arn == function.arn
    assert seen[0].aws_request_id == outcome.request_id
    assert 0 < seen[0].get_remaining_time_in_millis() <= 2000


def test_a_handler_past_its_timeout_is_stopped() -> None:
    """A function of 0.1 s that would sleep for 5 s fails as Lambda's sandbox reports it, in about 0.1 s."""
    began = time.monotonic()
    outcome = invoke(Function("f", "arn", "m.h", timeout_s=0.1), lambda event, context: time.sleep(5), {})
    assert outcome.timed_out
    assert outcome.error is not None
    assert "Task timed out after 0.10 seconds" in outcome.error["errorMessage"]
    assert time.monotonic() - began < 1.0


def test_a_handler_that_cannot_be_imported_is_named() -> None:
    """The error tells the function and the handler string that it was deployed with."""
    with pytest.raises(FunctionError, match=r"function 'f': handler 'no_such.module.handler'"):
        load(Function("f", "arn", "no_such/module.handler"))


# With MiniStack and real processes


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aws]:
    with plain_aws(tmp_path_factory.mktemp("aws")) as running:
        yield running


def seen_by(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def put(aws: Aws, stream: str, payloads: list[Any], key: str = "k") -> None:
    kinesis = aws.client("kinesis")
    for start in range(0, len(payloads), 500):
        records = [
            {"Data": json.dumps(payload).encode(), "PartitionKey": str(payload.get("key", key))}
            for payload in payloads[start : start + 500]
        ]
        assert kinesis.put_records(StreamName=stream, Records=records)["FailedRecordCount"] == 0


@pytest.mark.local
def test_a_record_has_lambdas_shape(aws: Aws, tmp_path: Path) -> None:
    """Every field of the Kinesis event that AWS documents, with its values."""
    arn = aws.stream("shape")
    aws.function("shape", "stream_handlers.whole", {"SEEN": str(tmp_path / "seen")})
    aws.mapping("shape", arn)
    put(aws, "shape", [{"n": 1}])
    process = StreamProcess(aws, "shape", tmp_path, HERE)
    [event] = wait_for(lambda: seen_by(tmp_path / "seen"), 30, "the event")
    process.stop()
    [record] = event["Records"]
    sequence = record["kinesis"].pop("sequenceNumber")
    arrived_at = record["kinesis"].pop("approximateArrivalTimestamp")
    assert abs(time.time() - arrived_at) < 60
    assert record == {
        "kinesis": {
            "kinesisSchemaVersion": "1.0",
            "partitionKey": "k",
            "data": base64.b64encode(b'{"n": 1}').decode(),
        },
        "eventSource": "aws:kinesis",
        "eventVersion": "1.0",
        "eventID": f"shardId-000000000000:{sequence}",
        "eventName": "aws:kinesis:record",
        "invokeIdentityArn": f"arn:aws:iam::{aws.account}:role/any",
        "awsRegion": "us-east-1",
        "eventSourceARN": arn,
    }


@pytest.mark.local
def test_poison_ends_in_the_on_failure_queue_and_the_rest_is_handled(aws: Aws, tmp_path: Path) -> None:
    """One poison in 200 records: 199 handled once, in order per key; the queue says where the one stands."""
    arn = aws.stream("poison", shards=2)
    queue_url, queue_arn = aws.queue("poison")
    aws.function("poison", "stream_handlers.record", {"SEEN": str(tmp_path / "seen")})
    aws.mapping(
        "poison",
        arn,
        BisectBatchOnFunctionError=True,
        MaximumRetryAttempts=1,
        FunctionResponseTypes=["ReportBatchItemFailures"],
        DestinationConfig={"OnFailure": {"Destination": queue_arn}},
    )
    payloads: list[Any] = [{"n": n, "key": n % 7} for n in range(200)]
    payloads[111]["bad"] = True
    put(aws, "poison", payloads)
    process = StreamProcess(aws, "poison", tmp_path, HERE)
    sqs = aws.client("sqs")
    [message] = wait_for(lambda: sqs.receive_message(QueueUrl=queue_url).get("Messages"), 30, "the report")
    wait_for(lambda: len(seen_by(tmp_path / "seen")) >= 199, 30, "the other records")
    status = tmp_path / "run" / "streams" / "poison.json"
    wait_for(
        lambda: status.exists() and json.loads(status.read_text())[arn]["discarded"] == 1, 5, "the count"
    )
    process.stop()
    numbers = [payload["n"] for payload, _, _ in seen_by(tmp_path / "seen")]
    assert sorted(numbers) == [n for n in range(200) if n != 111]
    for key in range(7):
        of_key = [n for n in numbers if n % 7 == key]
        assert of_key == sorted(of_key)
    report = json.loads(message["Body"])
    assert report["KinesisBatchInfo"]["batchSize"] == 1
    assert report["KinesisBatchInfo"]["streamArn"] == arn
    assert report["requestContext"]["functionArn"].endswith(":function:poison")


@pytest.mark.local
def test_a_split_of_a_live_stream_is_followed(aws: Aws, tmp_path: Path) -> None:
    """New shards are found and read from their beginning without a restart."""
    arn = aws.stream("split")
    aws.function("split", "stream_handlers.record", {"SEEN": str(tmp_path / "seen")})
    aws.mapping("split", arn)
    put(aws, "split", [{"n": n, "key": n} for n in range(50)])
    process = StreamProcess(aws, "split", tmp_path, HERE)
    wait_for(lambda: len(seen_by(tmp_path / "seen")) == 50, 30, "the parent's records")
    middle = str(2**127)
    split = {"ShardToSplit": "shardId-000000000000", "NewStartingHashKey": middle}
    aws.client("kinesis").split_shard(StreamName="split", **split)
    put(aws, "split", [{"n": n, "key": n} for n in range(50, 100)])
    wait_for(lambda: len(seen_by(tmp_path / "seen")) == 100, 30, "the children's records")
    process.stop()
    shards = {event_id.split(":")[0] for _, event_id, _ in seen_by(tmp_path / "seen")}
    assert len(shards) == 3


@pytest.mark.local
def test_a_table_stream_drives_a_handler(aws: Aws, tmp_path: Path) -> None:
    """A change of a DynamoDB item arrives as Lambda shows it, binary values as base64."""
    table = aws.client("dynamodb").create_table(
        TableName="changes",
        KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "pk", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
        StreamSpecification={"StreamEnabled": True, "StreamViewType": "NEW_AND_OLD_IMAGES"},
    )["TableDescription"]
    aws.function("changes", "stream_handlers.whole", {"SEEN": str(tmp_path / "seen")})
    aws.mapping("changes", table["LatestStreamArn"])
    item = {"pk": {"S": "a"}, "b": {"B": b"\x00\xff"}, "n": {"N": "1"}}
    process = StreamProcess(aws, "changes", tmp_path, HERE)
    aws.client("dynamodb").put_item(TableName="changes", Item=item)
    [event] = wait_for(lambda: seen_by(tmp_path / "seen"), 30, "the change")
    process.stop()
    [record] = event["Records"]
    assert record["eventName"] == "INSERT"
    assert record["eventSource"] == "aws:dynamodb"
    assert record["eventSourceARN"] == table["LatestStreamArn"]
    assert record["dynamodb"]["Keys"] == {"pk": {"S": "a"}}
    assert record["dynamodb"]["NewImage"]["b"] == {"B": base64.b64encode(b"\x00\xff").decode()}


@pytest.mark.local
def test_records_flow_fast_enough(aws: Aws, tmp_path: Path) -> None:
    """20,000 records in under 10 s with a cheap handler; a lone record in under 150 ms at the median."""
    arn = aws.stream("fast", shards=2)
    aws.function("fast", "stream_handlers.record", {"SEEN": str(tmp_path / "seen")})
    aws.mapping("fast", arn, BatchSize=500)
    put(aws, "fast", [{"n": n, "key": n} for n in range(20_000)])
    process = StreamProcess(aws, "fast", tmp_path, HERE)
    began = time.monotonic()
    wait_for(lambda: _lines(tmp_path / "seen") == 20_000, 30, "20,000 records")
    took = time.monotonic() - began
    waits = []
    for n in range(15):
        time.sleep(random.Random(n).uniform(0.0, 0.2))
        began = time.monotonic()
        put(aws, "fast", [{"n": n, "key": n}])
        wait_for(lambda expected=20_001 + n: _lines(tmp_path / "seen") == expected, 5, "one record")
        waits.append(time.monotonic() - began)
    process.stop()
    assert took < 10.0
    assert statistics.median(waits) < 0.15


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0
