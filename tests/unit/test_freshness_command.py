"""`narrows freshness` against an API whose delays are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from narrows.cli import main
from narrows.cli.console import CommandFailed, Progress
from narrows.cli.probes import CREATED, LEFT_OUT_AT_MOST, SUPPRESSED, Index, Probes
from narrows.settings import App, load_app

APPS = Path(__file__).parents[2] / "apps"


class DelayedApi:
    """Items may be shown so many seconds after they came, and no longer so many after they changed."""

    def __init__(self, created_s: float, changed_s: float) -> None:
        self.time = 100.0
        self.delays = created_s, changed_s
        self.known: dict[str, tuple[float, bool, float]] = {}
        self.most = 0
        self.changes: list[Mapping[str, Any]] = []
        self.refuse = False
        self.asked = self.late_every = 0
        self.shows: dict[str, dict[str, Any]] = {}

    def clock(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.time += seconds

    def close(self) -> None:
        pass

    def change_items(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        for item in items:
            there = not item.get("deleted") and item.get("stock") != 0
            before = self.known.get(item["item_id"], (self.time, False, self.time))
            since = before[2] if before[1] == there else self.time
            self.known[item["item_id"]] = (before[0], there, since)
            self.changes.append(item)
        status = "rejected" if self.refuse else "accepted"
        return {"verdicts": [{"status": status, "field": "title"} for _ in items]}

    def recommend(self, surface: str, body: Mapping[str, Any]) -> dict[str, Any]:
        self.time += 0.01
        created_s, changed_s = self.delays
        shown = [
            item_id
            for item_id, (_, there, since) in self.known.items()
            if (self.time >= since + created_s if there else self.time < since + changed_s)
        ]
        self.most = max(self.most, len(shown))
        self.asked += 1
        if self.late_every and self.asked % self.late_every == 0:
            return {
                "recommendations": [],
                "degraded": {"retrieve.fresh": "timeout"},
                "trace": {"eligible": []},
            }
        return {"recommendations": [], "degraded": {}, "trace": {"eligible": shown, "items": self.shows}}


@pytest.fixture(scope="module")
def app() -> App:
    return load_app(APPS / "shopnow")


def measured(
    app: App, api: DelayedApi, count: int = 30, index: Index | None = None
) -> tuple[Probes, dict[str, Any]]:
    probes = Probes(app, api, api.clock, api.sleep, run="7", index=index)
    with Progress("probes", count, "probes") as progress:
        probes.measure(count, progress)
    return probes, probes.report()


def test_the_delays_are_found(app: App) -> None:
    """Within a poll of what they are, for each surface and for all."""
    api = DelayedApi(9.0, 1.5)
    _, report = measured(app, api)
    assert report["ok"]
    for one in (report, *report["surfaces"].values()):
        assert one[CREATED]["p50"] == pytest.approx(9.0, abs=0.2)
        assert one[SUPPRESSED]["p99"] == pytest.approx(1.5, abs=0.2)
    assert set(report["surfaces"]) == {"feed", "product"}
    assert api.most <= 40


class DelayedIndex:
    """Finds items so many seconds after they came; `never` those whose number ends so."""

    def __init__(self, api: DelayedApi, delay_s: float, never: str = "-") -> None:
        self.api, self.delay_s, self.never = api, delay_s, never

    def found(self, item_ids: Sequence[str]) -> set[str]:
        self.api.time += 0.01
        since = {one: self.api.known[one][0] for one in item_ids if not one.endswith(self.never)}
        return {one for one, at in since.items() if self.api.time >= at + self.delay_s}


@pytest.mark.parametrize("delay_s", [3.0, 15.0])
def test_the_index_is_looked_at_where_vectors_lie_in_one(app: App, delay_s: float) -> None:
    """Whether it is faster or slower than the source that offers strangers what is new."""
    api = DelayedApi(9.0, 1.5)
    _, report = measured(app, api, index=DelayedIndex(api, delay_s))
    assert report["created_to_indexed"]["p50"] == pytest.approx(delay_s, abs=0.3)
    assert report[CREATED]["p99"] == pytest.approx(9.0, abs=0.3)
    assert report[SUPPRESSED]["p99"] == pytest.approx(1.5, abs=0.3)
    assert report["ok"]
    assert "created_to_indexed" not in measured(app, DelayedApi(9.0, 1.5))[1]


def test_a_probe_that_never_comes_into_the_index_is_told(app: App) -> None:
    """One of ten is infinitely late, and the others are not."""
    api = DelayedApi(1.0, 1.0)
    _, report = measured(app, api, count=10, index=DelayedIndex(api, 2.0, never="7"))
    assert not report["ok"]
    assert "created_to_indexed" in report["reasons"][0]
    assert report["created_to_indexed"]["p50"] == pytest.approx(2.0, abs=0.3)


def test_probes_are_described_in_the_words_of_what_is_shown(app: App) -> None:
    """A model makes a vector of those; selling one out says nothing else of it."""
    api = DelayedApi(0.5, 0.5)
    measured(app, api, count=1)
    assert api.changes[0] == {
        "item_id": "probe-7-00000",
        "title": "Freshness probe",
        "price": 1.0,
        "stock": 1,
    }
    api = DelayedApi(0.5, 0.5)
    api.shows = {"lamp": {"title": "Oak lamp", "category": "Lamps", "brand": "Oak", "price": 9.0}}
    measured(app, api, count=2)
    like = {"title": "Freshness probe Oak lamp", "category": "Lamps", "brand": "Oak", "price": 1.0}
    made = {"item_id": "probe-7-00001", **like, "stock": 1}
    assert [one for one in api.changes if one["item_id"] == "probe-7-00001"][:2] == [
        made,
        {**made, "stock": 0},
    ]


def test_a_probe_that_is_shown_itself_lends_its_words_to_none(app: App) -> None:
    """Each would be longer than the one before."""
    api = DelayedApi(0.5, 0.5)
    api.shows = {"lamp": {"title": "Oak lamp"}}
    probes, _ = measured(app, api, count=1)
    api.shows = {"probe-7-00000": {"title": "Freshness probe Oak lamp"}}
    with Progress("probes", 2, "probes") as progress:
        probes.measure(2, progress)
    assert {one["title"] for one in api.changes if "title" in one} == {"Freshness probe Oak lamp"}


def test_probes_are_sold_out_and_deleted_and_all_are_removed(app: App) -> None:
    """Half go each way; afterwards none is left in the catalogue."""
    api = DelayedApi(0.5, 0.5)
    probes, _ = measured(app, api, count=20)
    assert probes.remove() == 20
    sold_out = {one["item_id"] for one in api.changes if one.get("stock") == 0}
    assert len(sold_out) == 10
    last = {one["item_id"]: one for one in api.changes}
    assert len(last) == 20
    assert all(one.get("deleted") for one in last.values())


@pytest.mark.parametrize(
    ("delays", "phase"), [((70.0, 1.0), CREATED), ((1.0, 7.0), SUPPRESSED), ((500.0, 1.0), CREATED)]
)
def test_a_missed_target_is_told(app: App, delays: tuple[float, float], phase: str) -> None:
    """With the reason; a probe that never comes counts as infinitely late."""
    _, report = measured(app, DelayedApi(*delays), count=5)
    assert not report["ok"]
    assert phase in report["reasons"][0]


def test_an_answer_without_its_sources_says_nothing(app: App) -> None:
    """A source that missed its deadline neither makes an item late nor hides that it is still shown."""
    api = DelayedApi(9.0, 3.0)
    api.late_every = 3
    _, report = measured(app, api)
    assert report["answers_left_out"] == report["answers"] // 3
    assert report[CREATED]["p99"] == pytest.approx(9.0, abs=0.4)
    assert report[SUPPRESSED]["p50"] == pytest.approx(3.0, abs=0.4)


@pytest.mark.parametrize(("late_every", "ok"), [(0, True), (31, True), (9, False), (3, False)])
def test_where_too_many_answers_say_nothing_nothing_is_proved(app: App, late_every: int, ok: bool) -> None:
    """Delays within the targets are those of the other answers; the reasons name the surfaces."""
    api = DelayedApi(9.0, 1.5)
    api.late_every = late_every
    _, report = measured(app, api)
    assert report["ok"] is ok
    assert report[CREATED]["p99"] < 60.0
    share = report["answers_left_out"] / report["answers"]
    assert (share <= LEFT_OUT_AT_MOST) is ok
    assert all("answers are left out, more than 5%" in reason for reason in report["reasons"])
    assert bool(report["reasons"]) is not ok


def test_one_surface_is_not_hidden_by_the_others(app: App) -> None:
    """Two are asked in turn, and every fourth answer is late: every other one of the second."""
    api = DelayedApi(9.0, 1.5)
    probes = Probes(app, api, api.clock, api.sleep, run="7")
    first, second = probes.surfaces
    for number in range(40):
        api.late_every = 1 if number % 4 == 3 else 0
        probes._look((first, second)[number % 2])
    (reason,) = [one for one in probes.report()["reasons"] if "left out" in one]
    assert reason == f"{second}: 10 of 20 answers are left out, more than 5%: its sources miss their deadline"


def test_a_refused_probe_ends_the_measurement(app: App) -> None:
    """Rather than waiting for what was never stored."""
    api = DelayedApi(1.0, 1.0)
    api.refuse = True
    with pytest.raises(CommandFailed, match="were refused"):
        measured(app, api)


def test_surfaces_that_cannot_offer_what_is_new_are_named() -> None:
    """MegaShop's cart asks only sources that know what was trained on."""
    _, report = measured(load_app(APPS / "megashop"), DelayedApi(1.0, 1.0), count=5)
    assert set(report["surfaces"]) == {"homepage"}
    assert set(report["unmeasured"]) == {"product", "cart"}


def test_without_a_local_cloud_it_says_how_to_start_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, and the command to run."""
    monkeypatch.setenv("NARROWS_HOME", str(tmp_path))
    assert main(["freshness", "--app", "shopnow"]) == 2
    assert "narrows up --app shopnow" in capsys.readouterr().err
