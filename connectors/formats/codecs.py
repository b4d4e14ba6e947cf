"""Codecs: how one value of each source type stands in Debezium's events, and how whole columns of them become exact Arrow values.

A conversion never rounds, truncates or guesses: a value it cannot hold exactly is marked bad, for its record to be rejected.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cdc_service.core.logical import INFINITY, Kind, LogicalType, array
from cdc_service.ports.events import Codec, Unsent

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Converted:
    """``values`` of the codec's logical type, NULL where ``bad``; ``bad`` is None when every value is exact.

    ``doubtful`` are those of which the event does not tell what they are, and the source does (None: there are none)."""

    values: pa.Array
    bad: Mask | None = None
    doubtful: Mask | None = None


Conversion = Callable[[Codec, pa.Array], Converted]

POSITIVE_INFINITY_US = 9223372036825200000
NEGATIVE_INFINITY_US = -9223372036832400000
_TIMESTAMP_MIN_US = -211813488000000000
_TIMESTAMP_MAX_US = POSITIVE_INFINITY_US - 1
_DATE_MIN, _DATE_MAX = -2440588, 2145042905
_DATE_INFINITIES = {-2147472692: 1, -622191234: 1, -2147472691: -1, -625821272: -1}
"""The stream's and the snapshot's stand-ins, as the connector derives them from the driver's constants."""
_DAY_US = 86_400_000_000


def convert(codec: Codec, column: pa.Array) -> Converted:
    """The exact values of ``column``, an array of ``codec.read``. Raises nothing for what a value holds."""
    return CONVERSIONS[codec.name](codec, column)


def unsent(codec: Codec, column: pa.Array, placeholder: str) -> Mask | None:
    """Where ``column`` holds the connector's placeholder for a value that the source did not send; None when nowhere."""
    if codec.element is not None:
        return _unsent_list(codec.element, column, placeholder)
    if codec.unsent in (Unsent.NEVER, Unsent.NULL):
        return None
    spelled = placeholder.encode() if pa.types.is_binary(column.type) else _spelled(codec.unsent, placeholder)
    mask = _true(pc.equal(column, pa.scalar(spelled, column.type)))
    return mask if mask.any() else None


def _spelled(form: Unsent, placeholder: str) -> str:
    if form is Unsent.BASE64:
        return base64.b64encode(placeholder.encode()).decode()
    if form is Unsent.OBJECT:
        return json.dumps({placeholder: placeholder}, separators=(",", ":"), ensure_ascii=False)
    if form is Unsent.UUID:
        # Java's UUID.nameUUIDFromBytes: version 3 without a namespace.
        return str(uuid.UUID(bytes=hashlib.md5(placeholder.encode(), usedforsecurity=False).digest(), version=3))
    return placeholder


def _unsent_list(element: Codec, column: pa.ListArray, placeholder: str) -> Mask | None:
    if pa.types.is_string(element.read):
        expected: list[str | int | bytes] = [_spelled(element.unsent, placeholder)]
    elif pa.types.is_binary(element.read):
        expected = [placeholder.encode()]
    elif pa.types.is_integer(element.read):
        # One element a byte, signed as Java's bytes are.
        expected = [byte - 256 if byte > 127 else byte for byte in placeholder.encode()]
    else:
        return None
    mask = _true(pc.equal(pc.list_value_length(column), len(expected)))
    rows = np.flatnonzero(mask)
    if not len(rows):
        return None
    found = column.take(pa.array(rows)).flatten()
    equal = _true(pc.equal(found, pa.array(expected * len(rows), element.read)))
    mask[rows] = equal.reshape(len(rows), len(expected)).all(axis=1)
    return mask if mask.any() else None


def _true(flags: pa.Array) -> Mask:
    """A nullable boolean array as a mask: NULL counts as false. A chunked array is welcome too."""
    if isinstance(flags, pa.ChunkedArray):
        flags = flags.combine_chunks()
    return np.array(flags.fill_null(False).to_numpy(zero_copy_only=False), np.bool_)


def _nulls(column: pa.Array) -> Mask:
    return np.array(column.is_null().to_numpy(zero_copy_only=False), np.bool_)


def _integers(column: pa.Array) -> tuple[npt.NDArray[np.int64], Mask]:
    """The integers of ``column`` (0 where NULL) and where they are NULL."""
    values = column.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
    return np.array(values, np.int64), _nulls(column)


