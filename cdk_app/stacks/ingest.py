"""Events in: the functions that take, keep and fold them, and those that keep slates and policy current."""

from __future__ import annotations

import aws_cdk as cdk
from aws_cdk import aws_kinesis as kinesis
from constructs import Construct

from cdk_app.blocks import Consumption, Function, StreamConsumer, allow, allow_objects
from cdk_app.bundling import lambda_code
from cdk_app.config import Config
from cdk_app.stacks.data import DataStack
from cdk_app.stacks.search import Search


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
        self._stage, self._data, self._search = config.stage, data, search
        self._app = config.app.name
        self._code = lambda_code(config.stage)
        self.collect_events = self._collect_events()
        self.update_policy = self._update_policy()
        self.land_events = self._land_events()
        self.update_features = self._update_features()
        self.remember_slates = self._remember_slates()
        for function in (
            self.collect_events,
            self.land_events,
            self.update_features,
            self.remember_slates,
            self.update_policy,
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
        return function

    def _land_events(self) -> Function:
        """Two mappings, one function: each stream has its own prefix, told by the mapping's ARN."""
        data = self._data
        function = self._function("land_events", {"BUCKET": data.bucket.bucket_name}, timeout_s=60)
        allow_objects(function.role, data.bucket, data.key, write=["landing", "quarantine"])
        consumption = Consumption(self._stage.landing_batch, self._stage.landing_window_s)
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

    def _function(
        self, folder: str, environment: dict[str, str], *, timeout_s: int, memory_mb: int = 512
    ) -> Function:
        return Function(
            self,
            folder,
            stage=self._stage,
            code=self._code,
            environment=environment,
            timeout_s=timeout_s,
            memory_mb=memory_mb,
        )

    def _consume(
        self, name: str, function: Function, stream: kinesis.IStream, consumption: Consumption
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
