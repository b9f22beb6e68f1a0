"""The training jobs end to end on small data: a quality floor, no crash on tiny data, errors told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from narrows.adapters.feature_tables import PassedOver
from narrows.adapters.lightgbm import load_scorer
from narrows.adapters.tables import read_training_data, write_training_data
from narrows.errors import InvalidInput
from narrows.evaluation.leave_one_out import MOST_LABELS, cases
from narrows.features.vectors import VectorSpec
from narrows.interactions import interactions_of
from narrows.ranking import read_manifest
from narrows.retrieval import gather
from sagemaker_jobs.container import Container, Progress
from sagemaker_jobs.declared import Declared
from sagemaker_jobs.from_files import JobFailed, evaluate_from_files, train_from_files
from sagemaker_jobs.replay import FEWEST_KEPT, VALIDATED, Funnel, Groups, funnel_of, kept_rows, replay
from sagemaker_jobs.train_ranker.__main__ import train as train_ranker
from sagemaker_jobs.train_ranker.lambdamart import FEW_GROUPS, directions, fit
from sagemaker_jobs.training_set import TrainingSet, funnel, labels_per_user, read
from sagemaker_jobs.workers import FEWEST

ROOT = Path(__file__).resolve().parents[2]
ITEMS = 60


def walks(users: int, length: int, seed: int) -> dict[str, list[Any]]:
    """Visitors who mostly go on to the next item of a ring, and sometimes jump."""
    generator = np.random.default_rng(seed)
    found: dict[str, list[Any]] = {"user_id": [], "item_id": [], "time": [], "event_type": [], "weight": []}
    for user in range(users):
        item, seen = int(generator.integers(ITEMS)), set[int]()
        for step in range(length):
            item = (item + 1) % ITEMS if generator.random() < 0.7 else int(generator.integers(ITEMS))
            if item not in seen:
                seen.add(item)
                values = (f"u{user}", f"i{item}", 1.6e9 + user * 5000 + step * 60.0, "watch", 2.0)
                for name, value in zip(found, values, strict=True):
                    found[name].append(value)
    return found


CATALOGUE = {
    "item_id": [f"i{one}" for one in range(ITEMS + 5)],
    "genres": [[f"g{one % 4}"] for one in range(ITEMS + 5)],
    "created_at": [1.5e9 + one * 1e5 for one in range(ITEMS + 5)],
}


def run(job: str, home: Path, training: Path, **channels: Path) -> subprocess.CompletedProcess[str]:
    """Run a job as SageMaker would: folders and hyperparameters by variables."""
    model = home / ("sources" if job in ("train_als", "train_covisitation") else job)
    given = {f"SM_CHANNEL_{name.upper()}": str(path) for name, path in channels.items()}
    variables = {
        **os.environ,
        **given,
        "SM_CHANNEL_TRAINING": str(training),
        "SM_MODEL_DIR": str(model),
        "SM_OUTPUT_DIR": str(home / "output"),
        "SM_OUTPUT_DATA_DIR": str(home / "output" / "data"),
        "SM_HPS": json.dumps({"app": "media", "version": "v7", "budget_s": "2", "seed": "3"}),
    }
    return subprocess.run(
        [sys.executable, "-m", f"sagemaker_jobs.{job}"],
        cwd=ROOT,
        env=variables,
        capture_output=True,
        text=True,
        check=False,
    )


def run_all(home: Path, training: Path) -> dict[str, Any]:
    """All four jobs; the report."""
    for job in ("train_als", "train_covisitation"):
        assert run(job, home, training).returncode == 0
    done = run("train_ranker", home, training, sources=home / "sources")
    assert done.returncode == 0, done.stderr
    done = run("evaluate", home, training, candidate=home / "train_ranker", current=home / "train_ranker")
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads((home / "output" / "data" / "metrics.json").read_text())
    return report


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The home of a whole run, and its report."""
    home = tmp_path_factory.mktemp("run")
    write_training_data(home / "data", walks(250, 14, 0), CATALOGUE)
    return home, run_all(home, home / "data")


