"""The `narrows` command: what goes to standard output, which exit code, and what an error says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, cast

import numpy as np
import pytest

from narrows.cli import main
from narrows.cli.api_client import Api, Refused, send_in_lanes
from narrows.cli.console import CommandFailed, Console, Progress
from narrows.cli.deployment import Consumers
from narrows.cli.import_data import column_names
from narrows.cli.slates import item_ids, three_slates
from narrows.cli.steps import Steps
from narrows.evaluation.metrics import finite
from narrows.simulator import Market

COMMANDS = ("demo", "up", "down", "import", "train", "evaluate", "recommend", "features", "skew", "doctor")
ROWS = "USER_ID,ITEM_ID,TIMESTAMP,EVENT_TYPE\nu1,i1,1600000000,view\nu1,,1600000001,view\n"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NARROWS_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def _csv(tmp_path: Path, text: str = ROWS) -> str:
    path = tmp_path / "interactions.csv"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("features list --app megashop", 141),
        ("features audit --app megashop --json", 141),
        ("features explain nothing --app megashop --json", 141),
        ("--help", 0),
    ],
)
@pytest.mark.parametrize("together", [False, True], ids=["output", "output and errors"])
def test_a_command_that_nobody_reads_ends_without_a_word(line: str, code: int, together: bool) -> None:
    """As behind `| head`, which has read its lines and gone."""
    reading, writing = os.pipe()
    os.close(reading)
    errors = subprocess.STDOUT if together else subprocess.PIPE
    command = [sys.executable, "-m", "narrows.cli", *line.split()]
    ended = subprocess.run(command, stdout=writing, stderr=errors, text=True, check=False)
    os.close(writing)
    assert ended.returncode == code
    assert "BrokenPipe" not in (ended.stderr or "")
    assert "Traceback" not in (ended.stderr or "")


def test_import_prints_one_json_object_and_keeps_the_report(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --json standard output is the report, which also lies beside the data."""
    assert main(["import", _csv(tmp_path), "--app", "megashop", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["interactions"]["reasons"] == {"missing item id": 1}
    assert printed == json.loads((home / "apps/megashop/data/import_report.json").read_text())


def test_import_tells_a_person_what_was_found(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without --json the counts, the reasons and the next command are printed."""
    assert main(["import", _csv(tmp_path), "--app", "megashop"]) == 0
    printed = capsys.readouterr().out
    assert "interactions: 1 rows refused: missing item id" in printed
    assert "next: narrows train --app megashop" in printed
    assert str(home) in printed


def test_a_mistake_is_one_clear_line_and_exit_code_2(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message names what is wrong and the remedy; with --json it is the object as well."""
    path = _csv(tmp_path, "who,what\n1,2\n")
    assert main(["import", path, "--app", "megashop"]) == 2
    assert "no column USER_ID; it has who, what" in capsys.readouterr().err
    assert main(["import", path, "--app", "megashop", "--json"]) == 2
    told = capsys.readouterr()
    assert json.loads(told.out)["type"] == "ImportRefused"
    assert told.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: <command>"),
        (["fly"], "invalid choice: 'fly'"),
        (["import"], "the following arguments are required: path, --app"),
        (["import", "x", "--app", "shop"], "no app 'shop' in"),
        (["import", "/nowhere", "--app", "media"], "/nowhere: no such file or folder"),
        (
            ["import", "x", "--app", "media", "--columns", "PLACE=y"],
            "write NAME=column, where NAME is one of",
        ),
        (["train", "--app", "media"], "run narrows import PATH --app media first"),
        (["evaluate", "--app", "media"], "run narrows import PATH --app media first"),
        (["recommend", "--app", "media", "--surface", "wall"], "media has no surface 'wall'; it has feed"),
        (["recommend", "--app", "media", "--api", "ftp://x"], "'ftp://x' is no address of an API"),
        (["demo", "--events", "10"], "'10': give a whole number from 1000"),
        (["demo", "--workers", "0"], "'0': give a whole number from 1 to 64"),
        (["up", "--workers", "0"], "'0': give a whole number from 1 to 64"),
        (["up", "--port", "99999"], "'99999': give a whole number from 0 to 65535"),
    ],
)
def test_mistakes_on_the_command_line(
    home: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each says what to write instead and ends with 2."""
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("command", [["up"], ["import", "ROWS", "--app", "media"]], ids=lambda one: one[0])
def test_a_home_that_cannot_be_used_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A file stands where the home should be: one line with the variable, no traceback."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("NARROWS_HOME", str(tmp_path / "file" / "home"))
    rows = _csv(tmp_path)
    assert main([rows if one == "ROWS" else one for one in command]) == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert str(tmp_path / "file") in told
    assert "NARROWS_HOME" in told


@pytest.mark.parametrize(
    "command", ["demo", "up", "down", "import", "train", "evaluate", "recommend", "doctor"]
)
def test_every_command_explains_itself(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """--help says what the command does and that --json exists."""
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    printed = capsys.readouterr().out
    assert "--json" in printed
    assert len(printed.splitlines()) > 5


def test_doctor_checks_this_machine(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every check has a finding, and the failing ones a remedy; the exit code follows the required ones."""
    code = main(["doctor", "--json"])
    report = json.loads(capsys.readouterr().out)
    names = {check["name"] for check in report["checks"]}
    assert {"python", "java", "node", "cdk", "chromium", "libgomp", "ports", "disk", "state"} <= names
    assert all(check["detail"] for check in report["checks"])
    assert all(check["remedy"] for check in report["checks"] if not check["ok"])
    assert code == (0 if report["ok"] else 1)


def test_doctor_finds_what_a_crash_left(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A state file that names a dead process is reported with the command that mends it."""
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (home / "run").mkdir(parents=True)
    (home / "run/state.json").write_text(json.dumps({"processes": [{"pid": dead.pid}]}))
    main(["doctor", "--json"])
    state = next(c for c in json.loads(capsys.readouterr().out)["checks"] if c["name"] == "state")
    assert not state["ok"]
    assert state["remedy"] == "run narrows down, then narrows up"


def test_the_command_runs_as_a_program(tmp_path: Path) -> None:
    """`python -m narrows.cli` has the exit codes of the command; errors leave standard output clean."""
    """`python -m narrows.cli` has the exit codes of the command; errors leave standard output clean."""
    run = [sys.executable, "-m", "narrows.cli"]
    version = subprocess.run([*run, "--version"], capture_output=True, text=True, check=False, timeout=60)
    assert (version.returncode, version.stdout.split()[0]) == (0, "narrows")
    wrong = subprocess.run([*run, "import"], capture_output=True, text=True, check=False, timeout=60)
    assert (wrong.returncode, wrong.stdout) == (2, "")


def test_columns_are_given_as_pairs() -> None:
    """Parts are named in any case, columns as they are."""
    assert column_names("USER_ID=Visitor,timestamp=When") == {"user_id": "Visitor", "timestamp": "When"}


def test_json_has_no_nan() -> None:
    """What is undefined is null, at any depth."""
    assert finite({"a": [float("nan"), 1.5], "b": (float("inf"),)}) == {"a": [None, 1.5], "b": [None]}


def test_steps_are_numbered_and_timed(capsys: pytest.CaptureFixture[str]) -> None:
    """Each step says where it stands; the table holds them all."""
    steps = Steps(Console(json=False), 2)
    for name in ("one", "two"):
        steps.begin(name, "working")
    steps.table()
    told = capsys.readouterr()
    assert "[1/2] one: working" in told.err
    assert [line.split()[0] for line in told.out.splitlines()] == ["step", "one", "two", "all"]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    received: list[tuple[str, Any]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.received.append((self.path, body))
        if self.path == "/api/events":
            verdicts = [
                {"index": i, "status": "rejected" if one["event_id"] == "bad" else "accepted"}
                for i, one in enumerate(body["events"])
            ]
            self._answer(200, {"verdicts": verdicts})
        else:
            self._answer(404, {"error": {"type": "UnknownSurface", "message": "no surface 'wall'"}})

    def _answer(self, status: int, content: object) -> None:
        payload = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *_: object) -> None:
        """Stay silent."""


@pytest.fixture
def server() -> Iterator[tuple[Api, list[tuple[str, Any]]]]:
    received: list[tuple[str, Any]] = []
    handler = type("Handler", (_Handler,), {"received": received})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as http:
        http.daemon_threads = True
        thread = Thread(target=http.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        with closing(Api(f"http://127.0.0.1:{http.server_port}")) as api:
            yield api, received
        http.shutdown()
        thread.join()


def test_events_are_sent_once_and_each_visitors_in_order(server: tuple[Api, list[tuple[str, Any]]]) -> None:
    """Several clients share the work; no event is lost or repeated, and one visitor's keep their order."""
    api, received = server
    events = [{"event_id": f"e{n}", "session_id": f"s{n % 7}"} for n in range(1700)]
    sent = send_in_lanes(api, events, lanes=3, total=1700, progress=Progress("send", 1700, "events"))
    arrived = [event for _, body in received for event in body["events"]]
    assert (sent.events, sent.accepted, sent.refusals) == (1700, 1700, [])
    assert max(len(body["events"]) for _, body in received) <= 500
    assert sorted(arrived, key=lambda one: int(one["event_id"][1:])) == events
    for session in range(7):
        mine = [int(one["event_id"][1:]) for one in arrived if one["session_id"] == f"s{session}"]
        assert mine == sorted(mine)


def test_refused_events_are_counted_and_shown(server: tuple[Api, list[tuple[str, Any]]]) -> None:
    """A refusal does not stop the others, and its verdict is kept for the message."""
    events = [{"event_id": "bad", "session_id": "s"}, {"event_id": "good", "session_id": "s"}]
    sent = send_in_lanes(server[0], events, lanes=2, total=2, progress=Progress("send", 2, "events"))
    assert (sent.events, sent.accepted) == (2, 1)
    assert sent.refusals == ['{"index": 0, "status": "rejected"}']


def test_an_error_of_the_api_keeps_its_message(server: tuple[Api, list[tuple[str, Any]]]) -> None:
    """What the API says is what the command says."""
    with pytest.raises(Refused, match="404 no surface 'wall'"):
        server[0].recommend("wall", {"user_id": "u"})


def test_an_api_that_is_not_there_is_named() -> None:
    """A connection that fails says which address, and how to start one."""
    with pytest.raises(CommandFailed, match=r"GET http://127\.0\.0\.1:1/api/health: .*is it running"):
        Api("127.0.0.1:1").health()


def test_the_curl_line_quotes_its_body() -> None:
    """The line can be pasted into a shell whatever the ids hold."""
    line = Api("http://host").curl("homepage", {"user_id": "o'neil"})
    assert line.startswith("curl -s http://host/api/recommendations/homepage ")
    assert subprocess.run(
        ["sh", "-c", f'set -- {line}; printf %s "$7"'], capture_output=True, text=True
    ).stdout == ('{"user_id": "o\'neil"}')


class _Shop:
    """Answers as the API would: first degraded, and with another slate once three clicks were sent."""

    def __init__(self) -> None:
        self.asked, self.clicks = 0, 0

    def recommend(self, surface: str, body: dict[str, Any]) -> dict[str, Any]:
        self.asked += 1
        rung = "segment" if self.asked % 2 else "full"
        item = {"segment": "item-00009", "full": f"item-0000{self.clicks}"}[rung]
        shown = {"item_id": item, "score": None, "reason": "Best sellers", "position": 1}
        return {"recommendations": [shown], "fallback": rung, "model_version": "v1", "degraded": {}}

    def send_events(self, events: list[dict[str, Any]]) -> dict[str, Any]:
        self.clicks += len(events)
        return {"verdicts": []}

    def curl(self, surface: str, body: dict[str, Any]) -> str:
        return f"curl {surface}"


def test_slates_come_from_the_whole_pipeline(capsys: pytest.CaptureFixture[str]) -> None:
    """A lower rung that answers while the machine is busy is neither shown nor taken for a reaction."""
    api = cast(Api, _Shop())
    slates = three_slates(api, Market(3, users=30, items=200), Console(json=False), stamp="1")
    assert [slates[name]["fallback"] for name in ("known_user", "brand-new_user", "anonymous_after")] == [
        "full"
    ] * 3
    assert item_ids(slates["anonymous_before"]) == ["item-00000"]
    assert item_ids(slates["anonymous_after"]) == ["item-00003"]
    assert slates["reaction_seconds"] < 3.0
    assert capsys.readouterr().out.count("curl homepage") == 4


def test_consumers_are_waited_for(tmp_path: Path) -> None:
    """Only what was handled after the start counts, and only from the stream of events."""
    folder = tmp_path / "run/streams"
    folder.mkdir(parents=True)
    names = ("land_events", "update_features")
    files = [folder / f"narrows-shop-local-{name.replace('_', '-')}.json" for name in names]

    def write(records: int) -> None:
        for file in files:
            counts = {"arn:stream/Events": {"records": records}, "arn:stream/Decisions": {"records": 999}}
            file.write_text(json.dumps(counts))

    write(10)
    consumers = Consumers(tmp_path, names)
    with pytest.raises(CommandFailed, match=r"have handled .* of 5 events"):
        consumers.wait_for(5, 0.0, Progress("wait", 5, "events"))
    write(15)
    assert consumers.wait_for(5, 1.0, Progress("wait", 5, "events")) == dict.fromkeys(names, 5)


def test_the_most_active_user_is_the_one_who_comes_most() -> None:
    """The demo's known user is the busiest in the log."""
    market = Market(5, users=30, items=200)
    visits = np.bincount(market.visitors(20_000, np.random.default_rng(1)), minlength=30)
    assert market.most_active() == int(visits.argmax())
