"""Python values of a driver as Arrow columns of logical types: exactly, or not at all.

Promises: a value that ``column`` gives is the one that the driver gave; of every other one it says why it has no exact form.

Example: ``column([1, "x"], LogicalType(Kind.INT64))`` is ``([1, None], {1: "is no whole number"})``.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal, InvalidOperation
from typing import Any

import pyarrow as pa

from cdc_service.core.logical import Kind, LogicalType

_BITS = {Kind.INT16: 15, Kind.INT32: 31, Kind.INT64: 63}
_PLAIN: dict[Kind, frozenset[type]] = {
    **dict.fromkeys(_BITS, frozenset({int, type(None)})),
    Kind.BOOL: frozenset({bool, type(None)}),
    Kind.FLOAT64: frozenset({float, type(None)}),
    Kind.STRING: frozenset({str, type(None)}),
    Kind.JSON: frozenset({str, type(None)}),
    Kind.BYTES: frozenset({bytes, type(None)}),
    Kind.DATE: frozenset({str, type(None)}),
    Kind.TIMESTAMP: frozenset({str, type(None)}),
}
"""Python's types that Arrow takes as they are, or parses and refuses what it would cut."""
_WHOLE_DATE = re.compile(r"\d{4}-\d\d-\d\d")
_EXACT_FLOAT = 2**53


def column(values: Sequence[Any], type_: LogicalType) -> tuple[pa.Array, Mapping[int, str]]:
    """The values, NULL where one has no exact form, and of these the reason by their places."""
    if set(map(type, values)) <= _PLAIN.get(type_.kind, frozenset()):
        try:
            if type_.kind in (Kind.DATE, Kind.TIMESTAMP):
                return pa.array(values, pa.string()).cast(type_.arrow), {}
            return pa.array(values, type_.arrow), {}
        except (pa.ArrowException, OverflowError, UnicodeEncodeError):
            pass  # Some value is to blame.
    read, found, wrong = _READERS.get(type_.kind), list[Any](), dict[int, str]()
    for place, value in enumerate(values):
        try:
            if value is not None and read is None:
                raise ValueError(f"has no exact form as {type_}")
            made = None if value is None or read is None else read(value, type_)
            if made is not None:
                pa.scalar(made, type_.arrow)
            found.append(made)
        except (ValueError, OverflowError, InvalidOperation, pa.ArrowException) as error:
            found.append(None)
            wrong[place] = str(error) if type(error) is ValueError else f"is outside of what {type_} holds"
    return pa.array(found, type_.arrow), wrong


def raw(names: Sequence[str], row: Sequence[Any]) -> bytes:
    """A row as the quarantine keeps it: JSON, bytes as {"hex": ..}, what JSON has no form for as text."""

    def form(value: object) -> object:
        return {"hex": value.hex()} if isinstance(value, bytes) else str(value)

    return json.dumps(dict(zip(names, row, strict=True)), default=form, ensure_ascii=False).encode(errors="surrogatepass")


def _int(value: Any, type_: LogicalType) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("is no whole number")
    if not -(2 ** _BITS[type_.kind]) <= value < 2 ** _BITS[type_.kind]:
        raise ValueError(f"is outside of what {type_} holds")
    return value


def _bool(value: Any, type_: LogicalType) -> bool:
    if value not in (0, 1) or isinstance(value, str):
        raise ValueError("is neither true nor false")
    return bool(value)


def _float(value: Any, type_: LogicalType) -> float:
    if isinstance(value, bool) or not isinstance(value, float | int) or (isinstance(value, int) and abs(value) > _EXACT_FLOAT):
        raise ValueError(f"has no exact form as {type_}")
    if type_.kind is Kind.FLOAT32 and not (math.isnan(value) or pa.scalar(value, pa.float32()).as_py() == value):
        raise ValueError(f"has no exact form as {type_}")
    return float(value)


def _string(value: Any, type_: LogicalType) -> str:
    if not isinstance(value, str):
        raise ValueError("is no text")
    value.encode()
    return value


def _bytes(value: Any, type_: LogicalType) -> bytes:
    if not isinstance(value, bytes | bytearray | memoryview):
        raise ValueError("holds no bytes")
    return bytes(value)


def _date(value: Any, type_: LogicalType) -> dt.date:
    if isinstance(value, str) and _WHOLE_DATE.fullmatch(value):
        value = dt.date.fromisoformat(value)
    if isinstance(value, dt.datetime) or not isinstance(value, dt.date):
        raise ValueError("is no date such as 2026-01-31")
    return value


def _timestamp(value: Any, type_: LogicalType) -> Any:
    if isinstance(value, str):
        try:
            return pa.scalar(value, pa.string()).cast(type_.arrow)
        except pa.ArrowException:
            raise ValueError("is no moment without a time zone and of at most six decimals, such as 2026-01-31 12:00:00.000001") from None
    if not isinstance(value, dt.datetime) or value.tzinfo is not None:
        raise ValueError("is no moment without a time zone")
    return value


def _instant(value: Any, type_: LogicalType) -> dt.datetime:
    if not isinstance(value, dt.datetime) or value.tzinfo is None:
        raise ValueError("is no moment with a time zone")
    return value.astimezone(dt.UTC)


def _time(value: Any, type_: LogicalType) -> dt.time:
    if isinstance(value, str) and re.fullmatch(r"\d\d:\d\d(:\d\d(\.\d{1,6})?)?", value):
        value = dt.time.fromisoformat(value)
    if not isinstance(value, dt.time) or value.tzinfo is not None:
        raise ValueError("is no time of day")
    return value


def _decimal(value: Any, type_: LogicalType) -> Decimal:
    if isinstance(value, bool | float) or not isinstance(value, Decimal | int | str):
        raise ValueError(f"has no exact form as {type_}")
    number = Decimal(value)
    if not number.is_finite() or number != round(number, type_.scale or 0):
        raise ValueError(f"is outside of what {type_} holds")
    return number


def _numeric(value: Any, type_: LogicalType) -> str:
    if isinstance(value, bool) or not isinstance(value, Decimal | int | float | str):
        raise ValueError("is no number")
    return format(Decimal(repr(value) if isinstance(value, float) else value), "f")


def _uuid(value: Any, type_: LogicalType) -> str:
    if not isinstance(value, str | uuid.UUID):
        raise ValueError("is no UUID")
    return str(uuid.UUID(str(value)))


_READERS: dict[Kind, Callable[[Any, LogicalType], Any]] = {
    **dict.fromkeys(_BITS, _int),
    **{Kind.BOOL: _bool, Kind.FLOAT32: _float, Kind.FLOAT64: _float, Kind.STRING: _string, Kind.JSON: _string, Kind.BYTES: _bytes},
    **{Kind.DATE: _date, Kind.TIMESTAMP: _timestamp, Kind.TIMESTAMPTZ: _instant, Kind.TIME: _time},
    **{Kind.DECIMAL: _decimal, Kind.NUMERIC: _numeric, Kind.UUID: _uuid},
}
