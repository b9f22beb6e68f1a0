"""Slates out: the HTTP API, its routes and who may call them, and the function that answers."""

from __future__ import annotations

import json
from typing import cast

import aws_cdk as cdk
from aws_cdk import aws_apigatewayv2 as api
from aws_cdk import aws_apigatewayv2_authorizers as authorizers
from aws_cdk import aws_apigatewayv2_integrations as integrations
from aws_cdk import aws_lambda as lambda_
from constructs import Construct

from cdk_app.blocks import LIGHTGBM, Alarms, Function, acknowledge, allow, allow_key, allow_objects, log_group
from cdk_app.config import Config
from cdk_app.stacks.data import DataStack
from cdk_app.stacks.ingest import IngestStack
from cdk_app.stacks.search import Search
from cdk_app.text_encoder import allow_endpoint, reading_code

ACCESS_LOG = {  # no address and no agent of a visitor: the log is kept longer than consent may last
    "request": "$context.requestId",
    "time": "$context.requestTimeEpoch",
    "route": "$context.routeKey",
    "status": "$context.status",
    "bytes": "$context.responseLength",
    "latency_ms": "$context.responseLatency",
    "function_ms": "$context.integrationLatency",
    "error": "$context.integrationErrorMessage",
}
GET, POST = api.HttpMethod.GET, api.HttpMethod.POST


