"""Merge speed: seconds per batch of random keys into tables of growing size. The time should depend on the batch, not on the table.

Run: python -m tests.bench.bench_merge [URL] [ROWS_IN_TABLE ...]. Without a URL it measures DuckDB in a temporary file; with one of an empty
PostgreSQL database it measures the three ways to replace rows there, and then whole merges.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Sequence

import numpy as np
import psycopg
import pyarrow as pa

from cdc_service.core.evolve import evolve
from cdc_service.core.keys import key_text
from cdc_service.core.logical import Kind, LogicalType, decimal
from cdc_service.core.types import BASE, Base, Column, Delta, LogId, Mode, Op, Span, TableId, TableSchema, Target
from cdc_service.ports.destination import Destination
from mergers.destinations import open_destination

ORDERS = TableSchema(
    TableId("public", "orders"),
    (
        Column("id", LogicalType(Kind.INT64)),
        Column("customer_id", LogicalType(Kind.INT64)),
        Column("total", decimal(12, 2)),
        Column("note", LogicalType(Kind.STRING)),
        Column("created_at", LogicalType(Kind.TIMESTAMPTZ)),
        Column("quantity", LogicalType(Kind.INT32)),
        Column("paid", LogicalType(Kind.BOOL)),
        Column("doc", LogicalType(Kind.JSON)),
        Column("token", LogicalType(Kind.UUID)),
        Column("status", LogicalType(Kind.STRING)),
    ),
    ("id",),
)
LOG = LogId("bench", "bench", "bench")


def delta(target: Target, ids: np.ndarray, start: int, record: int, op: Op, unsent: bool) -> Delta:
    rows = len(ids)
    numbers = pa.array(ids)
    text = numbers.cast(pa.string())
    data = {
        "id": numbers,
        "customer_id": pa.array(ids % 1000),
        "total": pa.array(ids % 9999).cast(pa.decimal128(19, 0)).cast(pa.decimal128(12, 2)),
        "note": pa.nulls(rows, pa.string()) if unsent else pa.compute.binary_join_element_wise("some text of note number", text, " "),
        "created_at": pa.array(ids * 1_000_000).cast(pa.timestamp("us", tz="UTC")),
        "quantity": pa.array((ids % 7).astype(np.int32)),
        "paid": pa.array(ids % 2 == 0),
        "doc": pa.compute.binary_join_element_wise('{"a": [1, 2], "b":', text, "}", " "),
        "token": pa.repeat("6f1e2d3c-0000-4000-8000-000000000001", rows),
        "status": pa.repeat("paid", rows),
    }
    meta = {
        "op": np.full(rows, op, np.int8),
        "partition": np.zeros(rows, np.int32),
        "offset": np.arange(start, start + rows),
        "commit": np.arange(record, record + rows),
        "record": np.arange(record, record + rows),
        "minor": np.zeros(rows, np.int64),
        "source_us": np.full(rows, 1_700_000_000_000_000),
        "index": np.arange(rows),
        "gen": np.zeros(rows, np.int32),
    }
    keys = pa.table({"id": numbers})
    flags = {"key": key_text(keys), "moved": pa.array(np.zeros(rows, np.bool_))}
    none, zero = pa.nulls(rows, pa.int64()), pa.array(meta["minor"])
    about = pa.table([flags["key"], none, pa.array(meta["record"]), pa.nulls(rows, pa.int32()), none, zero, zero], schema=BASE)
    missing = {"unsent": pa.table({"note": pa.array(np.ones(rows, np.bool_))}), "base": Base(keys, about)}
    return Delta(
        batch_id=f"b{start}",
        target=target,
        schema=ORDERS,
        data=pa.table(data, schema=ORDERS.arrow),
        meta=pa.table({**{name: pa.array(values) for name, values in meta.items()}, **flags}),
        spans=(Span(0, start, start + rows, rows),),
        counts={},
        **(missing if unsent else {}),
    )


def bench(destination: Destination, table_rows: int, batches: Sequence[tuple[int, bool]], mode: Mode) -> None:
    target = Target(ORDERS.table, "public", f"orders_{table_rows}_{mode}", mode)
    destination.evolve(target, *evolve((), ORDERS))
    epochs = {c.partition: c.epoch for c in destination.claim(target, LOG, {0: 0})}
    own = destination.schemas(target)[-1]
    at, cpu = 0, 0.0

    def merge(ids: np.ndarray, op: Op, unsent: bool = False) -> float:
        nonlocal at, cpu
        change = delta(target, ids, at, at + 1, op, unsent)
        begun, used = time.perf_counter(), time.process_time()
        destination.merge(change, epochs, LOG, own)
        at += len(ids)
        cpu = (time.process_time() - used) / len(ids) * 1e6
        return time.perf_counter() - begun

    random = np.random.default_rng(1)
    load = sum(merge(part, Op.READ) for part in np.array_split(np.arange(table_rows), max(1, table_rows // 100_000)))
    print(f"{mode:12} {table_rows:>9} rows loaded in {load:.2f} s", flush=True)
    for size, unsent in batches:
        runs, used = [], []
        for _ in range(5):
            runs.append(merge(random.choice(table_rows, size, replace=False), Op.UPDATE, unsent))
            used.append(cpu)
        name = f"{size} updates" + (", one column unsent" if unsent else "")
        times = f"median {statistics.median(runs):.3f} s, worst {max(runs):.3f} s, CPU {statistics.median(used):.2f} us/event"
        print(f"{mode:12} {table_rows:>9} rows: {name:36} {times}", flush=True)
    deletes = merge(random.choice(table_rows, 20_000, replace=False), Op.DELETE)
    print(f"{mode:12} {table_rows:>9} rows: {'20000 deletes':36} {deletes:.3f} s", flush=True)


_COLUMNS = "id BIGINT, customer BIGINT, total NUMERIC(12, 2), note TEXT, at TIMESTAMPTZ, paid BOOLEAN, doc JSON, gen INT, rec BIGINT"
_VALUES = """SELECT i, i % 1000, i % 9999 / 100.0, 'some text of note number ' || i, to_timestamp(i), i % 2 = 0,
  CAST('{"a": [1, 2], "b": ' || i || '}' AS JSON), 0, $1"""
_NAMES = [part.split()[0] for part in _COLUMNS.replace("(12, 2)", "").split(",")]
_SETS = ", ".join(f"{name} = {{0}}.{name}" for name in _NAMES)
WAYS = {
    "delete + insert": ["DELETE FROM ways AS t USING staged AS s WHERE t.id = s.id", "INSERT INTO ways SELECT * FROM staged"],
    "ON CONFLICT": [f"INSERT INTO ways SELECT * FROM staged ON CONFLICT (id) DO UPDATE SET {_SETS.format('excluded')}"],
    "MERGE": [
        f"""MERGE INTO ways AS t USING staged AS s ON t.id = s.id WHEN MATCHED THEN UPDATE SET {_SETS.format("s")}
