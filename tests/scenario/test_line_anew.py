"""The connector is taken back and registered anew while the service goes on: what happened meanwhile is nowhere in the log."""

from __future__ import annotations

from pathlib import Path

from deploy.local.stack import Stack
from tests.conftest import PgDatabase
from tests.support.line import line

TABLES = ("public.doc", "public.plain")


def test_a_connector_registered_anew_asks_for_resyncs_and_its_placeholder_is_known(
    stack: Stack, pg_database: PgDatabase, tmp_path: Path
) -> None:
    """I2, I11: rows deleted in between go by the resync, and values unsent under the new placeholder are kept."""
    with line(stack, pg_database, tmp_path, "public.doc: {}\n  public.plain: {}") as pipeline:
        pipeline.execute("CREATE TABLE doc(id int PRIMARY KEY, n int, big text); ALTER TABLE doc ALTER big SET STORAGE EXTERNAL")
        pipeline.execute("INSERT INTO doc SELECT g, g, repeat(md5(g::text), 100) FROM generate_series(1, 300) g")
        pipeline.execute("CREATE TABLE plain(id int PRIMARY KEY, n int); INSERT INTO plain SELECT g, g FROM generate_series(1, 300) g")
        pipeline.register()
        pipeline.start()
        pipeline.await_complete(*TABLES)
        pipeline.execute("UPDATE doc SET n = n + 1")
        pipeline.await_complete(*TABLES)

        refused = pipeline.cdc.call("register", "--delete", "--json", "--yes", accept=(0, 4))
        if refused is not None and "error" in refused:
            pipeline.execute(refused["error"]["hint"])
        pipeline.execute("DELETE FROM doc WHERE id % 10 = 0; UPDATE doc SET n = -n WHERE id % 10 = 1; DELETE FROM plain WHERE id <= 100")
        pipeline.register()
        for name in TABLES:
            table = pipeline.await_state(name, "needs_resync", limit_seconds=90)
            assert table["error"]["code"] == "snapshotted_anew"
            assert f"cdc resync {name}" in table["error"]["hint"]
        for name in TABLES:
            pipeline.act("resync", name)
        for name in TABLES:
            pipeline.await_state(name, "streaming")
            pipeline.await_complete(name)
            assert pipeline.differences(name) == []
        pipeline.execute("UPDATE doc SET n = n + 1; UPDATE doc SET id = -id WHERE id % 3 = 0; UPDATE doc SET n = 0 WHERE id % 3 = 0")
        pipeline.await_complete(*TABLES)
        pipeline.stop()
        pipeline.assert_equal(TABLES)
