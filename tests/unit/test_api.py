"""The HTTP API on a real socket: who may ask, what is answered, how it starts and ends; and its metrics as a scraper reads them."""

from __future__ import annotations

import datetime
import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pyarrow as pa
import pytest
import structlog
from prometheus_client.parser import text_string_to_metric_families

import cdc_service
from cdc_service.api.server import Api
from cdc_service.cli.service import NotThere, Running, call_or_none, find
from cdc_service.config.models import Listen
from cdc_service.core.errors import CdcError, ConfigError, Disposition, Fenced, TableStopped, Unavailable
from cdc_service.metrics import render
from cdc_service.results import ARROW
from tests.support import loopback
from tests.support.registration import eventually

LIMIT_SECONDS = 30.0
LOOPBACK = Listen("127.0.0.1", 0)
DOCUMENT: dict[str, Any] = {
    "version": 1,
    "pipeline": "shop",
    "at": "2026-01-01T00:00:10Z",
    "service": {
        "running": True, "pid": 7, "api": None, "buffered_bytes": 4096, "merges": 3, "merge_seconds": 0.75, "fetched_records": 20,
    },
    "connector": {"name": "cdc_shop", "state": "RUNNING", "slot": "cdc_shop", "wal_status": "reserved", "retained_bytes": 3 * 2**20},
    "tables": [
        {
            "source": 'public."a.\\b\n"', "target": "public.x", "mode": "upsert", "state": "streaming", "rows": 12,
            "applied": 9, "folded": 1, "duplicate": 4, "parked": 0, "filtered": 2, "lag_events": 5, "lag_seconds": 0.25,
            "position": "77", "source_commit_at": "2026-01-01T00:00:07.5Z", "complete_through": "76",
            "synced_at": "2026-01-01T00:00:08+00:00",
            "partitions": [{"partition": 0, "next_offset": 16, "end_offset": 21}, {"partition": 1, "next_offset": 0, "end_offset": None}],
            "error": None,
        },
        {"source": "public.empty", "target": "public.empty", "mode": "upsert", "state": "needs_decision", "applied": 0},
    ],
}  # fmt: skip


class Service:
    """The seam: answers what the test gave, and holds every query until ``go`` is set."""

    def __init__(self) -> None:
        self.acted: list[tuple[str, str, Mapping[str, Any]]] = []
        self.asked: list[tuple[str, int]] = []
        self.well = True
        self.raises: Exception | None = None
        self.table = pa.table({"n": [1, 2]})
        self.entered = threading.Semaphore(0)
        self.go = threading.Event()
        self.go.set()

    def snapshot(self) -> dict[str, Any]:
        if self.raises:
            raise self.raises
        return DOCUMENT

    def act(self, action: str, table: str, body: Mapping[str, Any]) -> dict[str, Any]:
        if self.raises:
            raise self.raises
        self.acted.append((action, table, body))
        return {"table": table, "state": action}

    def resume_all(self) -> dict[str, Any]:
        if self.raises:
            raise self.raises
        return {"tables": [{"table": "public.a", "state": "streaming", "message": ""}]}

    def quarantine(self, action: str, body: Mapping[str, Any]) -> dict[str, Any]:
        self.acted.append((action, "quarantine", body))
        return {"action": action}

    def query(self, sql: str, rows_max: int) -> pa.Table:
        self.asked.append((sql, rows_max))
        self.entered.release()
        assert self.go.wait(LIMIT_SECONDS), "the test never let the query go"
        return self.table

    def health(self) -> tuple[bool, str]:
        return self.well, "the loop turns" if self.well else "the loop stands"

    def ready(self) -> tuple[bool, str]:
        return self.well, "merging" if self.well else "Kafka is away"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The state folder of the module's API."""
    return tmp_path_factory.mktemp("api") / "state"


@pytest.fixture(scope="module")
def module_api(folder: Path) -> Iterator[tuple[Service, Api]]:
    service = Service()
    with Api(service, LOOPBACK, folder, None) as made:
        yield service, made


@pytest.fixture
def service(module_api: tuple[Service, Api]) -> Iterator[Service]:
    """As new for each test."""
    module_api[0].__init__()  # type: ignore[misc]
    yield module_api[0]
    module_api[0].go.set()


@pytest.fixture
def api(service: Service, module_api: tuple[Service, Api]) -> Api:
    """One API for the tests that neither start nor end one."""
    return module_api[1]


