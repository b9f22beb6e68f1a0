"""A small CDK app with one resource of each type that the stacks of Narrows use."""

import aws_cdk as cdk
import aws_cdk.aws_apigatewayv2 as apigateway
import aws_cdk.aws_apigatewayv2_authorizers as authorizers
import aws_cdk.aws_apigatewayv2_integrations as integrations
import aws_cdk.aws_applicationautoscaling as scaling
import aws_cdk.aws_cloudwatch as cloudwatch
import aws_cdk.aws_dynamodb as dynamodb
import aws_cdk.aws_events as events
import aws_cdk.aws_events_targets as targets
import aws_cdk.aws_glue as glue
import aws_cdk.aws_iam as iam
import aws_cdk.aws_kinesis as kinesis
import aws_cdk.aws_kms as kms
import aws_cdk.aws_lambda as lambda_
import aws_cdk.aws_lambda_event_sources as sources
import aws_cdk.aws_logs as logs
import aws_cdk.aws_s3 as s3
import aws_cdk.aws_sagemaker as sagemaker
import aws_cdk.aws_scheduler as scheduler
import aws_cdk.aws_scheduler_targets as scheduler_targets
import aws_cdk.aws_secretsmanager as secretsmanager
import aws_cdk.aws_sqs as sqs
import aws_cdk.aws_ssm as ssm
import aws_cdk.aws_stepfunctions as stepfunctions


