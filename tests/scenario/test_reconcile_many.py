"""Many small tables are compared together: one position for all, no false difference while all of them change, and what is wrong with one
of them is found in it alone."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cdc_service.core.errors import CdcError
from cdc_service.core.evolve import CreateTable
from cdc_service.core.logical import Kind, LogicalType
from cdc_service.core.types import Column, TableId, TableSchema, Target
from cdc_service.ports.source import Source
from cdc_service.runtime.comparing.change_log import Sources
from connectors.sources import open_source
from deploy.local.stack import Stack
from mergers.destinations.duckdb import open as open_duckdb
from reconcile.run import Options, Progress, Subject, together
from tests.scenario.test_reconcile import compared, reconcile
from tests.support.line import EACH, Line, database, line
from tests.support.still import StillLog

SMALL = [f"public.t_{n:02}" for n in range(20)]
LOG, LARGE = "public.events", "public.large"
TABLES = "\n  ".join([f"{LARGE}: {{}}", *(f"{name}: {{}}" for name in SMALL), f"{LOG}: {{mode: append, keyless: append}}"])
RUNS = 2


def setup() -> str:
    made = "CREATE TABLE {0} (id int PRIMARY KEY, n int, t text, d numeric, f float8); INSERT INTO {0} {1}"
    rows = "SELECT g, g, 'text ' || g, g + 0.50, random() FROM generate_series(1, {}) g"
    return "; ".join(
        [
            *(made.format(name, rows.format(35)) for name in SMALL),
            made.format(LARGE, rows.format(60_000)),
            f"CREATE TABLE {LOG} (n int, t text); ALTER TABLE {LOG} REPLICA IDENTITY FULL",
            f"INSERT INTO {LOG} SELECT g % 5, 'one' FROM generate_series(1, 40) g",
        ]
    )


class Changes:
    """Transactions over several of the tables at once, as fast as one session makes them, while it is entered."""

    def __init__(self, url: str) -> None:
        self.made = 0
        self._url, self._done = url, threading.Event()
        self._thread = threading.Thread(target=self._make)

    def __enter__(self) -> Changes:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join(30)

    def _make(self) -> None:
        rand = random.Random(1)
        with psycopg.connect(self._url, autocommit=True) as connection:
            while not self._done.wait(0.02):
                with connection.transaction():
                    for name in sorted(rand.sample(SMALL, 4)):
                        id_ = rand.randrange(1, 40)
                        for statement in rand.choice(
                            [
                                (f"UPDATE {name} SET n = n + 1, f = random(), d = d + 0.5 WHERE id = {id_}",),
                                (f"DELETE FROM {name} WHERE id = {id_}",),
                                (f"INSERT INTO {name} VALUES ({id_}, 0, 'new', 1, 0) ON CONFLICT (id) DO UPDATE SET t = {name}.t || '+'",),
                            ]
                        ):
                            connection.execute(statement.encode())
                    connection.execute(f"UPDATE {LOG} SET n = n + 1 WHERE n = {rand.randrange(5)}".encode())
                self.made += 1


def positions(found: dict[str, dict[str, Any]]) -> set[str]:
    """Of the small tables with a key."""
    return {found[name]["as_of"]["source"] for name in SMALL}


@pytest.fixture(scope="module", params=EACH)
def pipeline(request: pytest.FixtureRequest, stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    folder = tmp_path_factory.mktemp("many")
    with database(stack) as made, line(stack, made, folder, TABLES, destination=request.param) as pipeline:
        pipeline.execute(setup())
        pipeline.register()
        pipeline.start()
        pipeline.await_complete()
        yield pipeline


def test_i27_many_tables_that_change_have_one_position_and_no_false_difference(pipeline: Line) -> None:
    late, judged = 0, 0
    with Changes(pipeline.database.url) as changes:
        for _ in range(RUNS):
            found = compared(pipeline)
            assert list(found) == sorted([LARGE, *SMALL, LOG]), "in the order of the configuration"
            assert [d for t in found.values() for d in t["differences"]] == []
            assert {t["status"] for t in found.values()} <= {"match", "in_flight"}
            assert len(positions(found)) == 1
            late += sum(found[name]["counts"]["late"] for name in SMALL)
            judged += sum(found[name]["status"] == "match" for name in SMALL)
    assert changes.made > 100
    assert late > 0, "nothing changed between the two snapshots, so nothing was proved"
    assert judged > 0
    pipeline.await_complete()
    found = compared(pipeline)
    assert {t["status"] for t in found.values()} == {"match"}, found
    assert {t["fence"] for t in found.values()} == {"exact"}
    assert len({*positions(found), found[LARGE]["as_of"]["source"]}) == 2, "a large table has a snapshot of its own"
    status = {t["source"]: t for t in pipeline.call("status")["tables"]}
    assert {status[name]["verified_position"] for name in SMALL} == positions(found)


def test_what_is_wrong_with_one_of_many_is_told_of_it_alone(pipeline: Line) -> None:
    pipeline.await_complete()
    pipeline.stop()
    wrong, refused = SMALL[7], SMALL[11]
    pipeline.execute(f"INSERT INTO {wrong} VALUES (1000, 1, 'x', 1, 1), (1001, 1, 'x', 1, 1), (1002, 1, 'x', 1, 1)")
    pipeline.start()
    pipeline.await_complete()
    pipeline.stop()
    pipeline.warehouse.change(f"UPDATE {wrong} SET n = -7 WHERE id = 1000", f"DELETE FROM {wrong} WHERE id = 1001")
    pipeline.execute(f"REVOKE ALL ON {refused} FROM cdc")
    document = pipeline.call("reconcile", accept=(0, 1, 2))
    found = {t["source"]: t for t in document["tables"]}
    assert {d["key"]["id"]: (d["kind"], d["columns"], d["cause"].split(":")[0]) for d in found[wrong]["differences"]} == {
        "1000": ("different", ["n"], "written from outside"),
        "1001": ("missing", [], "written from outside"),
    }
    assert found[refused]["status"] == "error"
    others = [name for name in [*SMALL, LARGE, LOG] if name not in (wrong, refused)]
    assert {name: found[name]["status"] for name in others} == dict.fromkeys(others, "match")
    assert len({found[name]["as_of"]["source"] for name in SMALL if name != refused}) == 1
    # A run that goes on compares only what it had not done.
    pipeline.execute(f"GRANT SELECT ON {refused} TO cdc")
    again = {t["source"]: t for t in pipeline.call("reconcile", "--resume", document["run_id"], accept=(1,))["tables"]}
    assert list(again) == list(found)
    assert again[refused]["status"] == "match"
    assert {name for name in again if again[name]["started_at"] != found[name]["started_at"]} == {refused}
    # Beside a service the same is found.
    pipeline.start()
    pipeline.await_complete()
    beside = reconcile(pipeline)
    assert [name for name, t in beside.items() if t["status"] != "match"] == [wrong]
    assert len(positions(beside)) == 1
    pipeline.call("repair", wrong, "--yes")
    assert {t["status"] for t in reconcile(pipeline).values()} == {"match"}


# Without a service


NAMES = [TableId("public", name) for name in ("a", "b", "c")]


@pytest.fixture
def source(postgres: Stack) -> Iterator[tuple[str, Source]]:
    url = postgres.create_database("reconcile_many")
    source = open_source(url)
    with psycopg.connect(url) as connection:
        for table in NAMES:
            rows = "SELECT g, g FROM generate_series(1, 300000) g" if table.name == "b" else "VALUES (1, 1)"
            connection.execute(f"CREATE TABLE {table.name} (id int PRIMARY KEY, v int); INSERT INTO {table.name} {rows}".encode())
    yield url, source
    source.close()
    postgres.drop_database("reconcile_many")


SCHEMAS = {t: TableSchema(t, (Column("id", LogicalType(Kind.INT32)), Column("v", LogicalType(Kind.INT32))), ("id",)) for t in NAMES}


def test_what_fails_for_one_table_of_a_snapshot_leaves_the_others_as_they_were(source: tuple[str, Source]) -> None:
    a, b, c = NAMES
    url, opened = source
    with opened.snapshot(NAMES) as snapshot, psycopg.connect(url, autocommit=True) as connection:
        with snapshot.scan(b) as scan, pytest.raises(CdcError, match="refused a statement"):
            scan.count("v / 0 = 1")
        connection.execute("INSERT INTO a VALUES (2, 2); INSERT INTO b VALUES (-1, -1); UPDATE c SET v = 9")
        with snapshot.scan(b) as scan:
            assert next(scan.rows(SCHEMAS[b].columns)).num_rows < 300_000, "the rest stays unread"
        with snapshot.scan(a) as scan:
            assert scan.count() == 1
        with snapshot.scan(b) as scan:
            assert (scan.count(), scan.count("id < 0")) == (300_000, 0)
        with snapshot.scan(c) as scan:
            assert [row for batch in scan.rows(SCHEMAS[c].columns) for row in batch.to_pylist()] == [{"id": 1, "v": 1}]
            assert scan.position == snapshot.position
        with pytest.raises(CdcError, match=r"no table public\.gone"):
            snapshot.scan(TableId("public", "gone"))


def test_a_transaction_that_stays_open_hinders_only_the_tables_that_it_writes(source: tuple[str, Source]) -> None:
    a, b, c = NAMES
    url, opened = source
    with psycopg.connect(url) as writing:
        writing.execute("UPDATE b SET v = 0 WHERE id = 1")
        with Sources(opened, opened).settled(NAMES) as settled:
            assert list(settled.busy) == [b]
            assert "uncommitted changes" in settled.busy[b].message
            with settled.scan(a) as scan:
                assert scan.count() == 1
            with settled.scan(c) as scan:
                assert scan.position >= settled.low
            with pytest.raises(CdcError, match=r"public\.b: .* uncommitted changes"):
                settled.scan(b)
        writing.rollback()
    assert opened.settle(NAMES)[1] == {}


def test_a_comparison_that_is_cancelled_keeps_what_is_done_and_begins_nothing_more(source: tuple[str, Source], tmp_path: Path) -> None:
    _, opened = source
    warehouse = open_duckdb(f"duckdb:///{tmp_path}/w.duckdb", pipeline="p", meta_schema="_cdc", options={})
    warehouse.prepare()

    def subject(table: TableId) -> Subject:
        target, schema = Target(table, "public", table.name), SCHEMAS[table]
        warehouse.evolve(target, [CreateTable(schema)], schema)
        view = lambda: warehouse.view(target, schema)  # noqa: E731
        return Subject(target, schema, Sources(opened, opened), view, StillLog(), lambda _: True, 1, lambda *_: (), frozenset())

    a, b, c = (subject(table) for table in NAMES)
    warehouse.connection().raw.execute("INSERT INTO public.a (id, v) VALUES (1, 1); INSERT INTO public.c (id, v) VALUES (1, 1)")
    progress = Progress()
    reports = together([a, c, b], Options(), progress, 1)
    assert [report.status for _, report in (next(reports), next(reports))] == ["match", "match"]
    progress.cancelled = True
    assert list(reports) == []
    # What was read and not judged yet is told as cancelled.
    progress = Progress()
    reports = together([b, a, c], Options(), progress, 1)
    assert next(reports)[0] is a
    progress.cancelled = True
    assert [(s.target.source.name, str(report.status), report.reason) for s, report in reports] == [("b", "partial", "it was cancelled")]
    warehouse.close()
