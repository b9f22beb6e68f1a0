"""The tests themselves cannot reach beyond this machine."""

from __future__ import annotations

import socket

import pytest
from pytest_socket import SocketConnectBlockedError


def test_another_machine_is_out_of_reach() -> None:
    """A documentation address is refused before a packet leaves."""
    with (
        socket.socket() as one,
        pytest.warns(UserWarning, match="192.0.2.1"),
        pytest.raises(SocketConnectBlockedError),
    ):
        one.connect(("192.0.2.1", 80))


def test_this_machine_is_in_reach() -> None:
    """A server of a test is found on the loopback."""
    with socket.socket() as server, socket.socket() as client:
        server.bind(("127.0.0.1", 0))
        server.listen()
        client.connect(server.getsockname())
