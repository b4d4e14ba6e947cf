"""Commands that talk to the running service, or do its work themselves when none runs; and how ``cdc run`` ends."""

from __future__ import annotations

import csv
import datetime
import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import threading
import types
from collections.abc import Iterator
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import structlog

import cdc_service
from cdc_service.cli import exits, view
from cdc_service.cli.main import run
from cdc_service.cli.run import exit_code
from cdc_service.core.errors import Disposition, TableStopped, Unavailable
from cdc_service.results import ARROW, column_values
from tests.support.wiring import wire
from tests.unit.test_config import MINIMAL

LIMIT_SECONDS = 30.0
STATUS: dict[str, Any] = {
    "version": 1,
    "pipeline": "shop",
    "at": "2026-01-01T00:00:10Z",
    "service": {"running": True, "pid": 7, "api": "http://127.0.0.1:1"},
    "connector": {"name": "cdc_shop", "state": "RUNNING", "slot": "cdc_shop", "wal_status": "reserved", "retained_bytes": 3 * 2**20},
    "tables": [
        {
            "source": "public.orders", "target": "public.orders", "mode": "upsert", "state": "streaming", "rows": 123456,
            "applied": 9, "folded": 1, "duplicate": 0, "parked": 0, "filtered": 2, "lag_events": 5, "lag_seconds": 0.25,
            "position": "184467440737095516", "synced_at": "2026-01-01T00:00:08+00:00", "error": None,
        },
        {
            "source": 'public."a.b"', "target": "public.a.b", "mode": "upsert", "state": "drift", "rows": None,
            "applied": 0, "folded": 0, "duplicate": 0, "parked": 0, "filtered": 0, "lag_events": None, "lag_seconds": None,
            "position": None, "synced_at": None,
            "error": {"code": "drift", "message": "a column is gone", "hint": "cdc resync it", "at": "2026-01-01T00:00:00Z"},
        },
    ],
}  # fmt: skip


