"""The connector is taken back and registered anew while the service goes on: what happened meanwhile is nowhere in the log."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from deploy.local.stack import Stack
from tests.conftest import PgDatabase
from tests.support.line import line
from tests.support.wires import FLATTENED

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

        # A look that came between connector and slot would see the slot gone, and have all read anew at once: that is tried elsewhere.
        pipeline.signal(signal.SIGSTOP)
        refused = pipeline.cdc.call("register", "--delete", "--json", "--yes", accept=(0, 4))
        if refused is not None and "error" in refused:
            pipeline.execute(refused["error"]["hint"])
        pipeline.execute("DELETE FROM doc WHERE id % 10 = 0; UPDATE doc SET n = -n WHERE id % 10 = 1; DELETE FROM plain WHERE id <= 100")
        pipeline.register()
        pipeline.signal(signal.SIGCONT)
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


@pytest.mark.parametrize("options", ["", ", ".join(f'{name}: "{value}"' for name, value in FLATTENED.items())], ids=["whole", "flattened"])
def test_i9_a_column_that_came_before_rows_were_read_again_holds_its_values(
    stack: Stack, pg_database: PgDatabase, tmp_path: Path, options: str
) -> None:
    """Rows that somebody took out of the warehouse are read again at the source for events that do not know the column yet. They are later
    than the changes that filled it: these alone would leave it empty. Whatever form events have: the catalog need not tell it."""
    with line(stack, pg_database, tmp_path, "public.doc: {}", options=options) as pipeline:
        pipeline.execute("CREATE TABLE doc(id int PRIMARY KEY, v text, big text); ALTER TABLE doc ALTER big SET STORAGE EXTERNAL")
        pipeline.execute("INSERT INTO doc SELECT g, g, repeat('x', 9000) FROM generate_series(1, 30) g")
        pipeline.register()
        pipeline.start()
        pipeline.await_complete()
        pipeline.stop()
        pipeline.warehouse.change("DELETE FROM public.doc WHERE id % 2 = 0")
        pipeline.execute("UPDATE doc SET v = 'new'")
        pipeline.execute("ALTER TABLE doc ADD n numeric(9,2); UPDATE doc SET n = id")
        pipeline.start()
        pipeline.await_that("rows were read again", lambda: "got the column n" in pipeline.log.read_text())
        pipeline.await_complete()
        pipeline.stop()
        pipeline.assert_equal(["public.doc"])
