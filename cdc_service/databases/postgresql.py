"""PostgreSQL's forms of values, for its source and its warehouse alike; nothing here talks to a server.

Promises: ``input_text`` is read back by PostgreSQL as exactly the value, over the whole range of every type; ``unwrapped`` gives infinities
that the Arrow driver broke their meaning back.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cdc_service.core.canonical import Canonical
from cdc_service.core.logical import INFINITY, Kind

SPELLING = {
    "DateStyle": "ISO",
    "IntervalStyle": "postgres",
    "TimeZone": "UTC",
    "bytea_output": "hex",
    "extra_float_digits": "1",
    "quote_all_identifiers": "off",
    "client_encoding": "UTF8",
    "standard_conforming_strings": "on",
    "array_nulls": "on",
    "transform_null_equals": "off",
}
"""How values are spelled in our own sessions, whatever is set for the role and the database."""

INTERVAL_TEXT = """CASE WHEN {0} IS NOT NULL THEN format('P%sY%sM%sDT%sH%sM%sS',
        extract(year FROM {0}), extract(month FROM {0}), extract(day FROM {0}), extract(hour FROM {0}),
        extract(minute FROM {0}), trim_scale(extract(second FROM {0}))) END"""
"""An interval as the connector writes it: all of its parts, those that are zero too."""

_NUMBER = "CAST({0} AS VARCHAR)"
_BITS = "CASE WHEN {0} = 'NaN' THEN 'nan' ELSE encode(float8send(CAST({0} AS float8) + 0), 'hex') END"  # Adding 0 takes the sign from -0.
_US = "CAST(CAST(extract(epoch FROM {0}) * 1000000 AS int8) AS VARCHAR)"
_MOMENT = f"CASE WHEN isfinite({{0}}) THEN {_US} ELSE CAST({{0}} AS VARCHAR) END"

CANONICAL = Canonical(
    texts={
        Kind.BOOL: "CAST(CAST({0} AS int4) AS VARCHAR)",
        **dict.fromkeys((Kind.INT16, Kind.INT32, Kind.INT64, Kind.DECIMAL, Kind.NUMERIC, Kind.UUID, Kind.JSON), _NUMBER),
        Kind.FLOAT32: _BITS,
        Kind.FLOAT64: _BITS,
        Kind.STRING: "{0}",
        Kind.INTERVAL: "{0}",
        Kind.BYTES: "encode({0}, 'hex')",
        Kind.DATE: "CASE WHEN isfinite({0}) THEN CAST({0} - date '1970-01-01' AS VARCHAR) ELSE CAST({0} AS VARCHAR) END",
        Kind.TIME: _US,
        Kind.TIMESTAMP: _MOMENT,
        Kind.TIMESTAMPTZ: _MOMENT,
    },
    md5="CAST(CAST('x' || right(md5({0}), 15) AS bit(60)) AS int8)",
    length="octet_length({0})",
    divide="({0} / {1})",
)

_JULIAN_1970 = 2_440_588
_DAY_US = 86_400_000_000
_HEX = np.frombuffer("".join(f"{byte:02x}" for byte in range(256)).encode(), np.uint16)

_EPOCH_DAYS, _EPOCH_US = 10_957, 946_684_800_000_000
"""2000-01-01, from which PostgreSQL counts, since 1970-01-01. The driver (adbc_driver_postgresql) adds it without a look at infinity, which
wraps around to a value below all that PostgreSQL can hold."""
_WRAPPED_DATE = (-(2**31) + _EPOCH_DAYS - 1, -(2**31) + _EPOCH_DAYS)
_WRAPPED_TIMESTAMP = (-(2**63) + _EPOCH_US - 1, -(2**63) + _EPOCH_US)


def unwrapped(array: pa.Array) -> pa.Array:
    """What the driver read, infinities as core.logical.INFINITY has them; a list's too."""
    type_ = array.type
    if pa.types.is_list(type_):
        came = array.values
        meant = unwrapped(came)
        return array if meant is came else pa.ListArray.from_arrays(array.offsets, meant, mask=array.is_null())
    if pa.types.is_date32(type_):
        return _unwrapped(array, pa.int32(), _WRAPPED_DATE, INFINITY[Kind.DATE])
    return _unwrapped(array, pa.int64(), _WRAPPED_TIMESTAMP, INFINITY[Kind.TIMESTAMP]) if pa.types.is_timestamp(type_) else array


