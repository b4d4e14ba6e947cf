"""PostgreSQL's own text of a value -> the value as tests.support.plain gives it; written apart from the decoder, to judge it."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np

from cdc_service.core.logical import INFINITY, Kind, LogicalType

_DAY = 86_400_000_000


def value(text: str | None, kind: LogicalType) -> Any:
    if text is None:
        return None
    if kind.element is not None:
        element = kind.element
        if text.startswith("("):  # a point
            return [value(part, element) for part in text[1:-1].split(",")]
        return [value(part, element) for part in _array(text)]
    return _READERS.get(kind.kind, str)(text)


def _float32(text: str) -> int:
    return int(struct.unpack("<i", struct.pack("<f", float(text)))[0])


def _float64(text: str) -> int:
    return int(struct.unpack("<q", struct.pack("<d", float(text)))[0])


def _date(text: str) -> int:
    if text in ("infinity", "-infinity"):
        return INFINITY[Kind.DATE] * (-1 if text[0] == "-" else 1)
    year, month, day = text.removesuffix(" BC").split("-")
    astronomical = 1 - int(year) if text.endswith(" BC") else int(year)
    # numpy's calendar is proleptic Gregorian with a year 0, as PostgreSQL's days are.
    months = (astronomical - 1970) * 12 + int(month) - 1
    return int(np.datetime64(months, "M").astype("datetime64[D]").astype(np.int64)) + int(day) - 1


def _time(text: str) -> int:
    hours, minutes, seconds = text.split(":")
    return (int(hours) * 60 + int(minutes)) * 60_000_000 + int(Decimal(seconds) * 1_000_000)


def _timestamp(text: str) -> int:
    if text in ("infinity", "-infinity"):
        return INFINITY[Kind.TIMESTAMP] * (-1 if text[0] == "-" else 1)
    date, time = text.removesuffix(" BC").split(" ")
    return _date(date + (" BC" if text.endswith(" BC") else "")) * _DAY + _time(time.removesuffix("+00"))


def interval(text: str) -> tuple[int, int, int]:
    """(months, days, microseconds) of an interval in PostgreSQL's style or in ISO 8601."""
    months = days = micros = 0
    if text.startswith("P"):
        date, _, time = text[1:].partition("T")
        for number, unit in re.findall(r"(-?[\d.]+)([YMWD])", date):
            months += {"Y": 12, "M": 1}.get(unit, 0) * int(number)
            days += int(number) if unit == "D" else 0
        for number, unit in re.findall(r"(-?[\d.E+]+)([HMS])", time):
            micros += int(Decimal(number) * {"H": 3_600_000_000, "M": 60_000_000, "S": 1_000_000}[unit])
        return months, days, micros
    for number, unit in re.findall(r"([+-]?\d+) (year|mon|day)", text):
        months += {"year": 12, "mon": 1}.get(unit, 0) * int(number)
        days += int(number) if unit == "day" else 0
    if clock := re.search(r"([+-]?)(\d+:\d\d:\d\d(?:\.\d+)?)", text):
        micros = _time(clock[2]) * (-1 if clock[1] == "-" else 1)
    return months, days, micros


def _array(text: str) -> list[str | None]:
    """The elements of a one-dimensional array's text."""
    parts: list[str | None] = []
    for quoted, bare in re.findall(r'"((?:[^"\\]|\\.)*)"|([^{},"]+)', text):
        parts.append((None if bare == "NULL" else bare) if bare else re.sub(r"\\(.)", r"\1", quoted))
    return parts


_READERS: dict[Kind, Callable[[str], Any]] = {
    Kind.BOOL: lambda text: text in ("true", "t", "1"),
    Kind.INT16: int,
    Kind.INT32: int,
    Kind.INT64: int,
    Kind.FLOAT32: _float32,
    Kind.FLOAT64: _float64,
    Kind.DECIMAL: Decimal,
    Kind.BYTES: lambda text: bytes.fromhex(text[2:]) if text.startswith("\\x") else text.encode(),
    Kind.DATE: _date,
    Kind.TIME: _time,
    Kind.TIMESTAMP: _timestamp,
    Kind.TIMESTAMPTZ: _timestamp,
}
