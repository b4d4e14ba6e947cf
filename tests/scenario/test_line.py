"""The whole line on the real stack: PostgreSQL, Debezium, Kafka, `cdc run`, each warehouse; judged by comparing source and warehouse."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from deploy.local.stack import Stack
from tests.conftest import PgDatabase
from tests.support import hostile
from tests.support.line import FACTOR, Line, Versions, line

KEYS = {
    "public.doc": ["id"],
    "public.pair": ["b", "a"],
    "public.whole": ["id"],
    "public.part": ["region", "id"],
    "public.soft": ["k", "t"],
}


@pytest.mark.parametrize("destination", ["duckdb", "postgresql"])
def test_snapshot_and_a_hostile_load_arrive_equal_in_every_row_and_column(
    stack: Stack, pg_database: PgDatabase, tmp_path: Path, destination: str
) -> None:
    """I1, I2, I4, I5, I7, I8, I11, I12, I21, I24: the load begins while the snapshot is read."""
    scale = hostile.Scale().times(FACTOR)
    hostile.seed(pg_database.url, scale)
    load = hostile.Load(pg_database.url, scale, seed=20)
    with line(stack, pg_database, tmp_path, hostile.CONFIG, destination=destination) as pipeline, ThreadPoolExecutor(1) as pool:
        pipeline.register()
        work = pool.submit(load.run)
        try:
            pipeline.start()
            with Versions(pipeline, KEYS) as versions:
                pipeline.await_that("the load is done", work.done, 240)
                report = work.result()
                pipeline.await_complete(*hostile.TABLES)
            # What the status says is what the source holds, once it has counted.
            expected = source_rows(pg_database.url)
            pipeline.await_that(f"the status counts {expected}", lambda: counted(pipeline) == expected, 30)
        finally:
            load.stop.set()
        pipeline.stop()
        pipeline.assert_equal(hostile.TABLES)
        pipeline.assert_ledger(hostile.TABLES)
        versions.check()
        assert report.statements >= scale.operations


def source_rows(url: str) -> dict[str, int]:
    with psycopg.connect(url) as connection:
        found = {}
        for table in hostile.TABLES:
            query = sql.SQL("SELECT count(*) FROM {}").format(sql.Identifier(*table.split(".", 1)))
            row = connection.execute(query).fetchone()
            assert row is not None
            found[table] = int(row[0])
        return found


def counted(pipeline: Line) -> dict[str, int | None]:
    return {name: table["rows"] for name, table in pipeline.tables().items()}
