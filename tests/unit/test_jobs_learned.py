"""The jobs of the learned sources on small data: better than what is popular, whole, and no leak."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from narrows.adapters.tables import write_training_data
from narrows.errors import InvalidInput
from narrows.sources import session, two_tower
from sagemaker_jobs.container import Container
from sagemaker_jobs.evaluate.__main__ import evaluate
from sagemaker_jobs.learned import batch_size
from sagemaker_jobs.train_als.__main__ import train as train_als
from sagemaker_jobs.train_covisitation.__main__ import train as train_covisitation
from sagemaker_jobs.train_ranker.__main__ import train as train_ranker
from sagemaker_jobs.train_session.__main__ import train as train_session
from sagemaker_jobs.train_two_tower.__main__ import train as train_two_tower

ITEMS = 60
LEARNED = {"two_tower": train_two_tower, "session": train_session}
PARTS = (".", "holdout", "replay")
CATALOGUE = {
    "item_id": [f"i{one}" for one in range(ITEMS + 5)],
    "title": [f"part {one // 6} of {one % 6}" for one in range(ITEMS + 5)],
}


def ring(users: int, length: int) -> dict[str, list[Any]]:
    """Visitors who mostly go on to the next item of a ring."""
    generator = np.random.default_rng(0)
    found: dict[str, list[Any]] = {"user_id": [], "item_id": [], "time": [], "segment": []}
    for user in range(users):
        item = int(generator.integers(ITEMS))
        for step in range(length):
            item = (item + 1) % ITEMS if generator.random() < 0.8 else int(generator.integers(ITEMS))
            found["user_id"].append(f"u{user}")
            found["item_id"].append(f"i{item}")
            found["time"].append(1.6e9 + user * 5000 + step * 60.0)
            found["segment"].append("DE" if user % 2 else "")
    return found


def container(model: Path, data: Path, given: dict[str, Any], **channels: Path) -> Container:
    """A job's folders."""
    model.mkdir(exist_ok=True)
    more = {"app": "media", "seed": 1, **given}
    return Container(model, model, model, model, {"training": data, **channels}, more)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with the sources of small data, learned ones among them."""
    home = tmp_path_factory.mktemp("learned")
    write_training_data(home / "data", ring(300, 12), CATALOGUE)
    for job in (train_als, train_covisitation):
        job(container(home / "sources", home / "data", {"budget_s": 0}))
    for job in LEARNED.values():
        job(container(home / "sources", home / "data", {"budget_s": 600, "most_epochs": 12}))
    return home


def test_the_learned_sources_find_the_next_item(trained: Path) -> None:
    """Eight in ten next items can be known; evaluated beside the others, alone and merged."""
    job = container(trained / "bundle", trained / "data", {"budget_s": 0}, sources=trained / "sources")
    train_ranker(job)
    candidate = {"candidate": trained / "bundle"}
    evaluate(container(trained / "report", trained / "data", {"sources": 1}, **candidate))
    reports = json.loads((trained / "report" / "metrics.json").read_text())["reports"]
    counted = {"covisitation", "bought_together", "content", "trending", "popular"}
    assert set(reports) == {*LEARNED, *counted, "als", "merged", "two_stage"}
    for name in LEARNED:
        assert reports[name]["hit_at_10"] > 0.6
        assert reports[name]["hit_at_10"] > reports["popular"]["hit_at_10"] + 0.3
    assert reports["merged"]["recall_at_300"] == 1.0
    assert [name for name, part in reports.items() if "recall_at_300" in part] == ["merged"]


@pytest.mark.parametrize("name", LEARNED)
def test_what_a_learned_job_leaves(trained: Path, name: str) -> None:
    """A model for each part, and how the training went."""
    kept = json.loads((trained / "sources" / f"{name}.json").read_text())
    assert 1 <= kept["best_epoch"] <= len(kept["epochs"]) <= 12
    assert kept["settled"] > kept["epochs"][0]
    assert kept["out_of_time"] is False
    models = [(trained / "sources" / part / f"{name}.npz").read_bytes() for part in PARTS]
    assert len(set(models)) == 3


def test_items_that_nobody_chose_have_a_vector_of_their_content(trained: Path) -> None:
    """Those of the catalogue alone, near to what is written alike; the session model does not know them."""
    model = two_tower.load(trained / "sources" / two_tower.FILE)
    at = {item: place for place, item in enumerate(model.item_ids.tolist())}
    unseen = model.vectors[at["i63"]]
    assert unseen == pytest.approx(
        model.network.embed(np.asarray([-1], np.int32), [CATALOGUE["title"][63]])[0], abs=1e-5
    )
    assert unseen.any()
    assert "i63" not in session.load(trained / "sources" / session.FILE).item_ids.tolist()
    assert model.segment_names.tolist() == ["DE"]


def test_a_learned_source_that_saw_the_labels_is_refused(trained: Path, tmp_path: Path) -> None:
    """As for the other sources: more labels than it was fitted without would leak."""
    job = container(tmp_path, trained / "data", {"labels_per_user": 4}, sources=trained / "sources")
    with pytest.raises(InvalidInput, match="labels_per_user"):
        train_ranker(job)


@pytest.mark.parametrize("name", LEARNED)
def test_nothing_to_learn_is_no_failure(name: str, tmp_path: Path) -> None:
    """With one event a visitor there is no model, and the reason is kept."""
    write_training_data(
        tmp_path / "data", {"user_id": ["a", "b"], "item_id": ["1", "2"], "time": [1.0, 2.0]}, {}
    )
    LEARNED[name](container(tmp_path / "model", tmp_path / "data", {}))
    kept = json.loads((tmp_path / "model" / f"{name}.json").read_text())
    assert kept["reason"] == "no history has two events that are not held out"
    assert not list((tmp_path / "model").rglob("*.npz"))


def test_small_data_are_learned_in_small_batches() -> None:
    """Some fifty steps an epoch, until the batch is as large as wanted."""
    assert [batch_size(events, 1024) for events in (0, 3000, 10_000, 52_000, 10**6)] == [
        64,
        64,
        128,
        1024,
        1024,
    ]
