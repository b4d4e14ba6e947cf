"""The benchmarks still run: tiny ones on the real stack, whose end states are compared row for row, and the page that they write."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from deploy.local.stack import Stack
from tests.bench import bench, page
from tests.bench.wire import Gap, learn
from tests.bench.workload import DELETE, INSERT, UPDATE, WORKLOADS
from tests.support import recorded


def test_a_tiny_benchmark_runs_and_every_arm_ends_right(stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CDC_STACK_DIR", str(stack.dir))
    out = tmp_path / "bench.json"
    arms = "plain,duckdb,postgresql,limit-duckdb,limit-postgresql,command"
    bench.main(["--arms", arms, "-n", "1500", "--workloads", "mixed1", "--wires", "json", "--sizes", "", "--out", str(out)])
    document = json.loads(out.read_text())
    runs = document["runs"]
    assert set(document) == {"commit", "at", "machine", "runs"}
    assert [run["note"] for run in runs if run["note"].startswith("failed")] == []
    served = [run for run in runs if run["arm"] == "cdc-service"]
    assert [(run["destination"], run["right"]) for run in served] == [("duckdb", True), ("postgresql", True)]
    assert all(run["events"] > 1000 and run["cpu_seconds"] > 0 and run["peak_rss_mb"] > 0 for run in served)
    assert {run["arm"] for run in runs} >= {"plain consumption", "COPY + MERGE alone", "cdc --help", "import cdc_service"}
    shown = page.page(document)
    assert "| cdc-service" in shown
    assert "not measured" in shown  # No target is claimed of what did not run.
    assert page.picture(runs).startswith("<svg")


@pytest.mark.parametrize("name", sorted(WORKLOADS))
def test_a_workload_is_the_same_each_time_and_its_end_is_what_its_changes_leave(name: str) -> None:
    workload = WORKLOADS[name]
    changes = workload.changes(600)
    again = workload.changes(600)
    assert all((a == b).all() for a, b in zip((changes.table, changes.op, changes.id), (again.table, again.op, again.id), strict=True))
    alive: dict[tuple[int, int], int] = {}
    for place, (table, op, key) in enumerate(zip(changes.table.tolist(), changes.op.tolist(), changes.id.tolist(), strict=True)):
        there = (table, key) in alive
        assert there == (op != INSERT), f"change {place} of {name} does {op} to a row that is {'there' if there else 'not there'}"
        if op == DELETE:
            del alive[table, key]
        else:
            alive[table, key] = place
    for table in range(workload.tables):
        mine = {key: place for (t, key), place in alive.items() if t == table}
        wanted = workload.shape.rows(np.array(list(mine), np.int64), np.array(list(mine.values()), np.int64))
        found = workload.final(changes, table)
        assert found.sort_by("id").equals(wanted.sort_by("id"))
    assert set(changes.op.tolist()) <= {INSERT, UPDATE, DELETE}


@pytest.mark.parametrize("wire", ["schemaless", "json", "avro"])
def test_events_are_made_as_the_connector_wrote_them_but_for_their_values(wire: str) -> None:
    """``learn`` refuses a form that does not give the recorded bytes again; another value has to change its own bytes alone."""
    schemas = {int(n): found for n, found in _schemas().items()}
    learnt = 0
    for topic, records in recorded.topics("ops", wire).items():
        for record in records:
            value = recorded.binary(record["value"])
            if value is None or not topic.endswith(".ful"):
                continue
            event, found = learn(value, ["id", "a", "b"], schemas)
            gaps = {part.name for part in event.parts if isinstance(part, Gap)}
            assert {"lsn", "source_us", "us"} <= gaps <= set(found)
            moved = {**found, "lsn": found["lsn"] + 1}
            once, twice = event.render({name: pa.array([one, two]) for (name, one), two in zip(found.items(), moved.values(), strict=True)})
            assert once.as_py() == value
            if wire != "avro":
                old, new = (json.loads(one.as_py()) for one in (once, twice))
                for document in (old, new):
                    (document if wire == "schemaless" else document["payload"])["source"]["lsn"] //= 1_000_000_000
                assert old == new
            assert twice.as_py() != value
            learnt += 1
    assert learnt >= 3


def _schemas() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(gzip.decompress((recorded.FIXTURES / "avro_schemas.json.gz").read_bytes()))
    return {number: json.loads(text) if isinstance(text, str) else text for number, text in found.items()}
