"""`narrows import`, `train`, `evaluate` and `recommend` on files alone: no local cloud takes part."""

from __future__ import annotations

import csv
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from narrows.cli import main
from narrows.market import DAY_S
from narrows.simulator import Market

MARKET = Market(23, users=150, items=300)
REPORTED = {"hit_at_10", "hit_at_100", "normalized_discounted_cumulative_gain_at_10"}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The home folder after the import and the training of a small market."""
    folder = tmp_path_factory.mktemp("files")
    source = folder / "source"
    source.mkdir()
    _write(source)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NARROWS_HOME", str(folder / "home"))
        assert main(["import", str(source), "--app", "megashop"]) == 0
        assert main(["train", "--app", "megashop", "--budget", "0"]) == 0
    return folder / "home"


def _write(source: Path) -> None:
    events = MARKET.events(6_000, MARKET.as_of - 20 * DAY_S, MARKET.as_of)
    with (source / "interactions.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["USER_ID", "ITEM_ID", "TIMESTAMP", "EVENT_TYPE"])
        for event in events:
            if "item_id" in event:
                visitor = event.get("user_id") or event["session_id"]
                moment = datetime.fromisoformat(str(event["sent_at"])).timestamp()
                rows.writerow([visitor, event["item_id"], moment, event["event_type"]])
    with (source / "items.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["ITEM_ID", "TITLE", "CATEGORY", "BRAND", "PRICE", "CREATION_TIMESTAMP"])
        for item in MARKET.catalogue():
            categories = "|".join(item["category"])
            rows.writerow(
                [item["item_id"], item["title"], categories, item["brand"], item["price"], item["created_at"]]
            )


def _command(home: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NARROWS_HOME", str(home))
        assert main([*arguments, "--app", "megashop", "--json"]) == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


def test_every_learned_model_beats_popularity(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The report has the four contenders; what follows the last item or the taste beats what is popular."""
    report = _command(trained, capsys, "evaluate")
    assert set(report) >= {"app", "protocol", "users", "reports"}
    assert set(report["reports"]) >= {"popular", "covisitation", "als", "two_stage"}
    assert all(set(part) >= REPORTED for part in report["reports"].values())
    hits = {name: part["hit_at_10"] for name, part in report["reports"].items()}
    assert hits["popular"] < min(hits["covisitation"], hits["two_stage"])


def test_a_slate_for_a_known_user_uses_its_history(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole pipeline answers, and another answer comes to somebody without a history."""
    user = MARKET.user_ids[MARKET.most_active()]
    known = _command(trained, capsys, "recommend", "--user", user, "--limit", "5")
    stranger = _command(trained, capsys, "recommend", "--user", "nobody", "--limit", "5")
    assert known["fallback"] == stranger["fallback"] == "full"
    assert [one["position"] for one in known["recommendations"]] == [1, 2, 3, 4, 5]
    assert known["recommendations"] != stranger["recommendations"]
    assert known["model_version"] == (trained / "apps/megashop/models/current").read_text().strip()


def test_a_product_page_starts_from_its_item(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What people go on to from the item is on its page, and the item itself is not."""
    page = MARKET.item_ids[int(MARKET.quality.argmax())]
    answer = _command(trained, capsys, "recommend", "--surface", "product", "--item", page, "--session", "s")
    shown = {one["item_id"] for one in answer["recommendations"]}
    successors = {MARKET.item_ids[row] for row in MARKET.successors[MARKET.item_number(page)]}
    assert shown & successors
    assert page not in shown


def test_training_again_replaces_the_current_model(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A failed training leaves the current model in place and names the job and its log."""
    current = (trained / "apps/megashop/models/current").read_text()
    broken = trained / "apps/megashop/data/interactions/part-0.parquet"
    kept = broken.read_bytes()
    broken.write_bytes(b"damaged")
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("NARROWS_HOME", str(trained))
            assert main(["train", "--app", "megashop", "--budget", "0"]) != 0
    finally:
        broken.write_bytes(kept)
    assert (trained / "apps/megashop/models/current").read_text() == current
