"""Reconciliation beside reladiff in one run: the same two tables (PostgreSQL, DuckDB), identical and with scattered differences.

Run: make bench-reconcile (ROWS=2000000 ROUNDS=3). Each arm is a process of its own that times the comparison, from opening the databases to
the last difference, without its imports. The machine's loopback counts the bytes and PostgreSQL's log the statements, for all arms alike.
reladiff (https://pypi.org/project/reladiff) has an environment of its own and is spared the column of doubles, in which it finds
differences where there are none; its best time of several thread counts is what counts. The result is bench/results/bench-reconcile.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import psycopg

from cdc_service.core.evolve import CreateTable
from cdc_service.core.logical import Kind, LogicalType, decimal
from cdc_service.core.types import Column, TableId, TableSchema, Target
from connectors.sources import open_source
from deploy.local.stack import Stack
from mergers.destinations.duckdb import DuckDb
from mergers.destinations.duckdb import open as open_duckdb
from reconcile.run import Options
from tests.support.still import compare_still

TABLE = TableId("public", "orders")
TARGET = Target(TABLE, "public", "orders")
KINDS = {
    "id": LogicalType(Kind.INT64),
    "customer_id": LogicalType(Kind.INT64),
    "quantity": LogicalType(Kind.INT32),
    "total": decimal(12, 2),
    "weight": LogicalType(Kind.FLOAT64),
    "note": LogicalType(Kind.STRING),
    "status": LogicalType(Kind.STRING),
    "paid": LogicalType(Kind.BOOL),
    "created_at": LogicalType(Kind.TIMESTAMPTZ),
    "token": LogicalType(Kind.UUID),
}
SCHEMA = TableSchema(TABLE, tuple(Column(name, type_) for name, type_ in KINDS.items()), ("id",))
SOURCE = """CREATE TABLE orders (id bigint PRIMARY KEY, customer_id bigint, quantity int, total numeric(12,2), weight float8, note text,
    status varchar(20), paid bool, created_at timestamptz, token uuid);
INSERT INTO orders SELECT i, i % 1000, i % 7, (i % 999999) / 100.0, CASE WHEN i % 50 > 0 THEN random() * 1e6 END,
    CASE WHEN i % 20 > 0 THEN 'some text of note number ' || i END, (ARRAY['new', 'paid', 'sent'])[1 + i % 3], i % 2 = 0,
    '2024-01-01'::timestamptz + i * interval '1.000001 second', gen_random_uuid() FROM generate_series(1, {rows}) i"""
DIFFERENCES = 101
CHANGES = (
    "UPDATE public.orders SET note = coalesce(note, '') || ' ' WHERE id = {}",
    "UPDATE public.orders SET quantity = quantity + 1 WHERE id = {}",
    "UPDATE public.orders SET total = NULL WHERE id = {}",
    "UPDATE public.orders SET created_at = created_at + INTERVAL 1 MICROSECOND WHERE id = {}",
    "DELETE FROM public.orders WHERE id = {}",
    "INSERT INTO public.orders SELECT * REPLACE (id + {rows} AS id) FROM public.orders WHERE id = {}",
    "UPDATE public.orders SET paid = NOT paid, status = 'Paid' WHERE id = {}",
)
WAREHOUSE_MEMORY = "200MB"
"""What DuckDB may keep of the warehouse's file; any large read fills it."""
THREADS = ("1", "2", "4")


@dataclass
class Result:
    """One process. ``differences`` are the keys that it told, ``right`` whether these are those that were planted."""

    arm: str
    case: str
    rows: int
    seconds: float
    queries_source: int
    bytes_source: int
    peak_rss_mb: int
    differences: int
    right: bool


def open_warehouse(file: Path) -> DuckDb:
    return open_duckdb(f"duckdb:///{file}", pipeline="bench", meta_schema="_cdc", options={"memory_limit": WAREHOUSE_MEMORY})


def fill(url: str, file: Path, rows: int) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(SOURCE.format(rows=rows).encode())
        connection.execute("VACUUM (ANALYZE, FREEZE) orders")
    destination, source = open_warehouse(file), open_source(url)
    destination.prepare()
    destination.evolve(TARGET, [CreateTable(SCHEMA)], SCHEMA)
    raw = destination.connection().raw
    with source.scan(TABLE) as scan:
        for batch in scan.rows(SCHEMA.columns):
            raw.register("came", batch)
            names = ", ".join(KINDS)
            raw.execute(f"INSERT INTO public.orders ({names}, _cdc_partition, _cdc_offset) SELECT {names}, 0, 0 FROM came")
            raw.unregister("came")
    raw.execute("CHECKPOINT")
    destination.close()
    source.close()


def plant(file: Path, rows: int) -> set[int]:
    """The keys that differ afterwards."""
    destination = open_warehouse(file)
    raw, keys = destination.connection().raw, set[int]()
    for number in range(DIFFERENCES):
        key = (number * 7_919 * 2_503) % rows + 1
        change = CHANGES[number % len(CHANGES)]
        raw.execute(change.format(key, rows=rows))
        keys.add(key + rows if change.startswith("INSERT") else key)
    raw.execute("CHECKPOINT")
    destination.close()
    return keys


