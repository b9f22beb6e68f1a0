"""Start, stop and look at the local cloud of a home folder.

    addresses = up(Path(".narrows"), "megashop", detach=True)   # {"api": ..., "page": ..., ...}
    down(Path(".narrows"))

AWS is in memory: after `down` nothing of it is left. What stays in the home are logs/ (those of the last
run), lake/ (its tables, until the next start), jobs/ and cdk/ (the assembly that was deployed).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from localcloud.daemon import LAST_LINES, ROOT, Modules
from localcloud.home import StartError, clean, read_state
from localcloud.processes import is_running, signal_group

Progress = Callable[[str], None]
Prepare = Callable[[str, Mapping[str, Any]], None]
REAL = Modules()
END_S = 20.0
SETTLE_S = 0.5  # a process that was just killed takes a moment to be gone
_ATTACHED: dict[Path, subprocess.Popen[str]] = {}  # the ones that end with this process


def up(
    home: Path,
    app: str,
    *,
    detach: bool = False,
    workers: int = 2,
    port: int = 0,
    trains: bool = False,
    progress: Progress | None = None,
    prepare: Prepare | None = None,
    modules: Modules = REAL,
) -> dict[str, str]:
    """Start the local cloud and give its addresses once its API answers: "api", "page" and "aws_endpoint".

    `prepare(endpoint, outputs)` is called between deploying the stacks and starting the functions. Detached,
    the cloud runs on after this process; otherwise it ends with it, and `wait` waits for it. Port 0 takes a
    free one. Where a training follows (`trains`), Spark is started at once, beside the deployment. StartError
    says what failed; nothing is left running then.
    """
    home = home.resolve()
    if not _ended(read_state(home).get("supervisor"), SETTLE_S):
        raise StartError(f"a local cloud already runs in {home}; end it with `down` first")
    arguments = ["--home", str(home), "--app", app, "--workers", str(workers), "--port", str(port)]
    arguments += ["--aws", modules.aws, "--deploy", modules.deploy, *(["--detached"] if detach else [])]
    arguments += ["--trains"] if trains else []
    process = _start_daemon(home, arguments)
    try:
        addresses = _follow(process, home, progress or (lambda _: None), prepare)
    except BaseException:
        _end(process)
        raise
    if detach:
        _let_go(process)
    else:
        _ATTACHED[home] = process
    return addresses


def wait(home: Path) -> None:
    """Wait until a cloud that is attached to this process ends; StartError when it failed on its own."""
    process = _ATTACHED[home.resolve()]
    process.wait()
    failure = read_state(home).get("failure")
    if failure:
        raise StartError(str(failure))


def down(home: Path) -> bool:
    """End the local cloud of this home and remove its temporary files; whether anything was running."""
    home = home.resolve()
    own = read_state(home).get("supervisor", {"pid": 0, "started": ""})
    running = is_running(own["pid"], own["started"])
    if running:
        with contextlib.suppress(ProcessLookupError):
            os.kill(own["pid"], signal.SIGTERM)
        if not _ended(own, END_S):
            signal_group(own["pid"], signal.SIGKILL)
    attached = _ATTACHED.pop(home, None)
    if attached:
        _end(attached)
    clean(home, keep_logs=True)
    shutil.rmtree(home / "run", ignore_errors=True)
    return running


def status(home: Path) -> dict[str, Any]:
    """What runs in this home: "running", the addresses, each part with its restarts, and what streams did.

    "failure" says what went wrong for good: why it ended on its own, or that AWS is gone; else it is None.
    """
    state = read_state(home.resolve())
    own = state.pop("supervisor", {"pid": 0, "started": ""})
    parts = [
        {**part, "running": is_running(part["pid"], part.pop("started"))} for part in state.pop("parts", [])
    ]
    streams = {
        path.stem: json.loads(path.read_text())
        for path in sorted((home / "run" / "streams").glob("[!.]*.json"))
    }
    running = is_running(own["pid"], own["started"])
    return {"running": running, "failure": None, **state, "parts": parts, "streams": streams}


def _start_daemon(home: Path, arguments: Sequence[str]) -> subprocess.Popen[str]:
    (home / "logs").mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    with (home / "logs" / "supervisor.log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "localcloud.daemon", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": path},
            start_new_session=True,
        )


def _follow(
    process: subprocess.Popen[str], home: Path, progress: Progress, prepare: Prepare | None
) -> dict[str, str]:
    """Read what the daemon tells until it is ready; calls `prepare` when the stacks are deployed."""
    for told in _told(process):
        if "progress" in told:
            progress(told["progress"])
        elif "failed" in told:
            raise StartError(told["failed"])
        elif told.pop("ready", False):
            return dict(told)
        elif "deployed" in told and process.stdin:
            if prepare:
                prepare(told["endpoint"], told["deployed"])
            process.stdin.write("serve\n")
            process.stdin.flush()
    log = home / "logs" / "supervisor.log"
    lines = "\n".join(log.read_text(errors="replace").strip().splitlines()[-LAST_LINES:])
    raise StartError(f"the supervisor ended while starting; the end of {log}:\n{lines}")


def _told(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    for line in process.stdout or ():
        yield dict(json.loads(line))


def _let_go(process: subprocess.Popen[str]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe:
            pipe.close()
    process.returncode = 0  # it is not ours to wait for any more


def _end(process: subprocess.Popen[str]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        process.wait(END_S)
    except subprocess.TimeoutExpired:
        signal_group(process.pid, signal.SIGKILL)
        process.wait()


def _ended(own: Mapping[str, Any] | None, seconds: float) -> bool:
    """Whether that supervisor is gone, now or before so many seconds have passed."""
    deadline = time.monotonic() + seconds
    while own and is_running(own["pid"], own["started"]):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
