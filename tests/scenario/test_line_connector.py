"""What happens to one table, or to the publication, as the running service sees it: it says what stopped, and each cure heals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from deploy.local.process import StackError
from deploy.local.stack import Stack
from tests.conftest import PgDatabase
from tests.support.line import Line, line

TABLES = ("public.a", "public.t")


def loaded(pipeline: Line, key: str = "int") -> None:
    value = {"int": "g", "int[]": "array[g]", "money": "g::money"}[key]
    pipeline.execute("CREATE TABLE a(id int PRIMARY KEY, v text); INSERT INTO a SELECT g, 'x' FROM generate_series(1, 50) g")
    pipeline.execute(f"CREATE TABLE t(id {key} PRIMARY KEY, n int NOT NULL)")
    pipeline.execute(f"INSERT INTO t SELECT {value}, g FROM generate_series(1, 50) g")
    pipeline.register()
    pipeline.start()
    pipeline.await_complete(*TABLES)


def test_a_table_that_the_connector_cannot_read_stops_with_its_cause_and_its_cure_heals(
    stack: Stack, pg_database: PgDatabase, tmp_path: Path
) -> None:
    """Its SELECT names a generated column that came since, which the stream does not know."""
    with line(stack, pg_database, tmp_path, "public.a: {}\n  public.t: {}") as pipeline:
        loaded(pipeline)
        pipeline.execute("ALTER TABLE t ADD g int GENERATED ALWAYS AS (n * 2) STORED; DELETE FROM t WHERE n > 40")
        pipeline.await_complete(*TABLES)
        pipeline.act("resync", "public.t")
        found = pipeline.await_state("public.t", "error", limit_seconds=90)
        assert found["error"]["code"] == "snapshot_failed"
        assert "cdc register" in found["error"]["hint"]
        assert "cdc resync public.t" in found["error"]["hint"]
        pipeline.execute("INSERT INTO a VALUES (51, 'y')")
        pipeline.await_complete("public.a")
        pipeline.register()
        pipeline.call("resync", "public.t", "--yes")
        pipeline.await_complete(*TABLES)
        pipeline.stop()
        pipeline.assert_equal(["public.a"])
        assert sorted(pipeline.rows("SELECT id, n FROM public.t")) == [(n, n) for n in range(1, 41)]


def test_a_publication_made_anew_has_every_table_read_anew_by_itself(stack: Stack, pg_database: PgDatabase, tmp_path: Path) -> None:
    with line(stack, pg_database, tmp_path, "public.a: {}\n  public.t: {}") as pipeline:
        loaded(pipeline)
        pipeline.execute(f"DROP PUBLICATION cdc_{pg_database.name}")
        pipeline.execute("INSERT INTO a VALUES (51, 'y'); DELETE FROM t WHERE n > 40; UPDATE a SET v = 'z' WHERE id < 5")
        pipeline.register()
        pipeline.await_complete(*TABLES)
        assert [pipeline.differences(name) for name in TABLES] == [[], []]
        assert pipeline.log.read_text().count("table is read anew") >= len(TABLES)
        pipeline.execute("INSERT INTO a VALUES (52, 'y'); DELETE FROM t WHERE n > 30")
        pipeline.await_complete(*TABLES)
        pipeline.stop()
        pipeline.assert_equal(TABLES)


@pytest.mark.parametrize(("key", "said"), [("int[]", "an array"), ("money", "a column of type money")])
def test_a_table_that_cannot_be_read_beside_the_stream_is_refused_by_resync_and_the_others_go_on(
    stack: Stack, pg_database: PgDatabase, tmp_path: Path, key: str, said: str
) -> None:
    with line(stack, pg_database, tmp_path, "public.a: {}\n  public.t: {}") as pipeline:
        loaded(pipeline, key)
        with pytest.raises(StackError) as caught:
            pipeline.call("resync", "public.t", "--yes")
        refused = json.loads(str(caught.value).partition("\n")[2])["error"]
        assert refused["code"] == "table_refused"
        assert f"public.t has {said}" in refused["message"]
        pipeline.execute("INSERT INTO a VALUES (51, 'y')")
        pipeline.await_complete(*TABLES)
        if key == "money":
            pipeline.execute(refused["hint"])
            pipeline.execute("INSERT INTO t VALUES (51, 51)")
            pipeline.await_that("the change is met", lambda: pipeline.tables()["public.t"]["state"] != "streaming")
            pipeline.call("resync", "public.t", "--yes")
            pipeline.await_complete(*TABLES)
            pipeline.stop()
            pipeline.assert_equal(TABLES)
