"""How long `cdc reconcile` takes over many small tables: the command as a user runs it, beside a running service and without one.

Run: python -m tests.bench.many_tables (--tables 66 200 --destinations duckdb postgresql --rounds 1). Writes
bench/results/many-tables.json and prints its lines. CDC_STACK_DIR keeps a stack over several runs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from deploy.local.stack import Stack
from tests.support.line import Line, database, line

RESULTS = Path(__file__).parents[2] / "bench" / "results" / "many-tables.json"
COLUMNS = "id bigint PRIMARY KEY, a text, b int, c numeric(10,2), d timestamptz, e date, f float8, g boolean, h varchar(20), i jsonb"
ROWS = 35
FILL = f"""SELECT g, 'text ' || g, g % 7, g / 100.0, now(), '2024-01-01', random(), g % 2 = 0, 'new', jsonb_build_object('a', g)
FROM generate_series(1, {ROWS}) g"""
START_SECONDS = 900.0


def measure(stack: Stack, folder: Path, tables: int, kind: str, rounds: int) -> Iterator[dict[str, object]]:
    names = [f"t_{n}" for n in range(tables)]
    with database(stack) as source, line(stack, source, folder, "public.t_*: {}", destination=kind) as pipeline:
        for at in range(0, tables, 100):
            pipeline.execute("; ".join(f"CREATE TABLE {name}({COLUMNS}); INSERT INTO {name} {FILL}" for name in names[at : at + 100]))
        pipeline.register()
        pipeline.start()
        pipeline.await_complete(limit_seconds=START_SECONDS)
        yield from (compared(pipeline, tables, kind, beside=True) for _ in range(rounds))
        pipeline.stop()
        yield from (compared(pipeline, tables, kind, beside=False) for _ in range(rounds))


def compared(pipeline: Line, tables: int, kind: str, *, beside: bool) -> dict[str, object]:
    """One run of the command over all tables."""
    began, cdc = time.monotonic(), pipeline.cdc
    said = subprocess.run(cdc.argv("reconcile", "--json"), env=cdc.env, stdout=subprocess.PIPE, timeout=START_SECONDS, check=False).stdout
    took, document = time.monotonic() - began, json.loads(said)
    found = document["tables"]
    return {
        **{"arm": "many tables", "destination": kind, "tables": tables, "service": beside, "seconds": round(took, 1)},
        **{"fences": dict(Counter(t["fence"] for t in found)), "positions": len({t["as_of"]["source"] for t in found})},
        "right": document["status"] == "match" and [t["rows"]["source"] for t in found] == [ROWS] * tables,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=int, nargs="+", default=[66, 200])
    parser.add_argument("--destinations", nargs="+", choices=("duckdb", "postgresql"), default=["duckdb", "postgresql"])
    parser.add_argument("--rounds", type=int, default=1)
    given = parser.parse_args()
    runs, kept = list[dict[str, object]](), os.environ.get("CDC_STACK_DIR")
    with tempfile.TemporaryDirectory(prefix="cdc-many-") as scratch:
        stack = Stack(Path(kept) if kept else Path(scratch) / "stack")
        try:
            stack.start()
            for kind in given.destinations:
                for tables in given.tables:
                    folder = Path(scratch) / f"{kind}-{tables}"
                    folder.mkdir()
                    for run in measure(stack, folder, tables, kind, given.rounds):
                        print(json.dumps(run), flush=True)
                        runs.append(run)
        finally:
            if not kept:
                stack.stop(remove=True)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps({"runs": runs}, indent=1))


if __name__ == "__main__":
    main()
