"""The OpenSearch node that a comparison measures on: one that is there already, else one of this machine."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

from narrows.cli.steps import Steps
from narrows.errors import NarrowsError
from narrows.settings import App

PATIENCE_S = 20.0
LOCAL_ENGINE = "lucene"  # the only one whose libraries are on Maven Central


@contextmanager
def search_node(
    app: App, folder: Path, environment: Mapping[str, str], steps: Steps
) -> Iterator[Mapping[str, str]]:
    """What a job must know of the node: its `url`, the `name` of the job's indexes, `engine` and `region`.

    It is the node that SEARCH_URL names, with SEARCH_ENGINE and AWS_REGION, or one that is started in
    `folder` and ends with the context; else `missing` says why there is none. The indexes are gone
    afterwards, even where the job was killed. Nothing is to be known for an app that needs no node.
    """
    with ExitStack() as until_then:
        if app.tiers["vectors"] != "opensearch":
            yield {}
        elif environment.get("SEARCH_URL"):
            yield until_then.enter_context(_given(app, environment, steps))
        else:
            yield _started(folder, environment, steps, until_then)


@contextmanager
def _given(app: App, environment: Mapping[str, str], steps: Steps) -> Iterator[Mapping[str, str]]:
    from narrows.adapters.opensearch_versions import index_versions  # other apps need no client of it

    url, engine = environment["SEARCH_URL"], environment.get("SEARCH_ENGINE", "")
    name, region = f"compare-{app.name}-{time.time_ns():x}", environment.get("AWS_REGION", "")
    steps.remark(f"OpenSearch at {urlsplit(url).hostname}, as SEARCH_URL says, in indexes '{name}-*'")
    try:
        yield {"url": url, "name": name, "engine": engine, "region": region}
    finally:
        with suppress(NarrowsError):
            index_versions(app.index, url, name, engine, region, search_s=PATIENCE_S).discard()


def _started(
    folder: Path, environment: Mapping[str, str], steps: Steps, until_then: ExitStack
) -> Mapping[str, str]:
    from localcloud.opensearch import running  # starts programs

    try:
        url = until_then.enter_context(running(folder, environment))
    except NarrowsError as error:
        steps.remark(f"without OpenSearch, whose figures will be missing: {error}")
        return {"missing": str(error)}
    steps.remark("OpenSearch of this machine, for this comparison alone; SEARCH_URL would name another")
    return {"url": url, "name": "compare", "engine": LOCAL_ENGINE}
