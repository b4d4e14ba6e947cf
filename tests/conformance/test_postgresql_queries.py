"""PostgreSQL as a destination: queries that can only read, what they return, where its ranges end, errors without values."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import psycopg
import pyarrow as pa
import pytest

from cdc_service.core.errors import CdcError, ConfigError
from cdc_service.core.keys import key_text
from cdc_service.core.logical import INFINITY, Kind, LogicalType
from cdc_service.core.types import Column, Op, TableId, TableSchema
from deploy.local.stack import Stack
from mergers.destinations.postgresql import CAPABILITIES
from mergers.destinations.postgresql import open as open_postgresql
from tests.conformance.harness import ITEMS, Change, Feed, PostgreSqlHarness, number, parsed_statements
from tests.conformance.test_postgresql import WAIT, Later, names, row
from tests.support.registration import eventually


@pytest.fixture
def harness(postgres: Stack) -> Iterator[PostgreSqlHarness]:
    with parsed_statements():
        made = PostgreSqlHarness()
        yield made
        made.close()


@pytest.fixture
def feed(harness: PostgreSqlHarness) -> Iterator[Feed]:
    destination = harness.open()
    yield Feed(destination, ITEMS).start()
    destination.close()


# Queries

HOSTILE = """
INSERT INTO items VALUES (1) | UPDATE items SET name = 'x' | DELETE FROM items | TRUNCATE items | DROP TABLE items | SELECT 1; SELECT 2
SELECT 1; COMMIT; BEGIN; DELETE FROM items; COMMIT | EXPLAIN SELECT 1; COMMIT; BEGIN; DELETE FROM items; COMMIT
CREATE TABLE x (i INT) | CREATE TEMP TABLE x (i INT) | SELECT 1 AS a INTO x | SELECT 1; DELETE FROM items | COMMIT; DELETE FROM items
WITH gone AS (DELETE FROM items RETURNING id) SELECT * FROM gone | EXPLAIN ANALYZE DELETE FROM items | EXPLAIN SELECT 1; DELETE FROM items
COPY items TO '/x/out' | COPY items TO STDOUT | COPY items FROM STDIN | COPY (SELECT 1) TO PROGRAM 'true' | RESET ALL
SET work_mem = '1MB' | BEGIN | COMMIT | ROLLBACK | VACUUM | ANALYZE | CALL p() | DO $$BEGIN DELETE FROM items; END$$
PREPARE p AS DELETE FROM items | LISTEN x
NOTIFY x | LOCK TABLE items | REFRESH MATERIALIZED VIEW x | SELECT nextval('s') | SELECT setval('s', 9) | SELECT spoil()
SELECT * FROM items FOR UPDATE | SELECT set_config('transaction_read_only', 'off', true) | EXPLAIN ANALYZE SELECT spoil()
GRANT ALL ON items TO PUBLIC | ALTER TABLE items ADD x INT | SELECT pg_read_file('/etc/passwd') | SELECT lo_import('/etc/passwd')
DISCARD ALL | CHECKPOINT | CLOSE ALL | nonsense | SELECT 1) UNION ALL (SELECT 2; DROP TABLE items | SELECT 1 /* ; */; DROP TABLE items
COMMIT; DROP TABLE items | SELECT 1; COMMIT; DROP TABLE items | SELECT 1; ROLLBACK; BEGIN READ WRITE; DELETE FROM items; COMMIT
SELECT pg_ls_dir('/') | SELECT pg_read_binary_file('/etc/passwd') | SELECT pg_stat_file('/etc/passwd') | SELECT lo_export(1, '/tmp/x')
SELECT * FROM pg_read_server_files | SELECT dblink_exec('dbname=postgres', 'DROP TABLE items') | CREATE EXTENSION dblink | LOAD 'dblink'
SELECT query_to_xml('DELETE FROM items', true, true, '') | SELECT rolpassword FROM pg_authid | SELECT usename, passwd FROM pg_shadow
SELECT pg_reload_conf() | SELECT pg_rotate_logfile() | ALTER SYSTEM SET work_mem = '1MB' | SET ROLE postgres
SET SESSION AUTHORIZATION postgres | SELECT set_config('role', 'postgres', false)
SELECT set_config('default_transaction_read_only', 'off', false), nextval('s')
CREATE OR REPLACE FUNCTION f() RETURNS INT LANGUAGE sql AS 'SELECT 1' | EXPLAIN (ANALYZE) INSERT INTO items(id) VALUES (5)
EXPLAIN ANALYZE SELECT nextval('s') | SELECT currval('s') | MERGE INTO items USING items AS o ON true WHEN MATCHED THEN DELETE
CLUSTER items
"""


@pytest.fixture(scope="module")
def reading(postgres: Stack) -> Iterator[Feed]:
    harness = PostgreSqlHarness()
    feed = Feed(harness.open(), ITEMS).start()
    feed.apply(row(Op.CREATE, 1, 10, "a"))
    feed.destination.connection().execute("CREATE SEQUENCE public.s")
    body = "BEGIN DELETE FROM public.items; RETURN 1; END"
    feed.destination.connection().execute(f"CREATE FUNCTION public.spoil() RETURNS INT LANGUAGE plpgsql AS '{body}'")
    yield feed
    feed.destination.close()
    harness.close()


@pytest.mark.parametrize("sql", [part.strip() for line in HOSTILE.splitlines() for part in line.split(" | ") if part.strip()])
def test_a_query_can_only_read(reading: Feed, sql: str) -> None:
    with pytest.raises(ConfigError) as caught:
        reading.destination.query(sql, rows_max=10)
    assert caught.value.message
    assert caught.value.hint
    assert names(reading.destination) == {1: "a"}
    sequence = reading.destination.query("SELECT last_value, is_called FROM s", rows_max=1)
    assert sequence.to_pylist() == [{"last_value": 1, "is_called": False}]


@pytest.mark.parametrize("sql", ["SELECT lo_create(5)", "SELECT pg_advisory_lock(5)", "SELECT set_config('work_mem', '1MB', false)"])
def test_what_a_function_does_ends_with_the_query(reading: Feed, sql: str) -> None:
    for _ in range(2):
        with contextlib.suppress(ConfigError):  # PostgreSQL 16 refuses large objects by itself.
            assert reading.destination.query(sql, rows_max=1).num_rows == 1
    left = """SELECT (SELECT COUNT(*) FROM pg_largeobject_metadata) + (SELECT COUNT(*) FROM pg_locks
  WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))"""
    eventually("nothing is left", lambda: reading.destination.connection().fetch(left) == [(0,)], WAIT)


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("SELECT 1", 1),
        ("WITH a AS (SELECT 1) SELECT * FROM a;", 1),
        ("EXPLAIN SELECT 1", 1),
        ("  explain (analyze, buffers off, timing off, summary off) TABLE items -- and why", 1),
        ("SELECT generate_series(1, 100000) -- many", 7),
        ("VALUES (1), (2)", 2),
        ("SELECT 1 WHERE FALSE", 0),
        ("TABLE _cdc.table_status", 0),
        ("SELECT name, name FROM items WHERE name LIKE '%a%'", 1),
    ],
)
def test_a_query_reads(reading: Feed, sql: str, rows: int) -> None:
    assert reading.destination.query(sql, rows_max=7).num_rows == rows


def test_a_query_returns_arrow_of_the_right_types(reading: Feed) -> None:
    sql = """SELECT true AS b, 1::int2 AS i2, 2 AS i4, 3::int8 AS i8, 0.1::float4 AS f4, 'NaN'::float8 AS f8, 1.50::numeric(5,2) AS d,
  1.50::numeric AS n, 'NaN'::numeric(5,2) AS nan, 'x'::varchar AS s, '\\x00ff'::bytea AS y, '0044-03-15 BC'::date AS date,
  '24:00'::time AS t,  'infinity'::timestamp AS inf, '12024-02-29 12:00:00.000001+00'::timestamptz AS far,
  '2024-01-01 00:00+02'::timestamptz AS near,
  'P1Y2M'::interval AS iv, '6f1e2d3c-0000-4000-8000-000000000001'::uuid AS u, '{"a":1}'::json AS j, ARRAY[1, NULL, 3] AS a,
  ARRAY['a"b', 'NULL', NULL, '', E'x\\\\y{,}'] AS ta, ARRAY[[1, 2]] AS rect, '{}'::int[] AS none, ARRAY['-infinity'::date] AS da,
  '127.0.0.1'::inet AS net, NULL::int AS missing"""
    found = reading.destination.query(sql, rows_max=1)
    types = {field.name: str(field.type) for field in found.schema}
    assert types == {
        "b": "bool", "i2": "int16", "i4": "int32", "i8": "int64", "f4": "float", "f8": "double", "d": "decimal128(5, 2)", "n": "string",
        "nan": "string", "s": "string", "y": "binary", "date": "date32[day]", "t": "time64[us]", "inf": "timestamp[us]",
        "far": "timestamp[us, tz=UTC]", "near": "timestamp[us, tz=UTC]", "iv": "string", "u": "string", "j": "string",
        "a": "list<item: int32>", "ta": "list<item: string>", "rect": "string", "none": "list<item: int32>",
        "da": "list<item: date32[day]>", "net": "string", "missing": "int32",
    }  # fmt: skip
    whole = {name: found[name].cast(pa.int64()).to_pylist()[0] for name in ("t", "inf", "far", "near")}
    assert whole == {"t": 86_400_000_000, "inf": INFINITY[Kind.TIMESTAMP], "far": 317_278_728_000_000_001, "near": 1_704_060_000_000_000}
    assert found["date"].cast(pa.int32()).to_pylist() == [-735_160]
    assert found["da"].combine_chunks().flatten().view(pa.int32()).to_pylist() == [-INFINITY[Kind.DATE]]
    assert [found[name].to_pylist()[0] for name in ("n", "nan", "iv", "rect", "net")] == ["1.50", "NaN", "P1Y2M", "{{1,2}}", "127.0.0.1"]
    assert found["a"].to_pylist() == [[1, None, 3]]
    assert found["ta"].to_pylist() == [['a"b', "NULL", None, "", "x\\y{,}"]]
    assert found["y"].to_pylist() == [b"\x00\xff"]
    with pytest.raises(ConfigError, match="far") as caught:
        reading.destination.query("SELECT '294276-12-31'::timestamp AS far", rows_max=1)
    assert '"far"::text' in caught.value.hint


def test_a_superuser_runs_no_queries(postgres: Stack, harness: PostgreSqlHarness) -> None:
    destination = open_postgresql(postgres.pg_url_for(harness.database), pipeline="shop", meta_schema="_cdc", options={})
    assert "superuser" in destination.probe()
    with pytest.raises(ConfigError, match="superuser"):
        destination.query("SELECT 1", rows_max=1)
    destination.close()


def test_queries_and_merges_at_the_same_time(harness: PostgreSqlHarness, feed: Feed) -> None:
    """A reader of another session sees whole batches: each has as many rows as the checkpoint says."""
    seen: list[int] = []
    done, begun = threading.Event(), threading.Event()

    def read() -> None:
        sql = "SELECT (SELECT COUNT(*) FROM public.items) AS n, (SELECT SUM(next_offset) FROM _cdc.checkpoint) AS o"
        with psycopg.connect(harness.url, autocommit=True) as reader:
            while not done.is_set():
                found = reader.execute(sql).fetchone()
                assert found is not None
                assert found[0] == found[1]
                seen.append(found[0])
                begun.set()

    readers = [Later(read) for _ in range(3)]
    assert begun.wait(WAIT), f"no query came back within {WAIT} s"
    for batch in range(20):
        feed.apply(*(row(Op.CREATE, batch * 50 + i, batch + 1, partition=i % 2) for i in range(50)))
    done.set()
    assert [reader.result() for reader in readers] == [None] * 3
    assert set(seen) <= set(range(0, 1001, 50))


# Values


@pytest.mark.parametrize("kind", [Kind.DATE, Kind.TIME, Kind.TIMESTAMP, Kind.TIMESTAMPTZ])
def test_the_ranges_end_where_postgresql_ends(reading: Feed, kind: Kind) -> None:
    """The ends themselves are held (test_merge_types); one beyond is refused, or is an infinity, or leaves a reader's time zone."""
    low, high = CAPABILITIES.ranges[kind]
    c = reading.destination.connection()
    type_ = reading.destination.spelling.types[kind]
    below = {Kind.DATE: "J-1", Kind.TIME: "-00:00:00.000001", Kind.TIMESTAMP: "4714-11-23 23:59:59.999999 BC", Kind.TIMESTAMPTZ: ""}[kind]
    if below:
        with pytest.raises(CdcError):
            c.fetch(f"SELECT CAST('{below}' AS {type_})")
    if kind in (Kind.TIMESTAMP, Kind.TIMESTAMPTZ):
        assert high + 1 == INFINITY[kind]
    else:
        beyond = "J2147483494" if kind is Kind.DATE else "24:00:00.000001"
        with pytest.raises(CdcError):
            c.fetch(f"SELECT CAST('{beyond}' AS {type_})")
    if kind is Kind.TIMESTAMPTZ:
        first = f"{'4714-11-24'} 00:00:00+00 BC"
        with pytest.raises(CdcError):
            c.fetch(f"SELECT CAST(CAST('{first}' AS {type_}) AT TIME ZONE 'Etc/GMT+12' AS text)")
        assert low == CAPABILITIES.ranges[Kind.TIMESTAMP][0] + 86_400_000_000


