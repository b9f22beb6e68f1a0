"""The key of the pseudonyms, from AWS Secrets Manager."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from narrows.adapters.aws import translated
from narrows.errors import StoreUnavailable


class SecretKey:
    """A secret that is read once, when first needed; after a failure not again for `pause_s` seconds."""

    def __init__(self, client: Any, name: str, *, clock: Callable[[], float], pause_s: float = 2.0) -> None:
        self._client = client
        self._name = name
        self._clock = clock
        self._pause_s = pause_s
        self._key = b""
        self._reading = threading.Lock()
        self._not_before = float("-inf")

    def at_hand(self) -> bytes:
        """The key without waiting for it; StoreUnavailable while it is only being read in the background."""
        if self._key:
            return self._key
        if self._clock() >= self._not_before and not self._reading.locked():
            threading.Thread(target=self._try, name="secret", daemon=True).start()
        raise StoreUnavailable(f"secret {self._name}: not read yet")

    def get(self) -> bytes:
        """The key; StoreUnavailable while it cannot be read."""
        if self._key:
            return self._key
        if self._clock() < self._not_before:
            raise StoreUnavailable(f"secret {self._name}: not read a moment ago, waiting")
        with self._reading:
            try:
                with translated(f"read secret {self._name}"):
                    answer = self._client.get_secret_value(SecretId=self._name)
                self._key = answer.get("SecretBinary") or answer["SecretString"].encode()
            except StoreUnavailable:
                self._not_before = self._clock() + self._pause_s
                raise
        return self._key

    def _try(self) -> None:
        with suppress(StoreUnavailable):  # the next request tries again, after the pause
            self.get()
