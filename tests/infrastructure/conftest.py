"""The stacks of every stage, synthesised once for the session with cdk-nag's findings as errors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import aws_cdk as cdk
import pytest

from cdk_app.app import build
from cdk_app.config import Config, load
from narrows.index_settings import IndexSettings

ROOT = Path(__file__).parents[2]
CONTEXT = json.loads((ROOT / "cdk.json").read_text())["context"]


@dataclass(frozen=True)
class Synthesised:
    """The templates of one stage by stack: data, ingest, serving, training, and search where there is one."""

    config: Config
    templates: Mapping[str, Mapping[str, Any]]

    def of_type(self, kind: str, *stacks: str) -> dict[str, dict[str, Any]]:
        """The resources of this type, by "<stack>/<logical id>", in these stacks or all."""
        return {
            f"{stack}/{name}": resource
            for stack, template in self.templates.items()
            if not stacks or stack in stacks
            for name, resource in template["Resources"].items()
            if resource["Type"] == kind
        }

    def functions(self) -> dict[str, dict[str, Any]]:
        """Our functions by their folder in lambdas/; CDK's own are left out."""
        ours = {}
        for resource in self.of_type("AWS::Lambda::Function").values():
            package, _, module = resource["Properties"]["Handler"].partition(".")
            if package == "lambdas":
                ours[module.partition(".")[0]] = resource["Properties"]
        return ours


def synthesise(
    outdir: Path, *, vectors: str = "", index: IndexSettings | None = None, **context: str
) -> Synthesised:
    """Build and synthesise without bundling; raises when cdk-nag finds something nobody acknowledged.

    `vectors` puts the app's vectors on that tier, `index` says how they lie there, whatever its file says.
    """
    asked = {**CONTEXT, **context}
    app = cdk.App(outdir=str(outdir), context={**asked, "aws:cdk:bundling-stacks": []})
    config = load(asked)
    if vectors:
        config = replace(config, app=replace(config.app, tiers={**config.app.tiers, "vectors": vectors}))
    if index:
        config = replace(config, app=replace(config.app, index=index))
    stacks = build(app, config)
    assembly = app.synth()
    templates = {
        name: json.loads(Path(assembly.get_stack_by_name(stack.stack_name).template_full_path).read_text())
        for name, stack in stacks.items()
    }
    return Synthesised(config, templates)


@pytest.fixture(scope="session")
def dev(tmp_path_factory: pytest.TempPathFactory) -> Synthesised:
    return synthesise(tmp_path_factory.mktemp("dev") / "cdk.out", stage="dev")


@pytest.fixture(scope="session")
def prod(tmp_path_factory: pytest.TempPathFactory) -> Synthesised:
    return synthesise(tmp_path_factory.mktemp("prod") / "cdk.out", stage="prod")


@pytest.fixture(scope="session")
def local(tmp_path_factory: pytest.TempPathFactory) -> Synthesised:
    return synthesise(tmp_path_factory.mktemp("local") / "cdk.out", stage="local")
