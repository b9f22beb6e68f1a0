"""The process that runs the local cloud: starts its parts in order, restarts what dies, ends them together.

It speaks in JSON lines with whoever started it: progress, what was deployed (and then it waits for the word
"serve"), that it is ready, or why it failed. `localcloud.supervisor` is the other end.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import boto3

from localcloud.functions import REGION, Function, enter, environment
from localcloud.home import StartError, clean, only_one
from localcloud.mappings import stream_mappings
from localcloud.processes import (
    end,
    log_to_stderr,
    ready_line,
    spawn,
    started_at,
    write_json,
)
from narrows.errors import NarrowsError
from narrows.settings import load_app

LOG = logging.getLogger("localcloud.daemon")
ROOT = Path(__file__).resolve().parent.parent
HOST = "127.0.0.1"
CONSOLE = ROOT / "console"
SEARCH = "opensearch"
PAUSE_S = 0.02
STEADY_S = 30.0
RESTART_S, RESTART_AT_MOST_S = 0.2, 10.0
START_S, DEPLOY_S = 120.0, 600.0
LAST_LINES = 15
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


class Stopping(Exception):
    """Somebody asked for the end while something was awaited."""


@dataclass(frozen=True)
class Modules:
    """The programs that are AWS and that deploy to it; a test may put others in their place."""

    aws: str = "localcloud.aws"
    deploy: str = "localcloud"


@dataclass(eq=False)
class Part:
    """One process of the local cloud, and how often it had to be started again."""

    name: str
    module: str
    arguments: Sequence[str]
    keep: Sequence[int] = ()
    process: subprocess.Popen[bytes] | None = None
    started: str = ""
    began: float = 0.0
    log_offset: int = 0
    restarts: int = 0
    pause_s: float = RESTART_S
    restart_at: float = 0.0

    @property
    def pid(self) -> int:
        return self.process.pid if self.process else 0

    def described(self) -> dict[str, Any]:
        """What the state file keeps of it."""
        return {"name": self.name, "pid": self.pid, "started": self.started, "restarts": self.restarts}


@dataclass
class Daemon:
    """The local cloud of one home folder."""

    home: Path
    app: str
    workers: int
    port: int
    detached: bool
    modules: Modules
    say: TextIO
    trains: bool = False
    parts: list[Part] = field(default_factory=list)
    addresses: dict[str, str] = field(default_factory=dict)
    stopping: str = ""
    failure: str | None = None
    told: bytes = b""
    listening: socket.socket | None = None

    def run(self) -> None:
        """Everything from the start to the end."""
        with only_one(self.home), self._signals():
            try:
                self._start()
                self._supervise()
            except Stopping:
                LOG.info("stopping: %s", self.stopping)
            except NarrowsError as error:
                self._failed(str(error))
            except Exception as error:
                LOG.exception("unexpected")
                self._failed(repr(error))
            finally:
                self._end()

    def _start(self) -> None:
        clean(self.home)
        (self.home / "tmp").mkdir(parents=True, exist_ok=True)
        self._write_state()
        self._tell(progress="starting AWS")
        endpoint = self._start_aws()
        search = self._start_search(endpoint)
        self._tell(progress="deploying the stacks")
        outputs = self._deploy(endpoint, search)
        self._search_ready()
        self._tell(deployed=outputs, endpoint=endpoint)
        self._await(lambda: b"serve\n" in self.told, float("inf"), "the word to serve")
        self._tell(progress="starting the functions")
        self.listening = _listen(self.port)
        port = self.listening.getsockname()[1]
        self._start_functions(endpoint, self.listening)
        self._await(lambda: _answers(port), START_S, "the API")
        base = f"http://{HOST}:{port}"
        self.addresses = {"api": base, "page": f"{base}/", "aws_endpoint": endpoint}
        self.addresses |= {"search": search} if search else {}
        self._write_state()
        self._tell(ready=True, **self.addresses)
        self._fall_silent()

    def _start_aws(self) -> str:
        port = _free_port()
        arguments = ["--port", str(port), "--home", str(self.home), *(["--trains"] if self.trains else [])]
        aws = Part("aws", self.modules.aws, arguments)
        self._launch(aws, environment([], endpoint=f"http://{HOST}:{port}", inherited=os.environ))
        self._ready(aws, START_S)
        enter([], f"http://{HOST}:{port}")
        return f"http://{HOST}:{port}"

    def _start_search(self, endpoint: str) -> str:
        """Start OpenSearch for an app whose vectors lie there, or take the one that NARROWS_SEARCH_URL names.

        Its address, or ""; it comes up while the stacks are deployed.
        """
        folder = ROOT / "apps" / self.app
        if not folder.is_dir() or load_app(folder).tiers["vectors"] != "opensearch":
            return ""
        if other := os.environ.get("NARROWS_SEARCH_URL"):
            return other
        self._tell(progress="starting OpenSearch")
        port = _free_port()
        arguments = ["--home", str(self.home / "opensearch"), "--port", str(port), "--soon-ready"]
        self._launch(Part(SEARCH, "localcloud.opensearch", arguments), self._environment(endpoint))
        return f"http://{HOST}:{port}"

    def _search_ready(self) -> None:
        for part in self.parts:
            if part.name == SEARCH:
                self._ready(part, START_S)

    def _deploy(self, endpoint: str, search: str) -> Mapping[str, Any]:
        arguments = ["deploy", "--endpoint", endpoint, "--home", str(self.home), "--app", self.app]
        arguments += ["--search-url", search] if search else []
        part = Part("deploy", self.modules.deploy, arguments)
        self._launch(part, self._environment(endpoint))
        outputs: Mapping[str, Any] = self._ready(part, DEPLOY_S)["outputs"]
        self.parts.remove(part)
        if part.process:
            end(part.process)
        return outputs

    def _start_functions(self, endpoint: str, listening: socket.socket) -> None:
        client = boto3.client("lambda", endpoint_url=endpoint, region_name=REGION)
        names = {mapping.function_arn.split(":")[6] for mapping in stream_mappings(client)}
        followers = sorted((Function.read(client, name) for name in names), key=lambda each: each.label)
        descriptor = listening.fileno()
        os.set_inheritable(descriptor, True)
        serve = ["--fd", str(descriptor), "--endpoint", endpoint, "--console", str(CONSOLE)]
        parts = [
            Part(f"api-{number}", "localcloud.http", serve, [descriptor])
            for number in range(1, self.workers + 1)
        ]
        follow = ["--endpoint", endpoint, "--home", str(self.home)]
        parts += [
            Part(f"stream-{each.label}", "localcloud.streams", ["--function", each.name, *follow])
            for each in followers
        ]
        for part in parts:
            self._launch(part, self._environment(endpoint))
        for part in parts:
            self._ready(part, START_S)

    def _environment(self, endpoint: str) -> dict[str, str]:
        own = {"TMPDIR": str(self.home / "tmp"), "NARROWS_HOME": str(self.home)}
        inherited = os.environ | ONE_THREAD | own
        return environment([], endpoint=endpoint, inherited=inherited)

    def _launch(self, part: Part, variables: Mapping[str, str]) -> None:
        log = self._log(part)
        part.log_offset = log.stat().st_size if log.exists() else 0
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
        variables = {**variables, "PYTHONPATH": path}
        part.process = spawn(
            part.module, part.arguments, log=log, environment=variables, cwd=ROOT, keep=part.keep
        )
        part.started, part.began = started_at(part.process.pid), time.monotonic()
        if part not in self.parts:
            self.parts.append(part)
        self._write_state()

    def _log(self, part: Part) -> Path:
        return self.home / "logs" / f"{part.name}.log"

    def _ready(self, part: Part, seconds: float) -> dict[str, Any]:
        """The part's ready line; StartError when it dies or takes too long first."""

        def line() -> dict[str, Any] | None:
            found = ready_line(self._log(part), part.log_offset)
            if found is None and part.process and part.process.poll() is not None:
                raise StartError(f"{part.name} ended while starting; {self._last_lines(part)}")
            return found

        try:
            return dict(self._await(line, seconds, part.name) or {})
        except TimeoutError as error:
            raise StartError(f"{part.name} was not ready in time; {self._last_lines(part)}") from error

    def _last_lines(self, part: Part) -> str:
        text = self._log(part).read_text(errors="replace").strip().splitlines()
        return f"the end of {self._log(part)}:\n" + "\n".join(text[-LAST_LINES:])

    def _await(self, condition: Callable[[], Any], seconds: float, what: str) -> Any:
        deadline = time.monotonic() + seconds
        while not (answer := condition()):
            if time.monotonic() > deadline:
                raise TimeoutError(what)
            self._pause(PAUSE_S)
        return answer

    def _pause(self, seconds: float) -> None:
        """Wait, but no longer than until a signal or a word from outside; raises Stopping at the end."""
        for key, _ in self._selector.select(seconds):
            received = os.read(key.fd, 4096)
            if key.data == "outside":
                self.told += received
                if not received:
                    self._selector.unregister(key.fileobj)
                    if not (self.detached and self.addresses):
                        self.stopping = self.stopping or "who started this is gone"
        if self.stopping:
            raise Stopping

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Signals wake `_pause`; SIGTERM, SIGINT and SIGHUP also end it all."""
        read, write = os.pipe()
        os.set_blocking(write, False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(read, selectors.EVENT_READ, "signal")
        self._selector.register(0, selectors.EVENT_READ, "outside")
        signal.set_wakeup_fd(write)

        def asked(number: int, _frame: Any) -> None:
            self.stopping = signal.Signals(number).name

        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, asked)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        yield

    def _supervise(self) -> None:
        while True:
            now = time.monotonic()
            for part in self.parts:
                self._revive(part, now)
            waiting = [part.restart_at - now for part in self.parts if part.restart_at]
            self._pause(max(0.0, min([1.0, *waiting])))

    def _revive(self, part: Part, now: float) -> None:
        if part.restart_at:
            if now >= part.restart_at:
                part.restart_at = 0.0
                part.restarts += 1
                self._launch(part, self._environment(self.addresses["aws_endpoint"]))
            return
        if part.process is None or part.process.poll() is None:
            return
        LOG.warning("%s ended with %s", part.name, part.process.returncode)
        end(part.process)
        if part.name == "aws":
            self._lost(part)
            return
        lived = now - part.began
        part.pause_s = RESTART_S if lived > STEADY_S else min(part.pause_s * 2, RESTART_AT_MOST_S)
        part.restart_at = now + part.pause_s

    def _lost(self, aws: Part) -> None:
        """AWS is gone with all that it held; the API answers from what its processes hold."""
        LOG.error("the local AWS died, and with it all that it held; %s", self._last_lines(aws))
        aws.process = None
        self.failure = "the local AWS died; the API answers from memory until `narrows down`"
        self._write_state()

    def _write_state(self) -> None:
        own = {"name": "supervisor", "pid": os.getpid(), "started": started_at(os.getpid())}
        state: dict[str, Any] = {"app": self.app, "supervisor": own, "failure": self.failure}
        state |= self.addresses
        state["parts"] = [part.described() for part in self.parts]
        write_json(self.home / "run" / "state.json", state)

    def _tell(self, **facts: Any) -> None:
        LOG.info("%s", facts)
        with contextlib.suppress(BrokenPipeError, ValueError):
            self.say.write(json.dumps(facts) + "\n")
            self.say.flush()

    def _fall_silent(self) -> None:
        """Whoever listened has heard that all is ready and may be gone soon."""
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), self.say.fileno())

    def _failed(self, reason: str) -> None:
        LOG.error("%s", reason)
        self._tell(failed=reason)
        self.stopping = reason

    def _end(self) -> None:
        """End the parts, AWS last, so that what the others still hold can be written."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        running = [part for part in self.parts if part.process]
        end(*(part.process for part in running if part.process and part.name != "aws"))
        end(*(part.process for part in running if part.process and part.name == "aws"))
        if self.listening:
            self.listening.close()
        failed = self.stopping not in ("SIGTERM", "SIGINT", "SIGHUP", "who started this is gone")
        clean(self.home, keep_logs=True)
        if failed:
            write_json(self.home / "run" / "state.json", {"app": self.app, "failure": self.stopping})


