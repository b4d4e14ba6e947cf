"""Rows read again beside open transactions: what is given as their position is one up to which nothing can be missing."""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psycopg
import pyarrow as pa
import pytest

from cdc_service.core.errors import CdcError, Unavailable
from cdc_service.core.types import TableId
from connectors.dialects import _postgresql_settle
from connectors.protocol import Reread, SourceDialect, open_dialect
from tests.conftest import PgDatabase
from tests.support.registration import eventually

A = TableId("public", "a")
KEYS = 5


@pytest.fixture
def owner(pg_database: PgDatabase) -> Iterator[psycopg.Connection]:
    with psycopg.connect(pg_database.url, autocommit=True) as connection:
        connection.execute("CREATE TABLE a(id int PRIMARY KEY, n int, body text)")
        connection.execute(f"INSERT INTO a SELECT g, 0, 'x' FROM generate_series(0, {KEYS - 1}) g; GRANT SELECT ON a TO cdc")
        yield connection


@pytest.fixture
def dialect(pg_database: PgDatabase, owner: psycopg.Connection) -> Iterator[SourceDialect]:
    """As a role that may read, and nothing else."""
    made = open_dialect(pg_database.cdc_url)
    yield made
    made.close()


@contextmanager
def transaction(database: PgDatabase, *statements: str) -> Iterator[psycopg.Connection]:
    """A session with an open transaction that ran ``statements``."""
    with psycopg.connect(database.url) as connection:
        for statement in statements:
            connection.execute(statement.encode())
        yield connection


def reread(dialect: SourceDialect, table: TableId = A, key: int = 1) -> Reread:
    return dialect.reread(table, pa.table({"id": pa.array([key], pa.int32())}), ["n"])


def test_a_column_that_the_source_has_dropped_is_null(dialect: SourceDialect, owner: psycopg.Connection) -> None:
    owner.execute("ALTER TABLE a DROP COLUMN n")
    again = dialect.reread(A, pa.table({"id": pa.array([1], pa.int32())}), ["n", "body"])
    assert again.rows.to_pylist() == [{"n": None, "body": "x"}]
    assert again.unreadable == ()
    with pytest.raises(CdcError, match="no key k"):
        dialect.reread(A, pa.table({"k": pa.array([1], pa.int32())}), ["body"])


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE a SET n = 7 WHERE id = 1",
        "DELETE FROM a WHERE id = 1",
        "INSERT INTO a VALUES (100, 1)",
        "SAVEPOINT s; UPDATE a SET n = 7 WHERE id = 1; RELEASE s",
        "COPY a FROM PROGRAM 'printf \"101\\\\t1\\\\tx\\\\n\"'",
    ],
)
def test_an_open_change_of_the_table_is_waited_for_and_named(
    dialect: SourceDialect, pg_database: PgDatabase, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    monkeypatch.setattr(_postgresql_settle, "SETTLE_SECONDS", 0.3)
    with transaction(pg_database, *change.split("; ")) as other:
        with pytest.raises(Unavailable, match=rf"pid {other.info.backend_pid}\b") as caught:
            reread(dialect)
        assert caught.value.code == "source_busy"
        assert f"pg_terminate_backend({other.info.backend_pid})" in caught.value.hint
        other.rollback()
        assert reread(dialect).rows.to_pylist() == [{"n": "0"}]


def test_a_change_that_commits_meanwhile_is_seen(dialect: SourceDialect, pg_database: PgDatabase) -> None:
    with transaction(pg_database, "UPDATE a SET n = 7 WHERE id = 1") as other:
        begun = time.monotonic()
        timer = threading.Timer(0.5, other.commit)
        timer.start()
        again = reread(dialect)
        timer.join()
    assert again.rows.to_pylist() == [{"n": "7"}]
    assert time.monotonic() - begun >= 0.5


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM a",
        "SELECT * FROM a FOR KEY SHARE",
        "SELECT txid_current()",
        "CREATE TABLE elsewhere(id int)",
        "LOCK TABLE a IN ROW EXCLUSIVE MODE",
    ],
)
def test_who_changed_nothing_in_the_table_is_in_nobodys_way(dialect: SourceDialect, pg_database: PgDatabase, statement: str) -> None:
    with transaction(pg_database, statement):
        begun = time.monotonic()
        assert reread(dialect).rows.to_pylist() == [{"n": "0"}]
        assert time.monotonic() - begun < _postgresql_settle.SETTLE_SECONDS


