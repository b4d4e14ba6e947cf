"""Connections to PostgreSQL that are kept between questions, for what is asked ahead of each merge: a new one costs more than its answer.

Promises: at the latest half a minute after the address means another server, that one is asked; a server that restarted, or that closed
the connection, is connected to anew before anything is asked; one that hangs is waited for no longer than LIMIT_SECONDS
(``connect_timeout`` is only for a new connection, and ``statement_timeout`` is the server's own).
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import QueuePool

KEPT_MAX = 2
"""The thread of the merges and the one of the looks ask beside one another."""
RECYCLE_SECONDS = 30
"""So old a connection gets: another server may have the address since."""
LIMIT_SECONDS = 60.0
"""Then a connection in use is cut: what is asked fails as if the server had closed it."""
SETTINGS = ("plan_cache_mode=force_generic_plan",)
CONNECT = {"prepare_threshold": 0}
"""Statements on the catalog take longer to be planned than to run: each is planned once."""


def pooled(create: Callable[[Mapping[str, Any]], Engine]) -> Engine:
    """``create`` makes it, with the pool that it is given."""
    made = create({"poolclass": QueuePool, "pool_size": KEPT_MAX, "max_overflow": -1, "pool_recycle": RECYCLE_SECONDS})

    @event.listens_for(made, "checkout")
    def begin(connection: Any, record: Any, _proxy: Any) -> None:
        limit = _Limit(connection.fileno())
        try:
            connection.execute("SELECT 1")
        except made.dialect.loaded_dbapi.Error as error:
            limit.end()
            raise DisconnectionError(str(error)) from error
        record.info["limit"] = limit

    @event.listens_for(made, "checkin")
    def end(_connection: Any, record: Any) -> None:
        if (limit := record.info.pop("limit", None)) is not None:
            limit.end()

    return made


class _Limit:
    """Cuts the connection behind a file descriptor unless it is ended in time."""

    def __init__(self, number: int) -> None:
        self._socket = socket.socket(fileno=os.dup(number))  # The number may be another's by then.
        self._timer = threading.Timer(LIMIT_SECONDS, self._cut)
        self._timer.daemon = True
        self._timer.start()

    def _cut(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        self._timer.cancel()
        self._socket.close()
