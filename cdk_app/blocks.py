"""The parts that stacks are made of, each written once: table, function, stream consumer, Spark job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import aws_cdk as cdk
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_cloudwatch_actions as cloudwatch_actions
from aws_cdk import aws_dynamodb as dynamodb
from aws_cdk import aws_glue as glue
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kinesis as kinesis
from aws_cdk import aws_kms as kms
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_lambda_event_sources as sources
from aws_cdk import aws_logs as logs
from aws_cdk import aws_s3 as s3
from aws_cdk import aws_sns as sns
from aws_cdk import aws_sqs as sqs
from constructs import Construct

from cdk_app.config import Stage

RUNTIME = lambda_.Runtime.PYTHON_3_14
GLUE_LOGS = ("logs:CreateLogGroup", "logs:CreateLogStream", "logs:PutLogEvents", "logs:AssociateKmsKey")
KEY_READ = ("Decrypt", "DescribeKey")
KEY_WRITE = ("Encrypt", "GenerateDataKey", "GenerateDataKeyWithoutPlaintext", "ReEncryptFrom", "ReEncryptTo")
S3_READ = ("s3:GetObject",)
S3_WRITE = ("s3:PutObject", "s3:AbortMultipartUpload")
LIGHTGBM = "/var/task/lib/lib_lightgbm.so"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
"""A request's matrices are small: more threads wait for one another, for 40 ms where a processor is busy."""


def acknowledge(construct: Construct, reasons: Mapping[str, str]) -> None:
    """Accept findings of cdk-nag on this construct and below it, each with the reason why it is right."""
    for rule, reason in reasons.items():
        cdk.Validations.of(construct).acknowledge(
            cdk.Acknowledgment(id=f"AwsSolutions-{rule}", reason=reason)
        )


def removal(stage: Stage) -> cdk.RemovalPolicy:
    """What becomes of stored data when its stack is deleted."""
    return cdk.RemovalPolicy.RETAIN if stage.retain else cdk.RemovalPolicy.DESTROY


def log_group(scope: Construct, name: str, stage: Stage) -> logs.LogGroup:
    """A log group that keeps the stage's days, and goes with its stack: it holds no visitor's data."""
    days = {
        14: logs.RetentionDays.TWO_WEEKS,
        30: logs.RetentionDays.ONE_MONTH,
        90: logs.RetentionDays.THREE_MONTHS,
    }
    retention = days.get(stage.log_days, logs.RetentionDays.ONE_YEAR)
    return logs.LogGroup(scope, name, retention=retention, removal_policy=cdk.RemovalPolicy.DESTROY)


def allow(
    grantee: iam.Role,
    actions: Sequence[str],
    resources: Sequence[str],
    *,
    conditions: Mapping[str, Mapping[str, str]] | None = None,
    because: str = "",
) -> None:
    """Let a role do these actions on these resources; a resource with a wildcard needs a written reason."""
    for resource in resources:
        text = _as_nag_writes(cdk.Stack.of(grantee).resolve(resource))
        if "*" in text:
            if not because:
                raise ValueError(f"{text}: a wildcard needs a reason; give `because`")
            acknowledge(grantee, {f"IAM5[Resource::{text}]": because})
    grantee.add_to_policy(
        iam.PolicyStatement(actions=list(actions), resources=list(resources), conditions=conditions)
    )


def allow_key(grantee: iam.Role, key: kms.IKey, *, write: bool = True) -> None:
    """Let a role read what `key` encrypts; with `write`, encrypt too. Services ask for these in its name."""
    allow(grantee, [f"kms:{action}" for action in (*KEY_READ, *(KEY_WRITE if write else ()))], [key.key_arn])


def allow_objects(
    grantee: iam.Role,
    bucket: s3.Bucket,
    key: kms.IKey,
    *,
    read: Sequence[str] = (),
    write: Sequence[str] = (),
) -> None:
    """Let a role read and write the objects under these prefixes of the bucket, and list the read ones."""
    exported = cdk.Stack.of(bucket).export_value(bucket.bucket_arn)
    arn = _as_nag_writes(cdk.Stack.of(bucket).resolve(exported))
    for prefix in dict.fromkeys((*read, *write)):
        acknowledge(
            grantee, {f"IAM5[Resource::{arn}/{prefix}/*]": f"Objects below {prefix}/, and nothing else."}
        )
    objects = [[bucket.arn_for_objects(f"{one}/*") for one in prefixes] for prefixes in (read, write)]
    for actions, resources in zip((S3_READ, S3_WRITE), objects, strict=True):
        if resources:
            grantee.add_to_policy(iam.PolicyStatement(actions=list(actions), resources=resources))
    if read:
        allow(grantee, ["s3:ListBucket"], [bucket.bucket_arn])
    allow_key(grantee, key, write=bool(write))


