"""The registry's client against a server that answers what it is told to."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from cdc_service.core.errors import ConfigError, Unavailable
from cdc_service.ports.events import Unsupported
from connectors.debezium.schema_registry import QUIET_SECONDS, SchemaRegistry
from connectors.formats.avro_schema import parse

ONE = '{"type":"record","name":"R","fields":[{"name":"f","type":"long"}]}'
Answers = dict[str, tuple[int, Any]]


class Server(ThreadingHTTPServer):
    def __init__(self, answers: Answers) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers = answers
        self.asked: list[tuple[str, str | None]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Server)
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        code, body = self.server.answers.get(self.path, (404, {"error_code": 40403, "message": "no"}))
        self.send_response(code)
        self.end_headers()
        self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


@contextmanager
def server(answers: Answers) -> Iterator[Server]:
    made = Server(answers)
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield made
    finally:
        made.shutdown()
        thread.join(10)
        made.server_close()


def test_a_schema_and_those_that_it_refers_to_come_in_the_order_of_need() -> None:
    inner = '{"type":"record","name":"Inner","fields":[{"name":"x","type":"int"}]}'
    middle = '{"type":"record","name":"Middle","fields":[{"name":"i","type":"Inner"}]}'
    outer = '{"type":"record","name":"Outer","fields":[{"name":"m","type":"Middle"},{"name":"i","type":"Inner"}]}'
    refer = [{"name": "Inner", "subject": "in/ner", "version": 1}]
    answers: Answers = {
        "/schemas/ids/7": (200, {"schema": outer, "references": [{"name": "Middle", "subject": "middle", "version": 3}, *refer]}),
        "/subjects/middle/versions/3": (200, {"schema": middle, "references": refer}),
        "/subjects/in%2Fner/versions/1": (200, {"schema": inner}),
    }
    with server(answers) as made:
        found = SchemaRegistry(made.url).schema(7)
    assert found == (outer, (inner, middle))
    assert parse(*found).size > 5


def test_references_without_end_are_refused() -> None:
    circle = [{"name": "A", "subject": "a", "version": 1}]
    with (
        server(
            {
                "/schemas/ids/7": (200, {"schema": ONE, "references": circle}),
                "/subjects/a/versions/1": (200, {"schema": ONE, "references": circle}),
            }
        ) as made,
        pytest.raises(Unsupported),
    ):
        SchemaRegistry(made.url).schema(7)


@pytest.mark.parametrize(
    ("url", "options", "expected"),
    [
        ("http://me:p%40ss@", {}, "Basic " + base64.b64encode(b"me:p@ss").decode()),
        ("http://", {"basic.auth.user.info": "me:a:b"}, "Basic " + base64.b64encode(b"me:a:b").decode()),
        ("http://", {"bearer.auth.token": "tok"}, "Bearer tok"),
        ("http://", {}, None),
    ],
)
def test_logins_are_sent_and_shown_nowhere(url: str, options: dict[str, str], expected: str | None) -> None:
    with server({"/schemas/ids/7": (200, {"schema": ONE})}) as made:
        registry = SchemaRegistry(url + made.url.removeprefix("http://"), options)
        assert registry.schema(7) == (ONE, ())
        assert made.asked == [("/schemas/ids/7", expected)]
        assert registry.shown == made.url
        made.answers["/schemas/ids/8"] = (401, {})
        with pytest.raises(Unavailable) as caught:
            registry.schema(8)
    assert caught.value.code == "registry_login"
    assert not any(secret in caught.value.message + caught.value.hint for secret in ("p@ss", "p%40ss", "a:b", "tok"))


@pytest.mark.parametrize("code", [404, 40403])
def test_a_number_that_is_not_there_is_told_from_a_path_that_is_not(code: int) -> None:
    with server({"/schemas/ids/7": (404, {"error_code": code})}) as made:
        assert SchemaRegistry(made.url).schema(7) is None
    with server({"/schemas/ids/7": (404, b"<html>not here</html>")}) as made, pytest.raises(Unavailable, match="404"):
        SchemaRegistry(made.url).schema(7)


@pytest.mark.parametrize(("status", "body"), [(500, {"error_code": 50001}), (200, b"nonsense"), (503, b""), (429, {})])
def test_an_answer_that_is_none_is_waited_for(status: int, body: Any) -> None:
    with server({"/schemas/ids/7": (status, body)}) as made, pytest.raises(Unavailable) as caught:
        SchemaRegistry(made.url).schema(7)
    assert caught.value.code == "registry_error"


@pytest.mark.parametrize("body", [{"schema": "syntax = 'proto3';", "schemaType": "PROTOBUF"}, {"schema": 7}, {}])
def test_a_schema_that_is_not_avro_is_refused(body: Any) -> None:
    with server({"/schemas/ids/7": (200, body)}) as made, pytest.raises(Unsupported):
        SchemaRegistry(made.url).schema(7)


def test_a_registry_that_is_away_is_not_asked_at_once_again() -> None:
    now = [0.0]
    with server({"/schemas/ids/7": (500, {})}) as made:
        registry = SchemaRegistry(made.url, {}, lambda: now[0])
        for _ in range(3):
            with pytest.raises(Unavailable):
                registry.schema(7)
        assert len(made.asked) == 1
        made.answers["/schemas/ids/7"] = (200, {"schema": ONE})
        now[0] = QUIET_SECONDS
        assert registry.schema(7) == (ONE, ())
    now[0] = 10.0
    with pytest.raises(Unavailable) as caught:
        registry.schema(7)
    assert caught.value.code == "registry_away"


def test_a_registry_that_says_nothing_is_left_alone_for_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    now, asked = [0.0], []
    registry = SchemaRegistry("http://127.0.0.1:9", {}, lambda: now[0])

    def slow(path: str) -> Any:
        asked.append(now[0])
        now[0] += 3.0
        raise Unavailable("no answer")

    monkeypatch.setattr(registry, "_ask", slow)
    while now[0] < 60.0:
        with pytest.raises(Unavailable):
            registry.schema(7)
        now[0] += 0.25
    assert asked == [0.0, 33.0]


def test_options_that_nobody_knows_or_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"basic\.auth\.user"):
        SchemaRegistry("http://localhost:1", {"basic.auth.user": "x"})
    with pytest.raises(ConfigError, match="certificates"):
        SchemaRegistry("https://localhost:1", {"ssl.ca.location": "/nowhere/at/all.pem"})