def test_every_source_and_both_stages_find_the_next_item(trained: tuple[Path, dict[str, Any]]) -> None:
    """Seven in ten next items can be known: whoever sees order comes near, and beats popularity."""
    _, report = trained
    hits = {name: part["hit_at_10"] for name, part in report["reports"].items()}
    counted = {"als", "covisitation", "bought_together", "content", "trending", "popular", "fresh"}
    assert set(hits) == {*counted, "two_stage"}
    assert hits["two_stage"] > 0.6
    assert hits["covisitation"] > 0.6
    assert hits["als"] > hits["popular"] + 0.1


def test_the_report_says_who_was_asked(trained: tuple[Path, dict[str, Any]]) -> None:
    """Users, protocol, exclusions, intervals and segments are there; both sides equal are no difference."""
    _, report = trained
    assert report["app"] == "media"
    assert report["users"] == 250
    assert report["excluded"] == {"too_few_events": 0, "already_seen": 0}
    assert report["protocol"].startswith("leave-one-out")
    two_stage = report["reports"]["two_stage"]
    low, high = two_stage["normalized_discounted_cumulative_gain_at_10_interval"]
    assert low < two_stage["normalized_discounted_cumulative_gain_at_10"] < high
    assert report["candidate"]["reports"] == report["current"]["reports"]
    assert report["difference"]["normalized_discounted_cumulative_gain_at_10"]["mean"] == 0.0


def test_the_bundle_is_whole(trained: tuple[Path, dict[str, Any]]) -> None:
    """Every file of the served bundle stands in its manifest, and so do those of its held-out twin."""
    home, _ = trained
    for folder in (home / "train_ranker", home / "train_ranker" / "holdout"):
        manifest = read_manifest(folder)
        assert (manifest.version, manifest.app) == ("v7", "media")
        assert {
            "als.npz",
            "covisitation.npz",
            "popular.npz",
            "item_stats.npz",
            "segments.json",
            "ranker.txt",
            "metrics.json",
        } <= set(manifest.files)
    assert not (home / "train_ranker" / "replay").exists()


def test_the_held_out_twin_has_not_seen_what_is_asked(trained: tuple[Path, dict[str, Any]]) -> None:
    """Its popularity counts one event less for each user."""
    home, _ = trained
    data = read_training_data(home / "data").interactions
    with np.load(home / "train_ranker" / "item_stats.npz") as everything:
        events = np.expm1(np.nan_to_num(everything["values"][:, 0])).sum()
    with np.load(home / "train_ranker" / "holdout" / "item_stats.npz") as fewer:
        held = np.expm1(np.nan_to_num(fewer["values"][:, 0])).sum()
    assert events == pytest.approx(len(data), rel=1e-3)
    assert held == pytest.approx(len(data) - data.user_count, rel=1e-3)


def test_tiny_data_train_without_a_ranker(tmp_path: Path) -> None:
    """Users of one or two events, some unmeasurable: no crash, fused ranks serve, and the reason is kept."""
    rows = {
        "user_id": ["a", "b", "b", "c", "c", "d", "d"],
        "item_id": ["1", "1", "2", "2", "2", "3", "1"],
        "time": [1.0, 1.0, 1.0, 2.0, 3.0, 4.0, 5.0],
        "event_type": ["click"] * 7,
        "weight": [1.0] * 7,
    }
    write_training_data(tmp_path / "data", rows, {})
    report = run_all(tmp_path, tmp_path / "data")
    assert report["users"] == 2
    assert report["excluded"] == {"too_few_events": 1, "already_seen": 1}
    kept = json.loads((tmp_path / "train_ranker" / "metrics.json").read_text())
    assert "fused ranks serve" in kept["reason"]
    assert not (tmp_path / "train_ranker" / "ranker.txt").exists()