def child(mode: str, url: str, file: Path, rows: int) -> None:
    """One comparison of ours; prints its seconds and the keys that differ."""
    began = time.monotonic()
    destination, source = open_warehouse(file), open_source(url)
    report = compare_still(source, destination, TARGET, SCHEMA, Options(mode=mode, differences_max=10_000), rows)
    seconds, keys = time.monotonic() - began, [int(d.key["id"] or 0) for d in report.differences]
    print(json.dumps({"seconds": seconds, "keys": keys, "method": report.method, "localized": report.buckets.localized}))


def ours(mode: str, url: str, file: Path, rows: int) -> list[str]:
    return [sys.executable, "-m", "tests.bench.bench_reconcile", "--child", mode, url, str(file), str(rows)]


def reladiff(python: str, threads: str, url: str, file: Path) -> list[str]:
    columns = [name for name in KINDS if name not in ("id", "weight")]
    return [python, str(Path(__file__).with_name("reladiff_once.py")), url, str(file), threads, "id", *columns]


def loopback() -> int:
    found = re.search(r"lo:\s*(\d+)", Path("/proc/net/dev").read_text())
    return int(found[1]) if found else 0


def memory(pid: int) -> int:
    """The peak of a process, in MB; 0 once it is gone."""
    try:
        found = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) // 1024 if found else 0


def statements(log: Path) -> int:
    return len(re.findall(r"LOG:  (?:statement|execute)", log.read_text(errors="replace")))


def measure(arm: str, case: str, rows: int, log: Path, wanted: set[int], command: Sequence[str]) -> Result:
    asked, moved, peak = statements(log), loopback(), 0
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        while process.poll() is None:
            peak = max(peak, memory(process.pid))
            time.sleep(0.02)
        output.seek(0)
        said = output.read()
    if process.returncode != 0:
        raise SystemExit(f"{arm} failed:\n{said[-4000:]}")
    told = json.loads(said.splitlines()[-1])
    seconds, keys = told["seconds"], set(told["keys"])
    result = Result(arm, case, rows, round(seconds, 2), statements(log) - asked, loopback() - moved, peak, len(keys), keys == wanted)
    print(
        f"{arm:12} {case:12} {result.seconds:8.2f} s {result.queries_source:6} statements {result.bytes_source / 1e6:8.1f} MB"
        f" {result.peak_rss_mb:5} MB memory {result.differences:5} differences{'' if result.right else ', NOT those that were planted'}",
        flush=True,
    )
    return result


def bench(rows: int, rounds: int, program: str | None, modes: Sequence[str]) -> list[Result]:
    with tempfile.TemporaryDirectory(prefix="cdc-bench-") as text:
        folder = Path(text)
        stack = Stack(folder / "stack")
        with stack.guarded(remove=True):
            stack.start(["postgres"])
            url = stack.create_database("bench")
            print(f"making {rows:,} rows of {len(KINDS)} columns in PostgreSQL and in DuckDB", flush=True)
            same, other = folder / "same.duckdb", folder / "other.duckdb"
            fill(url, same, rows)
            shutil.copy(same, other)
            planted = plant(other, rows)
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute("ALTER DATABASE bench SET log_statement = 'all'")
            log = stack.daemon("postgres").log
            results = []
            for _ in range(rounds):
                for case, file, wanted in (("identical", same, set[int]()), ("differences", other, planted)):
                    results += [measure(m, case, rows, log, wanted, ours(m, url, file, rows)) for m in modes]
                    for threads in THREADS if program else ():
                        arm = f"reladiff -j{threads}"
                        results.append(measure(arm, case, rows, log, wanted, reladiff(str(program), threads, url, file)))
            return results


def summary(results: Sequence[Result]) -> list[str]:
    """Median of each arm, and ours against the best time of the other."""
    lines = []
    for case in ("identical", "differences"):
        best = min((r.seconds for r in results if r.case == case and r.arm.startswith("reladiff")), default=None)
        for arm in dict.fromkeys(r.arm for r in results):
            times = sorted(r.seconds for r in results if (r.arm, r.case) == (arm, case))
            median = times[len(times) // 2]
            ratio = f"{median / best:6.2f} of reladiff's best" if best and not arm.startswith("reladiff") else ""
            lines.append(f"{case:12} {arm:12} median {median:7.2f} s ({times[0]:.2f} to {times[-1]:.2f}) {ratio}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--reladiff", help="a Python that has it; without only ours is measured")
    parser.add_argument("--modes", default="stream,pushdown")
    parser.add_argument("--output", type=Path, default=Path("bench/results/bench-reconcile.json"))
    parser.add_argument("--child", nargs=4, metavar=("MODE", "URL", "FILE", "ROWS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        mode, url, file, rows = options.child
        child(mode, url, Path(file), int(rows))
        return
    results = bench(options.rows, options.rounds, options.reladiff, options.modes.split(","))
    print("\n".join(summary(results)))
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    machine = f"{platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    options.output.parent.mkdir(parents=True, exist_ok=True)
    document = {"commit": commit, "at": datetime.now(UTC).isoformat(), "machine": machine, "runs": [asdict(r) for r in results]}
    options.output.write_text(json.dumps(document, indent=1))
    print(f"written: {options.output}")


if __name__ == "__main__":
    main()