@pytest.fixture
def running(api: Api, folder: Path) -> Running:
    """The client of the commands, as it finds the service."""
    return found_in(folder)


@pytest.fixture
def client(running: Running) -> Iterator[httpx.Client]:
    with loopback.client(running.url, {"Authorization": f"Bearer {running.token}"}, timeout=LIMIT_SECONDS) as made:
        yield made


class Config:
    """What ``find`` reads of a configuration."""

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir


def found_in(folder: Path) -> Running:
    found = find(Config(folder))  # type: ignore[arg-type]
    assert found is not None
    return found


def error_of(answer: httpx.Response) -> dict[str, str]:
    assert answer.headers["content-type"] == "application/json"
    error: dict[str, str] = answer.json()["error"]
    assert set(error) == {"code", "message", "hint", "disposition"}
    assert error["message"]
    assert error["hint"]
    Disposition(error["disposition"])
    return error


def test_api_json_is_private_whole_and_gone_at_the_end(service: Service, tmp_path: Path) -> None:
    folder = tmp_path / "state"
    with Api(service, LOOPBACK, folder, None) as api:
        file = folder / "api.json"
        said = json.loads(file.read_text())
        assert said == {"url": api.url, "pid": os.getpid(), "token": said["token"]}
        assert len(said["token"]) >= 32
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert [path.name for path in folder.iterdir()] == ["api.json"]
    assert list(folder.iterdir()) == []
    with Api(service, LOOPBACK, folder, None):
        assert json.loads(file.read_text())["token"] != said["token"], "each run has its own token"


def test_an_api_json_of_another_process_stays(service: Service, tmp_path: Path) -> None:
    file = tmp_path / "api.json"
    with Api(service, LOOPBACK, tmp_path, None):
        other = json.dumps({"url": "http://127.0.0.1:1", "token": "t", "pid": 1})
        file.write_text(other)
    assert file.read_text() == other


def test_the_token_may_come_from_a_file(service: Service, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(" s3cret-token\n")
    with Api(service, LOOPBACK, tmp_path, tmp_path / "token") as api:
        assert loopback.get(f"{api.url}/status", headers={"Authorization": "bearer s3cret-token"}).json() == DOCUMENT


@pytest.mark.parametrize("content", [None, b"", b" \n", b"two words", b"two\nlines", "schlüssel".encode(), b"\xff"])
def test_a_token_file_that_holds_none_is_a_configuration_error(content: bytes | None, service: Service, tmp_path: Path) -> None:
    file = tmp_path / "token"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match="token") as raised, Api(service, LOOPBACK, tmp_path / "state", file):
        pass
    assert "api.token_file" in raised.value.hint
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer wrong", "Basic {token}", "{token}", "Bearer {token}x", b"Bearer \xff"])
def test_only_health_and_readiness_are_told_without_the_token(header: str | bytes | None, api: Api, running: Running) -> None:
    sent = header.format(token=running.token) if isinstance(header, str) else header
    headers = {} if sent is None else {b"Authorization": sent if isinstance(sent, bytes) else sent.encode()}
    with loopback.client(api.url, headers) as client:
        for method, path in [
            ("GET", "/status"), ("GET", "/metrics"), ("POST", "/query"), ("POST", "/tables/a.b/pause"), ("GET", "/nothing"),
            ("GET", "/health/"), ("GET", "//health"), ("GET", "/%68ealth"), ("GET", "/health%2F..%2Fstatus"),
        ]:  # fmt: skip
            answer = client.request(method, path)
            assert answer.status_code == 401, path
            assert answer.headers["www-authenticate"] == "Bearer"
            assert "api.json" in error_of(answer)["hint"]
        assert client.get("/health").json() == {"ok": True, "message": "the loop turns"}
        assert client.get("/ready").json() == {"ok": True, "message": "merging"}


