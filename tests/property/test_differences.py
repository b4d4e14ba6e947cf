"""What a comparison finds equals a full outer join: random tables, types, keys and faults, on a real PostgreSQL and a real DuckDB.

Nothing moves here: the log holds no event, so each nominated key is judged at once. Values come from pools in which no two are equal by
their type, so that two rows are equal where their places in the pools are.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdc_service.core.evolve import CreateTable
from cdc_service.core.logical import INFINITY, Kind, LogicalType, array, decimal
from cdc_service.core.types import Column, TableId, TableSchema, Target
from cdc_service.ports.source import Source
from connectors.sources import open_source
from deploy.local.stack import Stack
from mergers.destinations.duckdb import DuckDb
from mergers.destinations.duckdb import open as open_duckdb
from reconcile.run import Options
from tests.support.still import compare_still

EXAMPLES = round(40 * float(os.environ.get("CDC_TEST_LOAD", "1")))
TABLE = TableId("public", "t")
TARGET = Target(TABLE, "public", "t")
DAY_US = 86_400_000_000
US = 1_715_000_000_123_456


@dataclass(frozen=True)
class Pool:
    """Values of one type: the type at the source, and each value as PostgreSQL reads it and as Arrow has it."""

    source: str
    type: LogicalType
    values: Sequence[tuple[str | None, Any]]


def kind(k: Kind) -> LogicalType:
    return LogicalType(k)


TEXTS = ["", " ", "a", "A", "a ", "p|q", "p", "q|r", "r", "<null>", "NULL", "é", "\\", "'", '"', "日本"]
POOLS = {
    "bool": Pool("bool", kind(Kind.BOOL), [(None, None), ("true", True), ("false", False)]),
    "int": Pool("int8", kind(Kind.INT64), [(None, None), *((str(n), n) for n in (0, 1, -1, 2**63 - 1, -(2**63)))]),
    "real": Pool("float4", kind(Kind.FLOAT32), [(None, None), ("0", 0.0), ("NaN", float("nan")), ("Infinity", float("inf")), ("1.5", 1.5)]),
    "double": Pool(
        "float8",
        kind(Kind.FLOAT64),
        [
            *((None, None), ("0", 0.0), ("0.1", 0.1), ("0.10000000000000002", 0.10000000000000002), ("NaN", float("nan"))),
            *(("Infinity", float("inf")), ("-Infinity", float("-inf"))),
        ],
    ),
    "decimal": Pool("numeric(10,2)", decimal(10, 2), [(None, None), *((t, Decimal(t)) for t in ("0.00", "0.01", "-0.01", "99999999.99"))]),
    "text": Pool("text", kind(Kind.STRING), [(None, None), *((t, t) for t in TEXTS)]),
    "bytes": Pool("bytea", kind(Kind.BYTES), [(None, None), ("\\x", b""), ("\\x00", b"\0"), ("\\x0000", b"\0\0"), ("\\xff", b"\xff")]),
    "day": Pool(
        "date",
        kind(Kind.DATE),
        [
            *((None, None), ("1970-01-01", 0), ("1969-12-31", -1), ("4000-01-01 BC", -2_180_132)),
            *(("infinity", INFINITY[Kind.DATE]), ("-infinity", -INFINITY[Kind.DATE])),
        ],
    ),
    "time": Pool("time", kind(Kind.TIME), [(None, None), ("00:00", 0), ("24:00", DAY_US), ("00:00:00.000001", 1)]),
    "moment": Pool(
        "timestamp",
        kind(Kind.TIMESTAMP),
        [
            *((None, None), ("2024-05-06 12:53:20.123456", US), ("2024-05-06 12:53:20.123457", US + 1)),
            *(("infinity", INFINITY[Kind.TIMESTAMP]), ("-infinity", -INFINITY[Kind.TIMESTAMP])),
        ],
    ),
    "instant": Pool(
        "timestamptz",
        kind(Kind.TIMESTAMPTZ),
        [
            *((None, None), ("2024-05-06 12:53:20.123456Z", US), ("2024-05-06 12:53:20.123457Z", US + 1)),
            ("infinity", INFINITY[Kind.TIMESTAMPTZ]),
        ],
    ),
    "uuid": Pool("uuid", kind(Kind.UUID), [(None, None), *((t, t) for t in (f"00000000-0000-4000-8000-00000000000{n}" for n in range(3)))]),
    "json": Pool("jsonb", kind(Kind.JSON), [(None, None), ('{"a": 1}', '{"a": 1}'), ('{"a": 2}', '{"a": 2}'), ("null", "null")]),
    "list": Pool("int4[]", array(kind(Kind.INT32)), [(None, None), ("{}", []), ("{1}", [1]), ("{1,NULL}", [1, None]), ("{NULL}", [None])]),
}
KEYS = (("int",), ("text",), ("uuid",), ("day",), ("moment",), ("bytes",), ("text", "text"), ("int", "text"), ("bool", "uuid", "text"))
Row = tuple[int, ...]
"""The places of its values in their pools."""


@dataclass
class Shape:
    """A table of some pools; the first ``key`` columns are its key."""

    pools: list[str]
    key: int

    @property
    def names(self) -> list[str]:
        return [f"c{i} {name}" for i, name in enumerate(self.pools)]

    def pool(self, i: int) -> Pool:
        return POOLS[self.pools[i]]

    @property
    def schema(self) -> TableSchema:
        columns = tuple(Column(n, self.pool(i).type) for i, n in enumerate(self.names))
        return TableSchema(TABLE, columns, tuple(self.names[: self.key]))


@pytest.fixture(scope="module")
def source(postgres: Stack) -> Iterator[tuple[str, Source]]:
    url = postgres.create_database("reconcile_property")
    opened = open_source(url)
    yield url, opened
    opened.close()
    postgres.drop_database("reconcile_property")


def fill_source(url: str, shape: Shape, rows: Sequence[Row]) -> None:
    columns = ", ".join(f'"{n}" {shape.pool(i).source}' for i, n in enumerate(shape.names))
    key = ", ".join(f'"{n}"' for n in shape.names[: shape.key])
    with psycopg.connect(url) as connection:
        connection.execute(f"DROP TABLE IF EXISTS t; CREATE TABLE t ({columns}, PRIMARY KEY ({key}))".encode())
        marks = ", ".join(f"CAST(%s::text AS {shape.pool(i).source})" for i in range(len(shape.pools)))
        with connection.cursor() as cursor:
            texts = [[shape.pool(i).values[place][0] for i, place in enumerate(row)] for row in rows]
            cursor.executemany(f"INSERT INTO t VALUES ({marks})".encode(), texts)


def fill_target(destination: DuckDb, shape: Shape, rows: Sequence[Row]) -> None:
    raw = destination.connection().raw
    arrays = []
    for i, column in enumerate(shape.schema.columns):
        values = [shape.pool(i).values[row[i]][1] for row in rows]
        type_ = column.type.arrow
        whole = pa.types.is_temporal(type_)
        width = pa.int32() if pa.types.is_date32(type_) else pa.int64()
        arrays.append(pa.array(values, width).view(type_) if whole else pa.array(values, type_))
    raw.register("rows_of_test", pa.table(arrays, names=shape.names))
    names = ", ".join(f'"{n}"' for n in shape.names)
    raw.execute(f"""INSERT INTO public.t ({names}, _cdc_partition, _cdc_offset, _cdc_gen, _cdc_commit, _cdc_record)
