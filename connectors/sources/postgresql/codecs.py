"""How values of PostgreSQL's types stand in the connector's events: every type that Debezium emits.

Debezium's own types (connectors.formats.connect_schema) tell of most columns what they hold; here is what only the name of PostgreSQL's
type tells, with and without schemas in the events.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

import pyarrow as pa

from cdc_service.core.logical import DECIMAL_DIGITS_MAX, Kind, LogicalType, decimal
from cdc_service.core.types import Column
from cdc_service.ports.events import Ambiguous, Codec, ConnectSchema, Unsent, Unsupported
from connectors.formats.codecs import list_of
from connectors.formats.connect_schema import LENGTH, NUMERIC, PRIMITIVE, SCALE, SEMANTIC, SOURCE_TYPE, refused, standard
from connectors.formats.schemaless import by_kind, require
from connectors.sources.postgresql.settings import SETTINGS

_UNCONSTRAINED = {0, 131089}
"""Lengths that stand for numeric without a precision: the first in snapshots, the second in the stream."""
_NEGATIVE_SCALE = 1000
"""PostgreSQL's scales end at 1000; a larger one is a negative scale in 11 bits."""
_TEXT_AS_BYTES = frozenset(
    """
    LINE LSEG BOX PATH POLYGON CIRCLE INT4MULTIRANGE INT8MULTIRANGE NUMMULTIRANGE TSMULTIRANGE TSTZMULTIRANGE DATEMULTIRANGE XID XID8 CID
    TID PG_LSN TSQUERY REGCLASS REGTYPE REGPROC REGROLE REGNAMESPACE JSONPATH PG_SNAPSHOT TXID_SNAPSHOT ACLITEM LQUERY LTXTQUERY
    """.split()  # noqa: SIM905
)
"""Types that the connector does not know: it sends their text as bytes."""
_TEXT_IN_BYTES = Codec("base64_text", LogicalType(Kind.STRING), pa.string(), unsent=Unsent.BASE64)
_LIST_FORMS: dict[str, Unsent] = {"_TEXT": Unsent.TEXT, "_VARCHAR": Unsent.TEXT, "_JSON": Unsent.TEXT, "_JSONB": Unsent.TEXT}
_LIST_FORMS |= {"_BYTEA": Unsent.BASE64, "_INT4": Unsent.NEVER, "_INT8": Unsent.NEVER, "_DATE": Unsent.NEVER, "_UUID": Unsent.UUID}
"""Array types for which the connector has a form of its placeholder, and the element's; for others it sends NULL."""
_LISTS_REFUSED: dict[str, str] = {
    "_BIT": "the connector sends NULL for arrays of bit strings",
    "_VARBIT": "the connector sends NULL for arrays of bit strings",
    "_TIME": "the connector cuts times in arrays to milliseconds",
}


def source_type(field: ConnectSchema) -> str:
    """EventModel.source_type. A domain's name would not tell a decoder without schemas that its values are bits."""
    name = _told(field)
    return "BIT" if field.get("name") == "io.debezium.data.Bits" and name != "VARBIT" else name


def _told(field: ConnectSchema) -> str:
    """The type as the field names it. Snapshots put a schema that is not in the search path before it, the stream does not."""
    text = str((field.get("parameters") or {}).get(SOURCE_TYPE) or "")
    with_schema = re.fullmatch(r'".*"\."(.*)"', text)
    return with_schema[1] if with_schema else text


def codec(field: ConnectSchema) -> Codec:
    """EventModel.codec."""
    try:
        return _codec(field)
    except Unsupported as problem:
        if field.get("type") != "array" and _told(field).upper() != "VARBIT":
            raise
        return refused(field, str(problem), Unsent.NULL)


def _codec(field: ConnectSchema) -> Codec:
    """Raises Unsupported."""
    kind, name = str(field.get("type")), field.get("name")
    source = _told(field).upper()
    if source in _LISTS_REFUSED:
        raise Unsupported(f"{_LISTS_REFUSED[source]}; leave the column out (column.exclude.list)")
    if kind == "array":
        return _array(field, source)
    if source == "VARBIT":
        raise Unsupported("bit varying arrives without its length; leave the column out (column.exclude.list)")
    if name is None and kind in PRIMITIVE and source in ("NUMERIC", "MONEY"):
        return _number(kind, source, field.get("parameters") or {})
    found = standard(field)
    if name is None:
        return _TEXT_IN_BYTES if kind == "bytes" and source in _TEXT_AS_BYTES else found
    return replace(found, unsent=Unsent.OBJECT) if source == "HSTORE" else found


def _number(kind: str, source: str, parameters: Mapping[str, str]) -> Codec:
    if kind != "string":
        raise Unsupported(f"{source.lower()} as {kind} is not exact; set decimal.handling.mode=string")
    if source == "MONEY":
        return Codec("decimal", decimal(19, 2), pa.string())
    precision, scale = int(parameters.get(LENGTH) or 0), int(parameters.get(SCALE) or 0)
    if precision in _UNCONSTRAINED:
        return NUMERIC
    if scale > _NEGATIVE_SCALE:
        return replace(NUMERIC, parameter=-1)
    if 0 <= scale <= precision <= DECIMAL_DIGITS_MAX:
        return Codec("decimal", decimal(precision, scale), pa.string(), unsent=Unsent.TEXT)
    return NUMERIC


def _array(field: ConnectSchema, source: str) -> Codec:
    items = field.get("items")
    if not isinstance(items, dict):
        raise Unsupported("an array without the type of its elements")
    if items.get("name") == "io.debezium.time.MicroTime":  # A domain over time[] has a name of its own.
        raise Unsupported(f"{_LISTS_REFUSED['_TIME']}; leave the column out (column.exclude.list)")
    parameters = {**(items.get("parameters") or {})}
    if source and SOURCE_TYPE not in parameters:
        outer = field.get("parameters") or {}
        parameters = {**outer, **parameters, SOURCE_TYPE: source.removeprefix("_")}
    element = _codec({**items, "parameters": parameters})
    if element.element is not None or pa.types.is_struct(element.read):
        raise Unsupported("arrays of arrays or of structures have no exact form here; leave the column out (column.exclude.list)")
    return _listed(element, source)


def _listed(element: Codec, source: str) -> Codec:
    form = _LIST_FORMS.get(source)
    return list_of(replace(element, unsent=form or Unsent.TEXT), Unsent.NULL if form is None else Unsent.LIST)


def codec_without_schema(column: Column, connector: Mapping[str, str] | None) -> Codec:
    """EventModel.codec_without_schema."""
    settings = SETTINGS if connector is None else connector
    source = column.source_type.upper()
    if source in ("BIT", "VARBIT", *_LISTS_REFUSED) or not source:
        raise Ambiguous
    if "HSTORE" in source:
        require(settings, "hstore.handling.mode", "map", {"json"})
    if source == "POINT":
        return SEMANTIC["struct", "io.debezium.data.geometry.Point"]
    if column.type.element is not None:
        return _listed(_of_kind(column.type.element, source.removeprefix("_"), settings), source)
    return _of_kind(column.type, source, settings)


def _of_kind(kind: LogicalType, source: str, settings: Mapping[str, str]) -> Codec:
    found = by_kind(kind, settings)
    if found.name != "plain" or not pa.types.is_string(found.read):
        return found
    if source in _TEXT_AS_BYTES:
        return replace(_TEXT_IN_BYTES, type=kind)
    return replace(found, unsent=Unsent.OBJECT) if source == "HSTORE" else found
