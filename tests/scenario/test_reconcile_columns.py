"""Columns that only the source has: what events never carry is left out, what they should is found, and the cure that is told heals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deploy.local.stack import Stack
from reconcile.report import summary as words
from tests.support.line import EACH, Line, database, line

T = "public.t"
SETUP = """CREATE TABLE t (id int PRIMARY KEY, n int, g int GENERATED ALWAYS AS (id * 2) STORED, spans interval[], secret text);
INSERT INTO t (id, n, secret) SELECT s, s, 'hidden' FROM generate_series(1, 5) s;
CREATE TABLE log (v int, g int GENERATED ALWAYS AS (v) STORED); ALTER TABLE log REPLICA IDENTITY FULL; INSERT INTO log VALUES (1), (2)"""
LEFT_OUT = {
    "g": "a generated column, which the log does not carry",
    "spans": "the connector's events never carry interval[]",
    "secret": "connect.options leave it out (column.exclude.list)",
}


def compared(pipeline: Line, code: int, name: str = T) -> dict[str, Any]:
    (table,) = pipeline.call("reconcile", name, accept=(code,))["tables"]
    return dict(table)


def left_out(table: dict[str, Any]) -> dict[str, str]:
    return {c["column"]: c["reason"] for c in table["coverage"]["left_out"]}


def verified(pipeline: Line) -> int:
    pipeline.await_complete()
    return int(pipeline.tables()[T]["verified_position"])


@pytest.mark.parametrize("destination", EACH)
def test_a_column_that_the_target_lacks_is_a_finding_until_its_cure_was_followed(stack: Stack, tmp_path: Path, destination: str) -> None:
    tables, exclude = f"{T}: {{}}\n  public.log: {{keyless: append}}", 'column.exclude.list: "public\\\\.t\\\\.secret"'
    with database(stack) as made, line(stack, made, tmp_path, tables, options=exclude, destination=destination) as pipeline:
        pipeline.execute(SETUP)
        pipeline.register()
        pipeline.start()
        pipeline.await_complete()
        found = compared(pipeline, 0)
        assert (left_out(found), found["coverage"]["lacking"]) == (LEFT_OUT, [])
        assert left_out(compared(pipeline, 0, "public.log")) == {"g": LEFT_OUT["g"]}
        before = verified(pipeline)

        # A running service notices by itself; a comparison has to tell what none has noticed.
        pipeline.stop()
        pipeline.execute("ALTER TABLE t ALTER g DROP EXPRESSION")
        for mode in ("stream", "pushdown"):
            (found,) = pipeline.call("reconcile", T, "--mode", mode, accept=(1,))["tables"]
            assert (found["status"], found["coverage"]["lacking"], found["differences"]) == ("mismatch", ["g"], [])
            assert "column g is missing in the warehouse: the connector leaves it out" in found["reason"]
            assert words.verdict(found).startswith("differs from its source as of ")
            assert "rows, " in words.verdict(found)
            assert found["reason"] in words.verdict(found)
        assert {name: why for name, why in left_out(found).items() if name != "g"} == {k: v for k, v in LEFT_OUT.items() if k != "g"}
        assert pipeline.call("repair", T, "--yes")["keys"] == []
        assert found["reason"].endswith(f"cdc register, then cdc resync {T}")
        pipeline.start()
        table = pipeline.await_state(T, "error")
        assert (table["error"]["code"], table["error"]["hint"]) == ("columns_left_out", "cdc register")
        pipeline.register()
        pipeline.await_state(T, "streaming", limit_seconds=150)
        pipeline.await_complete()
        assert "g" in compared(pipeline, 0)["coverage"]["columns"]
        assert verified(pipeline) > before


def test_a_column_that_is_on_its_way_is_none(stack: Stack, tmp_path: Path) -> None:
    """The event that has it waits in Kafka: the result is not known, and no mismatch."""
    with database(stack) as made, line(stack, made, tmp_path, f"{T}: {{}}", destination="duckdb") as pipeline:
        pipeline.execute("CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)")
        pipeline.register()
        pipeline.start()
        pipeline.await_complete()
        pipeline.act("pause", T)
        pipeline.execute("ALTER TABLE t ADD c int; INSERT INTO t VALUES (2, 2)")
        found = compared(pipeline, 2)
        assert (found["status"], found["coverage"]["lacking"], found["differences"]) == ("in_flight", [], [])
        assert "it may be on its way" in left_out(found)["c"]
        pipeline.act("resume", T)
        pipeline.await_complete()
        assert compared(pipeline, 0)["coverage"]["columns"] == ["id", "c"]