SELECT {names}, 0, 0, 0, 0, 0 FROM rows_of_test""")
    raw.unregister("rows_of_test")


def joined(shape: Shape, here: Sequence[Row], there: Sequence[Row], unseen: set[str]) -> dict[Row, tuple[str, tuple[str, ...], int]]:
    """By key: kind, columns and count of each difference, as a full outer join tells them; without rows that differ in ``unseen`` alone."""
    found: dict[Row, tuple[str, tuple[str, ...], int]] = {}
    mine, others = {row[: shape.key]: row for row in here}, Counter(row[: shape.key] for row in there)
    values = {row[: shape.key]: row for row in there}
    for key in {*mine, *others}:
        if key not in others:
            found[key] = ("missing", (), 1)
        elif key not in mine:
            found[key] = ("extra", (), others[key])
        elif others[key] > 1:
            found[key] = ("extra", (), others[key] - 1)
        elif mine[key] != values[key]:
            differing = tuple(n for n, a, b in zip(shape.names, mine[key], values[key], strict=True) if a != b)
            if not unseen.issuperset(differing):
                found[key] = ("different", differing, 1)
    return found


def faulty(rand: random.Random, shape: Shape, rows: Sequence[Row]) -> list[Row]:
    """The rows with a few faults of every kind."""
    made = list(rows)
    for _ in range(rand.randrange(5)):
        if not made:
            break
        at = rand.randrange(len(made))
        fault = rand.choice(["gone", "doubled", "changed", "changed", "swapped", "stale", "moved"])
        row, key = made[at], shape.key
        width = len(shape.pools)
        if fault == "gone":
            del made[at]
        elif fault == "doubled":
            made.append(row)
        elif fault == "changed" and width > key:
            i = rand.randrange(key, width)
            made[at] = (*row[:i], rand.randrange(len(shape.pool(i).values)), *row[i + 1 :])
        elif fault == "swapped":  # The values of two rows, so that sums and XORs of values stay as they are.
            other = rand.randrange(len(made))
            made[at], made[other] = row[:key] + made[other][key:], made[other][:key] + row[key:]
        elif fault == "stale":
            made[at] = row[:key] + tuple(rand.randrange(len(shape.pool(i).values)) for i in range(key, width))
        elif fault == "moved":
            made[at] = tuple(rand.randrange(1, len(shape.pool(i).values)) for i in range(key)) + row[key:]
    return made


@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32))
def test_i27_the_differences_are_those_of_a_full_outer_join(
    source: tuple[str, Source], tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    url, opened = source
    rand = random.Random(seed)
    key = rand.choice(KEYS)
    shape = Shape([*key, *(rand.choice(list(POOLS)) for _ in range(rand.randrange(6)))], len(key))
    rows = {tuple(rand.randrange(1, len(shape.pool(i).values)) for i in range(shape.key)) for _ in range(rand.randrange(30))}
    here = [row + tuple(rand.randrange(len(shape.pool(i).values)) for i in range(shape.key, len(shape.pools))) for row in sorted(rows)]
    there = faulty(rand, shape, here)
    fill_source(url, shape, here)
    folder: Path = tmp_path_factory.mktemp("warehouse")
    destination = open_duckdb(f"duckdb:///{folder}/w.duckdb", pipeline="p", meta_schema="_cdc", options={})
    try:
        destination.prepare()
        destination.evolve(TARGET, [CreateTable(shape.schema)], shape.schema)
        fill_target(destination, shape, there)
        reports = [compare_still(opened, destination, TARGET, shape.schema, Options(mode=mode)) for mode in ("stream", "pushdown")]
    finally:
        destination.close()
    for report in reports:
        unseen = {n for n in shape.names if n in report.left_out}
        assert all(n.endswith("list") for n in unseen), report.left_out
        wanted = joined(shape, here, there, unseen)
        assert report.status == ("mismatch" if wanted else "match"), (report.method, report.reason)
        assert report.rows == (len(here), len(there)), report.method
        found = Counter((str(d.kind), d.columns, d.count) for d in report.differences)
        assert found == Counter(wanted.values()), report.method
        assert len({tuple(d.key.items()) for d in report.differences}) == len(wanted), "a key is told once"
