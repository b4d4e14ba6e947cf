"""Connect's JSON schema of a Debezium event -> columns with their codecs: every PostgreSQL type that Debezium emits.

A type is recognised by Connect's type, Debezium's semantic name and the source type that ``column.propagate.source.type`` adds. What no
rule covers exactly raises Unsupported with the reason and the cure; nothing is guessed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from cdc_service.core.logical import DECIMAL_DIGITS_MAX, Kind, LogicalType, decimal
from cdc_service.core.types import Column
from connectors.formats.codecs import Codec, Unsent, convert, list_of, point_type
from connectors.formats.exact import Inexact, exact

Json = Mapping[str, Any]


class Unsupported(ValueError):
    """A column that cannot be read exactly, with the reason and the cure. It holds names and types, never values."""


@dataclass(frozen=True, slots=True)
class Field:
    """A column of the table as the event's schema describes it."""

    column: Column
    codec: Codec


SOURCE_TYPE = "__debezium.source.column.type"
LENGTH = "__debezium.source.column.length"
SCALE = "__debezium.source.column.scale"

_UNCONSTRAINED = {0, 131089}
"""Lengths that stand for numeric without a precision: the first in snapshots, the second in the stream."""
_NEGATIVE_SCALE = 1000
"""PostgreSQL's scales end at 1000; a larger one is a negative scale in 11 bits."""

TEXT = Codec("plain", LogicalType(Kind.STRING), pa.string(), unsent=Unsent.TEXT)
_NUMERIC = Codec("numeric", LogicalType(Kind.NUMERIC), pa.string(), unsent=Unsent.TEXT)


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

TEXT_AS_BYTES = frozenset(
    """
    LINE LSEG BOX PATH POLYGON CIRCLE INT4MULTIRANGE INT8MULTIRANGE NUMMULTIRANGE TSMULTIRANGE TSTZMULTIRANGE DATEMULTIRANGE XID XID8 CID
    TID PG_LSN TSQUERY REGCLASS REGTYPE REGPROC REGROLE REGNAMESPACE JSONPATH PG_SNAPSHOT TXID_SNAPSHOT ACLITEM LQUERY LTXTQUERY
    """.split()  # noqa: SIM905
)
"""PostgreSQL types that the connector does not know: it sends their text as bytes."""

LIST_FORMS: dict[str, Unsent] = {"_TEXT": Unsent.TEXT, "_VARCHAR": Unsent.TEXT, "_JSON": Unsent.TEXT, "_JSONB": Unsent.TEXT}
LIST_FORMS |= {"_BYTEA": Unsent.BASE64, "_INT4": Unsent.NEVER, "_INT8": Unsent.NEVER, "_DATE": Unsent.NEVER, "_UUID": Unsent.UUID}
"""Array types for which the connector has a form of its placeholder, and the element's; for others it sends NULL."""


LISTS_REFUSED: dict[str, str] = {
    "_BIT": "the connector sends NULL for arrays of bit strings",
    "_VARBIT": "the connector sends NULL for arrays of bit strings",
    "_TIME": "the connector cuts times in arrays to milliseconds",
}


def source_type(schema: Json) -> str:
    """The source's type as the event names it. Snapshots put a schema that is not in the search path before it, the stream does not."""
    text = str((schema.get("parameters") or {}).get(SOURCE_TYPE) or "")
    with_schema = re.fullmatch(r'".*"\."(.*)"', text)
    return with_schema[1] if with_schema else text


def codec_of(schema: Json) -> Codec:
    """The codec of a field of the row. Raises Unsupported."""
    kind, name = str(schema.get("type")), schema.get("name")
    parameters = schema.get("parameters") or {}
    source = source_type(schema).upper()
    if source in LISTS_REFUSED:
        raise Unsupported(f"{LISTS_REFUSED[source]}; leave the column out (column.exclude.list)")
    if kind == "array":
        return _array(schema, source)
    if name in REFUSED:
        raise Unsupported(f"{name}: {REFUSED[name]}")
    if name == "io.debezium.data.Bits" or source == "VARBIT":
        return _bits(parameters, source)
    if name is not None:
        codec = SEMANTIC.get((kind, name)) or (TEXT if kind == "string" else None)
        if codec is None:
            raise Unsupported(f"type {kind} named {name} has no exact form here; leave the column out (column.exclude.list)")
        return replace(codec, unsent=Unsent.HSTORE) if source == "HSTORE" else codec
    if kind not in PRIMITIVE:
        raise Unsupported(f"type {kind} has no exact form here; leave the column out (column.exclude.list)")
    if source in ("NUMERIC", "MONEY"):
        return _number(kind, source, parameters)
    if kind == "bytes" and source in TEXT_AS_BYTES:
        return Codec("base64_text", LogicalType(Kind.STRING), pa.string(), unsent=Unsent.BASE64)
    return PRIMITIVE[kind]


