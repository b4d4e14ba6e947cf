"""What a pipeline of many tables costs while nothing happens: processor time of the service over a while in which no table changes.

Run: python -m tests.bench.idle (--tables 1000 --seconds 60 --destination duckdb). Writes bench/results/idle.json and prints its line.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from deploy.local.stack import Stack
from tests.bench.measure import cpu_seconds, family
from tests.support.line import Line, database, line

RESULTS = Path(__file__).parents[2] / "bench" / "results" / "idle.json"
COLUMNS = "id bigint PRIMARY KEY, a text, b int, c numeric(10,2), d timestamptz, e date, f text, g boolean, h varchar(20), i jsonb"
START_SECONDS = 900.0


def counted(pipeline: Line) -> bool:
    """Whether the work that follows the first load is done too."""
    return all(table.get("rows") == 1 for table in pipeline.tables().values())


def measure(stack: Stack, folder: Path, tables: int, seconds: float, kind: str) -> dict[str, object]:
    names = [f"t_{n}" for n in range(tables)]
    with database(stack) as source, line(stack, source, folder, "public.t_*: {}", destination=kind) as pipeline:
        for at in range(0, tables, 100):
            made = (f"CREATE TABLE {name}({COLUMNS}); INSERT INTO {name}(id) VALUES (1)" for name in names[at : at + 100])
            pipeline.execute("; ".join(made))
        pipeline.register()
        pipeline.start()
        pipeline.await_complete(limit_seconds=START_SECONDS)
        pipeline.await_that(f"the rows of {tables} tables are counted", lambda: counted(pipeline), START_SECONDS)
        log = folder / "warehouse.duckdb.wal"
        pipeline.await_that("the warehouse's file, if it is one, is closed after the first load", lambda: not log.exists(), START_SECONDS)
        assert pipeline.process is not None
        pids = family(pipeline.process.pid)
        began, before = time.monotonic(), cpu_seconds(pids)
        time.sleep(seconds)
        took, used = time.monotonic() - began, cpu_seconds(pids) - before
        freshness = pipeline.query("SELECT max(freshness_seconds) AS oldest, bool_and(is_complete) AS complete FROM _cdc.table_status")
        assert freshness is not None
        found = freshness.to_pylist()[0]
        return {
            **{"arm": "idle", "destination": kind, "tables": tables, "seconds": round(took, 1), "cpu_seconds": round(used, 2)},
            **{"core_share": round(used / took, 4), "oldest_freshness_seconds": round(found["oldest"], 1), "right": found["complete"]},
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--destination", choices=("duckdb", "postgresql"), default="duckdb")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="cdc-idle-") as scratch:
        stack = Stack(Path(scratch) / "stack")
        try:
            stack.start()
            folder = Path(scratch) / "line"
            folder.mkdir()
            run = measure(stack, folder, given.tables, given.seconds, given.destination)
        finally:
            stack.stop(remove=True)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps({"runs": [run]}, indent=1))
    print(json.dumps(run))


if __name__ == "__main__":
    main()