def _unwrapped(array: pa.Array, width: pa.DataType, wrapped: tuple[int, int], infinity: int) -> pa.Array:
    numbers = array.view(width)
    lowest = pc.min(numbers)
    if not lowest.is_valid or lowest.as_py() > max(wrapped):
        return array
    for came, meant in zip(wrapped, (infinity, -infinity), strict=True):
        numbers = pc.if_else(pc.equal(numbers, pa.scalar(came, width)), pa.scalar(meant, width), numbers)
    return numbers.view(array.type)


def input_text(array: pa.Array) -> pa.Array:
    """PostgreSQL's input text of each value (string array), NULL where the value is.

    Days are written as Julian day numbers (J2440588 is 1970-01-01): PostgreSQL reads them over its whole range, before Christ and after the
    year 9999, where calendar text of Arrow ends."""
    type_ = array.type
    if pa.types.is_string(type_):
        return array
    if pa.types.is_binary(type_):
        return _bytes(array)
    if pa.types.is_list(type_):
        return _list(array)
    if pa.types.is_date32(type_):
        days = array.view(pa.int32()).cast(pa.int64())
        return _infinities(days, INFINITY[Kind.DATE], _julian(days))
    if pa.types.is_time64(type_):
        return _time(array.view(pa.int64()))
    if pa.types.is_timestamp(type_):
        instants = array.view(pa.int64())
        days, rest = np.divmod(instants.fill_null(0).to_numpy(zero_copy_only=False), _DAY_US)
        text = pc.binary_join_element_wise(_julian(pa.array(days)), pa.array(rest).view(pa.time64("us")).cast(pa.string()), " ")
        if type_.tz is not None:
            text = pc.binary_join_element_wise(text, "+00", "")
        return _infinities(instants, INFINITY[Kind.TIMESTAMP], text)
    return array.cast(pa.string())


def _julian(days: pa.Array) -> pa.Array:
    return pc.binary_join_element_wise("J", pc.add(days, _JULIAN_1970).cast(pa.string()), "")


def _infinities(numbers: pa.Array, infinity: int, text: pa.Array) -> pa.Array:
    """``text``, but for the numbers that stand for infinity, and for NULL."""
    ends = pc.min_max(numbers)
    if ends["max"].as_py() == infinity or ends["min"].as_py() == -infinity:
        text = pc.if_else(pc.equal(numbers, infinity), "infinity", text)
        text = pc.if_else(pc.equal(numbers, -infinity), "-infinity", text)
    return pc.if_else(numbers.is_valid(), text, pa.scalar(None, pa.string()))


def _time(numbers: pa.Array) -> pa.Array:
    """24:00:00 is a time in PostgreSQL, and none in Arrow's own text."""
    last = pc.equal(numbers, _DAY_US)
    text = pc.if_else(last, 0, numbers).view(pa.time64("us")).cast(pa.string())
    return pc.if_else(last, "24:00:00", text)


def _bytes(array: pa.Array) -> pa.Array:
    """Hex text, by a table of two digits for each byte."""
    if not len(array):
        return pa.array([], pa.string())
    _, offsets, data = array.buffers()
    ends = np.frombuffer(offsets, np.int32)[array.offset : array.offset + len(array) + 1]
    held = np.frombuffer(b"" if data is None else data, np.uint8)[ends[0] : ends[-1]]
    digits, places = pa.py_buffer(_HEX[held]), pa.py_buffer((ends - ends[0]) * 2)
    text = pc.binary_join_element_wise("\\x", pa.StringArray.from_buffers(len(array), places, digits), "")
    return pc.if_else(array.is_valid(), text, pa.scalar(None, pa.string()))


def _list(array: pa.Array) -> pa.Array:
    """An array literal. An inner array becomes its own literal as one text (PostgreSQL's arrays of arrays are rectangles without NULL)."""
    held = array.flatten()
    text = input_text(held)
    if not (pa.types.is_integer(held.type) or pa.types.is_boolean(held.type)):
        for char in ("\\", '"'):
            text = pc.replace_substring(text, pattern=char, replacement="\\" + char)
        text = pc.binary_join_element_wise('"', text, '"', "")
    lengths = pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    joined = pc.binary_join(pa.ListArray.from_arrays(offsets, text.fill_null("NULL")), ",")
    literal = pc.binary_join_element_wise("{", joined, "}", "")
    return pc.if_else(array.is_valid(), literal, pa.scalar(None, pa.string()))
