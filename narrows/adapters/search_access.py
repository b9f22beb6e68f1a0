"""Who may do what in an OpenSearch domain that has access control of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from opensearchpy import NotFoundError, OpenSearch

from narrows.adapters.opensearch import asking
from narrows.errors import InvalidInput

READ = ("read", "indices:admin/get", "indices:admin/mappings/get", "indices:admin/aliases/get")
MAY: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "search": {"cluster": ("cluster_composite_ops_ro",), "index": READ},
    "change": {"cluster": ("cluster_composite_ops", "cluster_monitor"), "index": ("indices_all",)},
}


def allow(client: OpenSearch, name: str, principal: str, may: str) -> str:
    """Let an IAM role "search" or "change" the indexes under this name; the name of what was made for it.

    Doing it again changes nothing. InvalidInput for anything else that it may.
    """
    if may not in MAY:
        raise InvalidInput("May", may, f"choose one of {', '.join(MAY)}")
    role = f"{name}-{may}-{hashlib.sha256(principal.encode()).hexdigest()[:12]}"
    with asking(None):
        client.security.create_role(role, body=_permissions(name, may))
        client.security.create_role_mapping(role, body={"backend_roles": [principal]})
    return role


def disallow(client: OpenSearch, role: str) -> None:
    """Take back what `allow` gave; what is not there any more is fine."""
    for remove in (client.security.delete_role_mapping, client.security.delete_role):
        with asking(None):
            try:
                remove(role)
            except NotFoundError:
                continue


def _permissions(name: str, may: str) -> dict[str, Any]:
    given = MAY[may]
    return {
        "cluster_permissions": list(given["cluster"]),
        "index_permissions": [
            {"index_patterns": [f"{name}-*"], "allowed_actions": list(given["index"])},
        ],
    }
