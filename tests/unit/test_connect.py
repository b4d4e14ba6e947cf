"""The client of Kafka Connect against a worker of a few lines: what is repeated, what is not, what is shown and what never is."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from structlog.testing import capture_logs

from cdc_service.core.errors import CdcError, ConfigError, Unavailable
from connectors.debezium.connect import MASK, FieldProblem, KafkaConnect, masked
from connectors.sources.postgresql.failures import PostgresFailures
from deploy.local.stack import HOST, free_ports

Answer = tuple[int, Any]
CLASS = "io.debezium.connector.postgresql.PostgresConnector"


class Worker:
    """Answers each (method, path) with the next of its scripted answers, the last one for ever; remembers what was asked."""

    def __init__(self) -> None:
        self.script: dict[tuple[str, str], list[Answer]] = {}
        self.asked: list[tuple[str, str, Any]] = []
        worker = self

        class Handler(BaseHTTPRequestHandler):
            def do(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                key = (self.command, self.path)
                worker.asked.append((*key, json.loads(body) if body else None))
                answers = worker.script.get(key, [(404, {"error_code": 404, "message": "no such thing"})])
                status, said = answers.pop(0) if len(answers) > 1 else answers[0]
                text = b"" if said is None else json.dumps(said).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_PUT = do_POST = do_DELETE = do  # noqa: N815  (http.server's names)

            def log_message(self, *_: object) -> None:
                return

        self.server = ThreadingHTTPServer((HOST, 0), Handler)
        self.url = f"http://{HOST}:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def count(self, method: str, path: str) -> int:
        return sum(1 for m, p, _ in self.asked if (m, p) == (method, path))


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def connect(worker: Worker) -> Iterator[KafkaConnect]:
    client = KafkaConnect(worker.url, PostgresFailures(), retry_seconds=5.0)
    yield client
    client.close()


def test_nobody_listens_is_said_with_the_cure_and_within_the_limit() -> None:
    connect = KafkaConnect(f"http://{HOST}:{free_ports(['nobody'])['nobody']}", retry_seconds=0.5)
    began = time.monotonic()
    with pytest.raises(Unavailable, match="cannot be reached") as caught:
        connect.worker()
    assert "connect.url" in caught.value.hint
    assert time.monotonic() - began < 10


def test_a_rebalance_is_waited_out(worker: Worker, connect: KafkaConnect) -> None:
    busy = (409, {"error_code": 409, "message": "Cannot complete request momentarily due to no known leader URL"})
    worker.script["PUT", "/connectors/c/pause"] = [busy, busy, (202, None)]
    connect.pause("c")
    assert worker.count("PUT", "/connectors/c/pause") == 3


def test_a_wait_that_is_not_short_is_said_once(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    busy = (409, {"error_code": 409, "message": "rebalance in process"})
    for quiet, said in ((60.0, 0), (0.0, 1)):
        worker.script["PUT", "/connectors/c/pause"] = [busy, busy, busy, (202, None)]
        monkeypatch.setattr("connectors.debezium.connect.QUIET_SECONDS", quiet)
        connect = KafkaConnect(worker.url, retry_seconds=5.0)
        with capture_logs() as logged:
            connect.pause("c")
        connect.close()
        assert len(logged) == said
        assert all("rebalance in process" in line["why"] for line in logged)


def test_a_rebalance_without_end_has_a_limit(worker: Worker) -> None:
    worker.script["PUT", "/connectors/c/pause"] = [(409, {"error_code": 409, "message": "rebalance in process"})]
    connect = KafkaConnect(worker.url, retry_seconds=0.5)
    with pytest.raises(Unavailable, match="rebalance in process"):
        connect.pause("c")
    assert worker.count("PUT", "/connectors/c/pause") > 1


def test_an_error_of_the_worker_is_not_repeated(worker: Worker, connect: KafkaConnect) -> None:
    worker.script["PUT", "/connectors/c/pause"] = [(500, {"error_code": 500, "message": "something broke"})]
    with pytest.raises(CdcError, match="500: something broke"):
        connect.pause("c")
    assert worker.count("PUT", "/connectors/c/pause") == 1


def test_a_server_that_is_no_worker_is_said_so(worker: Worker, connect: KafkaConnect) -> None:
    worker.script["GET", "/"] = [(200, {"hello": "world"})]
    with pytest.raises(ConfigError, match="no Kafka Connect worker"):
        connect.worker()


def test_a_missing_plugin_names_those_that_are_there(worker: Worker, connect: KafkaConnect) -> None:
    there = [{"class": "org.example.Source", "type": "source", "version": "1"}, {"class": "org.example.Convert", "type": "converter"}]
    worker.script["GET", "/connector-plugins?connectorsOnly=false"] = [(200, there)]
    with pytest.raises(ConfigError, match=r"no plugin io\.debezium.*: org\.example\.Source$") as caught:
        connect.require_plugin(CLASS)
    assert "plugin.path" in caught.value.hint


def test_a_plan_names_each_difference_and_no_secret(worker: Worker, connect: KafkaConnect) -> None:
    before = {"name": "c", "connector.class": CLASS, "database.password": "old secret", "poll.interval.ms": "500", "gone": "1"}
    after = {"name": "c", "connector.class": CLASS, "database.password": "new secret", "poll.interval.ms": "50", "added": "2"}
    worker.script["GET", "/connectors/c/config"] = [(200, before)]
    plan = connect.plan(after)
    assert plan.kind == "update"
    assert {(c.key, c.before, c.after) for c in plan.changes} == {
        ("database.password", MASK, MASK),
        ("poll.interval.ms", "500", "50"),
        ("gone", "1", None),
        ("added", None, "2"),
    }
    assert "secret" not in repr(plan)
    hidden = {c.key: c for c in connect.plan(after, {"added"}).changes}
    assert (hidden["added"].before, hidden["added"].after) == (None, MASK)


def test_the_same_configuration_is_no_plan(worker: Worker, connect: KafkaConnect) -> None:
    config = {"name": "c", "connector.class": CLASS}
    worker.script["GET", "/connectors/c/config"] = [(200, config)]
    plan = connect.plan(config)
    connect.apply(plan)
    assert (plan.kind, plan.changes) == ("nothing", ())
    assert {method for method, _, _ in worker.asked} == {"GET"}


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("database.password", "hunter2", MASK),
        ("signal.consumer.sasl.jaas.config", "hunter2", MASK),
        ("database.password", "${env:SHOP_PASSWORD}", "${env:SHOP_PASSWORD}"),
        ("database.password", "${env:SHOP_PASSWORD}x", MASK),
        ("topic.prefix", "shop", "shop"),
        ("database.password", None, None),
    ],
)
def test_what_may_be_shown_of_a_setting(key: str, value: str | None, shown: str | None) -> None:
    assert masked(key, value) == shown


def test_problems_come_by_field_and_without_the_password(worker: Worker, connect: KafkaConnect) -> None:
    worker.script["GET", "/connector-plugins?connectorsOnly=false"] = [(200, [{"class": CLASS, "type": "source", "version": "1"}])]
    said = {"configs": [{"value": {"name": "database.hostname", "errors": ["login with hunter2: password authentication failed"]}}]}
    worker.script["PUT", f"/connector-plugins/{CLASS}/config/validate"] = [(200, said)]
    config = {"name": "c", "connector.class": CLASS, "database.password": "hunter2"}
    with pytest.raises(ConfigError, match=r"database\.hostname: login with \*\*\*: password authentication failed") as caught:
        connect.require_valid(config)
    assert "config.providers" in caught.value.hint
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("said", "cure"),
    [
        ("FATAL: no pg_hba.conf entry for host", "could not log in"),
        ("The connection attempt failed.", "could not reach"),
        ("Unable to find the slot", "change these settings"),
    ],
)
def test_what_a_validation_found_has_its_cure(connect: KafkaConnect, said: str, cure: str) -> None:
    assert cure in connect.cure([FieldProblem("database.hostname", said)])


def _status(connector: str, *tasks: tuple[str, str | None]) -> Answer:
    listed = [{"id": i, "state": state, "worker_id": "w", **({"trace": trace} if trace else {})} for i, (state, trace) in enumerate(tasks)]
    return 200, {"name": "c", "connector": {"state": connector, "worker_id": "w"}, "tasks": listed}


TRACE = "org.apache.kafka.ConnectException: task failed\n\tat x.Y.z(Y.java:1)\nCaused by: java.sql.SQLException: FATAL: no slot\n\tat q"


def test_a_failed_task_ends_the_wait_with_its_cause(worker: Worker, connect: KafkaConnect) -> None:
    worker.script["GET", "/connectors/c/status"] = [_status("RUNNING"), _status("RUNNING", ("FAILED", TRACE))]
    with pytest.raises(CdcError, match=r"task failed \(java\.sql\.SQLException: FATAL: no slot\)") as caught:
        connect.await_running("c", 10)
    assert caught.value.code == "connector_failed"


def test_a_connector_without_tasks_does_not_run_yet(worker: Worker, connect: KafkaConnect) -> None:
    worker.script["GET", "/connectors/c/status"] = [
        _status("RUNNING"),
        _status("RUNNING", ("UNASSIGNED", None)),
        _status("RUNNING", ("RUNNING", None)),
    ]
    assert connect.await_running("c", 10).running
    assert worker.count("GET", "/connectors/c/status") == 3


def test_a_wait_has_a_limit_and_says_what_it_saw(worker: Worker, connect: KafkaConnect) -> None:
    worker.script["GET", "/connectors/c/status"] = [_status("RUNNING", ("UNASSIGNED", None))]
    with pytest.raises(Unavailable, match="UNASSIGNED, 1 tasks"):
        connect.await_running("c", 0.5)


def test_what_is_not_there_is_none(connect: KafkaConnect) -> None:
    assert connect.config("c") is None
    assert connect.status("c") is None
    assert list(connect.offsets("c")) == []


def test_names_are_quoted_in_paths(worker: Worker, connect: KafkaConnect) -> None:
    connect.config("a/b?c")
    assert worker.asked == [("GET", "/connectors/a%2Fb%3Fc/config", None)]


def test_user_and_password_of_the_url_log_in_and_are_never_said(worker: Worker) -> None:
    worker.script["GET", "/"] = [(401, {"message": "who are you?"})]
    connect = KafkaConnect(worker.url.replace("http://", "http://operator:hunter2@"), retry_seconds=0.5)
    with pytest.raises(ConfigError, match="refused the login") as caught:
        connect.worker()
    assert "hunter2" not in str(caught.value) + caught.value.hint
