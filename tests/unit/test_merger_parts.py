"""The parts that every SQL destination shares: identifiers, column types, and schemas as the history keeps them."""

from __future__ import annotations

import datetime as dt
import uuid
from decimal import Decimal

import pytest
import sqlglot
from hypothesis import given
from hypothesis import strategies as st
from sqlglot import exp

from cdc_service.core.logical import Kind, LogicalType, array, decimal
from cdc_service.core.types import Column, TableId, TableSchema
from mergers.destinations.duckdb import SPELLING
from mergers.sql.schema_text import schema_from_json, schema_to_json

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=20)
DEFAULTS = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(st.characters(codec="utf-8"))
    | st.binary()
    | st.floats(allow_nan=False)
    | st.decimals(allow_nan=False)
    | st.dates()
    | st.datetimes(timezones=st.none() | st.just(dt.UTC))
    | st.times()
    | st.uuids(),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)
TYPES = st.sampled_from(
    [LogicalType(Kind.STRING), LogicalType(Kind.INT64), decimal(10, 2), array(decimal(38, 0)), array(LogicalType(Kind.UUID))]
)


@given(NAMES, NAMES)
def test_any_name_is_one_identifier(schema: str, name: str) -> None:
    table = sqlglot.parse_one(f"SELECT 1 FROM {SPELLING.quote(schema, name)}", read="duckdb").find(exp.Table)
    assert table is not None
    assert (table.db, table.name) == (schema, name)


def test_an_empty_name_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        SPELLING.quote("public", "")


@given(st.text(st.characters(codec="utf-8", exclude_characters="\x00")))
def test_any_text_is_one_literal(text: str) -> None:
    (literal,) = sqlglot.parse_one(f"SELECT {SPELLING.literal(text)}", read="postgres").find_all(exp.Literal)
    assert literal.this == text


def test_every_kind_has_a_column_type() -> None:
    for kind in Kind:
        if kind not in (Kind.DECIMAL, Kind.ARRAY):
            assert SPELLING.column_type(LogicalType(kind))
    assert SPELLING.column_type(array(array(decimal(5, 2)))) == "DECIMAL(5,2)[][]"


@given(
    st.lists(st.tuples(NAMES, TYPES, DEFAULTS, st.booleans(), st.booleans()), unique_by=lambda column: column[0], min_size=1), NAMES, NAMES
)
def test_schemas_round_trip_with_defaults(columns: list[tuple[str, LogicalType, object, bool, bool]], schema: str, table: str) -> None:
    made = tuple(Column(name, type_, nullable, default, "numeric(10,2)", dropped) for name, type_, default, nullable, dropped in columns)
    before = TableSchema(TableId(schema, table), made, (made[-1].name,))
    after = schema_from_json(schema_to_json(before))
    assert after == before
    assert [type(c.default) for c in after.columns] == [type(c.default) for c in before.columns]
    assert schema_to_json(after) == schema_to_json(before)


def test_a_default_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(TypeError, match="object"):
        schema_to_json(TableSchema(TableId("s", "t"), (Column("c", LogicalType(Kind.STRING), default=object()),), ()))


def test_numbers_keep_their_digits() -> None:
    for default in (Decimal("1.50"), Decimal("NaN"), float("inf"), -0.0, 2**63, uuid.UUID(int=1), dt.time(23, 59, 59, 999999)):
        schema = TableSchema(TableId("s", "t"), (Column("c", LogicalType(Kind.STRING), default=default),), ())
        assert str(schema_from_json(schema_to_json(schema)).columns[0].default) == str(default)
