"""Where the local cloud's index of vectors has an item: what `narrows freshness` looks at beside the API."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from narrows.adapters.aws import client
from narrows.adapters.dynamodb import DynamoPolicyLog
from narrows.adapters.items import DynamoItemTable
from narrows.adapters.opensearch import OpenSearchVectorIndex
from narrows.adapters.opensearch_versions import index_versions
from narrows.cli.deployment import TIMEOUT_S, Deployment
from narrows.settings import App


class DeployedIndex:
    """The live index, asked by the rows that the table of items gives."""

    def __init__(self, index: OpenSearchVectorIndex, table: DynamoItemTable) -> None:
        self._index, self._table = index, table
        self._rows: dict[str, int] = {}

    @classmethod
    def of(cls, app: App, deployment: Deployment, url: str) -> DeployedIndex:
        """IndexGone before the first model that has one; StoreUnavailable where it does not answer."""
        functions = client("lambda", read_timeout_s=TIMEOUT_S, connect_timeout_s=2.0, attempts=3)
        name = deployment.output("PromoteModelFunction")
        told = functions.get_function_configuration(FunctionName=name)["Environment"]["Variables"]
        versions = index_versions(
            app.index, url=url, name=told["SEARCH_NAME"], engine=told["SEARCH_ENGINE"], search_s=TIMEOUT_S
        )
        dynamodb = client("dynamodb", read_timeout_s=TIMEOUT_S, connect_timeout_s=2.0, attempts=3)
        log = DynamoPolicyLog(dynamodb, deployment.output("PolicyTableName"), replica=0)
        return cls(versions.open(), DynamoItemTable(dynamodb, deployment.output("ItemsTableName"), log))

    def found(self, item_ids: Sequence[str]) -> set[str]:
        """Those of the items that a search can find by now."""
        unknown = [item_id for item_id in item_ids if item_id not in self._rows]
        self._rows |= {item_id: entry.row for item_id, entry in self._table.read(unknown).items()}
        known = [item_id for item_id in item_ids if item_id in self._rows]
        there = self._index.finds(np.asarray([self._rows[item_id] for item_id in known], np.int32))
        return {item_id for item_id, held in zip(known, there, strict=True) if held}
