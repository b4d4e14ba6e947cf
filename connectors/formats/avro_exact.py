"""The exact reader of Avro: one datum at a time, in plain Python. What it says is the truth; the columnar reader is held equal to it.

It takes no more memory than the bytes that it is given, whatever these claim: a length or a count beyond them is an error.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from connectors.formats.avro_schema import Node
from connectors.formats.exact import Inexact

ANY = pa.null()
"""Stands for "whatever it is" as a wanted type."""


def reader(node: Node, kind: pa.DataType | None) -> Callable[[bytes], Any]:
    """Reads the one datum that some bytes are, as Python gives it to Arrow for ``kind``; fields of records that ``kind`` does not name are
    left out, ones that it names and the schema lacks are NULL. None for ``kind`` takes everything as it is. What it gives raises Inexact.
    """
    read = _reads(node, ANY if kind is None else kind)

    def whole(data: bytes) -> Any:
        here = _Cursor(data)
        value = read(here)
        if here.at != len(data):
            raise Inexact("bad_avro", "bytes follow the record's Avro datum")
        return value

    return whole


_WANTED = {"string": pa.string(), "enum": pa.string(), "bytes": pa.binary(), "fixed": pa.binary(), "boolean": pa.bool_()}
_WANTED |= {"float": pa.float32(), "double": pa.float64()}


def fits(node: Node, kind: pa.DataType) -> bool:
    """Whether a type of the schema (not a union) may hold what is wanted."""
    if kind == ANY or node.kind == "null":
        return True
    if pa.types.is_integer(kind):
        return node.kind in ("int", "long")
    if node.kind in _WANTED:
        return bool(_WANTED[node.kind] == kind)
    return pa.types.is_struct(kind) if node.kind == "record" else pa.types.is_list(kind) and node.kind == "array"


@dataclass(slots=True)
class _Cursor:
    """Where reading stands in the bytes of one datum."""

    data: bytes
    at: int = 0

    def long(self) -> int:
        value = shift = 0
        data, at, size = self.data, self.at, len(self.data)
        while True:
            if at >= size:
                raise _bad()
            byte = data[at]
            at += 1
            if byte < 0x80:
                break
            value |= (byte & 0x7F) << shift
            shift += 7
            if shift > 63:
                raise _bad()
        value |= byte << shift
        if value >> 64:
            raise _bad()
        self.at = at
        return (value >> 1) ^ -(value & 1)

    def take(self, size: int) -> bytes:
        start = self.at
        if not 0 <= size <= len(self.data) - start:
            raise _bad()
        self.at = start + size
        return self.data[start : start + size]


Read = Callable[[_Cursor], Any]


def _bad() -> Inexact:
    return Inexact("bad_avro", "the record's bytes are not what its Avro schema says")


def _reads(node: Node, kind: pa.DataType) -> Read:
    """What reads a value of the type: everything is read, also what is not wanted."""
    if node.kind == "union":
        return _union([_reads(branch, kind) for branch in node.branches])
    if not fits(node, kind):
        return _unfit(node.kind, str(kind))
    if node.kind == "record":
        return _record(node, kind)
    if node.items is not None:
        items = _reads(node.items, ANY if kind == ANY else kind.value_type)
        return _map(items) if node.kind == "map" else _array(items)
    if node.kind in ("int", "long"):
        return _integer(32 if node.kind == "int" else 64, 64 if kind == ANY else kind.bit_width, str(kind))
    if node.kind == "enum":
        return _enum(node.symbols)
    width = node.width
    if node.kind == "fixed":
        return lambda here: here.take(width)
    return _SCALARS[node.kind]


def _union(branches: list[Read]) -> Read:
    count = len(branches)

    def read(here: _Cursor) -> Any:
        branch = here.long()
        if not 0 <= branch < count:
            raise _bad()
        return branches[branch](here)

    return read


def _unfit(found: str, wanted: str) -> Read:
    def read(here: _Cursor) -> Any:
        raise Inexact("wrong_type", f"the schema's {found} is no {wanted}")

    return read


def _record(node: Node, kind: pa.DataType) -> Read:
    wanted = {one.name: ANY for one in node.fields} if kind == ANY else {field.name: field.type for field in kind}
    fields = [(one.name if one.name in wanted else None, _reads(one.type, wanted.get(one.name, ANY))) for one in node.fields]

    def read(here: _Cursor) -> Any:
        row: dict[str, Any] = dict.fromkeys(wanted)
        for name, field in fields:
            value = field(here)
            if name is not None:
                row[name] = value
        return row

    return read


def _array(items: Read) -> Read:
    def read(here: _Cursor) -> Any:
        found: list[Any] = []
        while count := _more(here):
            found += [items(here) for _ in range(count)]
        return found

    return read


def _map(items: Read) -> Read:
    def read(here: _Cursor) -> Any:
        found: dict[str, Any] = {}
        while count := _more(here):
            for _ in range(count):
                name = _text(here)
                found[name] = items(here)
        return found

    return read


def _more(here: _Cursor) -> int:
    """The number of elements in the next block."""
    count = here.long()
    if count < 0:
        count = -count
        here.long()
    if count > len(here.data) - here.at:
        raise _bad()
    return count


def _integer(own: int, wanted: int, name: str) -> Read:
    limit, narrow = 1 << (own - 1), 1 << (wanted - 1)

    def read(here: _Cursor) -> int:
        value = here.long()
        if not -limit <= value < limit:
            raise _bad()
        if not -narrow <= value < narrow:
            raise Inexact("wrong_type", f"an integer of the record is no {name}")
        return value

    return read


def _enum(symbols: tuple[str, ...]) -> Read:
    def read(here: _Cursor) -> str:
        symbol = here.long()
        if not 0 <= symbol < len(symbols):
            raise _bad()
        return symbols[symbol]

    return read


def _text(here: _Cursor) -> str:
    try:
        return here.take(here.long()).decode()
    except UnicodeDecodeError:
        raise Inexact("bad_avro", "the record's text is not UTF-8") from None


def _flag(here: _Cursor) -> bool:
    flag = here.take(1)[0]
    if flag > 1:
        raise _bad()
    return bool(flag)


_SCALARS: dict[str, Read] = {
    "null": lambda here: None,
    "boolean": _flag,
    "float": lambda here: struct.unpack("<f", here.take(4))[0],
    "double": lambda here: struct.unpack("<d", here.take(8))[0],
    "bytes": lambda here: here.take(here.long()),
    "string": _text,
}
