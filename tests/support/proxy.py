"""A TCP link between a client and a server on this machine that can be slow, cut, silent, or lose the reply to a COMMIT."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress

CHUNK = 64 * 1024
LOST_AFTER_SECONDS = 0.3
"""How long the server has to carry out the COMMIT whose reply is lost."""


class FaultyLink:
    """What comes to ``port`` (loopback) goes on to ``to``. Faults hold for all connections until ``heal``; use it with `with`."""

    def __init__(self, to: int) -> None:
        self._to = to
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.lost = 0
        """Replies to COMMIT that were lost so far."""
        self._delay = 0.0
        self._lose_commit = False
        self._open = threading.Event()
        self._open.set()
        self._ends: set[socket.socket] = set()
        self._lock = threading.Lock()

    def __enter__(self) -> FaultyLink:
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self.heal()
        self.reset()

    # What may happen

    def slow(self, seconds: float) -> None:
        """Each piece takes so much longer, in both directions."""
        self._delay = seconds

    def reset(self) -> None:
        """Cuts every connection; new ones are welcome."""
        with self._lock:
            ends, self._ends = self._ends, set()
        for end in ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def swallow(self) -> None:
        """A black hole: connections stay, nothing comes through."""
        self._open.clear()

    def lose_commit(self) -> None:
        """The next COMMIT reaches the server, and its reply nobody: the connection is cut instead."""
        self._lose_commit = True

    def heal(self) -> None:
        self._delay, self._lose_commit = 0.0, False
        self._open.set()

    # Threads

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(("127.0.0.1", self._to), 5)
                    server.settimeout(None)
                except OSError:
                    client.close()
                    continue
                with self._lock:
                    self._ends |= {client, server}
                threading.Thread(target=self._carry, args=(client, server), daemon=True).start()

    def _carry(self, client: socket.socket, server: socket.socket) -> None:
        answers = threading.Thread(target=self._pump, args=(server, client, False), daemon=True)
        answers.start()
        self._pump(client, server, True)
        answers.join()
        with self._lock:
            self._ends -= {client, server}
        client.close()
        server.close()

    def _pump(self, source: socket.socket, sink: socket.socket, asks: bool) -> None:
        with suppress(OSError):
            while chunk := source.recv(CHUNK):
                self._open.wait()
                if self._delay:
                    time.sleep(self._delay)
                lost = asks and self._lose_commit and b"COMMIT" in chunk
                if lost:
                    self._lose_commit = False
                    with suppress(OSError):  # From here on the client hears nothing.
                        source.shutdown(socket.SHUT_WR)
                sink.sendall(chunk)
                if lost:
                    self.lost += 1
                    time.sleep(LOST_AFTER_SECONDS)
                    break
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