def _number(kind: str, source: str, parameters: Json) -> Codec:
    if kind != "string":
        raise Unsupported(f"{source.lower()} as {kind} is not exact; set decimal.handling.mode=string")
    if source == "MONEY":
        return Codec("decimal", decimal(19, 2), pa.string())
    precision, scale = int(parameters.get(LENGTH) or 0), int(parameters.get(SCALE) or 0)
    if precision in _UNCONSTRAINED:
        return _NUMERIC
    if scale > _NEGATIVE_SCALE:
        return replace(_NUMERIC, parameter=-1)
    if 0 <= scale <= precision <= DECIMAL_DIGITS_MAX:
        return Codec("decimal", decimal(precision, scale), pa.string(), unsent=Unsent.TEXT)
    return _NUMERIC


def _bits(parameters: Json, source: str) -> Codec:
    length = int(parameters.get("length") or 0)
    if source == "VARBIT" or not 1 <= length <= 2**16:
        raise Unsupported("bit varying arrives without its length; leave the column out (column.exclude.list)")
    return Codec("bits", LogicalType(Kind.STRING), pa.string(), length, Unsent.BASE64)


def _array(schema: Json, source: str) -> Codec:
    items = schema.get("items")
    if not isinstance(items, dict):
        raise Unsupported("an array without the type of its elements")
    if items.get("name") == "io.debezium.time.MicroTime":  # A domain over time[] has a name of its own.
        raise Unsupported(f"{LISTS_REFUSED['_TIME']}; leave the column out (column.exclude.list)")
    parameters = {**(items.get("parameters") or {})}
    if source and SOURCE_TYPE not in parameters:
        outer = schema.get("parameters") or {}
        parameters = {**outer, **parameters, SOURCE_TYPE: source.removeprefix("_")}
    element = codec_of({**items, "parameters": parameters})
    if element.element is not None or pa.types.is_struct(element.read):
        raise Unsupported("arrays of arrays or of structures have no exact form here; leave the column out (column.exclude.list)")
    form = LIST_FORMS.get(source)
    return list_of(replace(element, unsent=form or Unsent.TEXT), Unsent.NULL if form is None else Unsent.LIST)


def _refused(schema: Json, reason: str) -> Codec:
    """For a type without an exact form: a column whose values are refused one by one, so that rows without one are not held up.
    Raises Unsupported where not even NULL can be told."""
    source = source_type(schema).upper()
    unsent = Unsent.NULL if schema.get("type") == "array" or source == "VARBIT" else Unsent.NEVER
    items = schema.get("items") or {}
    if schema.get("type") == "array" and items.get("type") in PRIMITIVE:
        read = pa.list_(PRIMITIVE[items["type"]].read)
    elif schema.get("type") in PRIMITIVE:
        read = PRIMITIVE[str(schema["type"])].read
    else:
        raise Unsupported(reason)
    return Codec("refused", LogicalType(Kind.STRING), read, unsent=unsent, reason=reason)


def field_of(schema: Json) -> Field:
    """A column from a field of the row's schema. Raises Unsupported, naming the column."""
    name = str(schema["field"])
    try:
        try:
            codec = codec_of(schema)
        except Unsupported as problem:
            codec = _refused(schema, str(problem))
    except Unsupported as problem:
        raise Unsupported(f"column {name!r}: {problem}") from None
    source = source_type(schema)
    if schema.get("name") == "io.debezium.data.Bits" and source != "VARBIT":
        source = "BIT"  # A domain's name would not tell a decoder without schemas that these are bits.
    return Field(Column(name, codec.type, bool(schema.get("optional", False)), _default(schema.get("default"), codec), source), codec)


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


def struct_field(schema: Json, name: str) -> Json | None:
    """The field called ``name`` of a struct schema, or None."""
    fields = schema.get("fields") or []
    return next((field for field in fields if isinstance(field, dict) and field.get("field") == name), None)


def columns_of(row: Json) -> tuple[Field, ...]:
    """The table's columns from the schema of a row. Raises Unsupported."""
    return tuple(field_of(field) for field in row["fields"])
