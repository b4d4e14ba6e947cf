"""Reconciliation of tables without a key: random logs of random rows, in which a few changes are lost, doubled or falsified.

The source is a real PostgreSQL, the log of changes a real DuckDB; the differences are those of two multisets, row by row.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import psycopg
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdc_service.core.evolve import CreateTable
from cdc_service.core.rowtext import row_text
from cdc_service.core.types import Mode, TableSchema
from cdc_service.ports.source import Source
from connectors.sources import open_source
from deploy.local.stack import Stack
from mergers.destinations.duckdb import DuckDb
from mergers.destinations.duckdb import open as open_duckdb
from reconcile.run import Options
from tests.property.test_differences import EXAMPLES, POOLS, TARGET, Row, Shape
from tests.support.still import compare_still

LOG = replace(TARGET, mode=Mode.APPEND)
Change = tuple[str, Row | None, Row | None]
"""Operation, row before, row after."""


@pytest.fixture(scope="module")
def source(postgres: Stack) -> Iterator[tuple[str, Source]]:
    url = postgres.create_database("reconcile_multiset")
    opened = open_source(url)
    yield url, opened
    opened.close()
    postgres.drop_database("reconcile_multiset")


def random_row(rand: random.Random, shape: Shape) -> Row:
    # Few values, so that many rows are alike.
    return tuple(rand.randrange(min(3, len(shape.pool(i).values))) if rand.random() < 0.7 else 0 for i in range(len(shape.pools)))


def lived(rand: random.Random, shape: Shape) -> tuple[list[Change], list[Row]]:
    """A log, and the rows that it leaves."""
    rows = [random_row(rand, shape) for _ in range(rand.randrange(12))]
    log: list[Change] = [("r", None, row) for row in rows]
    for _ in range(rand.randrange(30)):
        what = rand.choices(["c", "u", "d", "t"], [5, 4, 3, 0.3])[0]
        if what == "c":
            rows.append(random_row(rand, shape))
            log.append(("c", None, rows[-1]))
        elif what == "t":
            rows.clear()
            log.append(("t", None, None))
        elif rows:
            before = rows.pop(rand.randrange(len(rows)))
            after = random_row(rand, shape) if what == "u" else None
            rows += [] if after is None else [after]
            log.append((what, before, after))
    return log, rows


def left(log: Sequence[Change]) -> Counter[Row]:
    rows: Counter[Row] = Counter()
    for op, before, after in log:
        if op == "t":
            rows.clear()
        if before is not None:
            rows[before] -= 1
        if after is not None:
            rows[after] += 1
    return rows


def faulty(rand: random.Random, shape: Shape, log: Sequence[Change]) -> list[Change]:
    made = list(log)
    for _ in range(rand.randrange(4)):
        if not made:
            break
        at = rand.randrange(len(made))
        op, before, after = made[at]
        fault = rand.choice(["lost", "doubled", "falsified"])
        if fault == "lost":
            del made[at]
        elif fault == "doubled":
            made.insert(at, made[at])
        elif after is not None:
            made[at] = op, before, random_row(rand, shape)
    return made


def arrow(shape: Shape, rows: Sequence[Row | None]) -> dict[str, pa.Array]:
    arrays = {}
    for i, column in enumerate(shape.schema.columns):
        values = [None if row is None else shape.pool(i).values[row[i]][1] for row in rows]
        type_ = column.type.arrow
        width = pa.int32() if pa.types.is_date32(type_) else pa.int64()
        arrays[column.name] = pa.array(values, width).view(type_) if pa.types.is_temporal(type_) else pa.array(values, type_)
    return arrays


def fill_log(destination: DuckDb, shape: Shape, log: Sequence[Change]) -> None:
    raw, names = destination.connection().raw, ", ".join(f'"{n}"' for n in shape.names)
    before = row_text(arrow(shape, [b for _, b, _ in log]), np.array([b is not None for _, b, _ in log], np.bool_))
    meta = {"op": pa.array([op for op, *_ in log], pa.string()), "before": before, "n": pa.array(np.arange(len(log)))}
    # A delete has its image before in its columns too.
    shown = [after if after is not None else before for _, before, after in log]
    raw.register("rows_of_test", pa.table({**arrow(shape, shown), **{f"m_{name}": values for name, values in meta.items()}}))
    raw.execute(f"""INSERT INTO public.t
({names}, _cdc_partition, _cdc_offset, _cdc_gen, _cdc_commit, _cdc_record, _cdc_op, _cdc_seq, _cdc_before)
SELECT {names}, 0, m_n, 0, 1, 1, m_op, 0, m_before FROM rows_of_test""")
    raw.unregister("rows_of_test")


@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32))
def test_i27_the_differences_of_a_table_without_a_key_are_those_of_two_multisets(
    source: tuple[str, Source], tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    url, opened = source
    rand = random.Random(seed)
    shape = Shape([rand.choice(list(POOLS)) for _ in range(rand.randrange(1, 5))], 0)
    log, rows = lived(rand, shape)
    told = faulty(rand, shape, log)
    columns = ", ".join(f'"{n}" {shape.pool(i).source}' for i, n in enumerate(shape.names))
    with psycopg.connect(url) as connection:
        connection.execute(f"DROP TABLE IF EXISTS t; CREATE TABLE t ({columns})".encode())
        marks = ", ".join(f"CAST(%s::text AS {shape.pool(i).source})" for i in range(len(shape.pools)))
        with connection.cursor() as cursor:
            texts = [[shape.pool(i).values[place][0] for i, place in enumerate(row)] for row in rows]
            cursor.executemany(f"INSERT INTO t VALUES ({marks})".encode(), texts)
    folder: Path = tmp_path_factory.mktemp("warehouse")
    destination = open_duckdb(f"duckdb:///{folder}/w.duckdb", pipeline="p", meta_schema="_cdc", options={})
    try:
        destination.prepare()
        schema: TableSchema = shape.schema
        destination.evolve(LOG, [CreateTable(schema)], schema)
        fill_log(destination, shape, told)
        report = compare_still(opened, destination, LOG, schema, Options())
    finally:
        destination.close()
    begin = next((n for n, change in enumerate(told) if change[0] in ("r", "t")), 0)
    there = left(told[begin:])
    wanted = Counter({row: n for row in {*rows, *there} if (n := Counter(rows)[row] - there[row]) != 0})
    assert report.status == ("mismatch" if wanted else "match"), report.reason
    assert (report.method, report.rows) == ("multiset", (len(rows), there.total()))
    assert report.counts["missing"] == sum(n for n in wanted.values() if n > 0)
    assert report.counts["extra"] == -sum(n for n in wanted.values() if n < 0)
    found = Counter((str(d.kind), d.count) for d in report.differences)
    assert found == Counter(("missing" if n > 0 else "extra", abs(n)) for n in wanted.values())
    for d in report.differences:
        assert (d.destination if d.source is None else d.source) == d.key
    assert len({tuple(d.key.items()) for d in report.differences}) == len(wanted), "rows that are alike are told once"
