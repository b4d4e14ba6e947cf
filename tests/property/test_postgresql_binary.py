"""What PostgreSQL reads from binary rows is what it reads from text: both are copied into a real server, which compares them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from typing import Any

import psycopg
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from cdc_service.core.logical import Kind, LogicalType, decimal
from cdc_service.testing.memory import restore
from deploy.local.stack import Stack
from mergers.destinations._postgresql_binary import binary_blocks
from mergers.destinations._postgresql_copy import BLOCK_ROWS, csv_blocks
from mergers.destinations.postgresql import CAPABILITIES, SPELLING
from tests.property.test_merge_types import decimals, integers, values

TEXT_ONLY = {Kind.NUMERIC, Kind.INTERVAL, Kind.ARRAY}
VALUES = {type_: strategy for type_, strategy in values(CAPABILITIES).items() if type_.kind not in TEXT_ONLY}
VALUES |= {decimal(p, s): decimals(p, s) for p, s in ((1, 0), (4, 4), (12, 2), (18, 0), (18, 18), (18, 5))}


def within_64_bits(scale: int) -> st.SearchStrategy[Decimal]:
    return integers(64).map(lambda n: Decimal(f"{n}e-{scale}"))


VALUES |= {decimal(p, s): within_64_bits(s) for p, s in ((38, 18), (38, 10), (25, 0))}
TYPES = list(VALUES)
NAMES = [f"c{n}" for n in range(len(TYPES))]


@pytest.fixture(scope="module")
def server(postgres: Stack) -> Iterator[psycopg.Connection[Any]]:
    with psycopg.connect(postgres.pg_url, autocommit=True) as connection:
        for form in ("csv", "binary"):
            columns = ", ".join(f"{name} {SPELLING.column_type(type_)}" for name, type_ in zip(NAMES, TYPES, strict=True))
            connection.execute(f"CREATE TEMPORARY TABLE as_{form} ({columns})".encode())
        yield connection


def table(rows: Sequence[Sequence[Any]]) -> pa.Table:
    columns = [restore([row[n] for row in rows], type_.arrow) for n, type_ in enumerate(TYPES)]
    return pa.table(columns, names=NAMES)


def copied(server: psycopg.Connection[Any], form: str, blocks: Iterable[Any]) -> list[tuple[Any, ...]]:
    """The rows as the server prints them, floats by their bits."""
    server.execute(f"TRUNCATE as_{form}".encode())
    with server.cursor() as cursor, cursor.copy(f"COPY as_{form} FROM STDIN (FORMAT {form})".encode()) as copy:
        for block in blocks:
            copy.write(memoryview(block))
    sends = {Kind.FLOAT32: "encode(float4send({0}), 'hex')", Kind.FLOAT64: "encode(float8send({0}), 'hex')"}
    shown = ", ".join(sends.get(type_.kind, "CAST({0} AS text)").format(name) for name, type_ in zip(NAMES, TYPES, strict=True))
    return server.execute(f"SELECT {shown} FROM as_{form}".encode()).fetchall()


ROWS = st.lists(st.tuples(*(st.none() | strategy for strategy in VALUES.values())), max_size=6)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(rows=ROWS, cut=st.integers(0, 2))
@example(rows=[], cut=0)
@example(rows=[(None,) * len(TYPES)], cut=0)
def test_binary_rows_are_read_as_their_text(server: psycopg.Connection[Any], rows: list[tuple[Any, ...]], cut: int) -> None:
    whole = table(rows).slice(cut)
    blocks = binary_blocks(whole, [SPELLING.column_type(type_) for type_ in TYPES])
    assert blocks is not None
    assert copied(server, "binary", blocks) == copied(server, "csv", csv_blocks(whole))


def test_more_rows_than_a_block(server: psycopg.Connection[Any]) -> None:
    count = BLOCK_ROWS * 2 + 1
    half = [None if n % 3 else n for n in range(count)]
    columns: dict[Kind, list[Any]] = {
        Kind.INT64: half, Kind.STRING: [None if n is None else str(n) for n in half], Kind.BOOL: [n % 2 == 0 for n in range(count)],
        Kind.UUID: [f"00000000-0000-4000-8000-{n:012x}" for n in range(count)],
    }  # fmt: skip
    many = pa.table([restore(columns.get(t.kind, [None] * count), t.arrow) for t in TYPES], names=NAMES)
    chunked = pa.concat_tables([many.slice(0, 100), many.slice(100)])
    blocks = binary_blocks(chunked, [SPELLING.column_type(t) for t in TYPES])
    assert blocks is not None
    assert copied(server, "binary", blocks) == copied(server, "csv", csv_blocks(many))


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        (LogicalType(Kind.NUMERIC), "1.5"),
        (LogicalType(Kind.INTERVAL), "P1D"),
        (decimal(38, 0), Decimal(2**63)),
        (decimal(38, 19), Decimal("1e-19")),
        (LogicalType(Kind.UUID), "6F1E2D3C-0000-4000-8000-000000000001"),
        (LogicalType(Kind.UUID), "6f1e2d3c-0000-4000-8000-00000000000g"),
        (LogicalType(Kind.UUID), "6f1e2d3c00004000800000000000000001"),
    ],
    ids=str,
)
def test_what_has_no_binary_form_goes_as_text(type_: LogicalType, value: Any) -> None:
    one = pa.table({"c": pa.array([None, value], type_.arrow)})
    assert binary_blocks(one, [SPELLING.column_type(type_)]) is None


def test_a_column_of_another_type_goes_as_text() -> None:
    """A batch of before a type was widened is staged as the wider one."""
    narrow = {"smallint": pa.int32(), "double precision": pa.float32(), "numeric(12,2)": pa.int64(), "text": pa.int64()}
    for type_, arrow in narrow.items():
        assert binary_blocks(pa.table({"c": pa.array([1], arrow)}), [type_]) is None, type_
    assert binary_blocks(pa.table({"c": pa.array([1], pa.int8())}), ["bigint"]) is not None
