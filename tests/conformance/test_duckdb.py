"""What is DuckDB's own: one process a file, queries that can only read, ranges found by trial, errors with a cure and without values."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from cdc_service.core.errors import CdcError, CommitUnknown, ConfigError, Fenced, TableStopped, Unavailable
from cdc_service.core.logical import Kind, LogicalType
from cdc_service.core.types import Column, Op, TableId, TableSchema
from cdc_service.ports.destination import TableState
from mergers.destinations import open_destination
from mergers.destinations.duckdb import CAPABILITIES, DuckDb
from mergers.destinations.duckdb import open as open_duckdb
from tests.conformance.harness import ITEMS, Change, DuckDbHarness, Feed, number, parsed_statements

HOLD = """
import duckdb, sys
connection = duckdb.connect(sys.argv[1])
print("held", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def harness(tmp_path: Path) -> Iterator[DuckDbHarness]:
    with parsed_statements():
        yield DuckDbHarness(tmp_path)


@pytest.fixture
def feed(harness: DuckDbHarness) -> Iterator[Feed]:
    destination = harness.open()
    yield Feed(destination, ITEMS).start()
    destination.close()


def row(op: Op, id_: int, record: int, name: str | None = None, **more: Any) -> Change:
    return Change(op, {"id": id_, "name": name, "body": None}, record, **more)


# What it cannot hold


@pytest.mark.xfail(strict=True, raises=subprocess.CalledProcessError, reason=CAPABILITIES.gaps["reads_while_writing"])
def test_another_process_reads_while_the_service_writes(feed: Feed, tmp_path: Path) -> None:
    feed.apply(row(Op.CREATE, 1, 10, "a"))
    read = "import duckdb, sys; print(duckdb.connect(sys.argv[1], read_only=True).execute('SELECT * FROM public.items').fetchall())"
    subprocess.run([sys.executable, "-c", read, str(tmp_path / "warehouse.duckdb")], check=True, capture_output=True)


# One process a file


def test_a_file_held_by_another_process_names_it_and_the_cure(feed: Feed, tmp_path: Path) -> None:
    feed.destination.release()
    other = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "warehouse.duckdb")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n", "the other process did not open the released file"
        with pytest.raises(Unavailable, match=str(other.pid)) as caught:
            feed.apply(row(Op.CREATE, 1, 10))
        assert f"kill {other.pid}" in caught.value.hint
    finally:
        other.communicate("\n", timeout=20)
    feed.apply(row(Op.CREATE, 1, 10, "a"))
    assert feed.destination.table_rows(feed.target) == 1