def test_a_failed_job_says_why(tmp_path: Path) -> None:
    """Without input, the failure file tells the channel and the exit status is not zero."""
    (tmp_path / "empty").mkdir()
    done = run("train_als", tmp_path, tmp_path / "empty")
    assert done.returncode == 1
    assert "interactions/*.parquet" in (tmp_path / "output" / "failure").read_text()


def test_what_cannot_be_counted_is_left_out_and_told(tmp_path: Path) -> None:
    """Events without an item, without a time, or worth nothing."""
    rows = {
        "user_id": ["a", None, "a", "a", "b"],
        "item_id": ["1", "1", None, "2", "1"],
        "time": [1.0, 2.0, 3.0, None, 5.0],
        "weight": [1.0, 1.0, 1.0, 1.0, 0.0],
    }
    write_training_data(tmp_path, rows, {"item_id": ["9"], "genres": [["x"]]})
    data = read_training_data(tmp_path)
    assert len(data.interactions) == 1
    assert data.left_out == {"without_user_or_item": 2, "without_time": 1, "worth_nothing": 1}
    assert "9" in data.interactions.item_ids


def test_a_learned_job_that_fails_says_why(tmp_path: Path) -> None:
    """Though it runs in a process of its own: what it wrote reaches whoever trains."""
    write_training_data(tmp_path / "data", walks(20, 8, 1), CATALOGUE)
    with pytest.raises(JobFailed, match=r"train_session failed: .*most_epochs.*give a number"):
        train_from_files(
            tmp_path / "data", tmp_path / "out", budget_s=0, learned=["session"], most_epochs="many"
        )


def test_in_one_process_without_tuning(tmp_path: Path) -> None:
    """Small data give a bundle and a report in seconds; the same seed gives the same report."""
    write_training_data(tmp_path / "data", walks(60, 8, 1), CATALOGUE)
    found = []
    for name in ("one", "two"):
        bundle = train_from_files(tmp_path / "data", tmp_path / name, app="media", seed=5, budget_s=0)
        found.append(evaluate_from_files(tmp_path / "data", bundle, app="media"))
    assert found[0] == found[1]
    assert found[0]["users"] == 60


def test_replayed_candidates_are_those_that_serving_gathers(trained: tuple[Path, dict[str, Any]]) -> None:
    """The union of training equals the union of `gather` with every source in time."""
    home, _ = trained
    container = Container(home, home, home, home, {"training": home / "data"}, {"app": "media"})
    data = read(container)
    quotas, most = funnel(container)
    stages = funnel_of(home / "train_ranker" / "holdout", data, quotas, most, Declared())
    held = cases(data.log)
    with ThreadPoolExecutor(4) as executor:
        for case in range(0, len(held), 25):
            asked = held.query(case)
            gathered = gather(
                stages.sources,
                quotas,
                asked,
                deadline=time.monotonic() + 60,
                budget_s=600,
                clock=time.monotonic,
                executor=executor,
            )
            ours = stages.candidates(asked)
            assert gathered.failures == {"two_tower": "absent", "session": "absent"}  # nobody trained them
            assert np.array_equal(ours.rows, gathered.candidates.rows)
            asked_for = [gathered.candidates.source_names.index(name) for name in ours.source_names]
            assert np.array_equal(ours.ranks, gathered.candidates.ranks[:, asked_for])


