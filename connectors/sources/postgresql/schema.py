"""A table's schema out of PostgreSQL's catalog, equal to what a decoder learns from the connector's events of the same table.

The catalog's types are put into the form that events give them (a field of Connect's schema), and from there on the decoder's own
functions are asked. Every form here was seen in events of Debezium 3.6, in snapshot and stream; for a type that was not, there is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cdc_service.core.types import TableSchema
from cdc_service.ports.events import Unsupported
from cdc_service.ports.source import SourceTable
from connectors.formats.connect_schema import LENGTH, SCALE, SOURCE_TYPE, field_of
from connectors.formats.layout import Layout, ValueFields, make_layout, read_key_schema
from connectors.sources.postgresql.events import PostgresEvents

Row = Mapping[Any, Any]
Form = dict[str, Any]
_EVENTS = PostgresEvents()

COLUMNS = """
SELECT a.attname AS name, a.atttypid::bigint AS type, a.atttypmod AS modifier, a.attnotnull AS required, a.attgenerated <> '' AS generated
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = :schema AND c.relname = :table AND c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attnum
"""

TYPES = """
WITH RECURSIVE used(oid) AS (
    SELECT a.atttypid FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = :schema AND c.relname = :table AND c.relkind IN ('r', 'p') AND a.attnum > 0 AND NOT a.attisdropped
    UNION
    SELECT inner_type FROM used JOIN pg_type t ON t.oid = used.oid, unnest(ARRAY[t.typbasetype, t.typelem]) AS inner_type
    WHERE inner_type <> 0)
SELECT t.oid::bigint, t.typname::text AS name, t.typtype::text AS kind, t.typbasetype::bigint AS base, t.typtypmod AS modifier,
       t.typnotnull AS required, CASE WHEN e.typarray = t.oid THEN e.oid ELSE 0 END::bigint AS element,
       t.typnamespace = 'pg_catalog'::regnamespace AS builtin,
       (SELECT count(*) FROM pg_type o WHERE o.typname = t.typname) AS namesakes
FROM used JOIN pg_type t ON t.oid = used.oid LEFT JOIN pg_type e ON e.oid = t.typelem
"""
"""The types of a table's columns, those below domains and arrays included."""

_FORMS: dict[str, tuple[str, str | None]] = {
    **{"bool": ("boolean", None), "int2": ("int16", None), "int4": ("int32", None), "int8": ("int64", None), "oid": ("int64", None)},
    **{"float4": ("float", None), "float8": ("double", None), "bytea": ("bytes", None)},
    **dict.fromkeys("bpchar char cidr inet macaddr macaddr8 money name numeric text varchar".split(), ("string", None)),  # noqa: SIM905
    **dict.fromkeys("int4range int8range numrange tsrange tstzrange daterange".split(), ("string", None)),  # noqa: SIM905
    **{"json": ("string", "io.debezium.data.Json"), "jsonb": ("string", "io.debezium.data.Json")},
    **{"uuid": ("string", "io.debezium.data.Uuid"), "xml": ("string", "io.debezium.data.Xml")},
    **{"tsvector": ("string", "io.debezium.data.Tsvector"), "point": ("struct", "io.debezium.data.geometry.Point")},
    **{"date": ("int32", "io.debezium.time.Date"), "time": ("int64", "io.debezium.time.MicroTime")},
    **{"timetz": ("string", "io.debezium.time.ZonedTime"), "timestamp": ("int64", "io.debezium.time.MicroTimestamp")},
    **{"timestamptz": ("string", "io.debezium.time.ZonedTimestamp"), "interval": ("string", "io.debezium.time.Interval")},
    **dict.fromkeys(
        """
        aclitem box cid circle datemultirange gtsvector int4multirange int8multirange jsonpath line lseg nummultirange path pg_lsn
        pg_snapshot polygon refcursor regclass regcollation regconfig regdictionary regnamespace regoper regoperator regproc regprocedure
        regrole regtype tid tsmultirange tsquery tstzmultirange txid_snapshot xid xid8
        """.split(),  # noqa: SIM905
        ("bytes", None),
    ),
}
"""Built-in types as events carry them: Connect's type and Debezium's name for it."""
_EXTENSIONS: dict[str, tuple[str, str | None]] = {
    **{"citext": ("string", None), "hstore": ("string", "io.debezium.data.Json"), "ltree": ("string", "io.debezium.data.Ltree")},
    **{"isbn": ("string", None), "lquery": ("bytes", None), "ltxtquery": ("bytes", None), "cube": ("bytes", None)},
    **{"seg": ("bytes", None), "ean13": ("bytes", None)},
}
"""The same for types of extensions, which the connector tells by their names."""
_NAMES_WITH_A_MEANING = {*_EXTENSIONS, "geometry", "geography", "vector", "halfvec", "sparsevec", "serial", "smallserial", "bigserial"}
_OTHERS = {"e": ("string", "io.debezium.data.Enum"), "c": ("bytes", None), "r": ("bytes", None), "m": ("bytes", None)}
"""Enums, composites, ranges and multiranges of the database's own."""
_NEVER_SENT = {"interval", "money", "name", "point", "refcursor", "xml"}
"""Types of which arrays are no part of events."""