def test_a_change_in_a_partition_is_one_of_its_table(
    dialect: SourceDialect, owner: psycopg.Connection, pg_database: PgDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_postgresql_settle, "SETTLE_SECONDS", 0.3)
    owner.execute("CREATE TABLE p(id int PRIMARY KEY, n int) PARTITION BY RANGE (id); GRANT SELECT ON p TO cdc")
    owner.execute("CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10); INSERT INTO p VALUES (1, 0)")
    with transaction(pg_database, "UPDATE p1 SET n = 1"), pytest.raises(Unavailable, match="pid"):
        reread(dialect, TableId("public", "p"))
    assert reread(dialect, TableId("public", "p")).found.to_pylist() == [True]


def test_no_committed_change_up_to_the_position_is_missing_under_load(
    dialect: SourceDialect, owner: psycopg.Connection, pg_database: PgDatabase
) -> None:
    """Each row counts its changes: the log itself says how many of them lie up to a position."""
    owner.execute("SELECT pg_create_logical_replication_slot(%s, 'test_decoding')", (f"{pg_database.name}_truth",))
    stop = threading.Event()

    def write(seed: int) -> None:
        rand = random.Random(seed)
        with psycopg.connect(pg_database.url) as connection:
            while not stop.is_set():
                for key in sorted(rand.sample(range(KEYS), 2)):
                    connection.execute("UPDATE a SET n = n + 1 WHERE id = %s", (key,))
                    time.sleep(rand.choice([0, 0.002, 0.02]))
                connection.commit() if rand.random() < 0.8 else connection.rollback()

    writers = [threading.Thread(target=write, args=(seed,)) for seed in range(3)]
    seen: list[tuple[int, int, int]] = []
    for writer in writers:
        writer.start()
    try:
        eventually("rows read again under load", lambda: seen.append(_count(dialect, len(seen) % KEYS)) or len(seen) >= 60)
    finally:
        stop.set()
        for writer in writers:
            writer.join(10)
    truth = _changes(owner, f"{pg_database.name}_truth")
    for key, counted, position in seen:
        committed = max([n for k, n, lsn in truth if k == key and lsn <= position], default=0)
        assert counted >= committed, f"key {key}: {counted} was read, but the log holds {committed} up to {position}"
    assert len(truth) > len(seen)
    assert any(counted > 0 for _, counted, _ in seen)


def test_a_change_after_the_read_lies_behind_its_position(
    dialect: SourceDialect, owner: psycopg.Connection, pg_database: PgDatabase
) -> None:
    slot = f"{pg_database.name}_truth"
    owner.execute("SELECT pg_create_logical_replication_slot(%s, 'test_decoding')", (slot,))
    for n in range(1, 21):
        again = reread(dialect)
        assert again.rows.to_pylist() == [{"n": str(n - 1)}]
        owner.execute("UPDATE a SET n = %s WHERE id = 1", (n,))
        ((_, _, lsn),) = [change for change in _changes(owner, slot) if change[1] == n]
        assert lsn > again.position


def _count(dialect: SourceDialect, key: int) -> tuple[int, int, int]:
    again = reread(dialect, key=key)
    return key, int(again.rows["n"][0].as_py()), again.position


def _changes(owner: psycopg.Connection, slot: str) -> list[tuple[int, int, int]]:
    """(key, n, log position) of each committed update that the slot has not given yet."""
    rows = owner.execute("SELECT (lsn - '0/0')::bigint, data FROM pg_logical_slot_get_changes(%s, NULL, NULL)", (slot,)).fetchall()
    found = [(re.search(r"table public\.a: UPDATE: .*id\[integer\]:(\d+) n\[integer\]:(\d+)", data), lsn) for lsn, data in rows]
    return [(int(m[1]), int(m[2]), lsn) for m, lsn in found if m is not None]
