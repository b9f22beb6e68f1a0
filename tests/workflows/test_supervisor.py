"""The local cloud as a whole: it comes up, mends itself, and leaves nothing behind however it ends."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np
import pytest
from plain_aws import ROOT, Aws, wait_for

from localcloud import opensearch, supervisor
from localcloud.daemon import Modules
from localcloud.home import StartError
from localcloud.jars import JarMissing
from localcloud.opensearch import JdkMissing
from localcloud.processes import end, is_running, ready_line, spawn, started_at
from narrows.adapters.opensearch import connect
from narrows.adapters.opensearch_versions import OpenSearchIndexVersions
from narrows.errors import StoreUnavailable
from narrows.index_settings import IndexSettings
from narrows.vector_index import IndexGone
from tests.servers import unavailable

HERE = Path(__file__).parent
FAKE = Modules(aws="plain_aws", deploy="fake_deploy")  # without the second that moto takes to load

pytestmark = pytest.mark.local


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    yield tmp_path / "home"
    supervisor.down(tmp_path / "home")


def get(address: str) -> Any:
    with urlopen(address, timeout=10) as answer:
        return json.loads(answer.read())


def put(addresses: dict[str, str], payload: Any) -> None:
    kinesis = Aws(addresses["aws_endpoint"]).client("kinesis")
    kinesis.put_record(StreamName="events", Data=json.dumps(payload).encode(), PartitionKey="k")


def seen(home: Path) -> list[Any]:
    path = home / "seen"
    return [json.loads(line)[0] for line in path.read_text().splitlines()] if path.exists() else []


def part(home: Path, name: str) -> dict[str, Any]:
    [found] = [each for each in supervisor.status(home)["parts"] if each["name"] == name]
    return dict(found)


def kill_supervisor(home: Path) -> dict[str, Any]:
    """End it with kill -9; returns its state."""
    state = json.loads((home / "run" / "state.json").read_text())
    os.kill(state["supervisor"]["pid"], signal.SIGKILL)
    return dict(state)


def processes_of(home: Path) -> list[str]:
    """Command lines and environments of living processes that name this home."""
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            text = (directory / "cmdline").read_bytes() + (directory / "environ").read_bytes()
        except OSError:
            continue
        if str(home).encode() in text and directory.name != str(os.getpid()):
            found.append((directory / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


def test_up_serves_from_two_workers_and_streams_and_down_leaves_nothing(home: Path) -> None:
    """API and page answer, a record reaches its function; `down` leaves no process and no temporary file."""
    heard: list[str] = []
    prepared: list[Any] = []
    addresses = supervisor.up(
        home,
        "megashop",
        detach=True,
        progress=heard.append,
        prepare=lambda endpoint, outputs: prepared.append((endpoint, outputs)),
        modules=Modules(deploy="fake_deploy"),
    )
    assert heard == ["starting AWS", "deploying the stacks", "starting the functions"]
    assert prepared == [(addresses["aws_endpoint"], {"Fake": {"Stream": "events"}})]
    assert get(f"{addresses['api']}/api/echo/feed")["event"]["pathParameters"] == {"surface": "feed"}
    with urlopen(addresses["page"], timeout=10) as page:
        assert page.headers["content-type"] == "text/html; charset=utf-8"
    put(addresses, {"n": 1})
    assert wait_for(lambda: seen(home), 30, "the record") == [{"n": 1}]
    status = supervisor.status(home)
    assert status["running"] is True
    assert status["app"] == "megashop"
    assert {each["name"] for each in status["parts"]} == {"aws", "api-1", "api-2", "stream-follow"}
    assert all(each["running"] and each["restarts"] == 0 for each in status["parts"])
    assert len({get(f"{addresses['api']}/api/echo/x")["process"] for _ in range(60)}) == 2
    with pytest.raises(StartError, match="already runs"):
        supervisor.up(home, "megashop", detach=True, modules=FAKE)
    assert get(f"{addresses['api']}/api/echo/x")["event"]["version"] == "2.0"
    workers = [part(home, name)["pid"] for name in ("api-1", "api-2")]
    assert supervisor.down(home) is True
    assert processes_of(home) == []
    assert {path.name for path in home.glob("flushed-*")} >= {f"flushed-{pid}" for pid in workers}
    assert sorted(path.name for path in home.iterdir() if path.is_dir()) == ["jobs", "lake", "logs"]
    assert supervisor.status(home)["running"] is False
    assert supervisor.down(home) is False


def test_a_part_that_dies_is_started_again_and_counted(home: Path) -> None:
    """After kill -9 of a worker and of the stream process both come back and go on where they were."""
    addresses = supervisor.up(home, "megashop", detach=True, workers=1, modules=FAKE)
    put(addresses, {"n": 1})
    wait_for(lambda: seen(home) == [{"n": 1}], 30, "the first record")
    for name in ("api-1", "stream-follow"):
        os.kill(part(home, name)["pid"], signal.SIGKILL)
    wait_for(lambda: part(home, "stream-follow")["restarts"] == 1, 30, "the stream process")
    wait_for(lambda: part(home, "api-1")["restarts"] == 1, 30, "the worker")
    put(addresses, {"n": 2})
    assert get(f"{addresses['api']}/api/echo/x")["event"]["version"] == "2.0"
    wait_for(lambda: len(seen(home)) == 2, 30, "the second record")
    assert seen(home) == [{"n": 1}, {"n": 2}]


def test_nothing_outlives_a_supervisor_killed_without_a_word(home: Path) -> None:
    """After kill -9 of the supervisor every other process ends by itself, and `down` removes the rest."""
    supervisor.up(home, "megashop", detach=True, workers=1, modules=FAKE)
    kill_supervisor(home)
    wait_for(lambda: processes_of(home) == [], 30, "the end of all processes")
    assert supervisor.status(home)["running"] is False
    supervisor.down(home)
    assert not (home / "tmp").exists()


def test_a_start_right_after_a_kill_cleans_up_what_still_runs(home: Path) -> None:
    """`up` does not wait for the orphans to notice, and serves."""
    supervisor.up(home, "megashop", detach=True, workers=1, modules=FAKE)
    before = kill_supervisor(home)
    addresses = supervisor.up(home, "megashop", detach=True, workers=1, modules=FAKE)
    assert get(f"{addresses['api']}/api/echo/x")["event"]["version"] == "2.0"
    assert not any(is_running(each["pid"], each["started"]) for each in before["parts"])


def test_a_failed_deployment_is_told_and_leaves_nothing(home: Path) -> None:
    """The error ends with what the deployment printed."""
    with pytest.raises(StartError, match=r"(?s)deploy ended while starting.*the template is wrong: line 7"):
        supervisor.up(home, "broken", detach=True, modules=FAKE)
    assert processes_of(home) == []
    assert "the template is wrong" in supervisor.status(home)["failure"]


def test_a_failed_preparation_ends_what_was_started(home: Path) -> None:
    """An exception of the caller's own comes through, and nothing runs on."""

    def prepare(endpoint: str, outputs: Any) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        supervisor.up(home, "megashop", detach=True, prepare=prepare, modules=FAKE)
    assert processes_of(home) == []