def test_what_is_not_well_answers_503_with_the_reason(service: Service, client: httpx.Client) -> None:
    service.well = False
    answers = [client.get("/health"), client.get("/ready")]
    assert [answer.status_code for answer in answers] == [503, 503]
    assert [answer.json() for answer in answers] == [{"ok": False, "message": "the loop stands"}, {"ok": False, "message": "Kafka is away"}]


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1", True), ("localhost:99", True), ("LOCALHOST", True), ("[::1]:1", True), ("127.0.0.2", True),
        ("evil.example", False), ("localhost.evil.example", False), ("evil.example:80", False), ("", False), ("10.0.0.1", False),
        ("localhost@evil", False), ("[::1", False), ("127.0.0.1:1:2", False),
    ],
)  # fmt: skip
def test_a_host_that_was_rebound_is_refused(host: str, allowed: bool, client: httpx.Client) -> None:
    for path in ("/health", "/status"):
        answer = client.get(path, headers={"Host": host})
        assert answer.status_code == (200 if allowed else 400), path
        if not allowed:
            assert error_of(answer)["code"] == "wrong_host"


def test_an_api_for_the_network_is_reached_by_address_and_not_by_any_name(service: Service, tmp_path: Path) -> None:
    with Api(service, Listen("0.0.0.0", 0), tmp_path, None) as api:
        assert api.url.startswith("http://127.0.0.1:")
        assert loopback.get(f"{api.url}/health", headers={"Host": "10.1.2.3:8080"}).status_code == 200
        assert loopback.get(f"{api.url}/health", headers={"Host": "evil.example"}).status_code == 400


def test_it_listens_on_ipv6(service: Service, tmp_path: Path) -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 loopback here")
    with Api(service, Listen("::1", 0), tmp_path, None) as api:
        assert api.url.startswith("http://[::1]:")
        assert loopback.get(f"{api.url}/health").status_code == 200


def test_status_is_the_document(running: Running, client: httpx.Client, folder: Path) -> None:
    assert running.call("GET", "/status") == DOCUMENT
    assert client.head("/status").content == b""
    answer = call_or_none(Config(folder), "GET", "/status")  # type: ignore[arg-type]
    assert answer is not None
    assert answer.json() == DOCUMENT


@pytest.mark.parametrize(
    "table",
    [
        "public.orders",
        'public."a/b.é"',
        "a.%2F",
        "a.100%",
        "..",
        "x../../status",
        "a.b?c=d#e",
        "a.\n\t\0",
        "a.' OR 1=1 --",
        "s.表😀",
        "a.b/pause",
        " ",
    ],
)
@pytest.mark.parametrize("action", ["pause", "resume", "resync", "adopt"])
def test_a_table_arrives_as_it_was_named(action: str, table: str, service: Service, running: Running) -> None:
    name = quote(table, safe="").replace(".", "%2E")  # a client may take dots for a way up
    assert running.call("POST", f"/tables/{name}/{action}", {"how": "empty"}) == {"table": table, "state": action}
    assert service.acted == [(action, table, {"how": "empty"})]


def test_an_action_needs_no_body(service: Service, client: httpx.Client) -> None:
    assert client.post("/tables/a.b/pause").status_code == 200
    assert service.acted == [("pause", "a.b", {})]


def test_all_tables_that_stand_still_are_resumed_by_one_request(client: httpx.Client) -> None:
    assert client.post("/resume").json()["tables"] == [{"table": "public.a", "state": "streaming", "message": ""}]
    assert client.get("/resume").status_code == 405


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404), ("GET", "/nothing", 404), ("GET", "/status/", 404), ("POST", "/tables/a.b/drop", 404),
        ("POST", "/tables/a.b", 404),
        ("POST", "/tables//pause", 404), ("POST", "/tables/a/b/pause", 404), ("GET", "/docs", 404),
        ("POST", "/status", 405), ("DELETE", "/tables/a.b/pause", 405), ("GET", "/tables/a.b/pause", 405), ("GET", "/query", 405),
        ("PUT", "/health", 405), ("POST", "/tables/a.%FF/pause", 400),
    ],
)  # fmt: skip
def test_other_paths_and_methods_are_refused(method: str, path: str, status: int, service: Service, client: httpx.Client) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert error_of(answer)["disposition"] == "config"
    assert ("allow" in answer.headers) == (status == 405)
    assert service.acted == []


@pytest.mark.parametrize(
    ("raised", "status"),
    [
        (ConfigError("no table x", hint="one of a, b", code="no_table"), 400),
        (Unavailable("the warehouse is busy", hint="ask later"), 503),
        (TableStopped("it needs a resync", state="needs_resync", hint="cdc resync it"), 409),
        (Fenced("another writer", hint="look for it"), 409),
        (CdcError("\ud800 <b>é", hint="\x1b[1m"), 409),
    ],
)
def test_the_services_errors_reach_the_client_as_they_were(
    raised: CdcError, status: int, service: Service, running: Running, client: httpx.Client
) -> None:
    service.raises = raised
    assert client.post("/tables/a.b/resume").status_code == status
    with pytest.raises(CdcError) as seen:
        running.call("POST", "/tables/a.b/resume", {})
    got = seen.value
    assert (got.code, got.message, got.hint, got.disposition) == (raised.code, raised.message, raised.hint, raised.disposition)


