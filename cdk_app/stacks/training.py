"""The nightly loop: training set, models, evaluation, and the pointer that promotes one."""

from __future__ import annotations

import aws_cdk as cdk
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_iam as iam
from aws_cdk import aws_s3_assets as assets
from aws_cdk import aws_scheduler as scheduler
from aws_cdk import aws_scheduler_targets as targets
from aws_cdk import aws_sqs as sqs
from aws_cdk import aws_stepfunctions as sfn
from constructs import Construct

from cdk_app.blocks import Alarms, Function, acknowledge, allow, allow_objects, log_group
from cdk_app.bundling import source_archive
from cdk_app.config import ROOT, Config
from cdk_app.stacks.data import DataStack
from cdk_app.stacks.search import Search
from cdk_app.stacks.spark_jobs import SparkJobs
from cdk_app.text_encoder import allow_endpoint, reading_code

DEFINITION = ROOT / "stepfunctions" / "train_and_promote.asl.json"
STEPS = ("compact_events", "check_data_quality", "build_features", "build_training_set", "measure_skew")
METRICS = "Narrows"
JOBS = "narrows-*"  # the prefix that the definition gives the training jobs' names


class TrainingStack(cdk.Stack):
    """Glue builds, SageMaker trains, Step Functions leads, one function promotes."""

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
        self._config, self._stage, self._data = config, config.stage, data
        by_file = config.app.text_vectors.encoder == "onnx"
        self._source = assets.Asset(self, "Source", path=str(source_archive(text=by_file)))
        self.spark = SparkJobs(self, "Spark", config=config, data=data)
        self.training_role = self._training_role()
        self.promote_model = self._promote_model(search)
        self.state_machine = self._state_machine()
        self._schedule()
        failed = self.state_machine.metric_failed(period=cdk.Duration.hours(1))
        why = "Training failed; the live model stays"
        Alarms(self._stage).on(self, "FailedAlarm", failed, 0, why, at_once=True)
        self._watch_skew()
        cdk.CfnOutput(self, "StateMachineArn", value=self.state_machine.state_machine_arn)
        for script in self.spark.jobs:
            cdk.CfnOutput(self, f"{_words(script)}Job", value=self.spark.name_of(script))
        cdk.CfnOutput(self, "PromoteModelFunction", value=self.promote_model.function.function_name)

    def _training_role(self) -> iam.Role:
        """What the training jobs may do: read sets, models and code, write artifacts, log."""
        role = iam.Role(self, "TrainingRole", assumed_by=iam.ServicePrincipal("sagemaker.amazonaws.com"))
        data = self._data
        allow_objects(
            role, data.bucket, data.key, read=["training", "artifacts", "models"], write=["artifacts"]
        )
        allow(role, ["kms:CreateGrant"], [data.key.key_arn])  # the volumes' encryption
        self._allow_asset(role, self._source)
        groups = self.format_arn(service="logs", resource="log-group:/aws/sagemaker/TrainingJobs*")
        streams = ["logs:CreateLogGroup", "logs:CreateLogStream", "logs:PutLogEvents"]
        allow(role, streams, [groups], because="SageMaker names the streams itself, in this group.")
        in_sagemaker = {"StringEquals": {"cloudwatch:namespace": "/aws/sagemaker/TrainingJobs"}}
        no_resource = "The action knows no resources; PutMetricData is held to SageMaker's namespace."
        allow(role, ["cloudwatch:PutMetricData"], ["*"], conditions=in_sagemaker, because=no_resource)
        allow(role, ["ecr:GetAuthorizationToken"], ["*"], because=no_resource)
        image = self.format_arn(
            service="ecr",
            account=self._stage.training_image_account,
            resource="repository",
            resource_name=self._stage.training_image.partition(":")[0],
        )
        allow_endpoint(role, self._config)
        pull = ("BatchGetImage", "GetDownloadUrlForLayer", "BatchCheckLayerAvailability")
        allow(role, [f"ecr:{action}" for action in pull], [image])
        return role

    def _promote_model(self, search: Search | None) -> Function:
        """It also builds the index of the model's item vectors, where the app has one."""
        data = self._data
        reads = ["artifacts", *(["snapshots"] if search else [])]
        function = Function(
            self,
            "promote_model",
            stage=self._stage,
            code=reading_code(self._config),
            environment={
                "APP": self._config.app.name,
                "BUCKET": data.bucket.bucket_name,
                "CONTROL_TABLE": data.control.table_name,
                **({**search.variables(), "ITEM_WINDOW_S": str(self._stage.item_window_s)} if search else {}),
            },
            timeout_s=900 if search else 300,
            memory_mb=3008 if search else 1024,  # a million items of 128 numbers take 1.9 GB
            scratch_mb=4096,
        )
        data.control.allow(function.role, "GetItem", "PutItem")
        allow_objects(function.role, data.bucket, data.key, read=reads, write=["models"])
        allow_endpoint(function.role, self._config)
        if search:
            search.allow_change(function)
        return function

    def _state_machine(self) -> sfn.StateMachine:
        role = iam.Role(self, "TrainAndPromoteRole", assumed_by=iam.ServicePrincipal("states.amazonaws.com"))
        self._allow_steps(role)
        return sfn.StateMachine(
            self,
            "TrainAndPromote",
            role=role,
            definition_body=sfn.DefinitionBody.from_string(DEFINITION.read_text()),
            definition_substitutions=self._substitutions(),
            logs=sfn.LogOptions(
                destination=log_group(self, "TrainAndPromoteLogs", self._stage),
                level=sfn.LogLevel.ALL,
                include_execution_data=True,
            ),
            tracing_enabled=True,
            timeout=cdk.Duration.hours(20),
        )

    def _substitutions(self) -> dict[str, str]:
        image, account = self._stage.training_image, self._stage.training_image_account
        return {
            "App": self._config.app.name,
            "BucketName": self._data.bucket.bucket_name,
            "ControlTable": self._data.control.table_name,
            "KeyArn": self._data.key.key_arn,
            "AppConfigUri": self.spark.app_config.s3_object_url,
            "SourceUri": self._source.s3_object_url,
            "TrainingImage": f"{account}.dkr.ecr.{cdk.Aws.REGION}.{cdk.Aws.URL_SUFFIX}/{image}",
            "TrainingInstance": self._stage.training_instance,
            "TuningBudgetS": str(self._stage.tuning_budget_s),
            "LearnedBudgetS": str(self._stage.learned_budget_s),
            "LearnedSources": " ".join(self._config.app.training.learned) or "none",
            "RankerRows": str(self._stage.ranker_rows),
            "SkewRate": str(self._stage.skew_rate),
            "TrainingRoleArn": self.training_role.role_arn,
            "PromoteModelFunction": self.promote_model.function.function_arn,
            **{f"{_words(script)}Job": self.spark.name_of(script) for script in STEPS},
        }

    def _allow_steps(self, role: iam.Role) -> None:
        """What each state of the definition does, on what it does it, and nothing else."""
        self._data.control.allow(role, "GetItem")
        names = [self.spark.name_of(script) for script in STEPS]
        jobs = [self.format_arn(service="glue", resource="job", resource_name=name) for name in names]
        runs = ["glue:StartJobRun", "glue:GetJobRun", "glue:GetJobRuns", "glue:BatchStopJobRun"]
        allow(role, runs, jobs)
        trainings = self.format_arn(service="sagemaker", resource="training-job", resource_name=JOBS)
        verbs = ("CreateTrainingJob", "DescribeTrainingJob", "StopTrainingJob", "AddTags")
        named = "Every run names its jobs; all of them start with this prefix."
        allow(role, [f"sagemaker:{verb}" for verb in verbs], [trainings], because=named)
        to_sagemaker = {"StringEquals": {"iam:PassedToService": "sagemaker.amazonaws.com"}}
        allow(role, ["iam:PassRole"], [self.training_role.role_arn], conditions=to_sagemaker)
        rule = self.format_arn(
            service="events",
            resource="rule",
            resource_name="StepFunctionsGetEventsForSageMakerTrainingJobsRule",
        )
        allow(role, ["events:PutTargets", "events:PutRule", "events:DescribeRule"], [rule])
        allow(role, ["lambda:InvokeFunction"], [self.promote_model.function.function_arn])
        ours = {"StringEquals": {"cloudwatch:namespace": METRICS}}
        no_resource = "The action knows no resources; it is held to our own namespace."
        allow(role, ["cloudwatch:PutMetricData"], ["*"], conditions=ours, because=no_resource)
        tracing = "Log delivery and tracing know no resources; CDK grants them to every state machine."
        acknowledge(role, {"IAM5[Resource::*]": tracing})

    def _allow_asset(self, role: iam.Role, asset: assets.Asset) -> None:
        """Read one file of CDK's bucket, where `grant_read` would give the whole bucket."""
        bucket = f"arn:{self.partition}:s3:::{asset.s3_bucket_name}"
        allow(role, ["s3:GetObject"], [f"{bucket}/{asset.s3_object_key}"])

    def _watch_skew(self) -> None:
        """The workflow counts a night whose skew report is not exact, or was not made, and goes on."""
        skewed = cloudwatch.Metric(
            namespace=METRICS,
            metric_name="SkewFailed",
            dimensions_map={"Bucket": self._data.bucket.bucket_name},
            statistic="Sum",
            period=cdk.Duration.hours(1),
        )
        why = "Served features differ from the lake's, or were not compared; see docs/operations/skew.md"
        Alarms(self._stage).on(self, "SkewAlarm", skewed, 0, why, at_once=True)

    def _schedule(self) -> None:
        """Nightly; the scheduler's own id names the run, since two runs must never share a name."""
        run = scheduler.ScheduleTargetInput.from_object({"run": "nightly-<aws.scheduler.execution-id>"})
        failures = sqs.Queue(
            self, "ScheduleFailures", encryption=sqs.QueueEncryption.SQS_MANAGED, enforce_ssl=True
        )
        acknowledge(failures, {"SQS3": "It is itself the queue for starts that failed."})
        scheduler.Schedule(
            self,
            "Nightly",
            schedule=scheduler.ScheduleExpression.cron(hour="3", minute="0"),
            target=targets.StepFunctionsStartExecution(
                self.state_machine,
                input=run,
                retry_attempts=3,
                max_event_age=cdk.Duration.hours(2),
                dead_letter_queue=failures,
            ),
            enabled=self._stage.schedule_training,
            description="Train and promote every night",
        )


def _words(script: str) -> str:
    return "".join(word.capitalize() for word in script.split("_"))
