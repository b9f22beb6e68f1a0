"""`narrows compare` on a small simulated market: every number is there, or the reason why it is not."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from narrows.adapters.opensearch import connect
from narrows.cli import main
from narrows.cli.compare import lines_of
from narrows.cli.console import Console
from narrows.errors import InvalidInput
from narrows.evaluation.comparison import NO_CREATION, NO_TRUTH
from narrows.evaluation.funnel import STAGES
from sagemaker_jobs.compare.__main__ import compare
from sagemaker_jobs.compare.indexes import EMBEDDED, NO_GRAPHS, ON_NODES
from sagemaker_jobs.container import Container
from sagemaker_jobs.train_covisitation.__main__ import train
from tests.servers import OpenSearchNode

pytestmark = pytest.mark.local
STACKS = ("traditional", "two_tower")
COMPARED = ["compare", *STACKS, "--app", "shopnow", "--events", "2500", "--budget", "2"]
GROUPS = {"overall", "head", "tail", "new_items", "new_visitors", "anonymous"}


@pytest.fixture(scope="module")
def compared(
    tmp_path_factory: pytest.TempPathFactory, opensearch: OpenSearchNode
) -> tuple[Path, dict[str, Any]]:
    """The folder that the command works in, and its report; vectors lie on a node that was there before."""
    home = tmp_path_factory.mktemp("compared")
    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setenv("NARROWS_HOME", str(home))
        patch.setenv("SEARCH_URL", opensearch.url)
        patch.setenv("SEARCH_ENGINE", opensearch.engine)
        assert main([*COMPARED, "--json"]) == 0
    return home / "apps" / "shopnow" / "compare", json.loads(said.getvalue())


def test_both_stacks_have_every_number(compared: tuple[Path, dict[str, Any]]) -> None:
    """Recall and gain by group, business with intervals, times, sizes, ages, costs, features and jobs."""
    _, report = compared
    assert tuple(report["stacks"]) == STACKS
    assert set(report["groups"]) == GROUPS
    assert report["groups"]["anonymous"]["users"] > 0.2 * report["users"] > 5
    for part in report["stacks"].values():
        recalls = part["recall"]["overall"]
        assert 0.0 < recalls["recall_at_10"] < recalls["recall_at_100"] <= recalls["recall_at_300"] <= 1.0
        assert (
            part["ndcg_at_10_interval"][0] <= part["ndcg_at_10"]["overall"] <= part["ndcg_at_10_interval"][1]
        )
        for value in part["business_per_1000"].values():
            assert 0.0 < value["low"] <= value["mean"] <= value["high"]
        assert part["with_own_scores"]["ndcg_at_10"]["overall"] > 0.0
        assert part["with_own_scores"]["business_per_1000"]["margin"]["mean"] > 0.0
        assert 0.0 < part["retrieval_ms"]["p50"] <= part["retrieval_ms"]["p99"]
        assert min(part["build_s"].values()) >= 0.0
        assert part["memory_bytes"] > 10_000
        assert set(part["staleness_s"]) == {"own_click", "new_item", "new_item_shown", "learned"}
        assert None not in part["staleness_s"].values()
        cost = part["cost_per_million_usd"]
        assert cost["all"] == pytest.approx(cost["function"] + cost["search"] + cost["training"])
        assert part["features"]["ranker_columns"] > part["features"]["declared"] > 30


def test_what_differs_is_what_the_stacks_are(compared: tuple[Path, dict[str, Any]]) -> None:
    """Only one has a vector index, searched on nodes; both read what is written about a new item at once."""
    traditional, two_tower = compared[1]["stacks"].values()
    assert traditional["build_s"]["index"] == 0.0 < two_tower["build_s"]["index"]
    assert traditional["cost_per_million_usd"]["search"] == 0.0 < two_tower["cost_per_million_usd"]["search"]
    assert 0.0 < two_tower["staleness_s"]["new_item"] < 60.0
    assert 0.0 < traditional["staleness_s"]["new_item"] < 60.0
    assert set(traditional["jobs"]) ^ set(two_tower["jobs"]) == {"train_als", "train_two_tower"}
    assert set(traditional["sources"]) & set(two_tower["sources"]) == {"popular", "fresh"}


def test_the_two_towers_are_measured_on_the_node(compared: tuple[Path, dict[str, Any]]) -> None:
    """Wall time, a build of a node's length, files on it and no vectors of an index in the process."""
    report = compared[1]
    traditional, two_tower = report["stacks"].values()
    assert (report["vectors"], report["clock"]) == ("opensearch", "wall")
    assert re.fullmatch(r"OpenSearch \d+\.\d+\.\d+, lucene hnsw", two_tower["index"]["on"])
    assert two_tower["index"]["note"] == "shopnow's own engine is faiss"
    assert traditional["index"]["on"] == "none"
    assert two_tower["build_s"]["index"] > 0.05 > traditional["build_s"]["index"] == 0.0
    assert two_tower["retrieval_ms"]["p50"] > 1.0  # no round trip to a server is as quick as a product
    assert two_tower["node_bytes"]["files"] > 10_000 > 0.0 == traditional["node_bytes"]["files"]
    assert two_tower["node_bytes"]["graphs"] is None
    assert two_tower["undefined"]["node_bytes.graphs"] == NO_GRAPHS
    assert not set(ON_NODES) & set(two_tower["undefined"])
    assert report["verdict"].endswith(f"two_tower was measured on {two_tower['index']['on']}.")