def _as_nag_writes(value: Any) -> str:
    """A resolved value in the words of cdk-nag, whose exact text an acknowledgement must repeat."""
    if isinstance(value, str):
        return value
    name, argument = next(iter(value.items()))
    if name == "Fn::Join":
        return str(argument[0]).join(_as_nag_writes(one) for one in argument[1])
    if name == "Fn::GetAtt":
        return f"<{'.'.join(argument)}>"
    return f"<{argument}>" if name == "Ref" else _as_nag_writes(argument)


@dataclass(frozen=True)
class Alarms:
    """Where this deployment's alarms go; without a topic they show in the console only."""

    stage: Stage

    def on(
        self,
        scope: Construct,
        name: str,
        metric: cloudwatch.IMetric,
        above: float,
        why: str,
        *,
        at_once: bool = False,
    ) -> cloudwatch.Alarm:
        """An alarm when `metric` is above the threshold in two of three periods; no data is no alarm.

        `at_once`: in one, for what does not come again.
        """
        alarm = cloudwatch.Alarm(
            scope,
            name,
            metric=metric,
            threshold=above,
            evaluation_periods=1 if at_once else 3,
            datapoints_to_alarm=1 if at_once else 2,
            comparison_operator=cloudwatch.ComparisonOperator.GREATER_THAN_THRESHOLD,
            treat_missing_data=cloudwatch.TreatMissingData.NOT_BREACHING,
            alarm_description=why,
        )
        if self.stage.alarm_topic_arn:
            topic = sns.Topic.from_topic_arn(scope, f"{name}Topic", self.stage.alarm_topic_arn)
            alarm.add_alarm_action(cloudwatch_actions.SnsAction(topic))
        return alarm


class Table(Construct):
    """A DynamoDB table on demand: encrypted with our key, recoverable to any second, expiring by `ttl`."""

    def __init__(
        self,
        scope: Construct,
        name: str,
        *,
        stage: Stage,
        key: kms.IKey,
        sort_key: dynamodb.Attribute | None = None,
        stream: bool = False,
    ) -> None:
        super().__init__(scope, name)
        self.table = dynamodb.TableV2(
            self,
            "Table",
            partition_key=dynamodb.Attribute(name="pk", type=dynamodb.AttributeType.STRING),
            sort_key=sort_key,
            billing=dynamodb.Billing.on_demand(),
            point_in_time_recovery_specification=dynamodb.PointInTimeRecoverySpecification(
                point_in_time_recovery_enabled=True
            ),
            time_to_live_attribute="ttl",
            dynamo_stream=dynamodb.StreamViewType.NEW_IMAGE if stream else None,
            deletion_protection=stage.retain,
            removal_policy=removal(stage),
        )
        self._key = key
        self._encrypt()

    def _encrypt(self) -> None:
        """Put the table under our key. TableV2 itself can only where the region is known at synthesis."""
        resource = cast(dynamodb.CfnGlobalTable, self.table.node.default_child)
        resource.add_property_override("SSESpecification", {"SSEEnabled": True, "SSEType": "KMS"})
        resource.add_property_override("Replicas.0.SSESpecification.KMSMasterKeyId", self._key.key_arn)

    @property
    def table_name(self) -> str:
        return self.table.table_name

    def allow(self, grantee: iam.Role, *actions: str) -> None:
        """Let `grantee` do these actions, named without their prefix, on this table."""
        self.table.grant(grantee, *(f"dynamodb:{action}" for action in actions))
        writes = any(action.startswith(("Put", "Update", "Delete", "BatchWrite")) for action in actions)
        allow_key(grantee, self._key, write=writes)


class Function(Construct):
    """One of `lambdas/`: its own role, its own log group, the bundle, and the variables its settings name."""

    def __init__(
        self,
        scope: Construct,
        folder: str,
        *,
        stage: Stage,
        code: lambda_.Code,
        environment: Mapping[str, str],
        timeout_s: int,
        memory_mb: int = 512,
        scratch_mb: int = 512,
    ) -> None:
        name = "".join(word.capitalize() for word in folder.split("_"))
        super().__init__(scope, name)
        group = log_group(self, "Logs", stage)
        self.role = iam.Role(self, "Role", assumed_by=iam.ServicePrincipal("lambda.amazonaws.com"))
        group.grant_write(self.role)
        architectures = {"arm64": lambda_.Architecture.ARM_64, "x86_64": lambda_.Architecture.X86_64}
        self.function = lambda_.Function(
            self,
            "Function",
            description=f"lambdas/{folder}",
            code=code,
            handler=f"lambdas.{folder}.handler.handler",
            runtime=RUNTIME,
            architecture=architectures[stage.architecture],
            role=self.role,
            log_group=group,
            environment={
                **environment,
                "POWERTOOLS_SERVICE_NAME": folder,
                "POWERTOOLS_METRICS_NAMESPACE": "Narrows",
                **ONE_THREAD,
            },
            timeout=cdk.Duration.seconds(timeout_s),
            memory_size=memory_mb,
            ephemeral_storage_size=cdk.Size.mebibytes(scratch_mb),
        )


