"""Sessions that insert, change, delete and move rows in small transactions, some rolled back, at a rate, beside the test.

Run: python -m tests.support.load URL SESSIONS RATE ROWS; it ends when its input does, and prints {transactions, seconds} as JSON. Sessions
talk in pipelines, so that the rate is bounded by the server and not by round trips.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import threading
import time
from typing import Any

import psycopg

IN_A_ROW = 10
"""Transactions of a session between two looks at the clock."""
ROLLED_BACK = 0.05


class Load:
    """The load as a process of its own, while it is entered; then ``transactions`` and ``seconds`` are there."""

    def __init__(self, url: str, *, sessions: int, rate: int, rows: int) -> None:
        self.transactions, self.seconds = 0, 0.0
        self._command = [sys.executable, "-m", "tests.support.load", url, str(sessions), str(rate), str(rows)]

    def __enter__(self) -> Load:
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            said, complaint = self._process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            raise AssertionError("the load did not end within 60 s") from None
        assert self._process.returncode == 0, f"the load failed:\n{complaint[-3000:]}"
        told = json.loads(said)
        self.transactions, self.seconds = told["transactions"], told["seconds"]


def change(rand: random.Random, rows: int, seed: int, sessions: int) -> tuple[str, Any, str, tuple[Any, ...]]:
    """Table, key, statement and what else it takes. A key of kinds stands in many rows, which two statements may lock in any order: each
    session has keys of its own there."""
    id_ = rand.choice([rand.randrange(1, rows), rand.randrange(1, 30)])
    name = f'key é "{id_ % 200 // sessions * sessions + seed}'
    return rand.choice(
        [
            ("orders", id_, "UPDATE orders SET n = n + 1, f = random(), t = %s WHERE id = %s", (f"v{rand.random()}",)),
            ("orders", id_, "UPDATE orders SET d = d + 0.01, at = clock_timestamp(), a = a[1:4] || 1 WHERE id = %s", ()),
            ("orders", id_, "DELETE FROM orders WHERE id = %s", ()),
            ("orders", id_, "INSERT INTO orders (n, t, id) VALUES (1, 'new', %s) ON CONFLICT (id) DO UPDATE SET n = -orders.n", ()),
            ("kinds", name, "UPDATE kinds SET f = random(), e = left(e || 'x', 9) WHERE k = %s", ()),
            ("kinds", name, "DELETE FROM kinds WHERE k = %s", ()),
            ("kinds", name, "INSERT INTO kinds (l, e, k) VALUES (gen_random_uuid(), NULL, %s)", ()),
        ]
    )


def session(url: str, seed: int, sessions: int, rate: float, rows: int, done: threading.Event, counts: list[int]) -> None:
    rand, began = random.Random(seed), time.monotonic()
    with psycopg.connect(url, autocommit=True) as connection, connection.pipeline() as pipeline:
        while not done.is_set():
            for _ in range(IN_A_ROW):
                rolled_back = rand.random() < ROLLED_BACK
                if rolled_back:
                    connection.execute("BEGIN")
                # In the order of tables and keys, so that no two sessions wait for each other in a circle.
                for _, key, statement, values in sorted(change(rand, rows, seed, sessions) for _ in range(rand.randrange(1, 4))):
                    connection.execute(statement, (*values, key))  # type: ignore[call-overload]
                if rolled_back:
                    connection.execute("ROLLBACK")
                pipeline.sync()  # What a pipeline sends between two of these is a transaction.
            counts[seed] += IN_A_ROW
            done.wait(max(0.0, counts[seed] / rate - (time.monotonic() - began)))


def main(url: str, sessions: int, rate: int, rows: int) -> None:
    done, counts, failed = threading.Event(), [0] * sessions, list[BaseException]()

    def work(seed: int) -> None:
        try:
            session(url, seed, sessions, rate / sessions, rows, done, counts)
        except BaseException as error:
            failed.append(error)

    began, threads = time.monotonic(), [threading.Thread(target=work, args=(seed,)) for seed in range(sessions)]
    for thread in threads:
        thread.start()
    sys.stdin.read()
    done.set()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
    print(json.dumps({"transactions": sum(counts), "seconds": time.monotonic() - began}))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
