"""No path of the API is open by oversight: each that the application has asks for the token and the host, and the token stays unseen."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog

from cdc_service.api import application
from cdc_service.api.server import Api
from cdc_service.config.models import Config, Listen
from tests.support import loopback

LIMIT_SECONDS = 30.0


class Nothing:
    """A service that does whatever it is asked, and remembers what."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any) -> Any:
            self.calls.append(name)
            return (True, "well") if name in ("health", "ready") else {"tables": []}

        return call


def paths() -> list[tuple[str, str]]:
    """(method, path) of every route that the application has, open ones left out."""
    app = application.build(Nothing(), "t", "127.0.0.1", application.Calls())  # type: ignore[arg-type]
    found = [(method, route.path) for route in app.routes for method in sorted(route.methods)]  # type: ignore[attr-defined]
    return [(method, path.replace("{table}", "a.b").replace("{run}", "r1")) for method, path in found if path not in application.OPEN_PATHS]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Nothing, Api, str, Path]]:
    service, folder = Nothing(), tmp_path_factory.mktemp("api") / "state"
    with Api(service, Listen("127.0.0.1", 0), folder, None) as api:  # type: ignore[arg-type]
        yield service, api, json.loads((folder / "api.json").read_text())["token"], folder


def test_the_application_has_more_than_the_open_paths() -> None:
    assert {"/health", "/ready"} == application.OPEN_PATHS
    assert {"/status", "/metrics", "/query", "/repair", "/reconcile", "/tables/a.b/adopt"} <= {path for _, path in paths()}


@pytest.mark.parametrize(("method", "path"), paths())
def test_a_path_asks_for_the_token_and_the_host(running: tuple[Nothing, Api, str, Path], method: str, path: str) -> None:
    service, api, token, _ = running
    service.calls.clear()
    right = {"Authorization": f"Bearer {token}"}
    # The last: what is equal up to a character, of another case, or the token in a place that logs and proxies keep.
    wrong = ["", "Bearer", "Bearer x", f"Basic {token}", f"Bearer {token[:-1]}", f"Bearer {token}x", f"Bearer {token.swapcase()}", token]
    with loopback.client(api.url, timeout=LIMIT_SECONDS) as client:
        for header in wrong:
            answer = client.request(method, path, headers={"Authorization": header}, content=b"{}" if method == "POST" else None)
            assert answer.status_code == 401, header
            assert token not in answer.text
        for more in ({"params": {"token": token, "access_token": token}}, {"headers": {"Cookie": f"token={token}"}}):
            assert client.request(method, path, **more).status_code == 401  # type: ignore[arg-type]
        assert client.request(method, path, headers={**right, "Host": "evil.example"}).status_code == 400
        assert service.calls == []
        assert client.request(method, path, headers=right).status_code not in (401, 403)


def test_the_token_is_in_its_file_alone(running: tuple[Nothing, Api, str, Path]) -> None:
    _, api, token, folder = running
    (file,) = folder.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with structlog.testing.capture_logs() as logs, loopback.client(api.url) as client:
        answers = [client.get(path, headers={"Authorization": f"Bearer {token}"}) for path in ("/status", "/metrics", "/nothing", "/query")]
    assert not any(token in answer.text + str(answer.headers) for answer in answers)
    assert token not in str(logs)
    assert token not in repr(vars(api)["_listen"])


def test_without_being_told_it_listens_on_this_machine_alone(tmp_path: Path) -> None:
    from cdc_service.config import load

    file = tmp_path / "cdc.yaml"
    file.write_text(
        "pipeline: shop\nsource: {url: postgresql://cdc@localhost/shop}\nkafka: {bootstrap_servers: localhost:9092}\n"
        "connect: {url: http://localhost:8083}\ndestination: {url: 'duckdb:///w.duckdb'}\ntables: {public.a: {}}\n"
    )
    config: Config = load(file)
    assert config.api.listen.host == "127.0.0.1"
