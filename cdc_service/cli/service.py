"""Talks to the running service of a pipeline, which is found through <state_dir>/api.json; the address is always on this machine.

``find`` gives None where none runs: then commands work on the destination themselves.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from cdc_service.core.errors import AlreadyRunning, CdcError, Disposition, Unavailable

if TYPE_CHECKING:
    import httpx

    from cdc_service.config import Config

API_FILE = "api.json"
ANSWER_SECONDS = 30.0
QUERY_SECONDS = 600.0
STARTING_SECONDS = 10.0
"""How long a service that has begun may take until its API is found."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Running:
    """A service that runs: its address, its process and the token that it asks for."""

    url: str
    pid: int
    token: str = field(repr=False)

    def call(self, method: str, path: str, body: Any = None, *, seconds: float = ANSWER_SECONDS) -> Any:
        """The JSON of the answer. Raises the CdcError that the service names, or Unavailable."""
        return self.answer(method, path, body, seconds=seconds).json()

    def answer(self, method: str, path: str, body: Any = None, *, seconds: float = ANSWER_SECONDS) -> httpx.Response:
        """The answer itself, once it is a good one."""
        import ssl

        import httpx

        headers = {"Authorization": f"Bearer {self.token}"}
        # It trusts no certificate: the address is plain HTTP on this machine, and to read those that are trusted here takes longer than it.
        nobody = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        try:
            with httpx.Client(base_url=self.url, headers=headers, timeout=seconds, trust_env=False, verify=nobody) as client:
                answer = client.request(method, path, json=body)
        except httpx.TimeoutException:
            raise Unavailable(
                f"the running service (pid {self.pid}) did not answer within {seconds:g} s",
                hint="look at its log; 'cdc status' may tell more",
            ) from None
        except httpx.TransportError as error:
            raise NotThere(f"the running service (pid {self.pid}) does not answer: {error}", hint="is it still running?") from None
        if answer.is_success:
            return answer
        raise _error(answer)


class NotThere(Unavailable):
    """Nobody listens where the service said that it would: it ended without tidying up, or is ending now."""

    code = "not_there"


def find(config: Config) -> Running | None:
    """The pipeline's running service, or None. A file left by a process that is gone counts for nothing."""
    try:
        said = json.loads((config.state_dir / API_FILE).read_text(encoding="utf-8"))
        running = Running(str(said["url"]), int(said["pid"]), str(said["token"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return running if _alive(running.pid) else None


def call_or_none(config: Config, method: str, path: str, body: Any = None, *, seconds: float = ANSWER_SECONDS) -> httpx.Response | None:
    """The running service's answer, or None where no service runs."""
    running = find(config)
    if running is None:
        return None
    try:
        return running.answer(method, path, body, seconds=seconds)
    except NotThere:
        if find(config) is None or not _listens(running):
            return None
        raise


def served(
    config: Config,
    method: str,
    path: str,
    body: Any = None,
    *,
    read: Callable[[httpx.Response], T],
    here: Callable[[], T],
    seconds: float = ANSWER_SECONDS,
) -> T:
    """What the running service answers, or what ``here`` does where none runs. One that starts meanwhile is asked after all."""
    answer = call_or_none(config, method, path, body, seconds=seconds)
    if answer is None:
        try:
            return here()
        except (Unavailable, AlreadyRunning):
            deadline = time.monotonic() + STARTING_SECONDS
            while answer is None and _starting(config) and time.monotonic() < deadline:
                time.sleep(0.1)
                answer = call_or_none(config, method, path, body, seconds=seconds)
            if answer is None:
                raise
    return read(answer)


def _starting(config: Config) -> bool:
    """Whether a process holds the pipeline's lock."""
    try:
        with (config.state_dir / f"{config.pipeline}.lock").open("rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _listens(running: Running) -> bool:
    try:
        running.answer("GET", "/health", seconds=2.0)
    except NotThere:
        return False
    except CdcError:
        return True
    return True


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _error(answer: httpx.Response) -> CdcError:
    """The service's own error, as it would have been raised here."""
    try:
        said = answer.json()["error"]
        message, hint, code = str(said["message"]), str(said.get("hint") or ""), str(said.get("code") or "error")
        disposition = Disposition(said["disposition"]) if "disposition" in said else _disposition(answer.status_code)
    except (ValueError, KeyError, TypeError):
        message, hint, code = f"the service answered {answer.status_code}", "look at its log", "http"
        disposition = _disposition(answer.status_code)
    error = CdcError(message, hint=hint, code=code)
    error.disposition = disposition
    return error


def _disposition(status: int) -> Disposition:
    if status == 409:
        return Disposition.OPERATOR
    return Disposition.CONFIG if 400 <= status < 500 else Disposition.RETRY
