"""JSON without schemas: read where the configuration leaves no doubt, refused with the cure where it does, never guessed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cdc_service.core.errors import ConfigError
from cdc_service.core.logical import Kind, LogicalType, array, decimal
from cdc_service.core.types import ChangeBatch, Column, TableId, TableSchema
from connectors.formats import blocks
from connectors.formats.schemaless import SchemalessJsonDecoder
from connectors.sources.postgresql.events import PostgresEvents
from tests.support.envelopes import Col, Record, Table, dumps, raw, text

EXACT = {"decimal.handling.mode": "string", "time.precision.mode": "microseconds", "value.converter.replace.null.with.default": "false"}
INT, STRING = LogicalType(Kind.INT32), LogicalType(Kind.STRING)
SCHEMA = TableSchema(TableId("public", "t"), (Column("id", INT, source_type="INT4"), Column("name", STRING, source_type="TEXT")), ("id",))
TABLE = Table([Col("id"), text("name")])


def bare(document: bytes) -> bytes:
    return document[document.index(b',"payload":') + 11 : -1]


def record(row: dict[str, Any], key: dict[str, Any] | None = None) -> Record:
    return Record(dumps(key or {"id": row.get("id")}), bare(TABLE.value("c", row)))


def decode(records: list[Record]) -> ChangeBatch:
    (batch,) = SchemalessJsonDecoder(PostgresEvents(), {"shop.public.t": SCHEMA}, EXACT).decode(raw(records))
    return batch


def with_column(kind: LogicalType, source: str) -> TableSchema:
    return replace(SCHEMA, columns=(*SCHEMA.columns, Column("x", kind, source_type=source)))


@pytest.mark.parametrize(
    ("kind", "source", "change", "cure"),
    [
        (decimal(5, 2), "NUMERIC", {"decimal.handling.mode": "precise"}, "decimal.handling.mode=string"),
        (LogicalType(Kind.TIMESTAMP), "TIMESTAMP", {"time.precision.mode": "adaptive"}, "time.precision.mode=isostring or microseconds"),
        (LogicalType(Kind.DATE), "DATE", {"time.precision.mode": "connect"}, "time.precision.mode="),
        (array(LogicalType(Kind.TIMESTAMP)), "_TIMESTAMP", {"time.precision.mode": "adaptive"}, "time.precision.mode="),
        (LogicalType(Kind.INTERVAL), "INTERVAL", {}, "interval.handling.mode=string"),
        (LogicalType(Kind.BYTES), "BYTEA", {"binary.handling.mode": "hex"}, "binary.handling.mode="),
        (LogicalType(Kind.JSON), "HSTORE", {}, "hstore.handling.mode=json"),
        (STRING, "BIT", {}, "schemas.enable=true"),
        (STRING, "", {}, "schemas.enable=true"),
        (STRING, "TEXT", {"value.converter.replace.null.with.default": "true"}, "value.converter.replace.null.with.default=false"),
    ],
)
def test_what_would_be_ambiguous_is_refused_with_the_cure(kind: LogicalType, source: str, change: dict[str, str], cure: str) -> None:
    with pytest.raises(ConfigError) as caught:
        SchemalessJsonDecoder(PostgresEvents(), {"t": with_column(kind, source)}, {**EXACT, **change})
    assert cure in caught.value.hint


def test_a_column_called_as_a_field_of_the_event_is_refused() -> None:
    columns = (*SCHEMA.columns, Column("origin", STRING, source_type="TEXT"))
    with pytest.raises(ConfigError, match="'origin'"):
        SchemalessJsonDecoder(PostgresEvents(), {"t": replace(SCHEMA, columns=columns)}, EXACT)


def test_records_with_other_columns_are_rejected_and_their_neighbours_are_not() -> None:
    """I9: a missing column is not NULL, and a new one does not vanish."""
    batch = decode(
        [record({"id": 1, "name": None}), record({"id": 2}), record({"id": 3, "name": "x", "new": 1}), record({"id": 4, "name": "y"})]
    )
    assert batch.data.to_pylist() == [{"id": 1, "name": None}, {"id": 4, "name": "y"}]
    assert [(rejected.offset, rejected.code) for rejected in batch.rejected] == [(1, "columns_differ"), (2, "columns_differ")]


def test_a_key_with_other_columns_is_rejected() -> None:
    batch = decode([record({"id": 1, "name": "x"}, {"id": 1, "more": 2}), record({"id": 1, "name": "x"}, {"other": 1})])
    assert [rejected.code for rejected in batch.rejected] == ["columns_differ", "columns_differ"]


def test_the_columnar_reader_takes_what_the_connector_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("one by one")

    monkeypatch.setattr(blocks, "_one_by_one", refuse)
    assert decode([record({"id": 1, "name": None}), record({"id": 2, "name": "x"})]).num_rows == 2