_SETTINGS_APART = tuple(
    """
    database. errors. heartbeat. incremental.snapshot. lsn. max. notification. poll. producer. retriable. signal. slot. topic.creation.
    column.exclude.list snapshot.mode snapshot.fetch.size snapshot.max.threads status.update.interval.ms
    key.converter.schemas.enable value.converter.schemas.enable
    """.split()  # noqa: SIM905
)
"""How options begin that have no say in what a column looks like (column.exclude.list counts in SourceTable.columns already)."""


class Uncertain(Exception):
    """A column whose form in events is not known."""


def may_be_told(options: Mapping[str, str], settings: Mapping[str, str]) -> bool:
    """Whether the connector's ``options`` leave the forms of columns to ``settings``."""
    return all(key.startswith(_SETTINGS_APART) or settings.get(key) == value for key, value in options.items())


def schema_of(table: SourceTable, columns: Sequence[Row], types: Mapping[int, Row]) -> TableSchema | None:
    """The table's schema from rows of COLUMNS and TYPES (by oid); None where a column's form in events is not certain, or the table changed
    since ``table`` was read."""
    wanted = [c for c in columns if not c["generated"] and c["name"] in {column.name for column in table.columns}]
    if {c["name"] for c in wanted} != {column.name for column in table.columns if not column.generated}:
        return None
    try:
        fields = [field for column in wanted if (field := _field(column, types)) is not None]
        by_name = {field["field"]: field for field in fields}
        key = read_key_schema(_EVENTS, {"type": "struct", "fields": [by_name[name] for name in table.key]})
        value = ValueFields(
            tuple(field_of(field, _EVENTS) for field in fields), read_key_schema(_EVENTS, {"type": "struct", "fields": fields})
        )
    except (Uncertain, Unsupported, KeyError):
        return None
    layout = make_layout(value, key)
    return layout.schema(table.table) if isinstance(layout, Layout) else None


def _field(column: Row, types: Mapping[int, Row]) -> Form | None:
    """The column as a field of an event's row, or None where events leave it out. Raises Uncertain."""
    form, outer = _form(column["type"], column["modifier"], types), types[column["type"]]
    if form is None:
        return None
    parameters = {**form.get("parameters", {}), SOURCE_TYPE: outer["name"].upper()}
    return {**form, "field": column["name"], "optional": not (column["required"] or outer["required"]), "parameters": parameters}


def _form(oid: int, modifier: int, types: Mapping[int, Row]) -> Form | None:
    """Connect's schema of a type's values, or None where events have none. Raises Uncertain."""
    kind = types[oid]
    name = kind["name"]
    if not kind["builtin"] and kind["namesakes"] > 1:
        raise Uncertain(name)  # The connector finds types by their bare names, and takes one of the same name for the other.
    if kind["kind"] == "d":
        base = types[kind["base"]]
        if base["kind"] == "e":
            raise Uncertain(name)  # The connector does not even start.
        # The innermost domain's modifier is the base type's.
        return _form(kind["base"], kind["modifier"], types)
    if kind["element"]:
        return _array(types[kind["element"]], modifier, types)
    found = _FORMS.get(name) if kind["builtin"] else _EXTENSIONS.get(name) if kind["kind"] == "b" else None
    if found is None and not kind["builtin"] and name not in _NAMES_WITH_A_MEANING:
        found = _OTHERS.get(kind["kind"])
    if found is not None:
        return {"type": found[0], "name": found[1], "parameters": _number(modifier) if name == "numeric" else {}}
    if kind["builtin"] and name in ("bit", "varbit"):
        return _bits(name, modifier)
    raise Uncertain(name)


def _array(element: Row, modifier: int, types: Mapping[int, Row]) -> Form | None:
    if element["kind"] == "d":
        return {"type": "array", "items": {"type": "bytes", "name": None}}
    if element["builtin"] and element["name"] in _NEVER_SENT:
        return None
    if element["builtin"] and element["name"] in ("bit", "varbit"):
        raise Uncertain(element["name"])  # A table that has one is not registered.
    return {"type": "array", "items": _form(element["oid"], modifier, types)}


def _number(modifier: int) -> dict[str, str]:
    """Precision and scale as events spell them: a negative scale in 11 bits."""
    return {LENGTH: "0"} if modifier < 0 else {LENGTH: str((modifier - 4) >> 16 & 0xFFFF), SCALE: str((modifier - 4) & 0x7FF)}


def _bits(name: str, modifier: int) -> Form:
    if modifier == 1 or (name == "bit" and modifier < 0):
        return {"type": "boolean", "name": None}
    return {"type": "bytes", "name": "io.debezium.data.Bits", "parameters": {"length": str(modifier if modifier > 0 else 2**31 - 1)}}