def _temporal(codec: Codec, values: npt.NDArray[np.int64], null: Mask, bad: Mask) -> Converted:
    width = pa.int32() if codec.type.kind is Kind.DATE else pa.int64()
    counted = pa.array(values, mask=null | bad).cast(width)
    return Converted(counted.view(codec.type.arrow), bad if bad.any() else None)


def _plain(codec: Codec, column: pa.Array) -> Converted:
    return Converted(column)


def _refused(codec: Codec, column: pa.Array) -> Converted:
    """A type that events do not carry exactly: NULL is NULL, and any value is bad."""
    bad = ~_nulls(column)
    return Converted(pa.nulls(len(column), codec.type.arrow), bad if bad.any() else None)


def _float32(codec: Codec, column: pa.Array) -> Converted:
    """Real numbers come as text of up to 9 digits, read as float64: the one rounding to float32 restores them. A number that no
    float32 stands for (1e39, 1e-60) is bad."""
    null = _nulls(column)
    wide = np.array(column.fill_null(0.0).to_numpy(zero_copy_only=False), np.float64)
    with np.errstate(over="ignore", under="ignore"):
        narrow = wide.astype(np.float32)
    bad = (np.isinf(narrow) & np.isfinite(wide)) | ((narrow == 0) & (wide != 0))
    return Converted(pa.array(narrow, mask=null | bad), bad if bad.any() else None)


_NUMBER = r"^-?[0-9]+(\.[0-9]+)?$"
_NUMERIC_SPECIAL = {"NAN": "NaN", "POSITIVE_INFINITY": "Infinity", "NEGATIVE_INFINITY": "-Infinity"}


def _decimal(codec: Codec, column: pa.Array) -> Converted:
    try:
        return Converted(column.cast(codec.type.arrow))
    except pa.ArrowInvalid:
        return _one_by_one(column, codec.type.arrow, lambda text: _decimal_scalar(text, codec.type.arrow))


def _decimal_scalar(text: str, kind: pa.DataType) -> object:
    return pa.scalar(text).cast(kind).as_py()


def _one_by_one(column: pa.Array, kind: pa.DataType, parse: Callable[[str], object]) -> Converted:
    """The conversion of a column in which some value fails: each distinct value is tried by itself."""
    encoded = column.dictionary_encode()
    bad_codes: list[int] = []
    parsed: list[object] = []
    for code, text in enumerate(encoded.dictionary.to_pylist()):
        try:
            parsed.append(parse(text))
        except (ValueError, pa.ArrowInvalid):
            parsed.append(None)
            bad_codes.append(code)
    values = pa.array(parsed, kind).take(encoded.indices)
    return Converted(values, _true(pc.is_in(encoded.indices, pa.array(bad_codes, encoded.indices.type))))


def _numeric(codec: Codec, column: pa.Array) -> Converted:
    special = pc.is_in(column, pa.array(list(_NUMERIC_SPECIAL)))
    if pc.any(special).as_py():
        for spelled, text in _NUMERIC_SPECIAL.items():
            column = pc.if_else(pc.equal(column, spelled), pa.scalar(text), column)
    if codec.parameter < 0:
        # A negative scale: the connector pads the integer with zeros behind a point, which the source does not print.
        column = pc.replace_substring_regex(column, r"\.0+$", "")
    bad = ~_true(pc.match_substring_regex(column, _NUMBER)) & ~_true(special) & ~_nulls(column)
    return _without(column, bad)


def _without(column: pa.Array, bad: Mask) -> Converted:
    if not bad.any():
        return Converted(column)
    return Converted(pc.if_else(pa.array(bad), pa.scalar(None, column.type), column), bad)


def _pieces(column: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
    """A text or binary column as n + 1 offsets from 0 and the bytes they cut; NULL is empty."""
    filled = column.fill_null("" if pa.types.is_string(column.type) else b"")
    _, cuts, data = filled.buffers()
    offsets = np.frombuffer(cuts, np.int32)[filled.offset : filled.offset + len(filled) + 1].astype(np.int64)
    content = np.zeros(0, np.uint8) if data is None else np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]]
    return offsets - offsets[0], content


def _assemble(kind: pa.DataType, offsets: npt.NDArray[np.int64], content: npt.NDArray[np.uint8], null: Mask) -> pa.Array:
    """The inverse of ``_pieces``: a text or binary array, NULL where ``null``."""
    validity = pa.array(~null).buffers()[1] if null.any() else None
    return pa.Array.from_buffers(kind, len(null), [validity, pa.py_buffer(offsets.astype(np.int32)), pa.py_buffer(content.tobytes())])


