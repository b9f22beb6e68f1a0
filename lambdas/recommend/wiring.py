"""What the function is made of: clients of little patience, stores, and stages that a thread keeps fresh."""

from __future__ import annotations

import atexit
import gc
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from aws_lambda_powertools import Logger

from lambdas.recommend.contract import Ask, Explanation
from narrows.adapters.aws import client
from narrows.adapters.bundle import load_serving, stages_of
from narrows.adapters.control import DynamoControlTable
from narrows.adapters.dynamodb import REPLICAS, DynamoPolicyLog, DynamoSlateStore, DynamoStateStore
from narrows.adapters.kinesis import DecisionStream, LambdaExtension
from narrows.adapters.refreshing import Cellar, Live, Refresher
from narrows.adapters.s3 import S3Objects
from narrows.adapters.secrets import SecretKey
from narrows.adapters.snapshots import SnapshotCopy
from narrows.adapters.visitors import StoredVisitors
from narrows.control import model_pointer, snapshot_pointer
from narrows.errors import StoreUnavailable
from narrows.events import pseudonym, session_key, user_key
from narrows.item_details import item_details
from narrows.pipeline import VISITOR_SHARE, Recommendation, Request, Stages, recommend
from narrows.settings import App
from narrows.vector_index import IndexVersions

THREADS = 8
COMPUTING = 2
"""Threads of the stages where nothing is asked over the network: more of them take Python's lock from one
another, and with eight a stage of three milliseconds takes six."""
WARM_UP_S = 0.5
RULES_SHARE = 0.3
"""The part of a request's time that the first one after a freeze may spend on hearing of new rules."""


@dataclass(frozen=True)
class Settings:
    """The variables of this function; without `lightgbm_library` the installed package is looked for.

    Those of `search` are there where the app's vectors lie in OpenSearch.
    """

    app: str
    bucket: str
    state_table: str
    slates_table: str
    policy_table: str
    control_table: str
    decisions_stream: str
    pseudonym_secret: str
    aws_region: str
    narrows_cache: str = ""
    lightgbm_library: str = ""
    search_url: str = ""
    search_name: str = ""
    search_engine: str = ""
    aws_lambda_runtime_api: str = ""


class Front:
    """Answers requests with what this process holds, and counts the rungs that answered."""

    def __init__(
        self,
        refresher: Refresher,
        records: DecisionStream,
        key: SecretKey,
        finished: Callable[[], None],
    ) -> None:
        self.finished = finished
        self._refresher = refresher
        self._records = records
        self.key = key
        self._rungs: Counter[str] = Counter()

    @property
    def stages(self) -> Stages:
        """What requests go through now."""
        return self._refresher.stages

    def recommend(self, ask: Ask, *, now: float, recommendation_id: str) -> Recommendation:
        """The answer and its record; an unreadable key makes the visitor a stranger, never an error."""
        budget_s = self.stages.app.surfaces[ask.surface].deadline_ms / 1e3
        deadline = self.stages.clock() + budget_s
        self._refresher.catch_up(budget_s * RULES_SHARE)
        stages = self.stages
        keys, failure = self.keys(ask)
        request = Request(
            surface=ask.surface,
            limit=ask.limit,
            now=now,
            deadline=deadline,
            recommendation_id=recommendation_id,
            user_key=keys[0],
            session_key=keys[1],
            item_ids=ask.item_ids,
            context=ask.context,
        )
        answer = recommend(request, stages)
        if failure:
            degraded = {**answer.degraded, "visitor": failure}
            answer = replace(answer, degraded=degraded, record=replace(answer.record, degraded=degraded))
        self._rungs[answer.fallback] += 1
        self._records.append(answer.record)
        return answer

    def explanation(self, recommendation: Recommendation) -> Explanation:
        """What is known of the items shown and of those that the visitor came from, and all that could be."""
        ids = [item.item_id for item in recommendation.slate]
        ids += [item_id for item_id, _ in recommendation.record.history]
        snapshot = self.stages.snapshot
        return Explanation(item_details(snapshot, ids), snapshot.ids(recommendation.eligible))

    def health(self, *, now: float) -> dict[str, Any]:
        """What this process serves with; it serves in any case."""
        stages = self.stages
        age_s = stages.policy.age_s(now)
        problems = dict(stages.problems)
        if self._refresher.last_error:
            problems["refresh"] = self._refresher.last_error
        return {
            "app": stages.app.name,
            "model_version": stages.model_version,
            "snapshot_version": stages.snapshot.version,
            "policy_version": stages.policy.version,
            "policy_age_s": round(age_s, 3) if age_s < float("inf") else None,
            "rungs": dict(self._rungs),
            "problems": problems,
            "decisions": {"sent": self._records.sent, "lost": dict(self._records.lost)},
        }

    def keys(self, ask: Ask) -> tuple[tuple[str | None, str | None], str]:
        """The user's and the session's key, and "" or why they could not be made."""
        try:
            key = self.key.at_hand()
        except StoreUnavailable as error:
            return (None, None), type(error).__name__
        user = user_key(pseudonym(ask.user_id, key)) if ask.user_id else None
        session = session_key(pseudonym(ask.session_id, key)) if ask.session_id else None
        return (user, session), ""


