"""Several processes of one pipeline share its partitions, while one of them is killed, frozen and woken: source and warehouse end equal."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from deploy.local.stack import Stack
from tests.conftest import PgDatabase
from tests.fault.test_line_kills import KEYS, await_committed
from tests.support import hostile
from tests.support.line import FACTOR, Line, Versions, beside, line
from tests.support.wires import WIRE


@pytest.mark.timeout(420)
def test_two_processes_of_one_group_one_killed_and_one_frozen(stack: Stack, pg_database: PgDatabase, tmp_path: Path) -> None:
    """I1-I5, I7, I8, I11-I16, I21: both merge into the same tables; the frozen one wakes when its partitions are somebody else's."""
    scale = hostile.Scale().times(FACTOR)
    hostile.seed(pg_database.url, scale)
    load = hostile.Load(pg_database.url, scale, seed=2)
    with (
        line(stack, pg_database, tmp_path, hostile.CONFIG, destination="postgresql") as one,
        beside(one, tmp_path / "two", hostile.CONFIG) as two,
    ):
        one.register()
        one.start()
        two.start()
        with Versions(one, KEYS) as versions, hostile.loading(load) as work:
            await_shared(one, two)
            await_committed(load, work, scale.operations // 4)
            two.kill()
            await_owned(one)
            two.start()
            await_shared(one, two)
            await_committed(load, work, scale.operations // 2)
            two.signal(signal.SIGSTOP)
            try:
                await_owned(one)
                await_committed(load, work, scale.operations * 3 // 4)
            finally:
                two.signal(signal.SIGCONT)
            work.result(timeout=240)
            await_shared(one, two)
            one.await_complete(*hostile.TABLES, limit_seconds=180)
        two.await_complete(*hostile.TABLES)
        one.await_that("both processes tell the same states", lambda: states(one) == states(two), 60)
        two.stop()
        one.stop()
        one.assert_equal(hostile.TABLES)
        one.assert_ledger(hostile.TABLES)
        versions.check()


@pytest.mark.timeout(300)
def test_what_is_asked_of_one_process_holds_for_the_others(stack: Stack, pg_database: PgDatabase, tmp_path: Path) -> None:
    with (
        line(stack, pg_database, tmp_path, "public.a: {}", destination="postgresql") as one,
        beside(one, tmp_path / "two", "public.a: {}") as two,
    ):
        # Apicurio's converter writes a default where a value is NULL: such values are parked, which is not what is tried here.
        default = "" if WIRE == "avro" else "DEFAULT 5"
        one.execute("CREATE TABLE a(id int PRIMARY KEY, v text); INSERT INTO a SELECT g, 'first' FROM generate_series(1, 300) g")
        one.register()
        one.start()
        two.start()
        await_shared(one, two)
        one.await_complete("public.a")
        for first, second in ((one, two), (two, one)):
            first.act("pause", "public.a")
            second.await_state("public.a", "paused")
            one.execute(f"UPDATE a SET v = v || '.'; ALTER TABLE a ADD COLUMN n int {default}; ALTER TABLE a DROP COLUMN n")
            second.act("resume", "public.a")
            first.await_state("public.a", "streaming")
            one.await_complete("public.a")
            first.act("resync", "public.a")
            one.execute(f"UPDATE a SET id = -id WHERE id % 10 = 3; ALTER TABLE a ADD COLUMN added int {default}")
            one.execute("ALTER TABLE a RENAME COLUMN added TO renamed; UPDATE a SET renamed = 6 WHERE id % 10 = 4")
            second.await_state("public.a", "streaming", limit_seconds=120)
            second.await_complete("public.a")
            one.execute("ALTER TABLE a DROP COLUMN renamed")
        two.stop()
        one.stop()
        one.assert_equal(["public.a"])


def partitions(process: Line) -> int:
    """How many partitions the process reads."""
    return sum(p["owned"] for table in process.tables().values() for p in table["partitions"])


def states(process: Line) -> dict[str, str]:
    return {name: table["state"] for name, table in process.tables().items()}


def await_shared(one: Line, two: Line) -> None:
    one.await_that("both processes have partitions", lambda: partitions(one) and partitions(two), 90)


def await_owned(one: Line) -> None:
    one.await_that("one process has all partitions", lambda: partitions(one) == 3 * len(one.tables()) > 0, 90)