def test_nothing_is_left_on_the_node(
    compared: tuple[Path, dict[str, Any]], opensearch: OpenSearchNode
) -> None:
    """Neither an index nor an alias of the comparison; what others have there is as it was."""
    client = connect(opensearch.url, timeout_s=20.0)
    assert compared[1]["stacks"]
    assert client.indices.get(index="compare-*", params={"expand_wildcards": "all"}) == {}
    client.close()


def test_the_verdict_follows_from_the_difference(compared: tuple[Path, dict[str, Any]]) -> None:
    """A stack is better only where the interval says so; the funnel has all its stages."""
    report = compared[1]
    difference, verdict = report["difference"], report["verdict"]
    better = STACKS[1] if difference["low"] > 0 else STACKS[0] if difference["high"] < 0 else "Neither"
    assert verdict.startswith(f"{better} is better")
    assert difference["of"] == "margin"
    assert report["would_change"][0].startswith("the ranker: ")
    assert any(one.startswith("price: ") for one in report["would_change"])
    assert [one["stage"] for one in report["funnel"]["stages"]] == list(STAGES)
    there, back = (report["funnel"][f"{one} -> {other}"] for one, other in (STACKS, STACKS[::-1]))
    assert there["reason"]
    assert back["reason"]
    assert not (there["kind"] == back["kind"] == "lost")


def test_events_that_are_left_out_are_told(compared: tuple[Path, dict[str, Any]]) -> None:
    """Where the log comes from, and what of it counts."""
    log = compared[1]["log"]
    assert log["events"] + sum(log["left_out"].values()) == log["simulated"]["events"] == 2500


