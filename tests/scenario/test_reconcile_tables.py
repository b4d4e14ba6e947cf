"""Small tables that are hard to compare: pairs that take others in, keys of any collation, values of several texts, limits, a replica."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy.engine import make_url

from cdc_service.core.evolve import CreateTable
from cdc_service.core.logical import Kind, LogicalType, decimal
from cdc_service.core.types import Column, TableId, TableSchema, Target
from cdc_service.ports.source import Source
from cdc_service.runtime.comparing.change_log import Sources
from connectors.sources import open_source
from deploy.local.artifacts import find_postgres
from deploy.local.process import Daemon
from deploy.local.stack import Stack, free_ports
from mergers.destinations.duckdb import DuckDb
from mergers.destinations.duckdb import open as open_duckdb
from reconcile.report.document import TableReport
from reconcile.run import Options
from tests.support.still import compare_still

MODES = ("stream", "pushdown")
TABLE = TableId("public", "t")
TARGET = Target(TABLE, "public", "t")
ID, TEXT, DOUBLE = LogicalType(Kind.INT64), LogicalType(Kind.STRING), LogicalType(Kind.FLOAT64)


@pytest.fixture(scope="module")
def source(postgres: Stack) -> Iterator[tuple[str, Source]]:
    url = postgres.create_database("reconcile_tables")
    source = open_source(url)
    yield url, source
    source.close()
    postgres.drop_database("reconcile_tables")


class Two:
    """A table on both sides: ``make`` is the source's, ``there`` fills the target."""

    def __init__(self, source: tuple[str, Source], folder: Path) -> None:
        self.url, self.source = source
        self.warehouse: DuckDb = open_duckdb(f"duckdb:///{folder}/w.duckdb", pipeline="p", meta_schema="_cdc", options={})
        self.warehouse.prepare()

    def make(self, columns: Sequence[Column], make: str, there: str, key: Sequence[str] = ("id",)) -> None:
        self.schema = TableSchema(TABLE, tuple(columns), tuple(key))
        with psycopg.connect(self.url) as connection:
            connection.execute(f"DROP TABLE IF EXISTS t; {make}".encode())
        self.warehouse.evolve(TARGET, [CreateTable(self.schema)], self.schema)
        self.change(f"INSERT INTO public.t ({', '.join(c.name for c in columns)}) {there}")

    def change(self, *statements: str) -> None:
        for statement in statements:
            self.warehouse.connection().raw.execute(statement)

    def compare(self, mode: str = "stream", **options: float) -> TableReport:
        return compare_still(self.source, self.warehouse, TARGET, self.schema, Options(mode=mode, **options))  # type: ignore[arg-type]

    def differing(self, mode: str) -> dict[str | None, tuple[str, tuple[str, ...]]]:
        report = self.compare(mode)
        assert report.left_out == {}
        return {d.key[self.schema.key[0]]: (str(d.kind), d.columns) for d in report.differences}


@pytest.fixture
def two(source: tuple[str, Source], tmp_path: Path) -> Iterator[Two]:
    made = Two(source, tmp_path)
    yield made
    made.warehouse.close()


@pytest.mark.parametrize("mode", MODES)
def test_pairs_that_take_others_in(two: Two, mode: str) -> None:
    columns = [Column("id", ID), Column("a", TEXT), Column("b", TEXT), Column("x", DOUBLE), Column("y", DOUBLE)]
    make = """CREATE TABLE t (id bigint PRIMARY KEY, a text, b text, x float8, y float8);
INSERT INTO t VALUES (1, 'p|q', 'r', 0, 0), (2, NULL, NULL, 0, 0), (3, 'a', 'b', 0, 0), (4, '1:a', '', 0, 0), (5, 'a', 'b', '-0', 'NaN'),
  (6, 'one', 'b', 1, 1), (7, 'two', 'b', 1, 1), (8, 'a', 'b', 1, 2), (9, 'a', 'b', 0.1, 0.1), (10, 'same', 'same', 0, 0)"""
    rows = [*THERE.items(), *[(10, THERE[10])] * 2]
    two.make(columns, make, f"VALUES {', '.join(f'({i}, {v})' for i, v in rows)}")
    assert two.differing(mode) == {
        **{"1": ("different", ("a", "b")), "2": ("different", ("a",)), "3": ("different", ("x",)), "4": ("different", ("a", "b"))},
        **{"6": ("different", ("a",)), "7": ("different", ("a",)), "8": ("different", ("x", "y")), "9": ("different", ("y",))},
        "10": ("extra", ()),
    }


