"""Every event counts exactly once, although its function is killed without a word in the middle."""

import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from plain_aws import Aws, StreamProcess, plain_aws, wait_for

from narrows.adapters.dynamodb import DynamoStateStore
from narrows.events import Event, to_record, user_key
from narrows.features.registry import FeatureSet
from narrows.features.state import VisitorState
from narrows.settings import load_app

ROOT = Path(__file__).parents[2]
EVENTS, USERS, DUPLICATES, KILLS = 20_000, 300, 200, 4
BUSIEST = 30
FEATURE_OF = {"view": "views", "add_to_cart": "cart_additions", "purchase": "purchases"}
ON_FAILURE_RETRIES = 10

pytestmark = pytest.mark.local


@pytest.fixture(scope="module")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Aws]:
    with plain_aws(tmp_path_factory.mktemp("aws")) as running:
        yield running


def history(rng: random.Random, now: float) -> list[Event]:
    """20,000 events of 300 users, some far busier than others, each with an id of its own."""
    users = [f"user-{number}" for number in range(USERS)]
    weights = [1.0 / (1 + number) ** 0.7 for number in range(USERS)]
    kinds = rng.choices(sorted(FEATURE_OF), weights=[2, 1, 7], k=EVENTS)
    return [
        Event(
            f"event-{n}", kind, now - 3600 + n / 10, now, user_id=user, item_id=f"item-{rng.randrange(500)}"
        )
        for n, (kind, user) in enumerate(zip(kinds, rng.choices(users, weights, k=EVENTS), strict=True))
    ]


def with_duplicates(rng: random.Random, events: Sequence[Event]) -> list[Event]:
    """The same with 200 events sent twice, as a producer does that lost an answer: sooner or later."""
    sent = list(events)
    for position in sorted(rng.sample(range(EVENTS), DUPLICATES), reverse=True):
        sent.insert(position + rng.randint(1, 50), sent[position])
    return sent


def put(aws: Aws, stream: str, events: Sequence[Event]) -> None:
    kinesis = aws.client("kinesis")
    for start in range(0, len(events), 500):
        records = [
            {"Data": json.dumps(to_record(event)).encode(), "PartitionKey": event.partition_key}
            for event in events[start : start + 500]
        ]
        assert kinesis.put_records(StreamName=stream, Records=records)["FailedRecordCount"] == 0


def states(aws: Aws, table: str, users: int = USERS) -> Mapping[str, VisitorState]:
    store = DynamoStateStore(aws.client("dynamodb"), table, clock=time.time, consistent=True)
    return store.get_many([user_key(f"user-{number}") for number in range(users)])


def counted(aws: Aws, table: str, features: FeatureSet, now: float) -> dict[str, dict[str, float]]:
    """What each user's stored state says of the three counts."""
    found = {}
    for key, state in states(aws, table).items():
        values = features.read(state.features, now)
        found[key] = {name: values[name] for name in FEATURE_OF.values() if values[name]}
    return found


def checkpoints(home: Path) -> dict[str, int]:
    """The last checkpointed sequence number of each shard."""
    found = {}
    for path in (home / "checkpoints").glob("*/shardId-*.json"):
        found[path.stem] = int(json.loads(path.read_text())["sequence"] or 0)
    return found


def ahead(aws: Aws, table: str, home: Path, users: int = USERS) -> int:
    """How many stored states hold events after their shard's checkpoint: these will be delivered again."""
    stored = checkpoints(home)
    return sum(
        any(sequence > stored.get(shard, 0) for shard, sequence in state.applied.items())
        for state in states(aws, table, users).values()
    )


def kill_in_the_middle(aws: Aws, process: StreamProcess, home: Path, rng: random.Random) -> None:
    """Kill -9 in a batch after the next checkpoint, soon after it began to write."""
    before = checkpoints(home)
    wait_for(lambda: checkpoints(home) != before, 60, "the next checkpoint")
    wait_for(lambda: ahead(aws, "state", home, BUSIEST), 60, "writes that no checkpoint covers")
    time.sleep(rng.uniform(0.0, 0.05))
    process.kill()


def test_twenty_thousand_events_count_exactly_once_through_kills_and_duplicates(
    aws: Aws, tmp_path: Path
) -> None:
    """Four kills, 200 producer duplicates, two shards: every user's counts equal the known ones."""
    rng, now = random.Random(7), time.time()
    events = history(rng, now)
    known: dict[str, Counter[str]] = defaultdict(Counter)
    for event in events:
        known[event.visitor_key][FEATURE_OF[event.event_type]] += 1
    sent = with_duplicates(rng, events)

    features = FeatureSet(load_app(ROOT / "apps" / "megashop").features)
    process = start(aws, tmp_path)
    put(aws, "events", sent[: len(sent) // 2])
    replayed = []
    for kill in range(KILLS):
        kill_in_the_middle(aws, process, tmp_path, rng)
        replayed.append(ahead(aws, "state", tmp_path))
        if kill == KILLS // 2:
            put(aws, "events", sent[len(sent) // 2 :])
        process = StreamProcess(aws, "update_features", tmp_path)
    last = last_sequences(aws, "events")
    wait_for(lambda: checkpoints(tmp_path) == last, 60, "the end of both shards")
    process.stop()

    found = counted(aws, "state", features, now)
    assert any(replayed), "no kill fell between a write and its checkpoint; the test proved nothing"
    assert sum(sum(counts.values()) for counts in found.values()) == EVENTS
    assert found == {user: dict(counts) for user, counts in known.items()}


def start(aws: Aws, home: Path) -> StreamProcess:
    """Deploy the real function on a stream of two shards, with the mapping that the stacks give it."""
    aws.client("dynamodb").create_table(
        TableName="state",
        KeySchema=[{"AttributeName": "pk", "KeyType": "HASH"}],
        AttributeDefinitions=[{"AttributeName": "pk", "AttributeType": "S"}],
        BillingMode="PAY_PER_REQUEST",
    )
    dead_letters, _ = aws.queue("dead")
    variables = {"APP": "megashop", "STATE_TABLE": "state", "DEAD_LETTERS": dead_letters}
    aws.function("update_features", "lambdas.update_features.handler.handler", variables, timeout=60)
    aws.mapping(
        "update_features",
        aws.stream("events", shards=2),
        BatchSize=1000,
        BisectBatchOnFunctionError=True,
        MaximumRetryAttempts=ON_FAILURE_RETRIES,
        FunctionResponseTypes=["ReportBatchItemFailures"],
    )
    return StreamProcess(aws, "update_features", home)


def last_sequences(aws: Aws, stream: str) -> dict[str, int]:
    """The sequence number of each shard's newest record."""
    kinesis = aws.client("kinesis")
    found: dict[str, int] = {}
    for shard in kinesis.list_shards(StreamName=stream)["Shards"]:
        asked = {"StreamName": stream, "ShardId": shard["ShardId"], "ShardIteratorType": "TRIM_HORIZON"}
        iterator: Any = kinesis.get_shard_iterator(**asked)["ShardIterator"]
        while records := (answer := kinesis.get_records(ShardIterator=iterator, Limit=10_000))["Records"]:
            found[shard["ShardId"]] = int(records[-1]["SequenceNumber"])
            iterator = answer["NextShardIterator"]
    return found
