"""First rows read by the service itself (snapshot: direct), beside a source that goes on changing."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local.stack import Stack
from tests.conftest import PgDatabase
from tests.support.line import EACH, FACTOR, Line, line

DIRECT = "defaults: {snapshot: direct}"
ROWS = int(200_000 * FACTOR)


@pytest.fixture(params=EACH)
def pipeline(request: pytest.FixtureRequest, stack: Stack, pg_database: PgDatabase, tmp_path: Path) -> Iterator[Line]:
    with line(stack, pg_database, tmp_path, "public.doc: {}\n  public.kinds: {}", sections=DIRECT, destination=request.param) as made:
        yield made


def test_first_rows_come_by_the_service_and_changes_by_the_log(pipeline: Line) -> None:
    pipeline.execute("CREATE TABLE doc(id int PRIMARY KEY, n int, big text); ALTER TABLE doc ALTER big SET STORAGE EXTERNAL")
    pipeline.execute(f"INSERT INTO doc SELECT g, g, repeat(md5(g::text), 3) FROM generate_series(1, {ROWS}) g")
    pipeline.execute("CREATE TABLE kinds(k text PRIMARY KEY, d numeric(12,2), j jsonb, u uuid, a int[], t timestamptz, dt date)")
    pipeline.execute(
        "INSERT INTO kinds SELECT 'k' || g, g / 7.0, jsonb_build_object('n', g), gen_random_uuid(), ARRAY[g, NULL], now(), 'infinity'"
        " FROM generate_series(1, 1000) g"
    )
    pipeline.register()
    pipeline.start()
    rand = random.Random(7)
    for _ in range(20):
        key = rand.randrange(1, ROWS)
        pipeline.execute(
            f"UPDATE doc SET n = -n WHERE id = {key}; DELETE FROM doc WHERE id = {key + 1}; UPDATE doc SET id = -id WHERE id = {key + 2}"
        )
    pipeline.await_complete()
    assert "rows loaded" in pipeline.log.read_text()
    assert "snapshot asked for" not in pipeline.log.read_text()
    pipeline.execute("UPDATE doc SET n = n + 1 WHERE id % 100 = 0; UPDATE kinds SET d = d + 1")
    pipeline.await_complete()
    pipeline.stop()
    pipeline.assert_equal(("public.doc", "public.kinds"))
