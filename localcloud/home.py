"""The home folder of a local cloud: its lock, its state file, and what is removed when it ends."""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from localcloud.processes import is_running, signal_group
from narrows.errors import NarrowsError


class StartError(NarrowsError):
    """The local cloud did not come up; says which part failed and where its log is."""


def clean(home: Path, *, keep_logs: bool = False) -> None:
    """Remove what an earlier run left: its processes, if any still run, its state and its temporary files."""
    state = read_state(home)
    for each in state.get("parts", []):
        if is_running(each["pid"], each["started"]):
            signal_group(each["pid"], signal.SIGKILL)
    for name in ("tmp", "checkpoints", "run/streams", "opensearch"):
        shutil.rmtree(home / name, ignore_errors=True)
    (home / "run" / "state.json").unlink(missing_ok=True)
    if not keep_logs:
        for log in (home / "logs").glob("*.log"):
            if log.name != "supervisor.log":
                log.unlink()


def read_state(home: Path) -> dict[str, Any]:
    """The state file's content; empty when there is none."""
    try:
        return dict(json.loads((home / "run" / "state.json").read_text()))
    except FileNotFoundError:
        return {}


@contextlib.contextmanager
def only_one(home: Path) -> Iterator[None]:
    """Hold the home's lock; the kernel gives it back however this process ends."""
    (home / "run").mkdir(parents=True, exist_ok=True)
    with (home / "run" / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StartError(f"a local cloud already runs in {home}; end it with `down` first") from None
        yield
