"""What the HTTP API answers: paths, bodies, errors. Loaded when the server starts.

Every path but /health and /ready needs the token, and every one a Host header that names where the API listens (against DNS rebinding).
An error is {"error": {code, message, hint, disposition}}; of one that nobody expected only the log tells, without its values.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import ipaddress
import json
import math
import re
import socket
import threading
import traceback
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import unquote

import pyarrow as pa
import structlog
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from cdc_service.api.service import Service
from cdc_service.core.errors import CdcError, ConfigError, Disposition, Unavailable
from cdc_service.metrics import render
from cdc_service.results import ARROW, ROWS_MAX, column_values

T = TypeVar("T")

JSON = "application/json"
ACTIONS = ("pause", "resume", "resync", "adopt")
DECISIONS = ("replay", "discard")
OPEN_PATHS = frozenset({"/health", "/ready"})
BODY_BYTES = 1 << 20
QUERIES_AT_ONCE = 4
STATUSES = {Disposition.CONFIG: 400, Disposition.RETRY: 503}


class TooLarge(ConfigError):
    """The body has more than BODY_BYTES."""

    code = "too_large"


class Calls:
    """Runs the service's calls in threads of their own, which never keep the process from ending; ``close`` ends all waits for them."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self._loop: asyncio.AbstractEventLoop
        self._closing: asyncio.Future[None]
        self._queries = asyncio.Semaphore(QUERIES_AT_ONCE)

    @contextlib.asynccontextmanager
    async def lifespan(self, app: object) -> AsyncIterator[None]:
        self._loop = asyncio.get_running_loop()
        self._closing = self._loop.create_future()
        self.started.set()
        yield

    def close(self) -> None:
        """From any thread: whoever waits for a call now, or asks for one, is told that the service ends."""
        with contextlib.suppress(RuntimeError):  # the loop has ended by itself
            self._loop.call_soon_threadsafe(self._closing.cancel)

    async def run(self, call: Callable[[], T]) -> T:
        """What the call gives or raises. Raises Unavailable when the service ends first; the call's own end is then not awaited."""
        ending = Unavailable("the service is ending", hint="ask again when it runs again", code="ending")
        if self._closing.done():
            raise ending
        result: asyncio.Future[T] = self._loop.create_future()

        def work() -> None:
            try:
                value = call()
            except Exception as error:
                self._tell(result, None, error)
            else:
                self._tell(result, value, None)

        threading.Thread(target=work, name="api-call", daemon=True).start()
        either: list[asyncio.Future[Any]] = [result, self._closing]
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if result.done():
                return result.result()
            raise ending
        finally:
            result.cancel()

    async def run_query(self, call: Callable[[], T]) -> T:
        """The same, with few at a time: more would only slow each other and the merges."""
        async with self._queries:
            return await self.run(call)

    def _tell(self, result: asyncio.Future[T], value: Any, error: Exception | None) -> None:
        def set_it() -> None:
            if result.done():
                return
            if error is None:
                result.set_result(value)
            else:
                result.set_exception(error)

        with contextlib.suppress(RuntimeError):  # nobody waits any more: the loop is closed
            self._loop.call_soon_threadsafe(set_it)


def build(service: Service, token: str, host: str, calls: Calls) -> Starlette:
    """The application of one service. ``host`` is where it listens, as the configuration says it."""
    paths = _Paths(service, calls)
    app = Starlette(
        routes=[
            Route("/health", paths.health),
            Route("/ready", paths.ready),
            Route("/status", paths.status),
            Route("/metrics", paths.metrics),
            Route("/query", paths.query, methods=["POST"]),
            Route("/reconcile", paths.reconcile, methods=["POST"]),
            Route("/reconcile/{run}", paths.reconciled),
            Route("/repair", paths.repair, methods=["POST"]),
            Route("/explain", paths.explain, methods=["POST"]),
            Route("/reconcile/{run}/cancel", paths.cancel, methods=["POST"]),
            Route("/quarantine", paths.quarantine),
            Route("/quarantine/{action}", paths.decide, methods=["POST"]),
            Route("/quarantine/{id}", paths.parked),
            Route("/resume", paths.resume_all, methods=["POST"]),
            *(Route(f"/tables/{{table}}/{action}", paths.act, methods=["POST"], name=action) for action in ACTIONS),
        ],
        middleware=[Middleware(_Guard, token=token, host=host)],
        exception_handlers={HTTPException: _http_error, CdcError: _cdc_error},
        lifespan=calls.lifespan,
    )
    app.router.redirect_slashes = False
    return app


