"""The Spark jobs over the lake: who reads what, who writes where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import aws_cdk as cdk
from aws_cdk import aws_glue as glue
from aws_cdk import aws_iam as iam
from aws_cdk import aws_s3_assets as assets
from constructs import Construct

from cdk_app.blocks import SparkJob, acknowledge, allow, allow_objects
from cdk_app.bundling import library_archive
from cdk_app.config import ROOT, Config
from cdk_app.stacks.data import DataStack

LOCAL_GLUE = "The local cloud's Glue runs jobs as processes of this machine and encrypts nothing."
LAKE = "lake"


@dataclass(frozen=True)
class Prefixes:
    """What a job reads of the bucket beside the lake and what it writes, by the first part of the key."""

    read: Sequence[str]
    write: Sequence[str]


SCRIPTS: Mapping[str, Prefixes] = {
    "compact_events": Prefixes(["landing"], [LAKE]),
    "check_data_quality": Prefixes([], ["evaluation"]),
    "build_features": Prefixes([], ["features"]),
    "build_training_set": Prefixes(["landing", "catalogue"], ["training"]),
    "measure_skew": Prefixes(["landing", "features"], ["evaluation"]),
}


class SparkJobs(Construct):
    """One Glue job for each script, each with a role that reaches its own prefixes and no others."""

    def __init__(self, scope: Construct, name: str, *, config: Config, data: DataStack) -> None:
        super().__init__(scope, name)
        self._stage, self._data = config.stage, data
        self.app_config = assets.Asset(
            self, "AppConfig", path=str(ROOT / "apps" / config.app.name), exclude=["__pycache__"]
        )
        encryption = self._encryption()
        self._library = glue.Code.from_asset(str(library_archive()))
        self.jobs = {script: self._job(script, one, encryption) for script, one in SCRIPTS.items()}

    def name_of(self, script: str) -> str:
        """The name under which a script is started."""
        return self.jobs[script].job.job_name

    def _job(
        self, script: str, prefixes: Prefixes, encryption: glue.ISecurityConfiguration | None
    ) -> SparkJob:
        job = SparkJob(
            self,
            "".join(word.capitalize() for word in script.split("_")),
            stage=self._stage,
            script=glue.Code.from_asset(str(ROOT / "glue_jobs" / f"{script}.py")),
            library=self._library,
            encryption=encryption,
            arguments=self._data.lake.arguments(),
        )
        self._allow_data(job.role, prefixes)
        stack = cdk.Stack.of(self)
        bucket = f"arn:{stack.partition}:s3:::{self.app_config.s3_bucket_name}"
        allow(job.role, ["s3:GetObject"], [f"{bucket}/{self.app_config.s3_object_key}"])
        return job

    def _allow_data(self, role: iam.Role, prefixes: Prefixes) -> None:
        data = self._data
        (data.lake.allow_write if LAKE in prefixes.write else data.lake.allow_read)(role)
        write = [prefix for prefix in prefixes.write if prefix != LAKE]
        allow_objects(role, data.bucket, data.key, read=[*prefixes.read, *write], write=write)
        for prefix in write:  # overwriting deletes first, and counts are read back
            objects = [data.bucket.arn_for_objects(f"{prefix}/*")]
            role.add_to_policy(iam.PolicyStatement(actions=["s3:DeleteObject"], resources=objects))

    def _encryption(self) -> glue.SecurityConfiguration | None:
        """Everything that Glue writes under our key; the local cloud's Glue has no such thing."""
        if self._stage.name == "local":
            acknowledge(cdk.Stack.of(self), {"GL1": LOCAL_GLUE, "GL3": LOCAL_GLUE})
            return None
        key = self._data.key
        return glue.SecurityConfiguration(
            self,
            "Encryption",
            s3_encryption=glue.S3Encryption.kms(key),
            cloud_watch_encryption=glue.CloudWatchEncryption.kms(key),
            job_bookmarks_encryption=glue.JobBookmarksEncryption.client_side_kms(key),
        )
