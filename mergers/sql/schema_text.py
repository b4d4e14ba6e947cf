"""TableSchema to JSON text and back, exactly: how ``schema_history`` keeps the versions of a table."""

from __future__ import annotations

import datetime as dt
import json
import uuid
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from cdc_service.core.logical import parse_type
from cdc_service.core.types import Column, TableId, TableSchema


def schema_to_json(schema: TableSchema) -> str:
    columns = [
        {
            "name": c.name,
            "type": str(c.type),
            "nullable": c.nullable,
            "default": _encode(c.default),
            "source_type": c.source_type,
            "dropped": c.dropped,
            **({} if c.unread is None else {"unread": c.unread}),
            **({"former": c.former} if c.former else {}),
        }
        for c in schema.columns
    ]
    document = {"schema": schema.table.schema, "table": schema.table.name, "key": list(schema.key), "columns": columns}
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


def schema_from_json(text: str) -> TableSchema:
    """Raises ValueError or KeyError on text that ``schema_to_json`` did not write."""
    document = json.loads(text)
    columns = tuple(map(_column, document["columns"]))
    return TableSchema(TableId(document["schema"], document["table"]), columns, tuple(document["key"]))


def _column(c: Mapping[str, Any]) -> Column:
    former = tuple((name, position) for name, position in c.get("former", ()))
    type_, default = parse_type(c["type"]), _decode(c["default"])
    return Column(c["name"], type_, c["nullable"], default, c["source_type"], c["dropped"], c.get("unread"), former)


def _encode(value: Any) -> Any:
    """JSON's own types as they are, everything else as {kind: text}; JSON has neither NaN nor a float that keeps its type."""
    match value:
        case None | bool() | int() | str():
            return value
        case float():
            return {"float": repr(value)}
        case Decimal():
            return {"decimal": str(value)}
        case bytes():
            return {"bytes": value.hex()}
        case dt.datetime():
            return {"datetime": value.isoformat()}
        case dt.date():
            return {"date": value.isoformat()}
        case dt.time():
            return {"time": value.isoformat()}
        case uuid.UUID():
            return {"uuid": str(value)}
        case list() | tuple():
            return {"list": [_encode(item) for item in value]}
    raise TypeError(f"a column's default of type {type(value).__name__} cannot be recorded")


def _decode(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, held),) = value.items()
    if kind == "list":
        return [_decode(item) for item in held]
    return _DECODERS[kind](held)


_DECODERS: dict[str, Callable[[str], Any]] = {
    "float": float,
    "decimal": Decimal,
    "bytes": bytes.fromhex,
    "datetime": dt.datetime.fromisoformat,
    "date": dt.date.fromisoformat,
    "time": dt.time.fromisoformat,
    "uuid": uuid.UUID,
}