def test_an_error_that_nobody_expected_tells_nothing_and_is_logged_without_values(service: Service, client: httpx.Client) -> None:
    service.raises = RuntimeError("cell value 4711")
    with structlog.testing.capture_logs() as logs:
        for answer in (client.get("/status"), client.get("/metrics"), client.post("/tables/a.b/pause")):
            assert answer.status_code == 500
            assert error_of(answer)["code"] == "internal"
            assert "4711" not in answer.text
            assert "RuntimeError" not in answer.text
    assert [(entry["path"], entry["error"]) for entry in logs] == [
        ("/status", "RuntimeError"), ("/metrics", "RuntimeError"), ("/tables/a.b/pause", "RuntimeError")
    ]  # fmt: skip
    assert "in snapshot" in logs[0]["exception"]
    assert "4711" not in str(logs)
    service.raises = None
    assert client.get("/status").status_code == 200


@pytest.mark.parametrize(
    "body", [b"{", b"[]", b'"x"', b"1", b"null", b"\xff\xfe", b"[" * 100_000, b'{"how": 1} x', b"9" * 5000],
    ids=["cut", "list", "text", "number", "null", "bytes", "deep", "tail", "digits"],
)  # fmt: skip
def test_a_body_that_is_no_json_object_is_refused(body: bytes, service: Service, client: httpx.Client) -> None:
    for path in ("/tables/a.b/adopt", "/query"):
        answer = client.post(path, content=body)
        assert answer.status_code == 400
        assert error_of(answer)["code"] == "not_json"
    assert service.acted == []
    assert service.asked == []


@pytest.mark.parametrize("size", [2**20 + 1, 40 * 2**20])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_that_is_too_large_is_refused(size: int, chunked: bool, service: Service, client: httpx.Client) -> None:
    whole = b'{"sql": "' + b"x" * (size - 11) + b'"}'
    assert len(whole) == size
    answer = client.post("/query", content=iter([whole[:1000], whole[1000:]]) if chunked else whole)
    assert answer.status_code == 413
    assert error_of(answer)["code"] == "too_large"
    fits = b'{"sql": "' + b"x" * (2**20 - 11) + b'"}'
    assert client.post("/query", content=fits).status_code == 200
    assert [len(sql) for sql, _ in service.asked] == [2**20 - 11]


@pytest.mark.parametrize(
    "body", [{}, {"sql": 1}, {"sql": " "}, {"sql": "x", "rows_max": 0}, {"sql": "x", "rows_max": True}, {"sql": "x", "rows_max": "5"},
             {"sql": "x", "rows_max": 1.0}, {"sql": "x", "rows_max": 2**63}],
)  # fmt: skip
def test_a_query_without_sense_is_refused(body: dict[str, Any], service: Service, client: httpx.Client) -> None:
    answer = client.post("/query", json=body)
    assert answer.status_code == 400
    error_of(answer)
    assert service.asked == []


def test_a_query_answers_arrow_exactly(service: Service, running: Running) -> None:
    service.table = pa.table(
        [pa.array([1, None]), pa.array([Decimal("1.50"), None]), pa.array([2**63 - 1, 0]).cast(pa.timestamp("us", "UTC"))],
        names=["a", "a", "t"],
    )
    answer = running.answer("POST", "/query", {"sql": "select 'é'", "rows_max": 7})
    assert answer.headers["content-type"] == ARROW
    assert pa.ipc.open_stream(answer.content).read_all().equals(service.table)
    assert service.asked == [("select 'é'", 7)]
    service.table = pa.table({"none": pa.array([], pa.int8())})
    assert pa.ipc.open_stream(running.answer("POST", "/query", {"sql": "x"}).content).read_all().equals(service.table)
    assert service.asked[-1] == ("x", 10_000)