@pytest.mark.slow
def test_on_imported_data_nobody_knows_what_a_slate_is_worth(
    compared: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """The same log without its market: null with a reason, the gain decides, the funnel gives no verdict."""
    folder, simulated = compared
    channels = {"training": folder / "data", "sources": folder / "sources"}
    given = {"app": "shopnow", "stacks": " ".join(STACKS), "seed": 7, "budget_s": 0, "most_rows": 20_000}
    compare(Container(tmp_path, tmp_path, tmp_path, tmp_path, channels, given))
    report = json.loads((tmp_path / "comparison.json").read_text())
    assert not report["simulated"]
    assert report["difference"]["of"] == "ndcg_at_10"
    for name, part in report["stacks"].items():
        assert part["business_per_1000"]["margin"] == {"mean": None, "low": None, "high": None}
        assert part["undefined"]["business_per_1000"] == NO_TRUTH
        assert part["recall"].keys() == simulated["stacks"][name]["recall"].keys()
        assert 0.0 < part["recall"]["overall"]["recall_at_100"] <= 1.0
    assert "two_tower was measured without its index" in report["verdict"]
    assert any(one.startswith("price: not known") for one in report["would_change"])
    stages = {one["stage"]: one for one in report["funnel"]["stages"]}
    assert (stages["margin"]["variant"], stages["margin"]["reason"]) == (None, "not measured")
    assert report["funnel"]["traditional -> two_tower"]["kind"] == "no_verdict"


@pytest.mark.slow
def test_without_a_node_its_figures_are_missing(
    compared: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Null with the reason, for the stack that needs it alone: no other index is measured in its place."""
    folder, simulated = compared
    channels = {"training": folder / "data", "sources": folder / "sources"}
    given = {"app": "shopnow", "stacks": " ".join(STACKS), "seed": 7, "budget_s": 0, "most_rows": 20_000}
    given |= {"market": simulated["log"]["simulated"], "search": {"missing": "no Java on this machine"}}
    compare(Container(tmp_path, tmp_path, tmp_path, tmp_path, channels, given))
    report = json.loads((tmp_path / "comparison.json").read_text())
    traditional, two_tower = report["stacks"].values()
    assert two_tower["index"]["on"] is None
    assert two_tower["retrieval_ms"] == {"p50": None, "p99": None}
    assert two_tower["build_s"]["index"] is None
    assert two_tower["node_bytes"] == {"files": None, "graphs": None}
    assert two_tower["staleness_s"]["new_item"] is None
    cost = two_tower["cost_per_million_usd"]
    assert (cost["function"], cost["search"], cost["all"]) == (None, None, None)
    reason = "no OpenSearch node: no Java on this machine"
    assert {two_tower["undefined"][name] for name in ON_NODES} == {reason}
    assert not set(ON_NODES) & set(traditional["undefined"])
    assert two_tower["memory_bytes"] == simulated["stacks"]["two_tower"]["memory_bytes"]
    assert 0.0 < two_tower["recall"]["overall"]["recall_at_100"] <= 1.0
    assert None not in (traditional["retrieval_ms"]["p99"], traditional["cost_per_million_usd"]["all"])
    text = _printed(report, capsys)
    (line,) = [line for line in text.splitlines() if line.endswith(f" of two_tower: not known, {reason}")]
    assert {"retrieval time", "time to build the index", "size on the node"} < set(line.split(", "))


@pytest.mark.slow
def test_an_embedded_app_is_measured_in_the_process(
    compared: tuple[Path, dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same log for an app without nodes: its tier is named, nothing waits and nothing is on a node."""
    folder, simulated = compared
    sources, given = tmp_path / "sources", {"app": "media", "seed": 7, "budget_s": 0}
    for job in ("train_als", "train_two_tower"):
        shutil.copytree(folder / "sources" / job, sources / job)
    counted, training = sources / "train_covisitation", {"training": folder / "data"}
    train(Container(counted, counted, counted, counted, training, given))  # media counts more than shopnow
    channels = {**training, "sources": sources}
    given |= {"stacks": " ".join(STACKS), "most_rows": 20_000}
    given |= {"market": simulated["log"]["simulated"], "search": {"missing": "nobody asks for one"}}
    compare(Container(tmp_path, tmp_path, tmp_path, tmp_path, channels, given))
    report = json.loads((tmp_path / "comparison.json").read_text())
    two_tower = report["stacks"]["two_tower"]
    assert (report["vectors"], report["clock"]) == ("embedded", "processor")
    assert two_tower["index"] == {"on": EMBEDDED, "note": ""}
    assert two_tower["node_bytes"] == {"files": 0.0, "graphs": 0.0}
    assert two_tower["cost_per_million_usd"]["search"] == 0.0
    assert two_tower["build_s"]["index"] > 0.0 < two_tower["retrieval_ms"]["p50"]
    assert two_tower["memory_bytes"] > simulated["stacks"]["two_tower"]["memory_bytes"]
    assert not set(ON_NODES) & set(two_tower["undefined"])
    assert report["verdict"].endswith(f"two_tower was measured on {EMBEDDED}.")
    text = _printed(report, capsys)
    assert "retrieval p99 (ms, of one processor)" in text
    assert "on the node" not in text
    assert "wall time" not in text


def test_without_requests_there_are_reasons_in_place_of_numbers(
    compared: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """Nobody to ask is no zero: null everywhere, and neither a verdict nor a finding."""
    folder, simulated = compared
    channels = {"training": folder / "data", "sources": folder / "sources"}
    given = {"app": "shopnow", "stacks": " ".join(STACKS), "budget_s": 0, "most_rows": 100, "most_users": 0}
    given["market"] = simulated["log"]["simulated"]
    compare(Container(tmp_path, tmp_path, tmp_path, tmp_path, channels, given))
    report = json.loads((tmp_path / "comparison.json").read_text())
    assert report["users"] == 0
    assert report["verdict"].startswith("No verdict")
    assert report["funnel"]["traditional -> two_tower"]["kind"] == "no_verdict"
    for part in report["stacks"].values():
        assert part["recall"]["tail"]["recall_at_100"] is None
        assert part["undefined"]["tail"] == "no request is of this group"
        assert part["retrieval_ms"]["p50"] is None


def test_a_source_without_a_model_is_refused(compared: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """With the reason that its training gave, where it gave one."""
    folder, _ = compared
    sources = tmp_path / "sources"
    shutil.copytree(folder / "sources", sources)
    shutil.rmtree(sources / "train_two_tower")
    channels = {"training": folder / "data", "sources": sources}
    given = {"app": "shopnow", "stacks": " ".join(STACKS)}
    with pytest.raises(InvalidInput, match=r"sources.two_tower.*no model"):
        compare(Container(tmp_path, tmp_path, tmp_path, tmp_path, channels, given))
    (sources / "train_two_tower").mkdir()
    (sources / "train_two_tower" / "two_tower.json").write_text('{"reason": "no history has two events"}')
    with pytest.raises(InvalidInput, match="no history has two events"):
        compare(Container(tmp_path, tmp_path, tmp_path, tmp_path, channels, given))


def _printed(report: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> str:
    console = Console(json=False)
    for line in lines_of(report):
        console.say(line) if isinstance(line, str) else console.table(*line)
    return capsys.readouterr().out


def test_the_report_is_readable(
    compared: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """A line for each number and a column for each stack; what is null is a dash."""
    report = json.loads(json.dumps(compared[1]))
    report["stacks"]["two_tower"]["business_per_1000"]["margin"] = {"mean": None, "low": None, "high": None}
    report["stacks"]["two_tower"]["undefined"] = {"new_items": NO_CREATION}
    text = _printed(report, capsys)
    rows = {line.split("  ")[0]: line.split() for line in text.splitlines()}
    assert rows["margin, 1,000 slates"][-1] == "-"
    jobs = [str(len(one["jobs"])) for one in report["stacks"].values()]
    assert rows["jobs of the workflow"][-2:] == jobs
    assert {
        "recall@300 tail",
        "NDCG@10 anonymous",
        "retrieval p99 (ms, wall time)",
        "memory of a process (MB)",
        "on the node: index files (MB)",
    } <= set(rows)
    assert f"new_items of two_tower: not known, {NO_CREATION}" in text
    assert "\nwall time: another process searches the vectors" in text
    assert "vector index of two_tower: shopnow's own engine is faiss" in text
    assert report["verdict"] in text
    assert f"{report['users']:,} visitors of a simulated market; not asked: " in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["traditional", "two_tower", "--app", "megashop"], "ask for one of two_tower in"),
        (["traditional", "traditional", "--app", "shopnow"], "name each stack once"),
        (["traditional", "best", "--app", "shopnow"], "invalid choice: 'best'"),
        (["traditional", "two_tower", "--app", "shopnow", "--surface", "cart"], "shopnow has feed, product"),
        (["traditional", "two_tower", "--app", "shopnow", "--budget", "-1"], "give a number of seconds"),
        (["traditional", "two_tower", "--app", "shopnow", "--requests-per-second", "0"], "give more than 0"),
    ],
)
def test_a_question_that_makes_no_sense_is_refused(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """At once, with the remedy, before anything is trained."""
    monkeypatch.setenv("NARROWS_HOME", str(tmp_path))
    assert main(["compare", *arguments]) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