def test_json_is_kept_as_text_because_jsonb_loses(reading: Feed) -> None:
    """If this fails, jsonb keeps what it did not, and could be the type."""
    ((doubled,),) = reading.destination.connection().fetch("""SELECT CAST(CAST('{"b": 1, "a": 1, "a": 2}' AS jsonb) AS text)""")
    assert doubled == '{"a": 2, "b": 1}'
    with pytest.raises(CdcError):
        reading.destination.connection().fetch("""SELECT CAST('"\\ud800"' AS jsonb)""")


def test_an_error_never_quotes_a_value(harness: PostgreSqlHarness) -> None:
    columns = (number("id"), Column("u", LogicalType(Kind.UUID)), Column("j", LogicalType(Kind.JSON)))
    schema = TableSchema(TableId("public", "t"), columns, ("id",))
    destination = harness.open()
    feed = Feed(destination, schema).start()
    for values in ({"u": "secret-cell-value"}, {"j": "secret {"}):
        with pytest.raises(CdcError) as caught:
            feed.apply(Change(Op.CREATE, {"id": 1, **values}, 1))
        shown: BaseException | None = caught.value
        while shown is not None:
            assert "secret" not in str(shown)
            shown = shown.__cause__ or (None if shown.__suppress_context__ else shown.__context__)
        assert caught.value.code == "value_refused"
    feed.apply(Change(Op.CREATE, {"id": 1}, 1))
    destination.close()


def test_a_parked_key_with_a_nul_reaches_the_quarantine(feed: Feed) -> None:
    (key,) = key_text(pa.table({"k": ["a\x00b"]})).to_pylist()
    feed.apply(rejected=[(0, key)])
    assert feed.destination.parked_keys(feed.target).to_pylist() == [key]


def test_a_query_may_end_sessions_of_its_role_and_the_service_goes_on(reading: Feed) -> None:
    """It has the role's rights: what it can do with them costs a connection, never a row."""
    reading.apply(row(Op.CREATE, 7, 70, "before"))
    own = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    reading.destination.query(own, rows_max=100)
    eventually("the session is gone", lambda: not reading.destination._main.alive(), WAIT)
    reading.apply(row(Op.DELETE, 7, 80))
    assert names(reading.destination) == {1: "a"}