def test_a_query_answers_json_when_asked(service: Service, client: httpx.Client) -> None:
    def rows(*columns: pa.Array) -> Any:
        service.table = pa.table(list(columns), names=["a"] * len(columns))
        answer = client.post("/query", json={"sql": "x"}, headers={"Accept": "text/html, Application/JSON;q=0.9"})
        assert answer.headers["content-type"] == "application/json"
        assert answer.json()["columns"] == ["a"] * len(columns)
        return answer.json()["rows"]

    moment = datetime.datetime(2026, 1, 2, 3, 4, 5, 6, datetime.UTC)
    assert rows(pa.array([2**63 - 1, None]), pa.array([Decimal("1.50"), None])) == [[2**63 - 1, "1.50"], [None, None]]
    assert rows(pa.array([float("nan"), float("-inf"), 0.1])) == [["nan"], ["-inf"], [0.1]]
    assert rows(pa.array([b"\0\xff", b""]), pa.array([moment, None])) == [["00ff", "2026-01-02T03:04:05.000006+00:00"], ["", None]]
    assert rows(pa.array([2**63 - 1]).cast(pa.timestamp("us"))) == [["infinity"]]
    assert rows(pa.array([[1.5, float("inf"), None]]), pa.array([{"k": Decimal(1)}])) == [[[1.5, "inf", None], {"k": "1"}]]
    assert rows(pa.array([], pa.string())) == []
    both = client.post("/query", json={"sql": "x"}, headers={"Accept": f"{ARROW}, application/json"})
    assert both.headers["content-type"] == ARROW


def test_requests_do_not_wait_for_each_other(service: Service, client: httpx.Client, running: Running) -> None:
    service.go.clear()
    with ThreadPoolExecutor(12) as pool:
        queries = [pool.submit(running.answer, "POST", "/query", {"sql": str(n)}) for n in range(12)]
        for _ in range(4):
            assert service.entered.acquire(timeout=LIMIT_SECONDS), "the queries never came"
        others = [client.get("/status"), client.get("/health"), client.get("/metrics"), client.post("/tables/a.b/pause")]
        assert [answer.status_code for answer in others] == [200] * 4
        assert len(service.asked) == 4, "only so many queries at a time"
        service.go.set()
        assert all(query.result(LIMIT_SECONDS).status_code == 200 for query in queries)
    assert sorted(int(sql) for sql, _ in service.asked) == list(range(12))


def leave(api: Api) -> float:
    began = time.monotonic()
    api.__exit__(None, None, None)
    took = time.monotonic() - began
    api._thread.join(LIMIT_SECONDS)
    assert not api._thread.is_alive(), "the server still runs"
    return took


def test_it_ends_within_a_second_and_says_so_to_whom_waits(service: Service, tmp_path: Path) -> None:
    service.go.clear()
    api = Api(service, LOOPBACK, tmp_path, None)
    api.__enter__()
    running = found_in(tmp_path)
    with ThreadPoolExecutor(6) as pool:
        queries = [pool.submit(running.answer, "POST", "/query", {"sql": "x"}) for _ in range(6)]
        for _ in range(4):
            assert service.entered.acquire(timeout=LIMIT_SECONDS), "the queries never came"
        eventually("two queries wait for their turn", lambda: len(api._calls._queries._waiters or ()) == 2, LIMIT_SECONDS)
        assert leave(api) < 1.2
        errors = [query.exception(LIMIT_SECONDS) for query in queries]
    assert [getattr(error, "code", error) for error in errors] == ["ending"] * 6
    assert len(service.asked) == 4, "a query that waited is not begun at the end"
    with pytest.raises(NotThere):
        running.call("GET", "/health")


def test_it_ends_within_a_second_when_a_client_says_nothing(service: Service, tmp_path: Path) -> None:
    api = Api(service, LOOPBACK, tmp_path, None)
    api.__enter__()
    token = json.loads((tmp_path / "api.json").read_text())["token"]
    host, port = api.url.removeprefix("http://").split(":")
    half = f"POST /query HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {token}\r\nContent-Length: 100\r\n\r\n{{"
    with socket.create_connection((host, int(port))) as silent, socket.create_connection((host, int(port))) as slow:
        slow.sendall(half.encode())
        assert loopback.get(f"{api.url}/health").status_code == 200  # both connections were taken before this one
        assert leave(api) < 1.2
        silent.settimeout(LIMIT_SECONDS)
        assert silent.recv(1) == b"", "it is closed"


