"""`narrows skew` as a person runs it after a demo: on files alone, with the real jobs."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from localcloud.jars import ICEBERG, JarMissing, kept
from narrows.cli import main
from narrows.features.registry import FeatureSet
from narrows.settings import load_app
from narrows.simulator import Market
from tests import servers
from tests.served import events_of, serve

AS_OF = 1_790_000_000.0
NAMES = ("rows", "features", "exact_share", "max_abs_diff", "first_divergence")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NARROWS_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def _serve(home: Path) -> Path:
    """What a demo leaves: landed events and decisions of a small shop; returns the folder."""
    app = load_app(Path(__file__).parents[2] / "apps" / "megashop")
    market = Market(7, users=30, items=100, as_of=AS_OF)
    events = events_of(market.events(600, AS_OF - 2 * 86_400.0, AS_OF), app)
    folder = home / "apps" / "megashop"
    serve(events, FeatureSet(app.features), folder, every=10)
    (folder / "landing").rename(folder / "landed")
    return folder / "landed"


def _spoil(landed: Path) -> str:
    """Add one to the views that one decision says it served; returns the decision's id."""
    path = sorted((landed / "decisions").rglob("*.jsonl.gz"))[-1]
    record = json.loads(gzip.decompress(path.read_bytes()))
    record["visitor_features"]["views"] += 1.0
    path.write_bytes(gzip.compress(json.dumps(record, separators=(",", ":")).encode() + b"\n"))
    return str(record["recommendation_id"])


@pytest.mark.slow
@pytest.mark.spark
@pytest.mark.timeout(900)
def test_the_command_ends_well_only_when_every_value_agrees(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exact on an honest run, exit code 0; one value changed, exit code 1 and that value named."""
    try:
        kept(ICEBERG)
    except JarMissing as error:
        servers.unavailable("Iceberg", str(error))
    landed = _serve(home)
    assert main(["skew", "--app", "megashop", "--json"]) == 0
    honest = json.loads(capsys.readouterr().out)
    assert set(NAMES) <= honest.keys()
    assert (honest["exact_share"], honest["first_divergence"], honest["rows"]) == (1.0, None, 60)
    assert honest["features"] > 30
    spoilt = _spoil(landed)
    assert main(["skew", "--app", "megashop", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    first = found["first_divergence"]
    assert (first["recommendation_id"], first["feature"]) == (spoilt, "views")
    assert first["served"] == first["recomputed"] + 1.0
    assert found["causes"][0]["values"] == 1
    assert found["exact_share"] == pytest.approx(1.0 - 1.0 / found["values"])


def test_without_a_demo_the_command_says_what_to_do(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing runs and nothing was kept: exit code 2 and the next step."""
    assert main(["skew", "--app", "megashop", "--json"]) == 2
    answer = capsys.readouterr()
    assert "run `narrows demo` first" in json.loads(answer.out)["error"]


@pytest.mark.parametrize("rate", ["0", "1.5", "some"])
def test_a_rate_is_a_share(home: Path, capsys: pytest.CaptureFixture[str], rate: str) -> None:
    """Refused before anything runs, with the range that is allowed."""
    assert main(["skew", "--app", "megashop", "--rate", rate]) == 2
    assert "give a share above 0, at most 1" in capsys.readouterr().err
