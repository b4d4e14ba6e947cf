"""Fields whose source type is spelled in ways that would hide what they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from cdc_service.core.errors import ConfigError
from cdc_service.core.types import TableId, TableSchema
from connectors.formats.connect_schema import SOURCE_TYPE, Field, field_of
from connectors.formats.schemaless import SchemalessJsonDecoder
from connectors.sources.postgresql.events import PostgresEvents


def field(source: str, kind: str, name: str | None = None, items: dict[str, Any] | None = None, **parameters: str) -> Field:
    schema = {"field": "c", "type": kind, "name": name, "optional": True, "parameters": {SOURCE_TYPE: source, **parameters}}
    return field_of({**schema, "items": items} if items else schema, PostgresEvents())


def test_a_snapshot_puts_the_schema_before_the_type_and_the_stream_does_not() -> None:
    """I20."""
    assert field('"EXT"."LQUERY"', "bytes") == field("LQUERY", "bytes")
    assert field('"EXT"."HSTORE"', "string", "io.debezium.data.Json") == field("HSTORE", "string", "io.debezium.data.Json")
    assert field('"E.""X"""."_TIME"', "array", items={"type": "int64"}).codec.name == "refused"


def test_bit_varying_of_one_bit_is_no_boolean() -> None:
    """I19: the empty bit string would arrive as false."""
    assert field("BIT", "boolean").codec.name == "plain"
    assert field("VARBIT", "boolean").codec.name == "refused"


def test_a_domain_over_an_array_of_times_is_refused_as_the_array_is() -> None:
    """I19."""
    times = {"type": "int64", "name": "io.debezium.time.MicroTime"}
    assert field("_TIME", "array", items=times).codec.name == field("DTIMES", "array", items=times).codec.name == "refused"


@pytest.mark.parametrize("source", ["BIT", "VARBIT", "DBITS"])
def test_bits_are_not_read_without_a_schema(source: str) -> None:
    """I19: their base64 would be taken for the value of a text, also where a domain is over them."""
    column = field(source, "bytes", "io.debezium.data.Bits", length="8").column
    key = replace(field("INT4", "int32").column, name="id")
    settings = {"value.converter.replace.null.with.default": "false"}
    with pytest.raises(ConfigError, match="ambiguous"):
        SchemalessJsonDecoder(PostgresEvents(), {"t": TableSchema(TableId("public", "t"), (key, column), ("id",))}, settings)
