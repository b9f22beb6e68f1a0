"""What must outlive every other stack: the bucket, the streams, the tables, the key of the pseudonyms."""

from __future__ import annotations

import aws_cdk as cdk
from aws_cdk import aws_dynamodb as dynamodb
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kinesis as kinesis
from aws_cdk import aws_kms as kms
from aws_cdk import aws_s3 as s3
from aws_cdk import aws_secretsmanager as secrets
from constructs import Construct

from cdk_app.blocks import Table, acknowledge, removal
from cdk_app.config import Config
from cdk_app.lake import Lake

EXPIRING = ("landing", "quarantine", "features", "training", "artifacts", "evaluation")


class DataStack(cdk.Stack):
    """State, under one key; every other stack reads and writes here and can be deleted without loss."""

    def __init__(self, scope: Construct, name: str, *, config: Config, **settings: object) -> None:
        super().__init__(scope, name, **settings)  # type: ignore[arg-type]  # names, environment: as cdk.Stack has them
        self._stage = config.stage
        self.key = kms.Key(
            self,
            "Key",
            description=f"{config.prefix}: visitors' data at rest",
            enable_key_rotation=True,
            removal_policy=removal(self._stage),
        )
        self._let_logs_use_key()
        self.bucket = self._bucket()
        self.lake = Lake(self, "Lake", config=config, bucket=self.bucket, key=self.key)
        self.events = self._stream("Events")
        self.decisions = self._stream("Decisions")
        text = dynamodb.AttributeType.STRING
        number = dynamodb.AttributeType.NUMBER
        self.state = self._table("State")
        self.slates = self._table("Slates", dynamodb.Attribute(name="sk", type=text))
        self.policy = self._table("Policy", dynamodb.Attribute(name="sk", type=number))
        self.control = self._table("Control")
        self.items = Table(self, "Items", stage=self._stage, key=self.key, stream=True)
        self.item_stream = self._stream("ItemUpserts") if self._stage.item_stream else None
        self.pseudonym_key = self._pseudonym_key()
        self._outputs()

    def _let_logs_use_key(self) -> None:
        """Glue's log groups are under the key, so CloudWatch Logs must be able to use it for them."""
        groups = f"arn:{self.partition}:logs:{self.region}:{self.account}:log-group:/aws-glue/*"
        self.key.add_to_resource_policy(
            iam.PolicyStatement(
                principals=[iam.ServicePrincipal(f"logs.{self.region}.amazonaws.com")],
                actions=["kms:Encrypt", "kms:Decrypt", "kms:GenerateDataKey", "kms:DescribeKey"],
                resources=["*"],  # in a key's policy: the key itself
                conditions={"ArnLike": {"kms:EncryptionContext:aws:logs:arn": groups}},
            )
        )

    def _bucket(self) -> s3.Bucket:
        days = cdk.Duration.days
        expiring = [
            s3.LifecycleRule(
                id=f"expire-{prefix}", prefix=f"{prefix}/", expiration=days(self._stage.landing_days)
            )
            for prefix in EXPIRING
        ]
        overwritten = s3.LifecycleRule(
            id="forget-overwritten",
            noncurrent_version_expiration=days(7),
            abort_incomplete_multipart_upload_after=days(1),
            expired_object_delete_marker=True,
        )
        return s3.Bucket(
            self,
            "Bucket",
            encryption=s3.BucketEncryption.KMS,
            encryption_key=self.key,
            bucket_key_enabled=True,
            block_public_access=s3.BlockPublicAccess.BLOCK_ALL,
            object_ownership=s3.ObjectOwnership.BUCKET_OWNER_ENFORCED,
            enforce_ssl=True,
            versioned=True,
            lifecycle_rules=[*expiring, overwritten],
            server_access_logs_bucket=self._access_logs(),
            removal_policy=removal(self._stage),
            auto_delete_objects=self._empties,
        )

    def _access_logs(self) -> s3.Bucket:
        bucket = s3.Bucket(
            self,
            "AccessLogs",
            encryption=s3.BucketEncryption.S3_MANAGED,  # S3 delivers access logs to no other
            block_public_access=s3.BlockPublicAccess.BLOCK_ALL,
            object_ownership=s3.ObjectOwnership.BUCKET_OWNER_ENFORCED,
            enforce_ssl=True,
            lifecycle_rules=[s3.LifecycleRule(id="expire", expiration=cdk.Duration.days(30))],
            removal_policy=removal(self._stage),
            auto_delete_objects=self._empties,
        )
        acknowledge(bucket, {"S1": "It receives the access logs; logging it into itself would never end."})
        return bucket

    @property
    def _empties(self) -> bool:
        """Whether deleting the stack empties its buckets; the local cloud is deleted as a folder."""
        return not self._stage.retain and self._stage.name != "local"

    def _stream(self, name: str) -> kinesis.Stream:
        on_demand = self._stage.shards == 0
        stream = kinesis.Stream(
            self,
            name,
            stream_mode=kinesis.StreamMode.ON_DEMAND if on_demand else kinesis.StreamMode.PROVISIONED,
            shard_count=None if on_demand else self._stage.shards,
            retention_period=cdk.Duration.hours(self._stage.stream_hours),
            encryption=kinesis.StreamEncryption.KMS,
            encryption_key=self.key,
            removal_policy=removal(self._stage),
        )
        acknowledge(stream, {"KDS3": "It is under our own key; the rule cannot follow the reference to it."})
        return stream

    def _table(self, name: str, sort_key: dynamodb.Attribute | None = None) -> Table:
        return Table(self, name, stage=self._stage, key=self.key, sort_key=sort_key)

    def _pseudonym_key(self) -> secrets.Secret:
        secret = secrets.Secret(
            self,
            "PseudonymKey",
            description="The HMAC key under which visitors are stored; whoever loses it loses every visitor",
            encryption_key=self.key,
            generate_secret_string=secrets.SecretStringGenerator(
                password_length=64, exclude_punctuation=True
            ),
            removal_policy=removal(self._stage),
        )
        acknowledge(
            secret, {"SMG4": "Another key would give every visitor another pseudonym and forget them all."}
        )
        return secret

    def _outputs(self) -> None:
        values = {
            "BucketName": self.bucket.bucket_name,
            "LakeDatabase": self.lake.database,
            "EventsStreamName": self.events.stream_name,
            "DecisionsStreamName": self.decisions.stream_name,
            "StateTableName": self.state.table_name,
            "SlatesTableName": self.slates.table_name,
            "PolicyTableName": self.policy.table_name,
            "ControlTableName": self.control.table_name,
            "ItemsTableName": self.items.table_name,
            "PseudonymSecretArn": self.pseudonym_key.secret_arn,
        }
        if self.item_stream:
            values["ItemUpsertsStreamName"] = self.item_stream.stream_name
        for name, value in values.items():
            cdk.CfnOutput(self, name, value=value)
