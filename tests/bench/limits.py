"""The limit of writing: COPY + MERGE of batches that are folded already, into an empty table of the same columns, and nothing else.

Run by the benchmark: python -m tests.bench.limits WORKLOAD CHANGES FOLDER [URL]; without a URL into DuckDB. Prints a line of JSON.
"""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import psycopg
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as csv

from tests.bench.measure import cpu_seconds, peak_rss_mb
from tests.bench.workload import DELETE, WORKLOADS, Workload

BATCH = 100_000


def batches(workload: Workload, count: int) -> Iterator[tuple[str, int, pa.Table, pa.Table]]:
    """Table, changes, rows to write and keys to delete of each batch: the last change of each key in it."""
    changes = workload.changes(count)
    for place, table in enumerate(workload.names()):
        mine = np.flatnonzero(changes.table == place)
        for start in range(0, len(mine), BATCH):
            numbers = mine[start : start + BATCH]
            _, last = np.unique(changes.id[numbers][::-1], return_index=True)
            kept = numbers[len(numbers) - 1 - last]
            gone = changes.op[kept] == DELETE
            rows = workload.shape.rows(changes.id[kept[~gone]], kept[~gone])
            yield table, len(numbers), rows, pa.table({"id": changes.id[kept[gone]]})


def into_duckdb(workload: Workload, count: int, folder: Path) -> tuple[float, float]:
    seconds = cpu = 0.0
    shape = workload.shape
    with duckdb.connect(str(folder / "limit.duckdb")) as warehouse:
        warehouse.execute("SET timezone = 'UTC'")
        for table in workload.names():
            warehouse.execute(f"CREATE TABLE {table} ({', '.join(f'{c.name} {c.duckdb}' for c in shape.columns)})")
        typed = ", ".join(f"CAST({c.name} AS {c.duckdb}) AS {c.name}" for c in shape.columns)
        for table, _, rows, gone in batches(workload, count):
            warehouse.register("raw", rows)
            ready = warehouse.sql(f"SELECT {typed} FROM raw").to_arrow_table()
            began, cpu_before = time.perf_counter(), cpu_seconds([os.getpid()])
            warehouse.register("staged", ready)
            warehouse.register("gone", gone)
            warehouse.execute("BEGIN")
            warehouse.execute(f"DELETE FROM {table} WHERE id IN (SELECT id FROM staged UNION ALL SELECT id FROM gone)")
            warehouse.execute(f"INSERT INTO {table} SELECT * FROM staged")
            warehouse.execute("COMMIT")
            seconds += time.perf_counter() - began
            cpu += cpu_seconds([os.getpid()]) - cpu_before
    return seconds, cpu


def into_postgresql(workload: Workload, count: int, url: str) -> tuple[float, float]:
    seconds = cpu = 0.0
    shape = workload.shape
    names = [c.name for c in shape.columns]
    sets = ", ".join(f"{name} = excluded.{name}" for name in names[1:])
    with psycopg.connect(url) as connection:
        for table in workload.names():
            connection.execute(shape.create(table).encode())
        columns = ", ".join(f"{c.name} {c.sql}" for c in shape.columns)
        connection.execute(f"CREATE TEMPORARY TABLE staged ({columns}) ON COMMIT DELETE ROWS".encode())
        connection.execute(b"CREATE TEMPORARY TABLE gone (id bigint) ON COMMIT DELETE ROWS")
        connection.commit()
        for table, _, rows, gone in batches(workload, count):
            ready = {"staged": _csv(rows), "gone": _csv(gone)}
            began, cpu_before = time.perf_counter(), cpu_seconds([os.getpid()])
            with connection.transaction(), connection.cursor() as cursor:
                for name, content in ready.items():
                    with cursor.copy(f"COPY {name} FROM STDIN (FORMAT csv)".encode()) as copied:
                        copied.write(content)
                cursor.execute(f"DELETE FROM {table} USING gone WHERE {table}.id = gone.id".encode())
                cursor.execute(f"INSERT INTO {table} SELECT * FROM staged ON CONFLICT (id) DO UPDATE SET {sets}".encode())
            seconds += time.perf_counter() - began
            cpu += cpu_seconds([os.getpid()]) - cpu_before
    return seconds, cpu


def _csv(rows: pa.Table) -> bytes:
    for place, column in enumerate(rows.columns):
        if pa.types.is_boolean(column.type):
            rows = rows.set_column(place, rows.column_names[place], pc.cast(column, pa.string()))
    out = io.BytesIO()
    csv.write_csv(rows, out, csv.WriteOptions(include_header=False))
    return out.getvalue()


def main(name: str, count: int, folder: Path, url: str | None) -> None:
    workload = WORKLOADS[name]
    seconds, cpu = into_duckdb(workload, count, folder) if url is None else into_postgresql(workload, count, url)
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu, "peak_rss_mb": peak_rss_mb([os.getpid()])}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4] if len(sys.argv) > 4 else None)
