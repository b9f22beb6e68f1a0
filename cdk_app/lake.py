"""The lake in an account: a folder of the bucket, a database of the Glue catalogue, who may do what there."""

from __future__ import annotations

from collections.abc import Mapping

import aws_cdk as cdk
from aws_cdk import aws_glue as glue
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_s3 as s3
from constructs import Construct

from cdk_app.blocks import allow, allow_objects, removal
from cdk_app.config import Config

PREFIX = "lake"
TABLES = ("events", "items", "quarantine")
"""As `glue_jobs/lake.py` names them."""
CATALOG_READ = ("glue:GetDatabase", "glue:GetTable")
CATALOG_WRITE = ("glue:CreateTable", "glue:UpdateTable")


class Lake(Construct):
    """Iceberg tables that the Glue jobs share; the jobs create them, so that a stack never replaces one."""

    def __init__(
        self, scope: Construct, name: str, *, config: Config, bucket: s3.Bucket, key: kms.IKey
    ) -> None:
        super().__init__(scope, name)
        self._bucket, self._key = bucket, key
        self._on_files = config.stage.name == "local"
        self.location = f"s3://{bucket.bucket_name}/{PREFIX}/"
        self.database = config.prefix.replace("-", "_")
        glue.Database(
            self,
            "Database",
            database_name=self.database,
            description=f"{config.prefix}: events as they happened",
            location_uri=self.location,
            removal_policy=removal(config.stage),
        )

    def arguments(self) -> Mapping[str, str]:
        """What a job is told of it: format, place, database; on this machine it lies in files alone."""
        database = {} if self._on_files else {"--database": self.database}
        return {"--datalake-formats": "iceberg", "--lake": self.location, **database}

    def allow_read(self, role: iam.Role) -> None:
        """Let a role read the tables."""
        allow_objects(role, self._bucket, self._key, read=[PREFIX])
        allow(role, CATALOG_READ, self._catalog(role))

    def allow_write(self, role: iam.Role) -> None:
        """Let a role create the tables, change them, and remove files that no snapshot needs any more."""
        allow_objects(role, self._bucket, self._key, read=[PREFIX], write=[PREFIX])
        delete = iam.PolicyStatement(
            actions=["s3:DeleteObject"], resources=[self._bucket.arn_for_objects(f"{PREFIX}/*")]
        )
        role.add_to_policy(delete)  # the prefix is acknowledged by `allow_objects`
        allow(role, (*CATALOG_READ, *CATALOG_WRITE), self._catalog(role))

    def _catalog(self, role: iam.Role) -> list[str]:
        """Our tables, and what the catalogue's own rules ask for above them."""
        stack = cdk.Stack.of(role)
        tables = [f"table/{self.database}/{name}" for name in TABLES]
        parts = ["catalog", f"database/{self.database}", *tables]
        return [stack.format_arn(service="glue", resource=part) for part in parts]
