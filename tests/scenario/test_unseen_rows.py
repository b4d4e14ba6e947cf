"""A role that does not see all of the source: nothing is judged from the part, nothing is removed for it, and what is said heals."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy.engine import make_url

from cdc_service.core.errors import CdcError
from cdc_service.core.evolve import CreateTable
from cdc_service.core.logical import Kind, LogicalType
from cdc_service.core.types import Column, TableId, TableSchema, Target
from cdc_service.ports.source import Finding, Source
from cdc_service.runtime.comparing.change_log import Sources
from connectors.sources import open_source
from deploy.local.process import StackError
from deploy.local.stack import Stack
from mergers.destinations.duckdb import open as open_duckdb
from reconcile.compare.engine import key_table
from reconcile.repair import repair
from reconcile.run import Subject
from tests.conftest import PgDatabase
from tests.support.line import EACH, Line, database, line
from tests.support.still import StillLog

TABLES = "public.a: {}\n  public.b: {}"
SETUP = """CREATE TABLE a (id int PRIMARY KEY, v text); INSERT INTO a SELECT g, 'v' || g FROM generate_series(1, 5) g;
CREATE TABLE b (id int PRIMARY KEY, v text); INSERT INTO b SELECT g, 'v' || g FROM generate_series(1, 5) g"""
HIDE = "ALTER TABLE a ENABLE ROW LEVEL SECURITY; CREATE POLICY part ON a FOR SELECT USING (id > 2)"
SAID = "public.a: row level security decides which rows role cdc sees"


def reconcile(pipeline: Line, code: int, *arguments: str) -> dict[str, dict[str, Any]]:
    document = pipeline.call("reconcile", *arguments, accept=(code,))
    return {table["source"]: table for table in document["tables"]}


@contextmanager
def as_before(pipeline: Line) -> Iterator[None]:
    """A right of the role goes with the server, not with the database."""
    try:
        yield
    finally:
        pipeline.execute("ALTER ROLE cdc NOBYPASSRLS")


@pytest.mark.parametrize("destination", EACH)
def test_i30_what_policies_hide_is_neither_judged_nor_removed(stack: Stack, tmp_path: Path, destination: str) -> None:
    with database(stack) as made, line(stack, made, tmp_path, TABLES, destination=destination) as pipeline, as_before(pipeline):
        pipeline.execute(SETUP)
        pipeline.register()
        pipeline.start()
        pipeline.await_complete()
        pipeline.stop()
        pipeline.warehouse.change("UPDATE public.a SET v = 'other' WHERE id = 1", "DELETE FROM public.a WHERE id = 4")
        assert reconcile(pipeline, 1)["public.a"]["counts"]["different"] == 1
        pipeline.execute(HIDE)
        for mode in (("--mode", "pushdown"), ("--counts",), ("--mode", "stream")):
            found = reconcile(pipeline, 2, *mode)
            assert (found["public.a"]["status"], found["public.b"]["status"]) == ("error", "match"), mode
            assert found["public.a"]["differences"] == []
            assert SAID in found["public.a"]["reason"]
        for command in (("repair", "public.a", "--yes"), ("repair", "public.a", "--dry-run"), ("explain", "public.a", "1")):
            with pytest.raises(StackError, match=r"(?s)ended with 4:.*row_security.*public\.a.*role cdc"):
                pipeline.call(*command)
        assert {row[0] for row in pipeline.rows("SELECT id FROM public.a")} == {1, 2, 3, 5}
        cure = found["public.a"]["reason"].split(" (ALTER ")[1].removesuffix(")")
        pipeline.execute(f"ALTER {cure}")
        assert pipeline.call("repair", "public.a", "--yes")["repaired"] == 2
        assert reconcile(pipeline, 0)["public.a"]["status"] == "match"
        # The other half of the cure, and a table whose owner's policies count for him too.
        pipeline.execute("ALTER ROLE cdc NOBYPASSRLS; ALTER TABLE a OWNER TO cdc")
        assert reconcile(pipeline, 0)["public.a"]["status"] == "match"
        pipeline.execute("ALTER TABLE a FORCE ROW LEVEL SECURITY")
        assert SAID in reconcile(pipeline, 2)["public.a"]["reason"]
        pipeline.execute(cure.split("-- or ")[1])
        assert reconcile(pipeline, 0)["public.a"]["status"] == "match"


@pytest.fixture
def reader(postgres: Stack) -> Iterator[tuple[str, Source]]:
    """The owner's URL and the source of a role that only reads."""
    name = f"u_{uuid.uuid4().hex[:12]}"
    url = postgres.create_database(name)
    source = open_source(postgres.pg_url_for(name, "cdc"))
    yield url, source
    source.close()
    postgres.drop_database(name)