class Small(cdk.Stack):
    """Everything once."""

    def __init__(self, scope: cdk.App, name: str) -> None:
        super().__init__(scope, name, env=cdk.Environment(account="000000000000", region="us-east-1"))
        gone = cdk.RemovalPolicy.DESTROY
        self.key = kms.Key(self, "Key", removal_policy=gone)
        self.bucket = s3.Bucket(self, "Bucket", enforce_ssl=True, removal_policy=gone, versioned=True)
        self.table = dynamodb.TableV2(
            self,
            "Table",
            partition_key=dynamodb.Attribute(name="pk", type=dynamodb.AttributeType.STRING),
            time_to_live_attribute="ttl",
            removal_policy=gone,
        )
        self.role = iam.Role(self, "Role", assumed_by=iam.ServicePrincipal("states.amazonaws.com"))
        self.function = self.compute()
        self.jobs()
        self.machine = self.workflow()
        self.front()
        self.outputs()

    def compute(self) -> lambda_.Function:
        """A function with an alias, provisioned concurrency, a stream that feeds it, and alarms."""
        function = lambda_.Function(
            self,
            "Promote",
            runtime=lambda_.Runtime.PYTHON_3_12,
            handler="handler.handler",
            code=lambda_.Code.from_asset("functions"),
            environment={"TABLE": self.table.table_name},
            timeout=cdk.Duration.seconds(30),
            log_group=logs.LogGroup(self, "Log", removal_policy=cdk.RemovalPolicy.DESTROY),
        )
        self.table.grant_read_write_data(function)
        alias = lambda_.Alias(
            self,
            "Live",
            alias_name="live",
            version=function.current_version,
            provisioned_concurrent_executions=1,
        )
        alias.add_auto_scaling(max_capacity=2).scale_on_utilization(utilization_target=0.7)
        stream = kinesis.Stream(self, "Stream", shard_count=1, encryption_key=self.key)
        dead = sqs.Queue(self, "Dead", enforce_ssl=True)
        function.add_event_source(
            sources.KinesisEventSource(
                stream,
                starting_position=lambda_.StartingPosition.TRIM_HORIZON,
                on_failure=sources.SqsDlq(dead),
                report_batch_item_failures=True,
                retry_attempts=3,
            )
        )
        cloudwatch.Alarm(self, "Errors", metric=function.metric_errors(), threshold=1, evaluation_periods=1)
        dashboard = cloudwatch.Dashboard(self, "Dashboard")
        dashboard.add_widgets(cloudwatch.GraphWidget(left=[function.metric_invocations()]))
        self.stream = stream
        return function

    def jobs(self) -> None:
        """A Glue job whose script tests put into the bucket, and a model of SageMaker."""
        self.job = glue.CfnJob(
            self,
            "Job",
            role=self.role.role_arn,
            command=glue.CfnJob.JobCommandProperty(
                name="glueetl",
                python_version="3",
                script_location=f"s3://{self.bucket.bucket_name}/code/count.py",
            ),
            default_arguments={"--landing": f"s3://{self.bucket.bucket_name}/landing/"},
            execution_property=glue.CfnJob.ExecutionPropertyProperty(max_concurrent_runs=2),
            glue_version="5.0",
            timeout=10,
        )
        image = sagemaker.CfnModel.ContainerDefinitionProperty(image="any")
        sagemaker.CfnModel(self, "Model", execution_role_arn=self.role.role_arn, primary_container=image)
        target = scaling.ScalableTarget(
            self,
            "TableScaling",
            service_namespace=scaling.ServiceNamespace.DYNAMODB,
            resource_id=f"table/{self.table.table_name}",
            scalable_dimension="dynamodb:table:ReadCapacityUnits",
            min_capacity=1,
            max_capacity=5,
        )
        target.scale_to_track_metric(
            "Tracking",
            target_value=70,
            predefined_metric=scaling.PredefinedMetric.DYNAMODB_READ_CAPACITY_UTILIZATION,
        )

    def workflow(self) -> stepfunctions.StateMachine:
        """The state machine of `workflow.asl.json`, started every night."""
        machine = stepfunctions.StateMachine(
            self,
            "Machine",
            definition_body=stepfunctions.DefinitionBody.from_file("workflow.asl.json"),
            definition_substitutions={
                "Bucket": self.bucket.bucket_name,
                "JobName": self.job.ref,
                "RoleArn": self.role.role_arn,
                "FunctionName": self.function.function_name,
            },
            role=self.role,
        )
        nightly = events.Rule(self, "Nightly", schedule=events.Schedule.cron(minute="0", hour="3"))
        nightly.add_target(targets.SfnStateMachine(machine))
        scheduler.Schedule(
            self,
            "Weekly",
            schedule=scheduler.ScheduleExpression.rate(cdk.Duration.days(7)),
            target=scheduler_targets.StepFunctionsStartExecution(machine),
        )
        return machine

    def front(self) -> None:
        """An HTTP API with access logs, one open route and one that asks IAM; a secret and a parameter."""
        api = apigateway.HttpApi(self, "Api")
        integration = integrations.HttpLambdaIntegration("Integration", self.function)
        api.add_routes(path="/api/health", methods=[apigateway.HttpMethod.GET], integration=integration)
        api.add_routes(
            path="/api/changes",
            methods=[apigateway.HttpMethod.POST],
            integration=integration,
            authorizer=authorizers.HttpIamAuthorizer(),
        )
        stage = api.default_stage.node.default_child
        access = logs.LogGroup(self, "Access", removal_policy=cdk.RemovalPolicy.DESTROY)
        stage.access_log_settings = apigateway.CfnStage.AccessLogSettingsProperty(
            destination_arn=access.log_group_arn, format="$context.requestId"
        )
        self.secret = secretsmanager.Secret(
            self,
            "Pseudonyms",
            generate_secret_string=secretsmanager.SecretStringGenerator(
                password_length=64, exclude_punctuation=True
            ),
        )
        ssm.StringParameter(self, "Parameter", string_value="one")
        self.api = api

    def outputs(self) -> None:
        """The names that a test needs."""
        names = {
            "BucketName": self.bucket.bucket_name,
            "TableName": self.table.table_name,
            "StreamName": self.stream.stream_name,
            "FunctionName": self.function.function_name,
            "JobName": self.job.ref,
            "MachineArn": self.machine.state_machine_arn,
            "RoleArn": self.role.role_arn,
            "SecretName": self.secret.secret_name,
        }
        for name, value in names.items():
            cdk.CfnOutput(self, name, value=value)


app = cdk.App()
Small(app, "Small")
app.synth()