class _Paths:
    """One method for each path."""

    def __init__(self, service: Service, calls: Calls) -> None:
        self._service = service
        self._calls = calls

    async def health(self, request: Request) -> Response:
        return await self._yes_or_no(self._service.health)

    async def ready(self, request: Request) -> Response:
        return await self._yes_or_no(self._service.ready)

    async def _yes_or_no(self, ask: Callable[[], tuple[bool, str]]) -> Response:
        ok, message = await self._calls.run(ask)
        return _json({"ok": ok, "message": message}, 200 if ok else 503)

    async def status(self, request: Request) -> Response:
        return _json(await self._calls.run(self._service.snapshot))

    async def metrics(self, request: Request) -> Response:
        content, kind = await self._calls.run(lambda: render(self._service.snapshot()))
        return Response(content, headers={"Content-Type": kind})

    async def act(self, request: Request) -> Response:
        action = request.scope["path"].rpartition("/")[2]
        try:
            table = unquote(request.path_params["table"], errors="strict")
        except UnicodeDecodeError:
            raise ConfigError("the table's name in the address is not UTF-8", hint="percent-encode its UTF-8 bytes", code="usage") from None
        body = await _body(request)
        return _json(await self._calls.run(lambda: self._service.act(action, table, body)))

    async def resume_all(self, request: Request) -> Response:
        return _json(await self._calls.run(self._service.resume_all))

    async def reconcile(self, request: Request) -> Response:
        body = await _body(request)
        return _json(await self._calls.run(lambda: self._service.reconcile(body)))

    async def reconciled(self, request: Request) -> Response:
        return _json(await self._calls.run(lambda: self._service.reconciled(request.path_params["run"])))

    async def repair(self, request: Request) -> Response:
        body = await _body(request)
        return _json(await self._calls.run(lambda: self._service.repair(body)))

    async def explain(self, request: Request) -> Response:
        body = await _body(request)
        return _json(await self._calls.run(lambda: self._service.explain(body)))

    async def cancel(self, request: Request) -> Response:
        return _json(await self._calls.run(lambda: self._service.cancel(request.path_params["run"])))

    async def quarantine(self, request: Request) -> Response:
        body: dict[str, Any] = dict(request.query_params)
        if "most" in body:
            body["most"] = int(body["most"]) if body["most"].isdecimal() else 0
        return _json(await self._calls.run(lambda: self._service.quarantine("list", body)))

    async def parked(self, request: Request) -> Response:
        body = {"id": unquote(request.path_params["id"])}
        return _json(await self._calls.run(lambda: self._service.quarantine("show", body)))

    async def decide(self, request: Request) -> Response:
        action, body = request.path_params["action"], await _body(request)
        if action not in DECISIONS:
            raise HTTPException(404)
        return _json(await self._calls.run(lambda: self._service.quarantine(action, {"by": "API", **body})))

    async def query(self, request: Request) -> Response:
        body = await _body(request)
        sql, rows_max = body.get("sql"), body.get("rows_max", ROWS_MAX)
        if not isinstance(sql, str) or not sql.strip():
            raise ConfigError("the body has no sql", hint='send {"sql": "SELECT ...", "rows_max": 100}', code="usage")
        if type(rows_max) is not int or not 0 < rows_max < 2**63:
            raise ConfigError("rows_max is no whole number above 0", hint=f"leave it out for {ROWS_MAX}", code="usage")
        kinds = {part.partition(";")[0].strip().lower() for part in request.headers.get("accept", "").split(",")}
        write, kind = (_rows_json, JSON) if JSON in kinds and ARROW not in kinds else (_rows_arrow, ARROW)
        content = await self._calls.run_query(lambda: write(self._service.query(sql, rows_max)))
        return Response(content, headers={"Content-Type": kind})


