"""A table as wide as PostgreSQL lets it be: compared in both ways, its differences found, explained and mended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deploy.local.stack import Stack
from tests.support.line import EACH, Line, database, line

TYPES = (("int", "7"), ("boolean", "true"), ("smallint", "3"), ("numeric(4,1)", "1.5"), ("varchar(2)", "'ab'"))
WIDTHS = {"duckdb": 1_600, "postgresql": 1_583}
"""A target in PostgreSQL, and a batch that is staged for it, has some columns more than its source."""


def setup(columns: int) -> str:
    """A table of so many columns, with five rows."""
    numbered = range(1, columns)
    made = ", ".join(f"c{i} {TYPES[i % len(TYPES)][0]}" for i in numbered)
    values = ", ".join(TYPES[i % len(TYPES)][1] for i in numbered)
    return f"CREATE TABLE wide (id int PRIMARY KEY, {made}); INSERT INTO wide SELECT g, {values} FROM generate_series(1, 5) g"


def compared(pipeline: Line, mode: str, code: int) -> dict[str, Any]:
    (table,) = pipeline.call("reconcile", "--mode", mode, accept=(code,))["tables"]
    print(f"{mode}: {table['status']} in {table['seconds']} s")
    return dict(table)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("destination", EACH)
def test_a_wide_table_is_compared_explained_and_mended(stack: Stack, tmp_path: Path, destination: str) -> None:
    columns = WIDTHS[destination]
    last = f"c{columns - 1}"
    with database(stack) as made, line(stack, made, tmp_path, "public.wide: {}", destination=destination) as pipeline:
        pipeline.execute(setup(columns))
        pipeline.register()
        pipeline.start()
        pipeline.await_complete()
        for mode in ("stream", "pushdown"):
            found = compared(pipeline, mode, 0)
            assert (found["method"], len(found["coverage"]["columns"]), found["coverage"]["left_out"]) == (mode, columns, [])
        pipeline.stop()
        pipeline.warehouse.change(
            f"UPDATE public.wide SET c801 = NOT c801, {last} = NULL WHERE id = 2",
            "UPDATE public.wide SET c5 = 8 WHERE id = 3",
            "DELETE FROM public.wide WHERE id = 4",
        )
        pipeline.start()
        pipeline.await_complete()
        for mode in ("stream", "pushdown"):
            differences = {d["key"]["id"]: d for d in compared(pipeline, mode, 1)["differences"]}
            assert {key: (d["kind"], d["columns"]) for key, d in differences.items()} == {
                **{"2": ("different", ["c801", last]), "3": ("different", ["c5"]), "4": ("missing", [])}
            }
            assert all(d["cause"].startswith("written from outside") for d in differences.values())
        life = pipeline.call("explain", "public.wide", "3")
        assert (life["source"]["row"]["c5"], life["destination"]["row"]["c5"], len(life["source"]["row"])) == ("7", "8", columns)
        assert pipeline.call("repair", "public.wide", "--yes")["repaired"] == 3
        assert [compared(pipeline, mode, 0)["status"] for mode in ("stream", "pushdown")] == ["match", "match"]
