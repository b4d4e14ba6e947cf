"""What a query returns, as Arrow: PostgreSQL's text of a column's values to the column, by the type that the server names.

Exact for every type that the service writes; a numeric without precision, an interval and every type that has no Arrow counterpart stay
PostgreSQL's own text. The session has to write ISO dates in UTC and bytes as hex.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from cdc_service.core.errors import ConfigError
from cdc_service.core.logical import INFINITY, Kind

_BOOL, _BYTES, _DATE, _TIME, _TIMESTAMP, _TIMESTAMPTZ, _NUMERIC = 16, 17, 1082, 1083, 1114, 1184, 1700
_CAST = {21: pa.int16(), 23: pa.int32(), 20: pa.int64(), 26: pa.int64(), 700: pa.float32(), 701: pa.float64()}
_ARRAYS = {
    1000: 16, 1001: 17, 1005: 21, 1007: 23, 1016: 20, 1021: 700, 1022: 701, 1231: 1700, 1009: 25, 1015: 25, 1182: 1082, 1183: 1083,
    1115: 1114, 1185: 1184, 1187: 25, 2951: 25, 199: 25, 3807: 25,
}  # fmt: skip
"""Array types by the type of their elements; 25 stands for every type that stays text."""

_MOMENT = re.compile(r"(?:(\d+)-(\d\d)-(\d\d))?[ ]?(?:(\d\d):(\d\d):(\d\d)(?:\.(\d{1,6}))?)?(?:\+00)?( BC)?")
_DAYS_TO_1970 = 719_468


def arrow_column(name: str, values: Sequence[bytes | None], oid: int, modifier: int) -> pa.Array:
    """``values`` are the texts of the column, ``oid`` and ``modifier`` its type as the server's row description has it."""
    try:
        return _column(pa.array(values, pa.binary()).cast(pa.string()), oid, modifier)
    except (pa.ArrowException, OverflowError, ValueError) as error:
        raise ConfigError(f"the column {name} holds values that Arrow cannot hold", hint=f'cast it in the query: "{name}"::text') from error


def _column(text: pa.Array, oid: int, modifier: int) -> pa.Array:
    if oid in _ARRAYS:
        return _arrays(text, _ARRAYS[oid], modifier)
    if oid in _CAST:
        return text.cast(_CAST[oid])
    if oid == _BOOL:
        return pc.equal(text, "t")
    if oid == _BYTES:
        return pa.array([None if value is None else bytes.fromhex(value[2:]) for value in text.to_pylist()], pa.binary())
    if oid == _NUMERIC:
        return _numbers(text, modifier)
    if oid == _DATE:
        return _moments(text, INFINITY[Kind.DATE], pa.date32(), 86_400_000_000)
    if oid == _TIME:
        return _moments(text, None, pa.time64("us"), 1)
    if oid in (_TIMESTAMP, _TIMESTAMPTZ):
        type_ = pa.timestamp("us", tz="UTC" if oid == _TIMESTAMPTZ else None)
        try:
            return text.cast(type_)
        except pa.ArrowInvalid:
            return _moments(text, INFINITY[Kind.TIMESTAMP], type_, 1)
    return text


def _numbers(text: pa.Array, modifier: int) -> pa.Array:
    """A decimal where the type says its digits and all values have them (a NaN has none); else the text."""
    precision, scale = (modifier - 4) >> 16 & 0xFFFF, (modifier - 4) & 0x7FF
    if modifier < 4 or precision > 38 or scale > precision:
        return text
    try:
        return text.cast(pa.decimal128(precision, scale))
    except pa.ArrowInvalid:
        return text


def _moments(text: pa.Array, infinity: int | None, type_: pa.DataType, unit: int) -> pa.Array:
    width = pa.int32() if pa.types.is_date32(type_) else pa.int64()
    special = {None: None} if infinity is None else {None: None, "infinity": infinity, "-infinity": -infinity}
    numbers = [special[value] if value in special else _microseconds(value) // unit for value in text.to_pylist()]
    return pa.array(numbers, width).view(type_)


def _microseconds(text: str) -> int:
    """Since 1970-01-01 00:00, of a date, a time or both, in the proleptic Gregorian calendar."""
    found = _MOMENT.fullmatch(text)
    if found is None:
        raise ValueError("not a date or time in ISO form")
    year, month, day, hour, minute, second, fraction, before_christ = found.groups()
    time = (int(hour or 0) * 3600 + int(minute or 0) * 60 + int(second or 0)) * 1_000_000 + int((fraction or "").ljust(6, "0"))
    if year is None:
        return time
    # Years begin in March here, so that the leap day is the last one.
    y, m = 1 - int(year) if before_christ else int(year), int(month)
    y -= m <= 2
    era, of_era = divmod(y, 400)
    of_year = (153 * ((m + 9) % 12) + 2) // 5 + int(day) - 1
    days = era * 146_097 + of_era * 365 + of_era // 4 - of_era // 100 + of_year - _DAYS_TO_1970
    return days * 86_400_000_000 + time


def _arrays(text: pa.Array, element: int, modifier: int) -> pa.Array:
    """Lists; text where an array has more than one dimension, because Arrow's type would have to say so for all of them."""
    lists = [None if value is None else _elements(value) for value in text.to_pylist()]
    if any(found is None and value is not None for found, value in zip(lists, text.to_pylist(), strict=True)):
        return text
    flat = pa.array([item for found in lists if found is not None for item in found], pa.string())
    offsets = [0, *accumulate(len(found or ()) for found in lists)]
    missing = pa.array([found is None for found in lists], pa.bool_())
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), _column(flat, element, modifier), mask=missing)


_ELEMENT = re.compile(r'"((?:[^"\\]|\\.)*)"|([^,{}"]+)', re.DOTALL)


def _elements(literal: str) -> list[Any] | None:
    """The elements of an array literal of one dimension; None where it has more."""
    inner = literal[literal.index("{") + 1 : -1]
    if inner.startswith("{"):
        return None
    return [
        re.sub(r"\\(.)", r"\1", found[1], flags=re.DOTALL) if found[1] is not None else (None if found[2] == "NULL" else found[2])
        for found in _ELEMENT.finditer(inner)
    ]