def _base64(codec: Codec, column: pa.Array) -> Converted:
    """Base64 of all rows at once: every value is whole groups of four, so the column's text decodes as one and is cut up after."""
    ends, chars = _pieces(column)
    lengths = np.diff(ends)
    equals = chars == ord("=")
    # How many of each value's last two characters are padding; a sum over the whole text tells whether any stands elsewhere.
    tail = np.concatenate([[False, False], equals])
    last = tail[ends[1:] + 1] & (lengths > 0)
    padding = last + (last & tail[ends[1:]] & (lengths > 1)).astype(np.int64)
    try:
        if (lengths % 4).any() or int(np.count_nonzero(equals)) != int(padding.sum()):
            raise binascii.Error("padding")
        decoded = np.frombuffer(binascii.a2b_base64(np.where(equals, np.uint8(ord("A")), chars).tobytes(), strict_mode=True), np.uint8)
    except binascii.Error:
        return _one_by_one(column, pa.binary(), lambda value: base64.b64decode(value, validate=True))
    ends = ends // 4 * 3
    keep = np.ones(len(decoded), np.bool_)
    keep[ends[1:][padding >= 1] - 1] = False
    keep[ends[1:][padding == 2] - 2] = False
    cuts = np.concatenate([[0], np.cumsum(lengths // 4 * 3 - padding)])
    return Converted(_assemble(pa.binary(), cuts, decoded[keep], _nulls(column)))


def _base64_text(codec: Codec, column: pa.Array) -> Converted:
    """A type that the connector does not know comes as the source's text, as bytes."""
    return _text_of(_base64(codec, column), _nulls(column))


def _bytes_text(codec: Codec, column: pa.Array) -> Converted:
    return _text_of(Converted(column), _nulls(column))


def _text_of(decoded: Converted, null: Mask) -> Converted:
    try:
        return Converted(decoded.values.cast(pa.string()), decoded.bad)
    except pa.ArrowInvalid:
        values = pa.array([_utf8(value) for value in decoded.values.to_pylist()], pa.string())
        return Converted(values, _nulls(values) & ~null)


def _utf8(value: bytes | None) -> str | None:
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return None


def _bits(codec: Codec, column: pa.Array) -> Converted:
    return _bits_of(codec, _base64(codec, column))


def _bytes_bits(codec: Codec, column: pa.Array) -> Converted:
    return _bits_of(codec, Converted(column))


def _bits_of(codec: Codec, decoded: Converted) -> Converted:
    """bit(n) comes as little-endian bytes without the high zero bytes: back to a text of n zeros and ones."""
    null = _nulls(decoded.values)
    offsets, content = _pieces(decoded.values)
    lengths = np.diff(offsets)
    width = max((codec.parameter + 7) // 8, int(lengths.max(initial=0)))
    square = np.zeros((len(null), width), np.uint8)
    row = np.repeat(np.arange(len(null)), lengths)
    square[row, np.arange(len(content)) - offsets[:-1][row]] = content
    digits = np.unpackbits(square, axis=1, bitorder="little")
    bad = np.asarray(digits[:, codec.parameter :].any(axis=1), np.bool_)
    if decoded.bad is not None:
        bad = bad | decoded.bad
    text = np.ascontiguousarray(digits[:, : codec.parameter][:, ::-1]) + np.uint8(ord("0"))
    cuts = np.arange(len(null) + 1, dtype=np.int64) * codec.parameter
    return Converted(_assemble(pa.string(), cuts, text.reshape(-1), null | bad), bad if bad.any() else None)


def _date_days(codec: Codec, column: pa.Array) -> Converted:
    days, null = _integers(column)
    result = days.copy()
    bad = ((days < _DATE_MIN) | (days > _DATE_MAX)) & ~null
    for stand_in, sign in _DATE_INFINITIES.items():
        found = days == stand_in
        result[found] = sign * INFINITY[Kind.DATE]
        bad &= ~found
    return _temporal(codec, result, null, bad)


def _timestamp(codec: Codec, column: pa.Array) -> Converted:
    """Microseconds (parameter 1) or milliseconds (1000) since 1970, with the connector's two stand-ins for infinity."""
    counts, null = _integers(column)
    unit = codec.parameter
    bad = (counts < _TIMESTAMP_MIN_US // unit) | (counts > _TIMESTAMP_MAX_US // unit)
    result = np.where(bad, 0, counts) * unit
    for stand_in, sign in ((POSITIVE_INFINITY_US, 1), (NEGATIVE_INFINITY_US, -1)):
        found = counts == stand_in // unit
        result[found] = sign * INFINITY[Kind.TIMESTAMP]
        bad &= ~found
    return _temporal(codec, result, null, bad & ~null)


def _time(codec: Codec, column: pa.Array) -> Converted:
    """A count since midnight: ``parameter`` nanoseconds each. 24:00:00 is a time too."""
    counts, null = _integers(column)
    bad = (counts < 0) | (counts > _DAY_US * 1000 // codec.parameter)
    nanos = np.where(bad, 0, counts) * codec.parameter
    bad |= nanos % 1000 != 0
    return _temporal(codec, nanos // 1000, null, bad & ~null)


_ISO = re.compile(
    r"^(?P<year>[+-]?\d{4,9})-(?P<month>\d\d)-(?P<day>\d\d)"
    r"(?:T(?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)(?:\.(?P<fraction>\d{1,9}))?)?Z$",
    re.ASCII,
)
_ISO_INFINITIES = {
    "infinity": 1,
    "-infinity": -1,
    "+294247-01-10T04:00:25.2Z": 1,
    "-290308-12-21T19:59:27.6Z": -1,
}


def _iso_timestamp(codec: Codec, column: pa.Array) -> Converted:
    """ISO 8601 text in UTC. Years of four digits go as a whole column; infinities and far years one distinct value at a time."""
    plain = _true(pc.match_substring_regex(column, r"^[0-9]{4}-[^+]*Z$"))
    kind = pa.timestamp("us", tz="UTC")
    null = _nulls(column)
    if bool((plain | null).all()):
        try:
            return Converted(column.cast(kind).cast(codec.type.arrow))
        except pa.ArrowInvalid:
            pass
    done = _one_by_one(column, pa.int64(), lambda text: _iso_micros(text, codec.type.kind))
    return Converted(done.values.view(codec.type.arrow), done.bad)


def _iso_micros(text: str, kind: Kind) -> int:
    if text in _ISO_INFINITIES:
        return _ISO_INFINITIES[text] * INFINITY[kind]
    match = _ISO.match(text)
    if match is None or match["hour"] is None:
        raise ValueError("not a timestamp")
    micros = _days(match) * _DAY_US + _micros_of_day(match)
    if abs(micros) >= INFINITY[kind]:
        raise ValueError("beyond 64 bits of microseconds")
    return micros


def _micros_of_day(match: re.Match[str]) -> int:
    hour, minute, second = int(match["hour"]), int(match["minute"]), int(match["second"])
    fraction = (match["fraction"] or "").ljust(9, "0")
    if hour > 23 or minute > 59 or second > 59 or fraction[6:] != "000":
        raise ValueError("not a time in microseconds")
    return ((hour * 60 + minute) * 60 + second) * 1_000_000 + int(fraction[:6])


_MONTH_DAYS = (31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)


def _days(match: re.Match[str]) -> int:
    """Days since 1970-01-01 of a date in the proleptic Gregorian calendar with astronomical years (year 0 is 1 BC)."""
    year, month, day = int(match["year"]), int(match["month"]), int(match["day"])
    leap = year % 4 == 0 and (year % 100 != 0 or year % 400 == 0)
    if not 1 <= month <= 12 or not 1 <= day <= _MONTH_DAYS[month - 1] + (leap and month == 2):
        raise ValueError("no such day")
    # Count from 1 March, so that the leap day is a year's last.
    year -= month <= 2
    era, year_of_era = divmod(year, 400)
    day_of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    return era * 146097 + year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year - 719468


def _iso_date(codec: Codec, column: pa.Array) -> Converted:
    done = _one_by_one(column, pa.int32(), _iso_days)
    return Converted(done.values.view(codec.type.arrow), done.bad)


def _iso_days(text: str) -> int:
    match = _ISO.match(text)
    if match is None or match["hour"] is not None:
        raise ValueError("not a date")
    days = _days(match)
    if not _DATE_MIN <= days <= _DATE_MAX:
        raise ValueError("beyond the range of dates")
    return days


def _iso_time(codec: Codec, column: pa.Array) -> Converted:
    done = _one_by_one(column, pa.int64(), _iso_time_micros)
    return Converted(done.values.view(codec.type.arrow), done.bad)


def _iso_time_micros(text: str) -> int:
    match = _ISO.match("1970-01-01T" + text)
    if match is None:
        raise ValueError("not a time")
    return _micros_of_day(match)


def _point(codec: Codec, column: pa.Array) -> Converted:
    """A point as a list of two numbers."""
    x, y = column.field("x"), column.field("y")
    null = _nulls(column)
    bad = (_nulls(x) | _nulls(y)) & ~null
    both = np.stack([_doubles(x), _doubles(y)], axis=1).reshape(-1)
    whole = pa.ListArray.from_arrays(pa.array(np.arange(0, len(both) + 1, 2, dtype=np.int32)), pa.array(both))
    return _without_rows(whole, null | bad, bad)


def _doubles(column: pa.Array) -> npt.NDArray[np.float64]:
    return np.array(column.fill_null(0.0).to_numpy(zero_copy_only=False), np.float64)


def _without_rows(values: pa.Array, null: Mask, bad: Mask) -> Converted:
    kept = pc.if_else(pa.array(null), pa.scalar(None, values.type), values) if null.any() else values
    return Converted(kept, bad if bad.any() else None)


_GREGORIAN = -141_417
"""Days since 1970 of 1582-10-25."""
_BEFORE_CHRIST = (84_006, 1_002_590)
"""Days since 1970 of 2200-01-01 and 4715-01-01. 4714 BC, the first year that a source has, may have become 4714. The years up to 2199,
of which nearly all dates are, are believed: a date of 2199 BC to 1583 BC in an array is not found so."""
_JAVA_OBJECT = r"^\[+L?[A-Za-z.]*;?@[0-9a-f]+$"


def _list(codec: Codec, column: pa.ListArray) -> Converted:
    """The elements as one column, then cut up again.

    Doubtful are what the connector makes of arrays of more than one dimension (nothing but NULLs, or names of Java objects), and times that
    it takes through another calendar.
    """
    element = codec.element
    assert element is not None
    child = column.flatten()
    lengths = np.array(pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False), np.int64)
    done = convert(element, child)
    rows = np.repeat(np.arange(len(column)), lengths)

    def holding(found: Mask) -> Mask:
        mask = np.zeros(len(column), np.bool_)
        mask[rows[found]] = True
        return mask

    bad_child = done.bad if done.bad is not None else np.zeros(len(child), np.bool_)
    doubtful_child = np.zeros(len(child), np.bool_)
    if pa.types.is_string(element.read):
        doubtful_child |= _true(pc.match_substring_regex(child, _JAVA_OBJECT))
    if element.type.kind in INFINITY:
        doubtful_child |= _of_another_calendar(element.type.kind, done.values) | bad_child
    doubtful = holding(doubtful_child)
    if child.null_count:
        doubtful |= (lengths > 0) & (np.bincount(rows[_nulls(child)], minlength=len(column)) == lengths)
    bad = holding(bad_child) & ~doubtful
    null = _nulls(column)
    cuts = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    whole = _without_rows(pa.ListArray.from_arrays(cuts, done.values), null | bad, bad)
    return replace(whole, doubtful=doubtful) if doubtful.any() else whole


def _of_another_calendar(kind: Kind, values: pa.Array) -> Mask:
    """Which times may be others at the source, of which the connector made java.sql.Date or java.sql.Timestamp: those of before the
    Gregorian calendar, its first ten days (1582-10-05..14 became them) and, where the era is lost, far years that may be before Christ."""
    width, day = (pa.int32(), 1) if kind is Kind.DATE else (pa.int64(), _DAY_US)
    counts, null = _integers(values.view(width))
    found = (counts < _GREGORIAN * day) & (counts != -INFINITY[kind])
    if kind is not Kind.TIMESTAMP:
        found |= (counts >= _BEFORE_CHRIST[0] * day) & (counts < _BEFORE_CHRIST[1] * day)
    return np.asarray(found & ~null, np.bool_)


CONVERSIONS: dict[str, Conversion] = {
    "plain": _plain,
    "refused": _refused,
    "float32": _float32,
    "decimal": _decimal,
    "numeric": _numeric,
    "base64": _base64,
    "base64_text": _base64_text,
    "bytes_text": _bytes_text,
    "bits": _bits,
    "bytes_bits": _bytes_bits,
    "date_days": _date_days,
    "timestamp": _timestamp,
    "time": _time,
    "iso_timestamp": _iso_timestamp,
    "iso_date": _iso_date,
    "iso_time": _iso_time,
    "point": _point,
    "list": _list,
}


def list_of(element: Codec, unsent: Unsent) -> Codec:
    return Codec("list", array(element.type), pa.list_(element.read), unsent=unsent, element=element)


def point_type() -> LogicalType:
    return array(LogicalType(Kind.FLOAT64))
