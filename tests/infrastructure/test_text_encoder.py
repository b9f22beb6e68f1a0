"""What a sentence encoder needs in AWS, and that nobody else gets it."""

from __future__ import annotations

import json
import re
import tarfile
from dataclasses import replace

import aws_cdk as cdk
import pytest
from aws_cdk import assertions
from aws_cdk import aws_iam as iam

from cdk_app import bundling
from cdk_app.config import ROOT, Config, load
from cdk_app.text_encoder import allow_endpoint
from narrows.text_settings import TextSettings


def config_with(settings: TextSettings) -> Config:
    """An app that asks for this encoder."""
    config = load({"app": "media", "stage": "dev"})
    return replace(config, app=replace(config.app, text_vectors=settings))


@pytest.mark.parametrize("sagemaker", ["", "MiniLM-v2"])
def test_only_an_endpoint_of_sagemaker_asks_for_a_permission(sagemaker: str) -> None:
    """To invoke that endpoint, whose name stands in small letters in its ARN, and no other."""
    stack = cdk.Stack(cdk.App(), "Stack", env=cdk.Environment(account="111111111111", region="eu-west-1"))
    role = iam.Role(stack, "Role", assumed_by=iam.ServicePrincipal("lambda.amazonaws.com"))
    allow_endpoint(role, config_with(TextSettings("endpoint", sagemaker=sagemaker)))
    policies = assertions.Template.from_stack(stack).find_resources("AWS::IAM::Policy")
    if not sagemaker:
        assert policies == {}
        return
    ((policy,),) = ([one["Properties"]["PolicyDocument"]["Statement"] for one in policies.values()],)
    assert policy[0]["Action"] == "sagemaker:InvokeEndpoint"
    assert "endpoint/minilm-v2" in json.dumps(policy[0]["Resource"])


def pins(name: str) -> dict[str, str]:
    """Package -> version, of a lock."""
    text = (ROOT / "requirements" / name).read_text()
    return dict(re.findall(r"^([a-z0-9-]+)==([^ ]+)", text, re.MULTILINE))


@pytest.mark.parametrize("name", ["lambda-text.txt", "training-text.txt"])
def test_what_is_deployed_is_what_is_tested(name: str) -> None:
    """The run time and the tokenizer have the versions of the environment that the tests run in."""
    tested = pins("dev.txt")
    deployed = pins(name)
    assert {"onnxruntime", "tokenizers"} <= deployed.keys()
    assert {package: tested[package] for package in deployed} == deployed


def test_training_takes_the_run_time_along_where_it_reads_texts_by_it() -> None:
    """The archive's requirements hold it then, and only then."""
    for text in (False, True):
        with tarfile.open(bundling.source_archive(text=text)) as archive:
            pinned = archive.extractfile("requirements.txt")
            assert pinned is not None
            assert (b"onnxruntime==" in pinned.read()) is text


def test_functions_that_read_no_texts_do_not_carry_the_run_time() -> None:
    """The lock of all functions has neither."""
    assert not {"onnxruntime", "tokenizers"} & pins("lambda.txt").keys()
