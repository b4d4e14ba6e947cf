"""Tables that no event describes: empty ones, whose target is made from the source's catalog, and those of a connector without schemas."""

from __future__ import annotations

from pathlib import Path

from cdc_service.core.types import TableId
from deploy.local.stack import Stack
from tests.conftest import PgDatabase
from tests.support.line import Line, line
from tests.support.replica import quoted

TYPES = r"""
CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE DOMAIN posint AS int;
CREATE TABLE every (
    id int, "Key" text, n numeric, d numeric(12,2), b bool, x bytea, f float8, day date, at timestamp(3), tz timestamptz, t time,
    i interval, u uuid, j jsonb, m mood, p posint, a int[], ta text[], r int4range, big text,
    g int GENERATED ALWAYS AS (id * 2) STORED, PRIMARY KEY ("Key", id));
ALTER TABLE every ALTER big SET STORAGE EXTERNAL;
"""
ROWS = r"""
INSERT INTO {0} VALUES ({1}, 'key "é" {1}', 1.50, -1.10, true, '\x00ff', 0.1, 'infinity', '2024-05-06 07:08:09.123',
    '2024-05-06 07:08+02', '24:00', '1 mon -3 days', '6f1e2d3c-0000-4000-8000-00000000000{1}', '{{"a": [1.0, null]}}', 'sad', {1},
    '{{1,NULL}}', '{{"a \"b\"",NULL}}', '[1,5)', repeat('long é ', 3000));
INSERT INTO {0} (id, "Key") VALUES ({1}, 'all else is null');
"""


def columns_of(pipeline: Line, table: str) -> list[tuple[str, str]]:
    """Names and types of the target's columns, those of the service left out."""
    found = pipeline.query(
        f"SELECT column_name, data_type FROM information_schema.columns WHERE table_schema || '.' || table_name = '{table}'"
    )
    assert found is not None
    return [(row["column_name"], row["data_type"]) for row in found.to_pylist() if not row["column_name"].startswith("_cdc")]


def assert_empty(pipeline: Line, table: str) -> None:
    state = pipeline.await_state(table, "streaming")
    named = pipeline.warehouse.types
    types = [("id", named["integer"]), ("m", named["text"]), ("d", named["numeric(10,2)"]), ("t", named["timestamptz"])]
    assert columns_of(pipeline, table) == types
    found = pipeline.query(f"SELECT count(*) AS n FROM {quoted(pipeline.warehouse.target_of(table))}")
    assert found is not None
    assert found.to_pylist() == [{"n": 0}]
    before = int(state["complete_through"])
    pipeline.execute("INSERT INTO busy VALUES (DEFAULT)")
    pipeline.await_complete(table)
    assert int(pipeline.tables()[table]["complete_through"]) > before


def test_an_empty_table_has_an_empty_target(stack: Stack, pg_database: PgDatabase, tmp_path: Path) -> None:
    """I9, I20: one of the initial snapshot, and one that is added later."""
    columns = "(id int PRIMARY KEY, m mood, gone int, d numeric(10,2), g int GENERATED ALWAYS AS (id) STORED, t timestamptz DEFAULT now())"
    with line(stack, pg_database, tmp_path, "public.first: {}\n  public.busy: {}") as pipeline:
        pipeline.execute("CREATE TYPE mood AS ENUM ('sad'); CREATE TABLE busy (id serial PRIMARY KEY); INSERT INTO busy VALUES (1000)")
        pipeline.execute(
            f"CREATE TABLE first {columns}; ALTER TABLE first DROP gone; CREATE TABLE later {columns}; ALTER TABLE later DROP gone"
        )
        pipeline.register()
        pipeline.start()
        assert_empty(pipeline, "public.first")
        pipeline.configure("public.first: {}\n  public.busy: {}\n  public.later: {}")
        pipeline.register()
        pipeline.stop()
        pipeline.start()
        assert_empty(pipeline, "public.later")
        assert_empty(pipeline, "public.first")
        pipeline.execute(
            "INSERT INTO first(id, m, d) VALUES (1, 'sad', 1.50); ALTER TABLE later ADD c text; INSERT INTO later(id, c) VALUES (1, 'c')"
        )
        pipeline.await_complete()
        assert ("c", pipeline.warehouse.types["text"]) in columns_of(pipeline, "public.later")
        pipeline.stop()
        tables = ("public.first", "public.later", "public.busy")
        pipeline.assert_equal(tables)
        pipeline.assert_ledger(tables)
        versions = pipeline.rows("SELECT source_table, count(*) FROM _cdc.schema_history GROUP BY 1 ORDER BY 1")
        assert versions == [("public.busy", 1), ("public.first", 1), ("public.later", 2)]


def test_a_connector_that_writes_no_schemas(stack: Stack, pg_database: PgDatabase, tmp_path: Path) -> None:
    """I1, I19, I20: from its first record on, an empty table too."""
    options = "value.converter.schemas.enable: 'false', key.converter.schemas.enable: 'false'"
    tables = ("public.every", "public.empty")
    with line(stack, pg_database, tmp_path, "\n  ".join(f"{name}: {{}}" for name in tables), options=options) as pipeline:
        pipeline.execute(TYPES + ROWS.format("every", 1) + ROWS.format("every", 2) + "CREATE TABLE empty (LIKE every INCLUDING ALL)")
        pipeline.register()
        pipeline.start()
        pipeline.await_complete(limit_seconds=90)
        pipeline.execute(
            ROWS.format("every", 3) + "UPDATE every SET n = n + 1; UPDATE every SET id = 9 WHERE id = 1; DELETE FROM every WHERE id = 2"
        )
        pipeline.await_complete()
        pipeline.kill()
        pipeline.start()
        pipeline.execute("UPDATE every SET b = NOT b")
        pipeline.await_complete()
        assert len(columns_of(pipeline, "public.empty")) == 20
        pipeline.execute(ROWS.format("empty", 1))
        pipeline.await_complete()
        pipeline.stop()
        pipeline.assert_equal(tables)
        pipeline.assert_ledger(tables)
        assert pipeline.rows('SELECT count(*), sum(length(big)) FROM public."every"')[0] == (4, 2 * 7 * 3000)


def test_what_no_catalog_tells_is_said_with_its_cure(stack: Stack, pg_database: PgDatabase, tmp_path: Path) -> None:
    """A table whose events cannot be told beforehand stops the start, by name, where there are no schemas; else it has no target before
    its first event."""
    with line(stack, pg_database, tmp_path, "public.odd: {}", options="value.converter.schemas.enable: 'false'") as pipeline:
        pipeline.execute("CREATE TABLE odd (id int PRIMARY KEY, v int2vector); ALTER TABLE odd REPLICA IDENTITY FULL")
        pipeline.register()
        pipeline.start(ready=False)
        assert pipeline.wait(60) != 0
        said = pipeline.log.read_text()
        assert str(TableId("public", "odd")) in said
        assert "value.converter.schemas.enable=true" in said
        pipeline.configure("public.odd: {}")
        pipeline.register()
        pipeline.start()
        pipeline.await_complete()
        assert columns_of(pipeline, "public.odd") == []
