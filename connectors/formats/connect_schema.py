"""Connect's JSON schema of a Debezium event -> columns with their codecs, by what Debezium's own types mean.

A type is recognised by Connect's type and Debezium's semantic name; what a source's own types mean beside, its EventModel says. What no
rule covers exactly raises Unsupported with the reason and the cure; nothing is guessed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from cdc_service.core.logical import Kind, LogicalType
from cdc_service.core.types import Column
from cdc_service.ports.events import Codec, ConnectSchema, EventModel, Unsent, Unsupported
from connectors.formats.codecs import convert, point_type
from connectors.formats.exact import Inexact, exact


@dataclass(frozen=True, slots=True)
class Field:
    """A column of the table as the event's schema describes it."""

    column: Column
    codec: Codec


SOURCE_TYPE = "__debezium.source.column.type"
"""The parameter by which ``column.propagate.source.type`` tells the source's own type."""
LENGTH = "__debezium.source.column.length"
SCALE = "__debezium.source.column.scale"

TEXT = Codec("plain", LogicalType(Kind.STRING), pa.string(), unsent=Unsent.TEXT)
NUMERIC = Codec("numeric", LogicalType(Kind.NUMERIC), pa.string(), unsent=Unsent.TEXT)
"""Numbers of any size and scale, as text."""


def _text(kind: Kind, unsent: Unsent = Unsent.NEVER) -> Codec:
    return Codec("plain", LogicalType(kind), pa.string(), unsent=unsent)


def _count(name: str, kind: Kind, read: pa.DataType, parameter: int = 0) -> Codec:
    return Codec(name, LogicalType(kind), read, parameter)


def _iso(name: str, kind: Kind) -> Codec:
    return Codec(name, LogicalType(kind), pa.string())


PRIMITIVE: dict[str, Codec] = {
    "boolean": Codec("plain", LogicalType(Kind.BOOL), pa.bool_()),
    "int8": Codec("plain", LogicalType(Kind.INT16), pa.int16()),
    "int16": Codec("plain", LogicalType(Kind.INT16), pa.int16()),
    "int32": Codec("plain", LogicalType(Kind.INT32), pa.int32()),
    "int64": Codec("plain", LogicalType(Kind.INT64), pa.int64()),
    "float": Codec("float32", LogicalType(Kind.FLOAT32), pa.float64()),
    "double": Codec("plain", LogicalType(Kind.FLOAT64), pa.float64()),
    "string": TEXT,
    "bytes": Codec("base64", LogicalType(Kind.BYTES), pa.string(), unsent=Unsent.BASE64),
}
"""Connect's types without a semantic name."""

SEMANTIC: dict[tuple[str, str], Codec] = {
    ("int32", "io.debezium.time.Date"): _count("date_days", Kind.DATE, pa.int32()),
    ("int32", "io.debezium.time.Time"): _count("time", Kind.TIME, pa.int64(), 1_000_000),
    ("int64", "io.debezium.time.MicroTime"): _count("time", Kind.TIME, pa.int64(), 1000),
    ("int64", "io.debezium.time.NanoTime"): _count("time", Kind.TIME, pa.int64(), 1),
    ("int64", "io.debezium.time.Timestamp"): _count("timestamp", Kind.TIMESTAMP, pa.int64(), 1000),
    ("int64", "io.debezium.time.MicroTimestamp"): _count("timestamp", Kind.TIMESTAMP, pa.int64(), 1),
    ("string", "io.debezium.time.ZonedTimestamp"): _iso("iso_timestamp", Kind.TIMESTAMPTZ),
    ("string", "io.debezium.time.ZonedTime"): _text(Kind.STRING),
    ("string", "io.debezium.time.IsoDate"): _iso("iso_date", Kind.DATE),
    ("string", "io.debezium.time.IsoTime"): _iso("iso_time", Kind.TIME),
    ("string", "io.debezium.time.IsoTimestamp"): _iso("iso_timestamp", Kind.TIMESTAMP),
    ("string", "io.debezium.time.Interval"): _text(Kind.INTERVAL),
    ("string", "io.debezium.data.Uuid"): _text(Kind.UUID),
    ("string", "io.debezium.data.Json"): _text(Kind.JSON, Unsent.TEXT),
    ("string", "io.debezium.data.Xml"): TEXT,
    ("string", "io.debezium.data.Enum"): _text(Kind.STRING),
    ("string", "io.debezium.data.Ltree"): TEXT,
    ("string", "io.debezium.data.Tsvector"): TEXT,
    ("struct", "io.debezium.data.geometry.Point"): Codec("point", point_type(), pa.struct([("x", pa.float64()), ("y", pa.float64())])),
}
"""Debezium's semantic types that hold their value exactly."""