def test_urls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for url, file in (("duckdb:///relative.duckdb", "relative.duckdb"), (f"duckdb:///{tmp_path}/in/absolute.duckdb", "in/absolute.duckdb")):
        destination = open_destination(url, pipeline="shop")
        destination.prepare()
        destination.close()
        assert (tmp_path / file).exists()
    memory = open_destination("duckdb:///:memory:", pipeline="shop")
    memory.prepare()
    memory.release()
    assert memory.query("SELECT COUNT(*) AS n FROM _cdc.checkpoint", rows_max=1).to_pylist() == [{"n": 0}]
    with pytest.raises(ConfigError, match="names no file"):
        open_destination("duckdb://", pipeline="shop")
    for options in ({"enable_external_access": True}, {"lock_configuration": False}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            open_destination("duckdb:///x.duckdb", pipeline="shop", options=options)
    with pytest.raises(ConfigError, match="no_such"):
        open_destination("duckdb:///x.duckdb", pipeline="shop", options={"no_such_setting": 1}).prepare()
    (tmp_path / "not.duckdb").write_text("this is no database, but a text of some length\n" * 100)
    with pytest.raises(CdcError, match=r"not\.duckdb"):
        open_destination("duckdb:///not.duckdb", pipeline="shop").prepare()


def test_a_query_makes_no_warehouse_where_there_is_none(tmp_path: Path) -> None:
    destination = open_destination(f"duckdb:///{tmp_path}/in/warehouse.duckdb", pipeline="shop")
    with pytest.raises(ConfigError, match=r"no warehouse file .*warehouse\.duckdb") as caught:
        destination.query("SELECT 1", rows_max=1)
    assert "cdc run" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


# Queries

HOSTILE = """
INSERT INTO items VALUES (1) | UPDATE items SET name = 'x' | DELETE FROM items | TRUNCATE items | DROP TABLE items
CREATE TABLE x (i INT) | CREATE TEMP TABLE x (i INT) | CREATE MACRO m() AS 1 | CREATE SECRET (TYPE s3)
ALTER TABLE items ADD COLUMN x INT | MERGE INTO items USING (SELECT 1 AS i) s ON items.id = s.i WHEN NOT MATCHED THEN INSERT BY NAME
COMMENT ON TABLE items IS 'x' | WITH gone AS (DELETE FROM items RETURNING id) SELECT * FROM gone
WITH n AS (INSERT INTO items(id) VALUES (5) RETURNING id) SELECT * FROM n | EXPLAIN ANALYZE DELETE FROM items | COPY items TO 'out.csv'
COPY (SELECT 1) TO 'out.csv' | COPY items FROM 'in.csv' | EXPORT DATABASE 'out' | IMPORT DATABASE 'in' | ATTACH 'other.duckdb'
DETACH warehouse | USE memory | INSTALL httpfs | LOAD httpfs | SET threads = 1 | RESET threads | PRAGMA database_list
PRAGMA enable_profiling | CALL pragma_version() | CHECKPOINT | FORCE CHECKPOINT | VACUUM | ANALYZE | BEGIN | COMMIT | ROLLBACK
PREPARE p AS DELETE FROM items | EXECUTE p | SELECT 1; SELECT 2 | SELECT 1; DELETE FROM items | SELECT * FROM read_csv('/etc/passwd')
SELECT * FROM read_text('/etc/passwd') | FROM '/etc/passwd' | SELECT * FROM glob('/*') | SELECT * FROM parquet_metadata('x')
SELECT * FROM sniff_csv('/etc/passwd') | SELECT * FROM read_duckdb('x.duckdb') | SELECT getenv('HOME') | SELECT nextval('sequence')
SELECT * FROM read_blob('/etc/passwd') | SELECT * FROM read_json('/etc/passwd') | SELECT * FROM read_parquet('x') | FROM 'in.csv'
SELECT * FROM read_csv('http://127.0.0.1:1/x') | SELECT * FROM 'https://127.0.0.1:1/x.parquet' | ATTACH ':memory:' AS m | SET VARIABLE a = 1
SET enable_external_access = true | SET GLOBAL lock_configuration = false | PRAGMA enable_external_access=true | SELECT * FROM from_python
CREATE OR REPLACE VIEW v AS SELECT 1 | CREATE TYPE e AS ENUM ('a') | DROP SCHEMA public CASCADE | SELECT * FROM items; DROP TABLE items; --
SELECT 1 /* ; */; DROP TABLE items | COPY items TO '/dev/stdout' | COPY items TO PROGRAM 'true' | EXPLAIN ANALYZE COPY items TO 'out.csv'
PREPARE p AS SELECT 1; EXECUTE p | ALTER DATABASE warehouse SET ALIAS TO x | UPDATE EXTENSIONS | CREATE PERSISTENT SECRET s (TYPE s3)
FROM query('DELETE FROM items') | FROM force_checkpoint() | FROM enable_logging() | SELECT * FROM duckdb_secrets() | _cdc_stage_arrow
"""


@pytest.mark.parametrize("sql", [part.strip() for line in HOSTILE.splitlines() for part in line.split(" | ")])
def test_a_query_can_only_read(feed: Feed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sql: str) -> None:
    monkeypatch.chdir(tmp_path)
    feed.apply(row(Op.CREATE, 1, 10, "a"))
    feed.destination.connection().execute("CREATE SEQUENCE IF NOT EXISTS sequence")
    files = {file.name for file in tmp_path.iterdir()}
    from_python = pa.table({"secret": [1]})  # The driver looks tables up among the caller's variables, if it may.
    with pytest.raises(ConfigError) as caught:
        feed.destination.query(sql.replace("items", "public.items"), rows_max=10)
    assert caught.value.message
    assert from_python.num_rows == 1
    assert {file.name for file in tmp_path.iterdir()} == files
    feed.apply(row(Op.UPDATE, 1, 20, "b"))
    assert feed.destination.query("SELECT id, name FROM public.items", rows_max=10).to_pylist() == [{"id": 1, "name": "b"}]


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("SELECT 1", 1),
        ("WITH a AS (SELECT 1) SELECT * FROM a;", 1),
        ("EXPLAIN SELECT 1", 1),
        ("FROM range(100000)", 7),
        ("DESCRIBE public.items", 7),
        ("VALUES (1), (2)", 2),
        ("SELECT 1 WHERE FALSE", 0),
        ("FROM _cdc.table_status", 0),
    ],
)
def test_a_query_reads(feed: Feed, sql: str, rows: int) -> None:
    assert feed.destination.query(sql, rows_max=7).num_rows == rows