def _listen(port: int) -> socket.socket:
    try:
        return socket.create_server((HOST, port), backlog=2048)
    except OSError as error:
        raise StartError(f"port {port} of {HOST} cannot be used: {error.strerror}; choose another") from error


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection(HOST, port, timeout=2)
    try:
        connection.request("GET", "/_local/health")
        return connection.getresponse().status == http.client.OK
    except OSError:
        return False
    finally:
        connection.close()


def main() -> None:
    """Run the local cloud of --home until told to stop."""
    parser = argparse.ArgumentParser(prog="localcloud.daemon", description=main.__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--app", required=True)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--detached", action="store_true")
    parser.add_argument("--trains", action="store_true", help="a training follows: start Spark now")
    parser.add_argument("--aws", required=True, help="the module that is AWS")
    parser.add_argument("--deploy", required=True, help="the module that deploys")
    asked = parser.parse_args()
    modules = Modules(asked.aws, asked.deploy)
    log_to_stderr()
    daemon = Daemon(
        asked.home,
        asked.app,
        asked.workers,
        asked.port,
        asked.detached,
        modules=modules,
        say=sys.stdout,
        trains=asked.trains,
    )
    try:
        daemon.run()
    except StartError as error:
        sys.stdout.write(json.dumps({"failed": str(error)}) + "\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