def test_a_ranker_never_learns_from_what_its_sources_saw(
    trained: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    """More labels a user than the sources were fitted without would leak, and are refused."""
    home, _ = trained
    channels = {"training": home / "data", "sources": home / "sources"}
    container = Container(tmp_path, tmp_path, tmp_path, tmp_path, channels, {"labels_per_user": "5"})
    with pytest.raises(InvalidInput, match="labels_per_user"):
        train_ranker(container)


def test_short_histories_give_fewer_labels() -> None:
    """Long histories spare the most labels, short ones one, others as many as their sources can bear."""

    def labels(*lengths: int) -> int:
        users = np.repeat(np.arange(len(lengths)), lengths)
        return labels_per_user(interactions_of(users, np.arange(len(users)), np.arange(float(len(users)))))

    assert labels(200, 300) == MOST_LABELS
    assert labels(2, 3, 4) == 1
    assert 1 < labels(21) < MOST_LABELS


def test_groups_are_thinned_so_that_all_requests_fit() -> None:
    """Whole where there is room; never below the least; validated users' whole groups are counted."""
    assert kept_rows(100, 300, 30_000) == 300
    assert kept_rows(1000, 300, 100_000) == int((100 - 300 / VALIDATED) * VALIDATED / (VALIDATED - 1))
    assert kept_rows(1_000_000, 300, 100_000) == FEWEST_KEPT
    assert kept_rows(1_000_000, 10, 100_000) == 10


def _held_out(home: Path) -> tuple[TrainingSet, Funnel, VectorSpec]:
    """The data of a trained bundle, and the funnel that has not seen the last events."""
    container = Container(home, home, home, home, {"training": home / "data"}, {"app": "media"})
    data = read(container)
    past = funnel_of(home / "train_ranker" / "holdout", data, *funnel(container), Declared())
    return data, past, VectorSpec.over(past.sources, past.items)


def test_a_thinned_group_keeps_its_label_and_a_judging_one_everything(
    trained: tuple[Path, dict[str, Any]],
) -> None:
    """The vectors that remain are those of the whole groups; every eighth user's are all there."""
    data, past, spec = _held_out(trained[0])
    held = [cases(data.log)]
    whole, thin = (replay(held, past, spec, most_rows=rows, seed=0) for rows in (10**6, 10**4))
    fitting = len(thin.lengths)
    assert thin.relevant.sum() == fitting
    assert np.array_equal(thin.lengths[thin.validated], whole.lengths[:fitting][thin.validated])
    assert thin.lengths[~thin.validated].max() == FEWEST_KEPT
    assert {row.tobytes() for row in thin.features} <= {row.tobytes() for row in whole.features}


def test_what_was_passed_over_is_kept_first_and_weighs_its_share(
    trained: tuple[Path, dict[str, Any]],
) -> None:
    """Of a thinned group the passed candidates remain, unripe ones at half; a label is never passed over."""
    data, past, spec = _held_out(trained[0])
    held = cases(data.log)
    passed: dict[tuple[str, float], PassedOver] = {}
    for case in range(len(held)):
        query = held.query(case)
        visitor = str(data.log.user_ids[data.log.users[held.positions[case]]])
        last = past.pre_ranked(query).rows[-3:]
        rows = np.append(last, np.int32(held.target(case))).astype(np.int32)
        passed[visitor, query.now] = PassedOver(rows, np.full(len(rows), 0.5, np.float32))
    drawn, first = (
        replay([held], past, spec, most_rows=10**4, seed=0, passed_over=given) for given in ({}, passed)
    )
    assert np.array_equal(drawn.lengths, first.lengths)
    worth = drawn.weights[drawn.relevant == 1]
    assert np.array_equal(drawn.weights, np.repeat(worth, drawn.lengths))
    assert np.array_equal(first.weights[first.relevant == 1], worth)
    half = first.weights == 0.5 * np.repeat(worth, first.lengths)
    assert np.array_equal(half, first.weights < np.repeat(worth, first.lengths))
    halves = np.add.reduceat(half, np.cumsum(first.lengths) - first.lengths, dtype=np.int64)
    assert (halves >= 2).all()  # three, or two where the label is one of the last
    assert (halves <= 3).all()


def test_how_many_cores_share_the_work_changes_nothing(
    trained: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The groups of a ranker are those that one process alone would have made."""
    data, past, spec = _held_out(trained[0])
    made = []
    monkeypatch.delitem(sys.modules, "jax", raising=False)
    for cores in ({0}, {0, 1}):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, cores=cores: cores)
        made.append(replay([cases(data.log)], past, spec, most_rows=10**4, seed=0))
    alone, shared = made
    assert alone.asked == shared.asked >= 2 * FEWEST
    for name in ("features", "relevant", "lengths", "weights", "users"):
        assert np.array_equal(getattr(alone, name), getattr(shared, name), equal_nan=True)


def test_few_groups_may_not_turn_a_source_around() -> None:
    """Scores may only raise, ranks only lower; item, time and freshness columns are free."""
    spec = VectorSpec({"als": ("score", "last"), "fresh": ("score",)}, numbers=("price",))
    found = dict(zip(spec.names, directions(spec), strict=True))
    assert (found["als.score"], found["als.last"], found["als.rank"], found["als.place"]) == (1, 1, -1, -1)
    assert (found["reciprocal_rank"], found["found_by"]) == (1, 1)
    assert {found[name] for name in ("fresh.score", "fresh.rank", "price.value", "item.log_events")} == {0}


@pytest.mark.parametrize(
    ("told_by", "chosen"), [("popular.place", "popular"), ("reciprocal_rank", "reciprocal_rank")]
)
def test_a_ranker_that_beats_no_source_is_not_kept(told_by: str, chosen: str, tmp_path: Path) -> None:
    """Where the label is always first of one order, that order serves: exactly, or without a model."""
    generator = np.random.default_rng(0)
    spec = VectorSpec({"als": ("score",), "popular": ("score",)})
    count, length = 60, 20
    features = generator.random((count * length, len(spec.names))).astype(np.float32)
    relevant = np.zeros(count * length, np.int8)
    for group in range(count):
        rows = slice(group * length, (group + 1) * length)
        for name in ("als", "popular"):
            features[rows, spec.names.index(f"{name}.place")] = generator.permutation(length)
        values = features[rows, spec.names.index(told_by)]
        first = np.argmin(values) if told_by.endswith("place") else np.argmax(values)
        relevant[group * length + first] = 1
    users = np.arange(count, dtype=np.int32)
    weights = np.ones(count * length, np.float32)
    groups = Groups(features, relevant, np.full(count, length), weights, users, count)
    trained = fit(groups, spec, 0, Progress("test"))
    assert trained.metrics["gains"][chosen] == 1.0
    assert trained.metrics["chosen"] in (chosen, "lambdamart")
    if trained.metrics["chosen"] == "popular":
        (tmp_path / "ranker.txt").write_text(trained.text)
        scores = load_scorer(tmp_path / "ranker.txt").predict(features[:length])
        places = features[:length, spec.names.index("popular.place")]
        assert np.argsort(-scores).tolist() == np.argsort(places).tolist()


def test_the_shape_of_the_trees_is_chosen_on_validated_users() -> None:
    """With time, other shapes are tried; the one kept is at least as good as the one that it starts from."""
    generator = np.random.default_rng(0)
    spec = VectorSpec({"als": ("score",), "popular": ("score",)})
    count, length = FEW_GROUPS, 8
    features = generator.random((count * length, len(spec.names))).astype(np.float32)
    worth = features[:, spec.names.index("als.score")] + 0.3 * generator.normal(size=count * length)
    relevant = np.zeros((count, length), np.int8)
    relevant[np.arange(count), worth.reshape(count, length).argmax(axis=1)] = 1
    users = np.arange(count, dtype=np.int32)
    weights = np.ones(count * length, np.float32)
    groups = Groups(features, relevant.ravel(), np.full(count, length), weights, users, count)
    start = fit(groups, spec, 0, Progress("test"), patience=5)
    tuned = fit(groups, spec, 0, Progress("test"), patience=5, budget_s=100.0)
    assert (start.metrics["trials"], start.metrics["out_of_time"]) == (1, True)
    assert tuned.metrics["trials"] > 1
    assert tuned.metrics["gains"]["lambdamart"] >= start.metrics["gains"]["lambdamart"]
    assert tuned.metrics["chosen"] == "lambdamart"