class Api(BaseHTTPRequestHandler):
    """The service's API, answering with what the test gave; it notes what it was asked."""

    answers: dict[tuple[str, str], tuple[int, str, bytes]]
    asked: list[tuple[str, str, str | None, Any]]

    def _answer(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"null")
        self.asked.append((self.command, self.path, self.headers.get("Authorization"), body))
        status, kind, content = self.answers.get((self.command, self.path), (500, "text/plain", b"oops"))
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = _answer  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a configuration, as the working directory."""
    (tmp_path / "cdc.yaml").write_text(MINIMAL)
    (tmp_path / ".cdc").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def api(folder: Path) -> Iterator[type[Api]]:
    """A service that seems to run: an HTTP server in this very process."""
    made = type("Made", (Api,), {"answers": {}, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), made)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    found = {"url": f"http://127.0.0.1:{server.server_port}", "token": "tok-1", "pid": os.getpid()}
    (folder / ".cdc/api.json").write_text(json.dumps(found))
    yield made
    server.shutdown()
    server.server_close()
    thread.join(LIMIT_SECONDS)


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    return wire(monkeypatch)


def good(value: Any) -> tuple[int, str, bytes]:
    return 200, "application/json", json.dumps(value).encode()


def test_status_comes_from_the_running_service(api: type[Api], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # a proxy has no business here
    api.answers["GET", "/status"] = good(STATUS)
    assert run(["status", "--json"]) == exits.OK
    assert json.loads(capsys.readouterr().out) == STATUS
    assert api.asked == [("GET", "/status", "Bearer tok-1", None)]
    assert run(["status"]) == exits.OK
    said = capsys.readouterr()
    assert [line.split() for line in said.out.splitlines()] == [
        ["table", "state", "rows", "applied", "parked", "lag", "behind", "age", "position"],
        ["public.orders", "streaming", "123456", "9", "5", "0.2s", "2.0s", "184467440737095516"],
        ['public."a.b"', "drift", "0"],
    ]
    assert "connector cdc_shop running; slot cdc_shop reserved, keeps 3.0 MiB" in said.err
    assert 'public."a.b": a column is gone\n  cure: cdc resync it' in said.err


def test_what_the_service_waits_for_and_what_ails_the_connector_is_said_with_its_cure() -> None:
    waiting = {"code": "unavailable", "message": "Kafka does not answer", "hint": "start it"}
    ailing = {**STATUS["connector"], "state": "FAILED", "problems": ["task 0: no slot"]}
    tables = [{**STATUS["tables"][1], "error": {"code": "x", "message": 'public."a.b": a sentence', "hint": None}}]
    assert view.troubles(
        {**STATUS, "service": {"running": True, "pid": 7, "waiting_for": waiting}, "connector": ailing, "tables": tables}
    ) == [
        "waiting: Kafka does not answer",
        "  cure: start it",
        "connector cdc_shop: task 0: no slot",
        "  cure: mend the cause, then: cdc register",
        'public."a.b": a sentence',
    ]
    assert view.troubles({**STATUS, "tables": STATUS["tables"][:1]}) == []
    settled = {**STATUS["tables"][0], "parked": 7, "parked_waiting": 2}
    columns, rows = view.rows({**STATUS, "tables": [settled]})
    assert dict(zip(columns, rows[0], strict=True))["parked"] == 2, "those that were decided on ask for nothing"
    gone = {**STATUS, "connector": {**STATUS["connector"], "state": "MISSING"}, "tables": []}
    assert view.troubles(gone) == ["connector cdc_shop does not exist, so nothing new comes from the source", "  cure: cdc register"]


@pytest.mark.parametrize("width", [200, 100, 80, 60, 40])
def test_on_a_terminal_a_table_is_as_wide_as_the_terminal_and_keeps_what_matters(width: int) -> None:
    from rich.console import Console

    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
    with console.capture() as captured:
        console.print(view.frame(STATUS, {"public.orders": 1234.5}, width))
    lines = captured.get().splitlines()
    header = next(line.split() for line in lines if line.startswith("table"))
    assert set(header) >= {"table", "state", "lag", "behind"}
    assert ("position" in header) == (width >= 100)
    assert "parked" not in header, "nothing is parked"
    row = next(line for line in lines if line.startswith("public.orders"))
    assert len(row.split()) == len(header), "each value on one line with its table"
    assert max(map(len, lines)) <= width


def test_what_stopped_several_tables_is_said_once_and_with_the_command_for_all() -> None:
    error = {"code": "warehouse_rights", "message": "the role may not", "hint": "GRANT it"}
    names = [f"public.t{n}" for n in range(5)]
    tables = [{**STATUS["tables"][0], "source": name, "state": "error", "error": error} for name in names]
    assert view.troubles({**STATUS, "tables": tables}) == [
        "public.t0, public.t1, public.t2 and 2 more: the role may not",
        "  cure: GRANT it",
        "when what stopped them is mended, one command lets all go on: cdc resume --all",
    ]
    assert "resume --all" not in "".join(view.troubles({**STATUS, "tables": tables[:1]}))


def test_all_tables_are_resumed_through_the_service_and_one_that_cannot_is_a_decision(
    api: type[Api], capsys: pytest.CaptureFixture[str]
) -> None:
    going = {"table": "public.a", "state": "streaming", "message": "it goes on"}
    error = {"code": "needs_resync", "message": "it cannot simply go on", "hint": "cdc resync public.b"}
    for tables, code in (
        ([], exits.OK),
        ([going], exits.OK),
        ([going, {"table": "public.b", "state": "x", "error": error}], exits.DECISION),
    ):
        api.answers["POST", "/resume"] = good({"tables": tables})
        assert run(["resume", "--all", "--json"]) == code
        assert json.loads(capsys.readouterr().out) == {"tables": tables}
        assert run(["resume", "--all"]) == code
        said = capsys.readouterr()
        assert said.out.count("\n") == len(tables)
        assert ("cdc resync public.b" in said.err) == (code == exits.DECISION)


def test_watching_is_for_a_terminal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["status", "--watch"]) == exits.USAGE
    assert "needs a terminal" in capsys.readouterr().err


def test_what_is_logged_on_the_way_never_reaches_the_result(
    folder: Path, app: types.ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    def act(config: object, action: str, table: str) -> dict[str, str]:
        structlog.get_logger().info("asked by a person", action=action)
        structlog.get_logger().warning("not yet")
        return {"table": table, "state": "paused"}

    structlog.reset_defaults()
    app.act = act  # type: ignore[attr-defined]
    assert run(["pause", "public.x", "--json"]) == exits.OK
    said = capsys.readouterr()
    assert json.loads(said.out) == {"table": "public.x", "state": "paused"}
    assert "not yet" in said.err
    assert "asked" not in said.err


@pytest.mark.parametrize("left", ["none", "dead process", "garbage", "nobody listens"])
def test_without_a_service_the_destination_is_asked(
    left: str, folder: Path, app: types.ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait(LIMIT_SECONDS)
    said = {"url": "http://127.0.0.1:9", "token": "t", "pid": ended.pid if left == "dead process" else os.getpid()}
    if left != "none":
        (folder / ".cdc/api.json").write_text("{" if left == "garbage" else json.dumps(said))
    app.status = lambda config: {**STATUS, "pipeline": config.pipeline}  # type: ignore[attr-defined]
    app.act = lambda config, action, table, **more: {"table": table, "state": action, **more}  # type: ignore[attr-defined]
    app.query = lambda config, sql, *, rows_max: pa.table({"a": [1]})  # type: ignore[attr-defined]
    assert run(["status", "--json"]) == exits.OK
    assert json.loads(capsys.readouterr().out)["pipeline"] == "shop"
    assert run(["adopt", "public.x", "--at-offsets", "--json"]) == exits.OK
    assert json.loads(capsys.readouterr().out) == {"table": "public.x", "state": "adopt", "how": "at_offsets"}
    assert run(["query", "select 1", "--csv"]) == exits.OK
    assert capsys.readouterr().out == "a\n1\n"


def test_a_service_that_starts_meanwhile_is_asked_after_all(
    folder: Path, api: type[Api], app: types.ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    """The file is the service's by now, and its address not written yet."""
    written = (folder / ".cdc/api.json").read_text()
    (folder / ".cdc/api.json").unlink()
    lock = (folder / ".cdc/shop.lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    api.answers["GET", "/status"] = good(STATUS)

    def held(config: object) -> None:
        threading.Timer(0.3, (folder / ".cdc/api.json").write_text, [written]).start()
        raise Unavailable("the file is held open")

    app.status = held  # type: ignore[attr-defined]
    assert run(["status", "--json"]) == exits.OK
    assert json.loads(capsys.readouterr().out) == STATUS
    lock.close()
    (folder / ".cdc/api.json").unlink()
    app.status = lambda config: (_ for _ in ()).throw(Unavailable("the file is held open"))  # type: ignore[attr-defined]
    assert run(["status"]) == exits.UNFINISHED, "nobody starts: nothing to wait for"


def test_a_table_is_named_whole_in_the_address(api: type[Api], capsys: pytest.CaptureFixture[str]) -> None:
    path = "/tables/public.%22a%2Fb.%C3%A9%22/pause"
    api.answers["POST", path] = good({"table": 'public."a/b.é"', "state": "paused"})
    assert run(["pause", 'public."a/b.é"']) == exits.OK
    assert capsys.readouterr().out == 'public."a/b.é": paused\n'
    assert api.asked == [("POST", path, "Bearer tok-1", {})]


def test_what_destroys_asks_first(api: type[Api], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    api.answers["POST", "/tables/public.x/resync"] = good({"table": "public.x", "state": "snapshotting"})
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False)
    assert run(["resync", "public.x"]) == exits.USAGE
    assert "--yes" in capsys.readouterr().err
    assert api.asked == []
    assert run(["resync", "public.x", "--yes"]) == exits.OK


@pytest.mark.parametrize(
    ("status", "error", "code", "sentence"),
    [
        (404, {"code": "no_table", "message": "no table x", "hint": "one of a, b", "disposition": "config"}, 3, "no table x"),
        (409, {"code": "needs_resync", "message": "it needs a resync", "hint": ""}, 4, "it needs a resync"),
        (503, {"code": "unavailable", "message": "the warehouse is busy"}, 2, "the warehouse is busy"),
        (401, None, 3, "the service answered 401"),
        (500, None, 2, "the service answered 500"),
    ],
)
def test_the_services_errors_are_the_commands_errors(
    status: int, error: dict[str, str] | None, code: int, sentence: str, api: type[Api], capsys: pytest.CaptureFixture[str]
) -> None:
    api.answers["POST", "/tables/x.y/resume"] = (status, "application/json", json.dumps({"error": error} if error else "?").encode())
    assert run(["resume", "x.y"]) == code
    assert sentence in capsys.readouterr().err


def test_a_query_is_shown_as_table_json_and_csv(api: type[Api], capsys: pytest.CaptureFixture[str]) -> None:
    rows = {
        "n": pa.array([1, None]),
        "d": pa.array([Decimal("1.50"), None]),
        "t": pa.array(["a\x1b[1mb,c", None]),
        "f": pa.array([float("inf"), None]),
    }
    table = pa.table(rows)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    api.answers["POST", "/query"] = (200, ARROW, sink.getvalue().to_pybytes())
    assert run(["query", "select 1"]) == exits.OK
    said = capsys.readouterr()
    assert [line.split() for line in said.out.splitlines()] == [
        ["n", "d", "t", "f"], ["1", "1.50", "a\\x1b[1mb,c", "inf"], ["NULL", "NULL", "NULL", "NULL"]
    ]  # fmt: skip
    assert said.err == "2 rows\n"
    assert run(["query", "select 1", "--json", "--limit", "1"]) == exits.OK
    said = capsys.readouterr()
    first = {"n": 1, "d": "1.50", "t": "a\x1b[1mb,c", "f": "inf"}
    assert json.loads(said.out) == {"columns": ["n", "d", "t", "f"], "rows": [first], "truncated": True}
    assert "more than 1 rows" in said.err
    assert run(["query", "select 1", "--csv"]) == exits.OK
    assert capsys.readouterr().out == 'n,d,t,f\n1,1.50,"a\x1b[1mb,c",inf\n,,,\n'
    assert [body["rows_max"] for _, _, _, body in api.asked] == [10_001, 2, 10_001]
    api.answers["POST", "/query"] = good({"columns": ["a", "a"], "rows": [[1, "x"]]})
    assert run(["query", "select 1", "--json"]) == exits.OK
    assert json.loads(capsys.readouterr().out)["rows"] == [{"a": 1, "a_2": "x"}]


def test_no_value_of_a_query_is_shown_as_python_spells_it(api: type[Api], capsys: pytest.CaptureFixture[str]) -> None:
    interval = pa.MonthDayNano([14, -1, 1_500_000_000])
    table = pa.table(
        {
            "b": pa.array([True]),
            "x": pa.array([b"a"]),
            "l": pa.array([["x", None, 'a,"b"']]),
            "s": pa.array([{"d": Decimal("1.50"), "b": [False]}]),
            "i": pa.array([interval], pa.month_day_nano_interval()),
        }
    )
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    api.answers["POST", "/query"] = (200, ARROW, sink.getvalue().to_pybytes())
    shown = ["true", "\\x61", '["x", null, "a,\\"b\\""]', '{"d": "1.50", "b": [false]}', "P14M-1DT1.5S"]
    assert run(["query", "select 1", "--csv"]) == exits.OK
    assert list(csv.reader(io.StringIO(capsys.readouterr().out))) == [["b", "x", "l", "s", "i"], shown]
    assert run(["query", "select 1"]) == exits.OK
    assert capsys.readouterr().out.splitlines()[1].split("  ") == shown
    assert run(["query", "select 1", "--json"]) == exits.OK
    assert json.loads(capsys.readouterr().out)["rows"][0]["i"] == "P14M-1DT1.5S"


def test_times_that_python_cannot_hold_are_shown() -> None:
    micros = pa.array([2**63 - 1, -(2**63 - 1), 253402300800000000, 0, None], pa.int64())
    assert column_values(micros.cast(pa.timestamp("us")))[:3] == ["infinity", "-infinity", "10000-01-01 00:00:00.000000"]
    assert column_values(micros.cast(pa.timestamp("us", "UTC")))[4] is None
    assert column_values(micros[3:].cast(pa.timestamp("us"))) == [datetime.datetime(1970, 1, 1), None]
    assert column_values(pa.array([2**31 - 1, -(2**31 - 1), None], pa.int32()).cast(pa.date32())) == ["infinity", "-infinity", None]


def test_rates_are_of_the_last_seconds_and_only_of_what_was_seen_twice() -> None:
    rates = view.Rates()

    def at(seconds: float, applied: int, state: str = "streaming") -> dict[str, float]:
        return rates.add(seconds, {"tables": [{"source": "t", "state": state, "applied": applied, "folded": applied}]})

    assert at(-0.5, -500, "waiting") == {}, "what an earlier run applied is no rate of this one"
    assert at(0.0, 0) == {}
    assert at(2.0, 100) == {"t": 100.0}
    assert at(4.0, 200) == {"t": 100.0}
    assert at(100.0, 200)["t"] < 2.5
    assert at(104.0, 200)["t"] == 0.0


def test_a_table_that_is_loaded_says_how_much_of_it_is_there() -> None:
    table = {**STATUS["tables"][0], "state": "snapshotting", "loading": {"rows": 4500, "ranges": 20, "ranges_done": 9}}
    columns, shown = view.rows({**STATUS, "tables": [table]})
    assert dict(zip(columns, shown[0], strict=True))["state"] == "snapshotting 45%"
    rates = view.Rates()
    before = {**table, "loading": {**table["loading"], "rows": 500}}
    rates.add(0.0, {"tables": [before]})
    assert rates.add(2.0, {"tables": [table]}) == {"public.orders": 2000.0}
    assert rates.add(3.0, {"tables": [{**table, "loading": None}]})["public.orders"] == 0.0, "what is there is no rate any more"


@pytest.mark.parametrize(
    ("ended", "by", "state", "code"),
    [
        ("stopped", signal.SIGTERM, "needs_resync", 0),
        ("stopped", signal.SIGINT, "streaming", 130),
        ("caught_up", None, "streaming", 0),
        ("caught_up", None, "paused", 0),
        ("caught_up", None, "needs_resync", 4),
        ("once", None, "schema_stopped", 4),
        ("timeout", None, "streaming", 2),
        ("timeout", signal.SIGTERM, "drift", 2),
    ],
)
def test_how_a_run_ended_is_its_exit_code(ended: str, by: int | None, state: str, code: int) -> None:
    assert exit_code(ended, by, {"tables": [{"state": state}]}) == code


SERVICE = """
import contextlib, sys, time, types
import cdc_service
from cdc_service.cli.main import main
from cdc_service.core.clock import Stop

class Service:
    abandoned = False
    def __init__(self):
        self.asked = Stop()
    def run(self, **asked):
        print("working", asked, flush=True)
        while not self.asked.wait(0.01):
            pass
        until = time.monotonic() + {limit} * {deaf}
        while time.monotonic() < until:  # Not in one wait: a signal just before it would not end it.
            time.sleep(0.01)
        return "stopped"
    def stop(self):
        self.asked.set()
    def snapshot(self):
        return {status}

running = types.ModuleType("cdc_service.runtime.wiring.running")
running.open_service = lambda config: contextlib.nullcontext(Service())
sys.modules["cdc_service.runtime.wiring.running"] = running
main()
"""


def started(folder: Path, *, deaf: bool) -> subprocess.Popen[str]:
    """``cdc run`` on a service that works until it is stopped, or (deaf) goes on even then."""
    code = SERVICE.format(deaf=deaf, limit=LIMIT_SECONDS, status=STATUS)
    root = str(Path(cdc_service.__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, "-c", code, "run", "--timeout", "9"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=folder, env={**os.environ, "PYTHONPATH": root},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "working {'until_caught_up': False, 'until': None, 'once': False, 'timeout_seconds': 9.0}\n"
    return process


@pytest.mark.parametrize(("number", "once", "twice"), [(signal.SIGTERM, 0, 143), (signal.SIGINT, 130, 130)])
def test_the_first_signal_stops_and_the_second_aborts(number: int, once: int, twice: int, folder: Path) -> None:
    process = started(folder, deaf=False)
    process.send_signal(number)
    _, said = process.communicate(timeout=LIMIT_SECONDS)
    assert process.returncode == once
    assert "stopping" in said
    assert "ended: stopped" in said
    assert "table=public.orders state=streaming applied=9" in said, "the last state is in the log of a pipe"
    process = started(folder, deaf=True)
    assert process.stderr is not None
    process.send_signal(number)
    while (line := process.stderr.readline()) and "stopping" not in line:
        pass
    process.send_signal(number)
    _, said = process.communicate(timeout=LIMIT_SECONDS)
    assert process.returncode == twice
    assert "aborted" in said


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_before_the_service_is_open_ends_it_quietly(
    number: int, code: int, folder: Path, app: types.ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(config: object) -> None:
        os.kill(os.getpid(), number)
        threading.Event().wait(LIMIT_SECONDS)

    before = signal.getsignal(number)
    app.open_service = interrupted  # type: ignore[attr-defined]
    assert run(["run"]) == code
    assert "Traceback" not in capsys.readouterr().err
    assert signal.getsignal(number) == before


def test_a_service_that_cannot_start_says_why(folder: Path, app: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(config: object) -> None:
        raise TableStopped("nothing fits", state="needs_decision", hint="cdc adopt it")

    app.open_service = refuse  # type: ignore[attr-defined]
    assert TableStopped("x", state="y").disposition is Disposition.OPERATOR
    assert run(["run"]) == exits.DECISION
    assert capsys.readouterr().err == "error: nothing fits\ncure:  cdc adopt it\n"
