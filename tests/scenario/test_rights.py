"""A PostgreSQL warehouse whose role may not write the targets: said before, and healed by the statement alone; tables resumed together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from cdc_service.cli import view
from deploy.local.stack import Stack
from tests.conftest import PgDatabase
from tests.support.line import Line, line

TABLES = ("public.a", "public.b", "public.c")


@pytest.fixture
def pipeline(stack: Stack, pg_database: PgDatabase, tmp_path: Path) -> Iterator[Line]:
    with line(stack, pg_database, tmp_path, "public.*: {}", destination="postgresql") as made:
        for table in TABLES:
            made.execute(
                f"CREATE TABLE {table}(id int PRIMARY KEY, v text); INSERT INTO {table} VALUES (1, 'x'); GRANT SELECT ON {table} TO cdc"
            )
        yield made


def admin(on: Line, *statements: str) -> None:
    """As the superuser in the warehouse."""
    name = on.warehouse.url.rpartition("/")[2]
    with psycopg.connect(on.stack.pg_url_for(name), autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.replace("{}", name).encode())


def failed(on: Line) -> list[dict[str, Any]]:
    return [f for f in on.call("check", accept=(0, 1))["findings"] if f["status"] == "failed"]


def states(on: Line) -> set[str]:
    return {table["state"] for table in on.tables().values()}


def test_a_lacking_right_is_said_before_and_giving_it_is_all_there_is_to_do(pipeline: Line) -> None:
    admin(
        pipeline,
        "ALTER DATABASE {} OWNER TO postgres; REVOKE ALL ON DATABASE {} FROM PUBLIC; GRANT CONNECT, TEMPORARY ON DATABASE {} TO cdc",
        "CREATE SCHEMA _cdc AUTHORIZATION cdc; REVOKE ALL ON SCHEMA public FROM PUBLIC, cdc",
    )
    pipeline.prepare()
    (said,) = failed(pipeline)
    assert said["name"] == "destination"
    assert "may not write into the schema public" in said["message"]
    pipeline.register()
    pipeline.start()
    for table in TABLES:
        found = pipeline.await_state(table, "error")
        assert (found["error"]["code"], said["cure"] in found["error"]["hint"]) == ("warehouse_rights", True)
    document = pipeline.status()
    assert document is not None
    assert view.troubles(document)[-1].endswith("cdc resume --all")
    admin(pipeline, said["cure"])
    assert failed(pipeline) == []
    pipeline.await_complete(*TABLES)
    # Somebody takes a target away: in the stream too.
    admin(pipeline, "ALTER TABLE public.b OWNER TO postgres")
    pipeline.execute("INSERT INTO public.b VALUES (2, 'y'); INSERT INTO public.a VALUES (2, 'y')")
    assert pipeline.await_state("public.b", "error")["error"]["code"] == "warehouse_rights"
    pipeline.await_complete("public.a")
    (said,) = failed(pipeline)
    admin(pipeline, said["cure"])
    pipeline.await_complete(*TABLES)
    pipeline.stop()
    pipeline.assert_equal(TABLES)


def test_all_tables_that_stand_still_go_on_with_one_command(pipeline: Line) -> None:
    pipeline.register()
    pipeline.start()
    pipeline.await_complete(*TABLES)
    for table in TABLES[:2]:
        pipeline.call("pause", table)
    assert states(pipeline) == {"paused", "streaming"}
    done = pipeline.call("resume", "--all")
    assert [(table["table"], table["state"]) for table in done["tables"]] == [(table, "streaming") for table in TABLES[:2]]
    assert states(pipeline) == {"streaming"}
    assert pipeline.call("resume", "--all") == {"tables": []}
    pipeline.stop()
    # And where no service runs.
    for table in TABLES:
        pipeline.call("pause", table)
    done = pipeline.call("resume", "--all")
    assert [table["state"] for table in done["tables"]] == ["streaming"] * 3
    # One that needs a decision says so, and the others go on.
    pipeline.call("pause", "public.a")
    pipeline.warehouse.change("UPDATE _cdc.table_state SET state = 'needs_resync', error_message = 'gone' WHERE source_table = 'public.b'")
    done = pipeline.call("resume", "--all", accept=(4,))
    assert {table["table"]: table["state"] for table in done["tables"]} == {"public.a": "streaming", "public.b": "needs_resync"}
    assert next(table for table in done["tables"] if table["table"] == "public.b")["error"]["code"] == "needs_resync"
