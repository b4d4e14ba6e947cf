"""What grows with the table and with the number of processes: the whole line's work an event at several sizes of the table, and several
processes of one consumer group into PostgreSQL, one of which may be killed meanwhile.
"""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import psycopg

from deploy.local.process import tail
from deploy.local.stack import Stack
from tests.bench.arms import LIMIT_SECONDS, ArmError, Run, Running, Sample, judge, run_service, sample
from tests.bench.destinations import DuckDbFile, PostgreSqlDatabase, destination
from tests.bench.filled import Filled, fill, prepared
from tests.bench.measure import children_cpu, cpu_seconds, family, peak_rss_mb
from tests.bench.workload import ORDERS, Changes, Workload, inserts, updates_of

GROWN = """SELECT i AS id, i % 1000 AS customer_id, 1.25 AS total, 'some text of note number ' || i AS note,
    CAST('2024-05-06T05:08:09Z' AS timestamptz) AS created_at, CAST(i % 7 AS int) AS quantity, true AS paid, {doc} AS doc,
    CAST('6f1e2d3c-0000-4000-8000-000000000001' AS uuid) AS token, 'paid' AS status, now() AS _cdc_synced_at, now() AS _cdc_source_ts,
    CAST(0 AS int) AS _cdc_partition, CAST(0 AS bigint) AS _cdc_offset, CAST(0 AS int) AS _cdc_gen, CAST(0 AS bigint) AS _cdc_commit,
    CAST(0 AS bigint) AS _cdc_record FROM generate_series({first}, {rows}) {series}"""


def grown(stack: Stack, kind: str, rows: int, count: int, folder: Path) -> Run:
    """Updates of random rows of a table that has ``rows`` already, which another way than the service filled it with."""
    workload = Workload(f"{rows / 1e6:g}M rows", ORDERS, 1, inserts)
    with prepared(stack, workload, "json", 1, 100, folder) as topic, destination(kind, stack, folder / "to") as to:
        fill(topic)  # A first hundred rows, so that the service makes the table.
        run_service(topic, to, folder / "first")
        _grow(to, rows)
        before = topic.records
        updates = updates_of(rows)(count, 1, random.Random(1))
        topic.changes = Changes(*(np.concatenate(pair) for pair in _pairs(topic.changes, updates)))
        fill(topic, start=before)
        run = run_service(topic, Grown(to, rows), folder / "grown", done=before)
        run.arm = "cdc-service, growth"
        return run


def _pairs(first: Changes, then: Changes) -> list[tuple[np.ndarray, np.ndarray]]:
    return [(first.table, then.table), (first.op, then.op), (first.id, then.id)]


class Grown:
    """Is right where the rows that changes wrote are right and no row was lost or added."""

    def __init__(self, to: DuckDbFile | PostgreSqlDatabase, rows: int) -> None:
        self.kind, self.url, self._to, self._rows = to.kind, to.url, to, rows

    def right(self, topic: Filled) -> bool:
        return self._to.rows("orders") == self._rows and self._to.right(topic, where=" WHERE _cdc_record > 0")


def _grow(to: DuckDbFile | PostgreSqlDatabase, rows: int) -> None:
    if isinstance(to, DuckDbFile):
        with duckdb.connect(str(to.path)) as warehouse:
            warehouse.execute(f"INSERT INTO public.orders BY NAME {GROWN.format(first=101, rows=rows, series='t(i)', doc=_DOC)}")
            warehouse.execute("CHECKPOINT")
        return
    with psycopg.connect(to.admin_url, autocommit=True) as connection:
        select = GROWN.format(first=101, rows=rows, series="i", doc=f"{_DOC}::jsonb")
        found = connection.execute("SELECT column_name FROM information_schema.columns WHERE table_name = 'orders'").fetchall()
        names = ", ".join(row[0] for row in found)
        connection.execute(f"INSERT INTO public.orders ({names}) SELECT {names} FROM ({select}) AS s".encode())
        connection.execute("VACUUM ANALYZE public.orders")
        connection.execute("CHECKPOINT")


