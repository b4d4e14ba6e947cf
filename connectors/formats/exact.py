"""The exact reader: one JSON document at a time, for what the columnar reader refuses. It gives the same Arrow values, or the reason."""

from __future__ import annotations

import math
from typing import Any

import orjson
import pyarrow as pa

_FLOATS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


class Inexact(ValueError):
    """A document, or a value in it, that is not what its schema says. ``code`` is stable; the message holds no values."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def parse(document: bytes) -> Any:
    """One JSON document; raises Inexact when it is none."""
    try:
        return orjson.loads(document)
    except orjson.JSONDecodeError:
        raise Inexact("bad_json", "the record is not valid JSON") from None


def exact(kind: pa.DataType, value: Any, where: str = "", closed: str | None = None) -> Any:
    """``value`` as Python gives it to Arrow for ``kind``, unchanged in meaning; raises Inexact where it is of another type or size.

    Structures may hold more fields than ``kind`` names, and NULL stands for missing ones; but the one at ``closed`` ("" is the document)
    holds no other fields, and, below the document, none is missing.
    """
    if value is None:
        return None
    if pa.types.is_struct(kind):
        if not isinstance(value, dict):
            raise _wrong(kind, where)
        names = {field.name for field in kind}
        if where == closed and (value.keys() - names or (where and names - value.keys())):
            raise Inexact("columns_differ", "the record's columns are not those that are known of the table")
        path = f"{where}." if where else ""
        return {field.name: exact(field.type, value.get(field.name), path + field.name, closed) for field in kind}
    if pa.types.is_list(kind):
        if not isinstance(value, list):
            raise _wrong(kind, where)
        return [exact(kind.value_type, element, where) for element in value]
    if pa.types.is_string(kind):
        matches = isinstance(value, str)
    elif pa.types.is_boolean(kind):
        matches = isinstance(value, bool)
    elif pa.types.is_integer(kind):
        limit = 1 << (kind.bit_width - 1)
        matches = type(value) is int and -limit <= value < limit
    elif pa.types.is_floating(kind):
        return _float(value, kind, where)
    else:
        raise TypeError(f"no exact reading of {kind}")
    if not matches:
        raise _wrong(kind, where)
    return value


def _float(value: Any, kind: pa.DataType, where: str) -> float:
    """A number, or the text that the connector writes where JSON has no number."""
    if type(value) in (int, float):
        return float(value)
    if isinstance(value, str) and value in _FLOATS:
        return _FLOATS[value]
    raise _wrong(kind, where)


def _wrong(kind: pa.DataType, where: str) -> Inexact:
    return Inexact("wrong_type", f"field {where or 'payload'} does not hold a value of {kind}")
