"""Canonical key text: one injective string for a key of any number of columns, computed on whole columns.

A JSON array of the key's values as text, e.g. ``["17","a\\"b"]``. Composite keys joined without escaping collide and lose a row
(``('p|q','r')`` against ``('p','q|r')``); a JSON array cannot, and a person can read it in the quarantine.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

_ESCAPES = (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t"), ("\x00", "\\u0000"))


def key_text(columns: pa.Table) -> pa.Array:
    """One string a row of ``columns`` (the key columns, in key order); NULL where any of them is NULL, and where there are none.

    Bytes become lower-case hex. Control characters below U+0020 other than newline, return, tab and NUL (which not every warehouse can
    hold in its quarantine) stay as they are, which keeps the text injective, if not strict JSON.
    """
    parts = [_text(column) for column in columns.columns]
    if not parts:
        return pa.nulls(columns.num_rows, pa.string())
    joined = parts[0] if len(parts) == 1 else pc.binary_join_element_wise(*parts, '","')
    text = pc.binary_join_element_wise(pa.scalar('["'), joined, pa.scalar('"]'), "")
    return text.combine_chunks() if isinstance(text, pa.ChunkedArray) else text


def _text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_binary(column.type):
        return pa.chunked_array([_hex(column.combine_chunks())])
    text = column if pa.types.is_string(column.type) else _cast(column)
    if not pa.types.is_string(column.type):
        return text
    for char, escape in _ESCAPES:
        text = pc.replace_substring(text, pattern=char, replacement=escape)
    return text


def _cast(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_temporal(column.type):
        # The integer behind it: infinity has no calendar date, and a cast to text would raise on it.
        width = pa.int32() if pa.types.is_date32(column.type) else pa.int64()
        column = pa.chunked_array([chunk.view(width) for chunk in column.chunks], type=width)
    return column.cast(pa.string())


def _hex(column: pa.Array) -> pa.Array:
    # Keys of type bytea are rare and short; this is the one place that visits them one by one.
    return pa.array([None if value is None else value.hex() for value in column.to_pylist()], pa.string())