_DOC = """'{"a": [1, 2], "b": 1}'"""


# Several processes


def group(topic: Filled, processes: int, folder: Path, *, kill: bool = False) -> Run:
    """``processes`` of one consumer group into one PostgreSQL database; with ``kill`` one is killed when a third is done."""
    run = Run("cdc-service, group", topic.workload.name, topic.wire, "postgresql", topic.partitions, len(topic.changes))
    run.note = f"{processes} processes" + (", one killed under load" if kill else "")
    with destination("postgresql", topic.stack, folder) as to:
        assert isinstance(to, PostgreSqlDatabase)
        members = []
        for number in range(processes):
            state = folder / f"state{number}"
            cdc = topic.config(folder / f"member{number}", to.url, state=state)
            members.append(Running(cdc, ["--log-level", "debug"], state))
        try:
            killed_at, samples, start = _watch_group(run, topic, to, members, kill=kill)
        finally:
            for member in members:
                if member.process.poll() is None:
                    member.process.terminate()
            for member in members:
                member.process.wait(30)
        judge(run, start, samples, topic.records)
        if killed_at:
            run.note += f": all was applied {samples[-1].at - killed_at:.1f} s later"
        run.right = to.right(topic)
    return run


def _watch_group(
    run: Run, topic: Filled, to: PostgreSqlDatabase, members: Sequence[Running], *, kill: bool
) -> tuple[float, list[Sample], Sample]:
    killed_at, used, samples = 0.0, 0.0, list[Sample]()
    start: Sample | None = None
    with psycopg.connect(to.admin_url, autocommit=True) as connection:
        while not samples or samples[-1].done < topic.records:
            pids = [pid for member in members for pid in family(member.process.pid)]
            if start is None:
                assigned = [at for member in members if (at := member.assigned_at()) is not None]
                start = sample(topic.stack, pids, at=min(assigned)) if assigned else None
            else:
                done = _checkpoints(connection)
                now = sample(topic.stack, pids, done)
                samples.append(replace(now, cpu=now.cpu + used))  # What one had used that was killed is still work.
                if samples[-1].at - start.at > LIMIT_SECONDS:
                    raise ArmError(f"only {done:,} of {topic.records:,} records within {LIMIT_SECONDS:.0f} s")
                if kill and not killed_at and done > topic.records / 3:
                    used = cpu_seconds(family(members[0].process.pid))
                    members[0].process.send_signal(signal.SIGKILL)
                    members[0].process.wait(20)
                    killed_at = time.time()
            dead = [m for m in members if m.process.poll() not in (None, -signal.SIGKILL)]
            if dead:
                raise ArmError(f"a process ended: {tail(dead[0].log, 10)}")
            run.peak_rss_mb = max([run.peak_rss_mb, *(peak_rss_mb([m.process.pid]) for m in members)])
            time.sleep(0.05)
    assert start is not None
    return killed_at, samples, start


def _checkpoints(connection: psycopg.Connection) -> int:
    try:
        row = connection.execute("SELECT sum(next_offset) FROM _cdc.checkpoint").fetchone()
    except psycopg.Error:
        return 0
    return int(row[0] or 0) if row else 0


# The command itself


def command(times: int = 5) -> list[Run]:
    """How long `cdc --help` and the import of the package take: the median of some, after one that warms the files."""
    runs = []
    cdc = str(Path(sys.executable).with_name("cdc"))
    for name, argv in (("cdc --help", [cdc, "--help"]), ("import cdc_service", [sys.executable, "-c", "import cdc_service"])):
        took = []
        for _ in range(times + 1):
            began, before = time.perf_counter(), children_cpu()
            subprocess.run(argv, capture_output=True, check=True, timeout=60)
            took.append((time.perf_counter() - began, children_cpu() - before))
        seconds, cpu = sorted(took[1:])[times // 2]
        note = f"{seconds * 1000:.0f} ms, {cpu * 1000:.0f} ms of CPU"
        runs.append(Run(name, "", "", "", 0, 1, round(seconds, 3), 0, round(cpu, 3), note=note))
    return runs
