"""Events as Connect's AvroConverter writes them, made of those of its JSON converter; the writer shares nothing with the readers."""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Sequence
from typing import Any

from tests.support.envelopes import Record

Schema = Any


def number(value: int) -> bytes:
    """An integer in Avro's variable length."""
    value = (value << 1) ^ (value >> 63)
    found = bytearray()
    while value >= 0x80:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def encode(schema: Schema, value: Any) -> bytes:
    """A datum; of a union, ``value`` is (branch, value)."""
    if isinstance(schema, list):
        place, inner = value
        return number(place) + encode(schema[place], inner)
    kind = schema if isinstance(schema, str) else schema["type"]
    if kind == "record":
        return b"".join(encode(field["type"], value[field["name"]]) for field in schema["fields"])
    if kind == "array":
        return _blocks([encode(schema["items"], one) for one in value])
    if kind == "map":
        return _blocks([encode("string", name) + encode(schema["values"], one) for name, one in value.items()])
    if kind == "enum":
        return number(schema["symbols"].index(value))
    if kind in ("string", "bytes"):
        content = value.encode() if kind == "string" else value
        return number(len(content)) + content
    if kind in ("int", "long"):
        return number(value)
    if kind in ("float", "double"):
        return struct.pack("<f" if kind == "float" else "<d", value)
    return {"null": b"", "boolean": bytes([value is True]), "fixed": value}[kind]


def _blocks(items: Sequence[bytes]) -> bytes:
    """Some in a block with its size, the rest in one without."""
    first, rest = b"".join(items[:2]), items[2:]
    head = number(-len(items[:2])) + number(len(first)) + first if items[:2] else b""
    return head + (number(len(rest)) + b"".join(rest) if rest else b"") + number(0)


_KINDS = {"int8": "int", "int16": "int", "int32": "int", "int64": "long", "float": "float", "double": "double", "boolean": "boolean"}


def avro_schema(connect: Schema, path: str = "R") -> Schema:
    """What AvroConverter makes of a schema as JsonConverter writes it."""
    kind = connect["type"]
    about = {f"connect.{name}": connect[name] for name in ("name", "version", "parameters", "default") if name in connect}
    if kind == "struct":
        fields = [{"name": f["field"], "type": avro_schema(f, f"{path}_{n}")} for n, f in enumerate(connect["fields"])]
        made: Schema = {"type": "record", "name": path, "fields": fields, **about}
    elif kind == "array":
        made = {"type": "array", "items": avro_schema(connect["items"], f"{path}_i"), **about}
    else:
        made = {"type": _KINDS.get(kind, kind), **({"connect.type": kind} if kind in ("int8", "int16") else {}), **about}
    return ["null", made] if connect.get("optional") else made


def avro_value(connect: Schema, value: Any) -> Any:
    """The value as ``encode`` takes it."""
    if value is None:
        return 0, None
    kind, made = connect["type"], value
    if kind == "struct":
        made = {f["field"]: avro_value(f, value.get(f["field"])) for f in connect["fields"]}
    elif kind == "array":
        made = [avro_value(connect["items"], one) for one in value]
    elif kind == "bytes":
        made = base64.b64decode(value)
    elif kind in ("float", "double"):
        made = float(value)
    return (1, made) if connect.get("optional") else made


class Registry:
    """A registry that tests fill (connectors.formats.avro.Registry), and what writes records with its numbers."""

    def __init__(self) -> None:
        self.texts: dict[int, str] = {}
        self.asked: list[int] = []
        self._numbers: dict[str, int] = {}
        self._schemas: dict[bytes, tuple[Schema, Schema, int]] = {}

    def schema(self, number: int) -> tuple[str, tuple[str, ...]] | None:
        self.asked.append(number)
        text = self.texts.get(number)
        return None if text is None else (text, ())

    def add(self, schema: Schema) -> int:
        text = json.dumps(schema)
        if text not in self._numbers:
            self._numbers[text] = len(self._numbers) + 1
            self.texts[self._numbers[text]] = text
        return self._numbers[text]

    def datum(self, document: bytes | None) -> bytes | None:
        """A key or value of JSON with its schema, in Confluent's wire format."""
        if document is None:
            return None
        schema, _, payload = document.partition(b',"payload":')
        if schema not in self._schemas:
            connect = json.loads(schema + b"}")["schema"]
            _complete(connect)
            made = avro_schema(connect)
            self._schemas[schema] = connect, made, self.add(made)
        connect, made, number_ = self._schemas[schema]
        return head(number_) + encode(made, avro_value(connect, json.loads(payload[:-1])))

    def record(self, record: Record) -> Record:
        return Record(self.datum(record.key), self.datum(record.value), record.partition, record.headers)


def head(number: int) -> bytes:
    return b"\0" + number.to_bytes(4, "big")


_TEXTS = ("version", "connector", "name", "snapshot", "db", "sequence", "schema", "table", "origin")
_SOURCE = (
    "version",
    "connector",
    "name",
    "ts_ms",
    "snapshot",
    "db",
    "sequence",
    "ts_us",
    "ts_ns",
    "schema",
    "table",
    "txId",
    "lsn",
    "xmin",
)


def _complete(schema: Schema) -> None:
    """tests.support.envelopes abbreviates what an envelope holds beside its rows."""
    for field in schema["fields"]:
        if field["field"] == "source":
            if len(field["fields"]) == 1:
                names = (*_SOURCE, "origin", "origin_lsn")
                field["fields"] = [{"type": "string" if name in _TEXTS else "int64", "optional": True, "field": name} for name in names]
            schema["fields"] += [{"type": "int64", "optional": True, "field": name} for name in ("ts_ms", "ts_us", "ts_ns")]
            return
