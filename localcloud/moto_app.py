"""moto's services inside this process, without a port of their own."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.test import Client

from localcloud.services import Answer


class Moto:
    """Answers requests with moto, as its server would."""

    def __init__(self, *, region: str) -> None:
        self._app = DomainDispatcherApplication(create_backend_app)
        self._region = region

    async def handle(
        self, method: str, path: str, headers: dict[str, str], body: bytes, query: dict[str, Any]
    ) -> Answer:
        """A service handler of the emulator's kind."""
        return await asyncio.to_thread(self.request, method, path, headers, body, query)

    def request(
        self, method: str, path: str, headers: dict[str, str], body: bytes, query: dict[str, Any]
    ) -> Answer:
        """One HTTP request and its answer."""
        kept = {name: value for name, value in headers.items() if name.lower() != "content-length"}
        response = Client(self._app).open(path, method=method, headers=kept, data=body, query_string=query)
        answered = {name: value for name, value in response.headers if name.lower() != "content-length"}
        return response.status_code, answered, response.data

    def call(self, service: str, target: str, request: dict[str, Any]) -> dict[str, Any]:
        """One operation of a JSON service; raises ValueError with the error's name and text."""
        scope = f"local/20260101/{self._region}/{service}/aws4_request"
        headers = {
            "authorization": f"AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=0",
            "content-type": "application/x-amz-json-1.1",
            "host": f"{service}.{self._region}.amazonaws.com",
            "x-amz-target": target,
        }
        status, _, body = self.request("POST", "/", headers, json.dumps(request).encode(), {})
        content: dict[str, Any] = json.loads(body or b"{}")
        if status >= 400:
            error, text = content.get("__type", status), content.get("message") or content.get("Message")
            raise ValueError(f"{target} was refused: {error}: {text}")
        return content
