"""What every test runs under: nothing beyond this machine, and a report of the servers that took part."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
from pytest_socket import socket_allow_hosts
from xdist.scheduler import LoadFileScheduling

from tests import servers
from tests.servers import dynamodb_local, ministack, moto, opensearch

__all__ = ["dynamodb_local", "ministack", "moto", "opensearch"]

PROGRAMS = {"spark": "Spark", "local": "the local cloud", "browser": "Chromium"}
LONG = ("tests/e2e/", "tests/workflows/", "tests/test_parity.py", "tests/infrastructure/")
LOOPBACK = ["127.0.0.1", "localhost", "::1"]

hypothesis.settings.register_profile(
    "narrows",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    derandomize=True,
    database=None,
)
hypothesis.settings.load_profile("narrows")


class ByFile(LoadFileScheduling):
    """How processes share the tests: by file, but one has all that need the whole local cloud."""

    def _split_scope(self, nodeid: str) -> str:
        return "e2e" if nodeid.startswith("tests/e2e/") else str(super()._split_scope(nodeid))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    """Asked for where `--numprocesses` is given."""
    config.option.loadscopereorder = False  # in the order of `LONG`, not of how many tests a file has
    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, so that no process waits for another's last one.

    PySpark leaves the sockets by which it collects rows to the garbage collector, which says so.
    """
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))
    for item in items:
        if item.get_closest_marker("spark"):
            item.add_marker(pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning"))


def pytest_runtest_setup() -> None:
    """No test reaches beyond this machine."""
    socket_allow_hosts(LOOPBACK, allow_unix_socket=True)


@pytest.fixture(scope="session", autouse=True)
def temporary_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Handlers that tests load keep files as long as a Lambda lives: where pytest clears away."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[Any]:
    """Count the tests that really ran against each server."""
    outcome = yield
    for fixture in getattr(item, "fixturenames", ()):
        if fixture in servers.NAMES:
            servers.used[servers.NAMES[fixture]] += 1
    for marker, program in PROGRAMS.items():
        if item.get_closest_marker(marker):
            servers.started.setdefault(program, "processes on this machine")
            servers.used[program] += 1
    return outcome


def pytest_sessionfinish(session: pytest.Session) -> None:
    """What a process that has a share of the tests has seen of the servers goes to the one that reports."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["servers"] = servers.seen()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over what such a process has seen; one that died has told nothing."""
    servers.add(getattr(node, "workeroutput", {}).get("servers", ({}, {}, {})))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say what ran against which real server, and what could not."""
    if not servers.started and not servers.missing:
        return
    terminalreporter.section("what ran against which real server")
    for name, where in sorted(servers.started.items()):
        terminalreporter.write_line(f"{name} ({where}): {servers.used[name]} tests")
    for name, reason in sorted(servers.missing.items()):
        terminalreporter.write_line(f"{name}: NOT RUN, {reason}")
