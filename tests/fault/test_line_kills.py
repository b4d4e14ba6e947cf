"""Each part of the line is killed, stopped or ended while the source is under a hostile load; source and warehouse end equal.

Seeds choose what is killed and when, counted in statements that were committed, not in seconds.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from concurrent.futures import Future
from pathlib import Path
from random import Random

import psycopg
import pytest

from cdc_service.failpoints import NAMES
from connectors.debezium.connect import KafkaConnect
from connectors.sources.postgresql.failures import PostgresFailures
from deploy.local.stack import Stack
from tests.conftest import PgDatabase
from tests.support import hostile
from tests.support.line import FACTOR, Line, Versions, line
from tests.support.registration import eventually

SEEDS = [int(word) for word in os.environ.get("CDC_TEST_SEEDS", "1").split()]
"""Each gives another schedule of kills and another load."""
KEYS = {"public.doc": ["id"], "public.pair": ["b", "a"], "public.soft": ["k", "t"], "public.part": ["region", "id"]}

MOVED = "INSERT INTO moved SELECT g, 0, repeat(md5(g::text), 80) FROM generate_series(1, 500) g"


def await_committed(load: hostile.Load, work: Future[hostile.Report], statements: int) -> None:
    eventually(f"{statements} statements committed (now {load.committed})", lambda: load.committed >= statements or work.done(), 120)


@pytest.mark.timeout(420)
@pytest.mark.parametrize("seed", SEEDS)
def test_kill_9_of_each_part_at_random_moments_changes_nothing(stack: Stack, pg_database: PgDatabase, tmp_path: Path, seed: int) -> None:
    """I1-I5, I7, I8, I11-I16, I21: the service five times, Connect, the broker and PostgreSQL once each, under 20,000 operations."""
    dice = Random(f"kills/{seed}")
    scale = hostile.Scale().times(FACTOR)
    hostile.seed(pg_database.url, scale)
    load = hostile.Load(pg_database.url, scale, seed=seed)
    parts = ["service"] * 5 + ["connect", "kafka", "postgres"]
    dice.shuffle(parts)
    moments = sorted(dice.sample(range(scale.operations // 20, scale.operations), len(parts)))
    with line(stack, pg_database, tmp_path, hostile.CONFIG) as pipeline:
        pipeline.register()
        pipeline.start()
        with Versions(pipeline, KEYS) as versions, hostile.loading(load) as work:
            for part, moment in zip(parts, moments, strict=True):
                await_committed(load, work, moment)
                assert pipeline.process is not None
                assert pipeline.process.poll() is None, f"the service ended by itself before {part} was killed\n{pipeline.report()}"
                if part == "service":
                    pipeline.kill()
                    pipeline.start(ready=dice.random() < 0.5)
                else:
                    stack.kill(part)
                    stack.start([part])
            report = work.result(timeout=240)
            pipeline.await_complete(*hostile.TABLES, limit_seconds=180)
        assert report.statements >= scale.operations
        pipeline.stop()
        pipeline.assert_equal(hostile.TABLES)
        pipeline.assert_ledger(hostile.TABLES)
        versions.check()


def test_connect_killed_in_the_initial_snapshot_leaves_no_ghosts(stack: Stack, pg_database: PgDatabase, tmp_path: Path) -> None:
    """I2, I5: the snapshot begins anew; what went meanwhile is not streamed as deleted, and goes all the same."""
    tables, override = ["public.a", "public.z"], "snapshot.select.statement.overrides"
    options = f"{override}: public.z, {override}.public.z: 'SELECT z.* FROM z, pg_advisory_lock_shared(7)'"
    with line(stack, pg_database, tmp_path, "public.a: {}\n  public.z: {}", options=options) as pipeline:
        pipeline.execute("CREATE TABLE a(id int PRIMARY KEY, v text); INSERT INTO a SELECT g, 'first' FROM generate_series(1, 500) g")
        pipeline.execute("CREATE TABLE z(id int PRIMARY KEY, v text); INSERT INTO z SELECT g, 'first' FROM generate_series(1, 500) g")

        def rows_of_a() -> int:
            with contextlib.suppress(AssertionError):  # There is no such table yet.
                found = pipeline.query("SELECT count(*) AS n FROM public.a")
                return 0 if found is None else int(found.column("n")[0].as_py())
            return 0

        with psycopg.connect(pg_database.url) as holder:
            holder.execute("SELECT pg_advisory_lock(7)")  # The snapshot reads a, and then waits here.
            pipeline.register()
            pipeline.start()
            pipeline.await_that("rows of a from the first snapshot", lambda: rows_of_a() >= 499, 60)
            stack.kill("connect")
            pipeline.execute("DELETE FROM a WHERE id % 10 = 0; UPDATE a SET v = 'second' WHERE id % 10 = 1")
            pipeline.execute("UPDATE a SET id = -id WHERE id % 10 = 2")
            assert rows_of_a() >= 499
            assert pipeline.tables()["public.a"]["state"] in ("waiting", "snapshotting")
        stack.start(["connect"])
        pipeline.execute("INSERT INTO a VALUES (100000, 'third'); DELETE FROM z WHERE id % 10 = 0")
        pipeline.await_complete(*tables)
        pipeline.stop()
        pipeline.assert_equal(tables)
        pipeline.assert_ledger(tables)
        assert re.search(r"snapshot complete.*public.a.*swept=\d\d", pipeline.log.read_text()), "there were no ghosts, so nothing was tried"


def test_keys_that_change_while_a_snapshot_begun_anew_reads_take_their_values_along(
    stack: Stack, pg_database: PgDatabase, tmp_path: Path
) -> None:
    """I11: the connector reads its second snapshot later than at the position that it gives, so the rows hold what came after changes
    that are still to be sent. A value that was not sent with them must not be taken out of such a row to another key."""
    tables, override = ["public.a", "public.doc"], "snapshot.select.statement.overrides"
    options = f"{override}: public.a, {override}.public.a: 'SELECT a.* FROM a, pg_advisory_lock_shared(7)'"
    with line(stack, pg_database, tmp_path, "public.a: {}\n  public.doc: {}", options=options) as pipeline:
        pipeline.execute("CREATE TABLE a(id int PRIMARY KEY); INSERT INTO a VALUES (1)")
        pipeline.execute("CREATE TABLE doc(id int PRIMARY KEY, n int, big text); ALTER TABLE doc ALTER big SET STORAGE EXTERNAL")
        pipeline.execute("INSERT INTO doc SELECT g, 0, repeat(md5(g::text), 300) FROM generate_series(1, 200) g")
        with psycopg.connect(pg_database.url, autocommit=True) as holder:

            def waits() -> list[tuple[int]]:
                return holder.execute("SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = 7 AND NOT granted").fetchall()

            holder.execute("SELECT pg_advisory_lock(7)")  # The snapshot waits here before it reads doc.
            pipeline.register()
            pipeline.start()
            pipeline.await_that("the first snapshot waits", lambda: bool(waits()), 60)
            stack.kill("connect")
            holder.execute("SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND objid = 7 AND NOT granted")
            pipeline.await_that("the first snapshot is gone", lambda: not waits(), 60)
            stack.start(["connect"])
            pipeline.await_that("the second snapshot waits", lambda: bool(waits()), 60)
            for key in range(1, 51):
                pipeline.execute(f"UPDATE doc SET n = 1 WHERE id = {key}")
                pipeline.execute(f"UPDATE doc SET id = {key + 1000} WHERE id = {key}")
                pipeline.execute(f"UPDATE doc SET id = {key} WHERE id = {key + 100}")
        pipeline.await_complete(*tables)
        pipeline.stop()
        pipeline.assert_equal(tables)
        pipeline.assert_ledger(tables)


def test_a_connector_that_begins_anew_after_it_streamed_leaves_nothing_out_of_date(
    stack: Stack, pg_database: PgDatabase, tmp_path: Path
) -> None:
    """I2, I5: it was killed before it had stored how far it was, so what the source did between its changes and its second snapshot is
    never streamed. That it has stored nothing is made certain by taking its offsets away."""
    with line(stack, pg_database, tmp_path, "public.a: {}") as pipeline:
        pipeline.execute("CREATE TABLE a(id int PRIMARY KEY, v text); INSERT INTO a SELECT g, 'first' FROM generate_series(1, 20) g")
        pipeline.register()
        topic, name = f"{pg_database.name}.public.a", f"cdc_{pg_database.name}"

        def written() -> int:
            facts = pipeline.kafka.describe([topic]).get(topic)
            return 0 if facts is None else sum(high for _, high in facts.ends.values())

        eventually("the rows of the first snapshot", lambda: written() >= 20, 60)
        pipeline.execute("INSERT INTO a VALUES (21, 'gone'), (22, 'stale')")
        pipeline.execute("DELETE FROM a WHERE id = 1; UPDATE a SET v = 'stale' WHERE id = 2")
        eventually("the changes behind it", lambda: written() >= 25, 60)
        connect = KafkaConnect(stack.connect_url, PostgresFailures())
        try:
            connect.stop(name)
            pipeline.execute("DELETE FROM a WHERE id = 21; INSERT INTO a VALUES (1, 'back'); UPDATE a SET v = 'new' WHERE id IN (2, 22)")
            before = written()
            connect.forget_offsets(name)
            connect.resume(name)
        finally:
            connect.close()
        eventually("the rows of the second snapshot", lambda: written() >= before + 21, 60)
        pipeline.start()
        pipeline.await_complete()
        pipeline.stop()
        pipeline.assert_equal(["public.a"])
        assert "table is read anew" in pipeline.log.read_text(), "nothing was out of date, so nothing was tried"


@pytest.mark.timeout(420)
@pytest.mark.parametrize("destination", ["duckdb", "postgresql"])
def test_a_crash_at_each_failpoint_is_healed_by_the_next_start(
    stack: Stack, pg_database: PgDatabase, tmp_path: Path, destination: str
) -> None:
    """I12, I13, I15, I21: the process ends as by kill -9 at every boundary of the line and of a merge, each time under new changes."""
    names = sorted(set(NAMES) - {"line.loaded"})  # Nothing is loaded here; tests/scenario/test_direct.py has it.
    scale = hostile.Scale(rows=200, docs=40, operations=40, sessions=2, truncates=0)
    hostile.seed(pg_database.url, scale)
    # Many keys change at once, and small batches part the halves: their unsent values have to be read again.
    move = "UPDATE moved SET n = n + 1; UPDATE moved SET id = -id"
    with line(stack, pg_database, tmp_path, hostile.CONFIG + "  public.moved: {flush: {rows: 1}}", destination=destination) as pipeline:
        pipeline.execute(
            f"CREATE TABLE moved(id int PRIMARY KEY, n int, big text); ALTER TABLE moved ALTER big SET STORAGE EXTERNAL; {MOVED}"
        )
        pipeline.register()
        for number, name in enumerate(names):
            hostile.Load(pg_database.url, scale, seed=1000 * number).run()
            pipeline.execute(move)
            pipeline.start(failpoints=f"{name}=crash@{number % 3 + 1}", ready=False)
            assert pipeline.process is not None
            deadline, rounds = time.monotonic() + 90, 0
            while not ended_within(pipeline.process, 8 if rounds == 0 else 1):
                assert time.monotonic() < deadline, f"{name} was not passed\n{pipeline.report()}"
                rounds += 1
                hostile.Load(pg_database.url, scale, seed=1000 * number + rounds).run()
                pipeline.execute(move)
            assert pipeline.wait() == -signal.SIGKILL, f"{name}\n{pipeline.report()}"
        # Each of them raises an error that says "try again", or loses a reply, and the service goes on.
        plans = [f"{name}={('raise', 'lose')[number % 2]}@{number % 3 + 2}" for number, name in enumerate(names)]
        pipeline.start(failpoints=",".join(plans), ready=False)
        hostile.Load(pg_database.url, scale, seed=99).run()
        pipeline.execute(move)
        pipeline.await_complete()
        pipeline.stop()
        tables = [*hostile.TABLES, "public.moved"]
        pipeline.assert_equal(tables)
        pipeline.assert_ledger(tables)


def ended_within(process: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        process.wait(seconds)
        return True
    except subprocess.TimeoutExpired:
        return False


@pytest.mark.timeout(420)
def test_signals_under_load(stack: Stack, pg_database: PgDatabase, tmp_path: Path) -> None:
    """I14: SIGTERM ends it well and the next run goes on; stopped and woken it goes on; beside it no second one works."""
    scale = hostile.Scale(rows=500, docs=80, operations=int(4_000 * FACTOR), truncates=1)
    hostile.seed(pg_database.url, scale)
    load = hostile.Load(pg_database.url, scale, seed=7)
    with line(stack, pg_database, tmp_path, hostile.CONFIG) as pipeline:
        pipeline.register()
        pipeline.start()
        with hostile.loading(load) as work:
            await_committed(load, work, scale.operations // 8)
            pipeline.stop()
            await_committed(load, work, scale.operations // 4)
            pipeline.catch_up()
            pipeline.start()
            await_committed(load, work, scale.operations // 2)
            pipeline.signal(signal.SIGSTOP)
            try:
                second(pipeline)
                time.sleep(3)  # Long enough for what it holds open to notice; not what is waited for.
            finally:
                pipeline.signal(signal.SIGCONT)
            await_committed(load, work, scale.operations * 3 // 4)
            pipeline.stop()
            work.result(timeout=120)
        pipeline.catch_up()
        pipeline.assert_equal(hostile.TABLES)
        pipeline.assert_ledger(hostile.TABLES)


def second(pipeline: Line) -> None:
    """A second `cdc run` of the same pipeline refuses to work and says why."""
    done = subprocess.run(
        pipeline.cdc.argv("run"), cwd=pipeline.folder, env=pipeline.cdc.env, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 4, f"{done.returncode}\n{done.stdout}{done.stderr}\n{pipeline.report()}"
    assert "runs already" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_merge_that_hangs_does_not_keep_the_service_from_ending(stack: Stack, pg_database: PgDatabase, tmp_path: Path) -> None:
    """SIGTERM ends it all the same; the next run merges what was left."""
    with line(stack, pg_database, tmp_path, "public.a: {}") as pipeline:
        pipeline.execute("CREATE TABLE a(id int PRIMARY KEY, v text); INSERT INTO a SELECT g, 'first' FROM generate_series(1, 300) g")
        pipeline.register()
        pipeline.start(failpoints="line.folded=hang")
        pipeline.await_that("what is not merged", lambda: (found := pipeline.status()) and found["service"].get("buffered_bytes"), 60)
        assert pipeline.request("GET", "/health") is not None
        pipeline.stop()
        assert "a merge does not end" in pipeline.log.read_text()
        pipeline.catch_up()
        pipeline.assert_equal(["public.a"])
        pipeline.assert_ledger(["public.a"])
