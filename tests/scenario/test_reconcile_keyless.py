"""Reconciliation of a table without a key on the real stack: its log of changes against the source, while both move."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from deploy.local.process import StackError
from deploy.local.stack import Stack
from tests.conftest import PgDatabase
from tests.support.line import EACH, Line, line

SETUP = """
CREATE TABLE bare (a int, t text, f float8, at timestamptz, j jsonb, b bytea, l int[]);
ALTER TABLE bare REPLICA IDENTITY FULL; ALTER TABLE bare ALTER t SET STORAGE EXTERNAL;
INSERT INTO bare SELECT g % 50, repeat('x', g % 3 * 1500), g / 7.0, '2024-05-06 07:08:09.123456', '{"a": 1.50}', '\\x00ff',
    ARRAY[g % 2, NULL] FROM generate_series(1, 500) g;
INSERT INTO bare SELECT * FROM bare;
INSERT INTO bare VALUES (NULL, NULL, 'NaN', 'infinity', NULL, '', '{}'), (NULL, '', '-Infinity', '0044-03-15 BC', 'null', NULL, NULL);
"""
STATEMENTS = (
    "INSERT INTO bare (a, t) VALUES (%(a)s, 'new'), (%(a)s, 'new')",
    "UPDATE bare SET f = f + 1 WHERE a = %(a)s",
    "UPDATE bare SET a = a + 1 WHERE a = %(a)s",
    "DELETE FROM bare WHERE ctid IN (SELECT ctid FROM bare WHERE a = %(a)s LIMIT 2)",
)


@contextmanager
def writing(url: str, sessions: int = 2) -> Iterator[list[int]]:
    """Sessions that change the table while this is entered; the list counts their transactions."""
    done, counts = threading.Event(), [0] * sessions

    def write(seed: int) -> None:
        rand = random.Random(seed)
        with psycopg.connect(url) as connection:
            while not done.wait(0.005):
                # A session has rows of its own, so that none waits for another in a circle.
                connection.execute(rand.choice(STATEMENTS).encode(), {"a": rand.randrange(25) * 2 * sessions + seed})
                connection.commit()
                counts[seed] += 1

    threads = [threading.Thread(target=write, args=(seed,)) for seed in range(sessions)]
    for thread in threads:
        thread.start()
    try:
        yield counts
    finally:
        done.set()
        for thread in threads:
            thread.join(30)


@pytest.mark.parametrize("destination", EACH)
def test_i27_a_table_without_a_key_is_compared_by_counting_its_rows(
    stack: Stack, pg_database: PgDatabase, tmp_path: Path, destination: str
) -> None:
    with line(stack, pg_database, tmp_path, "public.bare: {keyless: append}", destination=destination) as pipeline:
        pipeline.execute(SETUP)
        pipeline.register()
        pipeline.start()
        pipeline.await_complete()
        with writing(pg_database.url) as counts:
            statuses = [compared(pipeline)["status"] for _ in range(3)]
        assert set(statuses) <= {"match", "in_flight"}, statuses
        assert sum(counts) > 20
        pipeline.execute("TRUNCATE bare; INSERT INTO bare SELECT g % 3, 'same' FROM generate_series(1, 30) g")
        pipeline.await_complete()
        found = compared(pipeline)
        assert (found["status"], found["method"], found["rows"]) == ("match", "multiset", {"source": 30, "destination": 30})
        pipeline.stop()
        pipeline.warehouse.change(
            "DELETE FROM public.bare WHERE _cdc_offset IN (SELECT max(_cdc_offset) FROM public.bare WHERE a = 1)",
            "UPDATE public.bare SET t = 'other' WHERE _cdc_offset IN (SELECT max(_cdc_offset) FROM public.bare WHERE a = 2)",
        )
        found = compared(pipeline)
        told = {(d["kind"], d["key"]["a"], d["key"]["t"], d["count"]) for d in found["differences"]}
        assert told == {("missing", "1", "same", 1), ("missing", "2", "same", 1), ("extra", "2", "other", 1)}
        assert (found["status"], found["counts"]["missing"], found["counts"]["extra"]) == ("mismatch", 2, 1)
        with pytest.raises(StackError, match="log of its changes"):
            pipeline.call("repair", "public.bare", "--dry-run")


def compared(pipeline: Line) -> dict[str, object]:
    document = pipeline.call("reconcile", "public.bare", accept=(0, 1, 2))
    (table,) = document["tables"]
    return dict(table)
