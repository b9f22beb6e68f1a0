"""The distributed tier of item vectors: an OpenSearch domain, and who may do what in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import aws_cdk as cdk
from aws_cdk import aws_ec2 as ec2
from aws_cdk import aws_logs as logs
from aws_cdk import aws_opensearchservice as opensearch
from constructs import Construct

from cdk_app.blocks import Alarms, Function, acknowledge, allow, log_group
from cdk_app.bundling import lambda_code
from cdk_app.config import Config
from cdk_app.stacks.data import DataStack

SEARCH = ("es:ESHttpGet", "es:ESHttpPost")
CHANGE = (*SEARCH, "es:ESHttpPut", "es:ESHttpDelete", "es:ESHttpHead")
WHY_ALL_PATHS = "The domain's own access control confines the role to this app's indexes."


class Search:
    """Where an app's vectors lie, for the functions that ask or change them: a cluster of one's own."""

    stack: cdk.Stack | None = None

    def __init__(self, config: Config, url: str) -> None:
        self._config, self.url = config, url

    def variables(self) -> Mapping[str, str]:
        """The variables by which a function finds it; `stage` local has an engine of its own."""
        engine = "lucene" if self._config.stage.name == "local" else self._config.app.index.engine
        return {"SEARCH_URL": self.url, "SEARCH_NAME": self._config.prefix, "SEARCH_ENGINE": engine}

    def allow_search(self, function: Function) -> None:
        """Let a function search; a cluster of one's own is told by its owner."""

    def allow_change(self, function: Function) -> None:
        """Let a function build, change and drop indexes; a cluster of one's own is told by its owner."""