WHEN NOT MATCHED THEN INSERT VALUES ({", ".join(f"s.{name}" for name in _NAMES)})"""
    ],
}


def ways(url: str, rows: int) -> None:
    """PostgreSQL: rows of a table with a primary key replaced by staged ones, after the guard by version that each way needs."""
    random = np.random.default_rng(1)
    guard = "DELETE FROM staged AS s USING ways AS t WHERE t.id = s.id AND (t.gen > s.gen OR t.gen = s.gen AND t.rec >= s.rec)"
    with psycopg.connect(url, autocommit=True, cursor_factory=psycopg.RawCursor, prepare_threshold=None) as c:
        c.execute("SET work_mem = '64MB'; SET jit = off; SET random_page_cost = 1.1")
        c.execute(f"CREATE TEMPORARY TABLE staged ({_COLUMNS}) ON COMMIT DELETE ROWS")
        for name, statements in WAYS.items():
            c.execute(f"DROP TABLE IF EXISTS ways; CREATE TABLE ways ({_COLUMNS}, PRIMARY KEY (id))")
            c.execute(f"INSERT INTO ways {_VALUES} FROM generate_series(0, {rows - 1}) AS i", [0])
            c.execute("VACUUM ANALYZE ways")
            for size in (10, 1000, 20_000, 100_000):
                runs = []
                for n in range(7):
                    with c.transaction():
                        ids = random.choice(rows, size, replace=False).tolist()
                        c.execute(f"INSERT INTO staged {_VALUES} FROM unnest(CAST($2 AS BIGINT[])) AS i", [size + n, ids])
                        begun = time.perf_counter()
                        for sql in (guard, *statements):
                            c.execute(sql.encode())
                        runs.append(time.perf_counter() - begun)
                found = c.execute("SELECT pg_total_relation_size('ways') / 1000000").fetchone()
                print(f"{name:16} {rows} rows: {size:6} changes: median {statistics.median(runs):.4f} s; then {found} MB", flush=True)
        c.execute("DROP TABLE ways")


def main(url: str, sizes: Sequence[int]) -> None:
    with tempfile.TemporaryDirectory(prefix="cdc-bench-") as folder:
        if url:
            ways(url, max(sizes))
        destination = open_destination(url or f"duckdb:///{folder}/bench.duckdb", pipeline="bench")
        destination.prepare()
        for mode in (Mode.UPSERT, Mode.SOFT_DELETE):
            for rows in sizes:
                bench(destination, rows, ((10, False), (1000, False), (20_000, False), (20_000, True), (min(rows, 100_000), False)), mode)
        destination.close()


if __name__ == "__main__":
    given = [text for text in sys.argv[1:] if text.isdigit()]
    main(next((text for text in sys.argv[1:] if not text.isdigit()), ""), [int(text) for text in given] or [100_000, 2_000_000])
