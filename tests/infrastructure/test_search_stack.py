"""The search tier's stack: encrypted, signed, confined by role; only where an app's vectors lie there."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cdk_app.config import load
from narrows.adapters.opensearch_versions import OpenSearchIndexVersions, index_versions
from narrows.errors import SettingsError
from narrows.index_settings import IndexSettings
from tests.infrastructure.conftest import Synthesised, synthesise
from tests.infrastructure.test_stacks import READ_BY_LIBRARIES, SET_BY_LAMBDA, variables_read


@pytest.fixture(scope="module", params=["dev", "prod"])
def searching(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Synthesised:
    """megashop as it would be deployed with its vectors in OpenSearch."""
    outdir = tmp_path_factory.mktemp(request.param) / "cdk.out"
    return synthesise(outdir, stage=request.param, vectors="opensearch")


def domain(stage: Synthesised) -> dict[str, Any]:
    (one,) = stage.of_type("AWS::OpenSearchService::Domain").values()
    return dict(one["Properties"])


def test_the_domain_is_the_version_that_the_tests_run(searching: Synthesised) -> None:
    """OpenSearch 2.19."""
    assert domain(searching)["EngineVersion"] == "OpenSearch_2.19"


def test_nothing_lies_or_travels_in_the_clear(searching: Synthesised) -> None:
    """At rest under our key, between nodes, and from clients by TLS 1.2 with forward secrecy."""
    one = domain(searching)
    assert one["EncryptionAtRestOptions"]["Enabled"] is True
    assert "Key" in json.dumps(one["EncryptionAtRestOptions"]["KmsKeyId"])
    assert one["NodeToNodeEncryptionOptions"] == {"Enabled": True}
    assert one["DomainEndpointOptions"]["EnforceHTTPS"] is True
    assert one["DomainEndpointOptions"]["TLSSecurityPolicy"] == "Policy-Min-TLS-1-2-PFS-2023-10"


def test_only_roles_that_are_let_in_enter(searching: Synthesised) -> None:
    """Access control inside the domain, its master the function that writes it; nobody unsigned."""
    one = domain(searching)
    assert one["AdvancedSecurityOptions"]["Enabled"] is True
    assert one["AdvancedSecurityOptions"]["InternalUserDatabaseEnabled"] is False
    master = one["AdvancedSecurityOptions"]["MasterUserOptions"]["MasterUserARN"]
    assert master == {"Fn::GetAtt": [_role_of(searching, "authorise_search"), "Arn"]}
    (statement,) = one["AccessPolicies"]["Statement"]
    assert "AWS::AccountId" in json.dumps(statement["Principal"])


def test_production_survives_a_zone(searching: Synthesised) -> None:
    """Three zones and masters of their own in prod; one small node in dev."""
    cluster = domain(searching)["ClusterConfig"]
    if searching.config.stage.name == "dev":
        assert cluster["InstanceCount"] == 1
        assert cluster["ZoneAwarenessEnabled"] is False
    else:
        assert cluster["InstanceCount"] == cluster["DedicatedMasterCount"] == 3
        assert cluster["ZoneAwarenessConfig"] == {"AvailabilityZoneCount": 3}


def test_recommend_may_search_and_nothing_else(searching: Synthesised) -> None:
    """It is told where, under which name and on which engine; it may ask, and change nothing."""
    variables = searching.functions()["recommend"]["Environment"]["Variables"]
    assert variables["SEARCH_NAME"] == searching.config.prefix
    assert variables["SEARCH_ENGINE"] == "faiss"
    assert "SEARCH_URL" in variables
    (access,) = searching.of_type("Custom::SearchAccess", "serving").values()
    assert access["Properties"]["May"] == "search"
    policies = json.dumps(list(searching.of_type("AWS::IAM::Policy", "serving").values()))
    assert "es:ESHttpPost" in policies
    assert "es:ESHttpPut" not in policies
    assert "es:ESHttpDelete" not in policies


@pytest.mark.parametrize("folder", ["authorise_search", "recommend", "index_items", "promote_model"])
def test_variables_of_the_tier_are_those_that_handlers_know(searching: Synthesised, folder: str) -> None:
    """Deployed variables and the handler's Settings name the same things."""
    deployed = set(searching.functions()[folder]["Environment"]["Variables"]) - READ_BY_LIBRARIES
    required, known = variables_read(folder)
    assert required - SET_BY_LAMBDA <= deployed <= known


def test_items_reach_the_index_by_their_tables_stream(searching: Synthesised) -> None:
    """Tried for as long as the stream keeps it, since only an index that is away fails a batch; watched."""
    mappings = [
        one["Properties"]
        for one in searching.of_type("AWS::Lambda::EventSourceMapping").values()
        if one["Properties"]["FunctionName"]["Ref"].startswith("IndexItems")
    ]
    (mapping,) = mappings
    assert "Items" in json.dumps(mapping["EventSourceArn"])
    assert "MaximumRetryAttempts" not in mapping
    assert mapping["BisectBatchOnFunctionError"] is False
    assert (
        mapping["MaximumRecordAgeInSeconds"] < 24 * 3600
    )  # a DynamoDB stream forgets then, without a message
    assert "Failures" in json.dumps(mapping["DestinationConfig"])
    for folder in ("index_items", "promote_model"):
        role = searching.functions()[folder]["Role"]["Fn::GetAtt"][0]
        policies = json.dumps(
            [one for one in searching.of_type("AWS::IAM::Policy").values() if role in json.dumps(one)]
        )
        assert "es:ESHttpPut" in policies