class HidesLater(Sources):
    """Row level security comes when the table is about to be read for the ``on``-th time."""

    def hide(self, url: str, on: int) -> Mapping[str, int]:
        count = {"reads": 0}
        settle = type(self.primary).settle

        def hiding(source: Any, tables: Sequence[TableId]) -> Any:
            count["reads"] += 1
            if count["reads"] == on:
                with psycopg.connect(url, autocommit=True) as owner:
                    owner.execute(HIDE.encode())
            return settle(source, tables)

        self.primary.settle = hiding.__get__(self.primary)  # type: ignore[method-assign]
        return count


@pytest.mark.parametrize("on", [1, 2])
def test_i30_row_security_that_comes_within_a_repair_removes_nothing(reader: tuple[str, Source], tmp_path: Path, on: int) -> None:
    """Before the rows are judged, and between the verdict and the reading of what is merged."""
    url, source = reader
    with psycopg.connect(url, autocommit=True) as owner:
        owner.execute(SETUP.encode())
    schema = TableSchema(TableId("public", "a"), (Column("id", LogicalType(Kind.INT32)), Column("v", LogicalType(Kind.STRING))), ("id",))
    target = Target(schema.table, "public", "a")
    warehouse = open_duckdb(f"duckdb:///{tmp_path}/w.duckdb", pipeline="p", meta_schema="_cdc", options={})
    try:
        warehouse.prepare()
        warehouse.evolve(target, [CreateTable(schema)], schema)
        warehouse.connection().raw.execute("INSERT INTO public.a (id, v) VALUES (1, 'other'), (2, 'v2')")
        sources = HidesLater(source, source)
        count = sources.hide(url, on)
        subject = Subject(
            target, schema, sources, lambda: warehouse.view(target, schema), StillLog(), lambda _: True, 2, lambda *_: (), frozenset()
        )

        def merge(*_: object) -> None:
            raise AssertionError("something was merged")

        keys = key_table(schema.key_columns, {"id": ["1", "2"]})
        with pytest.raises(CdcError, match="role cdc sees") as caught:
            repair(subject, keys, 1, merge, dry_run=False, batch_id="repair")
        assert (caught.value.code, count["reads"]) == ("row_security", on)
    finally:
        warehouse.close()


def the(found: list[Finding], name: str) -> Finding:
    (one,) = [f for f in found if f.name == name]
    return one