REFUSED: dict[str, str] = {
    "io.debezium.time.NanoTimestamp": "nanoseconds hold 1677..2262 only, and the connector sends NULL for others; "
    "set time.precision.mode=microseconds",
    "io.debezium.time.MicroDuration": "an interval as one number takes months for 30.4 days; set interval.handling.mode=string",
    "io.debezium.time.NanoDuration": "an interval as one number takes months for 30.4 days; set interval.handling.mode=string",
    "org.apache.kafka.connect.data.Timestamp": "milliseconds lose what the column holds; set time.precision.mode=microseconds",
    "org.apache.kafka.connect.data.Time": "milliseconds lose what the column holds; set time.precision.mode=microseconds",
    "org.apache.kafka.connect.data.Date": "set time.precision.mode=microseconds",
    "org.apache.kafka.connect.data.Decimal": "set decimal.handling.mode=string",
    "io.debezium.data.VariableScaleDecimal": "set decimal.handling.mode=string",
}
"""Semantic types that lose something, or say it another way than this service asks for; with the cure."""


def standard(schema: ConnectSchema) -> Codec:
    """The codec of a field that holds nothing but what Connect and Debezium say of it. Raises Unsupported."""
    kind, name = str(schema.get("type")), schema.get("name")
    if name in REFUSED:
        raise Unsupported(f"{name}: {REFUSED[name]}")
    if name == "io.debezium.data.Bits":
        return bits(int((schema.get("parameters") or {}).get("length") or 0))
    if name is not None:
        codec = SEMANTIC.get((kind, name)) or (TEXT if kind == "string" else None)
        if codec is None:
            raise Unsupported(f"type {kind} named {name} has no exact form here; leave the column out (column.exclude.list)")
        return codec
    if kind not in PRIMITIVE:
        raise Unsupported(f"type {kind} has no exact form here; leave the column out (column.exclude.list)")
    return PRIMITIVE[kind]


def bits(length: int) -> Codec:
    """A string of so many bits. Raises Unsupported for a length that none has."""
    if not 1 <= length <= 2**16:
        raise Unsupported("bit varying arrives without its length; leave the column out (column.exclude.list)")
    return Codec("bits", LogicalType(Kind.STRING), pa.string(), length, Unsent.BASE64)


def refused(schema: ConnectSchema, reason: str, unsent: Unsent = Unsent.NEVER) -> Codec:
    """For a type without an exact form: a column whose values are refused one by one, so that rows without one are not held up.
    Raises Unsupported where not even NULL can be told."""
    items = schema.get("items") or {}
    if schema.get("type") == "array" and items.get("type") in PRIMITIVE:
        read = pa.list_(PRIMITIVE[items["type"]].read)
    elif schema.get("type") in PRIMITIVE:
        read = PRIMITIVE[str(schema["type"])].read
    else:
        raise Unsupported(reason)
    return Codec("refused", LogicalType(Kind.STRING), read, unsent=unsent, reason=reason)


def field_of(schema: ConnectSchema, model: EventModel) -> Field:
    """A column from a field of the row's schema. Raises Unsupported, naming the column."""
    name = str(schema["field"])
    try:
        try:
            codec = model.codec(schema)
        except Unsupported as problem:
            codec = refused(schema, str(problem))
    except Unsupported as problem:
        raise Unsupported(f"column {name!r}: {problem}") from None
    default, source = _default(schema.get("default"), codec), model.source_type(schema)
    return Field(Column(name, codec.type, bool(schema.get("optional", False)), default, source), codec)


def _default(value: Any, codec: Codec) -> Any:
    """The default as an exact Python value; None where there is none, or none that can be trusted.

    A default that is computed (now(), a sequence) arrives as the zero of its type: for times that is 1970-01-01, taken for none.
    """
    if value is None:
        return None
    try:
        done = convert(codec, pa.array([exact(codec.read, value)], codec.read))
        if done.bad is not None:
            return None
        if pa.types.is_temporal(codec.type.arrow):
            width = pa.int32() if codec.type.kind is Kind.DATE else pa.int64()
            if done.values.view(width)[0].as_py() == 0:
                return None
        return done.values[0].as_py()
    except (Inexact, ValueError, OverflowError, pa.ArrowInvalid):
        return None


def struct_field(schema: ConnectSchema, name: str) -> ConnectSchema | None:
    """The field called ``name`` of a struct schema, or None."""
    fields = schema.get("fields") or []
    return next((field for field in fields if isinstance(field, dict) and field.get("field") == name), None)


def columns_of(row: ConnectSchema, model: EventModel) -> tuple[Field, ...]:
    """The table's columns from the schema of a row. Raises Unsupported."""
    return tuple(field_of(field, model) for field in row["fields"])