def test_a_request_under_way_may_finish_at_the_end(service: Service, tmp_path: Path) -> None:
    service.go.clear()
    api = Api(service, LOOPBACK, tmp_path, None)
    api.__enter__()
    running = found_in(tmp_path)
    with ThreadPoolExecutor(1) as pool:
        query = pool.submit(running.answer, "POST", "/query", {"sql": "x"})
        assert service.entered.acquire(timeout=LIMIT_SECONDS), "the query never came"
        threading.Timer(0.05, service.go.set).start()
        assert leave(api) < 1.2
        assert query.result(LIMIT_SECONDS).status_code == 200


HANGING = """
import sys, threading, httpx, pathlib, json
from cdc_service.api.server import Api
from cdc_service.config.models import Listen

class Service:
    def query(self, sql, rows_max):
        print("begun", flush=True)
        threading.Event().wait()

folder = pathlib.Path(sys.argv[1])
with Api(Service(), Listen("127.0.0.1", 0), folder, None) as api:
    token = json.loads((folder / "api.json").read_text())["token"]
    try:
        httpx.post(api.url + "/query", json={"sql": "x"}, headers={"Authorization": "Bearer " + token}, timeout=0.3)
    except httpx.TimeoutException:
        pass
"""


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(cdc_service.__file__).parents[1])
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=LIMIT_SECONDS,
        env={**os.environ, "PYTHONPATH": root}
    )  # fmt: skip


def test_a_query_that_never_ends_does_not_keep_the_process(tmp_path: Path) -> None:
    ended = python(HANGING, str(tmp_path))
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "begun\n", "")
    assert list(tmp_path.iterdir()) == []


def test_the_web_libraries_are_loaded_when_the_server_starts() -> None:
    ended = python(
        "import sys, cdc_service.api.server; print([m for m in ('starlette', 'uvicorn', 'prometheus_client') if m in sys.modules])"
    )
    assert (ended.stdout, ended.stderr) == ("[]\n", "")


@pytest.mark.parametrize(
    ("listen", "said"),
    [
        (lambda port: Listen("127.0.0.1", port), "the port is taken"),
        (lambda port: Listen("192.0.2.1", 0), "no such address"),
        (lambda port: Listen("no.such.host.invalid", 0), "no such host"),
        (lambda port: Listen("a" * 70 + ".x", 0), "no such host"),
    ],
)
def test_where_it_cannot_listen_it_says_the_cure(
    listen: Callable[[int], Listen], said: str, service: Service, api: Api, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said) as raised, Api(service, listen(int(api.url.rpartition(":")[2])), tmp_path / "other", None):
        pass
    assert "api.listen" in raised.value.hint
    assert not (tmp_path / "other").exists()
    assert loopback.get(f"{api.url}/health").status_code == 200


