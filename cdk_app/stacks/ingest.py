"""Events in: the functions that take, keep and fold them, and those that keep slates and policy current."""

from __future__ import annotations

import aws_cdk as cdk
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_kinesis as kinesis
from aws_cdk import aws_lambda as lambda_
from constructs import Construct

from cdk_app.blocks import Alarms, Consumption, Function, StreamConsumer, Table, allow, allow_objects
from cdk_app.bundling import lambda_code
from cdk_app.config import Config
from cdk_app.stacks.data import DataStack
from cdk_app.stacks.search import Search
from cdk_app.text_encoder import allow_endpoint, reading_code

HOURS_TO_READ = 4
"""Before a stream forgets its records."""


class IngestStack(cdk.Stack):
    """Everything that writes state, apart from training."""

    def __init__(
        self,
        scope: Construct,
        name: str,
        *,
        config: Config,
        data: DataStack,
        search: Search | None = None,
        **settings: object,
    ) -> None:
        super().__init__(scope, name, **settings)  # type: ignore[arg-type]  # names, environment: as cdk.Stack has them
        self._stage, self._data = config.stage, data
        self._config, self._app = config, config.app.name
        self._code = lambda_code(config.stage)
        self.collect_events = self._collect_events()
        self.update_policy = self._update_policy()
        self.land_events = self._land_events()
        self.update_features = self._update_features()
        self.remember_slates = self._remember_slates()
        self.freshen_catalogue = self._freshen_catalogue()
        for function in (
            self.collect_events,
            self.land_events,
            self.update_features,
            self.remember_slates,
            self.update_policy,
            self.freshen_catalogue,
            self._publish_snapshot(),
            *([self._index_items(search)] if search else []),
        ):
            cdk.CfnOutput(self, f"{function.node.id}Function", value=function.function.function_name)

    def _collect_events(self) -> Function:
        data = self._data
        environment = {
            "APP": self._app,
            "EVENTS_STREAM": data.events.stream_name,
            "BUCKET": data.bucket.bucket_name,
            "PSEUDONYM_SECRET": data.pseudonym_key.secret_arn,
        }
        function = self._function("collect_events", environment, timeout_s=10, memory_mb=1024)
        allow(function.role, ["kinesis:PutRecord", "kinesis:PutRecords"], [data.events.stream_arn])
        allow(function.role, ["secretsmanager:GetSecretValue"], [data.pseudonym_key.secret_arn])
        allow_objects(function.role, data.bucket, data.key, write=["quarantine"])
        lost = cloudwatch.Metric(
            namespace="Narrows",
            metric_name="QuarantineLost",
            dimensions_map={"FunctionName": function.function.function_name},
            statistic="Sum",
        )
        why = "CollectEvents: rejected events were not kept; see docs/operations/deploy.md"
        Alarms(self._stage).on(function, "QuarantineAlarm", lost, 0, why, at_once=True)
        return function

    def _land_events(self) -> Function:
        """Two mappings, one function: each stream has its own prefix, told by the mapping's ARN.

        What it cannot read it puts into quarantine, so that only a bucket that is away fails a batch. The
        lake is the truth: a batch is tried for as long as the stream holds it, less the hours in which a
        person can still read what was given up.
        """
        data = self._data
        function = self._function("land_events", {"BUCKET": data.bucket.bucket_name}, timeout_s=60)
        allow_objects(function.role, data.bucket, data.key, write=["landing", "quarantine"])
        consumption = Consumption(
            self._stage.landing_batch,
            self._stage.landing_window_s,
            attempts=None,
            max_age_s=(self._stage.stream_hours - HOURS_TO_READ) * 3600,
        )
        self._consume("LandEventsFromEvents", function, data.events, consumption)
        self._consume("LandEventsFromDecisions", function, data.decisions, consumption)
        return function

    def _update_features(self) -> Function:
        environment = {"APP": self._app, "STATE_TABLE": self._data.state.table_name}
        function = self._function("update_features", environment, timeout_s=60, memory_mb=1769)
        self._data.state.allow(function.role, "GetItem", "BatchGetItem", "PutItem")
        consumption = Consumption(self._stage.feature_batch, self._stage.feature_window_s)
        consumer = self._consume("UpdateFeaturesFromEvents", function, self._data.events, consumption)
        function.function.add_environment("DEAD_LETTERS", consumer.failures.queue_url)
        return function

    def _remember_slates(self) -> Function:
        environment = {"SLATES_TABLE": self._data.slates.table_name}
        function = self._function("remember_slates", environment, timeout_s=60)
        self._data.slates.allow(function.role, "PutItem")
        self._consume("RememberSlatesFromDecisions", function, self._data.decisions, Consumption(1000, 1))
        return function

    def _update_policy(self) -> Function:
        environment = {"POLICY_TABLE": self._data.policy.table_name}
        function = self._function("update_policy", environment, timeout_s=10)
        self._data.policy.allow(function.role, "GetItem", "PutItem")
        return function

    def _freshen_catalogue(self) -> Function:
        """It stores items and, in the same transaction, what the rules must know of them at once."""
        data = self._data
        environment = {
            "APP": self._app,
            "BUCKET": data.bucket.bucket_name,
            "ITEMS_TABLE": data.items.table_name,
            "POLICY_TABLE": data.policy.table_name,
            "CONTROL_TABLE": data.control.table_name,
        }
        function = self._function(
            "freshen_catalogue",
            environment,
            timeout_s=60,
            memory_mb=1769,
            scratch_mb=2048,
            code=reading_code(self._config),
        )
        allow_endpoint(function.role, self._config)
        data.items.allow(function.role, "GetItem", "BatchGetItem", "PutItem")
        data.policy.allow(function.role, "GetItem", "PutItem")
        data.control.allow(function.role, "GetItem")
        allow_objects(
            function.role, data.bucket, data.key, read=["models", "snapshots"], write=["quarantine"]
        )
        if data.item_stream:
            self._consume("FreshenFromItemUpserts", function, data.item_stream, Consumption(200, 1))
        return function

    def _publish_snapshot(self) -> Function:
        data = self._data
        environment = {
            "APP": self._app,
            "BUCKET": data.bucket.bucket_name,
            "CONTROL_TABLE": data.control.table_name,
        }
        function = self._function(
            "publish_snapshot", environment, timeout_s=300, memory_mb=1769, scratch_mb=4096
        )
        data.control.allow(function.role, "GetItem", "PutItem")
        writes = ["snapshots", "landing/items"]
        allow_objects(function.role, data.bucket, data.key, read=["snapshots"], write=writes)
        self._consume(
            "PublishSnapshotFromItems", function, data.items, Consumption(2000, self._stage.item_window_s)
        )
        return function

    def _index_items(self, search: Search) -> Function:
        """Only where vectors lie in OpenSearch; in the embedded tier each process has them in memory."""
        data = self._data
        environment = {"APP": self._app, "BUCKET": data.bucket.bucket_name, **search.variables()}
        function = self._function(
            "index_items",
            environment,
            timeout_s=120,
            memory_mb=1769,
            scratch_mb=2048,
            code=reading_code(self._config),
        )
        search.allow_change(function)
        allow_endpoint(function.role, self._config)
        allow_objects(function.role, data.bucket, data.key, read=["models"])
        consumption = Consumption(500, 1, attempts=None, max_age_s=20 * 3600)
        self._consume("IndexItemsFromItems", function, self._data.items, consumption)
        refused = cloudwatch.Metric(
            namespace="Narrows",
            metric_name="ItemsRefused",
            dimensions_map={"FunctionName": function.function.function_name, "service": "index_items"},
            statistic="Sum",
            period=cdk.Duration.hours(1),
        )
        why = "Items are not in the vector index; the function's log names them, and why"
        Alarms(self._stage).on(function, "RefusedAlarm", refused, 0, why, at_once=True)
        return function

    def _function(
        self,
        folder: str,
        environment: dict[str, str],
        *,
        timeout_s: int,
        memory_mb: int = 512,
        scratch_mb: int = 512,
        code: lambda_.Code | None = None,
    ) -> Function:
        return Function(
            self,
            folder,
            stage=self._stage,
            code=code or self._code,
            environment=environment,
            timeout_s=timeout_s,
            memory_mb=memory_mb,
            scratch_mb=scratch_mb,
        )

    def _consume(
        self, name: str, function: Function, stream: kinesis.IStream | Table, consumption: Consumption
    ) -> StreamConsumer:
        return StreamConsumer(
            self,
            name,
            stage=self._stage,
            function=function,
            stream=stream,
            key=self._data.key,
            consumption=consumption,
        )
