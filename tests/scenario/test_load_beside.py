"""A pipeline with both kinds of tables: one is captured from the log, another one loaded by queries, by one service into one warehouse."""

from __future__ import annotations

from pathlib import Path

from deploy.local.stack import Stack
from tests.support.line import Line, database, line

TABLES = """public.captured: {}
  public.loaded: {load: {cursor: at, lookback: 1min, schedule: "* * * * *", deletes: compare}}"""


def test_loads_go_on_beside_the_stream_and_neither_disturbs_the_other(stack: Stack, tmp_path: Path) -> None:
    with database(stack) as source, line(stack, source, tmp_path, TABLES) as pipeline:
        pipeline.execute("CREATE TABLE captured (id int PRIMARY KEY, n int)")
        pipeline.execute("CREATE UNLOGGED TABLE loaded (id int PRIMARY KEY, n int, at timestamptz DEFAULT now())")
        for name in ("captured", "loaded"):
            pipeline.execute(f"INSERT INTO {name} SELECT g, g FROM generate_series(1, 2000) g")
        # An unlogged table is none that a connector could capture: it is not asked to.
        pipeline.register()
        pipeline.start()
        pipeline.await_complete("public.captured", limit_seconds=90)
        pipeline.await_that("both are there", lambda: count(pipeline, "captured") == count(pipeline, "loaded") == 2000, 60)
        pipeline.execute("UPDATE captured SET n = -n WHERE id <= 100; DELETE FROM captured WHERE id > 1900")
        pipeline.execute("UPDATE loaded SET n = -n, at = now() WHERE id <= 100; DELETE FROM loaded WHERE id > 1900")
        pipeline.await_complete("public.captured", limit_seconds=90)
        pipeline.await_that("the next load has come", lambda: count(pipeline, "loaded") == 1900, 90)
        found = pipeline.query("SELECT count(*) AS n FROM public.loaded WHERE n < 0")
        assert found is not None
        assert found.to_pylist() == [{"n": 100}]
        document = pipeline.status()
        assert document is not None
        shown = {t["source"]: t for t in document["tables"]}
        assert (shown["public.captured"]["state"], shown["public.loaded"]["state"]) == ("streaming", "streaming")
        assert shown["public.loaded"]["load"]["cursor"] == "at"
        pipeline.stop()
        pipeline.assert_equal(["public.captured"])
        assert {t["source"] for t in pipeline.call("status")["tables"]} == {"public.captured", "public.loaded"}
        (loaded,) = pipeline.call("load", "public.loaded", "--full")["tables"]
        assert (loaded["applied"], loaded["unchanged"]) == (0, 1900)


def count(pipeline: Line, table: str) -> int:
    found = pipeline.query(f"SELECT count(*) AS n FROM public.{table}")
    return -1 if found is None else int(found.to_pylist()[0]["n"])
