"""What stays of a local cloud in the home folder: landed events and decisions, and items as streamed."""

from __future__ import annotations

import gzip
import json
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from narrows.adapters.aws import client
from narrows.adapters.dynamodb import DynamoStateStore
from narrows.cli.console import CommandFailed
from narrows.cli.deployment import Deployment
from narrows.cli.places import Places
from narrows.features.items import item_states, streamed
from narrows.features.registry import FeatureSet
from narrows.settings import App

ITEMS = 200
QUIET_S, PATIENCE_S = 3.0, 30.0
KINDS = ("events", "decisions")
STREAMED = "streamed.jsonl"


def kept(places: Places, app: str) -> Path:
    """The folder of what has landed: `events/`, `decisions/`, and the items as the stream has them."""
    return places.home / "apps" / app / "landed"


def keep(deployment: Deployment, app: App, folder: Path) -> dict[str, int]:
    """Put what has landed so far into the folder, in place of what it held; returns the number of files."""
    from localcloud.staging import download_folder

    s3 = client("s3", read_timeout_s=60.0, connect_timeout_s=2.0, attempts=3)
    landing = f"s3://{deployment.output('BucketName')}/landing"
    _wait_until_quiet(s3, f"{landing}/decisions/")
    fresh = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(fresh, ignore_errors=True)
    counts = {kind: download_folder(s3, f"{landing}/{kind}/", fresh / kind) for kind in KINDS}
    if not counts["events"]:
        raise CommandFailed("no event has landed yet; send some, or see the log of land_events")
    _keep_items(deployment, app, fresh)
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)
    return counts


def _wait_until_quiet(s3: Any, uri: str) -> None:
    """Wait while decisions are still landing, within reason: their stream is read every second or so."""
    from localcloud.staging import bucket_and_key, keys_below

    deadline, count, since = time.monotonic() + PATIENCE_S, -1, time.monotonic()
    while time.monotonic() < min(deadline, since + QUIET_S):
        found = len(keys_below(s3, *bucket_and_key(uri)))
        if found != count:
            count, since = found, time.monotonic()
        time.sleep(0.25)


def _keep_items(deployment: Deployment, app: App, folder: Path) -> None:
    """The values of the most active items as the stream has counted them, one JSON line each."""
    features, now = streamed(FeatureSet(app.features)), time.time()
    if not features.features:
        return
    dynamodb = client("dynamodb", read_timeout_s=10.0, connect_timeout_s=2.0, attempts=3)
    store = DynamoStateStore(dynamodb, deployment.output("StateTableName"), clock=time.time, consistent=True)
    active, shards, since = Counter[str](), set[str](), now
    for event in _events(folder):
        active[event.get("item_id") or ""] += 1
        shards.add(event["shard"])
        since = min(since, event.get("received_at") or now)
    del active[""]
    items = [item_id for item_id, _ in active.most_common(ITEMS)]
    states = item_states(store, items, shards=sorted(shards), since=since, now=now, feature_set=features)
    with (folder / STREAMED).open("w", encoding="utf-8") as file:
        for item_id, state in states.items():
            line = {"item_id": item_id, "at": now, "values": features.read(state, now)}
            file.write(json.dumps(line) + "\n")


def _events(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted((folder / "events").rglob("*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            yield from map(json.loads, lines)
