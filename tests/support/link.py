"""A TCP link of a certain speed between a client and a server on this machine."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

CHUNK = 64 * 1024


@contextmanager
def slow_link(port: int, bytes_per_second: float) -> Iterator[int]:
    """A port of the loopback from which all goes on to ``port``; what comes back is no faster than this, over all connections together."""
    listener = socket.create_server(("127.0.0.1", 0))
    opened: list[socket.socket] = [listener]
    lock, free_at = threading.Lock(), [0.0]

    def pace(size: int) -> None:
        with lock:
            free_at[0] = max(free_at[0], time.monotonic()) + size / bytes_per_second
            wait = free_at[0] - time.monotonic()
        time.sleep(max(0.0, wait))

    def pump(source: socket.socket, sink: socket.socket, *, paced: bool) -> None:
        with suppress(OSError):
            while chunk := source.recv(CHUNK):
                if paced:
                    pace(len(chunk))
                sink.sendall(chunk)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def serve() -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                server = socket.create_connection(("127.0.0.1", port))
                opened.extend((client, server))
                for source, sink, paced in ((client, server, False), (server, client, True)):
                    threading.Thread(target=pump, args=(source, sink), kwargs={"paced": paced}, daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        for end in opened:
            end.close()
