"""Events as Debezium writes them, made in bulk out of ones that it wrote: everything but the values that change is copied from those.

Promises: with the values of the recorded event, an Event makes exactly its bytes (``learn`` checks that), so what a benchmark reads has
the form of the connector's own, in JSON with and without schemas and in Avro.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

Path = tuple[str, ...]
MOVING: Mapping[Path, str] = {
    ("source", "ts_ms"): "source_ms",
    ("source", "ts_us"): "source_us",
    ("source", "ts_ns"): "source_ns",
    ("source", "sequence"): "sequence",
    ("source", "txId"): "transaction",
    ("source", "lsn"): "lsn",
    ("ts_ms",): "ms",
    ("ts_us",): "us",
    ("ts_ns",): "ns",
}
"""What changes from event to event beside the row, by its place in the envelope."""


@dataclass(frozen=True, slots=True)
class Gap:
    """A place for the value of a column; ``kind`` is how it is written."""

    name: str
    kind: str


@dataclass(frozen=True, slots=True)
class Event:
    """Literal bytes and gaps in turn."""

    parts: tuple[bytes | Gap, ...]

    def render(self, columns: Mapping[str, pa.Array]) -> pa.Array:
        """One value a row of the columns."""
        written = [part if isinstance(part, bytes) else _WRITERS[part.kind](columns[part.name]) for part in self.parts]
        if all(isinstance(part, bytes) for part in written):
            rows = len(next(iter(columns.values())))
            return pa.array([b"".join(written)] * rows, pa.binary())
        return pc.binary_join_element_wise(*(pa.scalar(p, pa.binary()) if isinstance(p, bytes) else p for p in written), pa.scalar(b""))


def _text(values: pa.Array) -> pa.Array:
    return values.cast(pa.string()).cast(pa.binary())


def _escaped(values: pa.Array) -> pa.Array:
    text = values.cast(pa.string())
    if pc.any(pc.match_substring(text, '"')).as_py():
        text = pc.replace_substring(text, '"', '\\"')
    return text.cast(pa.binary())


def _zigzag(values: pa.Array) -> pa.Array:
    number = values.cast(pa.int64()).to_numpy(zero_copy_only=False)
    return _varints(((number << 1) ^ (number >> 63)).astype(np.uint64))


def _varints(number: npt.NDArray[np.uint64]) -> pa.Array:
    """Seven bits a byte, the lowest first; the top bit says that more follow."""
    groups = (number[:, None] >> (np.arange(10, dtype=np.uint64) * np.uint64(7))).astype(np.uint64)
    length = np.maximum(1, (groups != 0).sum(axis=1))
    place = np.arange(10)
    bytes_ = (groups & np.uint64(0x7F)).astype(np.uint8) | np.where(place < (length - 1)[:, None], 0x80, 0).astype(np.uint8)
    content = bytes_[place < length[:, None]]
    offsets = np.concatenate([[0], np.cumsum(length)]).astype(np.int32)
    return pa.BinaryArray.from_buffers(pa.binary(), len(number), [None, pa.py_buffer(offsets), pa.py_buffer(content)])


def _avro_text(values: pa.Array) -> pa.Array:
    content = _text(values)
    return pc.binary_join_element_wise(_zigzag(pc.binary_length(content)), content, pa.scalar(b""))


def _avro_bool(values: pa.Array) -> pa.Array:
    return pa.array([b"\0", b"\1"], pa.binary()).take(values.cast(pa.int32()))


_WRITERS = {"json": _text, "json text": _escaped, "long": _zigzag, "string": _avro_text, "boolean": _avro_bool}


# From recorded events


def learn(recorded: bytes, row: Sequence[str], schemas: Mapping[int, Any]) -> tuple[Event, dict[str, Any]]:
    """The event as a form to fill, and the values that it was recorded with; ``row`` are the names of the table's columns, ``schemas``
    those of Avro by their number. Raises AssertionError where the form with these values does not give the recorded bytes."""
    found: dict[str, Any] = {}
    if recorded[:1] == b"\0":
        reader = _Avro(recorded, row, found)
        parts = reader.all(schemas[int.from_bytes(recorded[1:5], "big")])
    else:
        parts = _json(recorded, row, found)
    event = Event(tuple(parts))
    again = event.render({name: pa.array([value]) for name, value in found.items()} or {"": pa.array([0])})[0].as_py()
    assert again == recorded, f"the form gives {again[-700:]!r} and not the recorded {recorded[-700:]!r}"
    return event, found


def _gap(path: Path, row: Sequence[str]) -> str | None:
    """The column whose value stands at this place of an envelope or key; None where it is always the same."""
    if path in MOVING:
        return MOVING[path]
    return path[-1] if path[:-1] in ((), ("after",), ("before",)) and path[-1] in row else None


def _json(recorded: bytes, row: Sequence[str], found: dict[str, Any]) -> list[bytes | Gap]:
    split = recorded.rfind(b',"payload":') if recorded.startswith(b'{"schema":') else -1
    head = recorded[: split + 11] if split >= 0 else b""
    payload = recorded[len(head) : len(recorded) - bool(head)]

    def marked(value: Any, path: Path) -> Any:
        if isinstance(value, dict):
            return {name: marked(inner, (*path, name)) for name, inner in value.items()}
        name = _gap(path, row) if path and value is not None else None
        if name is None or (path[0] == "before" and name != "id"):
            return value
        found[name] = value
        return f"\0{name}\0" if isinstance(value, str) else f"\0\0{name}\0\0"

    text = json.dumps(marked(json.loads(payload), ()), separators=(",", ":"), ensure_ascii=False)
    text = text.replace("\\u0000", "\0").replace('"\0\0', "\1").replace('\0\0"', "\1")
    parts: list[bytes | Gap] = []
    for place, piece in enumerate(_split(text)):
        parts.append(piece.encode() if place % 2 == 0 else Gap(piece[1:], "json" if piece[0] == "\1" else "json text"))
    assert isinstance(parts[0], bytes)
    assert isinstance(parts[-1], bytes)
    return [head + parts[0], *parts[1:-1], parts[-1] + (b"}" if head else b"")]


def _split(text: str) -> list[str]:
    """Literals and, between them, names after the mark that says how they stood."""
    pieces, rest = [], text
    while True:
        starts = [at for at in (rest.find("\0"), rest.find("\1")) if at >= 0]
        if not starts:
            return [*pieces, rest]
        start = min(starts)
        mark = rest[start]
        stop = rest.index(mark, start + 1)
        pieces += [rest[:start], mark + rest[start + 1 : stop]]
        rest = rest[stop + 1 :]


class _Avro:
    """Walks a recorded datum by its schema and cuts it at the values that change."""

    def __init__(self, data: bytes, row: Sequence[str], found: dict[str, Any]) -> None:
        self._data, self._row, self._found = data, row, found
        self._at = self._from = 0
        self._parts: list[bytes | Gap] = []
        self._named: dict[str, Any] = {}

    def all(self, schema: Any) -> list[bytes | Gap]:
        self._at = 5
        self._define(schema)
        self._walk(schema, ())
        assert self._at == len(self._data), f"{len(self._data) - self._at} bytes are left of a recorded event"
        return [*self._parts, self._data[self._from :]]

    def _define(self, schema: Any) -> None:
        """Keeps the records that the schema defines: a reference may be met where the definition was not walked through."""
        if isinstance(schema, list):
            for branch in schema:
                self._define(branch)
        elif isinstance(schema, dict):
            if schema["type"] == "record":
                self._named[schema["name"]] = self._named[f"{schema.get('namespace', '')}.{schema['name']}"] = schema
            for field in schema.get("fields", ()):
                self._define(field["type"])

    def _walk(self, schema: Any, path: Path) -> None:
        if isinstance(schema, list):
            self._walk(schema[self._long()], path)
            return
        if isinstance(schema, str) and schema in self._named:
            schema = self._named[schema]
        kind = schema if isinstance(schema, str) else schema["type"]
        if kind == "record":
            for field in schema["fields"]:
                self._walk(field["type"], (*path, field["name"].replace("_u005f", "_")))  # As the connector spells it for Avro.
        elif isinstance(kind, (dict, list)):
            self._walk(kind, path)
        else:
            self._leaf(kind, path)

    def _leaf(self, kind: str, path: Path) -> None:
        start = self._at
        value: Any = None
        if kind in ("int", "long"):
            value, kind = self._long(), "long"
        elif kind == "string":
            size = self._long()
            value = self._data[self._at : self._at + size].decode()
            self._at += size
        elif kind == "boolean":
            value = self._data[self._at] == 1
            self._at += 1
        else:
            assert kind == "null", f"no event of a benchmark holds a value of Avro's type {kind}"
        name = _gap(path, self._row) if value is not None else None
        if name is not None and not (path[0] == "before" and name != "id"):
            self._found[name] = value
            self._parts += [self._data[self._from : start], Gap(name, kind)]
            self._from = self._at

    def _long(self) -> int:
        number = shift = 0
        while True:
            byte = self._data[self._at]
            self._at += 1
            number |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                return (number >> 1) ^ -(number & 1)
