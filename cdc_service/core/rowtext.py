"""Rows as JSON text, computed on whole columns: how a log of changes keeps the image before a change.

Promises: the text tells each value exactly. Numbers of a fixed size are JSON numbers; decimals, times, bytes (hex) and whatever JSON has no
form for (NaN, infinity) are strings. A time beyond what has a calendar text stands as the integer behind it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from cdc_service.core.logical import INFINITY, Kind

_ESCAPES = (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t"))
_CONTROL = "[\x00-\x08\x0b\x0c\x0e-\x1f]"
_YEAR_1, _YEAR_10000 = -719_162, 2_932_897
"""Days since 1970-01-01 between which Arrow writes dates right."""
_HEX = np.frombuffer(b"0123456789abcdef", np.uint8)


def row_text(columns: Mapping[str, pa.Array], there: npt.NDArray[np.bool_]) -> pa.Array:
    """``{"name":value,...}`` for each row where ``there``, else NULL. ``columns`` are arrays of one length, in the order of the text."""
    parts: list[pa.Array | pa.Scalar] = []
    for number, (name, values) in enumerate(columns.items()):
        parts.append(pa.scalar(("," if number else "{") + json.dumps(name, ensure_ascii=False) + ":"))
        parts.append(_literal(values))
    if not parts:
        return pa.nulls(len(there), pa.string())
    text = pc.binary_join_element_wise(*parts, pa.scalar("}"), "")
    return pc.if_else(pa.array(there), text, pa.scalar(None, pa.string()))


def name_lists(flags: Mapping[str, npt.NDArray[np.bool_]], rows: int) -> pa.Array:
    """``["name",...]`` of the columns whose flag is true in each of ``rows`` rows, NULL where none is."""
    if not flags:
        return pa.nulls(rows, pa.string())
    parts = [pc.if_else(pa.array(flag), json.dumps(name, ensure_ascii=False) + ",", "") for name, flag in flags.items()]
    joined = pc.utf8_rtrim(pc.binary_join_element_wise(*parts, ""), characters=",")
    listed = pc.binary_join_element_wise("[", joined, "]", "")
    return pc.if_else(pa.array(np.logical_or.reduce(list(flags.values()))), listed, pa.scalar(None, pa.string()))


def value_text(values: pa.Array) -> pa.Array:
    """Each value as a text (string array) that tells it exactly; a list is JSON. NULL where the value is."""
    if pa.types.is_list(values.type):
        return _list(values)
    if pa.types.is_binary(values.type):
        return _hex(values)
    return _temporal(values) if pa.types.is_temporal(values.type) else values.cast(pa.string())


def _literal(values: pa.Array) -> pa.Array:
    """Each value as JSON; NULL as null."""
    type_, text = values.type, value_text(values)
    if pa.types.is_floating(type_):
        text = pc.if_else(pc.is_finite(values), text, _quoted(text))
    elif pa.types.is_string(type_):
        text = _quoted(_escaped(text))
    elif not (pa.types.is_boolean(type_) or pa.types.is_integer(type_) or pa.types.is_list(type_)):
        text = _quoted(text)
    return text.fill_null("null")


def _quoted(text: pa.Array) -> pa.Array:
    return pc.binary_join_element_wise('"', text, '"', "")


def _escaped(text: pa.Array) -> pa.Array:
    for char, escape in _ESCAPES:
        text = pc.replace_substring(text, pattern=char, replacement=escape)
    if pc.any(pc.match_substring_regex(text, _CONTROL)).as_py():
        for code in range(32):
            text = pc.replace_substring(text, pattern=chr(code), replacement=f"\\u{code:04x}")
    return text


def _list(values: pa.ListArray) -> pa.Array:
    lengths = np.array(pc.list_value_length(values).fill_null(0).to_numpy(zero_copy_only=False), np.int32)
    cuts = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
    joined = pc.binary_join(pa.ListArray.from_arrays(cuts, _literal(values.flatten())), ",")
    return pc.if_else(values.is_valid(), pc.binary_join_element_wise("[", joined, "]", ""), pa.scalar(None, pa.string()))


def _temporal(values: pa.Array) -> pa.Array:
    kind = Kind.DATE if pa.types.is_date(values.type) else Kind.TIMESTAMP
    if pa.types.is_time(values.type):
        return _clock(values)
    counts = values.view(pa.int32() if kind is Kind.DATE else pa.int64())
    infinity = INFINITY[kind]
    day = 1 if kind is Kind.DATE else 86_400_000_000
    near = pc.and_(pc.greater_equal(counts, _YEAR_1 * day), pc.less(counts, _YEAR_10000 * day))
    text = pc.if_else(near, values, pa.scalar(None, values.type)).cast(pa.string())
    text = pc.if_else(near, text, counts.cast(pa.string()))
    text = pc.if_else(pc.equal(counts, infinity), pa.scalar("infinity"), text)
    return pc.if_else(pc.equal(counts, -infinity), pa.scalar("-infinity"), text)


def _clock(values: pa.Array) -> pa.Array:
    """24:00:00 is a time here, and none in Arrow's text."""
    counts = values.view(pa.int64())
    day = pc.equal(counts, 86_400_000_000)
    text = pc.if_else(day, pa.scalar(0, pa.int64()), counts).view(values.type).cast(pa.string())
    return pc.if_else(day, pa.scalar("24:00:00"), text)


def _hex(values: pa.Array) -> pa.Array:
    _, cuts, content = values.fill_null(b"").buffers()
    filled = values.fill_null(b"")
    offsets = np.frombuffer(cuts, np.int32)[filled.offset : filled.offset + len(filled) + 1].astype(np.int64)
    octets = np.zeros(0, np.uint8) if content is None else np.frombuffer(content, np.uint8)[offsets[0] : offsets[-1]]
    digits = np.stack([_HEX[octets >> 4], _HEX[octets & 15]], axis=1).reshape(-1)
    ends = ((offsets - offsets[0]) * 2).astype(np.int32)
    text = pa.Array.from_buffers(pa.string(), len(values), [None, pa.py_buffer(ends), pa.py_buffer(digits.tobytes())])
    return pc.if_else(values.is_valid(), text, pa.scalar(None, pa.string()))
