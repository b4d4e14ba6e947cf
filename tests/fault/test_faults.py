"""Faults of the log, of the server and of the warehouse, one after another on the real stack: the named behaviour, and nothing lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient, NewPartitions

from deploy.local.process import StackError
from deploy.local.stack import Stack
from tests.conftest import PgDatabase
from tests.support.line import Line, line
from tests.support.warehouses import DuckDbFile

TABLE = "CREATE TABLE a(id int PRIMARY KEY, v text); INSERT INTO a SELECT g, 'first' FROM generate_series(1, 300) g"
CHANGES = "UPDATE a SET v = v || '.' WHERE id % 3 = 0; DELETE FROM a WHERE id % 50 = 7; UPDATE a SET id = -id WHERE id % 40 = 9"


@contextmanager
def running(stack: Stack, database: PgDatabase, folder: Path, *, options: str = "", destination: str = "duckdb") -> Iterator[Line]:
    """A pipeline of one table of 300 rows, loaded and streaming."""
    with line(stack, database, folder, "public.a: {}", options=options, destination=destination) as pipeline:
        pipeline.execute(TABLE)
        pipeline.register()
        pipeline.start()
        pipeline.await_complete("public.a")
        yield pipeline


def end_equal(pipeline: Line) -> None:
    pipeline.await_complete("public.a")
    pipeline.stop()
    pipeline.assert_equal(["public.a"])


def test_offset_out_of_range_needs_a_resync_which_cures_it(stack: Stack, pg_database: PgDatabase, tmp_path: Path) -> None:
    """I17: retention went past the checkpoint. Nothing is skipped in silence."""
    with running(stack, pg_database, tmp_path) as pipeline:
        pipeline.stop()
        pipeline.execute(CHANGES)
        topic = f"{pg_database.name}.public.a"
        before = pipeline.rows("SELECT SUM(next_offset) FROM _cdc.checkpoint")[0][0]
        pipeline.await_that("the changes in Kafka", lambda: ends(pipeline, topic) >= before + 100, 60, alive=False)
        admin = AdminClient({"bootstrap.servers": stack.kafka})
        for future in admin.delete_records([TopicPartition(topic, p, -1) for p in range(3)]).values():
            future.result(20)
        pipeline.start()
        found = pipeline.await_state("public.a", "needs_resync")
        assert "cdc resync" in found["error"]["hint"]
        pipeline.act("resync", "public.a")
        pipeline.await_state("public.a", "streaming", limit_seconds=120)
        end_equal(pipeline)


def ends(pipeline: Line, topic: str) -> int:
    return sum(high for _, high in pipeline.kafka.describe([topic])[topic].ends.values())


def parts(pipeline: Line) -> int:
    return len(pipeline.tables().get("public.a", {}).get("partitions", ()))


def test_partitions_added_apply_no_key_out_of_order(stack: Stack, pg_database: PgDatabase, tmp_path: Path) -> None:
    """I4: a key moves to another partition, where its later changes may be read before the earlier ones."""
    with running(stack, pg_database, tmp_path) as pipeline:
        topic = f"{pg_database.name}.public.a"
        admin = AdminClient({"bootstrap.servers": stack.kafka})
        admin.create_partitions([NewPartitions(topic, 7)])[topic].result(20)
        pipeline.execute(CHANGES)
        stack.restart("connect")  # Its producer notices new partitions after minutes otherwise.
        for turn in range(5):
            new = f"INSERT INTO a SELECT {turn} * 1000 + g, 'new' FROM generate_series(500, 600) g"
            pipeline.execute(f"UPDATE a SET v = 'turn {turn}' WHERE id % 2 = 0; {new}")
        pipeline.await_complete("public.a")
        written = {p for p, (_, high) in pipeline.kafka.describe([topic])[topic].ends.items() if high}
        assert written == set(range(7)), "no key moved, so nothing was tried"
        pipeline.await_that("all partitions are read", lambda: parts(pipeline) == 7, 60)
        end_equal(pipeline)
        pipeline.assert_ledger(["public.a"])


def test_partitions_added_while_the_service_restarts_are_read(stack: Stack, pg_database: PgDatabase, tmp_path: Path) -> None:
    """I24: a member that comes back within its session is given its old share, of before they were added."""
    with running(stack, pg_database, tmp_path) as pipeline:
        pipeline.stop()
        topic = f"{pg_database.name}.public.a"
        admin = AdminClient({"bootstrap.servers": stack.kafka})
        admin.create_partitions([NewPartitions(topic, 7)])[topic].result(20)
        pipeline.start()
        pipeline.await_that("all partitions are read", lambda: parts(pipeline) == 7, 60)
        pipeline.execute(CHANGES)
        end_equal(pipeline)
        pipeline.assert_ledger(["public.a"])


def test_a_warehouse_restored_from_a_backup_replays_from_its_checkpoint(stack: Stack, pg_database: PgDatabase, tmp_path: Path) -> None:
    """I1, I16: rows and checkpoint came back together, so what followed is applied again."""
    with running(stack, pg_database, tmp_path) as pipeline:
        assert isinstance(pipeline.warehouse, DuckDbFile)
        pipeline.stop()
        backup = tmp_path / "backup"
        shutil.copyfile(pipeline.warehouse.path, backup)
        pipeline.start()
        pipeline.execute(CHANGES)
        pipeline.await_complete("public.a")
        pipeline.stop()
        for left in tmp_path.glob("warehouse.duckdb*"):
            left.unlink()
        shutil.copyfile(backup, pipeline.warehouse.path)
        pipeline.start()
        pipeline.execute("INSERT INTO a VALUES (9000, 'after the backup')")
        end_equal(pipeline)
        pipeline.assert_ledger(["public.a"])


def test_slot_lost_stops_nothing_in_silence_and_a_resync_cures_it(stack: Stack, pg_database: PgDatabase, tmp_path: Path) -> None:
    """I26: what was written while nothing held the log is never streamed; status and check say so, registering anew and a resync cure."""
    slot = f"cdc_{pg_database.name}"
    with running(stack, pg_database, tmp_path) as pipeline:
        stack.kill("connect")
        with psycopg.connect(pg_database.url, autocommit=True) as owner:
            owner.execute("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = %s AND active", [slot])
            gone = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = %s AND active"
            pipeline.await_that("the slot is free", lambda: owner.execute(gone, [slot]).fetchone() == (0,), 30)
            owner.execute("SELECT pg_drop_replication_slot(%s)", [slot])
        pipeline.execute(CHANGES)
        stack.start(["connect"])
        findings = pipeline.call("check", accept=(0, 1))
        assert "slot" in str(findings)
        pipeline.call("register", "--delete", "--yes", accept=(0, 4))  # The owner drops what is left, or leaves it.
        pipeline.register()
        pipeline.await_that("the new connector is noticed", lambda: asks_for_resync(pipeline), 120)
        if pipeline.tables()["public.a"]["state"] == "needs_resync":
            pipeline.act("resync", "public.a")
        pipeline.await_state("public.a", "streaming", limit_seconds=120)
        end_equal(pipeline)


def asks_for_resync(pipeline: Line) -> bool:
    return pipeline.tables().get("public.a", {}).get("state") in ("needs_resync", "snapshotting")


def test_a_member_that_the_broker_ended_joins_anew(stack: Stack, pg_database: PgDatabase, tmp_path: Path) -> None:
    """Another member of the same name is what a broker that was killed may take an earlier one for."""
    with line(stack, pg_database, tmp_path, "public.a: {}") as pipeline:
        pipeline.execute("CREATE TABLE a(id int PRIMARY KEY); INSERT INTO a VALUES (1)")
        pipeline.register()
        pipeline.start()
        pipeline.await_complete()
        group = f"cdc_{pg_database.name}"
        (member,) = pipeline.kafka.members(group)
        named = {"group.id": group, "group.instance.id": member, "partition.assignment.strategy": "cooperative-sticky"}
        other = Consumer({"bootstrap.servers": stack.kafka, **named, "session.timeout.ms": 6000, "enable.auto.commit": False})
        other.subscribe([f"{pg_database.name}.public.a"])

        def ended() -> bool:
            other.poll(0.2)
            return "joins anew" in pipeline.log.read_text()

        pipeline.await_that("the service's member was ended and joins anew", ended, 60)
        other.close()
        pipeline.execute("INSERT INTO a VALUES (2)")
        pipeline.await_complete(limit_seconds=90)
        pipeline.stop()
        pipeline.assert_equal(["public.a"])


def test_sigterm_ends_the_service_while_all_its_servers_are_away(stack: Stack, pg_database: PgDatabase, tmp_path: Path) -> None:
    with running(stack, pg_database, tmp_path) as pipeline:
        pipeline.execute(CHANGES)
        for part in ("kafka", "connect", "postgres"):
            stack.kill(part)
        pipeline.stop()
        stack.start()
        pipeline.start()
        end_equal(pipeline)


def test_a_source_that_went_back_in_its_log_stops_the_tables_and_the_cure_heals(
    stack: Stack, pg_database: PgDatabase, tmp_path: Path
) -> None:
    """Restored with its slot, it would go on where nobody listens: what it commits up to the connector's position is never sent."""
    data, kept = stack.postgres_data, tmp_path / "kept"
    with running(stack, pg_database, tmp_path) as pipeline:
        stack.stop(["postgres"])
        subprocess.run(["cp", "-a", str(data), str(kept)], check=True)
        stack.start()
        pipeline.execute(CHANGES)
        pipeline.await_complete("public.a")
        stack.stop(["postgres"])
        shutil.rmtree(data)
        subprocess.run(["cp", "-a", str(kept), str(data)], check=True)
        stack.start()
        pipeline.execute("INSERT INTO a VALUES (5000, 'in the gap')")
        found = pipeline.await_state("public.a", "error")
        assert found["error"]["code"] == "source_went_back"
        assert found["error"]["hint"].splitlines() == ["cdc register --delete", "cdc register", "cdc resync public.a"]
        with pytest.raises(StackError, match="needs_ddl") as left:
            pipeline.call("register", "--delete", "--yes")
        said = str(left.value)
        pipeline.execute(json.loads(said[said.index("{") :])["error"]["hint"])
        pipeline.register()
        pipeline.act("resync", "public.a")  # Which waits while the service opens all anew.
        pipeline.await_state("public.a", "streaming", limit_seconds=120)
        end_equal(pipeline)


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a small disk")
def test_disk_full_rolls_back_waits_and_goes_on(stack: Stack, pg_database: PgDatabase, tmp_path: Path) -> None:
    """I12, I24: nothing of the batch is there, the checkpoint is consistent, and with space it goes on by itself."""
    with small_disk(tmp_path / "disk", "6m") as disk, line(stack, pg_database, disk, "public.a: {}", destination="duckdb") as pipeline:
        pipeline.log = tmp_path / "service.log"
        pipeline.execute(TABLE)
        pipeline.register()
        pipeline.start()
        pipeline.await_complete("public.a")
        long = "SELECT string_agg(md5((g * n)::text), '') FROM generate_series(1, 30) n"
        pipeline.execute(f"INSERT INTO a SELECT g, ({long}) FROM generate_series(1000, 12000) g")
        pipeline.await_that("the table waits", lambda: "waiting" in pipeline.log.read_text() and "disk" in pipeline.log.read_text(), 90)
        subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
        end_equal(pipeline)
        pipeline.assert_ledger(["public.a"])