class _Guard:
    """Lets a request in that names this API as its host and knows the token; answers for it when it fails unexpectedly."""

    def __init__(self, app: ASGIApp, token: str, host: str) -> None:
        self._app = app
        self._token = token.encode()
        self._names = {"localhost", host.lower()}
        self._any_address = host in ("0.0.0.0", "::")
        if self._any_address:
            self._names.add(socket.gethostname().lower())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Paths are compared as they were sent: a table's name may hold a slash, as %2F.
        scope["path"] = scope["raw_path"].decode("ascii")
        try:
            await (self._refusal(scope) or self._app)(scope, receive, send)
        except Exception as error:  # here, as Starlette's own handler would close the connection under the client's next request
            await _unexpected(scope, error)(scope, receive, send)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        if not self._is_here(headers.get("host", "")):
            return _problem(
                400, "wrong_host", "the Host header does not name where this API listens", "use its address, or name the host in api.listen"
            )
        if scope["path"] in OPEN_PATHS:
            return None
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and hmac.compare_digest(token.strip().encode(), self._token):
            return None
        return _problem(
            401, "unauthorized", "the API needs its token", "send 'Authorization: Bearer TOKEN' with the token of <state_dir>/api.json",
            headers={"WWW-Authenticate": "Bearer"},
        )  # fmt: skip

    def _is_here(self, header: str) -> bool:
        found = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([^:\[\]]+))(?::\d*)?", header)
        name = (found[1] or found[2]).lower() if found else ""
        if name in self._names:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or self._any_address  # an address cannot be rebound, names can


async def _body(request: Request) -> Mapping[str, Any]:
    """The JSON object of the body; {} where there is none."""
    content = bytearray()
    try:
        async for part in request.stream():
            content += part
            if len(content) > BODY_BYTES:
                raise TooLarge(f"the body has more than {BODY_BYTES} bytes", hint="send a smaller one")
    except ClientDisconnect:
        raise ConfigError("the body ended early", hint="send all of it", code="usage") from None
    try:
        said = json.loads(content) if content else {}
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise ConfigError("the body is no JSON object", hint="send one, in UTF-8", code="not_json")
    return said


def _rows_arrow(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _rows_json(table: pa.Table) -> bytes:
    """{columns, rows}: rows are lists, as two columns may have one name."""
    try:
        columns = [[_plain(value) for value in column_values(column)] for column in table.columns]
    except (pa.ArrowException, OverflowError, ValueError):
        raise ConfigError("a column of the result has no JSON form", hint=f"ask for {ARROW}, or cast it to text", code="no_json") from None
    return _encoded({"columns": table.column_names, "rows": list(zip(*columns, strict=True))})


def _plain(value: Any) -> Any:
    """A cell as JSON: numbers that JSON cannot hold exactly, and times, are text; bytes are hexadecimal."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, bytes):
        return value.hex()
    isoformat = getattr(value, "isoformat", None)
    return isoformat() if isoformat else str(value)


def _encoded(value: Any) -> bytes:
    # A lone surrogate has no UTF-8; as backslash and u it is JSON's own escape.
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace")


def _json(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    return Response(_encoded(value), status, headers, JSON)


def _problem(
    status: int, code: str, message: str, hint: str, disposition: Disposition = Disposition.CONFIG, headers: Mapping[str, str] | None = None
) -> Response:
    return _json({"error": {"code": code, "message": message, "hint": hint, "disposition": disposition.value}}, status, headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        return _problem(405, "wrong_method", f"{request.method} is not for this path", f"use {allowed}", headers=error.headers)
    paths = f"/health, /ready, /status, /metrics, /query, /quarantine, /resume, /tables/TABLE/{{{','.join(ACTIONS)}}}"
    return _problem(error.status_code, "no_path", "there is no such path", f"the paths are {paths}; TABLE is percent-encoded")


async def _cdc_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, CdcError)
    status = 413 if isinstance(error, TooLarge) else STATUSES.get(error.disposition, 409)
    return _problem(status, error.code, error.message, error.hint, error.disposition)


def _unexpected(scope: Scope, error: Exception) -> Response:
    """Its text may hold cell values, so that only its kind and place are logged."""
    structlog.get_logger().error(
        "request failed", method=scope["method"], path=scope["path"], error=type(error).__name__,
        exception="".join(traceback.format_tb(error.__traceback__)),
    )  # fmt: skip
    return _problem(500, "internal", "the service met an error that it did not expect", "its log says where; report it", Disposition.RETRY)