def test_the_api_outlives_aws(home: Path) -> None:
    """The functions answer on, AWS is not started again empty, and status says what happened."""
    addresses = supervisor.up(home, "megashop", detach=True, workers=1, modules=FAKE)
    api = part(home, "api-1")["pid"]
    os.kill(part(home, "aws")["pid"], signal.SIGKILL)
    wait_for(lambda: supervisor.status(home)["failure"], 30, "the loss to be noticed")
    status = supervisor.status(home)
    assert "the local AWS died" in status["failure"]
    assert status["running"] is True
    assert part(home, "api-1")["pid"] == api
    assert get(f"{addresses['api']}/_local/health")
    assert part(home, "aws")["restarts"] == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_in_the_foreground_it_ends_with_its_command(home: Path, number: signal.Signals) -> None:
    """Ctrl-C, SIGTERM and kill -9 of `python -m localcloud up` all end everything."""
    script = (
        "import signal, sys; from pathlib import Path; from localcloud import supervisor\n"
        "from localcloud.daemon import Modules\n"
        # tests that a shell runs in the background inherit that Ctrl-C is ignored
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "home = Path(sys.argv[1])\n"
        "supervisor.up(home, 'megashop', workers=1, modules=Modules('plain_aws', 'fake_deploy'))\n"
        "print('up', flush=True)\n"
        "try: supervisor.wait(home)\n"
        "except KeyboardInterrupt: pass\n"
        "finally: supervisor.down(home)\n"
    )
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{HERE}"}
    command = subprocess.Popen(
        [sys.executable, "-c", script, str(home)], stdout=subprocess.PIPE, env=environment, cwd=ROOT
    )
    with command:
        assert command.stdout
        assert command.stdout.readline() == b"up\n"
        command.send_signal(number)
    wait_for(lambda: processes_of(home) == [], 30, "the end of all processes")
    assert not (home / "tmp").exists()
    assert not (home / "run" / "state.json").exists()