class ServingStack(cdk.Stack):
    """The front door and the function behind it; the first deploy answers before any model exists."""

    def __init__(
        self,
        scope: Construct,
        name: str,
        *,
        config: Config,
        data: DataStack,
        ingest: IngestStack,
        search: Search | None = None,
        **settings: object,
    ) -> None:
        super().__init__(scope, name, **settings)  # type: ignore[arg-type]  # names, environment: as cdk.Stack has them
        self._config, self._stage = config, config.stage
        self.recommend = self._recommend(data, search)
        live = self._live(self.recommend)
        self.api = self._api()
        self._stage_with_logs()
        answer = integrations.HttpLambdaIntegration("Recommend", live)
        caller = self._caller()
        self._route(POST, "/api/recommendations/{surface}", answer, caller)
        collect = self._integration("CollectEvents", ingest.collect_events)
        self._route(POST, "/api/events", collect, caller)
        self._route(POST, "/events", collect, self._signing_caller(caller))  # Amazon Personalize's PutEvents
        self._route(
            GET, "/api/health", answer, api.HttpNoneAuthorizer(), "It says that the function answers."
        )
        self._route(
            GET, "/openapi.json", answer, api.HttpNoneAuthorizer(), "It is the API's public description."
        )
        self._route(
            POST,
            "/api/policy/changes",
            self._integration("UpdatePolicy", ingest.update_policy),
            self._operator(),
        )
        items = self._integration("FreshenCatalogue", ingest.freshen_catalogue)
        self._route(POST, "/api/items", items, self._operator())
        self._alarms()
        cdk.CfnOutput(self, "ApiUrl", value=self.api.api_endpoint)
        cdk.CfnOutput(self, "ApiId", value=self.api.api_id)
        cdk.CfnOutput(self, "RecommendFunction", value=self.recommend.function.function_name)

    def _recommend(self, data: DataStack, search: Search | None) -> Function:
        environment = {
            "APP": self._config.app.name,
            "BUCKET": data.bucket.bucket_name,
            "STATE_TABLE": data.state.table_name,
            "SLATES_TABLE": data.slates.table_name,
            "POLICY_TABLE": data.policy.table_name,
            "CONTROL_TABLE": data.control.table_name,
            "DECISIONS_STREAM": data.decisions.stream_name,
            "PSEUDONYM_SECRET": data.pseudonym_key.secret_arn,
        }
        if self._stage.bundle_dependencies:
            environment["LIGHTGBM_LIBRARY"] = LIGHTGBM
        environment |= search.variables() if search else {}
        function = Function(
            self,
            "recommend",
            stage=self._stage,
            code=reading_code(self._config),
            environment=environment,
            timeout_s=10,
            memory_mb=self._stage.recommend_memory_mb,
            scratch_mb=2048,
        )
        for table in (data.state, data.slates, data.control):
            table.allow(function.role, "GetItem")
        data.policy.allow(function.role, "Query")
        allow(function.role, ["kinesis:PutRecord", "kinesis:PutRecords"], [data.decisions.stream_arn])
        allow_key(function.role, data.key)  # the stream is under it
        allow(function.role, ["secretsmanager:GetSecretValue"], [data.pseudonym_key.secret_arn])
        allow_objects(function.role, data.bucket, data.key, read=["models", "snapshots"])
        allow_endpoint(function.role, self._config)
        if search:
            search.allow_search(function)
        return function

    def _live(self, function: Function) -> lambda_.Alias:
        """The alias that the routes call, with environments kept warm as the stage asks."""
        least, most = self._stage.provisioned_concurrency, self._stage.provisioned_concurrency_at_most
        alias = lambda_.Alias(
            self,
            "Live",
            alias_name="live",
            version=function.function.current_version,
            provisioned_concurrent_executions=least or None,
        )
        if most > least:
            scaling = alias.add_auto_scaling(min_capacity=max(least, 1), max_capacity=most)
            scaling.scale_on_utilization(utilization_target=0.7)
        return alias

    def _api(self) -> api.HttpApi:
        origins = list(self._stage.cors_origins)
        cors = api.CorsPreflightOptions(
            allow_origins=origins,
            allow_methods=[api.CorsHttpMethod.GET, api.CorsHttpMethod.POST],
            allow_headers=["authorization", "content-type"],
            max_age=cdk.Duration.hours(1),
        )
        return api.HttpApi(
            self,
            "Api",
            api_name=self._config.prefix,
            create_default_stage=False,
            cors_preflight=cors if origins else None,
        )

    def _stage_with_logs(self) -> None:
        group = log_group(self, "AccessLogs", self._stage)
        stage = api.HttpStage(
            self,
            "Default",
            http_api=self.api,
            stage_name="$default",
            auto_deploy=True,
            throttle=api.ThrottleSettings(
                rate_limit=self._stage.throttle_rate, burst_limit=self._stage.throttle_burst
            ),
        )
        cast(
            api.CfnStage, stage.node.default_child
        ).access_log_settings = api.CfnStage.AccessLogSettingsProperty(
            destination_arn=group.log_group_arn, format=json.dumps(ACCESS_LOG)
        )

    def _integration(self, name: str, function: Function) -> integrations.HttpLambdaIntegration:
        return integrations.HttpLambdaIntegration(name, function.function)

    def _caller(self) -> api.IHttpRouteAuthorizer:
        """Who may ask for slates and send events: docs/decisions has the reasons."""
        if self._stage.authorization == "iam":
            return authorizers.HttpIamAuthorizer()
        if self._stage.authorization == "jwt":
            return authorizers.HttpJwtAuthorizer(
                "Visitors", self._stage.jwt_issuer, jwt_audience=[self._stage.jwt_audience]
            )
        return api.HttpNoneAuthorizer()

    def _signing_caller(self, caller: api.IHttpRouteAuthorizer) -> api.IHttpRouteAuthorizer:
        """Who may send events as clients of Amazon Personalize do: AWS's SDKs sign, and know no tokens."""
        return authorizers.HttpIamAuthorizer() if self._stage.authorization == "jwt" else caller

    def _operator(self) -> api.IHttpRouteAuthorizer:
        """Rules are changed by services and people of the account, never by visitors."""
        if self._stage.name == "local":
            return api.HttpNoneAuthorizer()
        return authorizers.HttpIamAuthorizer()

    def _route(
        self,
        method: api.HttpMethod,
        path: str,
        integration: api.HttpRouteIntegration,
        authorizer: api.IHttpRouteAuthorizer,
        why_open: str = "",
    ) -> None:
        routes = self.api.add_routes(
            path=path, methods=[method], integration=integration, authorizer=authorizer
        )
        if isinstance(authorizer, api.HttpNoneAuthorizer):
            reason = (
                why_open
                or f"Stage {self._stage.name} was deployed with authorization=none: no real visitors."
            )
            for route in routes:
                acknowledge(route, {"APIG4": reason})

    def _alarms(self) -> None:
        alarms = Alarms(self._stage)
        alarms.on(self, "ErrorsAlarm", self.api.metric_server_error(), 5, "The API answers with 5xx")
        slow = self.api.metric_latency(statistic="p99")
        deadline_ms = max(surface.deadline_ms for surface in self._config.app.surfaces.values())
        alarms.on(
            self,
            "SlowAlarm",
            slow,
            deadline_ms + 40,
            "p99 is above the surfaces' deadline and the front's share",
        )
        alarms.on(
            self, "ThrottledAlarm", self.recommend.function.metric_throttles(), 0, "Concurrency ran out"
        )