def test_where_its_file_cannot_be_written_it_says_so_and_stops_listening(service: Service, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    api = Api(service, LOOPBACK, tmp_path / "file", None)
    with pytest.raises(ConfigError, match="cannot write") as raised:
        api.__enter__()
    assert "state_dir" in raised.value.hint
    with pytest.raises(httpx.TransportError):
        loopback.get(f"{api.url}/health")


def samples(text: str) -> dict[tuple[str, tuple[str, ...]], float]:
    """Each sample of the text by name and label values (sorted by label name, without the pipeline)."""
    found = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation, family.name
        for sample in family.samples:
            assert sample.labels["pipeline"] == "shop"
            key = sample.name, tuple(value for name, value in sorted(sample.labels.items()) if name != "pipeline")
            assert key not in found, "a sample came twice"
            found[key] = sample.value
    return found


def test_metrics_are_the_documents_values(client: httpx.Client) -> None:
    answer = client.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    found = samples(answer.text)
    one = 'public."a.\\b\n"'
    states = {key[1][0]: value for key, value in found.items() if key[0] == "cdc_table_state" and key[1][1] == one}
    assert len(states) == 10
    assert {state for state, value in states.items() if value} == {"streaming"}
    assert found["cdc_table_state", ("needs_decision", "public.empty")] == 1
    wal = {key[1][1]: value for key, value in found.items() if key[0] == "cdc_slot_wal_status"}
    assert wal == {"reserved": 1, "extended": 0, "unreserved": 0, "lost": 0}
    assert {key: value for key, value in found.items() if key[0] not in ("cdc_table_state", "cdc_slot_wal_status")} == {
        ("cdc_service_up", ()): 1, ("cdc_buffered_bytes", ()): 4096, ("cdc_merges_total", ()): 3, ("cdc_merge_seconds_total", ()): 0.75,
        ("cdc_fetched_records_total", ()): 20, ("cdc_connector_up", ("cdc_shop",)): 1,
        ("cdc_slot_retained_bytes", ("cdc_shop",)): 3 * 2**20,
        ("cdc_table_rows", (one,)): 12, ("cdc_lag_events", (one,)): 5, ("cdc_lag_seconds", (one,)): 0.25,
        ("cdc_events_total", ("applied", one)): 9, ("cdc_events_total", ("folded", one)): 1, ("cdc_events_total", ("duplicate", one)): 4,
        ("cdc_events_total", ("parked", one)): 0, ("cdc_events_total", ("filtered", one)): 2,
        ("cdc_events_total", ("applied", "public.empty")): 0,
        ("cdc_partition_next_offset", ("0", one)): 16, ("cdc_partition_end_offset", ("0", one)): 21,
        ("cdc_partition_next_offset", ("1", one)): 0, ("cdc_complete_through_position", (one,)): 76,
        ("cdc_source_commit_timestamp_seconds", (one,)): 1767225607.5, ("cdc_synced_timestamp_seconds", (one,)): 1767225608,
        ("cdc_synced_age_seconds", (one,)): 2,
    }  # fmt: skip


def test_the_quarantine_has_paths_of_its_own(client: httpx.Client, service: Service) -> None:
    assert client.get("/quarantine", params={"table": "public.t", "most": "5"}).json() == {"action": "list"}
    assert client.get("/quarantine/Ab_-9:0:17").json() == {"action": "show"}
    assert client.post("/quarantine/replay", json={"table": "public.t"}).json() == {"action": "replay"}
    assert client.post("/quarantine/discard", json={"table": "public.t", "id": "x", "by": "ann"}).json() == {"action": "discard"}
    assert [(action, dict(body)) for action, _, body in service.acted] == [
        ("list", {"table": "public.t", "most": 5}),
        ("show", {"id": "Ab_-9:0:17"}),
        ("replay", {"table": "public.t", "by": "API"}),
        ("discard", {"table": "public.t", "id": "x", "by": "ann"}),
    ]
    assert client.post("/quarantine/forget", json={}).status_code == 404
    assert client.get("/quarantine/x", headers={"Authorization": ""}).status_code == 401


def test_metrics_of_the_quarantine() -> None:
    table = {"source": "t", "parked_waiting": 3, "quarantine": {"waiting": {"bad_json": 1, "behind_parked": 2}, "decided": {"replayed": 4}}}
    found = samples(render({"pipeline": "shop", "service": {}, "connector": None, "tables": [table]})[0].decode())
    assert {key: value for key, value in found.items() if "quarantine" in key[0] or "parked" in key[0]} == {
        ("cdc_parked_waiting", ("t",)): 3,
        ("cdc_quarantine_waiting", ("bad_json", "t")): 1, ("cdc_quarantine_waiting", ("behind_parked", "t")): 2,
        ("cdc_quarantine_decided", ("replayed", "t")): 4, ("cdc_quarantine_decided", ("discarded", "t")): 0,
        ("cdc_quarantine_decided", ("superseded", "t")): 0,
    }  # fmt: skip


def test_metrics_of_little_and_of_odd_values() -> None:
    little: dict[str, Any] = {"pipeline": "shop", "service": {"running": False}, "connector": None, "tables": []}
    assert samples(render(little)[0].decode()) == {("cdc_service_up", ()): 0}
    odd = {
        "pipeline": "shop", "at": "2026-01-01T00:00:00Z",
        "connector": {"name": "c", "state": "FAILED", "slot": "s", "wal_status": "new one"},
        "tables": [{"source": "t", "complete_through": "mariadb-bin.000003:4", "synced_at": "2026-01-01T00:00:05Z"}],
    }  # fmt: skip
    found = samples(render(odd)[0].decode())
    assert found["cdc_connector_up", ("c",)] == 0
    assert found["cdc_slot_wal_status", ("s", "new one")] == 1
    assert found["cdc_synced_age_seconds", ("t",)] == 0, "a clock that stepped back gives no negative age"
    assert not any(name == "cdc_complete_through_position" for name, _ in found)
    assert render(odd) == render(odd), "nothing is kept between two calls"