def test_a_process_that_writes_for_a_while_before_it_ends_is_waited_for(tmp_path: Path) -> None:
    """Four seconds after SIGTERM, as a worker's last requests and its flush take on a busy machine."""
    log, environment = tmp_path / "log", os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(HERE)))}
    process = spawn("slow_to_end", [str(tmp_path / "written")], log=log, environment=environment, cwd=ROOT)
    wait_for(lambda: ready_line(log), 30, "the process")
    end(process)
    assert (tmp_path / "written").exists()
    assert process.returncode == 0


def test_a_process_is_told_from_a_stranger_with_its_number() -> None:
    """The start time is part of the identity, so a recycled number is not killed."""
    own = started_at(os.getpid())
    assert is_running(os.getpid(), own)
    assert not is_running(os.getpid(), f"{own}0")
    assert not is_running(2**22 + 1, "")


def test_the_command_line_answers_in_json(home: Path) -> None:
    """`status --json` of a home where nothing runs says so, with exit status 1."""
    began = time.monotonic()
    command = [sys.executable, "-m", "localcloud", "status", "--home", str(home), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 1
    assert json.loads(done.stdout) == {"running": False, "failure": None, "parts": [], "streams": {}}
    assert time.monotonic() - began < 5


@pytest.mark.slow
def test_opensearch_comes_with_an_app_whose_vectors_lie_there(home: Path) -> None:
    """The deployment is told its address; killed, it comes back there with what it held; down ends it."""
    try:
        opensearch.command(home, 0, os.environ)
    except (JarMissing, JdkMissing) as error:
        unavailable("OpenSearch", str(error))
    told: list[Any] = []
    addresses = supervisor.up(
        home,
        "shopnow",
        detach=True,
        workers=1,
        prepare=lambda _, outputs: told.append(outputs["Fake"]["Search"]),
        modules=FAKE,
    )
    assert told == [addresses["search"]]
    client = connect(addresses["search"], timeout_s=10.0)
    settings = IndexSettings(engine="lucene", replicas=0)
    versions = OpenSearchIndexVersions(client, "narrows-shopnow-local", settings, search_s=10.0)
    versions.create("v1", 4).upsert(np.asarray([7], np.int32), np.eye(4, dtype=np.float32)[:1])
    versions.promote("v1")
    os.kill(part(home, "opensearch")["pid"], signal.SIGKILL)
    wait_for(lambda: part(home, "opensearch")["restarts"] == 1, 30, "OpenSearch")

    def found() -> bool:
        try:
            return bool(versions.open().search(np.eye(4, dtype=np.float32)[0], 1).rows[0, 0] == 7)
        except (StoreUnavailable, IndexGone):
            return False

    wait_for(found, 60, "the index")
    client.close()
    supervisor.down(home)
    assert processes_of(home) == []
    assert not (home / "opensearch").exists()
