"""Synthesis anywhere: no network, no credentials, no Docker, and the same template every time."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.infrastructure.conftest import CONTEXT, ROOT, Synthesised

WITHOUT_NETWORK = """
import socket, sys
def refuse(*_, **__):
    raise OSError("synthesis opened a socket")
socket.socket.connect = socket.getaddrinfo = refuse
from cdk_app.app import main
sys.argv = ["app"]
main()
"""


def isolated() -> list[str]:
    """A command prefix that takes the network away from the process and its Node, where this machine can."""
    unshare = shutil.which("unshare")
    prefix = [unshare, "--user", "--map-root-user", "--net"] if unshare else []
    works = prefix and not subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode
    return prefix if works else []


def test_synthesis_needs_neither_network_nor_credentials(dev: Synthesised, tmp_path: Path) -> None:
    """In an empty environment without network it gives the templates that this session's synthesis gave."""
    home, outdir = tmp_path / "home", tmp_path / "cdk.out"
    home.mkdir()
    context = {**CONTEXT, "stage": "dev", "aws:cdk:bundling-stacks": []}
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.defpath}",
        "HOME": str(home),
        "CDK_CONTEXT_JSON": json.dumps(context),
        "CDK_OUTDIR": str(outdir),
    }
    done = subprocess.run(
        [*isolated(), sys.executable, "-c", WITHOUT_NETWORK],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for name, template in dev.templates.items():
        written = json.loads((outdir / f"narrows-megashop-dev-{name}.template.json").read_text())
        assert written == template, name


def test_templates_name_no_account_and_no_region(dev: Synthesised) -> None:
    """The same templates deploy into any account and region: both are references."""
    text = json.dumps(dev.templates)
    assert "us-east-1" not in text
    assert "000000000000" not in text


def test_a_mistake_in_the_context_is_told_without_a_stack_trace(tmp_path: Path) -> None:
    """The command ends with the problem and its remedy on stderr, and writes no template."""
    environment = {**os.environ, "CDK_CONTEXT_JSON": json.dumps({**CONTEXT, "stage": "nowhere"})}
    done = subprocess.run(
        [sys.executable, "-m", "cdk_app.app"],
        cwd=ROOT,
        env={**environment, "CDK_OUTDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "choose a stage with -c stage=NAME" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_app_looks_nothing_up() -> None:
    """No context look-ups: they would need an account at synthesis."""
    assert not (ROOT / "cdk.context.json").exists()
    sources = "".join(path.read_text() for path in (ROOT / "cdk_app").rglob("*.py"))
    assert ".from_lookup(" not in sources