def test_queries_and_merges_at_the_same_time(feed: Feed) -> None:
    """A reader sees whole batches: each has as many rows as the checkpoint says."""
    failures: list[BaseException] = []
    seen: set[int] = set()
    ready = threading.Event()

    def read() -> None:
        try:
            while not done.is_set():
                sql = "SELECT (SELECT COUNT(*) FROM public.items) AS n, (SELECT SUM(next_offset) FROM _cdc.checkpoint) AS o"
                (found,) = feed.destination.query(sql, rows_max=1).to_pylist()
                assert found["n"] == found["o"]
                seen.add(found["n"])
                ready.set()
        except BaseException as error:
            failures.append(error)
            ready.set()

    done = threading.Event()
    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert ready.wait(20), "no query came back within 20 s"
    for batch in range(20):
        feed.apply(*(row(Op.CREATE, batch * 50 + i, batch + 1, partition=i % 2) for i in range(50)))
        feed.destination.release()
    done.set()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive(), "a query did not end within 20 s"
    assert not failures
    assert seen <= set(range(0, 1001, 50))


# Values


@pytest.mark.parametrize(
    ("kind", "beyond", "sql"),
    [
        (Kind.TIMESTAMP, CAPABILITIES.ranges[Kind.TIMESTAMP][0] - 1, "TIMESTAMP"),
        (Kind.TIME, CAPABILITIES.ranges[Kind.TIME][1] + 1, "TIME"),
    ],
)
def test_the_ranges_end_where_duckdb_ends(kind: Kind, beyond: int, sql: str) -> None:
    """One beyond stores without a word, and reading it fails: the reason why ranges are checked before."""
    connection = duckdb.connect()
    for number_, fits in ((beyond, False), (beyond + (1 if beyond < 0 else -1), True)):
        value = pa.array([number_], pa.int64()).cast(LogicalType(kind).arrow)
        connection.register("staged", pa.table({"x": value}))
        connection.execute(f"CREATE OR REPLACE TABLE held AS SELECT CAST(x AS {sql}) AS x FROM staged").fetchall()
        connection.unregister("staged")
        query = f"SELECT CAST(CAST(x AS VARCHAR) AS {sql}) = x FROM held"
        if fits:
            assert connection.execute(query).fetchall() == [(True,)]
        else:
            with pytest.raises(duckdb.Error):
                connection.execute(query).fetchall()
            connection = duckdb.connect()


def test_an_error_never_quotes_a_value(harness: DuckDbHarness) -> None:
    schema = TableSchema(TableId("public", "t"), (number("id"), Column("u", LogicalType(Kind.UUID))), ("id",))
    destination = harness.open()
    feed = Feed(destination, schema).start()
    with pytest.raises(CdcError) as caught:
        feed.apply(Change(Op.CREATE, {"id": 1, "u": "secret-cell-value"}, 1))
    shown: BaseException | None = caught.value
    while shown is not None:
        assert "secret" not in str(shown)
        shown = shown.__cause__ or (None if shown.__suppress_context__ else shown.__context__)
    assert caught.value.code == "value_refused"
    destination.close()


# Fencing and failures


def test_i13_two_open_transactions_on_one_checkpoint_fence_each_other(harness: DuckDbHarness, feed: Feed) -> None:
    """Both writers hold the newest epoch (a zombie with copied state): the second to write meets DuckDB's conflict."""
    other = Feed(harness.open(), ITEMS, next=dict(feed.next), epochs=dict(feed.epochs))
    delta = feed.delta(row(Op.CREATE, 1, 10, "a"))
    holder = feed.destination.connection()
    holder.begin()
    holder.execute("UPDATE _cdc.checkpoint SET batch_id = 'held'")
    with pytest.raises(Fenced):
        other.merge(delta)
    holder.rollback()
    other.merge(delta)
    with pytest.raises(Fenced):
        feed.merge(delta)
    other.destination.close()