THERE = {
    1: "'p', 'q|r', 0, 0",  # The mark between columns is in a value.
    2: "'<null>', NULL, 0, 0",
    3: "'a', 'b', NULL, 0",
    4: "'', '1:a', 0, 0",
    5: "'a', 'b', 0, 'NaN'",  # Equal: zeros of both signs, and what is no number.
    6: "'two', 'b', 1, 1",  # 6 and 7 have each other's values, and 10 stands three times: their XOR is as it was.
    7: "'one', 'b', 1, 1",
    8: "'a', 'b', 2, 1",
    9: "'a', 'b', 0.1, 0.10000000000000002",
    10: "'same', 'same', 0, 0",
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("type_", ["text COLLATE any_case", 'text COLLATE "de-x-icu"', "varchar(9)", 'text COLLATE "C"'])
def test_text_keys_under_any_collation(two: Two, type_: str, mode: str) -> None:
    any_case = "provider = icu, locale = 'und-u-ks-level2', deterministic = false"
    make = f"""CREATE COLLATION IF NOT EXISTS any_case ({any_case}); CREATE TABLE t (id {type_} PRIMARY KEY, v bigint);
INSERT INTO t VALUES ('a', 1), ('Z', 2), ('straße', 3), ('é', 4), ('', 5), (' ', 6), ('_', 7)"""
    there = "VALUES ('a', 1), ('A', 1), ('z', 2), ('strasse', 3), ('é', 4), ('', 5), (' ', 6), ('_', 8)"
    two.make([Column("id", TEXT), Column("v", ID)], make, there)
    assert {key: kind for key, (kind, _) in two.differing(mode).items()} == {
        **{"A": "extra", "z": "extra", "strasse": "extra", "Z": "missing", "straße": "missing", "_": "different"}
    }


def test_what_has_several_texts_is_compared_by_value(two: Two) -> None:
    numeric, json = LogicalType(Kind.NUMERIC), LogicalType(Kind.JSON)
    columns = [Column("id", ID), Column("n", numeric), Column("j", json), Column("m", numeric)]
    make = """CREATE TABLE t (id bigint PRIMARY KEY, n numeric, j jsonb, m numeric);
INSERT INTO t SELECT g, g + 0.50, jsonb_build_object('a', g), 1.0 FROM generate_series(1, 3000) g"""
    two.make(columns, make, """SELECT g, g || '.5', '{"a":' || g || '}', '1.0' FROM range(1, 3001) r(g)""")
    report = two.compare()
    assert (report.status, report.counts["late"], report.differences) == ("match", 0, [])
    assert set(report.by_value) == {"n", "j"}
    assert report.by_value["n"] == "its values are equal and their texts are not in 500 of 500 rows that were looked at"
    assert "n" in report.compared
    two.change("UPDATE public.t SET n = '17.51' WHERE id = 17", """UPDATE public.t SET j = '{"a":0}' WHERE id = 18""")
    two.change("UPDATE public.t SET m = '1.00' WHERE id = 2019")
    assert two.differing("stream") == {
        **{"17": ("different", ("n",)), "18": ("different", ("j",)), "2019": ("representation", ("n", "j", "m"))}
    }
    pushed = two.compare("pushdown")
    assert set(pushed.left_out) == {"n", "j"}


def test_a_wrong_mapping_is_named_as_the_cause_of_all_its_differences(two: Two) -> None:
    seen = list[Any]()
    columns = [Column("id", ID), Column("v", decimal(10, 2))]
    make = "CREATE TABLE t (id bigint PRIMARY KEY, v numeric(10,2)); INSERT INTO t SELECT g, g FROM generate_series(1, 300) g"
    two.make(columns, make, "SELECT g, g * 100 FROM range(1, 301) r(g)")
    report = compare_still(two.source, two.warehouse, TARGET, two.schema, Options(mode="stream"), mapped=seen.append)
    assert report.counts["different"] == 300
    assert seen == [{"v": "it differs in 300 of 300 rows that were looked at"}]


def test_the_source_is_read_no_faster_than_allowed(two: Two) -> None:
    make = "CREATE TABLE t (id bigint PRIMARY KEY, v bigint); INSERT INTO t SELECT g, g FROM generate_series(1, 20000) g"
    two.make([Column("id", ID), Column("v", ID)], make, "SELECT g, g FROM range(1, 20001) r(g)")
    assert two.compare(max_rows_per_second=20_000).seconds >= 0.9
    limited = two.compare(max_rows_per_second=1_000, max_seconds=1)
    assert (limited.status, limited.reason) == ("partial", "it was not done after 1 s")


@pytest.fixture
def replica(postgres: Stack, source: tuple[str, Source], tmp_path: Path) -> Iterator[str]:
    """A standby of the stack's server, which replays what the server writes; the URL of the database on it."""
    account, binaries, port = find_postgres().account, postgres.postgres_bin, free_ports(["replica"])["replica"]
    if not (binaries / "pg_basebackup").exists():
        pytest.skip("this PostgreSQL has no pg_basebackup")
    home = Path(tempfile.mkdtemp(prefix="cdc-replica-"))
    who: dict[str, Any] = {"user": account.uid, "group": account.gid, "extra_groups": []} if account else {}
    if account:
        os.chown(home, account.uid, account.gid)
    url, data = make_url(source[0]), home / "data"
    command = [binaries / "pg_basebackup", "-D", data, "-R", "-c", "fast", "-h", url.host, "-p", str(url.port), "-U", url.username]
    password = {"PGPASSWORD": postgres.password("postgres")}
    subprocess.run(command, check=True, cwd=home, env=password, timeout=120, **who)
    daemon = Daemon("replica", tmp_path / "replica.pid", tmp_path / "replica.log")
    listen = ["-c", f"listen_addresses={url.host}", "-c", "unix_socket_directories="]
    daemon.spawn([str(binaries / "postgres"), "-D", str(data), "-p", str(port), *listen], cwd=data, env={}, account=account)
    made = url.set(port=port).render_as_string(hide_password=False)
    try:
        daemon.wait_ready(lambda: refused(made), 60.0, threading.Event())
        yield made
    finally:
        daemon.end([(signal.SIGINT, 20.0), (signal.SIGKILL, 10.0)])
        shutil.rmtree(home)


def refused(url: str) -> str | None:
    try:
        psycopg.connect(url, connect_timeout=5).close()
    except psycopg.Error as error:
        return str(error)
    return None


def test_a_replica_is_read_and_what_it_has_not_replayed_is_no_difference(two: Two, replica: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make = "CREATE TABLE t (id bigint PRIMARY KEY, v bigint); INSERT INTO t SELECT g, g FROM generate_series(1, 100) g"
    two.make([Column("id", ID), Column("v", ID)], make, "SELECT g, g FROM range(1, 101) r(g)")
    reads = open_source(replica)

    def compare(mode: str) -> TableReport:
        return compare_still(two.source, two.warehouse, TARGET, two.schema, Options(mode=mode), reads=reads)

    with psycopg.connect(two.url, autocommit=True) as primary, psycopg.connect(replica, autocommit=True) as standby:
        position = primary.execute("SELECT pg_current_wal_lsn()").fetchone()
        replayed = "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn"
        deadline = time.monotonic() + 60
        while standby.execute(replayed, position).fetchone() != (True,):
            assert time.monotonic() < deadline, "the replica did not replay within 60 s what the server wrote"
            time.sleep(0.05)
        assert [compare(mode).status for mode in MODES] == ["match", "match"]
        standby.execute("SELECT pg_wal_replay_pause()")
        primary.execute("UPDATE t SET v = -5 WHERE id = 5")
        two.change("UPDATE public.t SET v = -5 WHERE id = 5", "UPDATE public.t SET v = 0 WHERE id = 6")
        monkeypatch.setattr("cdc_service.runtime.comparing.change_log.REPLICA_SECONDS", 0.5)
        monkeypatch.setattr("reconcile.judge.LOOKS", 1)
        behind = compare("stream")
        assert (behind.status, behind.counts["in_flight"], behind.differences) == ("in_flight", 2, [])
        assert "the replica is too far behind" in behind.reason
        standby.execute("SELECT pg_wal_replay_resume()")
        monkeypatch.undo()
        assert [[d.key["id"] for d in compare(mode).differences] for mode in MODES] == [["6"], ["6"]]
        primary.execute("CREATE TABLE beside (id bigint)")
        with Sources(two.source, reads).settled([TABLE, TableId("public", "beside")]) as settled:
            for table, rows in ((TABLE, 100), (TableId("public", "beside"), 0)):
                with settled.scan(table) as scan:
                    assert (scan.count(), scan.position) == (rows, settled.snapshot.position)
        primary.execute("DROP TABLE beside")
    reads.close()