class SearchStack(cdk.Stack):
    """A domain of OpenSearch 2.19 that answers signed requests only, each role confined to what it needs.

    The mapping is not here: whoever builds a version of the vectors makes its index, as
    `narrows.adapters.opensearch.mapping` says, here and on a laptop alike.
    """

    def __init__(
        self, scope: Construct, name: str, *, config: Config, data: DataStack, **settings: object
    ) -> None:
        super().__init__(scope, name, **settings)  # type: ignore[arg-type]  # names, environment: as cdk.Stack has them
        self._config, self._stage, self._data = config, config.stage, data
        self._authorise = self._authorise_search()
        self.domain = self._domain()
        self._authorise.function.add_environment("SEARCH_URL", f"https://{self.domain.domain_endpoint}")
        self._may(self._authorise, CHANGE)
        self._alarms()
        self.search = _OfDomain(config, self)
        cdk.CfnOutput(self, "SearchUrl", value=self.search.url)
        cdk.CfnOutput(self, "SearchName", value=config.prefix)

    def grant(self, function: Function, may: str) -> None:
        """Let a function's role "search" or "change", in IAM and in the domain's own access control."""
        self._may(function, SEARCH if may == "search" else CHANGE)
        cdk.CustomResource(
            function,
            "SearchAccess",
            service_token=self._authorise.function.function_arn,
            resource_type="Custom::SearchAccess",
            properties={"Principal": function.role.role_arn, "May": may},
        )

    def _may(self, function: Function, actions: tuple[str, ...]) -> None:
        own = cdk.Stack.of(function) is self
        arn = self.domain.domain_arn if own else self.export_value(self.domain.domain_arn)
        allow(function.role, actions, [f"{arn}/*"], because=WHY_ALL_PATHS)

    def _authorise_search(self) -> Function:
        """The one that writes the domain's roles, and so its master user."""
        return Function(
            self,
            "authorise_search",
            stage=self._stage,
            code=lambda_code(self._stage),
            environment={"SEARCH_NAME": self._config.prefix},
            timeout_s=60,
        )

    def _domain(self) -> opensearch.Domain:
        several = self._stage.search_nodes > 1
        groups = {
            kind: log_group(self, f"{kind}Logs", self._stage) for kind in ("SlowSearch", "SlowIndex", "App")
        }
        written = self._let_domain_write(groups)
        domain = opensearch.Domain(
            self,
            "Domain",
            version=opensearch.EngineVersion.OPENSEARCH_2_19,
            capacity=self._capacity(),
            ebs=opensearch.EbsOptions(
                volume_size=self._stage.search_volume_gb, volume_type=ec2.EbsDeviceVolumeType.GP3
            ),
            zone_awareness=opensearch.ZoneAwarenessConfig(
                enabled=several, availability_zone_count=min(self._stage.search_nodes, 3) if several else None
            ),
            encryption_at_rest=opensearch.EncryptionAtRestOptions(enabled=True, kms_key=self._data.key),
            node_to_node_encryption=True,
            enforce_https=True,
            tls_security_policy=opensearch.TLSSecurityPolicy.TLS_1_2_PFS,
            fine_grained_access_control=opensearch.AdvancedSecurityOptions(
                master_user_arn=self._authorise.role.role_arn
            ),
            logging=opensearch.LoggingOptions(
                slow_search_log_enabled=True,
                slow_search_log_group=groups["SlowSearch"],
                slow_index_log_enabled=True,
                slow_index_log_group=groups["SlowIndex"],
                app_log_enabled=True,
                app_log_group=groups["App"],
            ),
            suppress_logs_resource_policy=True,
            enable_auto_software_update=True,
            # built again from the item vectors, so that keeping it would only keep billing
            removal_policy=cdk.RemovalPolicy.DESTROY,
        )
        domain.node.add_dependency(written)
        cfn = cast(opensearch.CfnDomain, domain.node.default_child)
        cfn.access_policies = self._roles_of_this_account()
        acknowledge(domain, self._accepted(several))
        return domain

    def _roles_of_this_account(self) -> dict[str, Any]:
        """Whom IAM lets in, and nobody by address or unsigned; in a domain's own policy "*" is the domain."""
        root = f"arn:{self.partition}:iam::{self.account}:root"
        statement = {"Effect": "Allow", "Principal": {"AWS": root}, "Action": "es:ESHttp*", "Resource": "*"}
        return {"Version": "2012-10-17", "Statement": [statement]}

    def _capacity(self) -> opensearch.CapacityConfig:
        masters = self._stage.search_masters
        return opensearch.CapacityConfig(
            data_nodes=self._stage.search_nodes,
            data_node_instance_type=self._stage.search_instance,
            master_nodes=masters or None,
            master_node_instance_type=self._stage.search_master_instance if masters else None,
            multi_az_with_standby_enabled=False,
        )

    def _let_domain_write(self, groups: Mapping[str, logs.LogGroup]) -> logs.CfnResourcePolicy:
        document = {
            "Version": "2012-10-17",
            "Statement": [
                {
                    "Effect": "Allow",
                    "Principal": {"Service": "es.amazonaws.com"},
                    "Action": ["logs:PutLogEvents", "logs:CreateLogStream"],
                    "Resource": [group.log_group_arn for group in groups.values()],
                    "Condition": {"StringEquals": {"aws:SourceAccount": self.account}},
                }
            ],
        }
        return logs.CfnResourcePolicy(
            self,
            "DomainLogs",
            policy_name=f"{self._config.prefix}-search",
            policy_document=self.to_json_string(document),
        )

    def _accepted(self, several: bool) -> dict[str, str]:
        reasons = {
            "OS1": "No part of a deployment is in a VPC; every request is signed, and confined by role.",
            "OS3": "Nobody is let in by address: only this account's roles enter, if IAM allows them.",
        }
        if not self._stage.search_masters:
            reasons["OS4"] = (
                f"Stage {self._stage.name}: masters of their own are for clusters that must not fail."
            )
        if not several:
            reasons["OS7"] = f"Stage {self._stage.name} has one node; its index can be built again."
        return reasons

    def _alarms(self) -> None:
        alarms = Alarms(self._stage)
        alarms.on(self, "RedAlarm", self.domain.metric_cluster_status_red(), 0, "A part of the index is gone")
        alarms.on(
            self,
            "FullAlarm",
            self.domain.metric_cluster_index_writes_blocked(),
            0,
            "The index takes no changes",
        )
        memory = self.domain.metric_jvm_memory_pressure()
        alarms.on(self, "MemoryAlarm", memory, 90, "OpenSearch has too little memory: more or larger nodes")


class _OfDomain(Search):
    """The domain of this deployment."""

    def __init__(self, config: Config, stack: SearchStack) -> None:
        super().__init__(config, f"https://{stack.domain.domain_endpoint}")
        self.stack: SearchStack = stack

    def allow_search(self, function: Function) -> None:
        self.stack.grant(function, "search")

    def allow_change(self, function: Function) -> None:
        self.stack.grant(function, "change")
