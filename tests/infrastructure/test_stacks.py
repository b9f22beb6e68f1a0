"""What the templates promise, stage by stage; that they exist at all proves that cdk-nag finds nothing."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.infrastructure.conftest import Synthesised, synthesise

ROOT = Path(__file__).parents[2]
FUNCTIONS = {
    "recommend",
    "collect_events",
    "land_events",
    "update_features",
    "remember_slates",
    "update_policy",
    "promote_model",
    "freshen_catalogue",
    "publish_snapshot",
}
MAPPINGS = 6
"""Of streams to functions."""

STREAM = "AWS::Kinesis::Stream"
OF_A_TIER = {"authorise_search", "index_items"}
"""Deployed only for apps whose vectors lie in OpenSearch: test_search_stack.py."""
SET_BY_LAMBDA = {"AWS_REGION", "AWS_LAMBDA_FUNCTION_NAME"}
ONE_THREAD = {"OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"}
READ_BY_LIBRARIES = {"POWERTOOLS_SERVICE_NAME", "POWERTOOLS_METRICS_NAMESPACE"} | ONE_THREAD


@pytest.fixture(params=["dev", "prod", "local"])
def stage(request: pytest.FixtureRequest) -> Synthesised:
    return request.getfixturevalue(request.param)


def mapping_of(stage: Synthesised, function: str) -> list[dict[str, Any]]:
    wanted = function.title().replace("_", "")
    mappings = stage.of_type("AWS::Lambda::EventSourceMapping").values()
    return [
        one["Properties"] for one in mappings if one["Properties"]["FunctionName"]["Ref"].startswith(wanted)
    ]


WRITES = {
    "collect_events": {"quarantine"},
    "land_events": {"landing", "quarantine"},
    "freshen_catalogue": {"quarantine"},
    "publish_snapshot": {"snapshots", "landing/items"},
}


def test_every_folder_of_lambdas_is_deployed(stage: Synthesised) -> None:
    """A handler nobody deploys, or a deployment nobody wrote, is a mistake."""
    written = {path.parent.name for path in ROOT.glob("lambdas/*/handler.py")}
    assert set(stage.functions()) == FUNCTIONS
    assert written <= FUNCTIONS | OF_A_TIER


@pytest.mark.parametrize("folder", sorted(FUNCTIONS))
def test_variables_are_those_that_the_handler_requires(stage: Synthesised, folder: str) -> None:
    """Deployed variables and the handler's Settings name the same things: none starts half-wired."""
    deployed = set(stage.functions()[folder]["Environment"]["Variables"]) - READ_BY_LIBRARIES
    required, optional = variables_read(folder)
    assert required - SET_BY_LAMBDA <= deployed <= required | optional


def test_a_request_keeps_to_one_thread(stage: Synthesised) -> None:
    """Threads of linear algebra wait for one another, and Lambda's processors are shared."""
    for function in stage.functions().values():
        variables = function["Environment"]["Variables"]
        assert {variables[name] for name in ONE_THREAD} == {"1"}