def test_a_refused_item_rings(searching: Synthesised) -> None:
    """One is enough: the alarm watches the metric that the function writes, of this deployment alone."""
    alarms = searching.of_type("AWS::CloudWatch::Alarm", "ingest").values()
    (alarm,) = [one["Properties"] for one in alarms if one["Properties"].get("MetricName") == "ItemsRefused"]
    assert (alarm["Namespace"], alarm["Threshold"], alarm["DatapointsToAlarm"]) == ("Narrows", 0, 1)
    assert alarm["EvaluationPeriods"] == 1
    dimensions = {one["Name"]: one["Value"] for one in alarm["Dimensions"]}
    assert dimensions["service"] == "index_items"
    assert dimensions["FunctionName"]["Ref"].startswith("IndexItems")


def test_what_can_be_built_again_is_not_kept(searching: Synthesised) -> None:
    """A domain that outlived its stack would only bill."""
    (one,) = searching.of_type("AWS::OpenSearchService::Domain").values()
    assert one["DeletionPolicy"] == "Delete"


def test_the_embedded_tier_deploys_none_of_it(dev: Synthesised) -> None:
    """Neither domain nor variable: nothing bills while idle."""
    assert "search" not in dev.templates
    assert not dev.of_type("AWS::OpenSearchService::Domain")
    assert "SEARCH_URL" not in dev.functions()["recommend"]["Environment"]["Variables"]


@pytest.mark.parametrize("stage", ["local", "dev"])
def test_a_cluster_of_ones_own_is_taken_by_its_address(tmp_path: Path, stage: str) -> None:
    """No domain is made; on this machine the engine is the one whose libraries there are."""
    url = "http://127.0.0.1:9200"
    own = synthesise(tmp_path / "cdk.out", stage=stage, vectors="opensearch", search_url=url)
    assert not own.of_type("AWS::OpenSearchService::Domain")
    variables = own.functions()["recommend"]["Environment"]["Variables"]
    assert variables["SEARCH_URL"] == url
    assert variables["SEARCH_ENGINE"] == ("lucene" if stage == "local" else "faiss")


@pytest.mark.parametrize(
    ("stage", "index", "engine", "data_type", "encoder"),
    [
        ("dev", IndexSettings("lucene", numbers="byte"), "lucene", "byte", None),
        ("dev", IndexSettings("faiss", numbers="fp16"), "faiss", "float", "fp16"),
        ("local", IndexSettings("faiss", numbers="fp16"), "lucene", "float", None),
    ],
)
def test_what_is_deployed_makes_the_index_that_the_app_asks_for(
    tmp_path: Path, stage: str, index: IndexSettings, engine: str, data_type: str, encoder: str | None
) -> None:
    """By the variables of each function that makes one or asks it; half precision is faiss's alone."""
    own = {"search_url": "http://127.0.0.1:9200"} if stage == "local" else {}
    deployed = synthesise(tmp_path / "cdk.out", stage=stage, vectors="opensearch", index=index, **own)
    for folder in ("promote_model", "index_items", "recommend"):
        variables = deployed.functions()[folder]["Environment"]["Variables"]
        named = (variables["SEARCH_NAME"], variables["SEARCH_ENGINE"])
        vector = made(index_versions(deployed.config.app.index, "http://127.0.0.1:1", *named))
        assert (vector["method"]["engine"], vector["data_type"]) == (engine, data_type), folder
        parameters = vector["method"]["parameters"].get("encoder", {}).get("parameters", {})
        assert parameters.get("type") == encoder, folder


def made(versions: OpenSearchIndexVersions) -> dict[str, Any]:
    """The mapping of the vectors of an index that it would make; there is no server."""
    bodies: list[dict[str, Any]] = []

    def create(name: str, body: dict[str, Any], params: object) -> None:
        bodies.append(body)

    versions._client.indices = SimpleNamespace(get=lambda *_, **__: {}, create=create)  # type: ignore[assignment]
    versions.create("v1", 64)
    main, fresh = (dict(body["mappings"]["properties"]["vector"]) for body in bodies)
    assert main == fresh
    return main


def test_sizes_that_no_cluster_has_are_refused() -> None:
    """Four nodes in three zones, two masters, an address that is none: each by name."""
    context = {"search_nodes": "4", "search_masters": "2", "search_url": "search.example"}
    with pytest.raises(SettingsError) as caught:
        load({"app": "megashop", "stage": "dev", **context})
    assert {problem.path for problem in caught.value.problems} == set(context)


def _role_of(stage: Synthesised, folder: str) -> str:
    return str(stage.functions()[folder]["Role"]["Fn::GetAtt"][0])
