"""The CDK app: `cdk deploy --all -c app=megashop -c stage=dev`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import aws_cdk as cdk
from cdk_nag import AwsSolutionsChecks

from cdk_app.config import STAGES, Config, load
from cdk_app.stacks.data import DataStack
from cdk_app.stacks.ingest import IngestStack
from cdk_app.stacks.search import Search, SearchStack
from cdk_app.stacks.serving import ServingStack
from cdk_app.stacks.training import TrainingStack
from narrows.settings import SettingsError


def build(app: cdk.App, config: Config) -> Mapping[str, cdk.Stack]:
    """All stacks of one app on one stage, lowest churn first; cdk-nag checks them at synthesis."""
    cdk.Validations.of(app).add_plugins(AwsSolutionsChecks(app))
    common: dict[str, Any] = {"config": config, "termination_protection": config.stage.retain}
    data = DataStack(app, f"{config.prefix}-data", **common)
    search = _search(app, config, data, common)
    ingest = IngestStack(app, f"{config.prefix}-ingest", data=data, search=search, **common)
    serving = ServingStack(app, f"{config.prefix}-serving", data=data, ingest=ingest, search=search, **common)
    training = TrainingStack(app, f"{config.prefix}-training", data=data, search=search, **common)
    cdk.Tags.of(app).add("narrows:app", config.app.name)
    cdk.Tags.of(app).add("narrows:stage", config.stage.name)
    stacks = {"data": data, "ingest": ingest, "serving": serving, "training": training}
    return stacks | ({"search": search.stack} if search and search.stack else {})


def _search(app: cdk.App, config: Config, data: DataStack, common: Mapping[str, Any]) -> Search | None:
    """Where the app's vectors lie, if in OpenSearch; on this machine only where an address says so."""
    if config.app.tiers["vectors"] != "opensearch":
        return None
    if config.stage.search_url:
        return Search(config, config.stage.search_url)
    if config.stage.name == "local":
        return None
    return SearchStack(app, f"{config.prefix}-search", data=data, **common).search


def main() -> None:
    app = cdk.App()
    asked = ("app", "stage", *vars(STAGES["dev"]))
    try:
        config = load({name: app.node.try_get_context(name) for name in asked if name != "name"})
    except SettingsError as error:
        sys.exit(str(error))
    build(app, config)
    app.synth()


if __name__ == "__main__":
    main()
