"""What those who read texts need where an app asks for a sentence encoder: its packages, or its endpoint."""

from __future__ import annotations

import aws_cdk as cdk
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_

from cdk_app.blocks import allow
from cdk_app.bundling import lambda_code
from cdk_app.config import Config


def reading_code(config: Config) -> lambda_.Code:
    """The bundle of a function that reads texts; that of all others where no ONNX file does."""
    return lambda_code(config.stage, text=config.app.text_vectors.encoder == "onnx")


def allow_endpoint(role: iam.Role, config: Config) -> None:
    """Let a role ask the app's SageMaker endpoint, where it has one; an HTTP endpoint asks for no role."""
    name = config.app.text_vectors.sagemaker
    if name:
        stack = cdk.Stack.of(role)
        endpoint = stack.format_arn(service="sagemaker", resource="endpoint", resource_name=name.lower())
        allow(role, ["sagemaker:InvokeEndpoint"], [endpoint])
