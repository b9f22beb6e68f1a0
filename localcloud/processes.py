"""Processes that end with the one that started them, and are told from strangers with the same number.

python -m localcloud.processes MODULE [ARGUMENT ...]     runs a module that way
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import runpy
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux's prctl
GRACE_S = 8.0
"""From SIGTERM to SIGKILL: a worker answers its requests for up to 3 s, then writes what it holds, and that
takes as long again on a busy machine. The supervisor needs it twice, AWS last, and is itself given 20 s."""


def die_with_parent(grace_s: float = GRACE_S) -> None:
    """End this process, and its group when it leads one, soon after the process that started it is gone.

    On Linux the kernel says so; everywhere the end of a pipe on standard input does. SIGTERM first, so that
    what is buffered is written; after `grace_s` seconds SIGKILL for the whole group.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PARENT_DEATH_SIGNAL, signal.SIGTERM)
    if stat.S_ISFIFO(os.fstat(0).st_mode):
        threading.Thread(target=_end_after_parent, args=(grace_s,), daemon=True, name="parent").start()


def spawn(
    module: str,
    arguments: Sequence[str],
    *,
    log: Path,
    environment: Mapping[str, str],
    cwd: Path,
    keep: Sequence[int] = (),
) -> subprocess.Popen[bytes]:
    """Start `python -m module` in a process group of its own, writing to `log` and tied to this process."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "localcloud.processes", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            cwd=cwd,
            pass_fds=keep,
            start_new_session=True,
        )


def end(*processes: subprocess.Popen[bytes], grace_s: float = GRACE_S) -> None:
    """Stop spawned processes with all that they started, together; a second call does nothing."""
    for process in processes:
        if process.stdin:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        signal_group(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, deadline - time.monotonic()))
        signal_group(process.pid, signal.SIGKILL)
        process.wait()


def signal_group(leader: int, number: int) -> None:
    """Signal a process group; nothing happens when it is gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)


def started_at(pid: int) -> str:
    """A text that tells the process `pid` from an earlier one with that number; "" when there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except FileNotFoundError:
        return "" if Path("/proc/self/stat").exists() else _started_at_by_ps(pid)
    except (ProcessLookupError, PermissionError):
        return ""
    return "" if fields[0] == "Z" else fields[19]


def is_running(pid: int, started: str) -> bool:
    """Whether `pid` is still the process that started then."""
    return bool(started) and started_at(pid) == started


def log_to_stderr() -> None:
    """Send warnings of everybody and what our own modules tell to standard error, which is the log."""
    form = "%(asctime)s %(levelname)s %(message)s"
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format=form)
    logging.getLogger("localcloud").setLevel(logging.INFO)


def report_ready(**facts: Any) -> None:
    """Tell whoever started this process that it now does its work: one JSON line on standard output."""
    sys.stdout.write(json.dumps({"ready": True, **facts}) + "\n")
    sys.stdout.flush()


def ready_line(log: Path, offset: int = 0) -> dict[str, Any] | None:
    """The JSON line of `report_ready` in a log, from `offset` bytes on; None while there is none."""
    with log.open("rb") as lines:
        lines.seek(offset)
        for line in lines:
            if line.startswith(b'{"ready": true') and line.endswith(b"\n"):
                return dict(json.loads(line))
    return None


def write_json(path: Path, content: Any) -> None:
    """Replace a small file in one step: whoever reads it sees the old content or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(content))
    partial.replace(path)


def _end_after_parent(grace_s: float) -> None:
    while os.read(0, 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace_s)
    if os.getpgrp() == os.getpid():
        os.killpg(os.getpid(), signal.SIGKILL)
    os._exit(1)


def _started_at_by_ps(pid: int) -> str:
    asked = ["ps", "-o", "lstart=", "-p", str(pid)]
    return subprocess.run(asked, capture_output=True, text=True, check=False).stdout.strip()


def main() -> None:
    """Run the module named first with the remaining arguments, tied to the process that started this one."""
    module, *rest = sys.argv[1:]
    die_with_parent()
    sys.argv = [module, *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