@pytest.mark.parametrize("applied", [True, False])
def test_i15_a_lost_reply_to_commit_is_unknown_and_then_read_back(feed: Feed, monkeypatch: pytest.MonkeyPatch, applied: bool) -> None:
    delta = feed.delta(row(Op.CREATE, 1, 10, "a"))
    connection = feed.destination.connection()
    raw = connection.raw

    class Lossy:
        def __getattr__(self, name: str) -> Any:
            return getattr(raw, name)

        def execute(self, sql: str, *params: Any) -> Any:
            if sql == "COMMIT":
                raw.execute("COMMIT" if applied else "ROLLBACK").fetchall()
                raise duckdb.IOException("the disk went away")
            return raw.execute(sql, *params)

    monkeypatch.setattr(connection, "raw", Lossy())
    with pytest.raises(CommitUnknown):
        feed.merge(delta)
    feed.take()
    assert feed.next[0] == (1 if applied else 0)
    assert feed.destination.table_rows(feed.target) == feed.next[0]
    if not applied:
        feed.apply(row(Op.CREATE, 1, 10, "a"))


def test_no_staging_stays_behind(feed: Feed, harness: DuckDbHarness) -> None:
    feed.apply(row(Op.CREATE, 1, 10, "a"), rejected=[(0, None)])
    with harness.crash_at(feed.destination, 6), pytest.raises(Unavailable):
        feed.apply(row(Op.UPDATE, 1, 20, "b"), rejected=[(0, None)])
    left = "SELECT table_name FROM duckdb_tables() WHERE temporary OR table_name LIKE '\\_cdc\\_%' ESCAPE '\\'"
    assert feed.destination.connection().fetch(left) == []


# What somebody did to the target


@pytest.mark.parametrize(
    ("ddl", "sentence"),
    [
        ("ALTER TABLE public.items DROP COLUMN body", "column body is gone"),
        ("ALTER TABLE public.items ALTER COLUMN name TYPE BLOB", "column name is BLOB and was VARCHAR"),
        ("ALTER TABLE public.items RENAME COLUMN _cdc_record TO mine", "column _cdc_record is gone"),
        ("DROP TABLE public.items", "the table public.items is gone"),
    ],
)
def test_drift_is_named_and_stops_the_table(feed: Feed, ddl: str, sentence: str) -> None:
    feed.apply(row(Op.CREATE, 1, 10, "a"))
    feed.destination.connection().execute(ddl)
    assert sentence in feed.destination.drift(feed.target, feed.own)
    if "BLOB" not in ddl:
        with pytest.raises(TableStopped, match=sentence) as caught:
            feed.apply(row(Op.UPDATE, 1, 20, "b"))
        assert caught.value.state == "drift"


def test_an_added_column_is_drift(feed: Feed) -> None:
    feed.destination.connection().execute("ALTER TABLE public.items ADD COLUMN mine INT")
    assert feed.destination.drift(feed.target, feed.own) == ["column mine was added"]


def test_rows_written_by_somebody_else_under_one_key_stop_the_table(feed: Feed) -> None:
    feed.apply(row(Op.CREATE, 1, 10, "a"))
    feed.destination.connection().execute("INSERT INTO public.items SELECT * FROM public.items")
    with pytest.raises(TableStopped, match="several rows of one key"):
        feed.apply(row(Op.UPDATE, 1, 20, "b"))


def test_another_table_of_the_same_name_is_not_taken_over(harness: DuckDbHarness) -> None:
    destination = harness.open()
    destination.prepare()
    destination.connection().execute("CREATE SCHEMA public")
    destination.connection().execute("CREATE TABLE public.items (id BIGINT, other VARCHAR)")
    with pytest.raises(TableStopped, match="column name is gone"):
        Feed(destination, ITEMS).evolve(ITEMS)
    assert destination.schemas(Feed(destination, ITEMS).target) == []
    destination.close()


# The service's own tables


def test_table_status_is_fresh_when_it_is_read(feed: Feed) -> None:
    feed.apply(row(Op.CREATE, 1, 10, "a"), rejected=[(1, None)])
    feed.destination.save_state(feed.target, TableState("streaming", complete_through=10, complete_at=1_700_000_000_000_000))
    sql = "SELECT * EXCLUDE (synced_at), synced_at IS NOT NULL AS synced FROM _cdc.table_status"
    (status,) = feed.destination.query(sql, rows_max=5).to_pylist()
    assert list(status)[:2] == ["pipeline", "source_table"]
    assert (status["pipeline"], status["source_table"], status["target_table"]) == ("shop", "public.items", "public.items")
    assert status["freshness_seconds"] > 10_000_000
    assert (status["applied"], status["parked"], status["parked_open"]) == (1, 1, 1)
    assert (status["is_complete"], status["verified_at"], status["synced"]) == (False, None, True)
    assert status["complete_at"].timestamp() == 1_700_000_000