def variables_read(folder: str) -> tuple[set[str], set[str]]:
    """The fields without and with a default of the Settings in the function's folder, in capitals."""
    for path in sorted((ROOT / "lambdas" / folder).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and node.name == "Settings":
                fields = [one for one in node.body if isinstance(one, ast.AnnAssign)]
                names = {
                    one.target.id.upper(): one.value is None
                    for one in fields
                    if isinstance(one.target, ast.Name)
                }
                return {name for name, needed in names.items() if needed}, set(names)
    pytest.fail(f"lambdas/{folder} declares no Settings")


def test_every_stream_consumer_gives_up_in_the_end(stage: Synthesised) -> None:
    """Bounded retries and age, bisection, partial failures, a queue: poison never blocks a shard."""
    mappings = stage.of_type("AWS::Lambda::EventSourceMapping")
    assert len(mappings) == MAPPINGS
    for one in (mapping["Properties"] for mapping in mappings.values()):
        assert one["FunctionResponseTypes"] == ["ReportBatchItemFailures"]
        assert "Failures" in json.dumps(one["DestinationConfig"]["OnFailure"]["Destination"])
        if not one["FunctionName"]["Ref"].startswith("LandEvents"):
            assert one["BisectBatchOnFunctionError"] is True
            assert 0 < one["MaximumRetryAttempts"] <= 10
            assert 0 < one["MaximumRecordAgeInSeconds"] <= 24 * 3600


def test_an_outage_leaves_no_hole_in_the_lake(stage: Synthesised) -> None:
    """Only a bucket that is away fails a batch: tried until shortly before the stream forgets it."""
    (hours,) = {one["Properties"]["RetentionPeriodHours"] for one in stage.of_type(STREAM).values()}
    for one in mapping_of(stage, "land_events"):
        assert "MaximumRetryAttempts" not in one
        assert one["BisectBatchOnFunctionError"] is False
        assert one["MaximumRecordAgeInSeconds"] == (hours - 4) * 3600 <= 7 * 86_400


def test_three_clicks_can_change_the_next_slate(stage: Synthesised) -> None:
    """Events wait at most a second for their batch of up to 2,000."""
    (features,) = mapping_of(stage, "update_features")
    assert features["BatchSize"] == 2000
    assert features["MaximumBatchingWindowInSeconds"] <= 1


def test_dead_letters_lie_where_lambda_reports_what_it_gives_up(stage: Synthesised) -> None:
    """One queue for both, which the function's role may send to."""
    (mapping,) = mapping_of(stage, "update_features")
    queue = mapping["DestinationConfig"]["OnFailure"]["Destination"]["Fn::GetAtt"][0]
    assert stage.functions()["update_features"]["Environment"]["Variables"]["DEAD_LETTERS"] == {"Ref": queue}
    sends = [one for one in statements(stage, "update_features") if "sqs:SendMessage" in one["Action"]]
    assert [one["Resource"] for one in sends] == [{"Fn::GetAtt": [queue, "Arn"]}]


def test_changes_of_items_leave_the_table_by_its_stream(stage: Synthesised) -> None:
    """The items table has a stream of what items are now, and the snapshot is extended from it."""
    (items,) = (one for name, one in stage.of_type("AWS::DynamoDB::GlobalTable").items() if "Items" in name)
    assert items["Properties"]["StreamSpecification"] == {"StreamViewType": "NEW_IMAGE"}
    (published,) = mapping_of(stage, "publish_snapshot")
    assert "Items" in json.dumps(published["EventSourceArn"])
    assert published["MaximumBatchingWindowInSeconds"] <= 10


def test_both_streams_are_landed(stage: Synthesised) -> None:
    """One function lands events and decisions: two mappings of two streams."""
    landed = {json.dumps(one["EventSourceArn"]) for one in mapping_of(stage, "land_events")}
    assert len(landed) == 2


def test_tables_are_recoverable_encrypted_and_expire(stage: Synthesised) -> None:
    """Five tables: point-in-time recovery, our key, and a time to live on each."""
    tables = stage.of_type("AWS::DynamoDB::GlobalTable")
    assert len(tables) == 5
    for table in (one["Properties"] for one in tables.values()):
        (replica,) = table["Replicas"]
        assert replica["PointInTimeRecoverySpecification"] == {"PointInTimeRecoveryEnabled": True}
        assert replica["SSESpecification"]["KMSMasterKeyId"]["Fn::GetAtt"][0].startswith("Key")
        assert table["SSESpecification"] == {"SSEEnabled": True, "SSEType": "KMS"}
        assert table["TimeToLiveSpecification"] == {"AttributeName": "ttl", "Enabled": True}
        assert table["BillingMode"] == "PAY_PER_REQUEST"


def test_tables_have_the_keys_that_the_adapters_use(stage: Synthesised) -> None:
    """`pk` alone for state, control and items, with a text `sk` for slates, a number for the policy log."""
    keys = {}
    for name, table in stage.of_type("AWS::DynamoDB::GlobalTable").items():
        types = {
            one["AttributeName"]: one["AttributeType"] for one in table["Properties"]["AttributeDefinitions"]
        }
        keys[re.sub(r"Table.*|data/", "", name)] = types
    assert keys == {
        "State": {"pk": "S"},
        "Slates": {"pk": "S", "sk": "S"},
        "Policy": {"pk": "S", "sk": "N"},
        "Control": {"pk": "S"},
        "Items": {"pk": "S"},
    }


@pytest.mark.parametrize(
    ("name", "policy", "protected"), [("prod", "Retain", True), ("dev", "Delete", False)]
)
def test_data_outlives_its_stack_in_production_only(
    request: pytest.FixtureRequest, name: str, policy: str, protected: bool
) -> None:
    """Deleting the stack keeps tables, bucket, key and secret in prod, and leaves nothing behind in dev."""
    stage: Synthesised = request.getfixturevalue(name)
    kinds = ("DynamoDB::GlobalTable", "S3::Bucket", "KMS::Key", "SecretsManager::Secret", "Kinesis::Stream")
    for kind in kinds:
        for resource in stage.of_type(f"AWS::{kind}", "data").values():
            assert resource["DeletionPolicy"] == policy
    for table in stage.of_type("AWS::DynamoDB::GlobalTable").values():
        assert table["Properties"]["Replicas"][0]["DeletionProtectionEnabled"] is protected


def test_nothing_is_stored_or_streamed_in_the_clear(stage: Synthesised) -> None:
    """Bucket, streams and secret are under our key, and the bucket refuses plain HTTP and the public."""
    for stream in stage.of_type("AWS::Kinesis::Stream").values():
        assert stream["Properties"]["StreamEncryption"]["EncryptionType"] == "KMS"
    for secret in stage.of_type("AWS::SecretsManager::Secret").values():
        assert "KmsKeyId" in secret["Properties"]
    for name, bucket in stage.of_type("AWS::S3::Bucket").items():
        assert set(bucket["Properties"]["PublicAccessBlockConfiguration"].values()) == {True}
        algorithm = json.dumps(bucket["Properties"]["BucketEncryption"])
        assert ("AES256" if "AccessLogs" in name else "aws:kms") in algorithm
    policies = [json.dumps(one) for one in stage.of_type("AWS::S3::BucketPolicy").values()]
    assert policies
    assert all('"aws:SecureTransport": "false"' in one for one in policies)


def test_raw_data_expires_and_models_do_not(stage: Synthesised) -> None:
    """Landed events, quarantine and training sets have an end; models and snapshots are kept."""
    (bucket,) = (one for name, one in stage.of_type("AWS::S3::Bucket").items() if "AccessLogs" not in name)
    rules = bucket["Properties"]["LifecycleConfiguration"]["Rules"]
    expiring = {rule["Prefix"] for rule in rules if "ExpirationInDays" in rule}
    assert {"landing/", "quarantine/", "training/"} <= expiring
    assert not {"models/", "snapshots/", "catalogue/"} & expiring
    assert any(rule.get("NoncurrentVersionExpiration") == {"NoncurrentDays": 7} for rule in rules)


def test_each_function_has_a_role_of_its_own(stage: Synthesised) -> None:
    """No two functions share a role, and none carries a managed policy."""
    roles = [json.dumps(one["Role"]) for one in stage.functions().values()]
    assert len(set(roles)) == len(FUNCTIONS)
    for role in stage.of_type("AWS::IAM::Role", "ingest", "serving", "training").values():
        assert "ManagedPolicyArns" not in role["Properties"]


def test_each_function_may_do_to_tables_what_its_adapters_call(stage: Synthesised) -> None:
    """GetItem and PutItem also cover a transaction's reads and puts; nothing deletes, nothing scans."""
    assert {folder: table_actions(stage, folder) for folder in FUNCTIONS} == {
        "collect_events": [],
        "freshen_catalogue": ["BatchGetItem", "GetItem", "PutItem"],
        "land_events": [],
        "promote_model": ["GetItem", "PutItem"],
        "publish_snapshot": [*READS_A_STREAM, "GetItem", "PutItem"],
        "recommend": ["GetItem", "Query"],
        "remember_slates": ["PutItem"],
        "update_features": ["BatchGetItem", "GetItem", "PutItem"],
        "update_policy": ["GetItem", "PutItem"],
    }


READS_A_STREAM = ("DescribeStream", "GetRecords", "GetShardIterator", "ListStreams")


def table_actions(stage: Synthesised, folder: str) -> list[str]:
    """What the role of a function is allowed to do with DynamoDB."""
    found: set[str] = set()
    for statement in statements(stage, folder):
        actions = statement["Action"]
        found.update([actions] if isinstance(actions, str) else actions)
    order = {name: place for place, name in enumerate(READS_A_STREAM)}
    return sorted(
        (action.partition(":")[2] for action in found if action.startswith("dynamodb:")),
        key=lambda action: (order.get(action, len(order)), action),
    )


def statements(stage: Synthesised, folder: str) -> list[dict[str, Any]]:
    """The statements of the policies of a function's role."""
    role = stage.functions()[folder]["Role"]["Fn::GetAtt"][0]
    return [
        statement
        for policy in stage.of_type("AWS::IAM::Policy").values()
        if {"Ref": role} in policy["Properties"]["Roles"]
        for statement in policy["Properties"]["PolicyDocument"]["Statement"]
    ]


@pytest.mark.parametrize(("folder", "prefixes"), WRITES.items())
def test_collectors_may_write_where_their_files_go(
    stage: Synthesised, folder: str, prefixes: set[str]
) -> None:
    """What is refused has its place as well as what is good: without the grant it would be lost."""
    puts = [one for one in statements(stage, folder) if "s3:PutObject" in json.dumps(one["Action"])]
    assert set(re.findall(r"/([\w/]+)/\*", json.dumps(puts))) == prefixes


def test_no_policy_allows_everything_of_a_service(stage: Synthesised) -> None:
    """No action is `*` or `service:*`; a bare `*` resource stands only where the action knows no other."""
    without_resource = re.compile(r"(logs|xray|cloudwatch|ecr):\w+|dynamodb:ListStreams")
    for name, policy in stage.of_type("AWS::IAM::Policy").items():
        for statement in policy["Properties"]["PolicyDocument"]["Statement"]:
            actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
            assert not [action for action in actions if action.endswith((":*", "**")) or action == "*"], name
            if statement["Resource"] == "*":
                assert all(without_resource.fullmatch(action) for action in actions), (name, actions)


def routes(stage: Synthesised) -> dict[str, str]:
    found = stage.of_type("AWS::ApiGatewayV2::Route").values()
    return {
        one["Properties"]["RouteKey"]: one["Properties"].get("AuthorizationType", "NONE") for one in found
    }


def test_callers_are_authorised_by_iam_unless_told_otherwise(dev: Synthesised, local: Synthesised) -> None:
    """In AWS slates, events and rules need a signature; health and description do not; here nothing does."""
    assert routes(dev) == {
        "POST /api/recommendations/{surface}": "AWS_IAM",
        "POST /api/events": "AWS_IAM",
        "POST /events": "AWS_IAM",
        "POST /api/policy/changes": "AWS_IAM",
        "POST /api/items": "AWS_IAM",
        "GET /api/health": "NONE",
        "GET /openapi.json": "NONE",
    }
    assert set(routes(local)) == set(routes(dev))
    assert set(routes(local).values()) == {"NONE"}


def test_visitors_may_be_authorised_by_token(tmp_path: Path) -> None:
    """With authorization=jwt a browser's token opens slates and events; SDKs and rules stay with IAM."""
    jwt = {"authorization": "jwt", "jwt_issuer": "https://issuer.example", "jwt_audience": "shop"}
    stage = synthesise(tmp_path / "cdk.out", stage="staging", app="media", **jwt)
    assert routes(stage)["POST /api/recommendations/{surface}"] == "JWT"
    assert routes(stage)["POST /api/events"] == "JWT"
    assert routes(stage)["POST /events"] == "AWS_IAM"
    assert routes(stage)["POST /api/policy/changes"] == "AWS_IAM"


def test_the_front_door_is_throttled_and_logged_without_addresses(stage: Synthesised) -> None:
    """A default throttle, and an access log that holds nothing of a visitor."""
    (front,) = stage.of_type("AWS::ApiGatewayV2::Stage").values()
    settings = front["Properties"]
    assert settings["DefaultRouteSettings"]["ThrottlingRateLimit"] > 0
    assert settings["DefaultRouteSettings"]["ThrottlingBurstLimit"] > 0
    assert not re.search("sourceIp|userAgent|authorizer", settings["AccessLogSettings"]["Format"])


def test_routes_call_the_live_alias(stage: Synthesised) -> None:
    """Recommendations go to a published version, so that warm environments and rollback have one."""
    (alias,) = stage.of_type("AWS::Lambda::Alias").values()
    assert alias["Properties"]["Name"] == "live"
    integrations = json.dumps(list(stage.of_type("AWS::ApiGatewayV2::Integration").values()))
    assert '{"Ref": "Live' in integrations


def test_warm_environments_by_stage(dev: Synthesised, prod: Synthesised) -> None:
    """dev pays for none, within default quotas; prod keeps two and grows to fifty at 70% of use."""
    (cold,) = dev.of_type("AWS::Lambda::Alias").values()
    (warm,) = prod.of_type("AWS::Lambda::Alias").values()
    assert "ProvisionedConcurrencyConfig" not in cold["Properties"]
    assert warm["Properties"]["ProvisionedConcurrencyConfig"] == {"ProvisionedConcurrentExecutions": 2}
    (target,) = prod.of_type("AWS::ApplicationAutoScaling::ScalableTarget").values()
    assert (target["Properties"]["MinCapacity"], target["Properties"]["MaxCapacity"]) == (2, 50)
    (policy,) = prod.of_type("AWS::ApplicationAutoScaling::ScalingPolicy").values()
    assert policy["Properties"]["TargetTrackingScalingPolicyConfiguration"]["TargetValue"] == 0.7


def test_training_runs_nightly_where_it_is_wanted(dev: Synthesised, prod: Synthesised) -> None:
    """The schedule stands in every stage and is switched on in prod; each run gets a name of its own."""
    (off,) = dev.of_type("AWS::Scheduler::Schedule").values()
    (on,) = prod.of_type("AWS::Scheduler::Schedule").values()
    assert (off["Properties"]["State"], on["Properties"]["State"]) == ("DISABLED", "ENABLED")
    assert json.loads(on["Properties"]["Target"]["Input"]) == {"run": "nightly-<aws.scheduler.execution-id>"}


def test_the_workflow_is_the_file_with_every_blank_filled(stage: Synthesised) -> None:
    """The template holds stepfunctions/train_and_promote.asl.json itself, and a value for each ${name}."""
    (machine,) = stage.of_type("AWS::StepFunctions::StateMachine").values()
    text = (ROOT / "stepfunctions" / "train_and_promote.asl.json").read_text()
    assert machine["Properties"]["DefinitionString"] == text
    assert set(machine["Properties"]["DefinitionSubstitutions"]) == set(re.findall(r"\$\{(\w+)\}", text))


def test_training_never_sees_the_key_of_the_pseudonyms(stage: Synthesised) -> None:
    """Only the two functions that meet raw identifiers may read the secret."""
    readers = {
        name.partition("/")[2]
        for name, policy in stage.of_type("AWS::IAM::Policy").items()
        if "secretsmanager:GetSecretValue" in json.dumps(policy)
    }
    assert {re.match(r"[A-Z][a-z]+", name).group() for name in readers} == {"Collect", "Recommend"}  # type: ignore[union-attr]


def test_an_alarm_watches_every_queue_of_failures(stage: Synthesised) -> None:
    """Records that were given up, and streams that are late, ring; so do a failed training and errors."""
    alarms = [
        one["Properties"]["AlarmDescription"] for one in stage.of_type("AWS::CloudWatch::Alarm").values()
    ]
    assert sum("given up" in one for one in alarms) == MAPPINGS
    assert sum("behind the stream" in one for one in alarms) == MAPPINGS
    assert sum("Training failed" in one or "5xx" in one for one in alarms) == 2


def test_an_alarm_counts_rejected_events_that_were_not_kept(stage: Synthesised) -> None:
    """At once, by the metric that the function writes."""
    (alarm,) = (
        one["Properties"]
        for one in stage.of_type("AWS::CloudWatch::Alarm").values()
        if one["Properties"].get("MetricName") == "QuarantineLost"
    )
    assert (alarm["Namespace"], alarm["Statistic"], alarm["Threshold"]) == ("Narrows", "Sum", 0)
    assert (alarm["EvaluationPeriods"], alarm["DatapointsToAlarm"]) == (1, 1)
    (dimension,) = alarm["Dimensions"]
    assert dimension["Name"] == "FunctionName"
    assert dimension["Value"]["Ref"].startswith("CollectEvents")


def test_one_failed_night_rings(stage: Synthesised) -> None:
    """A run fails once and is over: an alarm that waited for a second period would never ring."""
    alarms = [one["Properties"] for one in stage.of_type("AWS::CloudWatch::Alarm", "training").values()]
    (failed,) = [one for one in alarms if "Training failed" in one["AlarmDescription"]]
    assert (failed["EvaluationPeriods"], failed["DatapointsToAlarm"], failed["Threshold"]) == (1, 1, 0)


def test_a_skewed_night_rings(stage: Synthesised) -> None:
    """The alarm watches the metric that the workflow writes, which may write no other namespace's."""
    alarms = [one["Properties"] for one in stage.of_type("AWS::CloudWatch::Alarm", "training").values()]
    (alarm,) = [one for one in alarms if one.get("MetricName") == "SkewFailed"]
    (machine,) = stage.of_type("AWS::StepFunctions::StateMachine").values()
    definition = json.loads(machine["Properties"]["DefinitionString"])
    branch = definition["States"]["Train, and build the features"]["Branches"][2]["States"]
    told = branch["Tell the skew"]["Parameters"]
    (written,) = told["MetricData"]
    assert (alarm["Namespace"], alarm["MetricName"]) == (told["Namespace"], written["MetricName"])
    assert [one["Name"] for one in alarm["Dimensions"]] == [one["Name"] for one in written["Dimensions"]]
    bucket = machine["Properties"]["DefinitionSubstitutions"]["BucketName"]
    assert [one["Value"] for one in alarm["Dimensions"]] == [bucket]
    assert (alarm["DatapointsToAlarm"], alarm["Threshold"]) == (1, 0)
    (statement,) = [
        one
        for name, policy in stage.of_type("AWS::IAM::Policy", "training").items()
        if "TrainAndPromoteRole" in name
        for one in policy["Properties"]["PolicyDocument"]["Statement"]
        if one["Action"] == "cloudwatch:PutMetricData"
    ]
    assert statement["Condition"] == {"StringEquals": {"cloudwatch:namespace": "Narrows"}}


def test_outputs_name_what_people_and_programs_need(stage: Synthesised) -> None:
    """What a caller, an operator and the local cloud look up, under these names."""
    names = {name for template in stage.templates.values() for name in template["Outputs"]}
    functions = {f"{folder.title().replace('_', '')}Function" for folder in FUNCTIONS}
    tables = {f"{name}TableName" for name in ("State", "Slates", "Policy", "Control", "Items")}
    others = {"ApiUrl", "ApiId", "BucketName", "EventsStreamName", "DecisionsStreamName", "StateMachineArn"}
    assert functions | tables | others <= names
