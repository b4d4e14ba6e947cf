"""First rows read by the service itself (snapshot: direct), beside a source that goes on changing."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from deploy.local.stack import Stack
from tests.conftest import PgDatabase
from tests.support import hostile
from tests.support.line import EACH, FACTOR, Line, line

DIRECT = "defaults: {snapshot: direct}"
ROWS = int(200_000 * FACTOR)
WIDE = f"INSERT INTO doc SELECT g, g, repeat(md5(g::text), 16) FROM generate_series(1, {ROWS}) g"
DOC = "CREATE TABLE doc(id int PRIMARY KEY, n int, big text); ALTER TABLE doc ALTER big SET STORAGE EXTERNAL"


@pytest.fixture(params=EACH)
def pipeline(request: pytest.FixtureRequest, stack: Stack, pg_database: PgDatabase, tmp_path: Path) -> Iterator[Line]:
    with line(stack, pg_database, tmp_path, "public.doc: {}", sections=DIRECT, destination=request.param) as made:
        yield made


def disturb(pipeline: Line, dice: random.Random, rounds: int) -> None:
    """Changes of rows anywhere, of which the load may have read some: values, keys that move both ways, deletes, rows that are new."""
    for _ in range(rounds):
        key = dice.randrange(1, ROWS)
        pipeline.execute(
            f"UPDATE doc SET n = n + 1 WHERE id BETWEEN {key} AND {key + 20}; DELETE FROM doc WHERE id BETWEEN {key + 30} AND {key + 40};"
            f"UPDATE doc SET id = -id WHERE id BETWEEN {key + 50} AND {key + 60} AND id > 0;"
            f"UPDATE doc SET id = -id WHERE id BETWEEN {-key} AND {-key + 30} AND NOT EXISTS (SELECT FROM doc d WHERE d.id = -doc.id);"
            f"INSERT INTO doc SELECT g, 0, 'new' FROM generate_series({key + 30}, {key + 35}) g ON CONFLICT DO NOTHING"
        )


def loads(pipeline: Line) -> int:
    return len(re.findall("rows loaded", pipeline.log.read_text()))


def test_first_rows_come_by_the_service_and_changes_by_the_log(pipeline: Line) -> None:
    """I1, I31."""
    pipeline.execute(f"{DOC}; {WIDE}")
    pipeline.register()
    pipeline.start()
    disturb(pipeline, random.Random(7), 20)
    pipeline.await_complete()
    assert loads(pipeline) == 1
    assert "snapshot asked for" not in pipeline.log.read_text()
    pipeline.execute("UPDATE doc SET n = n + 1 WHERE id % 100 = 0")
    pipeline.await_complete()
    pipeline.stop()
    pipeline.assert_equal(["public.doc"])
    found = pipeline.rows("SELECT number, done, rows FROM _cdc.load_range ORDER BY number")
    assert len(found) > 1
    assert all(done for _, done, _ in found)


def test_kill_9_while_rows_are_loaded_costs_a_range(pipeline: Line) -> None:
    """I12, I31: the process ends inside a load again and again; a range that was done is not read again."""
    pipeline.execute(f"{DOC}; {WIDE}")
    pipeline.register()
    dice, done = random.Random(11), set[int]()
    for name in ("merge.swapped", "line.loaded", "merge.recorded"):
        pipeline.start(failpoints=f"{name}=crash@1", ready=False)
        pipeline.wait()
        disturb(pipeline, dice, 3)
        now = {n for n, ready in pipeline.rows("SELECT number, done FROM _cdc.load_range") if ready}
        assert done <= now, "what was loaded stays loaded"
        done = now
    assert done, "no range was done when the process ended, so nothing was tried"
    pipeline.start()
    pipeline.await_complete()
    disturb(pipeline, dice, 3)
    pipeline.await_complete()
    pipeline.stop()
    pipeline.assert_equal(["public.doc"])


def test_a_resync_reads_directly_and_sweeps_what_is_gone(pipeline: Line) -> None:
    """I2, I5: rows that the warehouse has and the source has not go at the end, and not before."""
    pipeline.execute(f"{DOC}; INSERT INTO doc SELECT g, g, 'small' FROM generate_series(1, 3000) g")
    pipeline.register()
    pipeline.start()
    pipeline.await_complete()
    pipeline.stop()
    pipeline.warehouse.change("DELETE FROM public.doc WHERE id % 10 = 1", "UPDATE public.doc SET id = -id WHERE id % 10 = 2")
    pipeline.start()
    pipeline.await_complete()
    pipeline.act("resync", "public.doc")
    pipeline.execute("UPDATE doc SET n = -n WHERE id % 7 = 0; DELETE FROM doc WHERE id % 11 = 0")
    pipeline.await_state("public.doc", "streaming")
    pipeline.await_complete()
    assert pipeline.differences("public.doc") == []
    assert re.search(r"snapshot complete.*swept=[1-9]", pipeline.log.read_text())
    assert loads(pipeline) == 2


def test_what_happens_to_the_table_while_it_is_loaded(pipeline: Line) -> None:
    """I9, I16: TRUNCATE and a new column in the middle of a load, and a table without rows."""
    pipeline.execute(f"{DOC}; {WIDE}")
    pipeline.execute("CREATE TABLE none(id int PRIMARY KEY, v numeric(9,2))")
    pipeline.configure("public.doc: {}\n  public.none: {}", sections=DIRECT)
    pipeline.register()
    pipeline.start(failpoints="line.loaded=crash@1", ready=False)
    pipeline.wait()
    pipeline.execute("TRUNCATE doc")
    pipeline.execute(
        "ALTER TABLE doc ADD more text DEFAULT 'filled'; INSERT INTO doc VALUES (1, 1, 'after', 'own'), (2, 2, 'after', DEFAULT)"
    )
    pipeline.start()
    pipeline.await_complete()
    pipeline.execute("INSERT INTO none VALUES (1, 0.10)")
    pipeline.await_complete()
    pipeline.stop()
    pipeline.assert_equal(["public.doc", "public.none"])


def test_a_table_that_is_added_is_loaded_beside_the_others(pipeline: Line) -> None:
    pipeline.execute(f"{DOC}; INSERT INTO doc SELECT g, g, 'small' FROM generate_series(1, 100) g")
    pipeline.execute("CREATE TABLE later(id int PRIMARY KEY, v text); INSERT INTO later SELECT g, g FROM generate_series(1, 500) g")
    pipeline.register()
    pipeline.start()
    pipeline.await_complete()
    pipeline.stop()
    pipeline.configure("public.doc: {}\n  public.later: {}", sections=DIRECT)
    pipeline.register()
    pipeline.start()
    pipeline.execute("UPDATE later SET v = 'changed' WHERE id % 3 = 0; DELETE FROM later WHERE id % 5 = 0; UPDATE doc SET n = 0")
    pipeline.await_complete()
    pipeline.stop()
    pipeline.assert_equal(["public.doc", "public.later"])
    assert "snapshot asked for" not in pipeline.log.read_text()


@pytest.mark.timeout(420)
def test_first_loads_under_a_hostile_load(stack: Stack, pg_database: PgDatabase, tmp_path: Path) -> None:
    """I1-I5, I7-I9, I11, I31: the tables of the hostile load, those kept as rows, from the first row on, and each read anew within it."""
    scale = hostile.Scale().times(FACTOR)
    hostile.seed(pg_database.url, scale)
    work = hostile.Load(pg_database.url, scale, seed=3)
    with line(stack, pg_database, tmp_path, hostile.CONFIG, sections=DIRECT) as pipeline, hostile.loading(work) as running:
        pipeline.register()
        pipeline.start()
        for number, table in enumerate((*hostile.TABLES, *hostile.TABLES)):
            pipeline.await_that("statements", lambda at=number: work.committed >= scale.operations * at // 14 or running.done())  # type: ignore[misc]
            if number % 5 == 4:
                pipeline.kill()
                pipeline.start()
            pipeline.act("resync", pipeline.source(table))
        running.result(timeout=240)
        pipeline.await_complete(*hostile.TABLES, limit_seconds=180)
        pipeline.stop()
        pipeline.assert_equal(hostile.TABLES)


def test_a_value_that_has_no_exact_form_is_read_by_the_connector(pipeline: Line) -> None:
    """I19, I23: what cannot be held is parked, record by record, as ever."""
    pipeline.execute("CREATE TABLE doc(id int PRIMARY KEY, n numeric(9,2), t timestamptz)")
    pipeline.execute("INSERT INTO doc SELECT g, g, now() FROM generate_series(1, 100) g; UPDATE doc SET n = 'NaN' WHERE id = 7")
    pipeline.register()
    pipeline.start()
    pipeline.await_that("it is parked", lambda: pipeline.tables().get("public.doc", {}).get("parked"))
    pipeline.await_state("public.doc", "streaming")
    pipeline.stop()
    assert "the connector reads the table" in pipeline.log.read_text()
    with psycopg.connect(pipeline.database.url) as source:
        assert source.execute("SELECT count(*) FROM doc").fetchone() == (100,)
    assert pipeline.rows("SELECT count(*) FROM public.doc") == [(99,)]
    assert pipeline.rows("SELECT key_text FROM _cdc.quarantine") == [('["7"]',)]
