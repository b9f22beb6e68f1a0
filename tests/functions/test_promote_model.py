"""promote_model as the training workflow invokes it, on moto."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from narrows.adapters.control import DynamoControlTable
from narrows.adapters.s3 import S3Objects
from narrows.control import Pointer, model_pointer
from narrows.errors import BundleError, InvalidInput
from narrows.ranking import ModelManifest, write_manifest
from tests import servers
from tests.contract.tables import create_bucket, create_table
from tests.functions.doorways import CONTEXT, cold_start

METRIC = "normalized_discounted_cumulative_gain_at_10"


def evaluated(score: float, popular: float = 0.1) -> dict[str, Any]:
    return {
        "users": 100,
        "reports": {"two_stage": {METRIC: score}, "popular": {METRIC: popular}},
        "segments": {},
    }


class Deployed:
    """The function, its bucket and its table."""

    def __init__(self, aws: servers.Aws, monkeypatch: pytest.MonkeyPatch) -> None:
        client = aws.client("s3")
        self.objects = S3Objects(client, create_bucket(client))
        table = create_table(aws.client("dynamodb"), "control")
        self.control = DynamoControlTable(table, region=servers.REGION, connect_timeout_s=1, read_timeout_s=5)
        variables = {"APP": "media", "BUCKET": self.objects.bucket, "CONTROL_TABLE": table}
        self.module: ModuleType = cold_start("promote_model", monkeypatch, variables)

    def uri(self, key: str) -> str:
        return f"s3://{self.objects.bucket}/{key}"

    def offer(self, key: str, directory: Path) -> str:
        """Store the folder as SageMaker would; returns its address."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            for path in sorted(directory.iterdir()):
                archive.add(path, path.name)
        self.objects.put(key, buffer.getvalue())
        return self.uri(key)

    def measure(self, candidate: Any, current: Any = None) -> str:
        content = {"candidate": candidate, "current": current}
        self.objects.put("evaluation/metrics.json", json.dumps(content).encode())
        return self.uri("evaluation/metrics.json")

    def promote(self, candidate: str, metrics: str, version: str = "v2") -> dict[str, Any]:
        event = {"candidate": candidate, "metrics": metrics, "version": version}
        answer = self.module.handler(event, CONTEXT)
        assert set(answer) == {"promoted", "reason", "version"}
        return dict(answer)

    def live(self) -> Pointer | None:
        return self.control.read(model_pointer("media"))


@pytest.fixture
def deployed(moto: servers.Aws, monkeypatch: pytest.MonkeyPatch) -> Deployed:
    return Deployed(moto, monkeypatch)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    (folder / "ranker.txt").write_text("tree")
    write_manifest(folder, ModelManifest("v2", "media", 1.8e9, ("a",), "fingerprint"))
    return folder


def test_the_first_model_is_promoted(deployed: Deployed, bundle: Path) -> None:
    """Its files are unpacked under its version, and the pointer moves to them."""
    answer = deployed.promote(deployed.offer("jobs/model.tar.gz", bundle), deployed.measure(evaluated(0.3)))
    assert answer["promoted"] is True
    live = deployed.live()
    assert live is not None
    assert (live.version, live.prefix, live.previous) == ("v2", "models/v2", "")
    assert deployed.objects.keys("models/") == ["models/v2/manifest.json", "models/v2/ranker.txt"]


def test_a_retry_of_the_workflow_promotes_once(deployed: Deployed, bundle: Path) -> None:
    """The second invocation finds the model live and says so."""
    candidate, metrics = deployed.offer("jobs/model.tar.gz", bundle), deployed.measure(evaluated(0.3))
    deployed.promote(candidate, metrics)
    again = deployed.promote(candidate, metrics)
    assert again["promoted"] is True
    assert "already" in again["reason"]


def test_a_worse_candidate_stays_out(deployed: Deployed, bundle: Path) -> None:
    """Neither files nor pointer change, and the reason holds the figures."""
    candidate = deployed.offer("jobs/model.tar.gz", bundle)
    deployed.promote(candidate, deployed.measure(evaluated(0.3)))
    answer = deployed.promote(candidate, deployed.measure(evaluated(0.2), evaluated(0.3)), "v3")
    assert answer["promoted"] is False
    assert "0.2000" in answer["reason"]
    assert deployed.live().version == "v2"  # type: ignore[union-attr]
    assert deployed.objects.keys("models/v3") == []


def test_a_better_candidate_remembers_what_it_replaced(deployed: Deployed, bundle: Path) -> None:
    """So that a rollback knows where to go."""
    candidate = deployed.offer("jobs/model.tar.gz", bundle)
    deployed.promote(candidate, deployed.measure(evaluated(0.3)))
    deployed.promote(candidate, deployed.measure(evaluated(0.4), evaluated(0.3)), "v3")
    live = deployed.live()
    assert live is not None
    assert (live.version, live.previous) == ("v3", "v2")


def test_a_damaged_candidate_stays_out(deployed: Deployed, bundle: Path) -> None:
    """However good its figures are."""
    (bundle / "ranker.txt").write_text("another tree")
    answer = deployed.promote(deployed.offer("jobs/model.tar.gz", bundle), deployed.measure(evaluated(0.9)))
    assert answer["promoted"] is False
    assert "damaged" in answer["reason"]
    assert deployed.live() is None


def test_another_apps_model_stays_out(deployed: Deployed, bundle: Path) -> None:
    """Its item ids would mean nothing here."""
    write_manifest(bundle, ModelManifest("v2", "megashop", 1.8e9, ("a",), "fingerprint"))
    answer = deployed.promote(deployed.offer("jobs/model.tar.gz", bundle), deployed.measure(evaluated(0.9)))
    assert answer["promoted"] is False
    assert "megashop" in answer["reason"]


def test_the_workflows_own_names_and_archives_are_understood(deployed: Deployed, bundle: Path) -> None:
    """A folder as candidate, and an evaluation inside the model.tar.gz of its training job."""
    deployed.objects.upload(bundle, "jobs/output")
    evaluation = bundle.parent / "evaluation"
    evaluation.mkdir()
    (evaluation / "metrics.json").write_text(json.dumps(evaluated(0.3)))
    metrics = deployed.offer("jobs/evaluation/model.tar.gz", evaluation)
    event = {"run": "run-7", "model": deployed.uri("jobs/output/"), "evaluation": metrics}
    assert deployed.module.handler(event, CONTEXT)["promoted"] is True
    assert deployed.live().version == "run-7"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("event", "field"),
    [
        ({}, "candidate"),
        ({"candidate": "s3://b/k", "metrics": "s3://b/m"}, "version"),
        ({"candidate": "s3://b/k", "metrics": "s3://b/m", "version": "../v1"}, "version"),
        ({"candidate": "s3://b/k", "metrics": "/tmp/m", "version": "v1"}, "metrics"),
    ],
)
def test_a_wrong_invocation_names_the_field(deployed: Deployed, event: dict[str, str], field: str) -> None:
    """The workflow's failure then says what to correct."""
    with pytest.raises(InvalidInput) as refusal:
        deployed.module.handler(event, CONTEXT)
    assert refusal.value.field == field


def test_a_missing_evaluation_fails_the_workflow(deployed: Deployed, bundle: Path) -> None:
    """Nothing is promoted on silence."""
    with pytest.raises(BundleError):
        deployed.promote(deployed.offer("jobs/model.tar.gz", bundle), deployed.uri("nowhere/metrics.json"))
