"""The HTTP server of a running service: it listens where the configuration says, and is found through <state_dir>/api.json.

Whoever may read that file (mode 0600) has the token, and so may use the API. The web libraries are loaded when the server starts.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import socket
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from cdc_service.api.service import Service
from cdc_service.config.models import Listen
from cdc_service.core.errors import ConfigError, Unavailable

if TYPE_CHECKING:
    import uvicorn

    from cdc_service.api.application import Calls

API_FILE = "api.json"
START_SECONDS = 10.0
FINISH_SECONDS = 0.3  # requests under way may finish by themselves
ANSWER_SECONDS = 0.4  # then they are told that the service ends, and have this long to take their answer
STOP_SECONDS = 1.0


class Api:
    """While it is entered, the API listens; ``url`` is its address on this machine."""

    url: str

    def __init__(self, service: Service, listen: Listen, state_dir: Path, token_file: Path | None) -> None:
        self._service = service
        self._listen = listen
        self._file = state_dir / API_FILE
        self._token_file = token_file
        self._said: dict[str, Any] = {}
        self._server: uvicorn.Server
        self._calls: Calls
        self._thread: threading.Thread

    def __enter__(self) -> Api:
        """Raises ConfigError where it cannot listen, has no token or cannot write its file."""
        token = secrets.token_urlsafe(32) if self._token_file is None else _read_token(self._token_file)
        listening = _listening(self._listen)
        try:
            self._start(listening, token)
        except BaseException:
            listening.close()
            raise
        self._said = {"url": self.url, "token": token, "pid": os.getpid()}
        try:
            _write_private(self._file, json.dumps(self._said))
        except OSError as error:
            self._stop()
            raise ConfigError(
                f"cannot write {self._file}: {error.strerror}", hint="let state_dir be a folder that this user may write", code="state_dir"
            ) from None
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stops within STOP_SECONDS; a request under way is answered that the service ends."""
        with contextlib.suppress(OSError, ValueError):
            if json.loads(self._file.read_text(encoding="utf-8")) == self._said:
                self._file.unlink()
        self._stop()

    def _start(self, listening: socket.socket, token: str) -> None:
        import uvicorn

        from cdc_service.api import application

        self.url = f"http://{_reachable(listening)}"
        self._calls = application.Calls()
        config = uvicorn.Config(
            application.build(self._service, token, self._listen.host, self._calls),
            log_config=None, log_level="critical", access_log=False, server_header=False, proxy_headers=False,
            loop="asyncio", http="h11", ws="none", lifespan="on", limit_concurrency=256,
        )  # fmt: skip
        config.timeout_graceful_shutdown = ANSWER_SECONDS + FINISH_SECONDS - 0.1  # type: ignore[assignment]  # it sleeps 0.1 s before it
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listening]}, name="api", daemon=True)
        self._thread.start()
        if not self._calls.started.wait(START_SECONDS):
            self._server.should_exit = True
            raise Unavailable(f"the HTTP API did not start within {START_SECONDS:g} s", hint="look at the machine's load and start again")

    def _stop(self) -> None:
        limit = time.monotonic() + STOP_SECONDS
        self._server.should_exit = True
        self._thread.join(FINISH_SECONDS)
        self._calls.close()
        self._thread.join(max(0.0, limit - time.monotonic()))


def _read_token(file: Path) -> str:
    try:
        token = file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigError(
            f"cannot read the API's token from {file}: {reason}", hint="mend api.token_file, or leave it out", code="token_file"
        ) from None
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(
            f"{file} holds no token: {'it is empty' if not token else 'a token is one line of ASCII without spaces'}",
            hint="write one there, such as the output of 'openssl rand -hex 32', or leave api.token_file out",
            code="token_file",
        )
    return token


def _listening(listen: Listen) -> socket.socket:
    """A socket that listens there, so that whoever reads api.json is never refused. Raises ConfigError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(*listen, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (socket.gaierror, UnicodeError):
        raise _cannot_listen(listen, "no such host", "use an address of this machine, such as 127.0.0.1:0") from None
    found = socket.socket(family, kind, protocol)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(128)
    except OSError as error:
        found.close()
        reason, cure = {
            errno.EADDRINUSE: ("the port is taken", "choose another port, or 0 for a free one, or end the process that has it"),
            errno.EADDRNOTAVAIL: ("this machine has no such address", "use one of its own, such as 127.0.0.1:0"),
            errno.EACCES: ("this user may not", "choose a port above 1023, or 0 for a free one"),
        }.get(error.errno or 0, (str(error.strerror), "use an address of this machine, such as 127.0.0.1:0"))
        raise _cannot_listen(listen, reason, cure) from None
    return found


def _cannot_listen(listen: Listen, reason: str, cure: str) -> ConfigError:
    return ConfigError(f"the HTTP API cannot listen on {listen}: {reason}", hint=f"api.listen: {cure}", code="api_listen")


def _reachable(listening: socket.socket) -> Listen:
    """Where a client on this machine reaches it: a number, so that no name can lead it elsewhere."""
    host, port = listening.getsockname()[:2]
    return Listen({"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port)


def _write_private(file: Path, text: str) -> None:
    """The file appears whole, and is its owner's alone from the first moment."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    try:
        with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as stream:
            stream.write(text)
        part.replace(file)
    finally:
        part.unlink(missing_ok=True)