FOREIGN = "CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w; CREATE FOREIGN TABLE"


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("CREATE TABLE c () INHERITS (a); CREATE TABLE d () INHERITS (a)", "public.c (a child by inheritance), public.d (a child by"),
        (f"{FOREIGN} c () INHERITS (a) SERVER s", "public.c (a child by inheritance)"),
        (f"{FOREIGN} log_1 PARTITION OF log_0 FOR VALUES FROM (0) TO (5) SERVER s", "public.log_1 (a foreign table)"),
        ("CREATE UNLOGGED TABLE parts_1 PARTITION OF parts FOR VALUES FROM (10) TO (20)", "public.parts_1 (an unlogged partition)"),
        ("REVOKE ALL ON a FROM cdc", "may not be read by role cdc"),
        ("ALTER TABLE a ENABLE ROW LEVEL SECURITY", "row level security decides which rows role cdc sees"),
        ("ALTER TABLE parts ENABLE ROW LEVEL SECURITY", "row level security decides which rows role cdc sees"),
    ],
)
def test_rows_that_the_log_or_the_role_cannot_give_are_refused_and_the_cure_heals(
    reader: tuple[str, Source], fault: str, said: str
) -> None:
    url, source = reader
    with psycopg.connect(url, autocommit=True) as owner:
        owner.execute(SETUP.encode())
        owner.execute("CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id)")
        # A foreign table is no partition of a table with a key.
        owner.execute("CREATE TABLE log (id int) PARTITION BY RANGE (id)")
        owner.execute("CREATE TABLE log_0 PARTITION OF log FOR VALUES FROM (0) TO (10) PARTITION BY RANGE (id)")
        name = next((n for n in ("parts", "log") if n in fault), "a")
        before = refused(source, name)
        owner.execute(fault.encode())
        finding = refused(source, name)
        assert finding is not None
        assert (finding.name, finding.failed) == (f"table public.{name}", True)
        assert said in finding.message
        cures = finding.cure.replace('ALTER ROLE "cdc" BYPASSRLS;  -- or ', "")  # Which of the two is all the same here.
        assert cures != finding.cure or "SECURITY" not in fault
        owner.execute(cures.encode())
        assert refused(source, name) == before


def refused(source: Source, name: str) -> Finding | None:
    (table,) = source.tables(TableId("public", name))
    return source.refusal(table)


def test_what_hides_nothing_is_not_refused(reader: tuple[str, Source]) -> None:
    """Policies and rights of a partition do not count where its root is read; a temporary child shows nobody else its rows."""
    url, source = reader
    with psycopg.connect(url, autocommit=True) as owner:
        owner.execute(SETUP.encode())
        owner.execute("CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id)")
        owner.execute("CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10)")
        owner.execute("INSERT INTO parts VALUES (1), (2)")
        owner.execute("ALTER TABLE parts_1 ENABLE ROW LEVEL SECURITY; REVOKE ALL ON parts_1 FROM cdc")
        owner.execute("CREATE TEMP TABLE mine () INHERITS (a); INSERT INTO mine VALUES (77, 'mine')")
        assert (refused(source, "parts"), refused(source, "a")) == (None, None)
        with source.scan(TableId("public", "parts")) as parts, source.scan(TableId("public", "a")) as a:
            assert (parts.count(), a.count()) == (2, 5)


def test_check_names_the_tables_of_which_the_role_sees_a_part(pg_database: PgDatabase, tmp_path: Path, stack: Stack) -> None:
    with line(stack, pg_database, tmp_path, TABLES) as pipeline, as_before(pipeline):
        pipeline.execute(SETUP)
        pipeline.prepare()
        assert pipeline.call("check")["ok"]
        pipeline.execute(f"{HIDE}; ALTER TABLE a ADD d date")
        found = [f for f in pipeline.call("check", accept=(1,))["findings"] if f["status"] == "failed"]
        assert {f["name"] for f in found} == {"role may read", "table public.a"}
        assert all("public.a" in f["name"] + f["message"] and "role cdc" in f["message"] for f in found)
        with pytest.raises(StackError, match=r"(?s)table_refused.*public\.a.*row level security"):
            pipeline.call("register", "--yes")
        pipeline.execute(next(f["cure"] for f in found if f["name"] == "role may read"))
        assert pipeline.call("check")["ok"]


def test_a_role_of_a_replica_that_sees_a_part_is_named(reader: tuple[str, Source]) -> None:
    """The service may read elsewhere as somebody else."""
    url, source = reader
    with psycopg.connect(url, autocommit=True) as owner:
        owner.execute(f"{SETUP}; {HIDE}".encode())
    assert make_url(url).username != "cdc"
    whole = open_source(url)
    try:
        with Sources(source, whole).scan(TableId("public", "a")) as scan:
            assert scan.count() == 5
        with Sources(whole, source).scan(TableId("public", "a")) as scan, pytest.raises(CdcError, match="role cdc sees"):
            scan.count()
    finally:
        whole.close()