def wire(settings: Settings, app: App, logger: Logger) -> Front:
    """Build everything once in a process; nothing that is away here stops it from answering."""
    patience_s = max(surface.deadline_ms for surface in app.surfaces.values()) / 1e3 * VISITOR_SHARE
    dynamodb = client("dynamodb", read_timeout_s=patience_s, connections=THREADS)
    visitors = StoredVisitors(
        DynamoStateStore(dynamodb, settings.state_table, clock=time.time),
        DynamoSlateStore(dynamodb, settings.slates_table),
        executor=ThreadPoolExecutor(THREADS, "visitors"),
        clock=time.monotonic,
    )
    stages = stages_of(
        app,
        load_serving(app, None, None),
        visitors=visitors,
        executor=ThreadPoolExecutor(THREADS if settings.search_url else COMPUTING, "stages"),
        clock=time.perf_counter,
    )
    refresher = _refresher(settings, app, stages)
    refresher.start()
    records = DecisionStream(
        client("kinesis", read_timeout_s=2, connect_timeout_s=0.5), settings.decisions_stream
    )
    secrets = client("secretsmanager", read_timeout_s=0.5, connect_timeout_s=0.25)
    front = Front(
        refresher,
        records,
        SecretKey(secrets, settings.pseudonym_secret, clock=time.monotonic),
        _flushed(settings, records, logger),
    )
    _warm_up(front, visitors, app)
    if refresher.last_error:
        logger.warning("cold start without everything", extra={"reason": refresher.last_error})
    return front


def _warm_up(front: Front, visitors: StoredVisitors, app: App) -> None:
    """Read the key, open connections and threads: what the first request would wait for."""
    with suppress(StoreUnavailable):  # it is read again in the background, as requests come
        front.key.get()
    stranger = Ask(next(iter(app.surfaces)), 1, user_id="-", session_id="-")
    (user, session), _ = front.keys(stranger)
    visitors.read(user, session, stranger.surface, now=time.time(), timeout_s=WARM_UP_S)
    stages = front.stages
    deadline = stages.clock() + WARM_UP_S
    recommend(Request(stranger.surface, stranger.limit, time.time(), deadline, ""), stages)
    gc.freeze()  # what the start made stays; no collection during a request looks through it again


def _refresher(settings: Settings, app: App, stages: Stages) -> Refresher:
    control = DynamoControlTable(
        settings.control_table, region=settings.aws_region, connect_timeout_s=0.25, read_timeout_s=1
    )
    objects = S3Objects(client("s3", read_timeout_s=20, connect_timeout_s=0.5, attempts=2), settings.bucket)
    patient = client("dynamodb", read_timeout_s=1, connect_timeout_s=0.25)
    jitter = random.Random()
    library = Path(settings.lightgbm_library) if settings.lightgbm_library else None
    copy = SnapshotCopy(_cache(settings), objects.download, objects.get)
    cellar = Cellar(app, copy, library=library, versions=_vectors(settings, app))
    return Refresher(
        stages,
        policy_log=DynamoPolicyLog(patient, settings.policy_table, replica=jitter.randrange(REPLICAS)),
        current=lambda: Live(control.read(model_pointer(app.name)), control.read(snapshot_pointer(app.name))),
        load=cellar.load,
        follow=cellar.follow,
        now=time.time,
        jitter=jitter,
    )


def _vectors(settings: Settings, app: App) -> IndexVersions | None:
    """Where the app's vectors lie, if not in this process."""
    if not settings.search_url:
        return None
    from narrows.adapters.opensearch_versions import (
        index_versions,
    )  # half a second that the embedded tier saves

    return index_versions(
        app.index,
        url=settings.search_url,
        name=settings.search_name,
        engine=settings.search_engine,
        region=settings.aws_region,
    )


def _cache(settings: Settings) -> Path:
    """A folder of this process alone, because it throws away there what it no longer serves."""
    parent = settings.narrows_cache or None
    if parent:
        Path(parent).mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="narrows-", dir=parent))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _flushed(settings: Settings, records: DecisionStream, logger: Logger) -> Callable[[], None]:
    """Start whatever flushes the records here; returns what to call when a response is made."""
    if settings.aws_lambda_runtime_api:
        extension = LambdaExtension(settings.aws_lambda_runtime_api, records)
        try:
            extension.start()
        except StoreUnavailable as error:
            logger.warning("no extension, records leave from a thread", extra={"reason": str(error)})
        else:
            return extension.invocation_finished
    records.start()
    atexit.register(records.close)
    return lambda: None


def app_folder(name: str) -> Path:
    """The app's folder beside the code."""
    return Path(__file__).resolve().parents[2] / "apps" / name