def test_every_meta_table_begins_with_pipeline_and_source_table(feed: Feed) -> None:
    sql = """SELECT table_name, LIST(column_name ORDER BY column_index) AS names FROM duckdb_columns()
WHERE schema_name = '_cdc' AND table_name <> 'migration' GROUP BY ALL"""
    tables = {r["table_name"]: r["names"] for r in feed.destination.query(sql, rows_max=100).to_pylist()}
    assert {"checkpoint", "batch", "quarantine", "deleted_keys", "schema_history", "table_state", "table_status"} <= set(tables)
    assert all(names[:2] == ["pipeline", "source_table"] for names in tables.values())


def test_retention_removes_old_rows_and_keeps_what_is_undecided(feed: Feed, harness: DuckDbHarness) -> None:
    feed.apply(row(Op.CREATE, 1, 10), row(Op.DELETE, 2, 11), rejected=[(0, '["9"]'), (0, '["8"]')])
    connection = feed.destination.connection()
    old = "now() - INTERVAL '400 days'"
    for sql in (
        f"UPDATE _cdc.batch SET committed_at = {old}",
        f"UPDATE _cdc.deleted_keys SET deleted_at = {old}",
        f"UPDATE _cdc.quarantine SET parked_at = {old}",
        f"UPDATE _cdc.quarantine SET state = 'replayed', decided_at = {old} WHERE key_text = '[\"8\"]'",
    ):
        connection.execute(sql)
    again: DuckDb = harness.open()
    again.prepare()
    assert harness.ledger(again, feed.target) == []
    assert harness.deleted(again, feed.target) == {}
    assert again.parked_keys(feed.target).to_pylist() == ['["9"]']
    assert again.query("SELECT COUNT(*) AS n FROM _cdc.quarantine", rows_max=1).to_pylist() == [{"n": 1}]
    again.close()


def test_i2_deleted_keys_stay_while_a_record_waits_whose_key_nobody_knows(feed: Feed, harness: DuckDbHarness) -> None:
    feed.apply(row(Op.CREATE, 1, 10), row(Op.DELETE, 2, 11), rejected=[(0, None)])
    connection = feed.destination.connection()
    connection.execute("UPDATE _cdc.deleted_keys SET deleted_at = now() - INTERVAL '400 days'")
    connection.execute("UPDATE _cdc.quarantine SET parked_at = now() - INTERVAL '400 days'")
    for state, kept in (("parked", {'["2"]': (0, 11)}), ("discarded", {})):
        connection.execute(f"UPDATE _cdc.quarantine SET state = '{state}', decided_at = now() - INTERVAL '400 days'")
        again = harness.open()
        again.prepare()
        assert harness.deleted(again, feed.target) == kept
        again.close()
    assert feed.destination.totals(feed.target).decided == {"discarded": 1}, "what was discarded is remembered for good"


def test_the_quarantine_keeps_records_whole(feed: Feed) -> None:
    feed.apply(rejected=[(1, '["5"]')])
    sql = 'SELECT "partition", "offset", "key", "value", headers, key_text, stage, code, message, state FROM _cdc.quarantine'
    assert feed.destination.query(sql, rows_max=5).to_pylist() == [
        {
            "partition": 1,
            "offset": 0,
            "key": b"key",
            "value": b"value",
            "headers": '[["h", "ff"], ["n", null]]',
            "key_text": '["5"]',
            "stage": "decode",
            "code": "bad_json",
            "message": "not JSON",
            "state": "parked",
        }
    ]


def test_memory_stays_within_its_limit(tmp_path: Path) -> None:
    """A batch larger than memory_limit spills or says what to do; it never ends the process and changes nothing by half."""
    destination = open_duckdb(
        f"duckdb:///{tmp_path}/small.duckdb", pipeline="p", meta_schema="_cdc", options={"memory_limit": "60MB", "threads": 2}
    )
    feed = Feed(destination, ITEMS).start()
    changes = [Change(Op.CREATE, {"id": i, "name": "n" * 200, "body": "b" * 3000}, 10) for i in range(40_000)]
    hint, rows = "memory_limit", 40_000
    try:
        feed.apply(*changes)
    except Unavailable as error:
        hint, rows = error.hint, 0
    assert "memory_limit" in hint
    assert destination.table_rows(feed.target) == rows
    destination.close()
