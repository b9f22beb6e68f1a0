"""A contract protects only those who subscribe to it."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

from narrows.adapters import (
    control,
    dynamodb,
    faiss,
    items,
    kinesis,
    memory,
    memory_vectors,
    opensearch,
    opensearch_versions,
    s3,
    sqs,
)

HERE = Path(__file__).parent
ADAPTERS = {
    name
    for module in (
        control,
        dynamodb,
        faiss,
        items,
        kinesis,
        memory,
        memory_vectors,
        opensearch,
        opensearch_versions,
        s3,
        sqs,
    )
    for name, one in inspect.getmembers(module, inspect.isclass)
    if one.__module__ == module.__name__ and not name.startswith("_")
}
NOT_STORES = {"LambdaExtension", "OpenSearchVectorIndex"}
"""No store; made by OpenSearchIndexVersions alone, whose suite's fixtures open it."""


def subscribed() -> set[str]:
    """The classes that a subscriber's fixture builds or is given."""
    names: set[str] = set()
    for path in HERE.glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            bases = [base.id for base in getattr(node, "bases", []) if isinstance(base, ast.Name)]
            if isinstance(node, ast.ClassDef) and any(base.endswith("Contract") for base in bases):
                names |= {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}
    return names


@pytest.mark.parametrize("adapter", sorted(ADAPTERS - NOT_STORES))
def test_every_adapter_subscribes_to_its_contract(adapter: str) -> None:
    """A new store without its suite fails here."""
    assert adapter in subscribed()
