"""The node of a comparison: the one that is named, one of this machine, or why there is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from narrows.adapters.opensearch import connect
from narrows.adapters.opensearch_versions import index_versions
from narrows.cli.console import Console
from narrows.cli.search_node import search_node
from narrows.cli.steps import Steps
from narrows.settings import App, load_app
from tests.servers import OpenSearchNode, free_port

ROOT = Path(__file__).parents[2]


@pytest.fixture
def shopnow() -> App:
    """Its vectors lie in OpenSearch."""
    return load_app(ROOT / "apps" / "shopnow")


@pytest.fixture
def steps() -> Steps:
    """Of a command with one step."""
    return Steps(Console(json=False), 1)


def test_an_embedded_app_needs_none(tmp_path: Path, steps: Steps) -> None:
    """Whatever the environment says."""
    media, environment = load_app(ROOT / "apps" / "media"), {"SEARCH_URL": "http://127.0.0.1:9"}
    with search_node(media, tmp_path, environment, steps) as search:
        assert search == {}
    assert not list(tmp_path.iterdir())


def test_without_java_there_is_a_reason(
    tmp_path: Path, shopnow: App, steps: Steps, capsys: pytest.CaptureFixture[str]
) -> None:
    """Told at once too, before anybody waits for a comparison without these figures."""
    with search_node(shopnow, tmp_path, {"PATH": str(tmp_path)}, steps) as search:
        assert set(search) == {"missing"}
        assert "OpenSearch needs a whole JDK" in search["missing"]
    assert "without OpenSearch, whose figures will be missing" in capsys.readouterr().err


def test_the_named_node_is_taken_as_it_is(tmp_path: Path, shopnow: App, steps: Steps) -> None:
    """With the engine and region named; a password in its address is nobody's to read."""
    environment = {"SEARCH_URL": f"http://me:secret@127.0.0.1:{free_port()}", "AWS_REGION": "eu-west-1"}
    with search_node(shopnow, tmp_path, environment, steps) as search:
        assert search["url"] == environment["SEARCH_URL"]
        assert (search["engine"], search["region"]) == ("", "eu-west-1")
        assert search["name"].startswith("compare-shopnow-")


def test_its_address_is_told_without_the_password(
    tmp_path: Path, shopnow: App, steps: Steps, capsys: pytest.CaptureFixture[str]
) -> None:
    """The host is enough."""
    environment = {"SEARCH_URL": f"http://me:secret@127.0.0.1:{free_port()}"}
    with search_node(shopnow, tmp_path, environment, steps):
        pass
    said = capsys.readouterr().err
    assert "OpenSearch at 127.0.0.1, as SEARCH_URL says" in said
    assert "secret" not in said


@pytest.mark.local
def test_what_a_killed_job_left_is_removed(
    tmp_path: Path, shopnow: App, steps: Steps, opensearch: OpenSearchNode
) -> None:
    """The live index of the comparison goes, and an app's own stays live."""
    client = connect(opensearch.url, timeout_s=20.0)
    environment = {"SEARCH_URL": opensearch.url, "SEARCH_ENGINE": opensearch.engine}
    own = index_versions(shopnow.index, opensearch.url, "narrows-shopnow-dev", "lucene", search_s=20.0)
    own.create("v1", 4)
    own.promote("v1")
    own.open().upsert(np.asarray([1], np.int32), np.ones((1, 4), np.float32))
    with search_node(shopnow, tmp_path, environment, steps) as search:
        compared = index_versions(shopnow.index, **search, search_s=20.0)
        compared.create("compared", 4)
        compared.promote("compared")
        assert client.indices.exists(
            index=f"{search['name']}-vectors-*", params={"allow_no_indices": "false"}
        )
    assert dict(compared.states()) == {}
    own.open().refresh()
    assert len(own.open()) == 1
    own.discard()
    client.close()