@dataclass(frozen=True)
class Consumption:
    """How a stream is cut into invocations, and when a record is given up; times in seconds.

    Without `attempts` a batch is tried whole until its age gives it up: for functions that fail only while a
    server is away, and for as long as that takes.
    """

    batch: int
    window_s: int
    attempts: int | None = 5
    max_age_s: int = 6 * 3600
    parallel: int = 1


class StreamConsumer(Construct):
    """A stream drives a function: partial failures, retries as its consumption says, a queue for the rest."""

    def __init__(
        self,
        scope: Construct,
        name: str,
        *,
        stage: Stage,
        function: Function,
        stream: kinesis.IStream | Table,
        key: kms.IKey,
        consumption: Consumption,
    ) -> None:
        super().__init__(scope, name)
        self.failures = sqs.Queue(
            self,
            "Failures",
            encryption=sqs.QueueEncryption.SQS_MANAGED,
            enforce_ssl=True,
            retention_period=cdk.Duration.days(14),
        )
        acknowledge(self.failures, {"SQS3": "It is itself the queue for what failed; an alarm watches it."})
        settings: dict[str, Any] = {
            "starting_position": lambda_.StartingPosition.TRIM_HORIZON,
            "batch_size": consumption.batch,
            "max_batching_window": cdk.Duration.seconds(consumption.window_s),
            "bisect_batch_on_error": consumption.attempts is not None,
            "report_batch_item_failures": True,
            "retry_attempts": consumption.attempts,
            "max_record_age": cdk.Duration.seconds(consumption.max_age_s),
            "parallelization_factor": consumption.parallel,
            "on_failure": sources.SqsDlq(self.failures),
        }
        if isinstance(stream, Table):
            function.function.add_event_source(sources.DynamoEventSource(stream.table, **settings))
            listing = "dynamodb:ListStreams knows no resources; CDK grants it with the stream's own actions."
            acknowledge(function.role, {"IAM5[Resource::*]": listing})
        else:
            function.function.add_event_source(sources.KinesisEventSource(stream, **settings))
        allow_key(function.role, key, write=False)
        alarms = Alarms(stage)
        waiting = self.failures.metric_approximate_number_of_messages_visible()
        alarms.on(
            self, "FailuresAlarm", waiting, 0, f"{name}: records were given up; see docs/operations/deploy.md"
        )
        late = cloudwatch.Metric(
            namespace="AWS/Lambda",
            metric_name="IteratorAge",
            dimensions_map={"FunctionName": function.function.function_name},
            statistic="Maximum",
        )
        alarms.on(self, "LateAlarm", late, 60_000, f"{name}: behind the stream by more than a minute")


class SparkJob(Construct):
    """One file of `glue_jobs/` as a Glue job: plain Spark, its own role, continuous logs."""

    def __init__(
        self,
        scope: Construct,
        name: str,
        *,
        stage: Stage,
        script: glue.Code,
        library: glue.Code,
        encryption: glue.ISecurityConfiguration | None,
        arguments: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(scope, name)
        self.role = iam.Role(self, "Role", assumed_by=iam.ServicePrincipal("glue.amazonaws.com"))
        groups = cdk.Stack.of(self).format_arn(service="logs", resource="log-group:/aws-glue/*")
        allow(self.role, GLUE_LOGS, [groups], because="Glue names its own log groups, below /aws-glue/.")
        assets = "arn:<AWS::Partition>:s3:::cdk-hnb659fds-assets-<AWS::AccountId>-<AWS::Region>/*"
        for finding in (
            "Action::s3:GetBucket*",
            "Action::s3:GetObject*",
            "Action::s3:List*",
            f"Resource::{assets}",
        ):
            acknowledge(
                self.role, {f"IAM5[{finding}]": "CDK's grant to read its assets: script and library."}
            )
        self.job = glue.PySparkEtlJob(
            self,
            "Job",
            role=self.role,
            script=script,
            extra_python_files=[library],
            glue_version=glue.GlueVersion.V5_1,
            worker_configuration=glue.WorkerConfiguration(
                worker_type=glue.WorkerType.G_1X, number_of_workers=stage.glue_workers
            ),
            default_arguments=arguments,
            continuous_logging=glue.ContinuousLoggingProps(enabled=True),
            security_configuration=encryption,
            timeout=cdk.Duration.hours(3),
            max_retries=0,
        )
